/*
 * Host mounts; see mounts.h. Runs in the shim, one thread, so the working directory may be borrowed for
 * overlay's relative lower layers and is set back to "/" afterwards.
 *
 * The target is always reached by descriptor (/proc/self/fd/N): a bundle whose `rootfs` was replaced by a
 * symbolic link leads nowhere.
 */
#include "mounts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cleanup.h"
#include "sys.h"
#include "util.h"

#define MOUNTS_ROOTFS "rootfs"
#define MOUNTS_DATA_MAX 4095 /* one page with its NUL */
#define MOUNTS_OPTIONS_MAX 65536
#define MOUNTS_UMOUNT_ROUNDS 64

struct mounts_word {
	const char *word;
	uint64_t set, clear, propagation;
};

static const struct mounts_word mounts_words[] = {
	{"async", 0, MS_SYNCHRONOUS, 0},
	{"atime", 0, MS_NOATIME, 0},
	{"bind", MS_BIND, 0, 0},
	{"defaults", 0, 0, 0},
	{"dev", 0, MS_NODEV, 0},
	{"diratime", 0, MS_NODIRATIME, 0},
	{"dirsync", MS_DIRSYNC, 0, 0},
	{"exec", 0, MS_NOEXEC, 0},
	{"mand", MS_MANDLOCK, 0, 0},
	{"noatime", MS_NOATIME, 0, 0},
	{"nodev", MS_NODEV, 0, 0},
	{"nodiratime", MS_NODIRATIME, 0, 0},
	{"noexec", MS_NOEXEC, 0, 0},
	{"nomand", 0, MS_MANDLOCK, 0},
	{"norelatime", 0, MS_RELATIME, 0},
	{"nostrictatime", 0, MS_STRICTATIME, 0},
	{"nosuid", MS_NOSUID, 0, 0},
	{"rbind", MS_BIND | MS_REC, 0, 0},
	{"relatime", MS_RELATIME, 0, 0},
	{"remount", MS_REMOUNT, 0, 0},
	{"ro", MS_RDONLY, 0, 0},
	{"rw", 0, MS_RDONLY, 0},
	{"strictatime", MS_STRICTATIME, 0, 0},
	{"suid", 0, MS_NOSUID, 0},
	{"sync", MS_SYNCHRONOUS, 0, 0},
	{"private", 0, 0, MS_PRIVATE},
	{"rprivate", 0, 0, MS_PRIVATE | MS_REC},
	{"shared", 0, 0, MS_SHARED},
	{"rshared", 0, 0, MS_SHARED | MS_REC},
	{"slave", 0, 0, MS_SLAVE},
	{"rslave", 0, 0, MS_SLAVE | MS_REC},
};

static const struct mounts_word *mounts_find_word(const char *option)
{
	for (size_t i = 0; i < ARRAY_SIZE(mounts_words); i++) {
		if (!strcmp(mounts_words[i].word, option))
			return &mounts_words[i];
	}
	return NULL;
}

int mounts_options_parse(char *const *options, size_t nr, struct mounts_options *ret,
			 struct err *err)
{
	struct mounts_options o = {0};
	size_t len = 1;
	char *end;

	*ret = o;
	for (size_t i = 0; i < nr; i++)
		len += strlen(options[i]) + 1;
	if (len > MOUNTS_OPTIONS_MAX)
		return err_say(err, -E2BIG, "mount options are longer than %d bytes",
			       MOUNTS_OPTIONS_MAX);
	o.data = end = xcalloc(1, len);
	for (size_t i = 0; i < nr; i++) {
		const struct mounts_word *w = mounts_find_word(options[i]);

		if (w) {
			o.flags = (o.flags & ~w->clear) | w->set;
			o.propagation |= w->propagation;
		} else if (!strcmp(options[i], "loop")) {
			o.loop = true;
		} else {
			end += sprintf(end, "%s%s", end == o.data ? "" : ",", options[i]);
		}
	}
	*ret = o;
	return 0;
}

void mounts_options_done(struct mounts_options *o)
{
	free(o->data);
	o->data = NULL;
}

/* Finds "lowerdir=..." in comma-separated options. Returns its value and length. */
static const char *mounts_find_lower(const char *data, size_t *ret_len)
{
	static const char key[] = "lowerdir=";

	for (const char *p = data; p; p = strchr(p, ',')) {
		p += *p == ',';
		if (!strncmp(p, key, sizeof(key) - 1)) {
			p += sizeof(key) - 1;
			*ret_len = strcspn(p, ",");
			return p;
		}
	}
	return NULL;
}

/* Length of the folder all the colon-separated paths share, its final '/' included; 0 = none. */
static size_t mounts_common_dir(const char *lower, size_t len)
{
	size_t first = strcspn(lower, ":"), common = MIN(first, len);

	for (const char *p = lower; p < lower + len;) {
		size_t n = MIN(strcspn(p, ":"), (size_t)(lower + len - p)), i = 0;

		while (i < MIN(n, common) && p[i] == lower[i])
			i++;
		common = i;
		p += n + 1;
	}
	while (common && lower[common - 1] != '/')
		common--;
	/* A path that is the folder itself would become empty. */
	return common == first ? 0 : common;
}

