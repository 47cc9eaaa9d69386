/*
 * A process of a VM; see child.h.
 *
 * Thread: the loop's. What the process writes is logged line by line, escaped and at most
 * CHILD_LOG_LINES_MAX of them: a guest may be able to make its VMM complain for ever.
 */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "sys.h"

#define CHILD_LOG_LINES_MAX 100

void child_init(struct child *c, struct loop *loop, const char *role, loop_fn on_exit, void *ctx)
{
	*c = (struct child){.loop = loop,
			    .role = role,
			    .pidfd = -1,
			    .output_fd = -1,
			    .on_exit = on_exit,
			    .ctx = ctx};
}

static void child_on_line(void *ctx, const char *line)
{
	struct child *c = ctx;

	snprintf(c->last_line, sizeof(c->last_line), "%s", line);
	if (c->nr_lines++ < CHILD_LOG_LINES_MAX)
		log_warn(c->role, "%s", line);
}

/* Returns false when nothing more is to be had now. */
static bool child_read_output(struct child *c)
{
	char in[1024];
	ssize_t n = read(c->output_fd, in, sizeof(in));

	if (n > 0)
		text_lines_feed(&c->lines, in, (size_t)n, child_on_line, c);
	if (n > 0 || (n < 0 && errno == EINTR))
		return true;
	if (!n || errno != EAGAIN) {
		loop_watch_remove(c->output_watch);
		c->output_watch = NULL;
	}
	return false;
}

static void child_on_output(void *ctx, uint32_t events)
{
	child_read_output(ctx);
}

static void child_reap(struct child *c)
{
	siginfo_t info = {0};
	int r;

	do
		r = waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED);
	while (r && errno == EINTR);
	c->exited = true;
	c->status = -1;
	if (!r)
		c->status = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

static void child_on_pidfd(void *ctx, uint32_t events)
{
	struct child *c = ctx;

	loop_watch_remove(c->watch);
	c->watch = NULL;
	child_reap(c);
	/* The pipe holds at most 64 KiB and nobody writes any more. */
	while (c->output_watch && child_read_output(c))
		;
	text_lines_flush(&c->lines, child_on_line, c);
	c->on_exit(c->ctx);
}

static int child_watch(struct child *c, struct err *err)
{
	int r = io_set_nonblock(c->output_fd, true);

	if (r)
		return err_set(err, r, "start %s", c->role);
	c->watch = loop_watch_add(c->loop, c->pidfd, EPOLLIN, child_on_pidfd, c);
	c->output_watch = loop_watch_add(c->loop, c->output_fd, EPOLLIN, child_on_output, c);
	if (!c->watch || !c->output_watch)
		return err_set(err, -errno, "watch %s", c->role);
	return 0;
}

int child_start(struct child *c, struct spawn_params *params, struct err *err)
{
	cleanup_close int write_end = -1;
	struct spawn_child started;
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC))
		return err_set(err, -errno, "start %s: pipe", c->role);
	c->output_fd = ends[0];
	write_end = ends[1];
	params->output_fd = write_end;
	params->cgroup_fds = c->cgroup_fds;
	params->nr_cgroup_fds = c->nr_cgroup_fds;
	r = spawn(params, &started, err);
	if (r)
		return r;
	c->pid = started.pid;
	c->pidfd = started.pidfd;
	return child_watch(c, err);
}

void child_kill(struct child *c)
{
	if (child_is_running(c))
		sys_pidfd_send_signal(c->pidfd, SIGKILL);
}

void child_done(struct child *c)
{
	loop_watch_remove(c->watch);
	loop_watch_remove(c->output_watch);
	c->watch = c->output_watch = NULL;
	if (child_is_running(c)) {
		child_kill(c);
		child_reap(c);
	}
	cleanup_closep(&c->pidfd);
	cleanup_closep(&c->output_fd);
}

void child_describe_exit(const struct child *c, char *out, size_t len)
{
	const char *line = c->last_line;

	if (c->status < 0)
		snprintf(out, len, "ended");
	else if (c->status > 128)
		snprintf(out, len, "was killed by signal %d (%s)%s%s", c->status - 128,
			 strsignal(c->status - 128), *line ? ": " : "", line);
	else
		snprintf(out, len, "exited with code %d%s%s", c->status, *line ? ": " : "", line);
}
