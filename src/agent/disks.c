/*
 * Disks of a container; see disks.h.
 *
 * Each mount of a list is in a folder of its own below <disk_dir>/<container>: "0", "1", ... of the root's list, "v3" of
 * the request's mounts. Overlay's options name those folders relatively, so the agent is in that folder while it mounts.
 */
#include "disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "guest.h"
#include "io.h"
#include "log.h"
#include "mountfs.h"
#include "plan.h"
#include "rootpath.h"

#define DISKS_SYS_DIR "/sys/block"
#define DISKS_BUS "/sys/bus/virtio/devices"
#define DISKS_DRIVER "/sys/bus/virtio/drivers/virtio_blk"
#define DISKS_SHARE "share:"
/* The container's processes are gone; the kernel lets go of their mounts a moment later. */
#define DISKS_RELEASE_TRIES 200
#define DISKS_RELEASE_NS 10000000

/* ---- finding ---- */

/* Opened anew for each: the folder changes with each that is let go. */
static bool disks_first_bound(char *ret, size_t room)
{
	cleanup_dir DIR *dir = opendir(DISKS_DRIVER);
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (!strncmp(e->d_name, "virtio", 6))
			return snprintf(ret, room, "%s", e->d_name) < (int)room;
	return false;
}

int disks_park(struct err *err)
{
	char name[32];

	for (int i = 0; i < REQUEST_DISKS_MAX && disks_first_bound(name, sizeof(name)); i++) {
		int e = guest_tell_driver(DISKS_DRIVER, "unbind", name);

		if (e)
			return err_set(err, e, "take disk '%s' from its driver", name);
	}
	return 0;
}

/* Devices that have no driver are tried; what is no disk, the driver refuses. */
static void disks_unpark(void)
{
	cleanup_dir DIR *dir = opendir(DISKS_BUS);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		cleanup_free char *id = NULL;
		char path[320];

		snprintf(path, sizeof(path), DISKS_BUS "/%s/device", e->d_name);
		if (e->d_name[0] == '.' || io_read_file(AT_FDCWD, path, 32, &id, NULL) ||
		    strtoul(id, NULL, 16) != VIRTIO_ID_BLOCK)
			continue;
		snprintf(path, sizeof(path), DISKS_BUS "/%s/driver", e->d_name);
		if (access(path, F_OK))
			guest_tell_driver(DISKS_DRIVER, "bind", e->d_name);
	}
}

const struct disk *disks_find(const struct disks *d, const char *serial)
{
	for (size_t i = 0; i < d->nr; i++)
		if (!strcmp(d->v[i].serial, serial))
			return &d->v[i];
	return NULL;
}

const struct disk *disks_of_source(const struct disks *d, const char *source)
{
	size_t len = strlen(DISKS_SOURCE_PREFIX);

	return strncmp(source, DISKS_SOURCE_PREFIX, len) ? NULL : disks_find(d, source + len);
}

/* The block device whose serial number this is. */
static int disks_search(const char *serial, char *ret, size_t room)
{
	cleanup_dir DIR *dir = opendir(DISKS_SYS_DIR);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		cleanup_free char *text = NULL;
		char path[320];

		snprintf(path, sizeof(path), DISKS_SYS_DIR "/%s/serial", e->d_name);
		if (e->d_name[0] == '.' || io_read_file(AT_FDCWD, path, 256, &text, NULL))
			continue;
		text[strcspn(text, "\n")] = '\0';
		if (!strcmp(text, serial))
			return snprintf(ret, room, "%s", e->d_name) < (int)room ? 0 : -ENAMETOOLONG;
	}
	return -ENODEV;
}

