/*
 * Hooks inside the container; see starthook.h. Each runs in a process group of its own, which is killed at its
 * time limit. What it prints goes into a pipe, and the beginning of that into the error; nothing is waited for
 * once the hook itself has ended.
 */
#include "starthook.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "io.h"

#define STARTHOOK_OUTPUT_MAX 200
#define STARTHOOK_LIMIT_S 60 /* of a hook that has none: the call of Start waits for it */

struct starthook {
	const AGENT_PB(Hook) * hook;
	pid_t pid;
	int pidfd, output_fd;
	char output[STARTHOOK_OUTPUT_MAX + 1];
	size_t len;
};

int starthook_prepare(const AGENT_PB(CreateContainerRequest) * c, int *ret_state_fd,
		      struct err *err)
{
	cleanup_close int fd = -1;
	int e;

	*ret_state_fd = -1;
	if (!c->n_start_hooks)
		return 0;
	fd = memfd_create("hook-state", MFD_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "state of startContainer hooks");
	e = io_write_full(fd, c->hook_state, strlen(c->hook_state));
	if (e)
		return err_set(err, e, "state of startContainer hooks");
	*ret_state_fd = take_fd(&fd);
	return 0;
}

/* NULL-terminated copy; the child execs or dies. */
static char **starthook_list(char *const *v, size_t nr, char *first)
{
	char **list = xcalloc(nr + 2, sizeof(*list));

	if (nr)
		memcpy(list, v, nr * sizeof(*list));
	else
		list[0] = first;
	return list;
}

HARPOON_NORETURN static void starthook_exec(const AGENT_PB(Hook) * h, int in, int out)
{
	setpgid(0, 0);
	if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0)
		execve(h->path, starthook_list(h->args, h->n_args, h->path),
		       starthook_list(h->env, h->n_env, NULL));
	dprintf(2, "%s", strerror(errno));
	_exit(127);
}

static int starthook_spawn(struct starthook *s, int state_fd, struct err *err)
{
	int out[2], e;

	if (lseek(state_fd, 0, SEEK_SET) < 0 || pipe2(out, O_CLOEXEC | O_NONBLOCK))
		return err_set(err, -errno, "prepare");
	s->output_fd = out[0];
	s->pid = fork();
	if (!s->pid)
		starthook_exec(s->hook, state_fd, out[1]);
	e = errno;
	close(out[1]);
	if (s->pid < 0)
		return err_set(err, -e, "fork");
	setpgid(s->pid, s->pid);
	s->pidfd = sys_pidfd_open(s->pid);
	return s->pidfd < 0 ? err_set(err, -errno, "open a pidfd") : 0;
}

static void starthook_read(struct starthook *s)
{
	char rest[1024] = "";
	ssize_t n;

	for (;;) {
		bool full = s->len == STARTHOOK_OUTPUT_MAX;

		n = read(s->output_fd, full ? rest : s->output + s->len,
			 full ? sizeof(rest) : STARTHOOK_OUTPUT_MAX - s->len);
		if (n <= 0)
			break;
		if (!full)
			s->len += (size_t)n;
	}
	/* End of file, though the hook may still run: nothing more to poll for. */
	if (!n)
		cleanup_closep(&s->output_fd);
}

static int64_t starthook_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 0: it has ended. */
static int starthook_wait(struct starthook *s, struct err *err)
{
	uint32_t limit_s = s->hook->timeout_s ? s->hook->timeout_s : STARTHOOK_LIMIT_S;
	int64_t end = starthook_now_ms() + (int64_t)limit_s * 1000;

	for (;;) {
		struct pollfd p[2] = {{.fd = s->pidfd, .events = POLLIN},
				      {.fd = s->output_fd, .events = POLLIN}};
		int64_t left = end - starthook_now_ms();
		int n = left > 0 ? poll(p, 2, (int)(left < INT32_MAX ? left : INT32_MAX)) : 0;

		if (n < 0 && errno != EINTR)
			return err_set(err, -errno, "wait");
		if (!n)
			return err_say(err, -ETIMEDOUT, "did not end within %u s", limit_s);
		if (n > 0 && p[1].revents)
			starthook_read(s);
		if (n > 0 && p[0].revents)
			return 0;
	}
}

static int starthook_run_one(struct starthook *s, int state_fd, struct err *err)
{
	int status = 0;
	int e = starthook_spawn(s, state_fd, err);

	if (!e)
		e = starthook_wait(s, err);
	if (e && s->pid > 0)
		kill(-s->pid, SIGKILL);
	if (s->pid > 0)
		waitpid(s->pid, &status, 0);
	if (e)
		return e;
	if (s->output_fd >= 0)
		starthook_read(s);
	while (s->len && s->output[s->len - 1] == '\n')
		s->output[--s->len] = '\0';
	if (WIFSIGNALED(status))
		return err_say(err, -EIO, "was killed by signal %d: %s", WTERMSIG(status),
			       s->output);
	if (WEXITSTATUS(status))
		return err_say(err, -EIO, "ended with status %d: %s", WEXITSTATUS(status),
			       s->output);
	return 0;
}

int starthook_run(const AGENT_PB(CreateContainerRequest) * c, int state_fd, struct err *err)
{
	for (size_t i = 0; i < c->n_start_hooks; i++) {
		struct starthook s = {.hook = c->start_hooks[i], .pidfd = -1, .output_fd = -1};
		int e = starthook_run_one(&s, state_fd, err);

		cleanup_closep(&s.pidfd);
		cleanup_closep(&s.output_fd);
		if (e)
			return err_wrap(err, "startContainer hook '%.100s'", s.hook->path);
	}
	return 0;
}
