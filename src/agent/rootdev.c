/*
 * /dev of a container: always a fresh tmpfs with nodes we make; the image's own /dev is never looked at.
 * Runs in the forked child before pivot_root. With a user namespace mknod is not allowed, so the guest's
 * nodes are bound instead, after a look at their numbers.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "disks.h"
#include "mountfs.h"
#include "rootfs.h"
#include "rootpath.h"

struct rootdev_node {
	const char *path; /* below /dev, or below the root for the few that are elsewhere */
	uint32_t mode, major, minor, uid, gid;
	const char *guest; /* its path below the guest's /dev; NULL = the same */
};

/* The OCI runtime spec's default devices. */
static const struct rootdev_node rootdev_defaults[] = {
	{"null", S_IFCHR | 0666, 1, 3, 0, 0, NULL}, {"zero", S_IFCHR | 0666, 1, 5, 0, 0, NULL},
	{"full", S_IFCHR | 0666, 1, 7, 0, 0, NULL}, {"random", S_IFCHR | 0666, 1, 8, 0, 0, NULL},
	{"tty", S_IFCHR | 0666, 5, 0, 0, 0, NULL},  {"urandom", S_IFCHR | 0666, 1, 9, 0, 0, NULL},
};

static const struct {
	const char *name, *target;
} rootdev_links[] = {
	{"fd", "/proc/self/fd"},       {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"}, {"core", "/proc/kcore"},	     {"ptmx", "pts/ptmx"},
};

static bool rootdev_is_below_dev(const char *path)
{
	return !strncmp(path, "/dev/", strlen("/dev/"));
}

static bool rootdev_is_listed(const AGENT_PB(CreateContainerRequest) * c, const char *name)
{
	for (size_t i = 0; i < c->n_devices; i++)
		if (rootdev_is_below_dev(c->devices[i]->path) &&
		    !strcmp(c->devices[i]->path + strlen("/dev/"), name))
			return true;
	return false;
}

static bool rootdev_matches(int fd, const struct rootdev_node *n)
{
	struct stat st;

	if (fstat(fd, &st) || (st.st_mode & S_IFMT) != (n->mode & S_IFMT))
		return false;
	return S_ISFIFO(n->mode) || st.st_rdev == makedev(n->major, n->minor);
}

/* A mount of the request may have put the very same device there already. */
static int rootdev_check_existing(int dir, const char *name, const struct rootdev_node *n,
				  struct err *err)
{
	cleanup_close int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || !rootdev_matches(fd, n))
		return err_set(err, -EEXIST, "device '%s'", n->path);
	return 0;
}

static int rootdev_mknod(int dir, const char *name, const struct rootdev_node *n, struct err *err)
{
	if (mknodat(dir, name, n->mode, makedev(n->major, n->minor))) {
		if (errno == EEXIST)
			return rootdev_check_existing(dir, name, n, err);
		return err_set(err, -errno, "make device '%s' (%u:%u)", n->path, n->major,
			       n->minor);
	}
	if ((n->uid || n->gid) && fchownat(dir, name, n->uid, n->gid, AT_SYMLINK_NOFOLLOW))
		return err_set(err, -errno, "owner %u:%u of device '%s'", n->uid, n->gid, n->path);
	return 0;
}

static int rootdev_bind(const struct rootfs *r, int base_fd, const struct rootdev_node *n,
			struct err *err)
{
	cleanup_close int guest = open(r->plan->params->dev_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_close int node =
		guest < 0 ? -1 : rootpath_open(guest, n->guest ? n->guest : n->path, O_PATH);
	cleanup_close int mount = -1, target = -1;
	int e;

	if (node < 0 || !rootdev_matches(node, n))
		return err_say(err, -ENODEV,
			       "device '%s' (%u:%u) is not in the guest, and a user namespace "
			       "cannot make one",
			       n->path, n->major, n->minor);
	mount = mountfs_clone(node, "", false);
	if (mount < 0)
		return err_set(err, mount, "clone device '%s'", n->path);
	target = rootpath_make(base_fd, n->path, ROOTPATH_FILE, err);
	if (target < 0)
		return target;
	e = mountfs_attach(mount, target);
	return e ? err_set(err, e, "bind device '%s'", n->path) : 0;
}

static int rootdev_make(const struct rootfs *r, int base_fd, const struct rootdev_node *n,
			struct err *err)
{
	cleanup_close int dir = -1;
	const char *name;

