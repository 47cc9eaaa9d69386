/*
 * Reading a network namespace; see netread.h. What is not taken along is logged where it may be missed. The
 * namespace's content is bounded here, as it is not ours: its owner may fill it with routes.
 */
#include "netread.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "log.h"
#include "tap.h"

#define NETREAD_LINKS_MAX 64
#define NETREAD_ADDRS_MAX 1024
#define NETREAD_NEIGHS_MAX 1024
#define NETREAD_ROUTES_MAX 16384
/* A dump that was torn by a change is repeated; who changes things all the time gets the last one. */
#define NETREAD_TRIES 5

struct netread_walk {
	struct netread *p;
	const int *skip;
	size_t nr_skip;
};

/* One more element of an array that grows by doubling. */
static void *netread_grow(void *array, size_t nr, size_t len)
{
	return nr & (nr - 1) ? array : xrealloc(array, (nr ? nr * 2 : 1) * len);
}

static const struct rtnl_link *netread_link(const struct netread *p, int ifindex)
{
	for (size_t i = 0; i < p->nr_links; i++)
		if (p->links[i].ifindex == ifindex)
			return &p->links[i];
	return NULL;
}

static bool netread_takes_link(const struct netread_walk *w, const struct rtnl_link *l)
{
	for (size_t i = 0; i < w->nr_skip; i++)
		if (w->skip[i] == l->ifindex)
			return false;
	if (l->type == ARPHRD_LOOPBACK || !(l->flags & IFF_UP))
		return false;
	/* Of a VM whose own namespace this was. */
	if (!strncmp(l->name, TAP_NAME_PREFIX, strlen(TAP_NAME_PREFIX)))
		return false;
	if (l->type == ARPHRD_ETHER && l->has_mac && !l->master)
		return true;
	log_warn("network", "interface '%s' stays on the host: %s", l->name,
		 l->master ? "it is part of another one" : "it is not of the Ethernet kind");
	return false;
}

static int netread_visit_link(void *ctx, const struct nlmsghdr *h)
{
	struct netread_walk *w = ctx;
	struct netread *p = w->p;
	struct rtnl_link l;
	size_t at;

	if (rtnl_parse_link(h, &l) || !netread_takes_link(w, &l))
		return 0;
	if (p->nr_links == NETREAD_LINKS_MAX)
		return -E2BIG;
	p->links = netread_grow(p->links, p->nr_links, sizeof(l));
	for (at = p->nr_links++; at && p->links[at - 1].ifindex > l.ifindex; at--)
		p->links[at] = p->links[at - 1];
	p->links[at] = l;
	return 0;
}

static int netread_visit_addr(void *ctx, const struct nlmsghdr *h)
{
	const struct netread_walk *w = ctx;
	struct netread *p = w->p;
	struct rtnl_addr a;

	if (rtnl_parse_addr(h, &a) || !netread_link(p, a.ifindex) || (a.flags & IFA_F_DADFAILED))
		return 0;
	if (p->nr_addrs == NETREAD_ADDRS_MAX)
		return -E2BIG;
	a.flags &= IFA_F_NOPREFIXROUTE | IFA_F_HOMEADDRESS | IFA_F_DEPRECATED;
	p->addrs = netread_grow(p->addrs, p->nr_addrs, sizeof(a));
	p->addrs[p->nr_addrs++] = a;
	return 0;
}

/* All its ways lead over interfaces that are taken along; one without any is a blackhole or its like. */
static bool netread_takes_route(const struct netread *p, const struct rtnl_route *r)
{
	if (r->table == RT_TABLE_LOCAL || (r->flags & RTM_F_CLONED))
		return false;
	if (r->type == RTN_BLACKHOLE || r->type == RTN_UNREACHABLE || r->type == RTN_PROHIBIT)
		return r->protocol != RTPROT_KERNEL;
	if (r->type != RTN_UNICAST || !r->nr_nexthops)
		return false;
	for (size_t i = 0; i < r->nr_nexthops; i++)
		if (!netread_link(p, r->nexthops[i].ifindex))
			return false;
	return true;
}

