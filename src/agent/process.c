/*
 * One process of a container from fork to exit; see state.h for its states and child.h for its talk with
 * the forked child. Streams are attached when the child exists (pipes) or reports its terminal.
 *
 * Set-up that failed is answered only when the child was reaped and what it needed is gone, so that
 * the caller may try again at once with the same id.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "child.h"
#include "cleanup.h"
#include "console.h"
#include "io.h"
#include "log.h"
#include "spawn.h"
#include "state.h"

/* The six ends of a process's three pipes; -1 = none. */
struct process_pipes {
	int child[3], agent[3];
};

void process_init(struct process *p, struct container *c, const char *exec_id)
{
	*p = (struct process){.container = c, .pidfd = -1, .sync_fd = -1, .master_fd = -1};
	memcpy(p->id, exec_id, strnlen(exec_id, REQUEST_ID_MAX));
	list_init(&p->link);
	list_init(&p->waiters);
}

static void process_close_pipes(struct process_pipes *pipes)
{
	for (int i = 0; i < 3; i++) {
		cleanup_closep(&pipes->child[i]);
		cleanup_closep(&pipes->agent[i]);
	}
}

static uint32_t process_stream_id(const AGENT_PB(Process) * spec, int i)
{
	return i == 0 ? spec->stdin_stream : i == 1 ? spec->stdout_stream : spec->stderr_stream;
}

static int process_open_pipes(const struct process *p, const AGENT_PB(Process) * spec,
			      struct process_pipes *ret, struct err *err)
{
	uid_t uid = spec->user ? spec->user->uid : 0;
	gid_t gid = spec->user ? spec->user->gid : 0;

	uid = spawn_map_id(&p->container->uids, uid);
	gid = spawn_map_id(&p->container->gids, gid);
	for (int i = 0; i < 3; i++) {
		int fds[2];

		if (spec->terminal || !process_stream_id(spec, i))
			continue;
		if (pipe2(fds, O_CLOEXEC))
			return err_set(err, -errno, "make a pipe");
		ret->child[i] = fds[i == 0 ? 0 : 1];
		ret->agent[i] = fds[i == 0 ? 1 : 0];
		/* So that /dev/stdout and the like can be opened again by the user. */
		if (fchown(ret->child[i], uid, gid))
			return err_set(err, -errno, "give a pipe to %u:%u", uid, gid);
	}
	return 0;
}

/* The end of a terminal's input is the end of the line, as with a modem. Pipes just close. */
static void process_stream_0_done(void *ctx, int err)
{
	struct process *p = ctx;

	p->streams[0] = NULL;
	if (!err && p->master_fd >= 0 && console_hang_up(p->master_fd))
		log_warn("agent", "hang up terminal: %s", strerror(errno));
}

static void process_stream_1_done(void *ctx, int err)
{
	((struct process *)ctx)->streams[1] = NULL;
}

static void process_stream_2_done(void *ctx, int err)
{
	((struct process *)ctx)->streams[2] = NULL;
}

static const transport_done_fn process_stream_done[3] = {
	process_stream_0_done, process_stream_1_done, process_stream_2_done};

/* fd is owned from here on. */
static int process_attach(struct process *p, int i, uint32_t id, int fd, struct err *err)
{
	struct transport *t = p->container->agent->transport;
	int e = t->ops->attach(t, id, i == 0 ? -1 : fd, i == 0 ? fd : -1, process_stream_done[i], p,
			       &p->streams[i]);

	if (e)
		p->streams[i] = NULL;
	return e ? err_set(err, e, "attach stream %u", id) : 0;
}

static int process_attach_pipes(struct process *p, const AGENT_PB(Process) * spec,
				struct process_pipes *pipes, struct err *err)
{
	for (int i = 0; i < 3; i++)
		if (pipes->agent[i] >= 0 && process_attach(p, i, process_stream_id(spec, i),
							   take_fd(&pipes->agent[i]), err))
			return err->code;
	return 0;
}

/* Each stream gets a descriptor of its own; the one kept is for Resize. */
static int process_attach_terminal(struct process *p, int master_fd, struct err *err)
{
	p->master_fd = master_fd;
	for (int i = 0; i < 2; i++) {
		uint32_t id = process_stream_id(p->spec, i);
		int fd;

		if (!id)
			continue;
		fd = fcntl(master_fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return err_set(err, -errno, "duplicate the terminal");
		if (process_attach(p, i, id, fd, err))
			return err->code;
	}
	return 0;
}

static void process_on_sync(void *ctx, uint32_t events)
{
	process_read_reports(ctx);
}

static int process_order(struct process *p, enum child_order order, struct err *err)
{
	char c = (char)order;

	if (send(p->sync_fd, &c, 1, MSG_NOSIGNAL) == 1)
		return 0;
	/* It is dead or dying. Its report, which says why, may still be unread: the reaper answers. */
	if (errno == EPIPE || errno == ECONNRESET)
		return 0;
	return err_set(err, -errno, "give the process its order");
}

/* By kind. */
static int process_fork(struct process *p, struct plan *plan, struct spawned *ret, struct err *err)
{
	cleanup_close int child_fd = -1;
	int sync[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync))
		return err_set(err, -errno, "make a socket pair");
	p->sync_fd = sync[0];
	plan->sync_fd = child_fd = sync[1];
	return plan->create ? spawn_container(plan, ret, err)
			    : spawn_exec(plan, p->sync_fd, &child_fd, ret, err);
}

