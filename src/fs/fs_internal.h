/*
 * What the parts of the FUSE server share: tables (node.c), the request being served (dispatch.c) and
 * the operations. See fs.h for threads.
 *
 * References: a node lives while it has `refs`: one for "the guest knows it" (nlookup > 0), one for
 * each open file, one for each operation in progress. nlookup is what the guest counts and may
 * miscount; no memory depends on it alone.
 */
#pragma once

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "fs.h"
#include "fs_control.h"
#include "fuse_compat.h"
#include "list.h"

#define FS_COMP "fs"

/* Longest extended attribute value or list that Linux has, and room for structures and names. */
#define FS_XATTR_MAX 65536
#define FS_IN_MAX (FS_XATTR_MAX + FS_HEADROOM + 8192)
#define FS_OUT_MAX (FS_XATTR_MAX + FS_HEADROOM)

/* Integer handles for objects, as the guest holds them: slot number and generation. */
struct fs_slot {
	void *ptr; /* NULL = free */
	uint32_t generation;
	uint32_t next_free;
};

struct fs_slots {
	struct fs_slot *slots; /* owned */
	uint32_t nr, cap;
	uint32_t first_free; /* FS_SLOT_NONE = none */
};

#define FS_SLOT_NONE UINT32_MAX

/* 0 or -ENOMEM/-ENFILE; *ret_id is never 0 or FUSE_ROOT_ID. */
int fs_slots_add(struct fs_slots *t, void *ptr, uint64_t *ret_id);
void *fs_slots_get(const struct fs_slots *t, uint64_t id);
void fs_slots_remove(struct fs_slots *t, uint64_t id);
void fs_slots_done(struct fs_slots *t);
/* Puts an object where a saved number says. -EPROTO: taken, or at least `limit` slots away. */
int fs_slots_put(struct fs_slots *t, uint64_t id, void *ptr, uint64_t limit);
/* After the last of these: numbers given from now on were never given before. */
void fs_slots_restored(struct fs_slots *t);

/* One exported tree. All but the constants under fs.lock. */
struct fs_export {
	struct list link; /* in fs.exports while the guest can look it up */
	char name[FS_CONTROL_NAME_MAX];
	uint32_t flags; /* FS_CONTROL_*; constant */
	uint64_t id;	/* constant, never reused: also the readdir cookie */
	int fd;		/* O_PATH; owned; constant */
	mode_t type;	/* S_IFMT bits; constant */
	uint64_t ino;	/* as the guest sees it; constant */
	bool flush;	/* closing can report an error (network file systems); constant */
	unsigned int refs;
	bool revoked;
};

/* One file the guest has looked up. Constant but for the fields marked. */
struct fs_node {
	struct fs_node *hash_next; /* fs.lock */
	uint64_t id;
	uint64_t nlookup;  /* fs.lock */
	unsigned int refs; /* fs.lock */
	int fd;		   /* O_PATH; owned */
	mode_t type;	   /* S_IFMT bits */
	dev_t dev;
	uint64_t ino;
	uint64_t mnt_id;
	uint64_t ino_tag; /* makes inode numbers of several devices distinct for the guest */
	/* Of an open that the guest's cached pages are surely not older than; fs.lock. 0 = of none. */
	struct timespec cached_ctime;
	struct fs_export *export;  /* one reference */
	struct fs_locker *lockers; /* owned (ops_lock.c); fs.lock */
};

/* One open file or directory. */
struct fs_handle {
	uint64_t id;
	unsigned int refs;    /* fs.lock: one for the guest, one for each operation */
	int fd;		      /* owned; -1 = the root directory */
	int flags;	      /* as opened */
	struct fs_node *node; /* one reference; NULL = the root directory */
	pthread_mutex_t lock; /* directories: fd's position and `pos` */
	off_t pos;
};

struct fs_notify;

