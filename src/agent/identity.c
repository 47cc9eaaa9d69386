/*
 * Identity of a process; see identity.h.
 *
 * Raw system calls for ids and capabilities: C libraries forward id changes to all threads by signals,
 * which a forked child of a single-threaded program neither needs nor wants.
 *
 * Without no_new_privs, loading a filter takes CAP_SYS_ADMIN. It is kept from identity_apply() to
 * identity_seal() when the process would not have it, so that the filter meets capset and execve only.
 */
#include "identity.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define IDENTITY_CAPS_MAX 64

struct identity_caps {
	uint64_t effective, permitted, inheritable;
};

int identity_set_rlimits(const AGENT_PB(Process) * p, struct err *err)
{
	for (size_t i = 0; i < p->n_rlimits; i++) {
		struct rlimit l = {.rlim_cur = p->rlimits[i]->soft,
				   .rlim_max = p->rlimits[i]->hard};

		if (setrlimit((int)p->rlimits[i]->resource, &l))
			return err_set(err, -errno, "set rlimit %u to %llu:%llu",
				       p->rlimits[i]->resource,
				       (unsigned long long)p->rlimits[i]->soft,
				       (unsigned long long)p->rlimits[i]->hard);
	}
	return 0;
}

/* What the child holds: in a guest everything the kernel knows. Nothing else can be handed on. */
static uint64_t identity_held_caps(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};

	if (syscall(SYS_capget, &head, data))
		return 0;
	return data[0].permitted | (uint64_t)data[1].permitted << 32;
}

static int identity_capset(const struct identity_caps *c, struct err *err)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++)
		data[i] = (struct __user_cap_data_struct){
			.effective = (uint32_t)(c->effective >> (32 * i)),
			.permitted = (uint32_t)(c->permitted >> (32 * i)),
			.inheritable = (uint32_t)(c->inheritable >> (32 * i)),
		};
	if (syscall(SYS_capset, &head, data))
		return err_set(err, -errno, "set capabilities");
	return 0;
}

static int identity_drop_bounding(uint64_t keep, struct err *err)
{
	for (unsigned int c = 0; c < IDENTITY_CAPS_MAX; c++) {
		/* The first number that the kernel does not know ends the list. */
		if (prctl(PR_CAPBSET_READ, c, 0, 0, 0) < 0)
			break;
		if (!(keep >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0))
			return err_set(err, -errno, "drop capability %u", c);
	}
	return 0;
}

static int identity_raise_ambient(uint64_t ambient, struct err *err)
{
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return err_set(err, -errno, "clear ambient capabilities");
	for (unsigned int c = 0; c < IDENTITY_CAPS_MAX; c++)
		if ((ambient >> c & 1) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, c, 0, 0))
			return err_set(err, -errno, "raise ambient capability %u", c);
	return 0;
}

static int identity_set_user(const AGENT_PB(Process) * p, struct err *err)
{
	uint32_t uid = p->user ? p->user->uid : 0, gid = p->user ? p->user->gid : 0;
	size_t nr = p->user ? p->user->n_additional_gids : 0;

	if (syscall(SYS_setgroups, nr, nr ? p->user->additional_gids : NULL))
		return err_set(err, -errno, "set %zu additional groups", nr);
	if (syscall(SYS_setresgid, gid, gid, gid))
		return err_set(err, -errno, "set group %u", gid);
	if (syscall(SYS_setresuid, uid, uid, uid))
		return err_set(err, -errno, "set user %u", uid);
	return 0;
}

static bool identity_has_filter(const AGENT_PB(Process) * p)
{
	return p->seccomp_bpf.len > 0;
}

static struct identity_caps identity_final_caps(const AGENT_PB(Process) * p, uint64_t held)
{
	const AGENT_PB(Capabilities) *c = p->capabilities;

	if (!c)
		return (struct identity_caps){held, held, 0};
	return (struct identity_caps){c->effective & c->permitted & held, c->permitted & held,
				      c->inheritable & held};
}

/* Absent capabilities: a root process keeps all, and so does another user's, by keepcaps. */
static int identity_set_caps(const AGENT_PB(Process) * p, uint64_t held, struct err *err)
{
	struct identity_caps caps = identity_final_caps(p, held);
	uint64_t extra = 0;

	if (identity_has_filter(p) && !p->no_new_privileges)
		extra = UINT64_C(1) << CAP_SYS_ADMIN;
	caps.permitted |= extra;
	caps.effective |= extra;
	if (identity_capset(&caps, err))
		return err->code;
	return identity_raise_ambient(p->capabilities ? p->capabilities->ambient & held : 0, err);
}

int identity_apply(const AGENT_PB(Process) * p, struct err *err)
{
	uint64_t held = identity_held_caps();

	if (p->capabilities && identity_drop_bounding(p->capabilities->bounding, err))
		return err->code;
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
		return err_set(err, -errno, "keep capabilities");
	if (identity_set_user(p, err) || identity_set_caps(p, held, err))
		return err->code;
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0))
		return err_set(err, -errno, "end keeping capabilities");
	if (p->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return err_set(err, -errno, "set no_new_privs");
	umask(p->user && p->user->has_umask ? p->user->umask : 0022);
	return 0;
}

int identity_seal(const AGENT_PB(Process) * p, struct err *err)
{
	struct sock_fprog prog = {
		.len = (unsigned short)(p->seccomp_bpf.len / sizeof(struct sock_filter)),
		.filter = (struct sock_filter *)p->seccomp_bpf.data};
	struct identity_caps caps = identity_final_caps(p, identity_held_caps());

	if (!identity_has_filter(p))
		return 0;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, p->seccomp_flags, &prog))
		return err_set(err, -errno, "load the seccomp filter");
	return p->no_new_privileges ? 0 : identity_capset(&caps, err);
}
