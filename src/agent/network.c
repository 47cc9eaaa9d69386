/*
 * Interfaces of the guest, by netlink; see network.h.
 *
 * Order, and why: unused devices go first, because they hold names (eth1) that may be wanted. Then names and
 * hardware addresses, while the interfaces are down, and no automatic IPv6 addresses: the host's side has
 * them, they come with the rest. Interfaces go up before they get addresses, so that the kernel makes the
 * routes that follow from addresses; those the host's side does not have (they were removed there) are
 * removed. Routes without a gateway come before those whose gateway they lead to.
 *
 * A guest that was saved with a network set up has to forget that first: interfaces go down, which takes their routes
 * along, and lose their addresses. The devices are known by the hardware address that they were born with.
 *
 * IPv6 addresses skip duplicate detection: it was done on the host's side, for the same hardware address.
 */
#include "network.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "guest.h"
#include "io.h"
#include "log.h"
#include "request.h"
#include "rtnl.h"

#define NETWORK_DRIVER "/sys/bus/virtio/drivers/virtio_net"
#define NETWORK_BUS_NAME_MAX 32
/* What HV_NIC_MAC begins with. */
static const uint8_t network_mac[RTNL_MAC_LEN - 1] = {0x02, 0x68, 0x70, 0x6e, 0x00};

/* Names on the virtio bus of devices that were parked, by their number; "" = none. */
static char network_parked[REQUEST_NICS_MAX][NETWORK_BUS_NAME_MAX];

struct network {
	const AGENT_PB(NetworkRequest) * r;
	struct nl_sock nl;
	struct rtnl_link nics[REQUEST_NICS_MAX]; /* ifindex 0 = there is no such device */
};

static void network_done(struct network *n)
{
	nl_close(&n->nl);
}

static int network_visit_link(void *ctx, const struct nlmsghdr *h)
{
	struct network *n = ctx;
	struct rtnl_link l;

	const uint8_t *mac = l.mac;

	if (rtnl_parse_link(h, &l) || !l.has_mac)
		return 0;
	if (!memcmp(l.perm_mac, network_mac, sizeof(network_mac)))
		mac = l.perm_mac;
	if (mac[5] < REQUEST_NICS_MAX && !memcmp(mac, network_mac, sizeof(network_mac)))
		n->nics[mac[5]] = l;
	return 0;
}

static int network_list_nics(struct network *n, struct err *err)
{
	struct nl_msg m;

	rtnl_begin_dump(&m, RTM_GETLINK, AF_UNSPEC);
	return nl_dump(&n->nl, &m, network_visit_link, n, err, "list network devices");
}

static int network_find_nics(struct network *n, struct err *err)
{
	int r = network_list_nics(n, err);

	if (r)
		return r;
	for (size_t i = 0; i < n->r->n_interfaces; i++) {
		const AGENT_PB(NetInterface) *p = n->r->interfaces[i];

		if (!n->nics[p->nic].ifindex)
			return err_say(err, -ENODEV,
				       "the guest has no network device %u for interface '%s'",
				       p->nic, p->name);
	}
	return 0;
}

static bool network_is_used(const struct network *n, uint32_t nic)
{
	for (size_t i = 0; i < n->r->n_interfaces; i++)
		if (n->r->interfaces[i]->nic == nic)
			return true;
	return false;
}

/* Name on the virtio bus of the device behind an interface: the driver's folder has links of those names. */
static bool network_bus_name(const char *interface, char *ret, size_t room)
{
	cleanup_dir DIR *d = opendir(NETWORK_DRIVER);
	struct dirent *e;
	char path[512];

	while (d && (e = readdir(d))) {
		if (strncmp(e->d_name, "virtio", 6) != 0)
			continue;
		snprintf(path, sizeof(path), NETWORK_DRIVER "/%s/net/%s", e->d_name, interface);
		if (!access(path, F_OK))
			return snprintf(ret, room, "%s", e->d_name) < (int)room;
	}
	return false;
}

