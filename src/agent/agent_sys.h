/*
 * System calls of the container set-up that neither C library wraps everywhere, beside common/sys.h.
 * Raw on purpose also where a wrapper exists but <sys/mount.h> would clash with <linux/mount.h>.
 * Each returns as the system call does: -1 and errno on failure.
 */
#pragma once

#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

/* From <sys/mount.h> and the kernel's include/uapi/linux/mount.h. */
#define SYS_MNT_DETACH 2
#define SYS_UMOUNT_NOFOLLOW 8

static inline int sys_mount(const char *source, const char *target, const char *type,
			    unsigned long flags, const char *data)
{
	return (int)syscall(SYS_mount, source, target, type, flags, data);
}

static inline int sys_umount2(const char *target, int flags)
{
	return (int)syscall(SYS_umount2, target, flags);
}

static inline int sys_mount_propagate(int dirfd, unsigned int flags, uint64_t propagation)
{
	struct mount_attr attr = {.propagation = propagation};

	return (int)syscall(SYS_mount_setattr, dirfd, "", flags, &attr, sizeof(attr));
}

/* fork() into new namespaces and a cgroup; async-signal rules as after fork. */
static inline pid_t sys_clone3(struct clone_args *args)
{
	return (pid_t)syscall(SYS_clone3, args, sizeof(*args));
}

static inline int sys_setns(int fd, unsigned long flags)
{
	return (int)syscall(SYS_setns, fd, flags);
}

static inline int sys_unshare(unsigned long flags)
{
	return (int)syscall(SYS_unshare, flags);
}

/* Both C libraries emulate AT_EACCESS when they can; the system call is exact. */
static inline int sys_faccessat2(int dirfd, const char *path, int mode, int flags)
{
	return (int)syscall(SYS_faccessat2, dirfd, path, mode, flags);
}
