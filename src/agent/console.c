/* Terminals; see console.h. The slave comes from the master (TIOCGPTPEER), never from a path. */
#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "cleanup.h"
#include "rootpath.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static int console_open_master(int root_fd, int proc_fd, struct err *err)
{
	cleanup_close int path_fd = rootpath_open(root_fd, "/dev/pts/ptmx", O_PATH);
	char self[40];
	struct statfs fs;
	struct stat st;
	int fd;

	if (path_fd < 0)
		return err_set(err, path_fd, "terminal: open /dev/pts/ptmx");
	if (fstat(path_fd, &st) || fstatfs(path_fd, &fs))
		return err_set(err, -errno, "terminal: stat /dev/pts/ptmx");
	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(5, 2) || fs.f_type != DEVPTS_SUPER_MAGIC)
		return err_say(err, -EINVAL, "terminal: /dev/pts is not a devpts");
	snprintf(self, sizeof(self), "self/fd/%d", path_fd);
	fd = openat(proc_fd, self, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "terminal: open /dev/pts/ptmx");
	return fd;
}

int console_open(int root_fd, int proc_fd, struct console *ret, struct err *err)
{
	cleanup_close int master = console_open_master(root_fd, proc_fd, err);
	int unlock = 0;
	int slave;

	if (master < 0)
		return master;
	if (ioctl(master, TIOCSPTLCK, &unlock))
		return err_set(err, -errno, "terminal: unlock");
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return err_set(err, -errno, "terminal: open the slave");
	ret->master_fd = take_fd(&master);
	ret->slave_fd = slave;
	return 0;
}

int console_hang_up(int master_fd)
{
	cleanup_close int slave = ioctl(master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);

	return slave < 0 || ioctl(slave, TIOCVHANGUP) ? -errno : 0;
}

int console_resize(int fd, uint32_t width, uint32_t height)
{
	struct winsize ws = {.ws_col = (unsigned short)width, .ws_row = (unsigned short)height};

	return ioctl(fd, TIOCSWINSZ, &ws) ? -errno : 0;
}
