/*
 * The files of a session, saved and found again: exports by name, nodes by their path below their export, open files
 * by their node. See state.c for the records' frame and docs/fs.md for the format.
 *
 * Saving. A node's path is what the kernel calls its descriptor, taken relative to its export and believed only if
 * it leads back to the same file. A file that has no path any more (removed, or of an export that is gone) is saved
 * as lost: the guest gets ESTALE for it and looks the name up again. One that is open cannot be: saving fails.
 *
 * Loading. What comes is judged like a request: paths are walked one component at a time from the export's root,
 * links are not followed, numbers and counts are bounded, access is what the export grants. The file found must
 * be the one that was saved: the same inode, or a copy of the same size and time. In an exclusive export, whose
 * pages the guest may still have, size and time must be the same in any case. Where they are not, an open file fails
 * the whole, and any other is lost as above.
 *
 * Threads: the one that follows the front-end's messages; no request is being served. Tables under fs.lock.
 */
#include "state.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
	FS_STATE_NODE_LOST = 1 << 0,
	FS_STATE_NODE_OPEN = 1 << 1,
	FS_STATE_NODE_FLAGS = (1 << 2) - 1,
};

struct fs_state_export {
	char name[FS_CONTROL_NAME_MAX];
	uint32_t flags;
	uint32_t type; /* S_IFMT bits */
} __attribute__((packed));

/* Its path follows, without a leading slash or a NUL; empty: the export itself. */
struct fs_state_node {
	uint64_t id;
	uint64_t nlookup;
	uint64_t size;
	uint64_t mtime_s;
	uint64_t dev;
	uint64_t ino;
	uint32_t mtime_ns;
	uint32_t export; /* place among the exports */
	uint32_t type;	 /* S_IFMT bits */
	uint32_t flags;	 /* FS_STATE_NODE_* */
} __attribute__((packed));

struct fs_state_handle {
	uint64_t id;
	uint64_t node; /* FUSE_ROOT_ID: the root directory */
	uint64_t pos;  /* directories */
	uint32_t flags;
	uint32_t reserved;
} __attribute__((packed));

static_assert(sizeof(struct fs_state_export) == 72, "export layout");
static_assert(sizeof(struct fs_state_node) == 64, "node layout");
static_assert(sizeof(struct fs_state_handle) == 32, "handle layout");

#define FS_STATE_OPEN_FLAGS (O_ACCMODE | O_SYNC | O_DSYNC | O_NOATIME | O_DIRECTORY)
#define FS_STATE_NO_EXPORT UINT32_MAX

/* ---- paths ---- */

static int fs_state_read_path(const struct fs *fs, int fd, char ret[PATH_MAX])
{
	ssize_t n = readlinkat(fs->proc_fd, fs_proc_name(fd).s, ret, PATH_MAX);

	if (n < 0)
		return -errno;
	if (n >= PATH_MAX)
		return -ENAMETOOLONG;
	ret[n] = '\0';
	return 0;
}

/* O_PATH descriptor of what a path means below an export. */
static int fs_state_walk(const struct fs_export *e, const char *path)
{
	cleanup_close int fd = fcntl(e->fd, F_DUPFD_CLOEXEC, 0);

	while (fd >= 0 && *path) {
		size_t len = strcspn(path, "/");
		char name[NAME_MAX + 1];
		int next;

		if (len > NAME_MAX)
			return -ENAMETOOLONG;
		memcpy(name, path, len);
		name[len] = '\0';
		if (!fs_name_is_valid(name))
			return -EPROTO;
		next = openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0)
			return -errno;
		close(fd);
		fd = next;
		path += len;
		path += *path == '/';
	}
	return fd < 0 ? -errno : take_fd(&fd);
}

/* The part of a node's path below its export, or NULL. */
static const char *fs_state_below(const char *path, const char *export)
{
	size_t len = strlen(export);

	if (!strcmp(export, "/"))
		return path + 1;
	if (strncmp(path, export, len) != 0 || (path[len] && path[len] != '/'))
		return NULL;
	return path[len] ? path + len + 1 : path + len;
}

static dev_t fs_state_dev(const struct statx *st)
{
	return makedev(st->stx_dev_major, st->stx_dev_minor);
}

/* ---- saving ---- */

