/*
 * From raw bytes to an operation and back. A request is judged here before any operation sees it: its
 * length is what its header says, its fixed arguments are there, its node exists, names end inside the
 * request and are single components, and a read-only export is not written to.
 *
 * Everything but WRITE's payload and READ's data is copied: requests once into w->in, answers from
 * w->out. Payload and data go between the channel's memory and the file directly.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fs_internal.h"
#include "iov.h"
#include "log.h"
#include "notify.h"

/* The protocol we speak; 7.31 is the least a guest may. */
#define FS_FUSE_MINOR 39
#define FS_FUSE_MINOR_MIN 31

#define FS_OP_WRITES 0x01   /* changes the tree: refused on read-only exports and in the root */
#define FS_OP_ROOT 0x02	    /* makes sense in the root directory, which is not a real one */
#define FS_OP_SESSION 0x04  /* takes no node, or its number alone */
#define FS_OP_NO_REPLY 0x08 /* never answered */
#define FS_OP_CREATES 0x10  /* may carry the user's group */
#define FS_OP_PAYLOAD 0x20  /* only the fixed arguments are copied */

struct fs_op {
	int (*fn)(struct fs_req *r);
	uint16_t args_len; /* least bytes behind the header */
	uint8_t flags;
	const char *name;
};

static int fs_op_init(struct fs_req *r);
static int fs_op_destroy(struct fs_req *r);
static int fs_op_ioctl(struct fs_req *r);
static int fs_op_forget(struct fs_req *r);
static int fs_op_batch_forget(struct fs_req *r);

#define OP(op, fn_, len, fl) [FUSE_##op] = {fs_op_##fn_, (len), (fl), #op}