static int disks_look_up(struct disks *d, const struct agent_params *params,
			 const AGENT_PB(Disk) * r, struct err *err)
{
	struct disk *k = &d->v[d->nr];
	char path[64];
	struct stat st;
	int e = disks_search(r->serial, k->node, sizeof(k->node));

	if (e)
		return err_set(err, e, "disk '%s' ('%.200s') in the guest", r->serial, r->name);
	snprintf(path, sizeof(path), "%.40s/%s", params->dev_dir, k->node);
	if (stat(path, &st) || !S_ISBLK(st.st_mode))
		return err_say(err, -ENODEV, "'%s' of the guest is no block device", path);
	/* For those who see this very node, by a bind mount. */
	if (chmod(path, r->mode & 07777) || chown(path, r->uid, r->gid))
		return err_set(err, -errno, "give '%s' to %u:%u", path, r->uid, r->gid);
	snprintf(k->serial, sizeof(k->serial), "%s", r->serial);
	k->major = major(st.st_rdev);
	k->minor = minor(st.st_rdev);
	k->access = r->access;
	d->nr++;
	return 0;
}

/* ---- mounting ---- */

/* The disk whose name `text` begins with. */
static const struct disk *disks_named(const struct disks *d, const char *text)
{
	size_t prefix = strlen(DISKS_SOURCE_PREFIX);

	if (strncmp(text, DISKS_SOURCE_PREFIX, prefix) != 0)
		return NULL;
	text += prefix;
	for (size_t i = 0; i < d->nr; i++) {
		size_t len = strlen(d->v[i].serial);

		if (!strncmp(text, d->v[i].serial, len) &&
		    (text[len] == '\0' || text[len] == ',' || text[len] == ':'))
			return &d->v[i];
	}
	return NULL;
}

/* `text` with shares and disks as paths: they are words of ours, which no real option begins with. */
static char *disks_expand(const struct disks *d, const struct agent_params *params,
			  const char *text)
{
	cleanup_free char *out = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&out, &len);

	if (!f)
		abort();
	while (*text) {
		const struct disk *k = disks_named(d, text);

		if (k) {
			fprintf(f, "%s/%s", params->dev_dir, k->node);
			text += strlen(DISKS_SOURCE_PREFIX) + strlen(k->serial);
		} else if (!strncmp(text, DISKS_SHARE, strlen(DISKS_SHARE))) {
			fprintf(f, "%s/", params->fs_dir);
			text += strlen(DISKS_SHARE);
		} else {
			fputc(*text++, f);
		}
	}
	fclose(f);
	return take_ptr(&out);
}

static void disks_note_mount(struct disks *d, char *path)
{
	d->mounts = xrealloc(d->mounts, (d->nr_mounts + 1) * sizeof(*d->mounts));
	d->mounts[d->nr_mounts++] = path;
}

/* Owns mount_fd. */
static int disks_attach(struct disks *d, int mount_fd, const char *path, struct err *err)
{
	cleanup_close int fd = mount_fd;
	cleanup_close int target = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int e = target < 0 ? -errno : mountfs_attach(fd, target);

	if (e)
		return err_set(err, e, "attach at '%s'", path);
	disks_note_mount(d, xstrdup(path));
	return 0;
}

/* Overlay's folders in one option may be longer than what fsconfig(2) takes. */
static int disks_mount_overlay(struct disks *d, const char *path, uint64_t flags, const char *data,
			       struct err *err)
{
	if (sys_mount("overlay", path, "overlay", flags, data))
		return err_set(err, -errno, "overlay (%.200s)", data);
	disks_note_mount(d, xstrdup(path));
	return 0;
}

static int disks_mount_bind(struct disks *d, const char *source, const char *path, uint64_t flags,
			    struct err *err)
{
	cleanup_close int fd = mountfs_clone(AT_FDCWD, source, flags & MS_REC);
	int e = fd < 0 ? fd : mountfs_set_attr(fd, mountfs_attr_from_ms(flags), 0, false);

	if (e)
		return err_set(err, e, "bind '%.200s'", source);
	return disks_attach(d, take_fd(&fd), path, err);
}

static int disks_mount(struct disks *d, const struct agent_params *params, const char *type,
		       const char *source, uint64_t flags, const char *data, const char *path,
		       struct err *err)
{
	cleanup_free char *from = disks_expand(d, params, source);
	cleanup_free char *options = disks_expand(d, params, data);
	int fd;

	if (!strcmp(type, "overlay"))
		return disks_mount_overlay(d, path, flags, options, err);
	if (!strcmp(type, "bind"))
		return disks_mount_bind(d, from, path, flags, err);
	fd = mountfs_new(&(struct mountfs_new){.type = type,
					       .source = from,
					       .data = options,
					       .ms_flags = flags & ~(uint64_t)MS_BIND},
			 err);
	return fd < 0 ? fd : disks_attach(d, fd, path, err);
}