static void network_hide(const struct network *n, uint32_t nic)
{
	char name[NETWORK_BUS_NAME_MAX];
	int e = -ENOENT;

	if (network_bus_name(n->nics[nic].name, name, sizeof(name)))
		e = guest_tell_driver(NETWORK_DRIVER, "unbind", name);
	/* Seen, but down and without an address: no harm. */
	if (e)
		log_warn("network", "hide network device %u: %s", nic, strerror(-e));
}

static void network_hide_unused(const struct network *n)
{
	for (uint32_t nic = 0; nic < REQUEST_NICS_MAX; nic++)
		if (n->nics[nic].ifindex && !network_is_used(n, nic))
			network_hide(n, nic);
}

static int network_rename(struct network *n, uint32_t nic, const char *name, struct err *err)
{
	char what[80];
	struct nl_msg m;
	int r;

	rtnl_begin_link(&m, n->nics[nic].ifindex, 0, 0);
	nl_put_text(&m, IFLA_IFNAME, name);
	snprintf(what, sizeof(what), "rename interface '%s' to '%s'", n->nics[nic].name, name);
	r = nl_request(&n->nl, &m, err, what);
	if (!r)
		snprintf(n->nics[nic].name, sizeof(n->nics[nic].name), "%s", name);
	return r;
}

/* Devices that have a name that another is to get make room. */
static int network_free_names(struct network *n, struct err *err)
{
	for (size_t i = 0; i < n->r->n_interfaces; i++) {
		const AGENT_PB(NetInterface) *p = n->r->interfaces[i];

		for (size_t k = 0; k < n->r->n_interfaces; k++) {
			uint32_t nic = n->r->interfaces[k]->nic;
			char name[IFNAMSIZ];

			if (k == i || strcmp(n->nics[nic].name, p->name) != 0)
				continue;
			snprintf(name, sizeof(name), "harpoon%u", nic & 0xff);
			if (network_rename(n, nic, name, err))
				return err->code;
		}
	}
	return 0;
}

static void network_put_no_autoconf(struct nl_msg *m)
{
	uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
	size_t spec = nl_nest(m, IFLA_AF_SPEC), inet6 = nl_nest(m, AF_INET6);

	nl_put(m, IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof(mode));
	nl_nest_end(m, inet6);
	nl_nest_end(m, spec);
}

/* ---- what a saved guest had ---- */

#define NETWORK_OLD_MAX 256

struct network_old {
	const struct network *n;
	struct rtnl_addr addrs[NETWORK_OLD_MAX];
	size_t nr;
};

static bool network_is_ours(const struct network *n, int ifindex)
{
	for (uint32_t nic = 0; nic < REQUEST_NICS_MAX; nic++)
		if (n->nics[nic].ifindex == ifindex)
			return true;
	return false;
}

static int network_visit_old(void *ctx, const struct nlmsghdr *h)
{
	struct network_old *o = ctx;
	struct rtnl_addr *a = &o->addrs[o->nr];

	if (o->nr < NETWORK_OLD_MAX && !rtnl_parse_addr(h, a) && network_is_ours(o->n, a->ifindex))
		o->nr++;
	return 0;
}

static int network_take_down(struct network *n, struct rtnl_link *l, struct err *err)
{
	char what[80];
	struct nl_msg m;

	rtnl_begin_link(&m, l->ifindex, 0, IFF_UP);
	snprintf(what, sizeof(what), "take down interface '%s'", l->name);
	return nl_request(&n->nl, &m, err, what);
}

