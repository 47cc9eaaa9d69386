/*
 * Hooks; see hooks.h.
 *
 * The state goes in through a memory file, so a hook that never reads cannot block us. What a hook prints
 * goes into a pipe whose last bytes make the error message; once the hook itself has ended nothing is waited
 * for, whatever background process still holds the pipe. A hook runs in a process group of its own and the
 * whole group is killed at the time limit.
 */
#include "hooks.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "sys.h"
#include "util.h"

#define HOOKS_OUTPUT_MAX 400

struct hooks_run {
	struct loop *loop;
	const struct oci_hooks *const *lists;
	size_t nr_lists, list, index; /* the hook that runs, or runs next */
	char *state;
	bool keep_going;
	uint32_t limit_s;
	hooks_done_fn done;
	void *ctx;
	struct loop_timer timer; /* next hook, or time limit */
	pid_t pid;		 /* 0 = none runs */
	int pidfd, output_fd;
	struct loop_watch *watch;
};

static void hooks_next(void *ctx);

static void hooks_json_text(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			fprintf(f, "\\%c", c);
		else if (c < 0x20)
			fprintf(f, "\\u%04x", c);
		else
			fputc(c, f);
	}
	fputc('"', f);
}

static void hooks_json_member(FILE *f, const char *key, const char *value, const char *separator)
{
	fputs(separator, f);
	hooks_json_text(f, key);
	fputc(':', f);
	hooks_json_text(f, value);
}

char *hooks_state_json(const struct oci_spec *spec, const char *id, const char *status, pid_t pid,
		       const char *bundle)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	hooks_json_member(f, "ociVersion", spec->version ? spec->version : "1.0.2", "{");
	hooks_json_member(f, "id", id, ",");
	hooks_json_member(f, "status", status, ",");
	if (pid)
		fprintf(f, ",\"pid\":%d", (int)pid);
	hooks_json_member(f, "bundle", bundle, ",");
	if (spec->nr_annotations)
		fputs(",\"annotations\":{", f);
	for (size_t i = 0; i < spec->nr_annotations; i++)
		hooks_json_member(f, spec->annotations[i].key, spec->annotations[i].value,
				  i ? "," : "");
	fputs(spec->nr_annotations ? "}}" : "}", f);
	if (fclose(f))
		abort();
	return text;
}

static void hooks_stop_current(struct hooks_run *run)
{
	loop_timer_cancel(&run->timer);
	loop_watch_remove(run->watch);
	run->watch = NULL;
	if (run->pid) {
		kill(-run->pid, SIGKILL);
		waitpid(run->pid, NULL, 0);
	}
	run->pid = 0;
	cleanup_closep(&run->pidfd);
	cleanup_closep(&run->output_fd);
}

static void hooks_free(struct hooks_run *run)
{
	hooks_stop_current(run);
	free(run->state);
	free(run);
}

void hooks_cancel(struct hooks_run *run)
{
	if (run)
		hooks_free(run);
}

static const struct oci_hook *hooks_current(struct hooks_run *run)
{
	while (run->list < run->nr_lists && run->index >= run->lists[run->list]->nr) {
		run->list++;
		run->index = 0;
	}
	return run->list < run->nr_lists ? &run->lists[run->list]->v[run->index] : NULL;
}

/* The current hook is over: on to the next, or to the end. */
static void hooks_finish_current(struct hooks_run *run, const struct err *err)
{
	hooks_done_fn done = run->done;
	void *ctx = run->ctx;

	hooks_stop_current(run);
	if (err->code && !run->keep_going) {
		hooks_free(run);
		done(ctx, err);
		return;
	}
	if (err->code)
		log_warn("shim", "%s", err->msg);
	run->index++;
	loop_timer_arm(run->loop, &run->timer, 0, hooks_next, run);
}

static void hooks_read_output(struct hooks_run *run, char text[HOOKS_OUTPUT_MAX + 1])
{
	ssize_t n;
	size_t len = 0;

	/* Only what is in the pipe now; non-blocking. */
	while (len < HOOKS_OUTPUT_MAX &&
	       (n = read(run->output_fd, text + len, HOOKS_OUTPUT_MAX - len)) > 0)
		len += (size_t)n;
	while (len && text[len - 1] == '\n')
		len--;
	text[len] = '\0';
}

