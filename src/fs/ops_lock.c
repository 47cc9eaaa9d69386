/*
 * Locks on files of trees that others use, too (SETLK, GETLK). The guest's kernel asks about files whose open said so
 * (FS_OPEN_SHARED_LOCKS), one owner of locks at a time, and never in a way that waits: see
 * guest/kernel/fuse_shared_locks.c.
 *
 * Each owner in the guest (a process, an open file) has an open file description of its own here, so that the host's
 * kernel judges between owners, between VMs and processes of the host, all alike. It is closed with its last lock, as far
 * as that can be told: when all of the file is unlocked, which the guest does at each close().
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "fs_internal.h"

struct fs_locker {
	struct fs_locker *next; /* of the node's; fs.lock */
	uint64_t owner;
	bool is_flock;
	bool is_gone;	   /* fs.lock: nobody finds it any more */
	bool has_locks;	   /* fs.lock: maybe */
	unsigned int refs; /* fs.lock: one for the node's list, one for each operation */
	int fd;		   /* owned */
};

static void fs_locker_put(struct fs *fs, struct fs_locker *l)
{
	bool last;

	fs_lock(fs);
	last = !--l->refs;
	fs_unlock(fs);
	if (!last)
		return;
	close(l->fd);
	fs_budget_give(fs);
	free(l);
}

static struct fs_locker *fs_locker_find_locked(const struct fs_node *node,
					       const struct fs_locker *like)
{
	struct fs_locker *l = node->lockers;

	while (l && (l->owner != like->owner || l->is_flock != like->is_flock))
		l = l->next;
	return l;
}

static void fs_locker_unlink_locked(struct fs_node *node, struct fs_locker *l)
{
	struct fs_locker **p = &node->lockers;

	if (l->is_gone)
		return;
	while (*p != l)
		p = &(*p)->next;
	*p = l->next;
	l->is_gone = true;
	l->refs--; /* the caller has another one */
}

/* For writing if that is possible: an owner's later locks may want it, and cannot move to another description. */
static int fs_locker_open(struct fs *fs, const struct fs_node *node)
{
	int fd = -EROFS;

	if (!fs_export_is_read_only(node->export))
		fd = fs_node_open(fs, node, O_RDWR);
	return fd < 0 ? fs_node_open(fs, node, O_RDONLY | O_NOATIME) : fd;
}

/* Referenced; NULL when there is none. */
static struct fs_locker *fs_locker_find(struct fs *fs, const struct fs_node *node,
					const struct fs_locker *like)
{
	struct fs_locker *l;

	fs_lock(fs);
	l = fs_locker_find_locked(node, like);
	if (l)
		l->refs++;
	fs_unlock(fs);
	return l;
}

/* Referenced, and not in the node's list yet. */
static int fs_locker_new(struct fs *fs, const struct fs_node *node, const struct fs_locker *like,
			 struct fs_locker **ret)
{
	int fd, r = fs_budget_take(fs);

	if (r < 0)
		return r == -ENFILE ? -ENOLCK : r;
	fd = fs_locker_open(fs, node);
	if (fd < 0) {
		fs_budget_give(fs);
		return fd;
	}
	*ret = xcalloc(1, sizeof(**ret));
	**ret = *like;
	(*ret)->refs = 1;
	(*ret)->is_gone = true;
	(*ret)->fd = fd;
	return 0;
}

/* Referenced; found or made. */
static int fs_locker_get(struct fs *fs, struct fs_node *node, const struct fs_locker *like,
			 struct fs_locker **ret)
{
	struct fs_locker *l, *found;
	int r;

	*ret = fs_locker_find(fs, node, like);
	if (*ret)
		return 0;
	r = fs_locker_new(fs, node, like, &l);
	if (r)
		return r;
	fs_lock(fs);
	found = fs_locker_find_locked(node, like);
	if (!found && !node->export->revoked) {
		l->next = node->lockers;
		node->lockers = l;
		l->is_gone = false;
		found = l;
	}
	if (found)
		found->refs++;
	fs_unlock(fs);
	/* It was made twice at once, or too late. Else its first reference is the list's. */
	if (found != l)
		fs_locker_put(fs, l);
	*ret = found;
	return found ? 0 : -ESTALE;
}

/* As fcntl(2) wants it: length 0 is up to the end. */
static int fs_lock_range(const struct fuse_file_lock *lk, struct flock *ret)
{
	if (lk->start > lk->end || lk->end > INT64_MAX ||
	    (lk->type != F_RDLCK && lk->type != F_WRLCK && lk->type != F_UNLCK))
		return -EINVAL;
	*ret = (struct flock){.l_type = (short)lk->type,
			      .l_whence = SEEK_SET,
			      .l_start = (off_t)lk->start,
			      .l_len = lk->end == INT64_MAX ? 0 : (off_t)(lk->end - lk->start + 1)};
	return 0;
}

