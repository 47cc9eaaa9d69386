/*
 * What the server gives up before it serves. Order: descriptors, limits, namespaces with an empty
 * root, privileges, and last, with all threads made, system calls (seccomp.c).
 *
 * What remains: the exports' descriptors, the way back to files through /proc/self/fd, and the
 * capabilities to create files as their users. There is nothing to open by path.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/securebits.h>

#include "cleanup.h"
#include "io.h"
#include "server.h"
#include "sys.h"

/* Descriptors for the server itself: queues, sockets, operations in progress. */
#define CONFINE_OWN_FDS 128
#define CONFINE_FDS_MAX 1048576

static int confine_compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

void confine_close_other_fds(const struct server_options *o)
{
	int keep[SERVER_EXPORTS_MAX + 8] = {0, 1, 2}, nr = 3, from = 0;

	keep[nr++] = o->vhost_user_fd;
	keep[nr++] = o->vmm_fd;
	keep[nr++] = o->fuse_fd;
	keep[nr++] = o->control_fd;
	for (unsigned int i = 0; i < o->nr_exports; i++)
		keep[nr++] = o->exports[i].fd;
	qsort(keep, (size_t)nr, sizeof(keep[0]), confine_compare);
	for (int i = 0; i < nr; i++) {
		if (keep[i] > from)
			(void)sys_close_range((unsigned int)from, (unsigned int)keep[i] - 1, 0);
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	(void)sys_close_range((unsigned int)from, ~0U, 0);
}

uint64_t confine_limits(void)
{
	cleanup_free char *text = NULL;
	struct rlimit none = {0, 0}, fds;
	rlim_t want = CONFINE_FDS_MAX;

	/* As many descriptors as the system gives one process; failing that, as many as we may. */
	if (!io_read_file(AT_FDCWD, "/proc/sys/fs/nr_open", 64, &text, NULL))
		want = MIN(want, strtoul(text, NULL, 10));
	fds = (struct rlimit){want, want};
	if (setrlimit(RLIMIT_NOFILE, &fds) < 0) {
		(void)getrlimit(RLIMIT_NOFILE, &fds);
		fds.rlim_cur = MIN(fds.rlim_max, want);
		(void)setrlimit(RLIMIT_NOFILE, &fds);
	}
	(void)getrlimit(RLIMIT_NOFILE, &fds);
	(void)setrlimit(RLIMIT_CORE, &none);
	(void)setrlimit(RLIMIT_MSGQUEUE, &none);
	(void)setrlimit(RLIMIT_NICE, &none);
	(void)setrlimit(RLIMIT_RTPRIO, &none);
	/* A write beyond a limit, or to a peer that left, is an error code here and not a death. */
	(void)signal(SIGXFSZ, SIG_IGN);
	(void)signal(SIGPIPE, SIG_IGN);
	return fds.rlim_cur > CONFINE_OWN_FDS ? fds.rlim_cur - CONFINE_OWN_FDS : 0;
}

/* Makes an empty read-only file system the root and leaves nothing else reachable. */
static int confine_root(struct err *err)
{
	/* /proc is just a directory that surely exists; what is mounted there is covered. */
	const char *new_root = "/proc";

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return err_set(err, -errno, "make mounts private");
	if (mount("harpoon-fs", new_root, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=4k,nr_inodes=1,mode=555") < 0)
		return err_set(err, -errno, "mount an empty root");
	if (chdir(new_root) < 0 || sys_pivot_root(".", ".") < 0)
		return err_set(err, -errno, "change to the empty root");
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return err_set(err, -errno, "leave the old root");
	return 0;
}

int confine_namespaces(struct err *err)
{
	if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) < 0)
		return err_set(err, -errno,
			       "make namespaces (harpoon-fs has to be started as root)");
	return confine_root(err);
}

/*
 * CHOWN, FOWNER, DAC_OVERRIDE, FSETID: act on files as the guest's root does.
 * SETUID, SETGID: create files as their users.
 * SETFCAP: the guest's root sets file capabilities.
 * MKNOD: only when an export may hold device nodes.
 */
static uint64_t confine_kept_caps(bool allow_devices)
{
	uint64_t caps = 1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FOWNER |
			1ULL << CAP_FSETID | 1ULL << CAP_SETGID | 1ULL << CAP_SETUID |
			1ULL << CAP_SETFCAP;

	return allow_devices ? caps | 1ULL << CAP_MKNOD : caps;
}

int confine_privileges(bool allow_devices, struct err *err)
{
	/* Locked as they are: user id changes go on clearing effective capabilities. */
	const unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED |
				   SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
				   SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint64_t caps = confine_kept_caps(allow_devices);
	struct __user_cap_data_struct d[2] = {
		{.effective = (uint32_t)caps, .permitted = (uint32_t)caps},
		{.effective = (uint32_t)(caps >> 32), .permitted = (uint32_t)(caps >> 32)},
	};

	for (unsigned long cap = 0; cap < 64; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
			return err_set(err, -errno, "drop capability %lu", cap);
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
		return err_set(err, -errno, "lock the secure bits");
	if (syscall(SYS_setgroups, 0, NULL) < 0)
		return err_set(err, -errno, "leave supplementary groups");
	if (syscall(SYS_capset, &h, d) < 0)
		return err_set(err, -errno, "reduce capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_set(err, -errno, "forbid new privileges");
	return 0;
}
