/* Disks of a container's VM; see disks.h. */
#include "disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cleanup.h"
#include "rootdisks.h"
#include "sys.h"
#include "util.h"

#define DISKS_SECTOR 512u
#define DISKS_SOURCE "disk:" HV_DISK_SERIAL
#define DISKS_NODE "node"

static void disks_freep(struct disks **d)
{
	disks_free(*d);
}

/* ---- opening ---- */

/* A node by its number, wherever the host's /dev has one, or has none: on a tmpfs that nobody else sees. */
static int disks_open_number(uint32_t major, uint32_t minor, int flags)
{
	cleanup_close int fs = sys_fsopen("tmpfs");
	cleanup_close int dir = -1;
	int fd;

	if (fs < 0 || sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL))
		return -errno;
	dir = sys_fsmount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
	if (dir < 0 || mknodat(dir, DISKS_NODE, S_IFBLK | 0600, makedev(major, minor)))
		return -errno;
	fd = openat(dir, DISKS_NODE, flags | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

static int disks_open_file(int path_fd, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	fd = open(path, flags | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

static int disks_open_device(dev_t rdev, bool *read_only)
{
	int fd = -EACCES, protected = 0;

	if (!*read_only)
		fd = disks_open_number(major(rdev), minor(rdev), O_RDWR | O_EXCL);
	/* A medium that is write-protected is no error: the guest sees it so. */
	if (fd >= 0 && !ioctl(fd, BLKROGET, &protected) && protected) {
		close(fd);
		fd = -EROFS;
	}
	if (fd != -EACCES && fd != -EROFS && fd != -EPERM)
		return fd;
	*read_only = true;
	return disks_open_number(major(rdev), minor(rdev), O_RDONLY);
}

/* The lock goes where the descriptor goes, and ends with its last copy. */
static int disks_open_image(int path_fd, bool read_only)
{
	cleanup_close int fd = disks_open_file(path_fd, read_only ? O_RDONLY : O_RDWR);

	if (fd >= 0 && flock(fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB))
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	return take_fd(&fd);
}

static int disks_check_size(const struct disk *k, const struct stat *st, struct err *err)
{
	uint64_t len = (uint64_t)st->st_size;

	if (S_ISBLK(st->st_mode) && ioctl(k->fd, BLKGETSIZE64, &len))
		return err_set(err, -errno, "disk '%.200s': ask for its size", k->name);
	if (len < DISKS_SECTOR)
		return err_say(err, -ENOMEDIUM,
			       "disk '%.200s' is empty: no medium, or nothing behind it", k->name);
	return 0;
}

static int disks_find(const struct disks *d, const struct stat *st)
{
	for (size_t i = 0; i < d->nr; i++) {
		const struct disk *k = &d->v[i];

		if (S_ISBLK(st->st_mode) ? k->dev == st->st_rdev && !k->ino
					 : k->host_dev == st->st_dev && k->ino == st->st_ino)
			return (int)i;
	}
	return -1;
}

static int disks_say_open(const struct disk *k, int error, struct err *err)
{
	if (error == -EBUSY)
		return err_say(err, error,
			       "disk '%.200s' is in use: mounted on the host, or the disk of "
			       "another VM; one that may be written has one user",
			       k->name);
	if (error == -ENXIO || error == -ENODEV)
		return err_say(err, -ENODEV, "disk '%.200s' does not exist on the host", k->name);
	return err_set(err, error, "open disk '%.200s'", k->name);
}

/* path_fd: -1 for a device known by its number alone, which st has. */
static int disks_add(struct disks *d, const struct stat *st, int path_fd, const char *name,
		     bool read_only, int *ret, struct err *err)
{
	int found = disks_find(d, st), r;
	struct disk *k;

	if (found >= 0 && d->v[found].read_only && !read_only)
		return err_say(err, -EBUSY,
			       "disk '%.200s' is asked for twice, once to be read only", name);
	if (found >= 0) {
		*ret = found;
		return 0;
	}
	if (d->nr == HV_DISKS_MAX)
		return err_say(err, -ENOSPC, "disk '%.200s': a VM has at most %d", name,
			       HV_DISKS_MAX);
	k = &d->v[d->nr++];
	*k = (struct disk){.fd = -1,
			   .name = xstrdup(name),
			   .host_dev = st->st_dev,
			   .dev = S_ISBLK(st->st_mode) ? st->st_rdev : 0,
			   .ino = S_ISBLK(st->st_mode) ? 0 : st->st_ino,
			   .mode = st->st_mode & 07777,
			   .uid = st->st_uid,
			   .gid = st->st_gid,
			   .read_only = read_only};
	r = S_ISBLK(st->st_mode) ? disks_open_device(st->st_rdev, &k->read_only)
				 : disks_open_image(path_fd, read_only);
	if (r < 0)
		return disks_say_open(k, r, err);
	k->fd = r;
	*ret = (int)(d->nr - 1);
	return disks_check_size(k, st, err);
}

int disks_add_path(struct disks *d, int dirfd, const char *path, bool read_only, int *ret,
		   struct err *err)
{
	cleanup_close int fd = openat(dirfd, path, O_PATH | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return err_set(err, -errno, "open disk '%.300s'", path);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_say(err, -ENOTBLK,
			       "'%.300s' is neither a block device nor an image file", path);
	return disks_add(d, &st, fd, path, read_only, ret, err);
}

/* ---- who asks for one ---- */

uint32_t disks_access(const struct oci_resources *res, uint32_t major, uint32_t minor)
{
	uint32_t access = 0;

	for (size_t i = 0; i < res->nr_device_rules; i++) {
		const struct oci_device_rule *r = &res->device_rules[i];
		uint32_t what = (r->mknod ? DISKS_ACCESS_MKNOD : 0) |
				(r->read ? DISKS_ACCESS_READ : 0) |
				(r->write ? DISKS_ACCESS_WRITE : 0);

		if (r->type == 'c' || (r->major >= 0 && r->major != (int64_t)major) ||
		    (r->minor >= 0 && r->minor != (int64_t)minor))
			continue;
		access = r->allow ? access | what : access & ~what;
	}
	return access;
}

bool disks_are_named(const struct oci_resources *res, uint32_t major, uint32_t minor)
{
	for (size_t i = 0; i < res->nr_device_rules; i++) {
		const struct oci_device_rule *r = &res->device_rules[i];

		if (r->allow && r->type == 'b' && r->major == (int64_t)major &&
		    r->minor == (int64_t)minor)
			return true;
	}
	return false;
}

/*
 * A node that nobody may open is a node like any other: there need not be anything behind it. The same goes for one that
 * only a rule for all devices opens: a privileged container lists every device of the host, its root disk among them, and
 * has asked for none of them.
 */
static int disks_add_device(struct disks *d, const struct oci_spec *spec, size_t i, struct err *err)
{
	const struct oci_device *o = &spec->devices[i];
	uint32_t access = disks_access(&spec->resources, o->major, o->minor);
	struct stat st = {.st_mode = o->mode,
			  .st_rdev = makedev(o->major, o->minor),
			  .st_uid = o->uid,
			  .st_gid = o->gid};
	char name[128];
	int r;

	d->of_device[i] = -1;
	if (!S_ISBLK(o->mode) || !(access & (DISKS_ACCESS_READ | DISKS_ACCESS_WRITE)) ||
	    !disks_are_named(&spec->resources, o->major, o->minor))
		return 0;
	snprintf(name, sizeof(name), "%.80s (%u:%u)", o->path, o->major, o->minor);
	r = disks_add(d, &st, -1, name, !(access & DISKS_ACCESS_WRITE), &d->of_device[i], err);
	if (r)
		return err_wrap(err, "linux.devices[%zu]", i);
	d->v[d->of_device[i]].access |= access;
	return 0;
}

static int disks_add_node_mount(struct disks *d, const struct oci_spec *spec, size_t i, int fd,
				const struct stat *st, struct err *err)
{
	const struct oci_mount *m = &spec->mounts[i];
	uint32_t access = disks_access(&spec->resources, major(st->st_rdev), minor(st->st_rdev));
	int r = disks_add(d, st, fd, m->source, !(access & DISKS_ACCESS_WRITE), &d->of_mount[i],
			  err);

	if (r)
		return err_wrap(err, "mount '%.200s'", m->destination);
	d->v[d->of_mount[i]].access |= access;
	return 0;
}

bool disks_type_is_read_only(const char *type)
{
	return !strcmp(type, "erofs") || !strcmp(type, "squashfs") || !strcmp(type, "iso9660");
}

/* File systems that are in a disk and nowhere else. */
static bool disks_type_needs_one(const char *type)
{
	static const char *const types[] = {"ext2", "ext3", "ext4", "xfs", "erofs"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (!strcmp(types[i], type))
			return true;
	return false;
}

static int disks_add_mount(struct disks *d, const struct oci_spec *spec, size_t i, int dirfd,
			   struct err *err)
{
	const struct oci_mount *m = &spec->mounts[i];
	cleanup_close int fd = -1;
	bool read_only = (m->flags & MS_RDONLY) || disks_type_is_read_only(m->type);
	struct stat st;

	d->of_mount[i] = -1;
	if (!m->bind && m->source[0] != '/')
		return 0;
	fd = openat(dirfd, m->source, O_PATH | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		/* The guest has devices of its own, by the same names. */
		if (!m->bind && disks_type_needs_one(m->type))
			return err_set(err, -errno, "mount '%.200s': open disk '%.200s'",
				       m->destination, m->source);
		return 0;
	}
	if (m->bind)
		return S_ISBLK(st.st_mode) ? disks_add_node_mount(d, spec, i, fd, &st, err) : 0;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return disks_type_needs_one(m->type) ? err_say(err, -ENOTBLK,
							       "mount '%.200s': '%.200s' is "
							       "neither a block device nor an "
							       "image file",
							       m->destination, m->source)
						     : 0;
	if (disks_add(d, &st, fd, m->source, read_only, &d->of_mount[i], err))
		return err_wrap(err, "mount '%.200s'", m->destination);
	return 0;
}

int disks_new(const struct oci_spec *spec, int dirfd, const struct mounts_entry *root,
	      size_t nr_root, struct disks **ret, struct err *err)
{
	cleanup(disks_freep) struct disks *d = xcalloc(1, sizeof(*d));
	int r = 0;

	d->of_mount = xcalloc(spec->nr_mounts, sizeof(int));
	d->of_device = xcalloc(spec->nr_devices, sizeof(int));
	if (rootdisks_wanted(root, nr_root))
		r = rootdisks_add(d, root, nr_root, err);
	for (size_t i = 0; i < spec->nr_devices && !r; i++)
		r = disks_add_device(d, spec, i, err);
	for (size_t i = 0; i < spec->nr_mounts && !r; i++)
		r = disks_add_mount(d, spec, i, dirfd, err);
	if (r)
		return r;
	*ret = take_ptr(&d);
	return 0;
}

void disks_close(struct disks *d)
{
	for (size_t i = 0; d && i < d->nr; i++)
		cleanup_closep(&d->v[i].fd);
}

static void disks_free_root_mount(struct disks_root_mount *m)
{
	for (size_t i = 0; i < m->nr_folders; i++)
		free(m->folders[i]);
	free(m->folders);
	free(m->type);
	free(m->source);
	free(m->target);
	free(m->data);
}

void disks_free(struct disks *d)
{
	if (!d)
		return;
	disks_close(d);
	for (size_t i = 0; i < d->nr; i++)
		free(d->v[i].name);
	for (size_t i = 0; i < d->nr_root; i++)
		disks_free_root_mount(&d->root[i]);
	for (size_t i = 0; i < d->nr_shares; i++) {
		free(d->shares[i].name);
		free(d->shares[i].path);
	}
	free(d->root);
	free(d->shares);
	free(d->of_mount);
	free(d->of_device);
	free(d);
}

bool disks_are_writable(const struct disks *d)
{
	for (size_t i = 0; d && i < d->nr; i++)
		if (!d->v[i].read_only)
			return true;
	return false;
}

void disks_params(const struct disks *d, struct hv_disk ret[HV_DISKS_MAX])
{
	for (size_t i = 0; i < d->nr; i++)
		ret[i] = (struct hv_disk){.fd = d->v[i].fd, .read_only = d->v[i].read_only};
}

/* ---- what the agent is told ---- */

static void disks_set_text(char **text, char *value)
{
	free(*text);
	*text = value;
}

/* Options that mean something to mount(8) only, and to the loop device that there is none of. */
static char *disks_kernel_options(const char *data)
{
	cleanup_free char *copy = xstrdup(data);
	char *out = xcalloc(1, strlen(data) + 1), *end = out, *save = NULL;

	for (char *o = strtok_r(copy, ",", &save); o; o = strtok_r(NULL, ",", &save))
		if (strcmp(o, "loop") != 0 && strncmp(o, "x-", 2) != 0 && strncmp(o, "X-", 2) != 0)
			end += sprintf(end, "%s%s", end == out ? "" : ",", o);
	return out;
}

static void disks_describe_all(const struct disks *d, VMREQ_PB(CreateContainerRequest) * r)
{
	r->n_disks = d->nr;
	r->disks = xcalloc(d->nr, sizeof(*r->disks));
	for (size_t i = 0; i < d->nr; i++) {
		VMREQ_PB(Disk) *k = xcalloc(1, sizeof(*k));

		harpoon__agent__v1__disk__init(k);
		k->serial = xasprintf(HV_DISK_SERIAL, i);
		k->access = d->v[i].access;
		k->mode = d->v[i].mode;
		k->uid = d->v[i].uid;
		k->gid = d->v[i].gid;
		k->name = xstrdup(d->v[i].name);
		r->disks[i] = k;
	}
}

static void disks_describe_root(const struct disks *d, VMREQ_PB(CreateContainerRequest) * r)
{
	r->n_root_mounts = d->nr_root;
	r->root_mounts = xcalloc(d->nr_root, sizeof(*r->root_mounts));
	for (size_t i = 0; i < d->nr_root; i++) {
		VMREQ_PB(RootMount) *m = xcalloc(1, sizeof(*m));

		harpoon__agent__v1__root_mount__init(m);
		m->type = xstrdup(d->root[i].type);
		m->source = xstrdup(d->root[i].source);
		m->target = xstrdup(d->root[i].target);
		m->data = xstrdup(d->root[i].data);
		m->flags = d->root[i].flags;
		m->n_folders = d->root[i].nr_folders;
		m->folders = xcalloc(m->n_folders, sizeof(*m->folders));
		for (size_t k = 0; k < m->n_folders; k++)
			m->folders[k] = xstrdup(d->root[i].folders[k]);
		r->root_mounts[i] = m;
	}
}

void disks_describe(const struct disks *d, VMREQ_PB(CreateContainerRequest) * r)
{
	if (!d->nr)
		return;
	disks_describe_all(d, r);
	if (d->nr_root)
		disks_describe_root(d, r);
	for (size_t i = 0; i < r->n_mounts; i++) {
		if (d->of_mount[i] < 0)
			continue;
		disks_set_text(&r->mounts[i]->source,
			       xasprintf(DISKS_SOURCE, (size_t)d->of_mount[i]));
		disks_set_text(&r->mounts[i]->data, disks_kernel_options(r->mounts[i]->data));
	}
	for (size_t i = 0; i < r->n_devices; i++)
		if (d->of_device[i] >= 0)
			r->devices[i]->disk = xasprintf(HV_DISK_SERIAL, (size_t)d->of_device[i]);
}
