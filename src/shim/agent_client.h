/*
 * The shim's end of the agent protocol: a ttrpc client over the VM's stream 1.
 *
 * Threads: the loop's.
 */
#pragma once

#include <stdint.h>

#include "hv.h"
#include "rpc.h"

enum agent_method {
	AGENT_CONFIGURE,
	AGENT_CLOCK,
	AGENT_NETWORK,
	AGENT_LISTEN,
	AGENT_ACCEPT,
	AGENT_LISTENERS,
	AGENT_CONNECT,
	AGENT_CREATE_CONTAINER,
	AGENT_EXEC,
	AGENT_START,
	AGENT_SIGNAL,
	AGENT_WAIT,
	AGENT_RESIZE,
	AGENT_PIDS,
	AGENT_WAIT_OOM,
	AGENT_STATS,
	AGENT_UPDATE,
	AGENT_FREEZE,
	AGENT_THAW,
	AGENT_ADOPT,
	AGENT_DELETE,
	AGENT_METHOD_MAX
};

struct agent_client;

/* on_lost (may be NULL): the agent's end of the stream is gone, after every pending call was answered. */
int agent_client_new(struct loop *loop, struct hv_vm *vm, loop_fn on_lost, void *ctx,
		     struct agent_client **ret, struct err *err);
/* Answers pending calls with RPC_CANCELED. Accepts NULL. */
void agent_client_free(struct agent_client *a);

/*
 * done is called exactly once, never from inside: with what the agent answered, or with RPC_UNAVAILABLE when
 * it cannot be reached (also when it could not even be sent). timeout_ns 0 = wait for ever.
 */
void agent_client_call(struct agent_client *a, enum agent_method method,
		       const ProtobufCMessage *request, uint64_t timeout_ns, rpc_done done,
		       void *ctx);
