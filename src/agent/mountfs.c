/* Mounts as descriptors; see mountfs.h. The kernel's fsopen family, Linux 5.12 or newer. */
#include "mountfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "agent_sys.h"
#include "cleanup.h"

#define MOUNTFS_DATA_MAX 4096
#define MOUNTFS_KEPT_MAX 8

/* Which MS_* bit is which attribute; atime is a field of its own. */
static const struct {
	uint64_t ms, attr;
} mountfs_attrs[] = {
	{MS_RDONLY, MOUNT_ATTR_RDONLY},		{MS_NOSUID, MOUNT_ATTR_NOSUID},
	{MS_NODEV, MOUNT_ATTR_NODEV},		{MS_NOEXEC, MOUNT_ATTR_NOEXEC},
	{MS_NODIRATIME, MOUNT_ATTR_NODIRATIME}, {MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW},
	{MS_NOATIME, MOUNT_ATTR_NOATIME},	{MS_STRICTATIME, MOUNT_ATTR_STRICTATIME},
};

/* Bits that belong to the file system, by the names fsconfig knows. */
static const struct {
	uint64_t ms;
	const char *name;
} mountfs_super_flags[] = {
	{MS_SYNCHRONOUS, "sync"},
	{MS_DIRSYNC, "dirsync"},
	{MS_LAZYTIME, "lazytime"},
};

uint64_t mountfs_attr_from_ms(uint64_t ms_flags)
{
	uint64_t attr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(mountfs_attrs); i++)
		if (ms_flags & mountfs_attrs[i].ms)
			attr |= mountfs_attrs[i].attr;
	return attr;
}