/* ---- the root ---- */

/* "0/upper:0755:0:0", in the first of the folders, whose content is hostile. */
static int disks_make_folder(const char *text, struct err *err)
{
	unsigned int mode = 0755, uid = 0, gid = 0;
	cleanup_free char *copy = xstrdup(text);
	char *slash = strchr(copy, '/'), *colon = strchr(copy, ':');
	cleanup_close int root = -1;
	cleanup_close int fd = -1;
	char path[64];

	if (!slash || (colon && colon < slash))
		return err_say(err, -EINVAL, "folder '%.200s' is in no mount", text);
	if (colon)
		*colon = '\0';
	*slash = '\0';
	/* NOLINTNEXTLINE(cert-err34-c): what is not there stays as it is */
	if (colon && sscanf(colon + 1, "%o:%u:%u", &mode, &uid, &gid) < 1)
		return err_say(err, -EINVAL, "folder '%.200s' has no mode", text);
	root = open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return err_set(err, -errno, "folder '%.200s'", text);
	fd = rootpath_open(root, slash + 1, O_PATH | O_DIRECTORY);
	if (fd >= 0)
		return 0;
	fd = rootpath_make(root, slash + 1, ROOTPATH_DIR, err);
	if (fd < 0)
		return fd;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (chown(path, uid, gid) || chmod(path, mode & 07777))
		return err_set(err, -errno, "folder '%.200s': owner and mode", text);
	return 0;
}

/* The folder that the index-th mount goes to, in the root so far if it has a target. Caller frees. */
static int disks_root_place(struct disks *d, const AGENT_PB(RootMount) * m, size_t index,
			    char **ret, struct err *err)
{
	cleanup_free char *path = xasprintf("%s/%zu", d->dir, index);
	cleanup_close int root = -1;
	cleanup_close int fd = -1;
	char real[PATH_MAX], link[64];
	ssize_t n;

	if (!m->target[0] || !strcmp(m->target, "/")) {
		if (mkdir(path, 0755))
			return err_set(err, -errno, "make '%s'", path);
		free(d->root);
		d->root = xstrdup(path);
		*ret = take_ptr(&path);
		return 0;
	}
	root = d->root ? open(d->root, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	fd = root < 0 ? -ENOENT : rootpath_open(root, m->target, O_PATH | O_DIRECTORY);
	if (fd < 0)
		return err_set(err, fd, "target '%.200s'", m->target);
	/* Nobody else runs yet who could change it. */
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, real, sizeof(real) - 1);
	if (n < 0)
		return err_set(err, -errno, "target '%.200s'", m->target);
	*ret = xstrndup(real, (size_t)n);
	return 0;
}

/* What the host calls the disk, for messages. */
static const char *disks_name(const AGENT_PB(CreateContainerRequest) * r, const char *source)
{
	size_t prefix = strlen(DISKS_SOURCE_PREFIX);

	for (size_t i = 0; i < r->n_disks; i++)
		if (!strncmp(source, DISKS_SOURCE_PREFIX, prefix) &&
		    !strcmp(r->disks[i]->serial, source + prefix))
			return r->disks[i]->name;
	return source;
}

static int disks_mount_root_one(struct disks *d, const struct agent_params *params,
				const AGENT_PB(RootMount) * m, size_t index, struct err *err)
{
	cleanup_free char *place = NULL;

	for (size_t i = 0; i < m->n_folders; i++)
		if (disks_make_folder(m->folders[i], err))
			return err->code;
	if (disks_root_place(d, m, index, &place, err))
		return err->code;
	return disks_mount(d, params, m->type, m->source, m->flags, m->data, place, err);
}

static int disks_mount_root(struct disks *d, const struct agent_params *params,
			    const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	for (size_t i = 0; i < r->n_root_mounts; i++)
		if (disks_mount_root_one(d, params, r->root_mounts[i], i, err))
			return err_wrap(err, "root file system, mount %zu ('%.200s')", i,
					disks_name(r, r->root_mounts[i]->source));
	if (r->n_root_mounts && !d->root)
		return err_say(err, -EINVAL, "root file system: no mount of the list is its root");
	return 0;
}