static int fs_state_put_exports(struct fs *fs, struct buf *out)
{
	struct fs_export *e;
	int r = 0;

	fs_lock(fs);
	list_for_each (e, &fs->exports, link) {
		struct fs_state_export x = {.flags = htole32(e->flags), .type = htole32(e->type)};

		memcpy(x.name, e->name, sizeof(x.name));
		r = r ? r : fs_state_put(out, FS_STATE_EXPORT, &x, sizeof(x), NULL, 0);
	}
	fs_unlock(fs);
	return r;
}

static uint32_t fs_state_export_index_locked(const struct fs *fs, const struct fs_export *e)
{
	const struct fs_export *x;
	uint32_t i = 0;

	list_for_each (x, &fs->exports, link) {
		if (x == e)
			return e->revoked ? FS_STATE_NO_EXPORT : i;
		i++;
	}
	return FS_STATE_NO_EXPORT;
}

/* The node in a slot, referenced, and what the tables say of it. NULL = the slot is free. */
static struct fs_node *fs_state_take_node(struct fs *fs, uint32_t i, struct fs_state_node *ret)
{
	struct fs_node *n = NULL;

	fs_lock(fs);
	if (i < fs->node_slots.nr)
		n = fs->node_slots.slots[i].ptr;
	if (n) {
		bool is_open = n->refs > (n->nlookup ? 1u : 0u);

		*ret = (struct fs_state_node){
			.id = htole64(n->id),
			.nlookup = htole64(n->nlookup),
			.type = htole32(n->type),
			.export = htole32(fs_state_export_index_locked(fs, n->export)),
			.flags = htole32(is_open ? FS_STATE_NODE_OPEN : 0),
		};
		n->refs++;
	}
	fs_unlock(fs);
	return n;
}

/* *ret_rel points into path. */
static int fs_state_find_path(const struct fs *fs, const struct fs_node *n, char path[PATH_MAX],
			      const char **ret_rel, struct statx *ret_st)
{
	cleanup_close int fd = -1;
	char export[PATH_MAX];
	int r = fs_state_read_path(fs, n->fd, path);

	if (!r)
		r = fs_state_read_path(fs, n->export->fd, export);
	if (r)
		return r;
	*ret_rel = fs_state_below(path, export);
	if (!*ret_rel)
		return -ENOENT;
	fd = fs_state_walk(n->export, *ret_rel);
	if (fd < 0)
		return fd;
	r = fs_stat(fd, ret_st);
	if (r)
		return r;
	return fs_state_dev(ret_st) == n->dev && ret_st->stx_ino == n->ino ? 0 : -ENOENT;
}

static int fs_state_put_node(struct fs *fs, const struct fs_node *n, struct fs_state_node *x,
			     struct buf *out)
{
	const char *rel = "";
	char path[PATH_MAX] = "";
	struct statx st = {0};
	int r = -ENOENT;

	if (x->export != htole32(FS_STATE_NO_EXPORT))
		r = fs_state_find_path(fs, n, path, &rel, &st);
	if (r && (le32toh(x->flags) & FS_STATE_NODE_OPEN))
		return fs_state_say(fs, -EBUSY,
				    "the file '%.150s' of '%s' is open and has no name any more",
				    path, n->export->name);
	if (r) {
		x->flags = htole32(FS_STATE_NODE_LOST);
		return fs_state_put(out, FS_STATE_NODE, x, sizeof(*x), NULL, 0);
	}
	x->size = htole64(st.stx_size);
	x->mtime_s = htole64((uint64_t)st.stx_mtime.tv_sec);
	x->mtime_ns = htole32(st.stx_mtime.tv_nsec);
	x->dev = htole64(n->dev);
	x->ino = htole64(n->ino);
	return fs_state_put(out, FS_STATE_NODE, x, sizeof(*x), rel, strlen(rel));
}

static int fs_state_put_handles(struct fs *fs, struct buf *out)
{
	int r = 0;

	fs_lock(fs);
	for (uint32_t i = 0; i < fs->handle_slots.nr && !r; i++) {
		const struct fs_handle *h = fs->handle_slots.slots[i].ptr;
		struct fs_state_handle x;
		int flags;

		if (!h)
			continue;
		flags = h->fd < 0 ? 0 : fcntl(h->fd, F_GETFL);
		x = (struct fs_state_handle){
			.id = htole64(h->id),
			.node = htole64(h->node ? h->node->id : FUSE_ROOT_ID),
			.pos = htole64((uint64_t)h->pos),
			.flags = htole32((uint32_t)(flags & FS_STATE_OPEN_FLAGS)),
		};
		r = flags < 0 ? -EIO : fs_state_put(out, FS_STATE_HANDLE, &x, sizeof(x), NULL, 0);
	}
	fs_unlock(fs);
	return r;
}

