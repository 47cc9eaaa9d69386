/*
 * Credentials of the serving thread, for one operation at a time.
 *
 * The guest's kernel has checked permissions already (default_permissions). The server takes on the
 * user's identity only where the result carries it: new files get their owner, group, set-group-id
 * treatment and quota from the creating process. It keeps CAP_DAC_OVERRIDE meanwhile, because the
 * guest knows groups of the user that the server does not, and gives up CAP_FSETID, because with it a
 * file in a set-group-id directory would keep a set-group-id bit that the user must not create.
 *
 * System calls are made directly: the C library would change all threads of the process.
 * A thread that cannot get its own identity back must not serve anybody: it ends the process.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include <linux/capability.h>

#include "fs_internal.h"
#include "log.h"

#define CAP_BIT(cap) (1ULL << (cap))

static int fs_cap_set(uint64_t effective, uint64_t permitted)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {
		{.effective = (uint32_t)effective, .permitted = (uint32_t)permitted},
		{.effective = (uint32_t)(effective >> 32),
		 .permitted = (uint32_t)(permitted >> 32)},
	};

	return syscall(SYS_capset, &h, d) < 0 ? -errno : 0;
}

int fs_cred_init(struct fs_worker *w)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {0};

	if (syscall(SYS_capget, &h, d) < 0)
		return -errno;
	w->caps = d[0].permitted | (uint64_t)d[1].permitted << 32;
	w->privileged =
		(w->caps & CAP_BIT(CAP_SETUID)) && (w->caps & CAP_BIT(CAP_SETGID)) && !geteuid();
	w->has_devices = w->caps & CAP_BIT(CAP_MKNOD);
	/* Root's own groups must not give any user more than it has. */
	if (w->privileged && syscall(SYS_setgroups, 0, NULL) < 0)
		return -errno;
	return 0;
}

static HARPOON_NORETURN void fs_cred_lost(const char *what)
{
	log_err(FS_COMP, "cannot restore %s after serving a request: %s", what, strerror(errno));
	abort();
}

void fs_cred_leave(struct fs_req *r, const struct fs_cred *c)
{
	int saved = errno;

	/* Becoming root again also makes the permitted capabilities effective. */
	if (c->ids && syscall(SYS_setresuid, -1, 0, -1) < 0)
		fs_cred_lost("the user id");
	if (c->ids && syscall(SYS_setresgid, -1, 0, -1) < 0)
		fs_cred_lost("the group id");
	if (c->group && syscall(SYS_setresgid, -1, 0, -1) < 0)
		fs_cred_lost("the group id");
	if (c->groups && syscall(SYS_setgroups, 0, NULL) < 0)
		fs_cred_lost("the groups");
	if (c->fsetid && fs_cap_set(r->w->caps, r->w->caps) < 0)
		fs_cred_lost("the capabilities");
	errno = saved;
}

int fs_cred_enter_user(struct fs_req *r, struct fs_cred *ret)
{
	uint64_t keep = r->w->caps & (CAP_BIT(CAP_DAC_OVERRIDE) | CAP_BIT(CAP_MKNOD));
	struct fs_cred c = {0};
	int e = 0;

	*ret = c;
	if (r->h.uid == 0 && r->h.gid == 0)
		return 0;
	if (!r->w->privileged)
		return r->h.uid == geteuid() && r->h.gid == getegid() ? 0 : -EPERM;
	if (r->h.uid == (uint32_t)-1 || r->h.gid == (uint32_t)-1)
		return -EINVAL;
	if (r->has_group) {
		if (syscall(SYS_setgroups, 1, &r->group) < 0)
			return -errno;
		c.groups = true;
	}
	c.ids = true;
	if (syscall(SYS_setresgid, -1, r->h.gid, -1) < 0 ||
	    syscall(SYS_setresuid, -1, r->h.uid, -1) < 0)
		e = -errno;
	/* Leaving user id 0 has cleared the effective set. */
	if (!e && r->h.uid)
		e = fs_cap_set(keep, r->w->caps);
	if (e) {
		fs_cred_leave(r, &c);
		return e;
	}
	*ret = c;
	return 0;
}

int fs_cred_enter_no_fsetid(struct fs_req *r, struct fs_cred *ret)
{
	int e;

	*ret = (struct fs_cred){0};
	if (!r->w->privileged)
		return 0;
	e = fs_cap_set(r->w->caps & ~CAP_BIT(CAP_FSETID), r->w->caps);
	if (e)
		return e;
	ret->fsetid = true;
	return 0;
}

int fs_cred_enter_writer(struct fs_req *r, const struct fs_node *node, struct fs_cred *ret)
{
	struct statx st;
	int e;

	*ret = (struct fs_cred){0};
	e = fs_stat(node->fd, &st);
	if (e < 0 || !(st.stx_mask & STATX_MODE) || !(st.stx_mode & (S_ISUID | S_ISGID)))
		return e;
	e = fs_cred_enter_no_fsetid(r, ret);
	if (e || !r->w->privileged || !(st.stx_mode & S_ISGID) || (st.stx_mode & S_IXGRP) ||
	    r->h.gid == (uint32_t)-1)
		return e;
	/* Only a member of the group may keep the bit of a file that the group cannot execute. */
	if (syscall(SYS_setresgid, -1, r->h.gid, -1) < 0) {
		e = -errno;
		fs_cred_leave(r, ret);
		return e;
	}
	ret->group = true;
	return 0;
}

void fs_umask(struct fs_worker *w, mode_t mask)
{
	if (w->umask == mask)
		return;
	umask(mask);
	w->umask = mask;
}
