/*
 * The system calls a serving harpoon-fs makes, each with its reason. Anything else kills the process:
 * it means that somebody else's code runs in it. The integration tests run all operations under this
 * filter, so a missing row shows there.
 *
 * The C library makes some calls that depend on its version (newfstatat or statx, futex variants); both
 * forms are allowed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <seccomp.h>

#include "server.h"

/* Sanitizers make calls of their own, at exit above all; their builds only report what is missing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFINE_DEFAULT_ACTION SCMP_ACT_LOG
int __lsan_is_turned_off(void);
/* The search for leaks at exit reads /proc, which is gone; the unit tests search. */
int __lsan_is_turned_off(void)
{
	return 1;
}
#else
#define CONFINE_DEFAULT_ACTION SCMP_ACT_KILL_PROCESS
#endif

struct confine_call {
	int nr;
	const char *why;
};

static const struct confine_call confine_calls[] = {
	/* channels */
	{SCMP_SYS(read), "requests from /dev/fuse; eventfds"},
	{SCMP_SYS(write), "answers to /dev/fuse; eventfds; log lines"},
	{SCMP_SYS(epoll_wait), "kicks of a queue; the main loop"},
	{SCMP_SYS(epoll_pwait), "the same, as newer C libraries call it"},
	{SCMP_SYS(epoll_ctl), "a queue's kick descriptor comes and goes"},
	{SCMP_SYS(recvmsg), "control, vhost-user and link messages"},
	{SCMP_SYS(sendmsg), "their answers"},
	/* names and attributes */
	{SCMP_SYS(openat), "look-up, open, create; by /proc/self/fd back to a file"},
	{SCMP_SYS(statx), "attributes"},
	{SCMP_SYS(fstat), "size of a memory file"},
	{SCMP_SYS(newfstatat), "the same, as the C library calls it"},
	{SCMP_SYS(fstatfs), "STATFS; is an export on a network file system"},
	{SCMP_SYS(readlinkat), "READLINK"},
	{SCMP_SYS(mkdirat), "MKDIR"},
	{SCMP_SYS(mknodat), "MKNOD"},
	{SCMP_SYS(symlinkat), "SYMLINK"},
	{SCMP_SYS(linkat), "LINK"},
	{SCMP_SYS(unlinkat), "UNLINK, RMDIR"},
	{SCMP_SYS(renameat2), "RENAME, RENAME2"},
	{SCMP_SYS(fchmodat), "SETATTR: mode"},
	{SCMP_SYS(fchownat), "SETATTR: owner"},
	{SCMP_SYS(utimensat), "SETATTR: times"},
	{SCMP_SYS(ftruncate), "SETATTR: size"},
	{SCMP_SYS(getxattr), "GETXATTR"},
	{SCMP_SYS(setxattr), "SETXATTR"},
	{SCMP_SYS(listxattr), "LISTXATTR"},
	{SCMP_SYS(removexattr), "REMOVEXATTR"},
	/* open files */
	{SCMP_SYS(preadv), "READ"},
	{SCMP_SYS(pwritev2), "WRITE"},
	{SCMP_SYS(pwritev), "WRITE, as the C library calls it without flags"},
	{SCMP_SYS(fsync), "FSYNC"},
	{SCMP_SYS(fdatasync), "FSYNC of data only"},
	{SCMP_SYS(syncfs), "SYNCFS"},
	{SCMP_SYS(fallocate), "FALLOCATE"},
	{SCMP_SYS(lseek), "LSEEK; position in a directory"},
	{SCMP_SYS(flock), "SETLK of a whole file"},
	{SCMP_SYS(copy_file_range), "COPY_FILE_RANGE"},
	{SCMP_SYS(getdents64), "READDIR"},
	{SCMP_SYS(close), "RELEASE, FORGET"},
	{SCMP_SYS(dup3), "an export is revoked"},
	/* what others change */
	{SCMP_SYS(fanotify_mark), "a directory the guest knows is watched"},
	{SCMP_SYS(name_to_handle_at), "which one an event is of"},
	{SCMP_SYS(poll), "wait for a change"},
	/* whose file it becomes */
	{SCMP_SYS(setresuid), "create as the user"},
	{SCMP_SYS(setresgid), "create as the user"},
	{SCMP_SYS(setgroups), "create as the user"},
	{SCMP_SYS(capset), "give up CAP_FSETID for an operation"},
	{SCMP_SYS(umask), "the guest's umask, for directories with a default list"},
	{SCMP_SYS(geteuid), "is this the user already"},
	{SCMP_SYS(getegid), "is this the user already"},
	/* the process itself */
	{SCMP_SYS(futex), "locks"},
	{SCMP_SYS(munmap), "guest memory goes; heap"},
	{SCMP_SYS(mremap), "heap: tables grow"},
	{SCMP_SYS(brk), "heap"},
	{SCMP_SYS(madvise), "guest memory stays out of dumps; heap"},
	{SCMP_SYS(clock_gettime), "log lines, where the vDSO lacks it"},
	{SCMP_SYS(gettid), "abort()"},
	{SCMP_SYS(getpid), "abort()"},
	{SCMP_SYS(rt_sigprocmask), "abort()"},
	{SCMP_SYS(rt_sigaction), "abort()"},
	{SCMP_SYS(rt_sigreturn), "after a signal that was ignored or stopped us"},
	{SCMP_SYS(restart_syscall), "after a stop"},
	{SCMP_SYS(getrandom), "heap, at a thread's first allocation"},
	{SCMP_SYS(exit), "a thread ends"},
	{SCMP_SYS(exit_group), "the end"},
};

static const int confine_fcntl_commands[] = {
	F_GET_SEALS,	 /* of the channel's memory */
	F_GETFL,	 /* what kind of descriptor is an export */
	F_SETFL,	 /* kick and call descriptors do not block */
	F_DUPFD_CLOEXEC, /* FLUSH; a node for an export */
	F_OFD_SETLK,	 /* SETLK */
	F_OFD_GETLK,	 /* GETLK */
};

static int confine_rules(scmp_filter_ctx ctx)
{
	const struct scmp_arg_cmp no_exec = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
	const struct scmp_arg_cmp peer = SCMP_A2(SCMP_CMP_EQ, SO_PEERCRED);
	const struct scmp_arg_cmp own_pid = SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid());
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(confine_calls) && !r; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, confine_calls[i].nr, 0);
	for (size_t i = 0; i < ARRAY_SIZE(confine_fcntl_commands) && !r; i++) {
		const struct scmp_arg_cmp cmd =
			SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)confine_fcntl_commands[i]);

		r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, &cmd);
	}
	/* Guest memory, heap: never executable. */
	if (!r)
		r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, &no_exec);
	if (!r)
		r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, &no_exec);
	/* Which process harpoon-vmm is. */
	if (!r)
		r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(getsockopt), 1, &peer);
	/* abort() signals this very process. */
	return r ? r : seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, &own_pid);
}

int confine_syscalls(struct err *err)
{
	scmp_filter_ctx ctx = seccomp_init(CONFINE_DEFAULT_ACTION);
	int r;

	if (!ctx)
		return err_set(err, -ENOMEM, "create the system call filter");
	r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	/* Few calls make up nearly all; a balanced tree finds any of them in a few steps. */
	if (!r)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!r)
		r = confine_rules(ctx);
	if (!r)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r ? err_set(err, r, "load the system call filter") : 0;
}