struct fs {
	struct fs_notify *notify; /* owned; constant */
	bool can_map;		  /* fs_offer_mappings(); constant once there are requests */
	int proc_fd;
	uint64_t max_fds;
	int dead_fd;	      /* owned: what descriptors of a revoked export become */
	pthread_mutex_t lock; /* everything below */
	uint64_t nr_fds;      /* held for the guest */
	struct list exports;
	struct list workers;
	int (*revoke_hook)(void *ctx, uint64_t export_id); /* constant once there are requests */
	void *revoke_ctx;
	pthread_cond_t request_done; /* signalled while `nr_waiting` */
	unsigned int nr_waiting;
	uint64_t next_export_id;
	struct fs_slots node_slots;
	struct fs_slots handle_slots;
	struct fs_node **hash; /* owned; hash_size is a power of two */
	size_t hash_size;
	size_t nr_nodes;
	dev_t *devs; /* owned: devices seen; the index is the tag of their inode numbers */
	size_t nr_devs;
	/* The session, from INIT to DESTROY. */
	uint32_t events_reader; /* the guest's process that reads of changes by others; 0 = none */
	bool ready;
	bool dont_mask;	     /* the guest leaves the umask to us (FUSE_DONT_MASK) */
	bool setxattr_ext;   /* SETXATTR has its long form (FUSE_SETXATTR_EXT) */
	bool maps;	     /* large files of read-only exports are mapped (FUSE_HAS_INODE_DAX) */
	char state_why[256]; /* the thread that saves or restores */
};

struct fs_worker {
	struct fs *fs;
	struct list link; /* in fs.workers */
	uint64_t serial;  /* fs.lock: requests begun and ended; odd = serving one */
	uint64_t awaited; /* fs.lock: the serial whose end a revocation waits for; 0 = none */
	bool parked;	 /* fs.lock: waits for something other than the host; nobody waits for it */
	bool privileged; /* may change credentials: always, save in some tests */
	bool has_devices;	  /* CAP_MKNOD */
	uint64_t caps;		  /* permitted capabilities */
	mode_t umask;		  /* of this thread, now */
	struct fs_handle *opened; /* referenced: by the request being served; NULL = none */
	struct fs_opened lent;	  /* by the same, a file to be mapped: fd owned, -1 = none */
	struct iovec iov[IOV_MAX];
	uint8_t in[FS_IN_MAX] __attribute__((aligned(8)));
	uint8_t out[FS_OUT_MAX] __attribute__((aligned(8)));
	uint8_t scratch[FS_XATTR_MAX] __attribute__((aligned(8)));
};

/* The request being served. Lives on the worker's stack. */
struct fs_req {
	struct fs *fs;
	struct fs_worker *w;
	struct fuse_in_header h;
	const uint8_t *body; /* w->in behind the header: the arguments, copied once */
	size_t body_len;     /* without extensions */
	const struct iovec *req;
	unsigned int nr_req;
	const struct iovec *reply;
	unsigned int nr_reply;
	size_t reply_room;    /* bytes for the body of the answer */
	struct fs_node *node; /* of h.nodeid, referenced; NULL = the root directory */
	size_t out_len;	      /* bytes of the answer in w->out */
	size_t direct_len;    /* bytes READ has put into reply behind the header itself */
	size_t next_name;     /* offset in body of the next name to take */
	bool dont_mask;	      /* of the session */
	bool setxattr_ext;
	bool maps;
	bool is_reader; /* it comes from the process that replays changes by others */
	bool has_group; /* a supplementary group came with the request */
	gid_t group;
};

/* node.c */
void fs_lock(struct fs *fs);
void fs_unlock(struct fs *fs);
/* Referenced node by the guest's number; -ESTALE. FUSE_ROOT_ID gives NULL and 0. */
int fs_node_get(struct fs *fs, uint64_t id, struct fs_node **ret);
void fs_node_put(struct fs *fs, struct fs_node *node);
/*
 * Finds or makes the node of an O_PATH descriptor (taken over in any case) and counts one look-up.
 * Fills *ret_attr. The reference belongs to the caller.
 */
int fs_node_enter(struct fs *fs, struct fs_export *export, int fd, struct fs_node **ret,
		  struct statx *ret_attr);
