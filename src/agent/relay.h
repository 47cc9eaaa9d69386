/*
 * Connections of the guest's processes that end on the host: sockets of the host that a container mounts, name
 * servers on the loopback interface of the container's namespace. The agent listens in their place; each
 * connection becomes a stream, and the shim makes the other half.
 *
 * Connections are taken only when the shim has asked for one, which it does one at a time: until then they wait in
 * the kernel's queue, whose length bounds them. Threads: the loop's.
 */
#pragma once

#include "agent_pb.h"
#include "err.h"
#include "loop.h"
#include "plan.h"
#include "rpc.h"
#include "transport.h"

struct relay;

struct relay *relay_new(struct loop *loop, struct transport *transport,
			const struct agent_params *params);
/* Calls that wait must have been answered or dropped (rpc_server_free). Accepts NULL. */
void relay_free(struct relay *r);
/* The shim is another one: what it waited for is over, what listens here goes on. */
void relay_restart(struct relay *r);
/* The request was checked. One that exists already stays as it is. */
int relay_listen(struct relay *r, const AGENT_PB(ListenRequest) * request, struct err *err);
/*
 * The other way round, where the host listens for the guest. Answers the call when the TCP sockets that listen in
 * the guest (the relay's own left out) and the UDP sockets that look like servers' are others than those of the
 * request: bound, not connected, and not to a port as the kernel chooses it for clients. -EBUSY as below.
 */
int relay_listeners(struct relay *r, const AGENT_PB(ListenersRequest) * request,
		    struct rpc_call *call, struct err *err);
/* Connects within the guest; the connection is the stream when the call is answered. */
int relay_connect(struct relay *r, const AGENT_PB(ConnectRequest) * request, struct rpc_call *call,
		  struct err *err);
/* Answers the call when a connection has come and is the stream. -EBUSY: one call waits already. */
int relay_accept(struct relay *r, uint32_t stream, struct rpc_call *call, struct err *err);
