/*
 * From fork to execve; see child.h. The agent is single-threaded, so the child may use the C library
 * freely. Set-up is a straight list of steps; the first that fails is reported with its sentence and ends
 * the child. Nothing here needs undoing: the namespaces die with the process.
 *
 * The child is undumpable until execve: it carries a copy of the agent's memory and descriptors of the
 * guest, and from joining the pid namespace on, the container's processes can see it.
 */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "console.h"
#include "disks.h"
#include "identity.h"
#include "io.h"
#include "lookup.h"
#include "priority.h"
#include "request.h"
#include "rootfs.h"
#include "rootpath.h"
#include "starthook.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif

#define CHILD_KEYRING_MAX 96

static void child_report(const struct plan *plan, int kind, int value, const char *msg, int fd)
{
	struct child_report r = {.kind = kind, .value = value};

	snprintf(r.msg, sizeof(r.msg), "%s", msg);
	if (fd >= 0)
		io_send_fds(plan->sync_fd, &r, sizeof(r), &fd, 1);
	else if (write(plan->sync_fd, &r, sizeof(r)) < 0)
		_exit(CHILD_EXIT_SETUP); /* the agent takes end of file for what it is */
}

HARPOON_NORETURN static void child_fail(const struct plan *plan, const struct err *err)
{
	child_report(plan, CHILD_FAILED, err->code, err->msg, -1);
	_exit(CHILD_EXIT_SETUP);
}

/*
 * The child has a copy of every descriptor of the agent, the pipes of other containers among them, and
 * may wait for long before its exec closes them.
 */
static void child_close_others(const struct plan *plan)
{
	int keep[] = {plan->join_pidfd, plan->cgroup_fd, plan->sync_fd,
		      plan->stdio[0],	plan->stdio[1],	 plan->stdio[2]};
	int from = STDERR_FILENO + 1;

	for (;;) {
		int next = -1;

		for (size_t i = 0; i < ARRAY_SIZE(keep); i++)
			if (keep[i] >= from && (next < 0 || keep[i] < next))
				next = keep[i];
		if (next < 0)
			break;
		if (next > from)
			sys_close_range((unsigned int)from, (unsigned int)next - 1, 0);
		from = next + 1;
	}
	sys_close_range((unsigned int)from, ~0u, 0);
}

/* End of file means that the agent dropped this process. */
static void child_wait_order(const struct plan *plan, enum child_order order)
{
	char c = 0;
	ssize_t n;

	do
		n = read(plan->sync_fd, &c, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1 || c != (char)order)
		_exit(CHILD_EXIT_SETUP);
}

static void child_reset_signals(void)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		sigaction(sig, &dfl, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In a new user namespace every id was unmapped until now: become its root. */
static int child_become_ns_root(const struct plan *plan, struct err *err)
{
	if (!(plan->namespaces & CLONE_NEWUSER))
		return 0;
	if (syscall(SYS_setresgid, 0, 0, 0) || syscall(SYS_setresuid, 0, 0, 0) ||
	    syscall(SYS_setgroups, 0, NULL))
		return err_set(err, -errno, "become root of the user namespace");
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	return 0;
}

/* The container's own session keyring: what it stores is not the agent's. */
static int child_join_keyring(const struct plan *plan, struct err *err)
{
	char name[CHILD_KEYRING_MAX];

	snprintf(name, sizeof(name), "_ses.%s", plan->id);
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name, 0, 0, 0) < 0 && errno != ENOSYS)
		return err_set(err, -errno, "join session keyring '%s'", name);
	return 0;
}

static int child_set_names(const char *hostname, const char *domainname, struct err *err)
{
	if (hostname[0] && sethostname(hostname, strlen(hostname)))
		return err_set(err, -errno, "set hostname '%s'", hostname);
	if (domainname[0] && syscall(SYS_setdomainname, domainname, strlen(domainname)))
		return err_set(err, -errno, "set domainname '%s'", domainname);
	return 0;
}

/* A new network namespace has its loopback down. */
static int child_raise_loopback(const struct plan *plan, struct err *err)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	cleanup_close int fd = -1;

	if (!(plan->namespaces & CLONE_NEWNET))
		return 0;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr))
		return err_set(err, -errno, "bring up the loopback interface");
	return 0;
}