void fs_node_forget(struct fs *fs, uint64_t id, uint64_t nlookup);
/* A node of a saved session: a copy of *n, whose fd is taken over in any case. It may have no reference yet. */
int fs_node_restore(struct fs *fs, const struct fs_node *n);
/* Ends nodes without any reference; were there some? */
bool fs_node_drop_strays(struct fs *fs);
/* By number, borrowed, while nobody else is there. */
struct fs_node *fs_node_find(struct fs *fs, uint64_t id);
int fs_stat(int fd, struct statx *ret);
/*
 * Makes every descriptor of an export refer to nothing, in place: numbers stay valid, so operations in
 * progress need not be waited for; they fail, or have ended with the file they began with.
 */
void fs_revoke_locked(struct fs *fs, struct fs_export *export);
/*
 * Waits until every request has ended that others were serving when this was called: 0, or -EBUSY after
 * FS_QUIESCE_MS. Called and returns with the lock held.
 */
int fs_quiesce_locked(struct fs *fs);

/* DESTROY: forgets all nodes and files. Operations in progress keep theirs until they end. */
void fs_forget_all(struct fs *fs);

/* handle.c: like nodes. fd is taken over in any case. */
int fs_handle_new(struct fs *fs, struct fs_node *node, int fd, uint64_t *ret_id);
/* The handle of a regular file that the request has just made, for fs_worker_begin(). */
void fs_handle_tell(struct fs_req *r, uint64_t id, struct fs_node *node);
int fs_handle_get(struct fs *fs, uint64_t id, const struct fs_node *node, struct fs_handle **ret);
void fs_handle_put(struct fs *fs, struct fs_handle *h);
/* A handle of a saved session. fd is taken over in any case. */
int fs_handle_restore(struct fs *fs, struct fs_node *node, int fd, uint64_t id, off_t pos);
/* By the node's number: a node that was forgotten or revoked meanwhile still lets go of its files. */
void fs_handle_release(struct fs *fs, uint64_t id, uint64_t node_id);

/* export.c: referenced; NULL when there is none (with a number above `after`). */
struct fs_export *fs_export_next(struct fs *fs, uint64_t after);
struct fs_export *fs_export_get(struct fs *fs, const char *name);
void fs_export_put(struct fs *fs, struct fs_export *e);

static inline void fs_export_unref_locked(struct fs_export *e)
{
	if (--e->refs)
		return;
	close(e->fd);
	free(e);
}

/* One descriptor of the guest's budget: 0 or -ENFILE. */
int fs_budget_take(struct fs *fs);
void fs_budget_give(struct fs *fs);

/* A file name in /proc/self/fd. */
struct fs_proc_name {
	char s[12];
};
struct fs_proc_name fs_proc_name(int fd);

/* Opens a node's file anew. Only regular files and directories ever are: -ENXIO otherwise. */
int fs_node_open(struct fs *fs, const struct fs_node *node, int flags);

/* cred.c: per-thread identity. A scope that cannot be left again ends the process. */
struct fs_cred {
	bool ids;
	bool group;
	bool groups;
	bool fsetid;
};
/* Acts as the request's user for an operation that creates something. */
int fs_cred_enter_user(struct fs_req *r, struct fs_cred *ret);
/* Acts without CAP_FSETID: the kernel then clears set-user-id and set-group-id bits. */
int fs_cred_enter_no_fsetid(struct fs_req *r, struct fs_cred *ret);
/* The same for a call that changes the content of a node's file, as a member of the user's group. */
int fs_cred_enter_writer(struct fs_req *r, const struct fs_node *node, struct fs_cred *ret);
void fs_cred_leave(struct fs_req *r, const struct fs_cred *c);
int fs_cred_init(struct fs_worker *w);
void fs_umask(struct fs_worker *w, mode_t mask);

/* dispatch.c, for operations */
/* The request holds nothing and may last: a revocation does not wait for it meanwhile. */
void fs_worker_park(struct fs_worker *w, bool parked);
/* The fixed arguments at the start of the body; the table has checked that they are there. */
static inline const void *fs_args(const struct fs_req *r)
{
	return r->body;
}
/*
 * The next name in the body: a single path component (-EINVAL), or any string for fs_take_string().
 * Nothing may follow the last one, so a NUL inside a name is noticed.
 */
