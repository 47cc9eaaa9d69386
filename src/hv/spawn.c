/*
 * clone, confine, exec; see spawn.h.
 *
 * Parent and child share a SOCK_SEQPACKET pair for the start only: the parent tells the child its host
 * pid (its user id is derived from it, and in its own pid namespace it cannot see it), the child tells
 * what failed, or exec closes its end and the parent reads end of file.
 *
 * Death with the parent: PR_SET_PDEATHSIG is set after the user id has changed, because a change of
 * credentials clears it; then the parent's pidfd says whether it died in between (getppid() is 0 in an
 * own pid namespace). The signal comes when the *thread* that called us ends, so only a thread that
 * lives as long as the program may spawn.
 *
 * Thread: the loop's. The child runs on a copy of our memory and makes plain system calls only.
 */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "jail.h"
#include "sys.h"

/* Above every number the child's table ends with, so that moving never overwrites a source. */
#define SPAWN_FD_PARK 32
#define SPAWN_TIMEOUT_MS 10000

struct spawn_failure {
	int error; /* negative errno */
	char step[120];
};

/* What the child works with: its copies of the parent's descriptors. */
struct spawn_start {
	const struct spawn_params *params;
	int parent_sock; /* the parent's end, until it is closed */
	int sock;
	int exe_fd; /* once they are placed */
	int null_fd;
	int parent_pidfd;
};

/* Puts the descriptors in their places and closes every other one except the socket. */
static int spawn_place_fds(struct spawn_start *s)
{
	const struct spawn_params *p = s->params;
	int src[SPAWN_FD_FIRST + SPAWN_FDS_MAX + 2];
	size_t first_own = SPAWN_FD_FIRST + p->nr_fds, nr = first_own;

	src[0] = s->null_fd;
	src[1] = src[2] = p->output_fd;
	for (size_t i = 0; i < p->nr_fds; i++)
		src[SPAWN_FD_FIRST + i] = p->fds[i];
	/* Ours until the program runs. */
	src[nr++] = s->sock;
	if (p->by_fd)
		src[nr++] = p->exe_fd;
	for (size_t i = 0; i < nr; i++) {
		src[i] = fcntl(src[i], F_DUPFD_CLOEXEC, SPAWN_FD_PARK);
		if (src[i] < 0)
			return -errno;
	}
	for (size_t i = 0; i < nr; i++) {
		if (dup3(src[i], (int)i, i >= first_own ? O_CLOEXEC : 0) < 0)
			return -errno;
	}
	s->sock = (int)first_own;
	s->exe_fd = (int)first_own + 1;
	return sys_close_range((unsigned int)nr, ~0u, 0) ? -errno : 0;
}

static void spawn_reset_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		sys_signal_default(sig); /* EINVAL for SIGKILL and SIGSTOP */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int spawn_bind_to_parent(int parent_pidfd)
{
	struct pollfd pfd = {.fd = parent_pidfd, .events = POLLIN};

	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return -errno;
	if (poll(&pfd, 1, 0) != 0)
		_exit(1); /* nobody is left to tell */
	return 0;
}

/* Everything between clone and exec. Returns only on failure, -errno. */
static int spawn_child_run(struct spawn_start *s, const char **step)
{
	const struct spawn_params *p = s->params;
	char *const env[] = {NULL};
	pid_t host_pid;
	int r = 0;

	spawn_reset_signals();
	setsid();
	umask(022); /* for the folders of the jail's root */
	*step = "wait for the parent";
	/* Only then is the parent's death the end of the wait. */
	close(s->parent_sock);
	if (recv(s->sock, &host_pid, sizeof(host_pid), 0) != sizeof(host_pid))
		return -ECANCELED;
	if (p->jail)
		r = jail_enter(p->jail, step);
	if (!r && p->jail)
		r = jail_drop_rights(host_pid, step);
	if (r)
		return r;
	*step = "set the parent death signal";
	r = spawn_bind_to_parent(s->parent_pidfd);
	if (r)
		return r;
	umask(077);
	*step = "place descriptors";
	r = spawn_place_fds(s);
	if (r)
		return r;
	*step = "execute";
	if (p->by_fd)
		sys_execveat(s->exe_fd, "", p->argv, env, AT_EMPTY_PATH);
	else
		execve(p->path, p->argv, env);
	return -errno;
}

