/*
 * Mounts of a container and the way into its root; see rootfs.h.
 *
 * Runs in the forked child, alone in a new mount namespace. Sources come from the shared folder or the
 * guest, targets from the hostile image. Sources are cloned detached (open_tree), so attaching the root
 * over the shared folder does not hide what is still to be mounted: share_fd was opened below it.
 */
#include "rootfs.h"

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
#include "copyup.h"
#include "disks.h"
#include "io.h"
#include "log.h"
#include "mountfs.h"
#include "rootpath.h"

#define ROOTFS_SHARE_PREFIX "share:"
#define ROOTFS_SOCKET_PREFIX "socket:"

/* What OCI bundles put on /dev. */
static const struct mountfs_new rootfs_dev_tmpfs = {
	.type = "tmpfs",
	.source = "tmpfs",
	.data = "mode=755,size=65536k",
	.ms_flags = MS_NOSUID | MS_STRICTATIME,
};

int rootfs_open_proc(const struct agent_params *params, struct err *err)
{
	cleanup_close int fd = open(params->proc_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct statfs fs;

	if (fd < 0 || fstatfs(fd, &fs))
		return err_set(err, -errno, "open '%s'", params->proc_dir);
	if (fs.f_type != PROC_SUPER_MAGIC)
		return err_say(err, -EINVAL, "'%s' is not procfs", params->proc_dir);
	return take_fd(&fd);
}

/* The guest's own /dev/null: what masks files. A replaced one would mask nothing. */
static int rootfs_open_null(const struct agent_params *params, struct err *err)
{
	cleanup_close int dir = open(params->dev_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_close int fd = dir < 0 ? -1 : openat(dir, "null", O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return err_set(err, -errno, "open '%s/null'", params->dev_dir);
	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
		return err_say(err, -EINVAL, "'%s/null' is not the null device", params->dev_dir);
	return take_fd(&fd);
}

int rootfs_prepare(struct rootfs *r, const struct agent_params *params, struct err *err)
{
	/* Nothing mounted here may come back to the guest's namespace. */
	if (sys_mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return err_set(err, -errno, "make mounts private");
	r->proc_fd = rootfs_open_proc(params, err);
	r->null_fd = r->proc_fd < 0 ? -1 : rootfs_open_null(params, err);
	if (r->null_fd < 0)
		return err->code;
	r->share_fd = open(params->fs_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (r->share_fd < 0)
		return err_set(err, -errno, "open shared folder '%s'", params->fs_dir);
	return 0;
}

void rootfs_make_ahead(void)
{
	/* containerd's defaults (oci/mounts.go), which CRI and nerdctl have, too. /dev and /run are alike. */
	static const struct mountfs_new usual[] = {
		{"proc", "proc", "", MS_NOSUID | MS_NOEXEC | MS_NODEV},
		{"tmpfs", "tmpfs", "mode=755,size=65536k", MS_NOSUID | MS_STRICTATIME},
		{"devpts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5",
		 MS_NOSUID | MS_NOEXEC},
		{"tmpfs", "shm", "mode=1777,size=65536k", MS_NOSUID | MS_NOEXEC | MS_NODEV},
		{"mqueue", "mqueue", "", MS_NOSUID | MS_NOEXEC | MS_NODEV},
		{"sysfs", "sysfs", "", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY},
		{"tmpfs", "tmpfs", "mode=755,size=65536k", MS_NOSUID | MS_STRICTATIME},
	};

	for (size_t i = 0; i < ARRAY_SIZE(usual); i++) {
		struct err err = {0};

		/* Who asks for it will be told. */
		if (mountfs_keep(&usual[i], &err))
			log_dbg("rootfs", "%s", err.msg);
	}
}

int rootfs_open(struct rootfs *r, const struct plan *plan, struct err *err)
{
	const char *share = plan->create->root_share;
	struct stat st;
	int e;

	r->plan = plan;
	if (plan->disks->root) {
		share = plan->disks->root;
		e = mountfs_clone(AT_FDCWD, share, true);
	} else {
		e = mountfs_clone(r->share_fd, share, true);
	}
	if (e < 0)
		return err_set(err, e, "root file system, share '%s'", share);
	r->root_fd = e;
	if (fstat(r->root_fd, &st) || !S_ISDIR(st.st_mode))
		return err_say(err, -ENOTDIR, "root file system, share '%s': not a folder", share);
	e = mountfs_attach(r->root_fd, r->share_fd);
	if (e)
		return err_set(err, e, "attach the root file system");
	return 0;
}

static bool rootfs_is_bind(const AGENT_PB(Mount) * m)
{
	return (m->flags & MS_BIND) || !strcmp(m->type, "bind");
}

/* "/dev/" and "//dev" are /dev. */
static bool rootfs_is_path(const char *path, const char *name)
{
	size_t len = strlen(name);

	path += strspn(path, "/");
	return !strncmp(path, name, len) && path[len + strspn(path + len, "/")] == '\0' &&
	       (path[len] == '\0' || path[len] == '/');
}

/*
 * Where the runtime's own file systems go must not be the image's choice: a link there would put /proc
 * or the device nodes anywhere in the image's tree.
 */
static int rootfs_refuse_link(const struct rootfs *r, const char *destination, struct err *err)
{
	static const char *const names[] = {"dev", "proc", "sys"};
	struct stat st;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (!rootfs_is_path(destination, names[i]))
			continue;
		if (!fstatat(r->root_fd, names[i], &st, AT_SYMLINK_NOFOLLOW) &&
		    !S_ISDIR(st.st_mode))
			return err_say(err, -ENOTDIR,
				       "'/%s' of the image is not a folder (mode 0%o): refusing to "
				       "mount there",
				       names[i], st.st_mode);
	}
	return 0;
}

static int rootfs_clone_socket(const struct rootfs *r, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", r->plan->params->sock_dir, name);
	return mountfs_clone(AT_FDCWD, path, false);
}

/* A disk's node, or the file system in it, which the agent has mounted. */
static int rootfs_disk_source(const struct rootfs *r, const AGENT_PB(Mount) * m, struct err *err)
{
	const struct disk *k = disks_of_source(r->plan->disks, m->source);
	cleanup_free char *path = NULL;
	size_t index = 0;
	int fd;

	if (!k)
		return err_say(err, -ENODEV, "'%s' is not in the guest", m->source);
	while (r->plan->create->mounts[index] != m)
		index++;
	path = rootfs_is_bind(m) ? xasprintf("%s/%s", r->plan->params->dev_dir, k->node)
				 : disks_volume_path(r->plan->disks, index);
	fd = mountfs_clone(AT_FDCWD, path, false);
	return fd < 0 ? err_set(err, fd, "clone '%s'", path) : fd;
}

static int rootfs_bind_source(const struct rootfs *r, const AGENT_PB(Mount) * m, struct err *err)
{
	bool recursive = m->flags & MS_REC;
	int fd;

	if (!strncmp(m->source, ROOTFS_SHARE_PREFIX, strlen(ROOTFS_SHARE_PREFIX)))
		fd = mountfs_clone(r->share_fd, m->source + strlen(ROOTFS_SHARE_PREFIX), recursive);
	else if (!strncmp(m->source, ROOTFS_SOCKET_PREFIX, strlen(ROOTFS_SOCKET_PREFIX)))
		fd = rootfs_clone_socket(r, m->source + strlen(ROOTFS_SOCKET_PREFIX));
	else if (m->source[0] == '/')
		fd = mountfs_clone(AT_FDCWD, m->source, recursive);
	else
		return err_say(err, -EINVAL, "bind source '%s' is neither a share nor absolute",
			       m->source);
	if (fd < 0)
		return err_set(err, fd, "bind source '%s'", m->source);
	return fd;
}

/*
 * A user namespace may mount sysfs only if it owns the network namespace, which here is the guest's: the guest's
 * own mount is taken then. It comes with all below it, because mounts of a more privileged namespace stick
 * together; its files are the guest's root's, who nobody in the container is.
 */
static int rootfs_sysfs_source(const struct rootfs *r, const struct mountfs_new *fs,
			       struct err *err)
{
	int fd = mountfs_new(fs, err);

	if (fd != -EPERM || !(r->plan->namespaces & CLONE_NEWUSER))
		return fd;
	fd = mountfs_clone(AT_FDCWD, "/sys", true);
	return fd < 0 ? err_set(err, fd, "clone the guest's /sys") : fd;
}

/* A tmpfs without a mode of its own takes that of the folder it covers, as runc has it. */
static char *rootfs_tmpfs_data(const struct rootfs *r, const AGENT_PB(Mount) * m)
{
	cleanup_close int fd = -1;
	struct stat st;

	if (strcmp(m->type, "tmpfs") == 0 && !strstr(m->data, "mode="))
		fd = rootpath_open(r->root_fd, m->destination, O_PATH | O_DIRECTORY);
	if (fd < 0 || fstat(fd, &st))
		return xstrdup(m->data);
	return xasprintf("mode=%04o%s%s", st.st_mode & 07777, m->data[0] ? "," : "", m->data);
}

/* The detached mount for `m`. */
static int rootfs_source(const struct rootfs *r, const AGENT_PB(Mount) * m, struct err *err)
{
	cleanup_free char *data = rootfs_tmpfs_data(r, m);
	struct mountfs_new fs = {.type = m->type,
				 .source = m->source,
				 .data = data,
				 .ms_flags = m->flags & ~m->clear_flags};

	if (m->flags & (MS_REMOUNT | MS_MOVE))
		return err_say(err, -EINVAL, "flags 0x%llx are not supported",
			       (unsigned long long)m->flags);
	if (!strncmp(m->source, DISKS_SOURCE_PREFIX, strlen(DISKS_SOURCE_PREFIX)))
		return rootfs_disk_source(r, m, err);
	if (rootfs_is_bind(m))
		return rootfs_bind_source(r, m, err);
	/* Whatever the host has, the guest has version 2; what it shows starts at the container's own cgroup. */
	if (!strcmp(m->type, "cgroup") || !strcmp(m->type, "cgroup2"))
		return mountfs_new(&(struct mountfs_new){.type = "cgroup2",
							 .source = "cgroup2",
							 .data = "",
							 .ms_flags = m->flags},
				   err);
	/* Something is to be put there first; rootfs_set_attrs() makes it so afterwards. */
	if (rootfs_is_path(m->destination, "dev") || m->copy_up)
		fs.ms_flags &= ~(uint64_t)MS_RDONLY;
	if (!strcmp(m->type, "sysfs"))
		return rootfs_sysfs_source(r, &fs, err);
	return mountfs_new(&fs, err);
}

static int rootfs_set_attrs(int fd, const AGENT_PB(Mount) * m, bool keep_writable, struct err *err)
{
	uint64_t set = mountfs_attr_from_ms(m->flags), clear = mountfs_attr_from_ms(m->clear_flags);
	int e;

	if (keep_writable)
		set &= ~(uint64_t)MOUNT_ATTR_RDONLY;
	clear &= ~set;
	e = mountfs_set_attr(fd, set, clear, false);
	if (!e)
		e = mountfs_set_attr(fd, m->recursive_attr_set, m->recursive_attr_clear, true);
	if (e)
		return err_set(err, e, "set mount flags 0x%llx", (unsigned long long)m->flags);
	return 0;
}

static int rootfs_target(const struct rootfs *r, int source_fd, const AGENT_PB(Mount) * m,
			 struct err *err)
{
	struct stat st;

	if (fstat(source_fd, &st))
		return err_set(err, -errno, "stat '%s'", m->source);
	if (rootfs_is_path(m->destination, ""))
		return err_say(err, -EINVAL, "a mount cannot replace the root");
	if (rootfs_refuse_link(r, m->destination, err))
		return err->code;
	return rootpath_make(r->root_fd, m->destination,
			     S_ISDIR(st.st_mode) ? ROOTPATH_DIR : ROOTPATH_FILE, err);
}

static int rootfs_mount_one(struct rootfs *r, const AGENT_PB(Mount) * m, struct err *err)
{
	bool is_dev = rootfs_is_path(m->destination, "dev");
	bool fresh_dev = is_dev && !rootfs_is_bind(m);
	cleanup_close int source = rootfs_source(r, m, err);
	cleanup_close int target = source < 0 ? -1 : rootfs_target(r, source, m, err);
	int e;

	if (target < 0 || (m->copy_up && copyup(target, source, err)) ||
	    rootfs_set_attrs(source, m, fresh_dev, err))
		return err->code;
	e = mountfs_attach(source, target);
	if (e)
		return err_set(err, e, "attach");
	if (m->propagation) {
		e = mountfs_propagate(source, m->propagation);
		if (e)
			return err_set(err, e, "propagation 0x%llx",
				       (unsigned long long)m->propagation);
	}
	if (is_dev) {
		cleanup_closep(&r->dev_fd);
		r->dev_fd = fresh_dev ? take_fd(&source) : -1;
		r->dev_readonly = fresh_dev && (m->flags & MS_RDONLY);
	}
	return 0;
}

/* Without a /dev in the request the image's own would be used, with nodes and links of its choice. */
static int rootfs_mount_dev(struct rootfs *r, struct err *err)
{
	cleanup_close int target = -1;
	int e;

	for (size_t i = 0; i < r->plan->create->n_mounts; i++)
		if (rootfs_is_path(r->plan->create->mounts[i]->destination, "dev"))
			return 0;
	if (rootfs_refuse_link(r, "/dev", err))
		return err->code;
	r->dev_fd = mountfs_new(&rootfs_dev_tmpfs, err);
	target = r->dev_fd < 0 ? -1 : rootpath_make(r->root_fd, "dev", ROOTPATH_DIR, err);
	if (target < 0)
		return err->code;
	e = mountfs_attach(r->dev_fd, target);
	return e ? err_set(err, e, "attach /dev") : 0;
}

int rootfs_mount_all(struct rootfs *r, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = r->plan->create;

	if (rootfs_mount_dev(r, err))
		return err->code;
	for (size_t i = 0; i < c->n_mounts; i++)
		if (rootfs_mount_one(r, c->mounts[i], err))
			return err_wrap(err, "mount '%s' (%s)", c->mounts[i]->destination,
					c->mounts[i]->type);
	return 0;
}

/*
 * The guest's procfs is used, by descriptor: what it shows below sys/net, sys/kernel and sys/fs are the
 * caller's own namespaces, and nothing the container mounted can stand in for it.
 */
static int rootfs_set_sysctl(const struct rootfs *r, const AGENT_PB(Sysctl) * s, struct err *err)
{
	cleanup_close int fd = -1;
	char path[300];
	struct statfs fs;
	int e;

	snprintf(path, sizeof(path), "sys/%s", s->key);
	/* As sysctl(8): the first separator tells which of the two is meant. */
	if (s->key[strcspn(s->key, "./")] == '.')
		for (char *p = path + strlen("sys/"); *p; p++)
			*p = *p == '.' ? '/' : *p == '/' ? '.' : *p;
	fd = sys_openat2(r->proc_fd, path, O_WRONLY | O_CLOEXEC, 0,
			 RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
	if (fd < 0 || fstatfs(fd, &fs))
		return err_set(err, -errno, "sysctl '%s'", s->key);
	if (fs.f_type != PROC_SUPER_MAGIC)
		return err_say(err, -EINVAL, "sysctl '%s' is not in procfs", s->key);
	e = io_write_full(fd, s->value, strlen(s->value));
	if (e)
		return err_set(err, e, "sysctl '%s' = '%.64s'", s->key, s->value);
	return 0;
}

int rootfs_set_sysctls(struct rootfs *r, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = r->plan->create;

	for (size_t i = 0; i < c->n_sysctls; i++)
		if (rootfs_set_sysctl(r, c->sysctls[i], err))
			return err->code;
	return 0;
}

int rootfs_enter(struct rootfs *r, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = r->plan->create;
	int e;

	if (c->root_readonly) {
		e = mountfs_set_attr(r->root_fd, MOUNT_ATTR_RDONLY, 0, false);
		if (e)
			return err_set(err, e, "make the root read-only");
	}
	/* The old root ends up stacked on the new one, where "." then finds and detaches it. */
	if (fchdir(r->root_fd) || sys_pivot_root(".", "."))
		return err_set(err, -errno, "pivot_root");
	if (sys_umount2(".", SYS_MNT_DETACH) || chdir("/"))
		return err_set(err, -errno, "detach the old root");
	if (c->rootfs_propagation) {
		e = mountfs_propagate(r->root_fd, c->rootfs_propagation);
		if (e)
			return err_set(err, e, "root propagation 0x%llx",
				       (unsigned long long)c->rootfs_propagation);
	}
	return 0;
}

void rootfs_close(struct rootfs *r)
{
	int *fds[] = {&r->root_fd, &r->dev_fd, &r->share_fd, &r->proc_fd, &r->null_fd};

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		cleanup_closep(fds[i]);
}
