/* Logging programs and files; see logger.h. The program is a child of the shim, reaped in logger_stop(). */
#include "logger.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "sys.h"
#include "util.h"

#define LOGGER_SCHEME "binary://"
#define LOGGER_ARGS_MAX 64
#define LOGGER_END_MS 3000
#define LOGGER_TERM_MS 1000

enum { LOGGER_OUT = 3, LOGGER_ERR, LOGGER_READY, LOGGER_FD_PARK = 16 };

/* ---- the program ---- */

static int logger_hex(char c)
{
	const char *digits = "0123456789abcdef";
	const char *p = c ? strchr(digits, tolower((unsigned char)c)) : NULL;

	return p ? (int)(p - digits) : -1;
}

/* Undoes percent-encoding in place. */
static void logger_decode(char *s, bool plus_is_blank)
{
	char *out = s;

	for (; *s; s++) {
		int high = *s == '%' ? logger_hex(s[1]) : -1;
		int low = high < 0 ? -1 : logger_hex(s[2]);

		if (low >= 0) {
			*out++ = (char)(high * 16 + low);
			s += 2;
		} else {
			*out++ = *s == '+' && plus_is_blank ? ' ' : *s;
		}
	}
	*out = '\0';
}

/* Cuts "path?k=v&k2=v2" up in place into argv: path k v k2 v2 NULL. */
static int logger_split(char *text, char *argv[LOGGER_ARGS_MAX], struct err *err)
{
	char *query = strchr(text, '?'), *save = NULL;
	size_t nr = 0;

	if (query)
		*query++ = '\0';
	logger_decode(text, false);
	argv[nr++] = text;
	for (char *pair = query ? strtok_r(query, "&", &save) : NULL; pair;
	     pair = strtok_r(NULL, "&", &save)) {
		char *value = strchr(pair, '=');

		if (nr + 3 > LOGGER_ARGS_MAX)
			return err_say(err, -E2BIG, "logging program: more than %d arguments",
				       LOGGER_ARGS_MAX);
		if (value)
			*value++ = '\0';
		logger_decode(pair, true);
		argv[nr++] = pair;
		if (!value || !*value)
			continue;
		logger_decode(value, true);
		argv[nr++] = value;
	}
	argv[nr] = NULL;
	if (text[0] != '/')
		return err_say(err, -EINVAL, "logging program '%.200s' is not an absolute path",
			       text);
	return 0;
}