static int network_forget_old(struct network *n, struct err *err)
{
	cleanup_free struct network_old *o = NULL;
	bool was_up = false;
	struct nl_msg m;

	for (uint32_t nic = 0; nic < REQUEST_NICS_MAX; nic++) {
		if (!n->nics[nic].ifindex || !(n->nics[nic].flags & IFF_UP))
			continue;
		was_up = true;
		if (network_take_down(n, &n->nics[nic], err))
			return err->code;
	}
	if (!was_up)
		return 0;
	o = xcalloc(1, sizeof(*o));
	o->n = n;
	rtnl_begin_dump(&m, RTM_GETADDR, AF_UNSPEC);
	if (nl_dump(&n->nl, &m, network_visit_old, o, err, "list addresses"))
		return err->code;
	for (size_t i = 0; i < o->nr; i++) {
		rtnl_begin_delete_addr(&m, &o->addrs[i]);
		if (nl_request(&n->nl, &m, err, "remove an old address"))
			return err->code;
	}
	return 0;
}

static int network_set_link(struct network *n, const AGENT_PB(NetInterface) * p, struct err *err)
{
	const struct rtnl_link *l = &n->nics[p->nic];
	char what[80];
	struct nl_msg m;
	int r;

	rtnl_begin_link(&m, l->ifindex, 0, 0);
	if (strcmp(l->name, p->name) != 0)
		nl_put_text(&m, IFLA_IFNAME, p->name);
	nl_put(&m, IFLA_ADDRESS, p->mac.data, p->mac.len);
	nl_put_u32(&m, IFLA_MTU, p->mtu);
	nl_put_u32(&m, IFLA_TXQLEN, p->txqlen);
	network_put_no_autoconf(&m);
	snprintf(what, sizeof(what), "set up interface '%s'", p->name);
	r = nl_request(&n->nl, &m, err, what);
	if (r)
		return r;
	rtnl_begin_link(&m, l->ifindex, IFF_UP, IFF_UP);
	snprintf(what, sizeof(what), "bring up interface '%s'", p->name);
	return nl_request(&n->nl, &m, err, what);
}

static struct rtnl_ip network_ip(const ProtobufCBinaryData *b)
{
	struct rtnl_ip ip = {.len = (uint8_t)b->len};

	if (b->len)
		memcpy(ip.bytes, b->data, b->len);
	return ip;
}

static int network_add_address(struct network *n, const AGENT_PB(NetInterface) * p,
			       const AGENT_PB(NetAddress) * a, struct err *err)
{
	struct rtnl_addr v = {
		.ifindex = n->nics[p->nic].ifindex,
		.family = a->local.len == 4 ? AF_INET : AF_INET6,
		.prefix_len = (uint8_t)a->prefix_len,
		.scope = (uint8_t)a->scope,
		.flags = a->flags,
		.local = network_ip(&a->local),
		.peer = network_ip(&a->peer),
		.broadcast = network_ip(&a->broadcast),
		.valid_s = a->valid_s,
		.preferred_s = a->preferred_s,
	};
	char what[120], text[64];
	struct nl_msg m;

	if (v.family == AF_INET6)
		v.flags |= IFA_F_NODAD;
	rtnl_begin_addr(&m, NLM_F_CREATE | NLM_F_REPLACE, &v);
	snprintf(what, sizeof(what), "add address %s to interface '%s'",
		 rtnl_ip_text(&v.local, text, sizeof(text)), p->name);
	return nl_request(&n->nl, &m, err, what);
}

/* The route that the kernel makes for an address: is it among the wanted ones? */
static bool network_wants_route(const struct network *n, const struct rtnl_route *made)
{
	for (size_t i = 0; i < n->r->n_routes; i++) {
		const AGENT_PB(NetRoute) *r = n->r->routes[i];
		struct rtnl_ip dst = network_ip(&r->dst);

		if (r->table != RT_TABLE_MAIN || r->ipv6 != (made->family == AF_INET6) ||
		    r->dst_len != made->dst_len || r->n_nexthops != 1 ||
		    r->nexthops[0]->gateway.len)
			continue;
		if ((!dst.len || rtnl_ip_equal(&dst, &made->dst)) &&
		    n->nics[n->r->interfaces[r->nexthops[0]->interface]->nic].ifindex ==
			    made->nexthops[0].ifindex)
			return true;
	}
	return false;
}