/* One line for each clock; the kernel takes them in one write, before the first process is inside. */
static int child_write_offsets(const struct plan *plan, const char *proc, struct err *err)
{
	const AGENT_PB(CreateContainerRequest) *c = plan->create;
	cleanup_free char *path = xasprintf("%s/self/timens_offsets", proc);
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	char text[REQUEST_CLOCKS_MAX * 64] = "";
	int e;

	for (size_t i = 0; i < c->n_time_offsets; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%u %lld %u\n",
			 c->time_offsets[i]->clock, (long long)c->time_offsets[i]->secs,
			 c->time_offsets[i]->nanosecs);
	e = fd < 0 ? -errno : io_write_full(fd, text, strlen(text));
	return e ? err_set(err, e, "set the clocks of the time namespace") : 0;
}

/*
 * An undumpable process in a user namespace may not write its own files in /proc. Nobody else is in the
 * new pid namespace yet, so nobody can use the moment.
 */
static int child_enter_time(const struct plan *plan, struct err *err)
{
	const char *proc = plan->params->proc_dir;
	cleanup_free char *path = xasprintf("%s/self/ns/time_for_children", proc);
	cleanup_close int fd = -1;
	int e = 0;

	if (!(plan->namespaces & CLONE_NEWTIME))
		return 0;
	if (sys_unshare(CLONE_NEWTIME))
		return err_set(err, -errno, "new time namespace");
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	if (plan->create->n_time_offsets)
		e = child_write_offsets(plan, proc, err);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (!e && (fd < 0 || sys_setns(fd, CLONE_NEWTIME)))
		e = err_set(err, -errno, "enter the new time namespace");
	return e;
}

