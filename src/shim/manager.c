/*
 * `start` and the small ones; see manager.h.
 *
 * start: reads containerd's parameters, loads the configuration, makes the socket, leaves `address` in the
 * bundle, forks the daemon, waits until it serves (or says why not), prints the address. containerd reads
 * stdout and stderr as one text until everybody has closed them, so nothing else is printed and the
 * daemon keeps neither.
 *
 * The daemon is the same process image (a new session, no exec): less time, and one program less to find.
 * It is no subreaper: every process of a VM is its own child, and dies with it.
 */
#include "manager.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "address.h"
#include "bootstrap.h"
#include "bundle.h"
#include "cleanup.h"
#include "config.h"
#include "containerd_bootstrap.pb-c.h"
#include "info.h"
#include "io.h"
#include "log.h"
#include "shim.h"
#include "sys.h"

#ifndef MANAGER_VERSION
#define MANAGER_VERSION "unknown"
#endif

/* Where the daemon keeps what it inherits; all above is closed. */
enum { MANAGER_LISTEN_FD = 3, MANAGER_STATUS_FD, MANAGER_BUNDLE_FD, MANAGER_FD_END };

struct manager_start {
	const struct args *args;
	char **argv;
	struct config config;
	struct bootstrap bootstrap;
	bool debug;
	char socket_path[ADDRESS_PATH_MAX + 1];
	char bundle[PATH_MAX];
	int listen_fd;
};

static int manager_fail(const struct err *err)
{
	fprintf(stderr, "%s\n", err->msg);
	return 1;
}

/* ---- the daemon's side ---- */

/* containerd's oom_score_adj plus one, as its own shims have it: killed rather than containerd itself. */
static void manager_adjust_oom_score(pid_t containerd)
{
	cleanup_free char *text = NULL;
	char path[64];
	long score;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)containerd);
	if (io_read_file(AT_FDCWD, path, 64, &text, NULL))
		return;
	score = strtol(text, NULL, 10);
	n = snprintf(path, sizeof(path), "%ld", score < 1000 ? score + 1 : 1000);
	io_write_file(AT_FDCWD, "/proc/self/oom_score_adj", path, (size_t)n);
}

/* As containerd's own shims: with SCHED_CORE, no core is shared with other containers' processes. */
static void manager_schedule_apart(void)
{
	const char *env = getenv("SCHED_CORE");

	if (env && *env &&
	    prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, PR_SCHED_CORE_SCOPE_THREAD_GROUP, 0))
		log_warn("shim", "core scheduling (SCHED_CORE): %s", strerror(errno));
}

/*
 * stderr becomes containerd's log FIFO. Opened for both directions, so that it neither fails nor breaks while
 * containerd is away: lines wait in the FIFO, and what does not fit is counted.
 */
static void manager_redirect(int bundle_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int fifo = openat(bundle_fd, "log", O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(fifo >= 0 ? fifo : null, STDERR_FILENO);
		close(null);
	}
	if (fifo >= 0)
		close(fifo);
}

static void manager_ready(void *ctx)
{
	int *status_fd = ctx;

	io_write_full(*status_fd, "", 1);
	cleanup_closep(status_fd);
}

/* Puts the descriptors the daemon needs at their places and closes all others. */
static int manager_place_fds(int listen_fd, int status_fd, int bundle_fd)
{
	int fds[] = {listen_fd, status_fd, bundle_fd};

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, MANAGER_FD_END);
		if (fds[i] < 0)
			return -errno;
	}
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		if (dup3(fds[i], MANAGER_LISTEN_FD + (int)i, O_CLOEXEC) < 0)
			return -errno;
	}
	return sys_close_range(MANAGER_FD_END, ~0u, 0) ? -errno : 0;
}

static int manager_serve(struct manager_start *m, const char *ttrpc)
{
	int status_fd = MANAGER_STATUS_FD;
	struct shim_params params = {.args = m->args,
				     .config = &m->config,
				     .socket_path = m->socket_path,
				     .ttrpc_address = ttrpc,
				     .listen_fd = MANAGER_LISTEN_FD,
				     .bundle_fd = MANAGER_BUNDLE_FD,
				     .ready = manager_ready,
				     .ctx = &status_fd};
	struct err err = {0};
	int r = shim_serve(&params, &err);

	if (r) {
		log_err("shim", "%s", err.msg);
		/* When it never became ready, `start` waits for this. */
		if (status_fd >= 0)
			io_write_full(status_fd, err.msg, strlen(err.msg));
	}
	return r ? 1 : 0;
}

