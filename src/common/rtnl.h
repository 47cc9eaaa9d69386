/*
 * What rtnetlink says of a network namespace, as structs, and the requests that make the same again
 * elsewhere: links, addresses, routes, neighbours. The shim reads with it in a container's namespace, the
 * agent writes with it in the guest.
 *
 * Parsers are pure and take any message: -EBADMSG for what is not one of theirs, -EAFNOSUPPORT for families
 * other than IPv4 and IPv6, -E2BIG for more than fits here. Addresses are in network order.
 */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nl.h"

#define RTNL_MAC_LEN 6
#define RTNL_ADDR_MAX 16
#define RTNL_NEXTHOPS_MAX 16
#define RTNL_METRICS_MAX 17 /* RTAX_MAX */

struct rtnl_ip {
	uint8_t len; /* 0 = none, 4 or 16 */
	uint8_t bytes[RTNL_ADDR_MAX];
};

struct rtnl_link {
	int ifindex;
	int master;	/* ifindex of a bridge or bond it is part of, 0 = none */
	uint16_t type;	/* ARPHRD_* */
	uint32_t flags; /* IFF_* */
	uint32_t mtu, txqlen;
	char name[IFNAMSIZ];
	char kind[16]; /* "veth", "tun"; "" = the driver did not say */
	uint8_t mac[RTNL_MAC_LEN];
	bool has_mac;			/* of six bytes */
	uint8_t perm_mac[RTNL_MAC_LEN]; /* that it was born with; zeros = the kernel did not say */
};

struct rtnl_addr {
	int ifindex;
	uint8_t family, prefix_len, scope;
	uint32_t flags; /* IFA_F_* */
	struct rtnl_ip local, peer, broadcast;
	uint32_t valid_s, preferred_s; /* UINT32_MAX = for ever */
};

struct rtnl_nexthop {
	int ifindex; /* 0 = none: a blackhole's */
	uint8_t weight;
	uint8_t flags;		/* RTNH_F_* */
	struct rtnl_ip gateway; /* may be of the other family */
};

struct rtnl_route {
	uint8_t family, dst_len, tos, protocol, scope, type;
	uint32_t table, priority;
	uint32_t flags; /* RTM_F_*, RTNH_F_* */
	struct rtnl_ip dst, source;
	size_t nr_nexthops, nr_metrics;
	struct rtnl_nexthop nexthops[RTNL_NEXTHOPS_MAX];
	struct {
		uint16_t type; /* RTAX_* */
		uint32_t value;
	} metrics[RTNL_METRICS_MAX];
};

struct rtnl_neigh {
	int ifindex;
	uint8_t family;
	uint16_t state; /* NUD_* */
	uint8_t flags;	/* NTF_* */
	struct rtnl_ip dst;
	uint8_t mac[RTNL_MAC_LEN];
};

int rtnl_parse_link(const struct nlmsghdr *h, struct rtnl_link *ret);
int rtnl_parse_addr(const struct nlmsghdr *h, struct rtnl_addr *ret);
int rtnl_parse_route(const struct nlmsghdr *h, struct rtnl_route *ret);
int rtnl_parse_neigh(const struct nlmsghdr *h, struct rtnl_neigh *ret);

/* Requests for dumps: nl_dump(). family AF_UNSPEC, AF_INET or AF_INET6. */
void rtnl_begin_dump(struct nl_msg *m, uint16_t type, uint8_t family);

/* Requests: nl_request(). Those that add take NLM_F_CREATE and more of that kind. */
void rtnl_begin_link(struct nl_msg *m, int ifindex, uint32_t flags, uint32_t change);
void rtnl_begin_addr(struct nl_msg *m, uint16_t flags, const struct rtnl_addr *a);
void rtnl_begin_delete_addr(struct nl_msg *m, const struct rtnl_addr *a);
/* type: RTM_NEWROUTE or RTM_DELROUTE. */
void rtnl_begin_route(struct nl_msg *m, uint16_t type, uint16_t flags, const struct rtnl_route *r);
void rtnl_begin_neigh(struct nl_msg *m, uint16_t flags, const struct rtnl_neigh *n);

/* For messages to people: "10.0.0.1", "fe80::1"; "-" when there is none. */
const char *rtnl_ip_text(const struct rtnl_ip *ip, char *ret, size_t room);
bool rtnl_ip_equal(const struct rtnl_ip *a, const struct rtnl_ip *b);
/* The network that an address of that length is in: 10.1.2.3/16 is in 10.1.0.0. */
struct rtnl_ip rtnl_ip_network(const struct rtnl_ip *ip, uint8_t prefix_len);
