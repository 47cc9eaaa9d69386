/* Shared by relay.c and relay_dns.c. */
#pragma once

#include "list.h"
#include "nl.h"
#include "relay.h"

struct relay {
	struct loop *loop;
	struct transport *transport;
	const struct agent_params *params;
	struct list listeners; /* struct relay_listener */
	struct list queries;   /* struct relay_query */
	size_t nr_queries;
	struct rpc_call *call; /* Accept that waits, NULL = none */
	uint32_t stream;       /* of that call */

	/* relay_back.c */
	struct nl_sock diag;
	struct rpc_call *listeners_call; /* Listeners that waits */
	struct relay_socket *known;	 /* of that call, sorted */
	size_t nr_known;
	struct loop_timer poll;
	struct list dials; /* struct relay_dial */

	/* relay_udp.c */
	struct list flows; /* struct relay_flow */
	size_t nr_flows;
};

struct relay_listener {
	struct list link;
	struct relay *relay;
	uint32_t id;
	int fd, udp_fd; /* -1 = none */
	struct loop_watch *watch, *udp_watch;
	char *path; /* of a unix socket, else NULL */
	uint8_t address[16];
	size_t address_len;
	uint32_t port;
};

/* Makes the connection the stream of the call that waits, and answers it. Owns fd from here on. */
void relay_hand_over(struct relay *r, uint32_t id, int fd);

/* relay_back.c */
void relay_stop_back(struct relay *r);

/* A bit for each port. */
struct relay_ports {
	uint8_t bits[65536 / 8];
};

/* relay_udp.c: as relay_connect(), for datagrams. fd: an UDP socket that is connected to port, owned from here on. */
int relay_start_flow(struct relay *r, int fd, uint32_t port, uint32_t stream, struct err *err);
/* Ends the flows to other ports than these. */
void relay_keep_flows(struct relay *r, const struct relay_ports *ports);
void relay_drop_flows(struct relay *r);
/* Sockets of these ports are clients' as a rule. */
void relay_client_ports(uint32_t *first, uint32_t *last);

/* relay_dns.c */
void relay_take_datagram(struct relay_listener *l);
void relay_drop_queries(struct relay *r);
