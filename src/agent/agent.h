/*
 * The agent: containers and their processes inside a guest, driven by ttrpc (proto/agent.proto).
 *
 * Threads: everything on the loop's thread. SIGCHLD belongs to it while it exists: it reaps every
 * child of the calling process. Ownership: the agent owns containers, processes and their descriptors;
 * the transport and the loop are borrowed and outlive it.
 */
#pragma once

#include "err.h"
#include "loop.h"
#include "plan.h"
#include "transport.h"

struct agent;

int agent_new(struct loop *loop, const struct agent_params *params, struct transport *transport,
	      struct agent **ret, struct err *err);
/* Serves calls from a connected stream socket (owned from here on). */
int agent_serve(struct agent *a, int fd, struct err *err);
/* What all containers share: controllers and the device filter of cgroup_dir. Idempotent. */
int agent_prepare(struct agent *a, struct err *err);
/*
 * What most containers need and takes time, after agent_prepare() and all mounts: the usual device filter, and a process
 * for the first container (spare.h). Once.
 */
int agent_preload(struct agent *a, struct err *err);
/* The other end of the transport is another one: what belonged to the old one is over. */
void agent_restart(struct agent *a);
/* Kills every container and waits for them, removes their cgroups. Accepts NULL. */
void agent_free(struct agent *a);
