/*
 * Listening on the host for what listens in the guest: for containers in the host's network, whose connections to
 * the outside passt makes. Whenever a TCP socket listens in the guest, or an UDP socket is a server's by its look, one
 * of the same address and port is opened here; its connections, or the datagrams of each peer, become streams. The
 * shim does it, so ports below 1024 and any address of the host work.
 *
 * Threads: the loop's. forward_stop() before the agent's client is freed, forward_free() after the VM.
 */
#pragma once

#include "agent_client.h"
#include "hv.h"
#include "loop.h"

#define FORWARD_SOCKETS_MAX 256
#define FORWARD_CONNS_MAX 512

struct forward;

/* next_stream: counts streams. */
struct forward *forward_new(struct loop *loop, struct hv_vm *vm, struct agent_client *agent,
			    uint32_t *next_stream);
/* Both accept NULL. */
void forward_stop(struct forward *f);
void forward_free(struct forward *f);