/* ---- volumes ---- */

char *disks_volume_path(const struct disks *d, size_t index)
{
	return xasprintf("%s/v%zu", d->dir, index);
}

static int disks_mount_volumes(struct disks *d, const struct agent_params *params,
			       const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	for (size_t i = 0; i < r->n_mounts; i++) {
		const AGENT_PB(Mount) *m = r->mounts[i];
		cleanup_free char *path = disks_volume_path(d, i);

		if (!disks_of_source(d, m->source) || (m->flags & MS_BIND) ||
		    !strcmp(m->type, "bind"))
			continue;
		if (mkdir(path, 0755))
			return err_set(err, -errno, "make '%s'", path);
		if (disks_mount(d, params, m->type, m->source, m->flags & ~m->clear_flags, m->data,
				path, err))
			return err_wrap(err, "mount '%.200s' ('%.200s')", m->destination,
					disks_name(r, m->source));
	}
	return 0;
}

static int disks_mount_all(struct disks *d, const struct agent_params *params,
			   const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	int e;

	if ((mkdir(params->disk_dir, 0755) && errno != EEXIST) ||
	    (mkdir(d->dir, 0755) && errno != EEXIST) || chdir(d->dir))
		return err_set(err, -errno, "make '%s'", d->dir);
	e = disks_mount_root(d, params, r, err);
	if (!e)
		e = disks_mount_volumes(d, params, r, err);
	if (chdir("/") && !e)
		e = err_set(err, -errno, "enter '/'");
	return e;
}

int disks_prepare(struct disks *d, const struct agent_params *params,
		  const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (!r->n_disks)
		return 0;
	if (!params->disk_dir)
		return err_say(err, -EOPNOTSUPP, "there are no disks here");
	d->dev_dir = params->dev_dir;
	disks_unpark();
	for (size_t i = 0; i < r->n_disks; i++)
		if (disks_look_up(d, params, r->disks[i], err))
			return err->code;
	d->dir = xasprintf("%s/%s", params->disk_dir, r->id);
	return disks_mount_all(d, params, r, err);
}

/* ---- the end ---- */

/*
 * Read-only first: that writes everything out and marks the file system clean, which unmounting alone does only with
 * its last user, and the kernel may still be busy with the mounts that the container's processes had of it.
 */
static int disks_make_read_only(const char *path)
{
	const struct timespec wait = {.tv_nsec = DISKS_RELEASE_NS};

	for (int tries = 0; tries < DISKS_RELEASE_TRIES; tries++) {
		if (!sys_mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL))
			return 0;
		if (errno != EBUSY)
			break;
		nanosleep(&wait, NULL);
	}
	return -errno;
}

static void disks_unmount(const char *path)
{
	if (disks_make_read_only(path)) {
		cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd < 0 || syncfs(fd))
			log_warn("disks", "write out '%s': %s", path, strerror(errno));
	}
	if (sys_umount2(path, SYS_UMOUNT_NOFOLLOW) &&
	    sys_umount2(path, SYS_UMOUNT_NOFOLLOW | SYS_MNT_DETACH))
		log_warn("disks", "unmount '%s': %s", path, strerror(errno));
}

/* What was written to the node itself. Not sync(2), which would have the host write out everything, too. */
static void disks_sync_node(const struct disks *d, const struct disk *k)
{
	cleanup_free char *path = xasprintf("%s/%s", d->dev_dir, k->node);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (fsync(fd) && errno != EROFS))
		log_warn("disks", "write out '%s': %s", path, strerror(errno));
}

void disks_release(struct disks *d)
{
	while (d->nr_mounts) {
		char *path = d->mounts[--d->nr_mounts];

		disks_unmount(path);
		rmdir(path);
		free(path);
	}
	if (d->dir)
		rmdir(d->dir);
	for (; d->nr; d->nr--)
		disks_sync_node(d, &d->v[d->nr - 1]);
}

void disks_done(struct disks *d)
{
	disks_release(d);
	free(d->mounts);
	free(d->dir);
	free(d->root);
	*d = (struct disks){0};
}