static int network_drop_made_route(struct network *n, const AGENT_PB(NetInterface) * p,
				   const AGENT_PB(NetAddress) * a, struct err *err)
{
	struct rtnl_ip ip = network_ip(a->peer.len ? &a->peer : &a->local);
	struct rtnl_route made = {
		.family = ip.len == 4 ? AF_INET : AF_INET6,
		.dst_len = (uint8_t)a->prefix_len,
		.dst = rtnl_ip_network(&ip, (uint8_t)a->prefix_len),
		.table = RT_TABLE_MAIN,
		.protocol = RTPROT_KERNEL,
		.scope = ip.len == 4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
		.type = RTN_UNICAST,
		.nr_nexthops = 1,
	};
	struct nl_msg m;
	int r;

	made.nexthops[0].ifindex = n->nics[p->nic].ifindex;
	if ((a->flags & IFA_F_NOPREFIXROUTE) || network_wants_route(n, &made))
		return 0;
	rtnl_begin_route(&m, RTM_DELROUTE, 0, &made);
	r = nl_request(&n->nl, &m, err, "remove a route that the host does not have");
	return r == -ESRCH ? 0 : r;
}

static int network_add_neighbour(struct network *n, const AGENT_PB(NetInterface) * p,
				 const AGENT_PB(NetNeighbour) * a, struct err *err)
{
	struct rtnl_neigh v = {
		.ifindex = n->nics[p->nic].ifindex,
		.family = a->address.len == 4 ? AF_INET : AF_INET6,
		.state = NUD_PERMANENT,
		.flags = (uint8_t)a->flags,
		.dst = network_ip(&a->address),
	};
	char what[120], text[64];
	struct nl_msg m;

	memcpy(v.mac, a->mac.data, RTNL_MAC_LEN);
	rtnl_begin_neigh(&m, NLM_F_CREATE | NLM_F_REPLACE, &v);
	snprintf(what, sizeof(what), "add neighbour %s to interface '%s'",
		 rtnl_ip_text(&v.dst, text, sizeof(text)), p->name);
	return nl_request(&n->nl, &m, err, what);
}

static int network_fill_interface(struct network *n, const AGENT_PB(NetInterface) * p,
				  struct err *err)
{
	if (network_set_link(n, p, err))
		return err->code;
	for (size_t i = 0; i < p->n_addresses; i++)
		if (network_add_address(n, p, p->addresses[i], err))
			return err->code;
	for (size_t i = 0; i < p->n_addresses; i++)
		if (network_drop_made_route(n, p, p->addresses[i], err))
			return err->code;
	for (size_t i = 0; i < p->n_neighbours; i++)
		if (network_add_neighbour(n, p, p->neighbours[i], err))
			return err->code;
	return 0;
}

static struct rtnl_route network_route(const struct network *n, const AGENT_PB(NetRoute) * r)
{
	struct rtnl_route v = {
		.family = r->ipv6 ? AF_INET6 : AF_INET,
		.dst_len = (uint8_t)r->dst_len,
		.tos = (uint8_t)r->tos,
		.protocol = (uint8_t)r->protocol,
		.scope = (uint8_t)r->scope,
		.type = (uint8_t)r->type,
		.table = r->table,
		.priority = r->priority,
		.dst = network_ip(&r->dst),
		.source = network_ip(&r->source),
		.nr_nexthops = r->n_nexthops,
		.nr_metrics = r->n_metrics,
	};

	for (size_t i = 0; i < r->n_nexthops; i++) {
		const AGENT_PB(NetNexthop) *h = r->nexthops[i];

		v.nexthops[i] = (struct rtnl_nexthop){
			.ifindex = n->nics[n->r->interfaces[h->interface]->nic].ifindex,
			.weight = (uint8_t)h->weight,
			.flags = (uint8_t)h->flags,
			.gateway = network_ip(&h->gateway),
		};
	}
	for (size_t i = 0; i < r->n_metrics; i++) {
		v.metrics[i].type = (uint16_t)r->metrics[i]->type;
		v.metrics[i].value = r->metrics[i]->value;
	}
	return v;
}