/* The options with `common` bytes cut off the front of every lower layer. */
static char *mounts_cut_lower(const char *data, const char *lower, size_t len, size_t common)
{
	char *out = NULL;
	size_t out_len = 0;
	FILE *f = open_memstream(&out, &out_len);

	if (!f)
		abort();
	fwrite(data, 1, (size_t)(lower - data), f);
	for (const char *p = lower; p < lower + len;) {
		size_t n = MIN(strcspn(p, ":"), (size_t)(lower + len - p));

		if (p != lower)
			fputc(':', f);
		fwrite(p + common, 1, n - common, f);
		p += n + 1;
	}
	fputs(lower + len, f);
	if (fclose(f))
		abort();
	return out;
}

int mounts_shorten_overlay(const char *data, size_t max, char **ret_dir, char **ret_data,
			   struct err *err)
{
	size_t len = 0, common = 0, need = strlen(data);
	const char *lower = mounts_find_lower(data, &len);
	cleanup_free char *out = NULL;

	/* An escaped colon would be taken for a separator. */
	if (lower && lower[0] == '/' && !memchr(lower, '\\', len))
		common = mounts_common_dir(lower, len);
	if (common > 1) {
		out = mounts_cut_lower(data, lower, len, common);
		need = strlen(out);
	}
	if (!out || need > max)
		return err_say(
			err, -ENAMETOOLONG,
			"overlay options need %zu bytes, mount(2) takes %zu: too many layers", need,
			max);
	*ret_dir = xstrndup(lower, common);
	*ret_data = take_ptr(&out);
	return 0;
}

/* mount(2), with overlay's lower layers made relative when the options are too long for it. */
static int mounts_mount_data(const struct mounts_entry *e, const char *target,
			     const struct mounts_options *o, struct err *err)
{
	cleanup_free char *dir = NULL, *shorter = NULL;
	const char *data = o->data ? o->data : "";
	int r = 0;

	if (strlen(data) > MOUNTS_DATA_MAX) {
		if (strcmp(e->type, "overlay") != 0)
			return err_say(err, -E2BIG, "%s mount options are longer than %d bytes",
				       e->type, MOUNTS_DATA_MAX);
		r = mounts_shorten_overlay(data, MOUNTS_DATA_MAX, &dir, &shorter, err);
		if (r || !dir)
			return r;
		if (chdir(dir))
			return err_set(err, -errno, "enter '%s'", dir);
	}
	if (mount(e->source, target, e->type, o->flags & ~(uint64_t)MS_REMOUNT,
		  shorter ? shorter : data))
		r = err_set(err, -errno, "mount %s '%.200s' on the root file system", e->type,
			    e->source);
	if (dir && chdir("/") && !r)
		r = err_set(err, -errno, "enter '/'");
	return r;
}

static int mounts_check(const struct mounts_entry *e, const struct mounts_options *o,
			struct err *err)
{
	struct stat st;

	if (strchr(e->type, '/'))
		return err_say(
			err, -EOPNOTSUPP,
			"root file system: mount type '%.60s' needs containerd's mount manager",
			e->type);
	if (!strncmp(e->type, "fuse", 4))
		return err_say(
			err, -EOPNOTSUPP,
			"root file system: FUSE snapshotters (type '%.60s') are not supported",
			e->type);
	/* The guest mounts those (rootdisks.h): the host's kernel does not parse what an image's author wrote. */
	if (o->loop || (!(o->flags & MS_BIND) && e->source[0] == '/' && !stat(e->source, &st) &&
			(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))))
		return err_say(err, -EOPNOTSUPP,
			       "root file system: disk '%.200s' (%s) is not mounted on the host",
			       e->source, e->type);
	return 0;
}

