/*
 * A tmpfs of its own for one file; see guest_ram.h.
 *
 * Why not a memfd: QEMU saves a machine without its memory only if that is a shared *named* file
 * (x-ignore-shared), and opens it by name. What is lost is the seal against truncation: a QEMU that was
 * taken over can cut the file short, and the file server of this one VM dies of SIGBUS.
 *
 * The file may be written by anybody, because QEMU's user id is not known before it runs; but nobody
 * else can reach it.
 */
#include "guest_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "sys.h"

/* The file, the folder, and what the kernel counts besides. */
#define GUEST_RAM_INODES "4"
#define GUEST_RAM_SLACK 65536

static int guest_ram_mount(uint64_t bytes)
{
	cleanup_close int fs_fd = sys_fsopen("tmpfs");
	char size[32];
	int fd;

	snprintf(size, sizeof(size), "%" PRIu64, bytes + GUEST_RAM_SLACK);
	if (fs_fd < 0 || sys_fsconfig(fs_fd, FSCONFIG_SET_STRING, "size", size) ||
	    sys_fsconfig(fs_fd, FSCONFIG_SET_STRING, "nr_inodes", GUEST_RAM_INODES) ||
	    sys_fsconfig(fs_fd, FSCONFIG_SET_STRING, "mode", "0755") ||
	    sys_fsconfig(fs_fd, FSCONFIG_CMD_CREATE, NULL, NULL))
		return -errno;
	fd = sys_fsmount(fs_fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
	return fd < 0 ? -errno : fd;
}

int guest_ram_init(struct guest_ram *ret, uint64_t bytes, struct err *err)
{
	cleanup_close int mount_fd = guest_ram_mount(bytes);
	cleanup_close int fd = -1;

	*ret = (struct guest_ram){.mount_fd = -1, .fd = -1, .bytes = bytes};
	if (mount_fd < 0)
		return err_set(err, mount_fd, "mount a tmpfs for guest memory");
	fd = openat(mount_fd, GUEST_RAM_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		    0600);
	if (fd < 0 || fchmod(fd, 0666) || ftruncate(fd, (off_t)bytes))
		return err_set(err, -errno, "create a file of %" PRIu64 " MiB for guest memory",
			       bytes >> 20);
	ret->mount_fd = take_fd(&mount_fd);
	ret->fd = take_fd(&fd);
	return 0;
}

void guest_ram_done(struct guest_ram *ram)
{
	cleanup_closep(&ram->mount_fd);
	cleanup_closep(&ram->fd);
}