/* At the end, in the host's order. What is there already came with an address. */
static int network_add_route(struct network *n, const AGENT_PB(NetRoute) * p, struct err *err)
{
	struct rtnl_route v = network_route(n, p);
	char what[160], dst[64], gateway[64];
	struct nl_msg m;
	int r;

	rtnl_begin_route(&m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &v);
	snprintf(what, sizeof(what), "add route to %s/%u by %s",
		 v.dst.len ? rtnl_ip_text(&v.dst, dst, sizeof(dst)) : "default", p->dst_len,
		 rtnl_ip_text(&v.nexthops[0].gateway, gateway, sizeof(gateway)));
	r = nl_request(&n->nl, &m, err, what);
	return r == -EEXIST ? 0 : r;
}

static bool network_has_gateway(const AGENT_PB(NetRoute) * r)
{
	for (size_t i = 0; i < r->n_nexthops; i++)
		if (r->nexthops[i]->gateway.len)
			return true;
	return false;
}

static int network_add_routes(struct network *n, bool with_gateway, struct err *err)
{
	for (size_t i = 0; i < n->r->n_routes; i++)
		if (network_has_gateway(n->r->routes[i]) == with_gateway &&
		    network_add_route(n, n->r->routes[i], err))
			return err->code;
	return 0;
}

static bool network_all_parked(uint32_t nr_nics)
{
	for (uint32_t i = 0; i < MIN(nr_nics, REQUEST_NICS_MAX); i++)
		if (!network_parked[i][0])
			return false;
	return true;
}

/* The interface is there when the driver has answered. */
static int network_unpark(const AGENT_PB(NetworkRequest) * r, struct err *err)
{
	for (size_t i = 0; i < r->n_interfaces; i++) {
		char *name = network_parked[r->interfaces[i]->nic];
		int e = *name ? guest_tell_driver(NETWORK_DRIVER, "bind", name) : 0;

		if (e)
			return err_set(err, e, "take network device %u into use",
				       r->interfaces[i]->nic);
		*name = '\0';
	}
	return 0;
}

int network_park(struct err *err)
{
	cleanup(network_done) struct network n = {.nl = {.fd = -1}};

	if (nl_open(&n.nl, NETLINK_ROUTE, err) || network_list_nics(&n, err))
		return err->code;
	for (uint32_t nic = 0; nic < REQUEST_NICS_MAX; nic++) {
		char *name = network_parked[nic];
		int e;

		if (!n.nics[nic].ifindex ||
		    !network_bus_name(n.nics[nic].name, name, NETWORK_BUS_NAME_MAX))
			continue;
		e = guest_tell_driver(NETWORK_DRIVER, "unbind", name);
		if (e)
			return err_set(err, e, "take network device %u away", nic);
	}
	return 0;
}

int network_set_up(const AGENT_PB(NetworkRequest) * r, struct err *err)
{
	cleanup(network_done) struct network n = {.r = r, .nl = {.fd = -1}};

	if (!r->nr_nics || (!r->n_interfaces && network_all_parked(r->nr_nics)))
		return 0;
	if (network_unpark(r, err) || nl_open(&n.nl, NETLINK_ROUTE, err) ||
	    network_find_nics(&n, err) || network_forget_old(&n, err))
		return err->code;
	network_hide_unused(&n);
	if (network_free_names(&n, err))
		return err->code;
	for (size_t i = 0; i < r->n_interfaces; i++)
		if (network_fill_interface(&n, r->interfaces[i], err))
			return err->code;
	if (network_add_routes(&n, false, err))
		return err->code;
	return network_add_routes(&n, true, err);
}