static uint32_t fs_state_nr_slots(struct fs *fs)
{
	uint32_t nr;

	fs_lock(fs);
	nr = fs->node_slots.nr;
	fs_unlock(fs);
	return nr;
}

bool fs_is_idle(struct fs *fs)
{
	bool idle;

	fs_lock(fs);
	idle = !fs->nr_fds && !fs->nr_nodes;
	fs_unlock(fs);
	return idle;
}

int fs_state_put_files(struct fs *fs, struct buf *out)
{
	uint32_t nr = fs_state_nr_slots(fs);
	int r;

	/* A session that knows nothing has nothing to be found again. */
	if (fs_is_idle(fs))
		return 0;
	r = fs_state_put_exports(fs, out);
	for (uint32_t i = 0; i < nr && !r; i++) {
		struct fs_state_node x;
		struct fs_node *n = fs_state_take_node(fs, i, &x);

		if (!n)
			continue;
		r = fs_state_put_node(fs, n, &x, out);
		fs_node_put(fs, n);
	}
	return r ? r : fs_state_put_handles(fs, out);
}

/* ---- loading ---- */

void fs_state_load_done(struct fs_state_load *l)
{
	for (size_t i = 0; i < l->nr_exports; i++)
		fs_export_put(l->fs, l->exports[i]);
	if (l->lost)
		fs_export_put(l->fs, l->lost);
}

int fs_state_load_export(struct fs_state_load *l, const uint8_t *p, size_t len)
{
	struct fs_state_export x;
	struct fs_export *e;

	if (len != sizeof(x) || l->nr_exports == ARRAY_SIZE(l->exports))
		return -EPROTO;
	memcpy(&x, p, sizeof(x));
	if (!memchr(x.name, 0, sizeof(x.name)))
		return -EPROTO;
	e = fs_export_get(l->fs, x.name);
	if (!e)
		return fs_state_say(l->fs, -ENOENT, "there is no tree '%s', which the guest has",
				    x.name);
	l->exports[l->nr_exports++] = e;
	if (e->flags != le32toh(x.flags) || e->type != le32toh(x.type))
		return fs_state_say(l->fs, -EINVAL,
				    "the tree '%s' is shared in another way, or is another kind of "
				    "file",
				    x.name);
	return 0;
}