static void hooks_exited(void *ctx, uint32_t events)
{
	struct hooks_run *run = ctx;
	const struct oci_hook *hook = hooks_current(run);
	char output[HOOKS_OUTPUT_MAX + 1];
	struct err err = {0};
	int status = 0;

	if (waitpid(run->pid, &status, WNOHANG) != run->pid)
		return;
	run->pid = 0;
	hooks_read_output(run, output);
	if (WIFSIGNALED(status))
		err_say(&err, -EIO, "hook '%.100s' was killed by signal %d: %s", hook->path,
			WTERMSIG(status), output);
	else if (WEXITSTATUS(status))
		err_say(&err, -EIO, "hook '%.100s' ended with status %d: %s", hook->path,
			WEXITSTATUS(status), output);
	hooks_finish_current(run, &err);
}

static void hooks_timed_out(void *ctx)
{
	struct hooks_run *run = ctx;
	struct err err = {0};

	err_say(&err, -ETIMEDOUT, "hook '%.100s' did not end in time and was killed",
		hooks_current(run)->path);
	hooks_finish_current(run, &err);
}

/* In the child: only async-signal-safe calls. */
HARPOON_NORETURN static void hooks_exec(const struct oci_hook *hook, int in, int out)
{
	static char *const nothing[] = {NULL};
	char *const argv0[] = {hook->path, NULL};
	sigset_t none;

	setpgid(0, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0 &&
	    !sys_close_range(3, ~0u, 0))
		execve(hook->path, hook->args.nr ? hook->args.v : argv0,
		       hook->env.nr ? hook->env.v : nothing);
	dprintf(2, "%s", strerrordesc_np(errno));
	_exit(127);
}

static int hooks_spawn(struct hooks_run *run, const struct oci_hook *hook, struct err *err)
{
	cleanup_close int in = memfd_create("hook-state", MFD_CLOEXEC);
	int out[2];
	int r;

	if (in < 0)
		return err_set(err, -errno, "hook '%.100s': state", hook->path);
	r = io_write_full(in, run->state, strlen(run->state));
	if (r || lseek(in, 0, SEEK_SET) < 0)
		return err_set(err, r ? r : -errno, "hook '%.100s': state", hook->path);
	if (pipe2(out, O_CLOEXEC | O_NONBLOCK))
		return err_set(err, -errno, "hook '%.100s': pipe", hook->path);
	run->pid = fork();
	if (!run->pid)
		hooks_exec(hook, in, out[1]);
	r = run->pid < 0 ? -errno : 0;
	close(out[1]);
	run->output_fd = out[0];
	if (r) {
		run->pid = 0;
		return err_set(err, r, "hook '%.100s': fork", hook->path);
	}
	setpgid(run->pid, run->pid);
	run->pidfd = sys_pidfd_open(run->pid);
	if (run->pidfd >= 0)
		run->watch = loop_watch_add(run->loop, run->pidfd, EPOLLIN, hooks_exited, run);
	return run->watch ? 0 : err_set(err, -errno, "hook '%.100s': watch", hook->path);
}

static void hooks_next(void *ctx)
{
	struct hooks_run *run = ctx;
	const struct oci_hook *hook = hooks_current(run);
	struct err err = {0};
	uint32_t limit_s;

	if (!hook) {
		hooks_done_fn done = run->done;
		void *done_ctx = run->ctx;

		hooks_free(run);
		done(done_ctx, &err);
		return;
	}
	if (hooks_spawn(run, hook, &err)) {
		hooks_finish_current(run, &err);
		return;
	}
	limit_s = hook->timeout_s ? MIN(hook->timeout_s, run->limit_s) : run->limit_s;
	loop_timer_arm(run->loop, &run->timer, limit_s * 1000000000ull, hooks_timed_out, run);
}

struct hooks_run *hooks_start(struct loop *loop, const struct oci_hooks *const *lists, size_t nr,
			      const char *state, bool keep_going, uint32_t limit_s,
			      hooks_done_fn done, void *ctx)
{
	struct hooks_run *run = xcalloc(1, sizeof(*run));

	*run = (struct hooks_run){.loop = loop,
				  .lists = lists,
				  .nr_lists = nr,
				  .state = xstrdup(state),
				  .keep_going = keep_going,
				  .limit_s = limit_s,
				  .done = done,
				  .ctx = ctx,
				  .pidfd = -1,
				  .output_fd = -1};
	loop_timer_arm(loop, &run->timer, 0, hooks_next, run);
	return run;
}
