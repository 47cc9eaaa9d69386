/*
 * Reading directories. A directory's descriptor stands where the last answer ended, so a scan costs
 * one getdents64() and no seek for each answer; entries that did not fit are read again by seeking to
 * the position the guest asks for next. Nothing is kept for an open directory but its descriptor.
 *
 * The root directory's entries are the exports, in the order they came, with their number as position.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "fs_internal.h"

/* As the kernel's getdents64() fills it in. */
struct fs_dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* The answer being filled. */
struct fs_dir_out {
	struct fs_req *r;
	size_t room;
	size_t len;
	bool plus;
};

/* Positions of "." and ".." in the root; exports follow. */
#define FS_ROOT_POS_DOT 1
#define FS_ROOT_POS_DOTDOT 2

int fs_op_opendir(struct fs_req *r)
{
	struct fuse_open_out *out = fs_answer(r, sizeof(*out));
	uint64_t fh;
	int e, fd = -1;

	if (r->node) {
		int flags = O_RDONLY | O_DIRECTORY |
			    (fs_export_is_read_only(r->node->export) ? O_NOATIME : 0);

		if (r->node->type != S_IFDIR)
			return -ENOTDIR;
		fd = fs_node_open(r->fs, r->node, flags);
		if (fd < 0)
			return fd;
	}
	e = fs_handle_new(r->fs, r->node, fd, &fh);
	if (e < 0)
		return e;
	if (r->node)
		fs_fill_open(out, r->node->export, fh, O_RDONLY, true);
	else
		out->fh = fh;
	return 0;
}

static size_t fs_dir_entry_len(const struct fs_dir_out *o, size_t name_len)
{
	size_t head = o->plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;

	return FUSE_DIRENT_ALIGN(head + name_len);
}

/* Appends one entry, which fits. entry: the look-up that goes with it; NULL = none. */
static void fs_dir_put(struct fs_dir_out *o, const char *name, uint64_t ino, uint64_t off,
		       uint8_t type, const struct fuse_entry_out *entry)
{
	uint8_t *p = o->r->w->out + o->len;
	size_t name_len = strlen(name), len = fs_dir_entry_len(o, name_len);
	struct fuse_dirent d = {
		.ino = ino, .off = off, .namelen = (uint32_t)name_len, .type = type};

	memset(p, 0, len);
	if (o->plus) {
		if (entry)
			memcpy(p, entry, sizeof(*entry));
		p += sizeof(*entry);
	}
	memcpy(p, &d, FUSE_NAME_OFFSET);
	/* The length goes with it. NOLINTNEXTLINE(bugprone-not-null-terminated-result) */
	memcpy(p + FUSE_NAME_OFFSET, name, name_len);
	o->len += len;
}

static bool fs_is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* One entry of a real directory. False when the answer is full. */
static bool fs_dir_add(struct fs_dir_out *o, const struct fs_dirent64 *d)
{
	struct fs_req *r = o->r;
	struct fuse_entry_out entry;
	uint64_t ino = d->ino ^ r->node->ino_tag;

	if (o->len + fs_dir_entry_len(o, strlen(d->name)) > o->room)
		return false;
	if (!o->plus || fs_is_dots(d->name)) {
		fs_dir_put(o, d->name, ino, (uint64_t)d->off, d->type, NULL);
		return true;
	}
	switch (fs_lookup(r->fs, r->node, d->name, &entry)) {
	case 0:
		fs_dir_put(o, d->name, entry.attr.ino, (uint64_t)d->off, d->type, &entry);
		break;
	case -ENOENT:
		break; /* removed since getdents64() */
	default:
		/* Node 0: the guest sees the name and asks for the rest when it needs it. */
		fs_dir_put(o, d->name, ino, (uint64_t)d->off, d->type, NULL);
		break;
	}
	return true;
}

/*
 * Fills the answer from the descriptor's position on; the handle is locked. Leaves h->pos at the end
 * of what was answered, and the descriptor there too.
 */
static int fs_dir_fill(struct fs_dir_out *o, struct fs_handle *h)
{
	uint8_t *buf = o->r->w->scratch;
	/* Entries grow on their way into the answer; reading about as many as fit avoids seeking. */
	size_t chunk = MIN(o->room / (o->plus ? 5 : 1), sizeof(o->r->w->scratch));
	bool full = false;

	chunk = MAX(chunk, sizeof(struct fs_dirent64) + NAME_MAX + 1);
	while (!full) {
		long n = syscall(SYS_getdents64, h->fd, buf, chunk);
		long at = 0;

		if (n < 0)
			return o->len ? 0 : -errno;
		if (!n)
			break;
		while (at < n) {
			const struct fs_dirent64 *d = (const void *)(buf + at);

			if (!fs_dir_add(o, d)) {
				full = true;
				break;
			}
			h->pos = d->off;
			at += d->reclen;
		}
		if (at < n && lseek(h->fd, h->pos, SEEK_SET) < 0)
			return o->len ? 0 : -errno;
		/* With less room than the largest entry takes, another read would be for nothing. */
		if (o->room - o->len < fs_dir_entry_len(o, NAME_MAX))
			full = true;
	}
	return 0;
}

static void fs_dir_fill_root(struct fs_dir_out *o, uint64_t off)
{
	struct fs_export *x;

	if (off < FS_ROOT_POS_DOT)
		fs_dir_put(o, ".", FS_ROOT_INO, FS_ROOT_POS_DOT, DT_DIR, NULL);
	if (off < FS_ROOT_POS_DOTDOT)
		fs_dir_put(o, "..", FS_ROOT_INO, FS_ROOT_POS_DOTDOT, DT_DIR, NULL);
	off = MAX(off, FS_ROOT_POS_DOTDOT) - FS_ROOT_POS_DOTDOT;
	while ((x = fs_export_next(o->r->fs, off))) {
		bool fits = o->len + fs_dir_entry_len(o, strlen(x->name)) <= o->room;

		if (fits)
			fs_dir_put(o, x->name, x->ino, x->id + FS_ROOT_POS_DOTDOT,
				   (uint8_t)IFTODT(x->type), NULL);
		off = x->id;
		fs_export_put(o->r->fs, x);
		if (!fits)
			break;
	}
}

static int fs_readdir(struct fs_req *r, bool plus)
{
	const struct fuse_read_in *in = fs_args(r);
	struct fs_dir_out o = {.r = r, .plus = plus};
	struct fs_handle *h;
	int e = fs_handle_get(r->fs, in->fh, r->node, &h);

	if (e < 0)
		return e;
	o.room = MIN(MIN(in->size, r->reply_room), (size_t)FS_OUT_MAX);
	if (o.room < 2 * fs_dir_entry_len(&o, 8)) {
		e = -EINVAL;
	} else if (!r->node) {
		fs_dir_fill_root(&o, in->offset);
	} else if (r->node->type != S_IFDIR) {
		e = -ENOTDIR;
	} else {
		pthread_mutex_lock(&h->lock);
		if ((uint64_t)h->pos != in->offset && lseek(h->fd, (off_t)in->offset, SEEK_SET) < 0)
			e = -errno;
		else
			h->pos = (off_t)in->offset;
		if (!e)
			e = fs_dir_fill(&o, h);
		pthread_mutex_unlock(&h->lock);
	}
	fs_handle_put(r->fs, h);
	r->out_len = o.len;
	return e;
}

int fs_op_readdir(struct fs_req *r)
{
	return fs_readdir(r, false);
}

int fs_op_readdirplus(struct fs_req *r)
{
	return fs_readdir(r, true);
}