/* What files belong to that are not found: an export that was revoked from the start. */
static int fs_state_lost_export(struct fs_state_load *l)
{
	struct fs_export *e;
	int fd;

	if (l->lost)
		return 0;
	fd = fcntl(l->fs->dead_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	e = xcalloc(1, sizeof(*e));
	list_init(&e->link);
	e->fd = fd;
	e->refs = 1;
	e->revoked = true;
	l->lost = e;
	return 0;
}

static bool fs_state_is_same(const struct fs_state_node *x, const struct fs_export *e,
			     const struct statx *st)
{
	bool is_unchanged = st->stx_size == le64toh(x->size) &&
			    (uint64_t)st->stx_mtime.tv_sec == le64toh(x->mtime_s);
	bool is_identical = fs_state_dev(st) == le64toh(x->dev) && st->stx_ino == le64toh(x->ino);

	if ((st->stx_mode & S_IFMT) != le32toh(x->type))
		return false;
	if (S_ISDIR(st->stx_mode))
		return true;
	if (is_identical && st->stx_mtime.tv_nsec != le32toh(x->mtime_ns))
		is_unchanged = false;
	return is_unchanged || (is_identical && !(e->flags & FS_CONTROL_EXCLUSIVE));
}

/* fd is taken over. */
static int fs_state_add_node(struct fs_state_load *l, const struct fs_state_node *x,
			     struct fs_export *e, int fd, const struct statx *st)
{
	struct fs_node n = {
		.id = le64toh(x->id),
		.nlookup = le64toh(x->nlookup),
		.refs = x->nlookup ? 1 : 0,
		.fd = fd,
		.type = le32toh(x->type),
		.dev = st ? fs_state_dev(st) : 0,
		.ino = st ? st->stx_ino : le64toh(x->id),
		.mnt_id = st ? st->stx_mnt_id : 0,
		.export = e,
	};

	return fs_node_restore(l->fs, &n);
}

static int fs_state_lose_node(struct fs_state_load *l, const struct fs_state_node *x)
{
	int r = fs_state_lost_export(l), fd;

	/* Nothing holds it: it need not be. */
	if (r || !x->nlookup)
		return r;
	fd = fcntl(l->fs->dead_fd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fs_state_add_node(l, x, l->lost, fd, NULL);
}

static int fs_state_find_node(struct fs_state_load *l, const struct fs_state_node *x,
			      const char *path)
{
	struct fs_export *e = l->exports[le32toh(x->export)];
	cleanup_close int fd = fs_state_walk(e, path);
	struct statx st;
	int r = fd < 0 ? fd : fs_stat(fd, &st);

	if (r == -EPROTO)
		return r;
	if (!r && fs_state_is_same(x, e, &st))
		return fs_state_add_node(l, x, e, take_fd(&fd), &st);
	if (le32toh(x->flags) & FS_STATE_NODE_OPEN)
		return fs_state_say(l->fs, -ESTALE, "the file '%.150s' of '%s' is open, and %s",
				    path, e->name,
				    r ? "cannot be found any more" : "has been changed since");
	return fs_state_lose_node(l, x);
}

int fs_state_load_node(struct fs_state_load *l, const uint8_t *p, size_t len)
{
	struct fs_state_node x;
	char path[PATH_MAX];
	uint32_t flags;

	if (len < sizeof(x) || len - sizeof(x) >= sizeof(path))
		return -EPROTO;
	memcpy(&x, p, sizeof(x));
	memcpy(path, p + sizeof(x), len - sizeof(x));
	path[len - sizeof(x)] = '\0';
	flags = le32toh(x.flags);
	if (strlen(path) != len - sizeof(x) || (flags & ~(uint32_t)FS_STATE_NODE_FLAGS))
		return -EPROTO;
	if (flags & FS_STATE_NODE_LOST)
		return flags & FS_STATE_NODE_OPEN || *path ? -EPROTO : fs_state_lose_node(l, &x);
	if (le32toh(x.export) >= l->nr_exports)
		return -EPROTO;
	return fs_state_find_node(l, &x, path);
}

static int fs_state_open(struct fs_state_load *l, const struct fs_node *n,
			 const struct fs_state_handle *x)
{
	int flags = (int)le32toh(x->flags), fd;

	if ((flags & ~FS_STATE_OPEN_FLAGS) || (flags & O_ACCMODE) == O_ACCMODE ||
	    (n->type == S_IFDIR) != !!(flags & O_DIRECTORY))
		return -EPROTO;
	if (fs_export_is_read_only(n->export) && (flags & O_ACCMODE) != O_RDONLY)
		return -EPROTO;
	fd = fs_node_open(l->fs, n, flags);
	if (fd < 0)
		return fs_state_say(l->fs, fd, "a file of '%s' cannot be opened again: %s",
				    n->export->name, strerror(-fd));
	if (n->type == S_IFDIR && lseek(fd, (off_t)le64toh(x->pos), SEEK_SET) < 0) {
		close(fd);
		return -EPROTO;
	}
	return fd;
}

int fs_state_load_handle(struct fs_state_load *l, const uint8_t *p, size_t len)
{
	struct fs_state_handle x;
	struct fs_node *n = NULL;
	int fd = -1;

	if (len != sizeof(x))
		return -EPROTO;
	memcpy(&x, p, sizeof(x));
	if (x.reserved || (off_t)le64toh(x.pos) < 0)
		return -EPROTO;
	if (le64toh(x.node) == FUSE_ROOT_ID && x.flags)
		return -EPROTO;
	if (le64toh(x.node) != FUSE_ROOT_ID) {
		n = fs_node_find(l->fs, le64toh(x.node));
		if (!n || n->export->revoked)
			return -EPROTO;
		fd = fs_state_open(l, n, &x);
		if (fd < 0)
			return fd;
	}
	return fs_handle_restore(l->fs, n, fd, le64toh(x.id), (off_t)le64toh(x.pos));
}