static int netread_visit_route(void *ctx, const struct nlmsghdr *h)
{
	const struct netread_walk *w = ctx;
	struct netread *p = w->p;
	struct rtnl_route r;
	int e = rtnl_parse_route(h, &r);

	if (e == -E2BIG) {
		log_warn("network", "a route has more than %d ways: it is left out",
			 RTNL_NEXTHOPS_MAX);
		return 0;
	}
	if (e || !netread_takes_route(p, &r))
		return 0;
	if (r.type != RTN_UNICAST)
		r.nr_nexthops = 0; /* IPv6 names the loopback interface there */
	if (p->nr_routes == NETREAD_ROUTES_MAX)
		return -E2BIG;
	p->routes = netread_grow(p->routes, p->nr_routes, sizeof(r));
	p->routes[p->nr_routes++] = r;
	return 0;
}

static int netread_visit_neigh(void *ctx, const struct nlmsghdr *h)
{
	const struct netread_walk *w = ctx;
	struct netread *p = w->p;
	struct rtnl_neigh n;

	if (rtnl_parse_neigh(h, &n) || n.state != NUD_PERMANENT || !netread_link(p, n.ifindex))
		return 0;
	if (p->nr_neighs == NETREAD_NEIGHS_MAX)
		return -E2BIG;
	n.flags &= NTF_ROUTER;
	p->neighs = netread_grow(p->neighs, p->nr_neighs, sizeof(n));
	p->neighs[p->nr_neighs++] = n;
	return 0;
}

static const struct netread_dump {
	uint16_t type;
	uint8_t family;
	nl_visit_fn visit;
	const char *what;
} netread_dumps[] = {
	{RTM_GETLINK, AF_UNSPEC, netread_visit_link, "list interfaces"},
	{RTM_GETADDR, AF_UNSPEC, netread_visit_addr, "list addresses"},
	{RTM_GETROUTE, AF_INET, netread_visit_route, "list IPv4 routes"},
	{RTM_GETROUTE, AF_INET6, netread_visit_route, "list IPv6 routes"},
	{RTM_GETNEIGH, AF_UNSPEC, netread_visit_neigh, "list neighbours"},
};

static int netread_try(struct nl_sock *nl, struct netread_walk *w, struct err *err)
{
	bool torn = false;

	netread_done(w->p);
	for (size_t i = 0; i < ARRAY_SIZE(netread_dumps); i++) {
		const struct netread_dump *d = &netread_dumps[i];
		struct nl_msg m;
		int r;

		rtnl_begin_dump(&m, d->type, d->family);
		r = nl_dump(nl, &m, d->visit, w, err, d->what);
		if (r == -E2BIG)
			return err_say(err, r,
				       "the network namespace is too large to be carried into a "
				       "VM: %s",
				       d->what);
		/* A kernel without IPv6 does not know that family. */
		if (r && r != -EINTR && d->family != AF_INET6)
			return r;
		torn |= r == -EINTR;
	}
	return torn ? -EINTR : 0;
}

int netread_take(struct nl_sock *nl, const int *skip, size_t nr_skip, struct netread *ret,
		 struct err *err)
{
	struct netread_walk w = {.p = ret, .skip = skip, .nr_skip = nr_skip};
	int r = -EINTR;

	*ret = (struct netread){0};
	for (int i = 0; i < NETREAD_TRIES && r == -EINTR; i++)
		r = netread_try(nl, &w, err);
	if (r == -EINTR)
		r = 0;
	if (r)
		netread_done(ret);
	return r;
}

void netread_done(struct netread *p)
{
	free(p->links);
	free(p->addrs);
	free(p->routes);
	free(p->neighs);
	*p = (struct netread){0};
}

/* ---- the message ---- */

static void netread_put_bytes(ProtobufCBinaryData *ret, const void *data, size_t len)
{
	if (!len)
		return;
	ret->data = xmalloc(len);
	ret->len = len;
	memcpy(ret->data, data, len);
}

static void netread_put_ip(ProtobufCBinaryData *ret, const struct rtnl_ip *ip)
{
	netread_put_bytes(ret, ip->bytes, ip->len);
}

