/*
 * System calls that the C libraries we build against (glibc 2.36, musl 1.2.3) do not all wrap.
 * Each returns as the system call does: -1 and errno on failure. Numbers: the kernel's own headers.
 */
#pragma once

#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int sys_pidfd_open(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static inline int sys_pidfd_send_signal(int pidfd, int sig)
{
	return (int)syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
}

/* SIG_DFL for any signal, also for those that the C library keeps to itself and its sigaction() refuses. */
static inline int sys_signal_default(int sig)
{
	/* struct sigaction of the kernel (x86: handler, flags, restorer, mask): all zero is SIG_DFL. */
	const uint64_t dfl[4] = {0};

	return (int)syscall(SYS_rt_sigaction, sig, dfl, NULL, sizeof(dfl[3]));
}

static inline int sys_close_range(unsigned int first, unsigned int last, unsigned int flags)
{
	return (int)syscall(SYS_close_range, first, last, flags);
}

static inline int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode,
			      uint64_t resolve)
{
	struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};

	return (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
}

static inline int sys_open_tree(int dirfd, const char *path, unsigned int flags)
{
	return (int)syscall(SYS_open_tree, dirfd, path, flags);
}

static inline int sys_move_mount(int from, const char *from_path, int to, const char *to_path,
				 unsigned int flags)
{
	return (int)syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}

static inline int sys_mount_setattr(int dirfd, const char *path, unsigned int flags,
				    uint64_t attr_set, uint64_t attr_clr)
{
	struct mount_attr attr = {.attr_set = attr_set, .attr_clr = attr_clr};

	return (int)syscall(SYS_mount_setattr, dirfd, path, flags, &attr, sizeof(attr));
}

static inline int sys_execveat(int dirfd, const char *path, char *const *argv, char *const *env,
			       int flags)
{
	return (int)syscall(SYS_execveat, dirfd, path, argv, env, flags);
}

static inline int sys_fsopen(const char *type)
{
	return (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
}

static inline int sys_fsconfig(int fd, unsigned int cmd, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, fd, cmd, key, value, 0);
}

static inline int sys_fsmount(int fd, uint64_t attr)
{
	return (int)syscall(SYS_fsmount, fd, FSMOUNT_CLOEXEC, (unsigned int)attr);
}

static inline int sys_pivot_root(const char *new_root, const char *put_old)
{
	return (int)syscall(SYS_pivot_root, new_root, put_old);
}

/*
 * fork() into new namespaces (CLONE_NEW* flags) with a pidfd of the child (O_CLOEXEC). The C library
 * does not know of it: the child may use plain system calls and exec, not threads.
 */
static inline pid_t sys_clone_pidfd(uint64_t flags, int *ret_pidfd)
{
	return (pid_t)syscall(SYS_clone, flags | CLONE_PIDFD | SIGCHLD, NULL, ret_pidfd, NULL, 0);
}