/* Opcodes without a row are answered ENOSYS, which tells the guest never to ask again. */
static const struct fs_op fs_ops[] = {
	OP(LOOKUP, lookup, 1, FS_OP_ROOT),
	OP(FORGET, forget, sizeof(struct fuse_forget_in), FS_OP_SESSION | FS_OP_NO_REPLY),
	OP(GETATTR, getattr, sizeof(struct fuse_getattr_in), FS_OP_ROOT),
	OP(SETATTR, setattr, sizeof(struct fuse_setattr_in), FS_OP_WRITES),
	OP(READLINK, readlink, 0, 0),
	OP(SYMLINK, symlink, 2, FS_OP_WRITES | FS_OP_CREATES),
	OP(MKNOD, mknod, sizeof(struct fuse_mknod_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(MKDIR, mkdir, sizeof(struct fuse_mkdir_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(UNLINK, unlink, 1, FS_OP_WRITES),
	OP(RMDIR, rmdir, 1, FS_OP_WRITES),
	OP(RENAME, rename, sizeof(struct fuse_rename_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(LINK, link, sizeof(struct fuse_link_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(OPEN, open, sizeof(struct fuse_open_in), 0),
	OP(READ, read, sizeof(struct fuse_read_in), 0),
	OP(WRITE, write, sizeof(struct fuse_write_in), FS_OP_WRITES | FS_OP_PAYLOAD),
	OP(STATFS, statfs, 0, FS_OP_ROOT),
	OP(RELEASE, release, sizeof(struct fuse_release_in), FS_OP_SESSION),
	OP(FSYNC, fsync, sizeof(struct fuse_fsync_in), 0),
	OP(SETXATTR, setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, FS_OP_WRITES),
	OP(GETXATTR, getxattr, sizeof(struct fuse_getxattr_in), FS_OP_ROOT),
	OP(LISTXATTR, listxattr, sizeof(struct fuse_getxattr_in), FS_OP_ROOT),
	OP(REMOVEXATTR, removexattr, 1, FS_OP_WRITES),
	OP(FLUSH, flush, sizeof(struct fuse_flush_in), 0),
	OP(INIT, init, 16, FS_OP_SESSION),
	OP(OPENDIR, opendir, sizeof(struct fuse_open_in), FS_OP_ROOT),
	OP(READDIR, readdir, sizeof(struct fuse_read_in), FS_OP_ROOT),
	OP(RELEASEDIR, release, sizeof(struct fuse_release_in), FS_OP_SESSION),
	OP(FSYNCDIR, fsync, sizeof(struct fuse_fsync_in), FS_OP_ROOT),
	OP(GETLK, getlk, sizeof(struct fuse_lk_in), 0),
	OP(SETLK, setlk, sizeof(struct fuse_lk_in), 0),
	OP(CREATE, create, sizeof(struct fuse_create_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(IOCTL, ioctl, sizeof(struct fuse_ioctl_in), FS_OP_ROOT),
	OP(DESTROY, destroy, 0, FS_OP_SESSION),
	OP(BATCH_FORGET, batch_forget, sizeof(struct fuse_batch_forget_in),
	   FS_OP_SESSION | FS_OP_NO_REPLY),
	OP(FALLOCATE, fallocate, sizeof(struct fuse_fallocate_in), FS_OP_WRITES),
	OP(READDIRPLUS, readdirplus, sizeof(struct fuse_read_in), FS_OP_ROOT),
	OP(RENAME2, rename2, sizeof(struct fuse_rename2_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(LSEEK, lseek, sizeof(struct fuse_lseek_in), 0),
	OP(COPY_FILE_RANGE, copy_file_range, sizeof(struct fuse_copy_file_range_in), 0),
	OP(SETUPMAPPING, setupmapping, sizeof(struct fuse_setupmapping_in), 0),
	OP(SYNCFS, syncfs, sizeof(struct fuse_syncfs_in), FS_OP_ROOT),
	OP(TMPFILE, tmpfile, sizeof(struct fuse_create_in), FS_OP_WRITES | FS_OP_CREATES),
	OP(STATX, statx, sizeof(struct fuse_statx_in), FS_OP_ROOT),
};

/* What INIT grants when the guest offers it. docs/fs.md has the reasons, also for what is missing. */
static const uint64_t fs_init_flags =
	FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK |
	FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO |
	FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
	FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT | FS_INIT_CREATE_SUPP_GROUP;

/* Both or neither: the window of mapped files (ops_map.c). The guest offers them when its device has one. */
#define FS_INIT_MAPS (FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX)
/* log2 of what parts of files and of the window are aligned to: VIRTIOFS_WINDOW_SLOT. */
#define FS_MAP_ALIGNMENT 21

bool fs_name_is_valid(const char *name)
{
	size_t len = strlen(name);

	return len && len <= NAME_MAX && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
	       !memchr(name, '/', len);
}

int fs_take_string(struct fs_req *r, size_t args_len, const char **ret)
{
	size_t start = MAX(r->next_name, args_len);
	const char *s = (const char *)r->body + start;
	const char *end = start < r->body_len ? memchr(s, 0, r->body_len - start) : NULL;

	if (!end)
		return -EINVAL;
	r->next_name = start + (size_t)(end - s) + 1;
	*ret = s;
	return 0;
}

int fs_take_name(struct fs_req *r, size_t args_len, const char **ret)
{
	const char *s;
	int e = fs_take_string(r, args_len, &s);

	if (e < 0)
		return e;
	if (strlen(s) > NAME_MAX)
		return -ENAMETOOLONG;
	if (!fs_name_is_valid(s))
		return -EINVAL;
	*ret = s;
	return 0;
}

int fs_take_last_string(struct fs_req *r, size_t args_len, const char **ret)
{
	int e = fs_take_string(r, args_len, ret);

	return !e && r->next_name != r->body_len ? -EINVAL : e;
}

int fs_take_last_name(struct fs_req *r, size_t args_len, const char **ret)
{
	int e = fs_take_name(r, args_len, ret);

	return !e && r->next_name != r->body_len ? -EINVAL : e;
}

void *fs_answer(struct fs_req *r, size_t len)
{
	memset(r->w->out, 0, len);
	r->out_len = len;
	return r->w->out;
}

static int fs_op_init(struct fs_req *r)
{
	struct fuse_init_in in = {0};
	struct fuse_init_out *out;
	uint64_t offered, granted;

	memcpy(&in, r->body, MIN(sizeof(in), r->body_len));
	if (in.major < FUSE_KERNEL_VERSION ||
	    (in.major == FUSE_KERNEL_VERSION && in.minor < FS_FUSE_MINOR_MIN))
		return -EPROTO;
	out = fs_answer(r, sizeof(*out));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = FS_FUSE_MINOR;
	/* A newer major version: the guest comes back with ours. */
	if (in.major > FUSE_KERNEL_VERSION)
		return 0;
	offered = in.flags;
	if (in.flags & FUSE_INIT_EXT)
		offered |= (uint64_t)in.flags2 << 32;
	granted = offered & fs_init_flags;
	if (r->fs->can_map && (offered & FS_INIT_MAPS) == FS_INIT_MAPS) {
		granted |= FS_INIT_MAPS;
		out->map_alignment = FS_MAP_ALIGNMENT;
	}
	out->max_readahead = in.max_readahead;
	out->flags = (uint32_t)granted;
	out->flags2 = (uint32_t)(granted >> 32);
	out->max_background = 128;
	out->congestion_threshold = 96;
	out->max_write = FS_DATA_MAX;
	out->max_pages = FS_DATA_MAX / 4096;
	out->time_gran = 1;
	fs_lock(r->fs);
	r->fs->dont_mask = granted & FUSE_DONT_MASK;
	r->fs->setxattr_ext = granted & FUSE_SETXATTR_EXT;
	r->fs->maps = granted & FUSE_HAS_INODE_DAX;
	r->fs->ready = true;
	fs_unlock(r->fs);
	log_dbg(FS_COMP, "session starts: protocol 7.%u, flags 0x%llx of 0x%llx", in.minor,
		(unsigned long long)granted, (unsigned long long)offered);
	return 0;
}

static int fs_op_destroy(struct fs_req *r)
{
	fs_lock(r->fs);
	r->fs->ready = false;
	fs_unlock(r->fs);
	fs_notify_reset(r->fs);
	fs_forget_all(r->fs);
	return 0;
}

/* Nothing is passed to the host's drivers and file systems. ENOSYS would not be remembered either. */
static int fs_op_ioctl(struct fs_req *r)
{
	(void)r;
	return -ENOTTY;
}

static int fs_op_forget(struct fs_req *r)
{
	const struct fuse_forget_in *in = fs_args(r);

	fs_node_forget(r->fs, r->h.nodeid, in->nlookup);
	return 0;
}

static int fs_op_batch_forget(struct fs_req *r)
{
	const struct fuse_batch_forget_in *in = fs_args(r);
	const struct fuse_forget_one *one = (const void *)(in + 1);
	size_t room = (r->body_len - sizeof(*in)) / sizeof(*one);

	for (uint32_t i = 0; i < in->count && i < room; i++)
		fs_node_forget(r->fs, one[i].nodeid, one[i].nlookup);
	return 0;
}

/* One group of the user, sent when it decides the group of a new file. The rest is skipped. */
static int fs_take_extensions(struct fs_req *r, size_t ext_len)
{
	const uint8_t *p = r->body + r->body_len;

	while (ext_len) {
		struct fs_ext_header h;
		struct fs_ext_groups g;

		if (ext_len < sizeof(h))
			return -EINVAL;
		memcpy(&h, p, sizeof(h));
		if (h.size < sizeof(h) || h.size > ext_len || h.size % 8)
			return -EINVAL;
		if (h.type == FS_EXT_GROUPS && h.size >= sizeof(h) + sizeof(g) + sizeof(gid_t)) {
			memcpy(&g, p + sizeof(h), sizeof(g));
			if (g.nr_groups != 1)
				return -EINVAL;
			memcpy(&r->group, p + sizeof(h) + sizeof(g), sizeof(gid_t));
			r->has_group = true;
		}
		p += h.size;
		ext_len -= h.size;
	}
	return 0;
}

/* Copies the arguments and checks their length against the operation's. */
static int fs_req_take_body(struct fs_req *r, const struct fs_op *op)
{
	size_t ext_len = fuse_header_ext_len(&r->h), len;

	if (r->h.len != iov_len(r->req, r->nr_req))
		return -EINVAL;
	len = r->h.len - sizeof(r->h);
	if (op->flags & FS_OP_PAYLOAD)
		len = MIN(len, op->args_len);
	if (len > FS_IN_MAX - sizeof(r->h))
		return -E2BIG;
	iov_read(r->req, r->nr_req, sizeof(r->h), r->w->in, len);
	r->body = r->w->in;
	if (ext_len) {
		if (!(op->flags & FS_OP_CREATES) || ext_len > len)
			return -EINVAL;
		len -= ext_len;
	}
	r->body_len = len;
	if (len < op->args_len)
		return -EINVAL;
	return ext_len ? fs_take_extensions(r, ext_len) : 0;
}

/* Is there a session, or is this what starts one? */
static int fs_req_check_session(struct fs_req *r)
{
	bool ready;

	fs_lock(r->fs);
	ready = r->fs->ready;
	r->dont_mask = r->fs->dont_mask;
	r->setxattr_ext = r->fs->setxattr_ext;
	r->maps = r->fs->maps;
	r->is_reader = r->fs->events_reader && r->fs->events_reader == r->h.pid;
	fs_unlock(r->fs);
	return ready == (r->h.opcode != FUSE_INIT) ? 0 : -EIO;
}

static int fs_req_serve(struct fs_req *r, const struct fs_op *op)
{
	int e = fs_req_check_session(r);

	if (e < 0)
		return e;
	if (!op)
		return -ENOSYS;
	e = fs_req_take_body(r, op);
	if (e < 0)
		return e;
	if (op->flags & FS_OP_SESSION)
		return op->fn(r);
	if (r->h.nodeid != FS_EVENTS_ID)
		e = fs_node_get(r->fs, r->h.nodeid, &r->node);
	if (e < 0)
		return e;
	if (fs_notify_serve(r, &e)) {
		fs_node_put(r->fs, r->node);
		return e;
	}
	if (!r->node && !(op->flags & FS_OP_ROOT))
		e = op->flags & FS_OP_WRITES ? -EROFS : -EPERM;
	else if (r->node && (op->flags & FS_OP_WRITES) && fs_export_is_read_only(r->node->export))
		e = -EROFS;
	if (!e)
		e = op->fn(r);
	fs_node_put(r->fs, r->node);
	return e;
}

/* Header and body of the answer; there is room for the header at least. Returns the bytes written. */
static size_t fs_req_reply(struct fs_req *r, int error)
{
	size_t body = error ? 0 : r->out_len + r->direct_len;
	struct fuse_out_header h;

	if (body > r->reply_room) {
		error = -EIO;
		body = 0;
	}
	h = (struct fuse_out_header){
		.len = (uint32_t)(sizeof(h) + body), .error = error, .unique = r->h.unique};
	iov_write(r->reply, r->nr_reply, 0, &h, sizeof(h));
	if (!error && r->out_len)
		iov_write(r->reply, r->nr_reply, sizeof(h), r->w->out, r->out_len);
	return h.len;
}

/* Begin and end of a request, for those who wait for it (fs_quiesce_locked()). */
static void fs_worker_tick(struct fs_worker *w)
{
	fs_lock(w->fs);
	w->serial++;
	if (w->fs->nr_waiting)
		pthread_cond_broadcast(&w->fs->request_done);
	fs_unlock(w->fs);
}

void fs_worker_park(struct fs_worker *w, bool parked)
{
	fs_lock(w->fs);
	w->parked = parked;
	fs_unlock(w->fs);
}

static bool fs_worker_is_awaited(const struct fs *fs)
{
	struct fs_worker *w;

	list_for_each (w, &fs->workers, link) {
		if (w->awaited && w->awaited == w->serial)
			return true;
	}
	return false;
}

int fs_quiesce_locked(struct fs *fs)
{
	struct fs_worker *w;
	struct timespec until;
	int r = 0;

	list_for_each (w, &fs->workers, link)
		w->awaited = (w->serial & 1) && !w->parked ? w->serial : 0;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += FS_QUIESCE_MS / 1000;
	fs->nr_waiting++;
	while (!r && fs_worker_is_awaited(fs))
		r = -pthread_cond_timedwait(&fs->request_done, &fs->lock, &until);
	fs->nr_waiting--;
	return r ? -EBUSY : 0;
}

static void fs_worker_tell_opened(const struct fs_worker *w, struct fs_opened *ret)
{
	const struct fs_handle *h = w->opened;

	*ret = (struct fs_opened){.fd = -1};
	if (h)
		*ret = (struct fs_opened){h->fd, h->id, h->node->id, h->node->export->id};
	else if (w->lent.fd >= 0)
		*ret = w->lent;
}

size_t fs_worker_begin(struct fs_worker *w, const struct iovec *req, unsigned int nr_req,
		       const struct iovec *reply, unsigned int nr_reply, struct fs_opened *ret)
{
	struct fs_req r = {.fs = w->fs,
			   .w = w,
			   .req = req,
			   .nr_req = nr_req,
			   .reply = reply,
			   .nr_reply = nr_reply};
	size_t room = iov_len(reply, nr_reply);
	const struct fs_op *op = NULL;
	int e;

	fs_worker_tick(w);
	*ret = (struct fs_opened){.fd = -1};
	if (iov_read(req, nr_req, 0, &r.h, sizeof(r.h)) < sizeof(r.h))
		return 0;
	r.reply_room = room - MIN(room, sizeof(struct fuse_out_header));
	if (r.h.opcode < ARRAY_SIZE(fs_ops) && fs_ops[r.h.opcode].fn)
		op = &fs_ops[r.h.opcode];
	e = fs_req_serve(&r, op);
	fs_worker_tell_opened(w, ret);
	log_dbg(FS_COMP, "%s node %llx: %d", op ? op->name : "unknown operation",
		(unsigned long long)r.h.nodeid, e);
	if (room < sizeof(struct fuse_out_header) || (op && (op->flags & FS_OP_NO_REPLY)))
		return 0;
	return fs_req_reply(&r, e);
}

void fs_worker_end(struct fs_worker *w)
{
	fs_handle_put(w->fs, w->opened);
	w->opened = NULL;
	cleanup_closep(&w->lent.fd);
	fs_worker_tick(w);
}

size_t fs_worker_handle(struct fs_worker *w, const struct iovec *req, unsigned int nr_req,
			const struct iovec *reply, unsigned int nr_reply)
{
	struct fs_opened opened;
	size_t len = fs_worker_begin(w, req, nr_req, reply, nr_reply, &opened);

	fs_worker_end(w);
	return len;
}

int fs_worker_new(struct fs *fs, struct fs_worker **ret, struct err *err)
{
	cleanup_free struct fs_worker *w = xcalloc(1, sizeof(*w));
	int e;

	w->fs = fs;
	w->lent.fd = -1;
	/* The umask and the working directory are the process's until now. */
	if (unshare(CLONE_FS) < 0)
		return err_set(err, -errno, "separate a worker's working directory");
	if (fchdir(fs->proc_fd) < 0)
		return err_set(err, -errno, "enter /proc/self/fd");
	umask(0);
	e = fs_cred_init(w);
	if (e < 0)
		return err_set(err, e, "set up a worker's credentials");
	fs_lock(fs);
	list_append(&fs->workers, &w->link);
	fs_unlock(fs);
	*ret = take_ptr(&w);
	return 0;
}

void fs_worker_free(struct fs_worker *w)
{
	if (!w)
		return;
	fs_lock(w->fs);
	list_remove(&w->link);
	fs_unlock(w->fs);
	free(w);
}