static int mounts_mount_one(int rootfs_fd, const struct mounts_entry *e, struct err *err)
{
	cleanup(mounts_options_done) struct mounts_options o = {0};
	cleanup_close int target_fd = -1;
	char target[64];
	int r = mounts_options_parse(e->options, e->nr_options, &o, err);

	if (!r && !strcmp(e->type, "bind"))
		o.flags |= MS_BIND;
	if (!r)
		r = mounts_check(e, &o, err);
	if (r)
		return r;
	/* The handle is opened anew for each entry: it must be on top of what was mounted before. */
	target_fd = sys_openat2(rootfs_fd, *e->target ? e->target : ".", O_PATH | O_CLOEXEC, 0,
				RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
	if (target_fd < 0)
		return err_set(err, -errno, "root file system: open mount target '%.200s'",
			       e->target);
	snprintf(target, sizeof(target), "/proc/self/fd/%d", target_fd);
	return mounts_mount_data(e, target, &o, err);
}

/* Opens <bundle>/rootfs as it is now, on top of everything mounted there. */
static int mounts_open_rootfs(int bundle_fd, struct err *err)
{
	int fd = sys_openat2(bundle_fd, MOUNTS_ROOTFS, O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
			     RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH);

	if (fd < 0)
		return err_set(err, -errno, "open the bundle's '%s'", MOUNTS_ROOTFS);
	return fd;
}

/* Flags that a bind mount ignores at first and takes in a second call, and the propagation. */
static int mounts_finish_one(int bundle_fd, const struct mounts_entry *e, struct err *err)
{
	cleanup(mounts_options_done) struct mounts_options o = {0};
	cleanup_close int root = -1;
	cleanup_close int top = -1;
	char target[64];
	int r = mounts_options_parse(e->options, e->nr_options, &o, err);

	if (r)
		return r;
	if (!strcmp(e->type, "bind"))
		o.flags |= MS_BIND;
	root = mounts_open_rootfs(bundle_fd, err);
	if (root < 0)
		return root;
	top = sys_openat2(root, *e->target ? e->target : ".", O_PATH | O_CLOEXEC, 0,
			  RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
	if (top < 0)
		return err_set(err, -errno, "root file system: open '%.200s'", e->target);
	snprintf(target, sizeof(target), "/proc/self/fd/%d", top);
	if ((o.flags & MS_BIND) && (o.flags & ~(uint64_t)(MS_BIND | MS_REC)) &&
	    mount(NULL, target, NULL, (o.flags & ~(uint64_t)MS_REC) | MS_REMOUNT, NULL))
		return err_set(err, -errno, "set the flags of bind mount '%.200s'", e->source);
	if (o.propagation && mount(NULL, target, NULL, o.propagation, NULL))
		return err_set(err, -errno, "set the propagation of '%.200s'", e->source);
	return 0;
}

int mounts_mount_rootfs(int bundle_fd, const struct mounts_entry *entries, size_t nr,
			struct err *err)
{
	int r = 0;

	if (nr > MOUNTS_MAX)
		return err_say(err, -E2BIG, "root file system: %zu mounts, at most %d", nr,
			       MOUNTS_MAX);
	for (size_t i = 0; i < nr && !r; i++) {
		cleanup_close int root = mounts_open_rootfs(bundle_fd, err);

		r = root < 0 ? root : mounts_mount_one(root, &entries[i], err);
		if (!r)
			r = mounts_finish_one(bundle_fd, &entries[i], err);
	}
	if (r)
		mounts_unmount_rootfs(bundle_fd, NULL);
	return r;
}

int mounts_unmount_rootfs(int bundle_fd, struct err *err)
{
	char path[64];

	/* umount2 must see the name itself, so: by the bundle's descriptor, last component not followed. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", bundle_fd, MOUNTS_ROOTFS);
	for (int i = 0; i < MOUNTS_UMOUNT_ROUNDS; i++) {
		int flags = UMOUNT_NOFOLLOW;

		if (!umount2(path, flags))
			continue;
		if (errno == EBUSY && !umount2(path, flags | MNT_DETACH))
			continue;
		/* EINVAL: not, or no longer, a mount point. */
		if (errno == EINVAL || errno == ENOENT || errno == ENOTDIR)
			return 0;
		return err_set(err, -errno, "unmount the bundle's '%s'", MOUNTS_ROOTFS);
	}
	return err_say(err, -EBUSY, "unmount the bundle's '%s': still mounted after %d attempts",
		       MOUNTS_ROOTFS, MOUNTS_UMOUNT_ROUNDS);
}

static bool mounts_is_kernel_tree(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return false;
	switch ((unsigned long)fs.f_type) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case DEVPTS_SUPER_MAGIC:
	case SECURITYFS_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case BPF_FS_MAGIC:
	case 0x6e736673: /* nsfs */
		return true;
	default:
		return false;
	}
}

/* The host's /dev itself, when it is a file system of its own. */
static bool mounts_is_dev(const struct stat *st)
{
	struct stat dev, root;

	return !stat("/dev", &dev) && !stat("/", &root) && dev.st_dev != root.st_dev &&
	       dev.st_dev == st->st_dev;
}

int mounts_clone_tree(int dirfd, const char *path, bool recursive, struct err *err)
{
	unsigned int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0);
	cleanup_close int probe = openat(dirfd, path, O_PATH | O_CLOEXEC);
	cleanup_close int tree = -1;
	struct stat st;

	if (probe < 0)
		return err_set(err, -errno, "open '%.300s'", path);
	if (mounts_is_kernel_tree(probe))
		return err_say(err, -EXDEV,
			       "'%.300s' belongs to the host's kernel; the VM has its own", path);
	if (fstat(probe, &st))
		return err_set(err, -errno, "look at '%.300s'", path);
	if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode) || mounts_is_dev(&st))
		return err_say(err, -EOPNOTSUPP,
			       "'%.300s' is a device of the host and does not exist in the VM",
			       path);
	/* From the handle just looked at, not from the path again. */
	tree = sys_open_tree(probe, "", flags | AT_EMPTY_PATH);
	if (tree < 0)
		return err_set(err, -errno, "clone the mount of '%.300s'", path);
	return take_fd(&tree);
}