/* In the child: only async-signal-safe calls. */
HARPOON_NORETURN static void logger_exec(char *const argv[], char *const env[], const int fds[3])
{
	int parked[3];
	sigset_t none;

	setpgid(0, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	for (int i = 0; i < 3; i++) {
		parked[i] = fcntl(fds[i], F_DUPFD, LOGGER_FD_PARK);
		if (parked[i] < 0)
			_exit(127);
	}
	for (int i = 0; i < 3; i++) {
		if (dup2(parked[i], LOGGER_OUT + i) < 0)
			_exit(127);
	}
	sys_close_range(LOGGER_READY + 1, ~0u, 0);
	execve(argv[0], argv, env);
	_exit(127);
}

static int logger_fork(struct logger *l, char *const argv[], char *const env[], const int fds[3],
		       struct err *err)
{
	pid_t pid = fork();

	if (!pid)
		logger_exec(argv, env, fds);
	if (pid < 0)
		return err_set(err, -errno, "fork logging program '%.200s'", argv[0]);
	l->pid = pid;
	l->pidfd = sys_pidfd_open(pid);
	return 0;
}

int logger_start(struct logger *l, const char *uri, const char *id, const char *namespace_,
		 int ret_fds[2], struct err *err)
{
	cleanup_free char *text = xstrdup(uri + strlen(LOGGER_SCHEME));
	cleanup_free char *env_id = xasprintf("CONTAINER_ID=%s", id);
	cleanup_free char *env_ns = xasprintf("CONTAINER_NAMESPACE=%s", namespace_);
	char *argv[LOGGER_ARGS_MAX + 1], *env[] = {env_id, env_ns, NULL};
	int p[3][2], nr, r = logger_split(text, argv, err);

	if (r)
		return r;
	if (access(argv[0], X_OK))
		return err_set(err, -errno, "logging program '%.200s'", argv[0]);
	for (nr = 0; nr < 3; nr++) {
		if (pipe2(p[nr], O_CLOEXEC)) {
			r = err_set(err, -errno, "pipe of the logging program");
			break;
		}
	}
	/* The program's ends: two to read from, one to write to. */
	if (!r)
		r = logger_fork(l, argv, env, (int[]){p[0][0], p[1][0], p[2][1]}, err);
	for (int i = 0; i < nr; i++) {
		close(p[i][i == 2]);
		if (r)
			close(p[i][i != 2]);
	}
	if (r)
		return r;
	l->ready_fd = p[2][0];
	io_set_nonblock(l->ready_fd, true);
	ret_fds[0] = p[0][1];
	ret_fds[1] = p[1][1];
	return 0;
}

bool logger_is_ready(struct logger *l)
{
	char c;

	if (l->ready_fd < 0)
		return true;
	if (read(l->ready_fd, &c, 1) < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	cleanup_closep(&l->ready_fd);
	return true;
}

static bool logger_wait(const struct logger *l, int ms)
{
	struct pollfd p = {.fd = l->pidfd, .events = POLLIN};

	return l->pidfd >= 0 && poll(&p, 1, ms) > 0;
}

void logger_stop(struct logger *l)
{
	if (!l->pid)
		return;
	cleanup_closep(&l->ready_fd);
	if (!logger_wait(l, LOGGER_END_MS)) {
		kill(l->pid, SIGTERM);
		if (!logger_wait(l, LOGGER_TERM_MS)) {
			log_warn("shim", "the logging program does not end: killed");
			kill(l->pid, SIGKILL);
		}
	}
	waitpid(l->pid, NULL, 0);
	cleanup_closep(&l->pidfd);
	l->pid = 0;
}

/* ---- the file ---- */

static void logger_make_folders(const char *path)
{
	char dir[PATH_MAX];

	snprintf(dir, sizeof(dir), "%s", path);
	for (char *p = strchr(dir + 1, '/'); p; p = strchr(p + 1, '/')) {
		*p = '\0';
		mkdir(dir, 0755);
		*p = '/';
	}
}

static int logger_open_file(const char *path, struct err *err)
{
	cleanup_close int fd = -1;
	struct stat st;

	if (path[0] != '/' || strlen(path) >= PATH_MAX)
		return err_say(err, -EINVAL, "log file '%.200s' is not an absolute path", path);
	logger_make_folders(path);
	fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
	if (fd < 0)
		return err_set(err, -errno, "open log file '%.300s'", path);
	if (fstat(fd, &st))
		return err_set(err, -errno, "look at log file '%.300s'", path);
	if (!S_ISREG(st.st_mode))
		return err_say(err, -EINVAL, "log file '%.300s' is not a regular file", path);
	return take_fd(&fd);
}

/* Moves what is there. True when the end was reached. */
static bool logger_file_pump(struct logger_file *f)
{
	char data[16384];

	for (;;) {
		ssize_t n = read(f->rfd, data, sizeof(data));
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return !n || errno != EAGAIN;
		r = f->failed ? 0 : io_write_full(f->file, data, (size_t)n);
		if (r) {
			log_err("shim", "log file: %s: output is lost", strerror(-r));
			f->failed = true;
		}
	}
}

static void logger_file_on_input(void *ctx, uint32_t events)
{
	struct logger_file *f = ctx;

	if (!logger_file_pump(f))
		return;
	logger_file_close(f);
	f->over(f->ctx);
}

int logger_file_open(struct logger_file *f, struct loop *loop, const char *path, loop_fn over,
		     void *ctx, struct err *err)
{
	cleanup_close int file = logger_open_file(path, err);
	int p[2];

	if (file < 0)
		return file;
	if (pipe2(p, O_CLOEXEC | O_NONBLOCK))
		return err_set(err, -errno, "pipe of the log file");
	*f = (struct logger_file){
		.loop = loop, .rfd = p[0], .file = take_fd(&file), .over = over, .ctx = ctx};
	f->watch = loop_watch_add(loop, f->rfd, EPOLLIN, logger_file_on_input, f);
	if (!f->watch) {
		close(p[1]);
		logger_file_close(f);
		return err_set(err, -errno, "watch the log file's pipe");
	}
	return p[1];
}

void logger_file_close(struct logger_file *f)
{
	loop_watch_remove(f->watch);
	f->watch = NULL;
	if (f->rfd >= 0)
		logger_file_pump(f);
	cleanup_closep(&f->rfd);
	cleanup_closep(&f->file);
}
