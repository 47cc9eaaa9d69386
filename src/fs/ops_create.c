/* Operations that change directories. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <linux/fs.h>

#include "fs_internal.h"

/* Puts on the user's identity and umask for one creating call. */
static int fs_create_begin(struct fs_req *r, uint32_t umask_in, struct fs_cred *cred)
{
	if (r->node->type != S_IFDIR)
		return -ENOTDIR;
	/* Unless told otherwise, the guest has applied its umask to the mode already. */
	fs_umask(r->w, r->dont_mask ? umask_in & 0777 : 0);
	return fs_cred_enter_user(r, cred);
}

/* Answers with the entry that now has this name. */
static int fs_answer_entry(struct fs_req *r, const char *name)
{
	struct fuse_entry_out *out = fs_answer(r, sizeof(*out));

	return fs_lookup(r->fs, r->node, name, out);
}

int fs_op_mkdir(struct fs_req *r)
{
	const struct fuse_mkdir_in *in = fs_args(r);
	struct fs_cred cred;
	const char *name;
	int e = fs_take_last_name(r, sizeof(*in), &name);

	if (!e)
		e = fs_create_begin(r, in->umask, &cred);
	if (e)
		return e;
	if (mkdirat(r->node->fd, name, in->mode & 07777) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	return e ? e : fs_answer_entry(r, name);
}

/*
 * Fifos and sockets are harmless names. A device node is a key to a driver wherever the tree is
 * mounted without nodev, so it takes the export's permission; the whiteout 0:0 opens nothing.
 */
static int fs_check_mknod(const struct fs_req *r, mode_t type, uint32_t rdev)
{
	switch (type) {
	case 0:
	case S_IFREG:
	case S_IFIFO:
	case S_IFSOCK:
		return 0;
	case S_IFCHR:
		if (!rdev)
			return 0;
		__attribute__((fallthrough));
	case S_IFBLK:
		return (r->node->export->flags & FS_CONTROL_ALLOW_DEVICES) && r->w->has_devices
			       ? 0
			       : -EPERM;
	default:
		return -EINVAL;
	}
}

int fs_op_mknod(struct fs_req *r)
{
	const struct fuse_mknod_in *in = fs_args(r);
	dev_t dev =
		makedev((in->rdev & 0xfff00) >> 8, (in->rdev & 0xff) | (in->rdev >> 12 & 0xfff00));
	struct fs_cred cred;
	const char *name;
	int e = fs_take_last_name(r, sizeof(*in), &name);

	if (!e)
		e = fs_check_mknod(r, in->mode & S_IFMT, in->rdev);
	if (!e)
		e = fs_create_begin(r, in->umask, &cred);
	if (e)
		return e;
	if (mknodat(r->node->fd, name, in->mode & (S_IFMT | 07777), dev) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	return e ? e : fs_answer_entry(r, name);
}

int fs_op_symlink(struct fs_req *r)
{
	const char *name = NULL, *target = NULL;
	struct fs_cred cred;
	int e = fs_take_name(r, 0, &name);

	if (!e)
		e = fs_take_last_string(r, 0, &target);
	if (!e)
		e = fs_create_begin(r, 0, &cred);
	if (e)
		return e;
	if (symlinkat(target, r->node->fd, name) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	return e ? e : fs_answer_entry(r, name);
}

int fs_op_unlink(struct fs_req *r)
{
	const char *name;
	int e = fs_take_last_name(r, 0, &name);

	if (e)
		return e;
	return unlinkat(r->node->fd, name, 0) < 0 ? -errno : 0;
}

int fs_op_rmdir(struct fs_req *r)
{
	const char *name;
	int e = fs_take_last_name(r, 0, &name);

	if (e)
		return e;
	return unlinkat(r->node->fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

/* A second node of a request, which must lie in the same export as the first. */
static int fs_other_node(struct fs_req *r, uint64_t id, struct fs_node **ret)
{
	int e = fs_node_get(r->fs, id, ret);

	if (e)
		return e;
	if (*ret && (*ret)->export == r->node->export)
		return 0;
	fs_node_put(r->fs, *ret);
	*ret = NULL;
	return -EXDEV;
}

static int fs_rename(struct fs_req *r, size_t args_len, uint64_t newdir, uint32_t flags)
{
	const char *from = NULL, *to = NULL;
	struct fs_cred cred = {0};
	struct fs_node *dir = NULL;
	int e = fs_take_name(r, args_len, &from);

	if (!e)
		e = fs_take_last_name(r, args_len, &to);
	if (!e && (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)))
		e = -EINVAL;
	if (!e)
		e = fs_other_node(r, newdir, &dir);
	if (e)
		return e;
	if (flags & RENAME_WHITEOUT)
		e = fs_cred_enter_user(r, &cred);
	/* Directly: the C library takes another system call when there are no flags. */
	if (!e && syscall(SYS_renameat2, r->node->fd, from, dir->fd, to, flags) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	fs_node_put(r->fs, dir);
	return e;
}

int fs_op_rename(struct fs_req *r)
{
	const struct fuse_rename_in *in = fs_args(r);

	return fs_rename(r, sizeof(*in), in->newdir, 0);
}

int fs_op_rename2(struct fs_req *r)
{
	const struct fuse_rename2_in *in = fs_args(r);

	return fs_rename(r, sizeof(*in), in->newdir, in->flags);
}

int fs_op_link(struct fs_req *r)
{
	const struct fuse_link_in *in = fs_args(r);
	struct fs_node *old = NULL;
	const char *name;
	int e = fs_take_last_name(r, sizeof(*in), &name);

	if (!e)
		e = fs_other_node(r, in->oldnodeid, &old);
	if (e)
		return e;
	/* By way of /proc: linking the descriptor itself would take CAP_DAC_READ_SEARCH. */
	if (linkat(r->fs->proc_fd, fs_proc_name(old->fd).s, r->node->fd, name, AT_SYMLINK_FOLLOW) <
	    0)
		e = -errno;
	fs_node_put(r->fs, old);
	return e ? e : fs_answer_entry(r, name);
}

/* Answer of CREATE and TMPFILE: entry and open file. fd is taken over. */
static int fs_answer_created(struct fs_req *r, int fd_taken, int flags)
{
	cleanup_close int fd = fd_taken;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} *out = fs_answer(r, sizeof(*out));
	struct fs_node *node;
	uint64_t fh;
	int e, path_fd;

	/* From the open file, not from its name, which may be another file's by now. */
	path_fd = openat(r->fs->proc_fd, fs_proc_name(fd).s, O_PATH | O_CLOEXEC);
	if (path_fd < 0)
		return -errno;
	e = fs_entry_of_fd(r->fs, r->node->export, path_fd, &out->entry, &node);
	if (e)
		return e;
	e = fs_handle_new(r->fs, node, take_fd(&fd), &fh);
	if (e < 0) {
		fs_node_forget(r->fs, node->id, 1);
	} else {
		fs_fill_open(&out->open, node->export, fh, flags, false);
		fs_handle_tell(r, fh, node);
	}
	fs_node_put(r->fs, node);
	return e;
}

/* CREATE found the name taken: opens what is there, as OPEN would. */
static int fs_create_existing(struct fs_req *r, const char *name, int flags, uint32_t open_flags)
{
	struct fuse_entry_out entry;
	struct fs_cred cred = {0};
	struct fs_node *node;
	int fd, e = fs_lookup(r->fs, r->node, name, &entry);

	if (e)
		return e;
	e = fs_node_get(r->fs, entry.nodeid, &node);
	if (e)
		return e;
	if (open_flags & FUSE_OPEN_KILL_SUIDGID)
		e = fs_cred_enter_writer(r, node, &cred);
	fd = e ? e : fs_node_open(r->fs, node, flags);
	fs_cred_leave(r, &cred);
	/* fs_answer_created() counts a look-up of its own. */
	fs_node_forget(r->fs, node->id, 1);
	fs_node_put(r->fs, node);
	return fd < 0 ? fd : fs_answer_created(r, fd, flags);
}

int fs_op_create(struct fs_req *r)
{
	const struct fuse_create_in *in = fs_args(r);
	int flags = fs_open_flags(r->node->export, in->flags), fd, e;
	uint32_t open_flags = in->open_flags;
	bool exclusive = in->flags & O_EXCL;
	struct fs_cred cred;
	const char *name;

	if (flags < 0)
		return flags;
	e = fs_take_last_name(r, sizeof(*in), &name);
	if (!e)
		e = fs_create_begin(r, in->umask, &cred);
	if (e)
		return e;
	fd = openat(r->node->fd, name, flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY,
		    in->mode & 07777);
	e = fd < 0 ? -errno : 0;
	fs_cred_leave(r, &cred);
	if (e == -EEXIST && !exclusive)
		return fs_create_existing(r, name, flags, open_flags);
	return e ? e : fs_answer_created(r, fd, flags);
}

int fs_op_tmpfile(struct fs_req *r)
{
	const struct fuse_create_in *in = fs_args(r);
	int flags = fs_open_flags(r->node->export, in->flags), fd, e;
	struct fs_cred cred;

	if (flags < 0)
		return flags;
	e = fs_create_begin(r, in->umask, &cred);
	if (e)
		return e;
	fd = openat(r->fs->proc_fd, fs_proc_name(r->node->fd).s,
		    (flags & ~O_TRUNC) | O_TMPFILE | (in->flags & O_EXCL) | O_CLOEXEC,
		    in->mode & 07777);
	e = fd < 0 ? -errno : 0;
	fs_cred_leave(r, &cred);
	return e ? e : fs_answer_created(r, fd, flags);
}
