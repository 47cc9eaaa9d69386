/* Operations that look: names, attributes, link targets; and SETATTR. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "fs_internal.h"

/*
 * How long the guest may believe what it was told. An exclusive export is changed by nobody else, so
 * practically for ever; the guest drops what it needs room for. Elsewhere the host may write too.
 */
#define FS_TIMEOUT_EXCLUSIVE_S 86400
#define FS_TIMEOUT_SHARED_S 1

uint64_t fs_timeout(const struct fs_export *e)
{
	return e->flags & FS_CONTROL_EXCLUSIVE ? FS_TIMEOUT_EXCLUSIVE_S : FS_TIMEOUT_SHARED_S;
}

/* The kernel's 32-bit form of a device number. */
static uint32_t fs_rdev(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

void fs_fill_attr(struct fuse_attr *a, const struct statx *st, uint64_t ino_tag)
{
	*a = (struct fuse_attr){
		.ino = st->stx_ino ^ ino_tag,
		.size = st->stx_size,
		.blocks = st->stx_blocks,
		.atime = (uint64_t)st->stx_atime.tv_sec,
		.mtime = (uint64_t)st->stx_mtime.tv_sec,
		.ctime = (uint64_t)st->stx_ctime.tv_sec,
		.atimensec = st->stx_atime.tv_nsec,
		.mtimensec = st->stx_mtime.tv_nsec,
		.ctimensec = st->stx_ctime.tv_nsec,
		.mode = st->stx_mode,
		.nlink = st->stx_nlink,
		.uid = st->stx_uid,
		.gid = st->stx_gid,
		.rdev = fs_rdev(st->stx_rdev_major, st->stx_rdev_minor),
		.blksize = st->stx_blksize,
	};
}

void fs_fill_entry(struct fuse_entry_out *e, const struct fs_node *node, const struct statx *st)
{
	*e = (struct fuse_entry_out){
		.nodeid = node->id,
		.entry_valid = fs_timeout(node->export),
		.attr_valid = fs_timeout(node->export),
	};
	fs_fill_attr(&e->attr, st, node->ino_tag);
}

int fs_entry_of_fd(struct fs *fs, struct fs_export *export, int fd, struct fuse_entry_out *ret,
		   struct fs_node **ret_node)
{
	struct fs_node *node;
	struct statx st;
	int e = fs_node_enter(fs, export, fd, &node, &st);

	if (e < 0)
		return e;
	fs_fill_entry(ret, node, &st);
	ret->attr.flags = fs_map_flags(fs, node, &st);
	if (ret_node)
		*ret_node = node;
	else
		fs_node_put(fs, node);
	return 0;
}

static int fs_lookup_export(struct fs *fs, const char *name, struct fuse_entry_out *ret)
{
	struct fs_export *e = fs_export_get(fs, name);
	int fd, r;

	if (!e)
		return -ENOENT;
	fd = fcntl(e->fd, F_DUPFD_CLOEXEC, 0);
	r = fd < 0 ? -errno : fs_entry_of_fd(fs, e, fd, ret, NULL);
	fs_export_put(fs, e);
	/* Exports come and go: their names are asked for each time. */
	ret->entry_valid = 0;
	return r;
}

int fs_lookup(struct fs *fs, struct fs_node *dir, const char *name, struct fuse_entry_out *ret)
{
	int fd;

	if (!dir)
		return fs_lookup_export(fs, name, ret);
	if (dir->type != S_IFDIR)
		return -ENOTDIR;
	fd = openat(dir->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fs_entry_of_fd(fs, dir->export, fd, ret, NULL);
}

int fs_op_lookup(struct fs_req *r)
{
	struct fuse_entry_out *out = fs_answer(r, sizeof(*out));
	const char *name;
	int e = fs_take_last_name(r, 0, &name);

	if (e < 0)
		return e;
	e = fs_lookup(r->fs, r->node, name, out);
	if (e == -ENOENT && r->node && (r->node->export->flags & FS_CONTROL_EXCLUSIVE)) {
		/* Node 0 with a lifetime: the guest remembers that there is nothing. */
		memset(out, 0, sizeof(*out));
		out->entry_valid = fs_timeout(r->node->export);
		return 0;
	}
	return e;
}

static void fs_root_stat(struct statx *st)
{
	*st = (struct statx){
		.stx_mask = STATX_BASIC_STATS,
		.stx_blksize = 4096,
		.stx_nlink = 2,
		.stx_mode = S_IFDIR | 0555,
		.stx_ino = FS_ROOT_INO,
	};
}

static int fs_node_stat(const struct fs_node *node, struct statx *st)
{
	if (node)
		return fs_stat(node->fd, st);
	fs_root_stat(st);
	return 0;
}

static int fs_answer_attr(struct fs_req *r)
{
	struct fuse_attr_out *out = fs_answer(r, sizeof(*out));
	struct statx st;
	int e = fs_node_stat(r->node, &st);

	if (e < 0)
		return e;
	out->attr_valid = r->node ? fs_timeout(r->node->export) : 0;
	fs_fill_attr(&out->attr, &st, r->node ? r->node->ino_tag : 0);
	if (r->node)
		out->attr.flags = fs_map_flags(r->fs, r->node, &st);
	return 0;
}

int fs_op_getattr(struct fs_req *r)
{
	return fs_answer_attr(r);
}

static struct fuse_sx_time fs_sx_time(const struct statx_timestamp *t)
{
	return (struct fuse_sx_time){.tv_sec = t->tv_sec, .tv_nsec = t->tv_nsec};
}

int fs_op_statx(struct fs_req *r)
{
	struct fuse_statx_out *out = fs_answer(r, sizeof(*out));
	struct statx st;
	int e = fs_node_stat(r->node, &st);

	if (e < 0)
		return e;
	out->attr_valid = r->node ? fs_timeout(r->node->export) : 0;
	out->stat = (struct fuse_statx){
		.mask = st.stx_mask & (STATX_BASIC_STATS | STATX_BTIME),
		.blksize = st.stx_blksize,
		.nlink = st.stx_nlink,
		.uid = st.stx_uid,
		.gid = st.stx_gid,
		.mode = st.stx_mode,
		.ino = st.stx_ino ^ (r->node ? r->node->ino_tag : 0),
		.size = st.stx_size,
		.blocks = st.stx_blocks,
		.atime = fs_sx_time(&st.stx_atime),
		.btime = fs_sx_time(&st.stx_btime),
		.ctime = fs_sx_time(&st.stx_ctime),
		.mtime = fs_sx_time(&st.stx_mtime),
		.rdev_major = st.stx_rdev_major,
		.rdev_minor = st.stx_rdev_minor,
	};
	return 0;
}

int fs_op_statfs(struct fs_req *r)
{
	struct fuse_statfs_out *out = fs_answer(r, sizeof(*out));
	struct statfs st = {.f_bsize = 4096, .f_frsize = 4096, .f_namelen = NAME_MAX};

	if (r->node && fstatfs(r->node->fd, &st) < 0)
		return -errno;
	out->st = (struct fuse_kstatfs){
		.blocks = st.f_blocks,
		.bfree = st.f_bfree,
		.bavail = st.f_bavail,
		.files = st.f_files,
		.ffree = st.f_ffree,
		.bsize = (uint32_t)st.f_bsize,
		.namelen = (uint32_t)st.f_namelen,
		.frsize = (uint32_t)st.f_frsize,
	};
	return 0;
}

int fs_op_readlink(struct fs_req *r)
{
	ssize_t n;

	if (r->node->type != S_IFLNK)
		return -EINVAL;
	n = readlinkat(r->node->fd, "", (char *)r->w->out, PATH_MAX);
	if (n < 0)
		return -errno;
	r->out_len = (size_t)n;
	return 0;
}

static int fs_set_size(struct fs_req *r, const struct fuse_setattr_in *in)
{
	struct fs_handle *h = NULL;
	struct fs_cred cred = {0};
	cleanup_close int opened = -1;
	int e = 0, fd;

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (in->valid & FATTR_FH)
		e = fs_handle_get(r->fs, in->fh, r->node, &h);
	if (e < 0)
		return e;
	/* A directory's handle, or one for reading only, fails in ftruncate(). */
	if (!h) {
		opened = fs_node_open(r->fs, r->node, O_WRONLY | O_NONBLOCK);
		if (opened < 0)
			return opened;
	}
	fd = h ? h->fd : opened;
	if (in->valid & FATTR_KILL_SUIDGID)
		e = fs_cred_enter_writer(r, r->node, &cred);
	if (!e && ftruncate(fd, (off_t)in->size) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	fs_handle_put(r->fs, h);
	return e;
}

static void fs_set_time(struct timespec *t, uint32_t valid, uint32_t bit, uint32_t now_bit,
			uint64_t sec, uint32_t nsec)
{
	t->tv_sec = (time_t)sec;
	t->tv_nsec = nsec;
	if (!(valid & bit))
		t->tv_nsec = UTIME_OMIT;
	else if (valid & now_bit)
		t->tv_nsec = UTIME_NOW;
}

int fs_op_setattr(struct fs_req *r)
{
	const struct fuse_setattr_in *in = fs_args(r);
	int fd = r->node->fd, e = 0;
	struct timespec t[2];

	if (in->valid & FATTR_MODE) {
		if (r->node->type == S_IFLNK)
			return -EOPNOTSUPP;
		if (fchmodat(r->fs->proc_fd, fs_proc_name(fd).s, in->mode & 07777, 0) < 0)
			return -errno;
	}
	if (in->valid & (FATTR_UID | FATTR_GID)) {
		uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
		gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

		if (fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
	}
	if (in->valid & FATTR_SIZE)
		e = fs_set_size(r, in);
	if (e < 0)
		return e;
	if (in->valid & (FATTR_ATIME | FATTR_MTIME)) {
		fs_set_time(&t[0], in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime,
			    in->atimensec);
		fs_set_time(&t[1], in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime,
			    in->mtimensec);
		if (utimensat(fd, "", t, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
	}
	return fs_answer_attr(r);
}