static VMREQ_PB(NetAddress) * netread_new_address(const struct rtnl_addr *a)
{
	VMREQ_PB(NetAddress) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__net_address__init(m);
	netread_put_ip(&m->local, &a->local);
	netread_put_ip(&m->peer, &a->peer);
	netread_put_ip(&m->broadcast, &a->broadcast);
	m->prefix_len = a->prefix_len;
	m->scope = a->scope;
	m->flags = a->flags;
	m->valid_s = a->valid_s;
	m->preferred_s = a->preferred_s;
	return m;
}

static VMREQ_PB(NetNeighbour) * netread_new_neighbour(const struct rtnl_neigh *n)
{
	VMREQ_PB(NetNeighbour) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__net_neighbour__init(m);
	netread_put_ip(&m->address, &n->dst);
	netread_put_bytes(&m->mac, n->mac, sizeof(n->mac));
	m->flags = n->flags;
	return m;
}

static VMREQ_PB(NetInterface) * netread_new_interface(const struct netread *p, size_t nic)
{
	const struct rtnl_link *l = &p->links[nic];
	VMREQ_PB(NetInterface) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__net_interface__init(m);
	m->nic = (uint32_t)nic;
	m->name = xstrdup(l->name);
	netread_put_bytes(&m->mac, l->mac, sizeof(l->mac));
	m->mtu = l->mtu;
	m->txqlen = l->txqlen;
	m->addresses = xcalloc(p->nr_addrs, sizeof(void *));
	for (size_t i = 0; i < p->nr_addrs; i++)
		if (p->addrs[i].ifindex == l->ifindex)
			m->addresses[m->n_addresses++] = netread_new_address(&p->addrs[i]);
	m->neighbours = xcalloc(p->nr_neighs, sizeof(void *));
	for (size_t i = 0; i < p->nr_neighs; i++)
		if (p->neighs[i].ifindex == l->ifindex)
			m->neighbours[m->n_neighbours++] = netread_new_neighbour(&p->neighs[i]);
	return m;
}

static VMREQ_PB(NetNexthop) *
	netread_new_nexthop(const struct netread *p, const struct rtnl_nexthop *h)
{
	VMREQ_PB(NetNexthop) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__net_nexthop__init(m);
	m->interface = (uint32_t)(netread_link(p, h->ifindex) - p->links);
	netread_put_ip(&m->gateway, &h->gateway);
	m->flags = h->flags & RTNH_F_ONLINK;
	m->weight = h->weight;
	return m;
}

static VMREQ_PB(NetRoute) * netread_new_route(const struct netread *p, const struct rtnl_route *r)
{
	VMREQ_PB(NetRoute) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__net_route__init(m);
	m->ipv6 = r->family == AF_INET6;
	netread_put_ip(&m->dst, &r->dst);
	m->dst_len = r->dst_len;
	netread_put_ip(&m->source, &r->source);
	m->table = r->table;
	m->protocol = r->protocol;
	m->scope = r->scope;
	m->type = r->type;
	m->priority = r->priority;
	m->tos = r->tos;
	m->nexthops = xcalloc(r->nr_nexthops, sizeof(void *));
	for (size_t i = 0; i < r->nr_nexthops; i++)
		m->nexthops[m->n_nexthops++] = netread_new_nexthop(p, &r->nexthops[i]);
	m->metrics = xcalloc(r->nr_metrics, sizeof(void *));
	for (size_t i = 0; i < r->nr_metrics; i++) {
		VMREQ_PB(NetMetric) *metric = xcalloc(1, sizeof(*metric));

		harpoon__agent__v1__net_metric__init(metric);
		metric->type = r->metrics[i].type;
		metric->value = r->metrics[i].value;
		m->metrics[m->n_metrics++] = metric;
	}
	return m;
}

VMREQ_PB(NetworkRequest) * netread_request(const struct netread *p, size_t nr_nics)
{
	VMREQ_PB(NetworkRequest) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__network_request__init(m);
	m->nr_nics = (uint32_t)nr_nics;
	m->interfaces = xcalloc(p->nr_links, sizeof(void *));
	for (size_t i = 0; i < p->nr_links; i++)
		m->interfaces[m->n_interfaces++] = netread_new_interface(p, i);
	m->routes = xcalloc(p->nr_routes, sizeof(void *));
	for (size_t i = 0; i < p->nr_routes; i++)
		m->routes[m->n_routes++] = netread_new_route(p, &p->routes[i]);
	return m;
}
