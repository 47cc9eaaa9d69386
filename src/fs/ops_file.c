/*
 * Operations on open files. Data goes straight between the file and the channel's memory.
 *
 * Files are never opened with O_APPEND or O_DIRECT on the host. Appending is decided for each write by
 * the flags that come with it, so that fcntl(F_SETFL) in the guest works; O_DIRECT in the guest keeps
 * its meaning for the guest's cache, without passing alignment rules of the host's device on.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <linux/falloc.h>

#include "fs_internal.h"
#include "fs_write.h"
#include "iov.h"

/* One copy_file_range() moves at most this much, so that a request ends in bounded time. */
#define FS_COPY_MAX (64u << 20)

/* The coarsest times that file systems keep (vfat). */
#define FS_CTIME_TICK_S 2

int fs_open_flags(const struct fs_export *e, uint32_t guest_flags)
{
	int acc = (int)(guest_flags & O_ACCMODE);
	int flags = acc | (int)(guest_flags & (O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME));

	/* O_ACCMODE itself is a way to open, too: for neither reading nor writing, with the rights to both. */
	if (!fs_export_is_read_only(e))
		return flags;
	/* Even access times stay as they are. */
	return acc != O_RDONLY || (guest_flags & O_TRUNC) ? -EROFS : flags | O_NOATIME;
}

void fs_fill_open(struct fuse_open_out *o, const struct fs_export *e, uint64_t fh, int flags,
		  bool dir)
{
	o->fh = fh;
	if (e->flags & FS_CONTROL_EXCLUSIVE)
		o->open_flags |= FOPEN_KEEP_CACHE | (dir ? FOPEN_CACHE_DIR : 0);
	else if (!dir)
		o->open_flags |= FS_OPEN_SHARED_LOCKS;
	/* Spares a round trip for each close() that could not report anything. */
	if (!dir && (!e->flush || (flags & O_ACCMODE) == O_RDONLY))
		o->open_flags |= FOPEN_NOFLUSH;
}

/*
 * Is the file, just opened as `fd`, what it was when the guest opened it before? Any change moves its ctime, which
 * nobody can set, once the clock has left the tick of the one before; so a young ctime proves nothing.
 */
static bool fs_file_is_unchanged(struct fs_req *r, int fd)
{
	struct timespec now, then = {0};
	struct stat st;

	if (clock_gettime(CLOCK_REALTIME, &now) || fstat(fd, &st))
		return false;
	fs_lock(r->fs);
	then = r->node->cached_ctime;
	r->node->cached_ctime = now.tv_sec - st.st_ctim.tv_sec > FS_CTIME_TICK_S
					? st.st_ctim
					: (struct timespec){0};
	fs_unlock(r->fs);
	return then.tv_sec && then.tv_sec == st.st_ctim.tv_sec &&
	       then.tv_nsec == st.st_ctim.tv_nsec;
}

int fs_op_open(struct fs_req *r)
{
	const struct fuse_open_in *in = fs_args(r);
	struct fuse_open_out *out = fs_answer(r, sizeof(*out));
	int flags = fs_open_flags(r->node->export, in->flags), fd, e = 0;
	struct fs_cred cred = {0};
	uint64_t fh;
	bool same;

	if (flags < 0)
		return flags;
	if (r->node->type != S_IFREG)
		return r->node->type == S_IFDIR ? -EISDIR : -ENXIO;
	if (in->open_flags & FUSE_OPEN_KILL_SUIDGID)
		e = fs_cred_enter_writer(r, r->node, &cred);
	fd = e ? e : fs_node_open(r->fs, r->node, flags);
	fs_cred_leave(r, &cred);
	if (fd < 0)
		return fd;
	/* Where others may have written since, the guest drops its pages. */
	same = !(r->node->export->flags & FS_CONTROL_EXCLUSIVE) && fs_file_is_unchanged(r, fd);
	e = fs_handle_new(r->fs, r->node, fd, &fh);
	if (!e) {
		fs_fill_open(out, r->node->export, fh, flags, false);
		if (same)
			out->open_flags |= FOPEN_KEEP_CACHE;
		fs_handle_tell(r, fh, r->node);
	}
	return e;
}

int fs_file_get(struct fs_req *r, uint64_t fh, const struct fs_node *node, struct fs_handle **ret)
{
	int e = fs_handle_get(r->fs, fh, node, ret);

	if (!e && (!node || node->type != S_IFREG)) {
		fs_handle_put(r->fs, *ret);
		e = -EBADF;
	}
	return e;
}

int fs_op_read(struct fs_req *r)
{
	const struct fuse_read_in *in = fs_args(r);
	size_t len = MIN(MIN(in->size, r->reply_room), FS_DATA_MAX);
	struct fs_handle *h;
	unsigned int nr;
	ssize_t n;
	int e = fs_file_get(r, in->fh, r->node, &h);

	if (e < 0)
		return e;
	nr = iov_slice(r->reply, r->nr_reply, sizeof(struct fuse_out_header), len, r->w->iov,
		       ARRAY_SIZE(r->w->iov));
	n = preadv(h->fd, r->w->iov, (int)nr, (off_t)in->offset);
	e = n < 0 ? -errno : 0;
	fs_handle_put(r->fs, h);
	if (!e)
		r->direct_len = (size_t)n;
	return e;
}

