/*
 * Masked and read-only paths of a container. Runs in the forked child before pivot_root, when all mounts
 * are in place. Every path is opened once inside the root and then worked on by descriptor. A path that
 * does not exist needs no hiding; any other failure ends the container, for a mask that silently did not
 * happen is a hole.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "mountfs.h"
#include "rootfs.h"
#include "rootpath.h"

static const struct mountfs_new roothide_empty = {
	.type = "tmpfs",
	.source = "tmpfs",
	.data = "size=0k,nr_inodes=2",
	.ms_flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
};

/* *empty_fd: the first masked folder's mount, which the others clone. */
static int roothide_cover(const struct rootfs *r, bool is_dir, int *empty_fd, struct err *err)
{
	int fd;

	if (is_dir && *empty_fd < 0)
		return mountfs_new(&roothide_empty, err);
	fd = mountfs_clone(is_dir ? *empty_fd : r->null_fd, "", false);
	if (fd < 0)
		return err_set(err, fd, "clone the mask");
	return fd;
}

static int roothide_mask(const struct rootfs *r, const char *path, int *empty_fd, struct err *err)
{
	cleanup_close int target = rootpath_open(r->root_fd, path, O_PATH);
	cleanup_close int cover = -1;
	struct stat st;
	int e;

	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return err_set(err, target, "open");
	if (fstat(target, &st))
		return err_set(err, -errno, "stat");
	cover = roothide_cover(r, S_ISDIR(st.st_mode), empty_fd, err);
	if (cover < 0)
		return cover;
	e = mountfs_attach(cover, target);
	if (e)
		return err_set(err, e, "attach");
	if (fstat(cover, &st))
		return err_set(err, -errno, "stat the mask");
	if (!S_ISDIR(st.st_mode) && st.st_rdev != makedev(1, 3))
		return err_say(err, -EINVAL, "the mask is not the null device");
	if (S_ISDIR(st.st_mode) && *empty_fd < 0)
		*empty_fd = take_fd(&cover);
	return 0;
}

static int roothide_readonly(const struct rootfs *r, const char *path, struct err *err)
{
	cleanup_close int target = rootpath_open(r->root_fd, path, O_PATH);
	cleanup_close int mount = -1;
	int e;

	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return err_set(err, target, "open");
	mount = mountfs_clone(target, "", true);
	if (mount < 0)
		return err_set(err, mount, "clone");
	e = mountfs_set_attr(mount, MOUNT_ATTR_RDONLY, 0, false);
	if (!e)
		e = mountfs_attach(mount, target);
	return e ? err_set(err, e, "remount") : 0;
}

int rootfs_hide(struct rootfs *r, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = r->plan->create;
	cleanup_close int empty_fd = -1;

	if (r->dev_readonly && mountfs_set_attr(r->dev_fd, MOUNT_ATTR_RDONLY, 0, false))
		return err_set(err, -errno, "make /dev read-only");
	for (size_t i = 0; i < c->n_readonly_paths; i++)
		if (roothide_readonly(r, c->readonly_paths[i], err))
			return err_wrap(err, "read-only path '%s'", c->readonly_paths[i]);
	for (size_t i = 0; i < c->n_masked_paths; i++)
		if (roothide_mask(r, c->masked_paths[i], &empty_fd, err))
			return err_wrap(err, "masked path '%s'", c->masked_paths[i]);
	return 0;
}