static HARPOON_NORETURN void spawn_child_main(struct spawn_start *s)
{
	const char *step = "";
	struct spawn_failure f = {0};

	f.error = spawn_child_run(s, &step);
	snprintf(f.step, sizeof(f.step), "%s", step);
	send(s->sock, &f, sizeof(f), MSG_NOSIGNAL);
	_exit(127);
}

static void spawn_kill(const struct spawn_child *c)
{
	siginfo_t info;

	sys_pidfd_send_signal(c->pidfd, SIGKILL);
	while (waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED) && errno == EINTR)
		;
}

/* While the child waits for its go: memory it takes afterwards is charged to the right cgroup. */
static int spawn_join_cgroups(const struct spawn_params *p, const struct spawn_child *c,
			      struct err *err)
{
	char text[16];
	size_t len = (size_t)snprintf(text, sizeof(text), "%d", (int)c->pid);

	for (size_t i = 0; i < p->nr_cgroup_fds; i++)
		if (write(p->cgroup_fds[i], text, len) != (ssize_t)len)
			return err_set(err, -errno, "start '%s': move pid %d into its cgroup%s",
				       p->path, (int)c->pid,
				       errno == EBUSY ? " (is it a folder of others?)" : "");
	return 0;
}

/* Parent: sends the go, waits for exec or for the child's complaint. */
static int spawn_await_exec(const struct spawn_params *p, const struct spawn_child *c, int sock,
			    struct err *err)
{
	struct pollfd pfd = {.fd = sock, .events = POLLIN};
	struct spawn_failure f;
	ssize_t n;
	int r;

	if (send(sock, &c->pid, sizeof(c->pid), MSG_NOSIGNAL) != sizeof(c->pid))
		return err_set(err, -errno, "start '%s'", p->path);
	do
		r = poll(&pfd, 1, SPAWN_TIMEOUT_MS);
	while (r < 0 && errno == EINTR);
	if (!r)
		return err_say(err, -ETIMEDOUT, "start '%s': no answer in %d s", p->path,
			       SPAWN_TIMEOUT_MS / 1000);
	n = recv(sock, &f, sizeof(f), 0);
	if (!n)
		return 0;
	if (n != sizeof(f) || f.error >= 0)
		return err_say(err, -EPROTO, "start '%s': the child broke off", p->path);
	f.step[sizeof(f.step) - 1] = '\0';
	return err_set(err, f.error, "start '%s': %s", p->path, f.step);
}

int spawn(const struct spawn_params *p, struct spawn_child *ret, struct err *err)
{
	cleanup_close int parent_pidfd = sys_pidfd_open(getpid());
	cleanup_close int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	cleanup_close int sock = -1;
	cleanup_close int child_sock = -1;
	cleanup_close int pidfd = -1;
	struct spawn_child c = {.pidfd = -1};
	int pair[2], r;

	if (p->nr_fds > SPAWN_FDS_MAX)
		return err_say(err, -E2BIG, "start '%s': too many descriptors", p->path);
	if (parent_pidfd < 0 || null_fd < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "start '%s'", p->path);
	sock = pair[0];
	child_sock = pair[1];
	c.pid = sys_clone_pidfd(p->jail ? jail_clone_flags(p->jail) : 0, &c.pidfd);
	if (c.pid < 0)
		return err_set(err, -errno, "start '%s': clone", p->path);
	if (!c.pid) {
		struct spawn_start s = {
			.params = p,
			.parent_sock = sock,
			.sock = child_sock,
			.null_fd = null_fd,
			.parent_pidfd = parent_pidfd,
		};

		spawn_child_main(&s);
	}
	pidfd = c.pidfd;
	close(take_fd(&child_sock));
	r = spawn_join_cgroups(p, &c, err);
	if (!r)
		r = spawn_await_exec(p, &c, sock, err);
	if (r) {
		spawn_kill(&c);
		return r;
	}
	c.pidfd = take_fd(&pidfd);
	*ret = c;
	return 0;
}