int fs_op_write(struct fs_req *r)
{
	const struct fuse_write_in *in = fs_args(r);
	struct fuse_write_out *out = fs_answer(r, sizeof(*out));
	size_t off = sizeof(r->h) + sizeof(*in);
	struct fs_cred cred = {0};
	struct fs_handle *h;
	unsigned int nr;
	ssize_t n = 0;
	int e;

	if (in->size != r->h.len - off || in->size > FS_DATA_MAX)
		return -EINVAL;
	e = fs_file_get(r, in->fh, r->node, &h);
	if (e < 0)
		return e;
	nr = iov_slice(r->req, r->nr_req, off, in->size, r->w->iov, ARRAY_SIZE(r->w->iov));
	if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		e = fs_cred_enter_writer(r, r->node, &cred);
	if (!e)
		n = pwritev2(h->fd, r->w->iov, (int)nr, (off_t)in->offset, fs_write_flags(in));
	if (n < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	fs_handle_put(r->fs, h);
	if (!e)
		out->size = (uint32_t)n;
	return e;
}

int fs_op_release(struct fs_req *r)
{
	const struct fuse_release_in *in = fs_args(r);

	fs_handle_release(r->fs, in->fh, r->h.nodeid);
	return 0;
}

int fs_op_flush(struct fs_req *r)
{
	const struct fuse_flush_in *in = fs_args(r);
	struct fs_handle *h;
	int fd, e = fs_file_get(r, in->fh, r->node, &h);

	if (e < 0)
		return e;
	/* Closing one descriptor of several is what makes a network file system report errors. */
	fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 || close(fd) < 0)
		e = -errno;
	fs_handle_put(r->fs, h);
	return e;
}

int fs_op_fsync(struct fs_req *r)
{
	const struct fuse_fsync_in *in = fs_args(r);
	struct fs_handle *h;
	int e = fs_handle_get(r->fs, in->fh, r->node, &h);

	if (e < 0)
		return e;
	if (h->fd >= 0 &&
	    (in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd)) < 0)
		e = -errno;
	fs_handle_put(r->fs, h);
	return e;
}

/*
 * No flag tells whether a fallocate() or copy_file_range() must clear set-user-id bits. The guest's
 * root may keep them, as it may on write(); anybody else loses them.
 */
static int fs_cred_enter_for_change(struct fs_req *r, const struct fs_node *node,
				    struct fs_cred *cred)
{
	*cred = (struct fs_cred){0};
	return r->h.uid ? fs_cred_enter_writer(r, node, cred) : 0;
}

int fs_op_fallocate(struct fs_req *r)
{
	const struct fuse_fallocate_in *in = fs_args(r);
	struct fs_handle *h;
	struct fs_cred cred;
	int e;

	if (in->mode &
	    ~(uint32_t)(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return -EOPNOTSUPP;
	e = fs_file_get(r, in->fh, r->node, &h);
	if (e < 0)
		return e;
	e = fs_cred_enter_for_change(r, r->node, &cred);
	if (!e && fallocate(h->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	fs_handle_put(r->fs, h);
	return e;
}

int fs_op_lseek(struct fs_req *r)
{
	const struct fuse_lseek_in *in = fs_args(r);
	struct fuse_lseek_out *out = fs_answer(r, sizeof(*out));
	struct fs_handle *h;
	off_t pos;
	int e;

	/* The guest does the other kinds itself. */
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	e = fs_file_get(r, in->fh, r->node, &h);
	if (e < 0)
		return e;
	pos = lseek(h->fd, (off_t)in->offset, (int)in->whence);
	e = pos < 0 ? -errno : 0;
	fs_handle_put(r->fs, h);
	out->offset = (uint64_t)pos;
	return e;
}

int fs_op_copy_file_range(struct fs_req *r)
{
	const struct fuse_copy_file_range_in *in = fs_args(r);
	struct fuse_write_out *out = fs_answer(r, sizeof(*out));
	off_t off_in = (off_t)in->off_in, off_out = (off_t)in->off_out;
	struct fs_handle *from = NULL, *to = NULL;
	struct fs_cred cred = {0};
	struct fs_node *node;
	ssize_t n = 0;
	int e = fs_node_get(r->fs, in->nodeid_out, &node);

	if (e < 0)
		return e;
	if (in->flags)
		e = -EINVAL;
	if (!e && (!node || fs_export_is_read_only(node->export)))
		e = -EROFS;
	if (!e)
		e = fs_file_get(r, in->fh_in, r->node, &from);
	if (!e)
		e = fs_file_get(r, in->fh_out, node, &to);
	if (!e)
		e = fs_cred_enter_for_change(r, node, &cred);
	if (!e)
		n = copy_file_range(from->fd, &off_in, to->fd, &off_out, MIN(in->len, FS_COPY_MAX),
				    0);
	if (n < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	if (!e)
		out->size = (uint32_t)n;
	fs_handle_put(r->fs, from);
	fs_handle_put(r->fs, to);
	fs_node_put(r->fs, node);
	return e;
}

/* Writes back the file system of one export. */
static int fs_sync_export(struct fs *fs, const struct fs_export *export)
{
	cleanup_close int fd = -1;

	if (fs_export_is_read_only(export) || (export->type != S_IFREG && export->type != S_IFDIR))
		return 0;
	fd = openat(fs->proc_fd, fs_proc_name(export->fd).s, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	return fd < 0 || syncfs(fd) < 0 ? -errno : 0;
}

int fs_op_syncfs(struct fs_req *r)
{
	struct fs_export *x;
	uint64_t after = 0;
	int e = 0;

	if (r->node)
		return fs_sync_export(r->fs, r->node->export);
	while ((x = fs_export_next(r->fs, after))) {
		int one = fs_sync_export(r->fs, x);

		e = e ? e : one;
		after = x->id;
		fs_export_put(r->fs, x);
	}
	return e;
}