/* The child, forked now or ahead. */
static int process_get_child(struct process *p, struct plan *plan, struct err *err)
{
	struct container *c = p->container;
	struct spawned s = {.pidfd = -1};
	int e = plan->create && c->takes_spare
			? spare_take(&c->agent->spare, plan, &s, &p->sync_fd, err)
			: process_fork(p, plan, &s, err);

	if (e) {
		cleanup_closep(&p->sync_fd);
		return e;
	}
	p->pid = s.pid;
	p->pidfd = s.pidfd;
	return 0;
}

/* From here on failure means: kill the child, and the reaper finishes. */
static int process_configure(struct process *p, const struct plan *plan,
			     struct process_pipes *pipes, struct err *err)
{
	struct agent *a = p->container->agent;

	if (io_set_nonblock(p->sync_fd, true))
		return err_set(err, -errno, "set up the child's socket");
	p->sync_watch = loop_watch_add(a->loop, p->sync_fd, EPOLLIN, process_on_sync, p);
	if (!p->sync_watch)
		return err_set(err, -errno, "watch the child's socket");
	if (spawn_configure(plan, p->pid, err) ||
	    process_attach_pipes(p, plan->process, pipes, err) || process_order(p, CHILD_GO, err))
		return err->code;
	/* An exec is built and run in one go. */
	return plan->create ? 0 : process_order(p, CHILD_START, err);
}

int process_spawn(struct process *p, const AGENT_PB(CreateContainerRequest) * create,
		  const AGENT_PB(Process) * spec, struct err *err)
{
	struct container *c = p->container;
	cleanup(process_close_pipes) struct process_pipes pipes = {{-1, -1, -1}, {-1, -1, -1}};
	struct plan plan = {
		.params = c->agent->params,
		.create = create,
		.process = spec,
		.id = c->id,
		.disks = &c->disks,
		.uids = &c->uids,
		.gids = &c->gids,
		.namespaces = c->namespaces,
		.join_pidfd = create ? -1 : c->init.pidfd,
		.cgroup_fd = c->cgroup_fd,
	};

	if (process_open_pipes(p, spec, &pipes, err))
		return err->code;
	memcpy(plan.stdio, pipes.child, sizeof(plan.stdio));
	p->spec = spec;
	if (process_get_child(p, &plan, err)) {
		p->spec = NULL;
		return err->code;
	}
	p->state = create ? PROCESS_BUILDING : PROCESS_STARTING;
	if (process_configure(p, &plan, &pipes, err)) {
		p->failure = *err;
		kill(p->pid, SIGKILL);
	}
	return 0;
}

int process_release(struct process *p, struct err *err)
{
	if (process_order(p, CHILD_START, err))
		return err->code;
	p->state = PROCESS_STARTING;
	return 0;
}

static void process_end_sync(struct process *p)
{
	loop_watch_remove(p->sync_watch);
	p->sync_watch = NULL;
	cleanup_closep(&p->sync_fd);
}

/* The child's end is closed: the program runs, or the child is dead and about to be reaped. */
static void process_on_sync_end(struct process *p)
{
	AGENT_PB(StartResponse) response = HARPOON__AGENT__V1__START_RESPONSE__INIT;
	struct rpc_call *call = p->call;

	process_end_sync(p);
	if (p->state != PROCESS_STARTING || p->failure.code)
		return;
	p->state = PROCESS_RUNNING;
	p->spec = NULL;
	response.pid = (uint32_t)p->pid;
	p->call = NULL;
	if (call)
		rpc_reply(call, &response.base);
}

static void process_on_ready(struct process *p, int master_fd)
{
	AGENT_PB(CreateContainerResponse)
	response = HARPOON__AGENT__V1__CREATE_CONTAINER_RESPONSE__INIT;
	struct rpc_call *call = p->call;

	if (master_fd >= 0 && process_attach_terminal(p, master_fd, &p->failure)) {
		kill(p->pid, SIGKILL);
		return;
	}
	if (p->state != PROCESS_BUILDING)
		return;
	p->state = PROCESS_CREATED;
	p->spec = NULL;
	response.pid = (uint32_t)p->pid;
	p->call = NULL;
	if (call)
		rpc_reply(call, &response.base);
}

