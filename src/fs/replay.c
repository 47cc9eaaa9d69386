/*
 * What the file of events and the process that reads it are answered; see fs_events.h. Nothing that this process asks
 * for is carried out, except for looking and for opening to read.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "fs_events.h"
#include "notify.h"

static void replay_fill_attr(struct fuse_attr *a, uint64_t id, mode_t mode)
{
	*a = (struct fuse_attr){.ino = id, .mode = mode, .nlink = 1, .blksize = 4096};
}

/* A file that is only there to be found. */
static int replay_answer_ghost(struct fs_req *r, uint64_t id, mode_t mode)
{
	struct fuse_entry_out *out = fs_answer(r, sizeof(*out));

	out->nodeid = id;
	out->attr_valid = 1;
	replay_fill_attr(&out->attr, id, mode);
	return 0;
}

static int replay_answer_events_attr(struct fs_req *r)
{
	struct fuse_attr_out *out = fs_answer(r, sizeof(*out));

	out->attr_valid = 1;
	replay_fill_attr(&out->attr, FS_EVENTS_ID, S_IFREG | 0400);
	return 0;
}

static int replay_open_events(struct fs_req *r)
{
	struct fuse_open_out *out = fs_answer(r, sizeof(*out));

	out->open_flags = FOPEN_DIRECT_IO | FOPEN_NOFLUSH;
	fs_notify_begin(r->fs);
	return 0;
}

static bool replay_is_made(char kind)
{
	return kind == FS_EVENT_FILE || kind == FS_EVENT_DIR || kind == FS_EVENT_LINK ||
	       kind == FS_EVENT_FIFO || kind == FS_EVENT_SOCKET;
}

static bool replay_is_gone(char kind)
{
	return kind == FS_EVENT_UNLINK || kind == FS_EVENT_RMDIR;
}

/* The first change of a name that was not replayed, if it is about its being there. Takes it when asked to. */
static char replay_pending(struct fs_req *r, const char *name, bool take)
{
	struct fs_notify *n = r->fs->notify;
	char kind = 0;

	pthread_mutex_lock(&n->lock);
	for (unsigned int i = 0; i < n->nr_records && !kind; i++) {
		struct fs_notify_record *rec = &n->records[i];

		if (rec->done || rec->dir_id != r->h.nodeid || strcmp(rec->name, name) != 0 ||
		    !(replay_is_made(rec->kind) || replay_is_gone(rec->kind)))
			continue;
		kind = rec->kind;
		rec->done = take;
	}
	pthread_mutex_unlock(&n->lock);
	return kind;
}

static int replay_lookup(struct fs_req *r)
{
	struct fs_notify *n = r->fs->notify;
	struct fuse_entry_out *out = fs_answer(r, sizeof(*out));
	const char *name;
	int e = fs_take_last_name(r, 0, &name);
	char kind;

	if (e)
		return e;
	kind = replay_pending(r, name, false);
	if (replay_is_made(kind))
		return -ENOENT;
	if (!replay_is_gone(kind))
		return fs_lookup(r->fs, r->node, name, out);
	pthread_mutex_lock(&n->lock);
	n->next_ghost += 1ULL << 32;
	out->nodeid = n->next_ghost;
	pthread_mutex_unlock(&n->lock);
	return replay_answer_ghost(r, out->nodeid,
				   kind == FS_EVENT_RMDIR ? S_IFDIR | 0700 : S_IFREG | 0600);
}

/* MKNOD, MKDIR, SYMLINK: it is there already, and that is the answer. */
static int replay_make(struct fs_req *r, size_t args_len)
{
	struct fuse_entry_out *out;
	const char *name;
	int e = fs_take_name(r, args_len, &name);

	if (e)
		return e;
	if (!replay_is_made(replay_pending(r, name, true)))
		return -EAGAIN;
	out = fs_answer(r, sizeof(*out));
	return fs_lookup(r->fs, r->node, name, out);
}

static int replay_remove(struct fs_req *r)
{
	const char *name;
	int e = fs_take_last_name(r, 0, &name);

	if (e)
		return e;
	return replay_is_gone(replay_pending(r, name, true)) ? 0 : -EAGAIN;
}

/* For reading, whatever was asked for: nothing is ever written by it. */
static int replay_open(struct fs_req *r)
{
	struct fuse_open_in *in = (struct fuse_open_in *)r->w->in;

	in->flags = O_RDONLY | O_NOATIME;
	in->open_flags = 0;
	return fs_op_open(r);
}

static int replay_one(struct fs_req *r)
{
	switch (r->h.opcode) {
	case FUSE_LOOKUP:
		return replay_lookup(r);
	case FUSE_MKNOD:
		return replay_make(r, sizeof(struct fuse_mknod_in));
	case FUSE_MKDIR:
		return replay_make(r, sizeof(struct fuse_mkdir_in));
	case FUSE_SYMLINK:
		return replay_make(r, 0);
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		return replay_remove(r);
	case FUSE_SETATTR:
		return fs_op_getattr(r);
	case FUSE_OPEN:
		return replay_open(r);
	default:
		return -EPERM;
	}
}

static bool replay_concerns(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_GETATTR:
	case FUSE_STATX:
	case FUSE_READLINK:
	case FUSE_STATFS:
	case FUSE_FLUSH:
	case FUSE_GETXATTR:
	case FUSE_ACCESS:
		return false;
	default:
		return true;
	}
}

static int replay_serve_events(struct fs_req *r)
{
	switch (r->h.opcode) {
	case FUSE_GETATTR:
		return replay_answer_events_attr(r);
	case FUSE_OPEN:
		return replay_open_events(r);
	case FUSE_READ:
		return fs_notify_read(r);
	case FUSE_FLUSH:
		return 0;
	default:
		return -EPERM;
	}
}

bool fs_notify_serve(struct fs_req *r, int *ret)
{
	struct fs_notify *n = r->fs->notify;

	if (r->h.nodeid == FS_EVENTS_ID) {
		*ret = replay_serve_events(r);
		return true;
	}
	if (!r->node && r->h.opcode == FUSE_LOOKUP && r->body_len == sizeof(FS_EVENTS_NAME) &&
	    !memcmp(r->body, FS_EVENTS_NAME, sizeof(FS_EVENTS_NAME))) {
		*ret = n->fan_fd < 0 ? -ENOENT
				     : replay_answer_ghost(r, FS_EVENTS_ID, S_IFREG | 0400);
		return true;
	}
	if (!r->is_reader || !r->node || !replay_concerns(r->h.opcode))
		return false;
	*ret = replay_one(r);
	return true;
}
