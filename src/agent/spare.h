/*
 * The next container's first process, forked ahead of it: in a cgroup and in new namespaces, waiting to be told what it is.
 * Made in a machine that is about to be saved, so that each of its clones has one: what a fork into new namespaces and a
 * cgroup executes is over then, and under an emulator need not be translated.
 *
 * For what most containers ask for; others drop it and fork (spawn.h).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"
#include "plan.h"
#include "spawn.h"

/* No container's id begins so (request_id_is_valid). */
#define SPARE_CGROUP "+spare"

struct spare {
	struct spawned proc; /* pid 0: there is none */
	int sync_fd;
	int cgroup_fd;
};

#define SPARE_INIT \
	{ \
		.proc = {.pidfd = -1}, .sync_fd = -1, .cgroup_fd = -1 \
	}

/* It stands and waits when this returns. */
int spare_make(struct spare *s, const struct agent_params *params, struct err *err);
/* namespaces: all that the container is to have. */
bool spare_fits(const struct spare *s, uint32_t namespaces,
		const AGENT_PB(CreateContainerRequest) * r);
/*
 * Tells it; from here on it is the caller's, and goes on as a forked child does. Its cgroup was the caller's already.
 * On failure it is gone.
 */
int spare_take(struct spare *s, const struct plan *plan, struct spawned *ret, int *ret_sync_fd,
	       struct err *err);
/* Nobody needs it: ends it and removes its cgroup. Accepts none. */
void spare_drop(struct spare *s, const struct agent_params *params);
