/*
 * The host's half of connections that go beside the network (src/agent/relay.h): for each that a process in the
 * guest makes, one is made here, and both are joined by a stream.
 *
 * Two kinds of places they may lead to: a unix socket of the host that a container mounts, and an address in the
 * container's network namespace. Nothing else can be reached this way, whatever the guest says: it only names the
 * number of a place that the shim has added.
 *
 * Threads: the loop's. The VM's streams are owned by the VM; free the relay after it.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "agent_client.h"
#include "err.h"
#include "hv.h"
#include "loop.h"
#include "oci.h"
#include "rtnl.h"

#define RELAY_SOCKETS_MAX 1024 /* their ids: 1 to this */
#define RELAY_CONNS_MAX 512

struct relay;

struct relay *relay_new(struct loop *loop, const struct oci_spec *spec);
/* Before the agent's client and the VM are freed. Accepts NULL. */
void relay_stop(struct relay *r);
/* Accepts NULL. */
void relay_free(struct relay *r);

/*
 * A unix socket (O_PATH descriptor, owned from here on): connected to as the user the container's process is, as
 * that process itself would be. id: for the mount's source "socket:N".
 */
int relay_add_socket(struct relay *r, uint32_t id, int path_fd, struct err *err);
/* A name server on the loopback interface of the network namespace netns_fd (duplicated). */
int relay_add_name_server(struct relay *r, int netns_fd, const struct rtnl_ip *ip, struct err *err);
/* Tells the agent of what was added since the last call, and takes connections. next_stream: counts streams. */
void relay_start(struct relay *r, struct hv_vm *vm, struct agent_client *agent,
		 uint32_t *next_stream);
