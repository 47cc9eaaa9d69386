/*
 * The agent's objects, for its own files. One agent has containers, a container has its first process
 * (init) and execs. All are owned by the agent and live on the loop's thread.
 *
 * A process goes DEFINED -> BUILDING -> CREATED -> STARTING -> RUNNING -> STOPPED; an exec skips CREATED.
 * Any state after DEFINED may go to STOPPED, and only reaping does that.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent.h"
#include "devfilter.h"
#include "disks.h"
#include "err.h"
#include "list.h"
#include "loop.h"
#include "request.h"
#include "rpc.h"
#include "spare.h"

#define STATE_CONTAINERS_MAX 256
#define STATE_EXECS_MAX 1024  /* per container */
#define STATE_WAITERS_MAX 256 /* per process */

enum process_state {
	PROCESS_DEFINED,  /* known, nothing runs */
	PROCESS_BUILDING, /* the child sets up */
	PROCESS_CREATED,  /* the child waits for Start */
	PROCESS_STARTING, /* on its way to execve */
	PROCESS_RUNNING,
	PROCESS_STOPPED, /* reaped and reported */
	PROCESS_STATE_MAX
};

struct container;

struct process {
	struct list link; /* in container.execs; init: unused */
	struct container *container;
	char id[REQUEST_ID_MAX + 1]; /* exec id, "" = init */
	enum process_state state;
	pid_t pid;     /* 0 = no child */
	int pidfd;     /* -1 = no child */
	int sync_fd;   /* to the child until it runs the program */
	int master_fd; /* terminal, for Resize */
	struct loop_watch *sync_watch;
	struct transport_stream *streams[3]; /* NULL = over */
	AGENT_PB(ExecRequest) * request;     /* exec: owned copy */
	const AGENT_PB(Process) * spec;	     /* while setting up: borrowed from a request */

	struct rpc_call *call; /* CreateContainer or Start that waits for the child */
	struct rpc_call *delete_call;
	bool is_orphan;	     /* an exec whose client is gone: forgotten when it has ended */
	struct list waiters; /* struct process_waiter */
	size_t nr_waiters;
	struct err failure; /* code != 0: set-up failed, answered when reaped */
	bool is_reaped;
	uint32_t exit_status;
	int64_t exited_at_ns;
	bool oom_killed;
	uint64_t oom_kills; /* of the container, when this one ended */
};

struct process_waiter {
	struct list link;
	struct rpc_call *call;
};

struct container {
	struct list link; /* in agent.containers */
	struct agent *agent;
	char id[REQUEST_ID_MAX + 1];
	char *cgroup_name; /* below the agent's; the id, as it was then, or the spare one's */
	int cgroup_fd;
	bool takes_spare;    /* its first process is the agent's spare one */
	uint32_t namespaces; /* CLONE_NEW* of its own */
	struct id_map uids, gids;
	struct disks disks;
	struct process init;
	struct list execs;
	size_t nr_execs;
	struct rpc_call *delete_call;
	struct rpc_call *oom_call; /* WaitOom under way */
	uint64_t oom_seen;
	int oom_fd; /* memory.events while it waits */
	struct loop_watch *oom_watch;
	int events_fd; /* cgroup.events while a removal waits for it */
	struct loop_watch *events_watch;
};

struct agent {
	struct loop *loop;
	const struct agent_params *params;
	struct transport *transport;
	struct rpc_server *server;
	struct list containers;
	size_t nr_containers;
	int signal_fd;
	struct loop_watch *signal_watch;
	bool is_prepared;
	struct spare spare;
	struct relay *relay;
	struct devfilter_device channel; /* kind 0 = none */
};

/* ---- process.c: one process from fork to exit ---- */

void process_init(struct process *p, struct container *c, const char *exec_id);
/* Forks the child for `spec` and gives it its streams. create: the request of an init, else NULL. */
int process_spawn(struct process *p, const AGENT_PB(CreateContainerRequest) * create,
		  const AGENT_PB(Process) * spec, struct err *err);
/* Tells the CREATED child to run the program. */
int process_release(struct process *p, struct err *err);
/* Reads what the child reported; called by the watch and before a reaped child is reported. */
void process_read_reports(struct process *p);
/* The child is gone: records how. process_report_exit() tells the world. */
void process_reaped(struct process *p, int wait_status);
void process_report_exit(struct process *p);
int process_wait(struct process *p, struct rpc_call *call, struct err *err);
/* Closes everything and answers who still waits; the child must be gone. */
void process_done(struct process *p);
static inline bool process_is_alive(const struct process *p)
{
	return p->pid && !p->is_reaped;
}

/* ---- container.c ---- */

struct container *container_find(struct agent *a, const char *id, struct err *err);
struct process *container_find_process(struct container *c, const char *exec_id, struct err *err);
int container_create(struct agent *a, const AGENT_PB(CreateContainerRequest) * r,
		     struct rpc_call *call, struct err *err);
int container_add_exec(struct container *c, const AGENT_PB(ExecRequest) * r, struct err *err);
int container_start(struct container *c, struct process *p, struct rpc_call *call, struct err *err);
int container_delete(struct container *c, struct process *p, struct rpc_call *call,
		     struct err *err);
/* A process of the container was reaped: order of reports, and what waits for them. */
void container_on_reaped(struct container *c, struct process *p);
/* Owner of a child, NULL = an orphan that only needed reaping. */
struct process *container_find_pid(struct agent *a, pid_t pid);
void container_destroy(struct container *c);
void container_free_exec(struct process *p);

/* ---- checkpoint.c: a machine that is saved as it runs ---- */

/* Its processes stand still when this returns, and nothing of theirs is on its way to the host. */
int container_freeze(struct container *c, struct err *err);
int container_thaw(struct container *c, struct err *err);
/* Gives the only container, which runs, another id. NULL: there is no such one. */
struct container *container_adopt(struct agent *a, const char *id, struct err *err);

/* ---- oom.c: kills for want of memory ---- */

/* Answers the call when more than `seen` processes were killed; a second waiter replaces the first. */
int oom_wait(struct container *c, uint64_t seen, struct rpc_call *call, struct err *err);
/* Ends the waiting. Idempotent. */
void oom_done(struct container *c);

/* ---- service.c: the methods ---- */

extern const struct rpc_service agent_service;