static int manager_daemon(struct manager_start *m, int status_fd, pid_t containerd)
{
	cleanup_free char *ttrpc = NULL;
	cleanup_close int bundle_fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	const char *env = getenv("TTRPC_ADDRESS");
	char *word = m->argv[0];
	int r;

	setsid();
	manager_schedule_apart();
	manager_adjust_oom_score(containerd);
	manager_redirect(bundle_fd);
	r = manager_place_fds(m->listen_fd, status_fd, bundle_fd);
	take_fd(&bundle_fd); /* closed with all the others */
	if (r || chdir("/"))
		return 1;
	/* In the process list this is not `start` any more. */
	for (char **a = m->argv; *a; a++)
		word = *a;
	if (word && !strcmp(word, "start"))
		memset(word, 0, strlen(word));
	log_init(STDERR_FILENO, m->debug ? LOG_LEVEL_DBG : m->config.log_level, m->args->id);
	ttrpc = env && *env ? xstrdup(env) : xasprintf("%s.ttrpc", m->args->address);
	return manager_serve(m, ttrpc);
}

/* ---- start ---- */

/*
 * Waits until the daemon closes the pipe. A zero byte says that it serves, words are the reason why it does not; one
 * that was killed before it could say either leaves nothing.
 */
static int manager_wait_ready(int fd, struct err *err)
{
	char text[ERR_MSG_MAX];
	ssize_t n = io_read_full(fd, text, sizeof(text) - 1);

	if (n < 0)
		return err_set(err, (int)n, "wait for the shim to serve");
	if (!n)
		return err_say(err, -EIO, "the serving process was killed before it served");
	text[n] = '\0';
	return *text ? err_say(err, -EIO, "%s", text) : 0;
}

static int manager_print_address(const struct manager_start *m)
{
	size_t len;
	cleanup_free uint8_t *data =
		bootstrap_format(&m->bootstrap, m->config.bootstrap, m->socket_path, &len);

	return io_write_full(STDOUT_FILENO, data, len) ? 1 : 0;
}

static int manager_fork(struct manager_start *m, struct err *err)
{
	cleanup_close int status = -1;
	pid_t containerd = getppid(), pid;
	int p[2], r;

	if (pipe2(p, O_CLOEXEC))
		return err_set(err, -errno, "pipe");
	status = p[0];
	pid = fork();
	if (!pid)
		_exit(manager_daemon(m, p[1], containerd));
	r = pid < 0 ? -errno : 0;
	close(p[1]);
	if (r)
		return err_set(err, r, "fork the serving process");
	return manager_wait_ready(status, err);
}

static int manager_prepare(struct manager_start *m, struct err *err)
{
	int r = bootstrap_read(STDIN_FILENO, &m->bootstrap, err);

	m->debug = m->args->debug || m->bootstrap.debug;
	if (r)
		return r;
	if (!getcwd(m->bundle, sizeof(m->bundle)))
		return err_set(err, -errno, "name of the bundle (the working directory)");
	address_path(m->args->address, m->args->namespace_, m->args->id, m->socket_path);
	return config_load(&m->config, err);
}

static int manager_launch(struct manager_start *m, struct err *err)
{
	cleanup_free char *address = xasprintf("%s%s", BOOTSTRAP_SCHEME, m->socket_path);
	int r = io_replace_file(AT_FDCWD, "address", address, strlen(address));

	if (r)
		err_set(err, r, "write 'address' in bundle '%s'", m->bundle);
	else
		r = manager_fork(m, err);
	if (r)
		unlink(m->socket_path);
	return r;
}

int manager_start(const struct args *args, char **argv)
{
	struct manager_start m = {.args = args, .argv = argv, .listen_fd = -1};
	struct err err = {0};
	bool in_use = false;
	int r = manager_prepare(&m, &err);

	if (!r) {
		m.listen_fd = r = address_listen(m.socket_path, &in_use, &err);
		if (r >= 0)
			r = manager_launch(&m, &err);
	}
	/* Somebody serves this id already: then that is the address. */
	if (r < 0 && !in_use)
		r = manager_fail(&err);
	else
		r = manager_print_address(&m);
	config_done(&m.config);
	bootstrap_done(&m.bootstrap);
	return r;
}

/* ---- the small ones ---- */

int manager_info(void)
{
	static char name[] = MANAGER_RUNTIME_NAME, number[] = MANAGER_VERSION;
	static char type[] = INFO_FEATURES_TYPE;
	Ctrd__RuntimeInfo info = CTRD__RUNTIME_INFO__INIT;
	Ctrd__RuntimeVersion version = CTRD__RUNTIME_VERSION__INIT;
	Ctrd__Any features = CTRD__ANY__INIT;
	cleanup_free char *json = info_features_json();
	cleanup_free uint8_t *data = NULL;
	size_t len;
	int r;

	info.name = name;
	version.version = number;
	info.version = &version;
	features.type_url = type;
	features.value.data = (uint8_t *)json;
	features.value.len = strlen(json);
	info.features = &features;
	len = ctrd__runtime_info__get_packed_size(&info);
	data = xmalloc(len);
	ctrd__runtime_info__pack(&info, data);
	r = io_write_full(STDOUT_FILENO, data, len);
	return r ? 1 : 0;
}

int manager_version(void)
{
	printf("containerd-shim-harpoon-v1:\n  Version:  %s\n", MANAGER_VERSION);
	return 0;
}