/* Those have nothing to write to: read-only is the mount's affair, and their superblock is shared. */
static bool mountfs_is_virtual(const char *type)
{
	static const char *const types[] = {"proc",   "sysfs",	"tmpfs",  "devpts",
					    "mqueue", "cgroup", "cgroup2"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (!strcmp(type, types[i]))
			return true;
	return false;
}

/* The last message the file system left in its context is better than the errno's name. */
static int mountfs_fail(int fs_fd, int code, const char *type, const char *what, struct err *err)
{
	char line[256];
	ssize_t n = read(fs_fd, line, sizeof(line) - 1);

	if (n <= 2)
		return err_set(err, code, "%s file system: %s", type, what);
	line[n] = '\0';
	if (line[n - 1] == '\n')
		line[n - 1] = '\0';
	return err_set(err, code, "%s file system: %s: %s", type, what, line + 2);
}

static int mountfs_option(int fs_fd, char *opt)
{
	char *eq = strchr(opt, '=');

	if (!eq)
		return sys_fsconfig(fs_fd, FSCONFIG_SET_FLAG, opt, NULL);
	*eq = '\0';
	return sys_fsconfig(fs_fd, FSCONFIG_SET_STRING, opt, eq + 1);
}

static int mountfs_options(int fs_fd, const struct mountfs_new *m, struct err *err)
{
	char data[MOUNTFS_DATA_MAX];
	char *save = NULL;

	if (strlen(m->data) >= sizeof(data))
		return err_set(err, -E2BIG, "%s file system: options", m->type);
	snprintf(data, sizeof(data), "%s", m->data);
	for (char *opt = strtok_r(data, ",", &save); opt; opt = strtok_r(NULL, ",", &save))
		if (mountfs_option(fs_fd, opt))
			return mountfs_fail(fs_fd, -errno, m->type, opt, err);
	return 0;
}

static int mountfs_configure(int fs_fd, const struct mountfs_new *m, struct err *err)
{
	if (m->source[0] && sys_fsconfig(fs_fd, FSCONFIG_SET_STRING, "source", m->source))
		return mountfs_fail(fs_fd, -errno, m->type, "source", err);
	for (size_t i = 0; i < ARRAY_SIZE(mountfs_super_flags); i++)
		if ((m->ms_flags & mountfs_super_flags[i].ms) &&
		    sys_fsconfig(fs_fd, FSCONFIG_SET_FLAG, mountfs_super_flags[i].name, NULL))
			return mountfs_fail(fs_fd, -errno, m->type, mountfs_super_flags[i].name,
					    err);
	if ((m->ms_flags & MS_RDONLY) && !mountfs_is_virtual(m->type) &&
	    sys_fsconfig(fs_fd, FSCONFIG_SET_FLAG, "ro", NULL))
		return mountfs_fail(fs_fd, -errno, m->type, "ro", err);
	if (mountfs_options(fs_fd, m, err))
		return err->code;
	if (sys_fsconfig(fs_fd, FSCONFIG_CMD_CREATE, NULL, NULL))
		return mountfs_fail(fs_fd, -errno, m->type, "create", err);
	return 0;
}

/* The file system without its mount. A descriptor, or -errno. */
static int mountfs_open(const struct mountfs_new *m, struct err *err)
{
	cleanup_close int fs_fd = sys_fsopen(m->type);

	if (fs_fd < 0)
		return err_set(err, -errno,
			       errno == ENODEV ? "%s file system is not in the guest's kernel"
					       : "%s file system",
			       m->type);
	if (mountfs_configure(fs_fd, m, err))
		return err->code;
	return take_fd(&fs_fd);
}

static struct mountfs_kept {
	const struct mountfs_new *m;
	int fs_fd;
} mountfs_kept[MOUNTFS_KEPT_MAX];
static size_t mountfs_nr_kept;

int mountfs_keep(const struct mountfs_new *m, struct err *err)
{
	int fs_fd = mountfs_nr_kept < MOUNTFS_KEPT_MAX
			    ? mountfs_open(m, err)
			    : err_say(err, -ENOSPC, "too many file systems made ahead");

	if (fs_fd < 0)
		return fs_fd;
	mountfs_kept[mountfs_nr_kept++] = (struct mountfs_kept){m, fs_fd};
	return 0;
}

static bool mountfs_are_alike(const struct mountfs_new *a, const struct mountfs_new *b)
{
	return a->ms_flags == b->ms_flags && !strcmp(a->type, b->type) &&
	       !strcmp(a->source, b->source) && !strcmp(a->data, b->data);
}

/* -1: there is none. */
static int mountfs_take_kept(const struct mountfs_new *m)
{
	for (size_t i = 0; i < mountfs_nr_kept; i++) {
		struct mountfs_kept k = mountfs_kept[i];

		if (!mountfs_are_alike(k.m, m))
			continue;
		mountfs_kept[i] = mountfs_kept[--mountfs_nr_kept];
		return k.fs_fd;
	}
	return -1;
}

int mountfs_new(const struct mountfs_new *m, struct err *err)
{
	cleanup_close int fs_fd = mountfs_take_kept(m);
	bool is_old = fs_fd >= 0;
	int fd;

	if (!is_old)
		fs_fd = mountfs_open(m, err);
	if (fs_fd < 0)
		return fs_fd;
	fd = sys_fsmount(fs_fd, mountfs_attr_from_ms(m->ms_flags));
	if (fd < 0)
		return mountfs_fail(fs_fd, -errno, m->type, "mount", err);
	/* Its root would have the template's age. */
	if (is_old && !strcmp(m->type, "tmpfs"))
		utimensat(fd, "", NULL, AT_EMPTY_PATH);
	return fd;
}

int mountfs_clone(int dirfd, const char *path, bool recursive)
{
	int fd = sys_open_tree(dirfd, path,
			       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH |
				       AT_SYMLINK_NOFOLLOW |
				       (recursive ? (unsigned int)AT_RECURSIVE : 0));

	return fd < 0 ? -errno : fd;
}

int mountfs_set_attr(int mount_fd, uint64_t set, uint64_t clear, bool recursive)
{
	unsigned int flags = AT_EMPTY_PATH | (recursive ? (unsigned int)AT_RECURSIVE : 0);

	if (!set && !clear)
		return 0;
	/* The kernel wants the whole atime field cleared before any of its values is set. */
	if ((set | clear) & (MOUNT_ATTR__ATIME))
		clear |= MOUNT_ATTR__ATIME;
	return sys_mount_setattr(mount_fd, "", flags, set, clear) ? -errno : 0;
}

int mountfs_propagate(int mount_fd, uint64_t propagation)
{
	unsigned int flags =
		AT_EMPTY_PATH | (propagation & MS_REC ? (unsigned int)AT_RECURSIVE : 0);

	return sys_mount_propagate(mount_fd, flags, propagation & ~(uint64_t)MS_REC) ? -errno : 0;
}

int mountfs_attach(int mount_fd, int target_fd)
{
	return sys_move_mount(mount_fd, "", target_fd, "",
			      MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
		       ? -errno
		       : 0;
}