	if (!S_ISFIFO(n->mode) && (r->plan->namespaces & CLONE_NEWUSER))
		return rootdev_bind(r, base_fd, n, err);
	dir = rootpath_make_parent(base_fd, n->path, &name, err);
	if (dir < 0)
		return dir;
	return rootdev_mknod(dir, name, n, err);
}

/* Kernels without /proc/kcore are the rule in guests. */
static bool rootdev_has_target(const struct rootfs *r, const char *name)
{
	return strcmp(name, "core") != 0 || !faccessat(r->proc_fd, "kcore", F_OK, 0);
}

static int rootdev_link_all(const struct rootfs *r, struct err *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(rootdev_links); i++)
		if (rootdev_has_target(r, rootdev_links[i].name) &&
		    symlinkat(rootdev_links[i].target, r->dev_fd, rootdev_links[i].name) &&
		    errno != EEXIST)
			return err_set(err, -errno, "link '/dev/%s'", rootdev_links[i].name);
	return 0;
}

static int rootdev_make_all(const struct rootfs *r, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = r->plan->create;

	for (size_t i = 0; i < ARRAY_SIZE(rootdev_defaults); i++)
		if (!rootdev_is_listed(c, rootdev_defaults[i].path) &&
		    rootdev_make(r, r->dev_fd, &rootdev_defaults[i], err))
			return err->code;
	for (size_t i = 0; i < c->n_devices; i++) {
		const AGENT_PB(Device) *d = c->devices[i];
		bool below_dev = rootdev_is_below_dev(d->path);
		struct rootdev_node n = {.path = d->path + (below_dev ? strlen("/dev/") : 1),
					 .mode = d->mode,
					 .major = d->major,
					 .minor = d->minor,
					 .uid = d->uid,
					 .gid = d->gid};
		const struct disk *k = d->disk[0] ? disks_find(r->plan->disks, d->disk) : NULL;

		if (k) {
			n.major = k->major;
			n.minor = k->minor;
			n.guest = k->node;
		} else if (d->disk[0]) {
			return err_say(err, -ENODEV, "device '%s': disk '%s' is not in the guest",
				       d->path, d->disk);
		}
		if (rootdev_make(r, below_dev ? r->dev_fd : r->root_fd, &n, err))
			return err->code;
	}
	return rootdev_link_all(r, err);
}

int rootfs_make_dev(struct rootfs *r, struct err *err)
{
	mode_t mask;
	int e;

	if (r->dev_fd < 0)
		return 0;
	mask = umask(0);
	e = rootdev_make_all(r, err);
	umask(mask);
	return e;
}

int rootfs_bind_console(struct rootfs *r, int slave_fd, struct err *err)
{
	cleanup_close int mount = -1, target = -1, check = -1;
	struct stat slave, there;
	int e;

	if (r->dev_fd < 0)
		return 0;
	mount = mountfs_clone(slave_fd, "", false);
	if (mount < 0)
		return err_set(err, mount, "clone the terminal");
	target = rootpath_make(r->dev_fd, "console", ROOTPATH_FILE, err);
	if (target < 0)
		return target;
	e = mountfs_attach(mount, target);
	if (e)
		return err_set(err, e, "bind the terminal on /dev/console");
	check = rootpath_open(r->dev_fd, "console", O_PATH);
	if (check < 0 || fstat(check, &there) || fstat(slave_fd, &slave) ||
	    there.st_rdev != slave.st_rdev || there.st_ino != slave.st_ino)
		return err_say(err, -EINVAL, "/dev/console is not the container's terminal");
	return 0;
}