static int fs_locker_apply(const struct fs_locker *l, struct flock *range)
{
	int r;

	if (l->is_flock)
		r = flock(l->fd, LOCK_NB | (range->l_type == F_RDLCK   ? LOCK_SH
					    : range->l_type == F_WRLCK ? LOCK_EX
								       : LOCK_UN));
	else
		r = fcntl(l->fd, F_OFD_SETLK, range);
	return r < 0 ? -errno : 0;
}

/*
 * After an operation, which may have decided whether there are locks. One that has none (all of the file was unlocked, or
 * the first lock refused) is found no more, unless another thread of its owner's is about to lock something.
 */
enum fs_locker_has { FS_LOCKER_AS_BEFORE, FS_LOCKER_HAS_NONE, FS_LOCKER_HAS_SOME };

static void fs_locker_done(struct fs *fs, struct fs_node *node, struct fs_locker *l,
			   enum fs_locker_has has)
{
	fs_lock(fs);
	if (has != FS_LOCKER_AS_BEFORE)
		l->has_locks = has == FS_LOCKER_HAS_SOME;
	if (!l->has_locks && l->refs == 2)
		fs_locker_unlink_locked(node, l);
	fs_unlock(fs);
	fs_locker_put(fs, l);
}

static int fs_lock_checked(struct fs_req *r, const struct fuse_lk_in *in, struct flock *range)
{
	const struct fs_locker like = {.owner = in->owner,
				       .is_flock = in->lk_flags & FUSE_LK_FLOCK};
	bool everything = like.is_flock || (!range->l_start && !range->l_len);
	enum fs_locker_has has = FS_LOCKER_AS_BEFORE;
	struct fs_locker *l;
	int e = 0;

	if (range->l_type == F_UNLCK)
		l = fs_locker_find(r->fs, r->node, &like);
	else
		e = fs_locker_get(r->fs, r->node, &like, &l);
	if (e || !l)
		return e;
	e = fs_locker_apply(l, range);
	if (!e)
		has = range->l_type == F_UNLCK && everything ? FS_LOCKER_HAS_NONE
							     : FS_LOCKER_HAS_SOME;
	fs_locker_done(r->fs, r->node, l, has);
	return e == -EACCES ? -EAGAIN : e;
}

/* The arguments, of an open file of the node. */
static int fs_lock_take(struct fs_req *r, const struct fuse_lk_in *in, struct flock *range)
{
	struct fs_handle *h;
	int e = fs_lock_range(&in->lk, range);

	if (!e)
		e = fs_file_get(r, in->fh, r->node, &h);
	if (!e)
		fs_handle_put(r->fs, h);
	return e;
}

int fs_op_setlk(struct fs_req *r)
{
	const struct fuse_lk_in *in = fs_args(r);
	struct flock range;
	int e = fs_lock_take(r, in, &range);

	return e ? e : fs_lock_checked(r, in, &range);
}

int fs_op_getlk(struct fs_req *r)
{
	const struct fuse_lk_in *in = fs_args(r);
	const struct fs_locker like = {.owner = in->owner};
	struct fuse_lk_out *out = fs_answer(r, sizeof(*out));
	struct fs_locker *l;
	struct flock range;
	int e = fs_lock_take(r, in, &range);

	if (!e)
		e = fs_locker_get(r->fs, r->node, &like, &l);
	if (e)
		return e;
	if (fcntl(l->fd, F_OFD_GETLK, &range) < 0)
		e = -errno;
	fs_locker_done(r->fs, r->node, l, FS_LOCKER_AS_BEFORE);
	if (e)
		return e;
	/* Whose it is has no number in the guest. */
	out->lk = (struct fuse_file_lock){.type = (uint32_t)range.l_type};
	if (range.l_type != F_UNLCK) {
		out->lk.start = (uint64_t)range.l_start;
		out->lk.end = range.l_len ? (uint64_t)(range.l_start + range.l_len - 1) : INT64_MAX;
	}
	return 0;
}

void fs_lockers_revoke_locked(struct fs *fs, const struct fs_node *node)
{
	for (struct fs_locker *l = node->lockers; l; l = l->next)
		(void)dup3(fs->dead_fd, l->fd, O_CLOEXEC);
}

void fs_lockers_free(struct fs *fs, struct fs_node *node)
{
	while (node->lockers) {
		struct fs_locker *l = node->lockers;

		fs_lock(fs);
		node->lockers = l->next;
		fs_unlock(fs);
		fs_locker_put(fs, l);
	}
}
