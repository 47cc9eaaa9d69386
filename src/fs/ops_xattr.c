/*
 * Extended attributes. What passes:
 *   user.*                      as it is
 *   security.capability         file capabilities
 *   system.posix_acl_access, _default   access control lists
 * Everything else is the host's own business (trusted.* of overlayfs, labels of its security modules):
 * not listed, not found, not settable.
 *
 * A node's descriptor is O_PATH, for which there are no f*xattr() calls; the working directory of
 * every worker is /proc/self/fd, where the descriptor's number is a path to the file.
 */
#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

#include "fs_internal.h"

static bool fs_xattr_is_acl(const char *name)
{
	return !strcmp(name, "system.posix_acl_access") ||
	       !strcmp(name, "system.posix_acl_default");
}

static bool fs_xattr_is_allowed(const char *name)
{
	return (!strncmp(name, "user.", 5) && name[5]) || !strcmp(name, "security.capability") ||
	       fs_xattr_is_acl(name);
}

/* How a name that does not pass is answered, so that it looks as it does on a file system without it. */
static int fs_xattr_refuse(const char *name, bool get)
{
	if (!strcmp(name, "user."))
		return -EINVAL;
	if (!strncmp(name, "trusted.", 8))
		return get ? -ENODATA : -EPERM;
	return get && !strncmp(name, "security.", 9) ? -ENODATA : -EOPNOTSUPP;
}

static int fs_take_xattr_name(struct fs_req *r, size_t args_len, const char **ret)
{
	int e = fs_take_string(r, args_len, ret);

	if (e < 0)
		return e;
	return strlen(*ret) > XATTR_NAME_MAX || !**ret ? -ERANGE : 0;
}

/* Answers a value or list of `len` bytes in w->scratch, or its length when `size` is zero. */
static int fs_answer_xattr(struct fs_req *r, uint32_t size, size_t len)
{
	if (!size) {
		struct fuse_getxattr_out *out = fs_answer(r, sizeof(*out));

		out->size = (uint32_t)len;
		return 0;
	}
	if (len > size)
		return -ERANGE;
	memcpy(r->w->out, r->w->scratch, len);
	r->out_len = len;
	return 0;
}

int fs_op_getxattr(struct fs_req *r)
{
	const struct fuse_getxattr_in *in = fs_args(r);
	const char *name;
	ssize_t n;
	int e = fs_take_xattr_name(r, sizeof(*in), &name);

	if (!e && r->next_name != r->body_len)
		e = -EINVAL;
	if (e < 0)
		return e;
	if (!r->node)
		return -ENODATA;
	if (!fs_xattr_is_allowed(name))
		return fs_xattr_refuse(name, true);
	n = getxattr(fs_proc_name(r->node->fd).s, name, r->w->scratch, sizeof(r->w->scratch));
	if (n < 0) {
		/* To the guest, a file system without lists is one where no file has any. */
		if (errno == EOPNOTSUPP && fs_xattr_is_acl(name))
			return -ENODATA;
		return -errno;
	}
	return fs_answer_xattr(r, in->size, (size_t)n);
}

int fs_op_listxattr(struct fs_req *r)
{
	const struct fuse_getxattr_in *in = fs_args(r);
	char *list = (char *)r->w->scratch;
	size_t len = 0;
	ssize_t n = 0;

	if (r->node)
		n = listxattr(fs_proc_name(r->node->fd).s, list, sizeof(r->w->scratch));
	if (n < 0)
		return -errno;
	for (ssize_t at = 0; at < n;) {
		size_t one = strnlen(list + at, (size_t)(n - at)) + 1;

		if (fs_xattr_is_allowed(list + at)) {
			memmove(list + len, list + at, one);
			len += one;
		}
		at += (ssize_t)one;
	}
	return fs_answer_xattr(r, in->size, len);
}

int fs_op_setxattr(struct fs_req *r)
{
	const struct fuse_setxattr_in *in = fs_args(r);
	size_t args_len = r->setxattr_ext ? sizeof(*in) : FUSE_COMPAT_SETXATTR_IN_SIZE;
	struct fs_cred cred = {0};
	const char *name;
	int e;

	if (r->body_len < args_len)
		return -EINVAL;
	e = fs_take_xattr_name(r, args_len, &name);
	if (e < 0)
		return e;
	if (in->size > FS_XATTR_MAX)
		return -E2BIG;
	if (in->size != r->body_len - r->next_name)
		return -EINVAL;
	if (!fs_xattr_is_allowed(name))
		return fs_xattr_refuse(name, false);
	if (r->setxattr_ext && (in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID))
		e = fs_cred_enter_no_fsetid(r, &cred);
	if (!e && setxattr(fs_proc_name(r->node->fd).s, name, r->body + r->next_name, in->size,
			   (int)in->flags) < 0)
		e = -errno;
	fs_cred_leave(r, &cred);
	return e;
}

int fs_op_removexattr(struct fs_req *r)
{
	const char *name;
	int e = fs_take_xattr_name(r, 0, &name);

	if (!e && r->next_name != r->body_len)
		e = -EINVAL;
	if (e < 0)
		return e;
	if (!fs_xattr_is_allowed(name))
		return fs_xattr_refuse(name, false);
	return removexattr(fs_proc_name(r->node->fd).s, name) < 0 ? -errno : 0;
}
