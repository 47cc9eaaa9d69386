/* Shared by forward.c and forward_udp.c. */
#pragma once

#include "forward.h"
#include "list.h"
#include "rtnl.h"

struct forward_socket {
	struct list link;
	struct forward *forward;
	struct rtnl_ip ip;
	uint16_t port;
	bool ipv6_only, datagrams, is_wanted;
	int fd; /* -1: could not be opened */
	struct loop_watch *watch;
};

struct forward {
	struct loop *loop;
	struct hv_vm *vm;
	struct agent_client *agent; /* NULL: stopped */
	uint32_t *next_stream;
	struct list sockets;
	size_t nr_sockets;
	struct list conns;
	size_t nr_conns;
	struct loop_timer retry;

	/* forward_udp.c */
	struct list flows; /* struct forward_flow: who was heard of last comes last */
	size_t nr_flows;
	struct loop_timer idle;
};

/* fd becomes a stream to what listens in the guest at the place of s; owned from here on. */
void forward_connect(struct forward_socket *s, int fd);
/* False: there are as many connections as there may be. */
bool forward_has_room(const struct forward *f);

/* forward_udp.c */
void forward_on_datagrams(void *ctx, uint32_t events);
/* Of a socket that is bound: passt may share the port, and answers go out from the address that was asked. */
int forward_set_up_udp(int fd, bool is_v4);
/* Some server goes on with one peer only, and looks like a client then. */
bool forward_has_flows(const struct forward_socket *s);
/* Sockets that are not wanted and have no flows. */
void forward_sweep(struct forward *f);
/* Ends the flows of one socket, or with NULL all. */
void forward_drop_flows(struct forward *f, const struct forward_socket *s);