static int child_open_null(int root_fd, struct err *err)
{
	cleanup_close int fd = rootpath_open(root_fd, "/dev/null", O_PATH);
	struct stat st;
	int null;

	/* Anything else of that name is left alone. */
	if (fd < 0 || fstat(fd, &st) || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
		return err_say(err, -ENODEV, "/dev/null of the container is not the null device");
	null = rootpath_open(root_fd, "/dev/null", O_RDWR | O_NOCTTY);
	if (null < 0)
		return err_set(err, null, "open /dev/null of the container");
	return null;
}

/* Puts the process's three descriptors in place; a terminal becomes the controlling one. */
static int child_set_stdio(const struct plan *plan, int slave_fd, int null_fd, struct err *err)
{
	for (int i = 0; i < 3; i++) {
		int fd = slave_fd >= 0 ? slave_fd : plan->stdio[i] >= 0 ? plan->stdio[i] : null_fd;

		if (dup2(fd, i) < 0)
			return err_set(err, -errno, "set descriptor %d", i);
	}
	if (slave_fd >= 0 && ioctl(0, TIOCSCTTY, 0))
		return err_set(err, -errno, "take the controlling terminal");
	return 0;
}

/*
 * Opens the terminal and reports nothing yet: *ret_master is sent along with READY. The slave belongs
 * to the user, as runc does it, so that /dev/stdout can be opened again.
 */
static int child_open_console(const struct plan *plan, int root_fd, int proc_fd,
			      struct console *con, struct err *err)
{
	const AGENT_PB(Process) *p = plan->process;

	if (console_open(root_fd, proc_fd, con, err))
		return err->code;
	if (p->user && p->user->uid && fchown(con->slave_fd, p->user->uid, (gid_t)-1))
		return err_set(err, -errno, "give the terminal to user %u", p->user->uid);
	if (p->console_width || p->console_height)
		console_resize(con->slave_fd, p->console_width, p->console_height);
	return 0;
}

/*
 * By descriptor inside the root, without magic links: /proc/self/fd/N would be a way out. Afterwards
 * the kernel is asked, too, that the folder is reachable from the root.
 */
static int child_enter_cwd(int root_fd, const char *cwd, struct err *err)
{
	cleanup_close int fd = rootpath_open(root_fd, cwd, O_PATH | O_DIRECTORY);
	char path[PATH_MAX];

	if (fd < 0)
		return err_set(err, fd, "working directory '%s'", cwd);
	if (fchdir(fd))
		return err_set(err, -errno, "working directory '%s'", cwd);
	if (syscall(SYS_getcwd, path, sizeof(path)) < 0 || path[0] != '/')
		return err_say(err, -EINVAL,
			       "working directory '%s' is outside of the container's root", cwd);
	return 0;
}

/* From inside the root to READY: what container and exec have in common. */
static int child_become_process(const struct plan *plan, char ***ret_env, char *path,
				struct err *err)
{
	const AGENT_PB(Process) *p = plan->process;
	cleanup_close int root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (root_fd < 0)
		return err_set(err, -errno, "open the container's root");
	if (priority_apply(p, err) || identity_set_rlimits(p, err) ||
	    child_enter_cwd(root_fd, p->cwd, err) || lookup_env(p, root_fd, ret_env, err) ||
	    identity_apply(p, err))
		return err->code;
	/* Changing ids made the process dumpable or not as the sysctl says. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	return lookup_executable(p->args[0], *ret_env, path, PATH_MAX, err);
}

HARPOON_NORETURN static void child_finish(const struct plan *plan, int master_fd)
{
	char **env = NULL;
	char **args = xcalloc(plan->process->n_args + 1, sizeof(*args));
	char path[PATH_MAX];
	struct err err = {0};
	int state_fd = -1;

	memcpy(args, plan->process->args, plan->process->n_args * sizeof(*args));
	if (child_become_process(plan, &env, path, &err) ||
	    (plan->create && starthook_prepare(plan->create, &state_fd, &err)))
		child_fail(plan, &err);
	child_report(plan, CHILD_READY, 0, "", master_fd);
	child_wait_order(plan, CHILD_START);
	/* Everything of ours was opened so; this is for what a mistake may have left. */
	sys_close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
	if (identity_seal(plan->process, &err) ||
	    (plan->create && starthook_run(plan->create, state_fd, &err)))
		child_fail(plan, &err);
	execve(path, args, env);
	err_say(&err, -errno, "exec: \"%s\": %s", plan->process->args[0],
		errno == ENOENT	   ? "no such file or directory"
		: errno == EACCES  ? "permission denied"
		: errno == ENOEXEC ? "exec format error"
				   : strerror(errno));
	child_fail(plan, &err);
}

static int child_build_root(const struct plan *plan, struct rootfs *r, struct console *con,
			    struct err *err)
{
	cleanup_close int cwd = -1;

	if (rootfs_open(r, plan, err) || rootfs_mount_all(r, err) || rootfs_make_dev(r, err))
		return err->code;
	if (plan->process->terminal &&
	    (child_open_console(plan, r->root_fd, r->proc_fd, con, err) ||
	     rootfs_bind_console(r, con->slave_fd, err)))
		return err->code;
	cwd = rootpath_make(r->root_fd, plan->process->cwd, ROOTPATH_DIR, err);
	if (cwd < 0)
		return err_wrap(err, "working directory");
	if (rootfs_hide(r, err) || rootfs_set_sysctls(r, err))
		return err->code;
	return 0;
}

/* What needs no plan, and so is the same for every container. */
static int child_prepare(const struct agent_params *params, struct rootfs *r, struct err *err)
{
	umask(0022);
	if (setsid() < 0)
		return err_set(err, -errno, "new session");
	/* After the move into the cgroup, which the fork did: it is the namespace's root. */
	if (sys_unshare(CLONE_NEWCGROUP))
		return err_set(err, -errno, "new cgroup namespace");
	return rootfs_prepare(r, params, err);
}

static int child_build(const struct plan *plan, struct rootfs *r, struct console *con,
		       struct err *err)
{
	cleanup_close int null = -1;

	if (child_enter_time(plan, err) || child_join_keyring(plan, err) ||
	    child_set_names(plan->create->hostname, plan->create->domainname, err) ||
	    child_raise_loopback(plan, err) || child_build_root(plan, r, con, err))
		return err->code;
	null = child_open_null(r->root_fd, err);
	if (null < 0 || child_set_stdio(plan, con->slave_fd, null, err))
		return err->code;
	return rootfs_enter(r, err);
}

HARPOON_NORETURN static void child_become_container(const struct plan *plan, struct rootfs *r)
{
	struct console con = {-1, -1};
	struct err err = {0};

	if (child_build(plan, r, &con, &err))
		child_fail(plan, &err);
	rootfs_close(r);
	cleanup_closep(&con.slave_fd);
	child_finish(plan, con.master_fd);
}

static void child_begin(const struct plan *plan)
{
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	child_reset_signals();
	child_close_others(plan);
}

void child_run_container(const struct plan *plan)
{
	struct rootfs r = ROOTFS_INIT;
	struct err err = {0};

	child_begin(plan);
	child_wait_order(plan, CHILD_GO);
	if (child_become_ns_root(plan, &err) || child_prepare(plan->params, &r, &err))
		child_fail(plan, &err);
	child_become_container(plan, &r);
}

/* What the spare is to be: the request, or NULL. Everything in `plan` lives as long as the process. */
static const AGENT_PB(CreateContainerRequest) * child_take_plan(struct plan *plan, struct err *err)
{
	struct child_plan *told = xmalloc(sizeof(*told) + CHILD_PLAN_MAX);
	AGENT_PB(CreateContainerRequest) * create;
	int fds[ARRAY_SIZE(plan->stdio)];
	size_t nr_fds = ARRAY_SIZE(fds), at = 0;
	ssize_t n;

	n = io_recv_fds(plan->sync_fd, told, sizeof(*told) + CHILD_PLAN_MAX, fds, &nr_fds);
	if (!n)
		_exit(CHILD_EXIT_SETUP); /* not needed */
	if (n < (ssize_t)sizeof(*told)) {
		err_say(err, -EPROTO, "no plan for the container: %zd", n);
		return NULL;
	}
	create = harpoon__agent__v1__create_container_request__unpack(
		NULL, (size_t)n - sizeof(*told), (const uint8_t *)(told + 1));
	if (!create) {
		err_say(err, -EPROTO, "the container's plan cannot be read");
		return NULL;
	}
	plan->process = create->process;
	plan->id = told->id;
	plan->namespaces = told->namespaces;
	for (size_t i = 0; i < ARRAY_SIZE(plan->stdio); i++)
		if (told->stdio & 1u << i && at < nr_fds)
			plan->stdio[i] = fds[at++];
	return child_set_names(told->hostname, told->domainname, err) ? NULL : create;
}

void child_run_spare(const struct agent_params *params, int sync_fd)
{
	static const struct disks no_disks;
	static const struct id_map no_map;
	struct plan plan = {
		.params = params,
		.disks = &no_disks,
		.uids = &no_map,
		.gids = &no_map,
		.join_pidfd = -1,
		.cgroup_fd = -1,
		.sync_fd = sync_fd,
		.stdio = {-1, -1, -1},
	};
	struct rootfs r = ROOTFS_INIT;
	struct err err = {0};

	child_begin(&plan);
	if (child_prepare(params, &r, &err))
		child_fail(&plan, &err);
	rootfs_make_ahead();
	child_report(&plan, CHILD_READY, 0, "", -1);
	plan.create = child_take_plan(&plan, &err);
	if (!plan.create)
		child_fail(&plan, &err);
	child_wait_order(&plan, CHILD_GO);
	child_become_container(&plan, &r);
}

/* The process of an exec, already in the container's namespaces and cgroup. */
static int child_build_exec(const struct plan *plan, int proc_fd, struct console *con,
			    struct err *err)
{
	cleanup_close int root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_close int null = -1;

	if (root_fd < 0)
		return err_set(err, -errno, "open the container's root");
	if (sys_setns(plan->join_pidfd, CLONE_NEWCGROUP))
		return err_set(err, -errno, "join the container's cgroup namespace");
	if (child_become_ns_root(plan, err))
		return err->code;
	if (setsid() < 0)
		return err_set(err, -errno, "new session");
	if (child_join_keyring(plan, err))
		return err->code;
	if (plan->process->terminal && child_open_console(plan, root_fd, proc_fd, con, err))
		return err->code;
	null = child_open_null(root_fd, err);
	if (null < 0)
		return null;
	return child_set_stdio(plan, con->slave_fd, null, err);
}

HARPOON_NORETURN static void child_run_exec_process(const struct plan *plan, int proc_fd)
{
	struct console con = {-1, -1};
	struct err err = {0};

	child_wait_order(plan, CHILD_GO);
	umask(0022);
	if (child_build_exec(plan, proc_fd, &con, &err))
		child_fail(plan, &err);
	cleanup_closep(&con.slave_fd);
	cleanup_closep(&proc_fd);
	child_finish(plan, con.master_fd);
}

void child_run_exec(const struct plan *plan)
{
	/* The parent is the agent, not this short-lived process. */
	struct clone_args args = {.flags = CLONE_PARENT | CLONE_INTO_CGROUP,
				  .cgroup = (uint64_t)plan->cgroup_fd};
	struct err err = {0};
	int proc_fd;
	pid_t pid;

	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	child_reset_signals();
	child_close_others(plan);
	proc_fd = rootfs_open_proc(plan->params, &err);
	if (proc_fd < 0)
		child_fail(plan, &err);
	/*
	 * Not the cgroup namespace yet: from inside it, the kernel refuses to fork into its cgroup a
	 * process that comes from outside (nsdelegate).
	 */
	if (sys_setns(plan->join_pidfd, plan->namespaces & ~(uint32_t)CLONE_NEWCGROUP)) {
		err_set(&err, -errno, "join the container's namespaces");
		child_fail(plan, &err);
	}
	pid = sys_clone3(&args);
	if (pid < 0) {
		err_set(&err, -errno, "fork in the container");
		child_fail(plan, &err);
	}
	if (!pid)
		child_run_exec_process(plan, proc_fd);
	child_report(plan, CHILD_PID, pid, "", -1);
	_exit(0);
}
