/*
 * The container of a shim: bundle, VM, processes, and its life from Create to Delete.
 *
 *   CREATING -> LIVE -> EXITING -> STOPPED -> DELETING -> gone
 *
 * CREATING  create.c builds it up; any failure tears everything down and it never existed.
 * LIVE      the VM runs; init is created, running or paused.
 * EXITING   init has ended; the last output is on its way, then the VM is killed.
 * STOPPED   no VM, no process; TaskExit is out. The root file system is still mounted.
 *
 * A VM that dies for any reason goes to STOPPED from wherever it was.
 * Threads: the loop's. Callbacks of the VM and of the agent only note; tearing down happens in a timer.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "agent_client.h"
#include "containerd_task.pb-c.h"
#include "disks.h"
#include "forward.h"
#include "hooks.h"
#include "hv.h"
#include "network.h"
#include "process.h"
#include "relay.h"
#include "shim.h"
#include "timeline.h"

#define CONTAINER_EXECS_MAX 1024
/* How long output may take to reach its reader after its process has ended. */
#define CONTAINER_DRAIN_NS 10000000000ull

enum container_phase {
	CONTAINER_CREATING,
	CONTAINER_LIVE,
	CONTAINER_EXITING,
	CONTAINER_STOPPED,
	CONTAINER_DELETING,
};

struct create;
struct checkpoint;

/* clock.c */
struct clock_state {
	bool busy, again;
	unsigned int samples;
	uint64_t sent_ns;
	int64_t sent_real_ns; /* the same moment, CLOCK_REALTIME */
	/* Of the quickest exchange: what it took, and how far ahead of ours the guest's clock was. */
	uint64_t best_ns;
	int64_t best_ahead_ns;
	loop_fn done;
	/* While it runs: when to look again, also when the host's clock is set. NULL and -1 = never. */
	struct loop_watch *watch;
	int timer_fd;
	bool gradual; /* programs run by this clock: no steps that need not be */
};

struct container {
	struct shim *shim;
	char *id, *bundle, *state_dir;
	int bundle_fd, state_fd;
	struct oci_spec *spec;
	enum container_phase phase;
	struct create *create;	   /* while CREATING */
	struct hostcgroup *cgroup; /* NULL = the host has none */
	uint64_t mem_bytes;	   /* of the VM, as far as it has grown */
	struct hv_vm *vm;
	struct disks *disks;
	struct network *network;
	struct relay *relay;
	struct forward *forward;
	struct agent_client *agent;
	struct clock_state clock;
	struct timeline times;
	pid_t pid; /* of the VM; kept when it is gone */
	struct process init;
	struct list execs;
	size_t nr_execs;
	uint32_t next_stream;
	struct list held; /* requests to the agent that wait for Resume */
	size_t nr_held;
	struct rpc_call *pause_call;   /* Pause under way */
	struct checkpoint *checkpoint; /* Checkpoint under way */
	bool is_frozen;		       /* its processes, in the guest: Thaw is due */
	uint8_t *metrics;	       /* of the moment before the pause; NULL = none */
	size_t metrics_len;
	uint64_t oom_kills; /* told by TaskOOM */
	bool vm_killed;	    /* by us, in order */
	char why[256];	    /* what ended the VM */
	struct loop_timer exit_timer, stop_timer, lost_timer, trace_timer, oom_timer, kill_timer;
	struct rpc_call *delete_call;
	struct hooks_run *hooks;
	const struct oci_hooks *hook_lists[2];
	bool hooks_ran; /* so poststop ones are due */
	struct hv_ready ready;
	uint64_t create_ns, created_ns; /* CLOCK_MONOTONIC */
};

struct container *container_new(struct shim *shim, const Ctrd__CreateTaskRequest *req);
/* Frees everything at once: VM, streams, mounts. Pending calls must have been answered. Accepts NULL. */
void container_free(struct container *c);

/* NULL when exec_id is unknown; "" = init. */
struct process *container_process(struct container *c, const char *exec_id);

/* Callbacks given to the VM; ctx is the container. */
void container_on_vm_exit(void *ctx, const struct hv_exit *why);
/* The agent does not answer as it must: the VM cannot be used any more. */
void container_give_up_vm(struct container *c, const char *why);
void container_kill_vm(struct container *c);
/* SIGKILL was sent to init: if it has not ended soon (a guest full of processes, say), the VM is. */
void container_expect_end(struct container *c);
void container_on_agent_lost(void *ctx);
/* Something ended or drained: kills the VM when nothing is left that needs it. */
void container_check_quiet(void *ctx);
void container_init_exited(struct container *c);

void container_start(struct container *c, struct rpc_call *call);
void container_delete(struct container *c, struct rpc_call *call);

/* pause.c. A paused guest hears nothing; what it is to hear is held until it runs again, in order. */
void container_pause(struct container *c, struct rpc_call *call);
void container_resume(struct container *c, struct rpc_call *call);
/* Resumes a paused VM without a word to anybody. */
int container_thaw(struct container *c, struct err *err);
/* Copies the request; false = too many are held already. */
bool container_hold(struct container *c, enum agent_method method, const ProtobufCMessage *request);
void pause_forget(struct container *c);

/* checkpoint.c. Answers the call now or later. */
void container_checkpoint(struct container *c, const Ctrd__CheckpointRequest *req,
			  struct rpc_call *call);
/* The VM is gone: ends one under way. */
void checkpoint_forget(struct container *c);

void container_publish(struct container *c, const char *topic, const char *name,
		       const ProtobufCMessage *event);
uint64_t container_call_timeout_ns(const struct container *c);
void container_timestamp(int64_t ns, Ctrd__Timestamp *ret);

/* create.c. Answers the call now or later. */
void create_begin(struct shim *shim, const Ctrd__CreateTaskRequest *req, struct rpc_call *call);
/* Something failed while CREATING: rolled back from the loop, then the call is answered with err. */
void create_fail(struct container *c, const struct err *err);

/* oom.c: TaskOOM, from the time that init is there; ctx is the container. */
void oom_watch(void *ctx);
/* So many processes were killed so far: tells about those that were not told. */
void oom_report(struct container *c, uint64_t kills);

/* pids.c: the Pids method. */
void pids_request(struct container *c, struct rpc_call *call);

/* clock.c: has the guest set its clock, and calls done (NULL = nobody waits) when it is right. Not called when the
 * VM goes. */
void clock_set(struct container *c, loop_fn done);
/* From now on, and until the VM goes: the guest's clock stays right, whatever becomes of the host's. */
void clock_follow(struct container *c);
void clock_unfollow(struct container *c);
/* Compares it with the host's, and sets it right, in small pieces if it is off by little. */
void clock_look(struct container *c);

/* trace.c: one line in the log and <bundle>/harpoon/vm.json, about how the VM came up. */
void trace_boot(void *ctx);