int fs_take_name(struct fs_req *r, size_t args_len, const char **ret);
int fs_take_string(struct fs_req *r, size_t args_len, const char **ret);
int fs_take_last_name(struct fs_req *r, size_t args_len, const char **ret);
int fs_take_last_string(struct fs_req *r, size_t args_len, const char **ret);
bool fs_name_is_valid(const char *name);
/* The body of the answer: len zeroed bytes to fill in. */
void *fs_answer(struct fs_req *r, size_t len);
static inline bool fs_export_is_read_only(const struct fs_export *e)
{
	return e->flags & FS_CONTROL_READ_ONLY;
}

/* ops_attr.c */
void fs_fill_attr(struct fuse_attr *a, const struct statx *st, uint64_t ino_tag);
void fs_fill_entry(struct fuse_entry_out *e, const struct fs_node *node, const struct statx *st);
/* Looks up name below a directory node (or the root) and counts one look-up. */
int fs_lookup(struct fs *fs, struct fs_node *dir, const char *name, struct fuse_entry_out *ret);
/* Seconds the guest may keep what it learns of a node. */
uint64_t fs_timeout(const struct fs_export *e);
#define FS_ROOT_INO 1

/* Fills the answer's entry from an O_PATH descriptor (taken over) of a new or found file. */
int fs_entry_of_fd(struct fs *fs, struct fs_export *export, int fd, struct fuse_entry_out *ret,
		   struct fs_node **ret_node);
void fs_fill_open(struct fuse_open_out *o, const struct fs_export *e, uint64_t fh, int flags,
		  bool dir);
/* ops_file.c: the handle of a regular file, referenced. -EBADF */
int fs_file_get(struct fs_req *r, uint64_t fh, const struct fs_node *node, struct fs_handle **ret);
/* What of the guest's open flags is passed on. -EINVAL, -EROFS. */
int fs_open_flags(const struct fs_export *e, uint32_t guest_flags);

/* ops_lock.c */
void fs_lockers_revoke_locked(struct fs *fs, const struct fs_node *node);
/* The node is nobody's any more. */
void fs_lockers_free(struct fs *fs, struct fs_node *node);

/* ops_map.c: what fuse_attr.flags says of a node's file. */
uint32_t fs_map_flags(struct fs *fs, const struct fs_node *node, const struct statx *st);

int fs_op_lookup(struct fs_req *r);
int fs_op_getattr(struct fs_req *r);
int fs_op_setattr(struct fs_req *r);
int fs_op_statx(struct fs_req *r);
int fs_op_statfs(struct fs_req *r);
int fs_op_readlink(struct fs_req *r);
int fs_op_symlink(struct fs_req *r);
int fs_op_mknod(struct fs_req *r);
int fs_op_mkdir(struct fs_req *r);
int fs_op_unlink(struct fs_req *r);
int fs_op_rmdir(struct fs_req *r);
int fs_op_rename(struct fs_req *r);
int fs_op_rename2(struct fs_req *r);
int fs_op_link(struct fs_req *r);
int fs_op_create(struct fs_req *r);
int fs_op_tmpfile(struct fs_req *r);
int fs_op_open(struct fs_req *r);
int fs_op_read(struct fs_req *r);
int fs_op_write(struct fs_req *r);
int fs_op_release(struct fs_req *r);
int fs_op_flush(struct fs_req *r);
int fs_op_fsync(struct fs_req *r);
int fs_op_fallocate(struct fs_req *r);
int fs_op_lseek(struct fs_req *r);
int fs_op_copy_file_range(struct fs_req *r);
int fs_op_syncfs(struct fs_req *r);
int fs_op_setupmapping(struct fs_req *r);
int fs_op_setlk(struct fs_req *r);
int fs_op_getlk(struct fs_req *r);
int fs_op_opendir(struct fs_req *r);
int fs_op_readdir(struct fs_req *r);
int fs_op_readdirplus(struct fs_req *r);
int fs_op_setxattr(struct fs_req *r);
int fs_op_getxattr(struct fs_req *r);
int fs_op_listxattr(struct fs_req *r);
int fs_op_removexattr(struct fs_req *r);
