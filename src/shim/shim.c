/*
 * The serving process: loop, server, publisher, signals, and the way out; see shim.h.
 *
 * Shutdown (containerd): the socket's name goes first, then the answers and events under way, then us.
 * SIGTERM, SIGINT: with no container, the same way out; with one they are ignored. A service manager that stops
 * containerd sends them to everything in its cgroup, and containers are to live through that. SIGHUP and SIGPIPE
 * are ignored.
 * Nobody: containerd does not call `delete` for a shim that it could not reach after `start`, or when it died before.
 * So a shim without a container that nobody is connected to for SHIM_IDLE_NS ends by itself.
 */
#include "shim.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "bundle.h"
#include "cleanup.h"
#include "container.h"
#include "hostcgroup.h"
#include "log.h"
#include "service.h"

/* containerd waits three seconds for a shim to shut down. */
#define SHIM_FLUSH_NS 2000000000ull
/* containerd connects at once; it gives up on a shim's socket after 100 seconds at most. */
#define SHIM_IDLE_NS 120000000000ull

static void shim_remove_socket(struct shim *s)
{
	/* Once only: the next shim of this id may have made its own under the name. */
	if (!s->socket_removed)
		unlink(s->socket_path);
	s->socket_removed = true;
}

static void shim_flushed(void *ctx)
{
	struct shim *s = ctx;

	loop_timer_cancel(&s->stop_timer);
	loop_stop(s->loop);
}

static void shim_answers_flushed(void *ctx)
{
	struct shim *s = ctx;

	publisher_flush(s->events, SHIM_FLUSH_NS, shim_flushed, s);
}

/* In a round of its own: the answer of Shutdown itself is queued by now. */
static void shim_flush(void *ctx)
{
	struct shim *s = ctx;

	/* A peer that does not read its answer must not keep us. */
	loop_timer_arm(s->loop, &s->stop_timer, SHIM_FLUSH_NS, shim_flushed, s);
	rpc_server_flush(s->server, shim_answers_flushed, s);
}

void shim_shutdown(struct shim *s)
{
	s->stopping = true;
	shim_remove_socket(s);
	loop_timer_arm(s->loop, &s->stop_timer, 0, shim_flush, s);
}

static void shim_check_idle(void *ctx)
{
	struct shim *s = ctx;
	bool is_idle = !s->container && !rpc_server_nr_conns(s->server);

	if (s->stopping)
		return;
	if (is_idle && s->was_idle) {
		log_warn("shim", "no container, and nobody is connected: the shim ends");
		shim_shutdown(s);
		return;
	}
	s->was_idle = is_idle;
	loop_timer_arm(s->loop, &s->idle_timer, SHIM_IDLE_NS / 2, shim_check_idle, s);
}

static void shim_terminate(struct shim *s)
{
	if (s->stopping)
		return;
	if (s->container) {
		log_dbg("shim", "told to terminate: ignored, there is a container");
		return;
	}
	log_info("shim", "told to terminate");
	shim_shutdown(s);
}

static void shim_on_signal(void *ctx, uint32_t events)
{
	struct shim *s = ctx;
	struct signalfd_siginfo info;

	while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
			shim_terminate(s);
	}
}

static int shim_watch_signals(struct shim *s, struct err *err)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return err_set(err, -errno, "block signals");
	s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0)
		return err_set(err, -errno, "signalfd");
	s->signal_watch = loop_watch_add(s->loop, s->signal_fd, EPOLLIN, shim_on_signal, s);
	return s->signal_watch ? 0 : err_set(err, -errno, "watch signals");
}

static int shim_init(struct shim *s, const struct shim_params *params, struct err *err)
{
	cleanup_close int listen_fd = params->listen_fd;
	int r;

	s->loop = loop_new();
	if (!s->loop)
		return err_set(err, -errno, "event loop");
	r = shim_watch_signals(s, err);
	if (r)
		return r;
	s->events = publisher_new(s->loop, params->ttrpc_address, s->namespace_);
	s->server = rpc_server_new(s->loop, service_list, service_list_len, s);
	shim_check_idle(s);
	return rpc_server_listen(s->server, take_fd(&listen_fd), err);
}

static void shim_done(struct shim *s)
{
	bool is_deleted = !s->container;

	loop_timer_cancel(&s->idle_timer);
	container_free(s->container);
	rpc_server_free(s->server);
	publisher_free(s->events);
	loop_watch_remove(s->signal_watch);
	cleanup_closep(&s->signal_fd);
	loop_free(s->loop);
	shim_remove_socket(s);
	/* What was not deleted in order is left for `delete` to read and remove. */
	if (is_deleted)
		bundle_state_remove(s->bundle_fd);
	cleanup_closep(&s->bundle_fd);
	config_done(&s->config);
}

int shim_serve(const struct shim_params *params, struct err *err)
{
	struct shim s = {.namespace_ = params->args->namespace_,
			 .id = params->args->id,
			 .signal_fd = -1,
			 .cgroup_host = &hostcgroup_real,
			 .bundle_fd = params->bundle_fd};
	int r;

	s.config = *params->config;
	*params->config = (struct config){0};
	snprintf(s.socket_path, sizeof(s.socket_path), "%s", params->socket_path);
	r = shim_init(&s, params, err);
	if (!r) {
		if (params->ready)
			params->ready(params->ctx);
		r = loop_run(s.loop);
		if (r)
			err_set(err, r, "event loop");
	}
	shim_done(&s);
	return r;
}
