/*
 * A network namespace as a picture, and the agent's message made of it.
 *
 * In the picture: interfaces that are up, have an Ethernet address and belong to nothing else (ports of a
 * bridge or bond do); their addresses; the permanent neighbours; the routes over them in every table but the
 * local one, which kernels fill by themselves.
 */
#pragma once

#include <stddef.h>

#include "err.h"
#include "hv.h"
#include "rtnl.h"
#include "vmreq.h"

struct netread {
	struct rtnl_link *links; /* sorted by number */
	struct rtnl_addr *addrs;
	struct rtnl_route *routes;
	struct rtnl_neigh *neighs;
	size_t nr_links, nr_addrs, nr_routes, nr_neighs;
};

/* nl: of the namespace. skip: interfaces that are not to be seen (our taps). */
int netread_take(struct nl_sock *nl, const int *skip, size_t nr_skip, struct netread *ret,
		 struct err *err);
void netread_done(struct netread *p);

/* Interface i is device i of nr_nics. Pure. Free with vmreq_network_free(). */
VMREQ_PB(NetworkRequest) * netread_request(const struct netread *p, size_t nr_nics);
