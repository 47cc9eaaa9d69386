/*
 * The serving shim: one process, one thread, one loop, one container in one VM.
 */
#pragma once

#include <stdbool.h>

#include "address.h"
#include "args.h"
#include "config.h"
#include "events.h"
#include "loop.h"
#include "rpc.h"

struct container;

struct shim {
	struct loop *loop;
	struct config config;
	const char *namespace_, *id; /* borrowed from argv */
	char socket_path[ADDRESS_PATH_MAX + 1];
	bool socket_removed;
	struct rpc_server *server;
	struct publisher *events;
	struct container *container; /* NULL = none */
	const struct hostcgroup_host
		*cgroup_host; /* where the host's cgroups are; NULL = nowhere */
	bool stopping;	      /* the way out has begun */
	int signal_fd;
	struct loop_watch *signal_watch;
	struct loop_timer stop_timer, idle_timer;
	bool was_idle;
	int bundle_fd; /* where `start` ran, for the state folder; -1 = gone */
};

/*
 * Serves on listen_fd (owned) until the last container is gone and containerd said Shutdown (or SIGTERM came).
 * ready (may be NULL) is called once everything is set up, before the first request. The shim's config is
 * moved in and released.
 */
struct shim_params {
	const struct args *args;
	struct config *config;
	const char *socket_path, *ttrpc_address;
	int listen_fd, bundle_fd;
	void (*ready)(void *ctx);
	void *ctx;
};
int shim_serve(const struct shim_params *params, struct err *err);

/* Shutdown: from now on nobody finds this shim; ends when answers and events are out. */
void shim_shutdown(struct shim *s);