/* The child is ours until it runs the program, but a wrong report must not break the agent. */
static void process_on_report(struct process *p, struct child_report *r, int fd)
{
	bool wants_terminal = p->spec && p->spec->terminal && p->master_fd < 0;

	r->msg[sizeof(r->msg) - 1] = '\0';
	if (r->kind == CHILD_READY && !p->failure.code && (fd >= 0) == wants_terminal) {
		process_on_ready(p, fd);
		return;
	}
	if (fd >= 0)
		close(fd);
	if (p->failure.code)
		return;
	if (r->kind == CHILD_FAILED && r->value < 0) {
		err_say(&p->failure, r->value, "%s", r->msg);
		return;
	}
	err_say(&p->failure, -EPROTO, "the set-up process sent nonsense");
	kill(p->pid, SIGKILL);
}

void process_read_reports(struct process *p)
{
	while (p->sync_fd >= 0) {
		struct child_report report;
		int fds[1] = {-1};
		size_t nr_fds = 1;
		ssize_t n = io_recv_fds(p->sync_fd, &report, sizeof(report), fds, &nr_fds);

		if (n == -EAGAIN)
			return;
		/* Told once, ahead of messages, when the child ended with an order unread. */
		if (n == -ECONNRESET)
			continue;
		if (n <= 0) {
			process_on_sync_end(p);
			return;
		}
		if (n != sizeof(report))
			report.kind = 0;
		process_on_report(p, &report, nr_fds ? fds[0] : -1);
	}
}

void process_reaped(struct process *p, int wait_status)
{
	struct timespec now;

	process_read_reports(p);
	if (p->sync_fd >= 0)
		process_end_sync(p);
	clock_gettime(CLOCK_REALTIME, &now);
	p->exited_at_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	p->exit_status = WIFSIGNALED(wait_status) ? 128u + (uint32_t)WTERMSIG(wait_status)
						  : (uint32_t)WEXITSTATUS(wait_status);
	/* Of a container: any of its processes. The kernel counts kills, not whom they hit. */
	p->oom_kills = cgroup_oom_kills(p->container->cgroup_fd);
	p->oom_killed =
		(!p->id[0] || (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL)) &&
		p->oom_kills > 0;
	p->is_reaped = true;
	cleanup_closep(&p->pidfd);
	cleanup_closep(&p->master_fd);
	if (!p->failure.code && (p->state == PROCESS_BUILDING || p->call))
		err_say(&p->failure, -EIO, "the process died while it was set up (%s %d)",
			WIFSIGNALED(wait_status) ? "signal" : "exit status",
			WIFSIGNALED(wait_status) ? WTERMSIG(wait_status)
						 : WEXITSTATUS(wait_status));
	p->spec = NULL;
}

static void process_answer_wait(const struct process *p, struct rpc_call *call)
{
	AGENT_PB(WaitResponse) response = HARPOON__AGENT__V1__WAIT_RESPONSE__INIT;

	response.exit_status = p->exit_status;
	response.exited_at_ns = p->exited_at_ns;
	response.oom_killed = p->oom_killed;
	response.oom_kills = p->oom_kills;
	rpc_reply(call, &response.base);
}

void process_report_exit(struct process *p)
{
	struct process_waiter *w;
	struct rpc_call *call = p->call;

	p->state = PROCESS_STOPPED;
	p->call = NULL;
	if (call)
		rpc_fail_err(call, &p->failure);
	list_for_each (w, &p->waiters, link) {
		list_remove(&w->link);
		process_answer_wait(p, w->call);
		free(w);
	}
	p->nr_waiters = 0;
}

int process_wait(struct process *p, struct rpc_call *call, struct err *err)
{
	struct process_waiter *w;

	if (p->state == PROCESS_STOPPED) {
		process_answer_wait(p, call);
		return 0;
	}
	if (p->nr_waiters >= STATE_WAITERS_MAX)
		return err_say(err, -ENOSPC, "%zu calls wait for this process already",
			       p->nr_waiters);
	w = xcalloc(1, sizeof(*w));
	w->call = call;
	list_append(&p->waiters, &w->link);
	p->nr_waiters++;
	return 0;
}

void process_done(struct process *p)
{
	struct transport *t = p->container->agent->transport;
	struct process_waiter *w;

	if (p->sync_fd >= 0)
		process_end_sync(p);
	cleanup_closep(&p->pidfd);
	cleanup_closep(&p->master_fd);
	for (int i = 0; i < 3; i++)
		if (p->streams[i])
			t->ops->detach(p->streams[i]);
	list_for_each (w, &p->waiters, link) {
		list_remove(&w->link);
		rpc_fail(w->call, RPC_NOT_FOUND, "the process was deleted before it ran");
		free(w);
	}
	if (p->request)
		harpoon__agent__v1__exec_request__free_unpacked(p->request, NULL);
	p->request = NULL;
	list_remove(&p->link);
}
