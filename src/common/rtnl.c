/* rtnetlink messages to structs and back; see rtnl.h. Formats: rtnetlink(7), linux/rtnetlink.h, if_addr.h. */
#include "rtnl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>

static uint8_t rtnl_ip_len(uint8_t family)
{
	return family == AF_INET ? 4 : family == AF_INET6 ? 16 : 0;
}

static int rtnl_get_ip(const struct nl_attr *a, struct rtnl_ip *ret)
{
	if (a->len != 4 && a->len != 16)
		return -EBADMSG;
	*ret = (struct rtnl_ip){.len = (uint8_t)a->len};
	memcpy(ret->bytes, a->data, a->len);
	return 0;
}

/* Of the family of the message it is in. */
static int rtnl_get_own_ip(const struct nl_attr *a, uint8_t family, struct rtnl_ip *ret)
{
	return a->len == rtnl_ip_len(family) ? rtnl_get_ip(a, ret) : -EBADMSG;
}

static void rtnl_put_ip(struct nl_msg *m, uint16_t type, const struct rtnl_ip *ip)
{
	if (ip->len)
		nl_put(m, type, ip->bytes, ip->len);
}

/* The fixed part of a message, copied, and its attributes. */
static int rtnl_open_msg(const struct nlmsghdr *h, uint16_t type, void *head, size_t head_len,
			 const uint8_t **attrs, size_t *len)
{
	int r = h->nlmsg_type == type ? nl_attrs(h, head_len, attrs, len) : -EBADMSG;

	if (!r)
		memcpy(head, (const uint8_t *)h + NLMSG_HDRLEN, head_len);
	return r;
}

static void rtnl_parse_kind(const struct nl_attr *info, struct rtnl_link *ret)
{
	struct nl_attr a;
	size_t off = 0;

	while (nl_attr_next(info->data, info->len, &off, &a)) {
		if (a.type == IFLA_INFO_KIND && !nl_attr_text(&a, ret->kind, sizeof(ret->kind)))
			ret->kind[0] = '\0';
	}
}

int rtnl_parse_link(const struct nlmsghdr *h, struct rtnl_link *ret)
{
	struct rtnl_link l = {0};
	struct ifinfomsg i;
	const uint8_t *attrs;
	struct nl_attr a;
	size_t off = 0, len;
	int r = rtnl_open_msg(h, RTM_NEWLINK, &i, sizeof(i), &attrs, &len);

	if (r)
		return r;
	l.ifindex = i.ifi_index;
	l.type = i.ifi_type;
	l.flags = i.ifi_flags;
	while (nl_attr_next(attrs, len, &off, &a)) {
		if (a.type == IFLA_IFNAME && !nl_attr_text(&a, l.name, sizeof(l.name)))
			return -EBADMSG;
		if (a.type == IFLA_MTU)
			l.mtu = nl_attr_u32(&a, 0);
		else if (a.type == IFLA_TXQLEN)
			l.txqlen = nl_attr_u32(&a, 0);
		else if (a.type == IFLA_MASTER)
			l.master = (int)nl_attr_u32(&a, 0);
		else if (a.type == IFLA_LINKINFO)
			rtnl_parse_kind(&a, &l);
		else if (a.type == IFLA_PERM_ADDRESS && a.len == RTNL_MAC_LEN)
			memcpy(l.perm_mac, a.data, RTNL_MAC_LEN);
		if (a.type != IFLA_ADDRESS || a.len != RTNL_MAC_LEN)
			continue;
		memcpy(l.mac, a.data, RTNL_MAC_LEN);
		l.has_mac = true;
	}
	if (l.ifindex <= 0 || !l.name[0])
		return -EBADMSG;
	*ret = l;
	return 0;
}

static int rtnl_parse_addr_attr(const struct nl_attr *a, struct rtnl_addr *ret)
{
	struct ifa_cacheinfo c;

	switch (a->type) {
	case IFA_LOCAL:
		return rtnl_get_own_ip(a, ret->family, &ret->local);
	case IFA_ADDRESS:
		return rtnl_get_own_ip(a, ret->family, &ret->peer);
	case IFA_BROADCAST:
		return rtnl_get_own_ip(a, ret->family, &ret->broadcast);
	case IFA_FLAGS:
		ret->flags = nl_attr_u32(a, ret->flags);
		return 0;
	case IFA_CACHEINFO:
		if (a->len < sizeof(c))
			return -EBADMSG;
		memcpy(&c, a->data, sizeof(c));
		ret->valid_s = c.ifa_valid;
		ret->preferred_s = c.ifa_prefered;
		return 0;
	default:
		return 0;
	}
}

int rtnl_parse_addr(const struct nlmsghdr *h, struct rtnl_addr *ret)
{
	struct rtnl_addr v = {.valid_s = UINT32_MAX, .preferred_s = UINT32_MAX};
	struct ifaddrmsg i;
	const uint8_t *attrs;
	struct nl_attr a;
	size_t off = 0, len;
	int r = rtnl_open_msg(h, RTM_NEWADDR, &i, sizeof(i), &attrs, &len);

	if (r)
		return r;
	v.ifindex = (int)i.ifa_index;
	v.family = i.ifa_family;
	v.prefix_len = i.ifa_prefixlen;
	v.scope = i.ifa_scope;
	v.flags = i.ifa_flags;
	if (!rtnl_ip_len(v.family))
		return -EAFNOSUPPORT;
	while (nl_attr_next(attrs, len, &off, &a)) {
		r = rtnl_parse_addr_attr(&a, &v);
		if (r)
			return r;
	}
	/* IPv6 has IFA_LOCAL only where there is a peer; IPv4 has both, mostly the same. */
	if (!v.local.len)
		v.local = v.peer;
	if (rtnl_ip_equal(&v.local, &v.peer))
		v.peer = (struct rtnl_ip){0};
	if (v.ifindex <= 0 || !v.local.len || v.prefix_len > v.local.len * 8)
		return -EBADMSG;
	*ret = v;
	return 0;
}

/* RTA_VIA: a family, then an address of it. */
static int rtnl_get_via(const struct nl_attr *a, struct rtnl_ip *ret)
{
	struct nl_attr address = {.data = a->data + 2, .len = a->len - 2};

	return a->len > 2 ? rtnl_get_ip(&address, ret) : -EBADMSG;
}

static int rtnl_parse_gateway(const struct nl_attr *a, uint8_t family, struct rtnl_ip *ret)
{
	return a->type == RTA_VIA ? rtnl_get_via(a, ret) : rtnl_get_own_ip(a, family, ret);
}

static int rtnl_parse_nexthop(const uint8_t *data, size_t len, struct rtnl_route *ret)
{
	struct rtnl_nexthop *n = &ret->nexthops[ret->nr_nexthops];
	struct rtnexthop head;
	struct nl_attr a;
	size_t off = 0;

	if (ret->nr_nexthops == RTNL_NEXTHOPS_MAX)
		return -E2BIG;
	memcpy(&head, data, sizeof(head));
	*n = (struct rtnl_nexthop){
		.ifindex = head.rtnh_ifindex, .weight = head.rtnh_hops, .flags = head.rtnh_flags};
	data += sizeof(head);
	len -= sizeof(head);
	while (nl_attr_next(data, len, &off, &a)) {
		if ((a.type == RTA_GATEWAY || a.type == RTA_VIA) &&
		    rtnl_parse_gateway(&a, ret->family, &n->gateway))
			return -EBADMSG;
	}
	ret->nr_nexthops++;
	return 0;
}

/* A list of struct rtnexthop, each with attributes of its own. */
static int rtnl_parse_multipath(const struct nl_attr *list, struct rtnl_route *ret)
{
	size_t off = 0;
	struct rtnexthop head;

	ret->nr_nexthops = 0;
	while (list->len - off >= sizeof(head)) {
		int r;

		memcpy(&head, list->data + off, sizeof(head));
		if (head.rtnh_len < sizeof(head) || head.rtnh_len > list->len - off)
			return -EBADMSG;
		r = rtnl_parse_nexthop(list->data + off, head.rtnh_len, ret);
		if (r)
			return r;
		off += MIN((size_t)RTNH_ALIGN(head.rtnh_len), list->len - off);
	}
	return ret->nr_nexthops ? 0 : -EBADMSG;
}

static int rtnl_parse_metrics(const struct nl_attr *list, struct rtnl_route *ret)
{
	struct nl_attr a;
	size_t off = 0;

	ret->nr_metrics = 0;
	while (nl_attr_next(list->data, list->len, &off, &a)) {
		/* A congestion algorithm is a text, and a matter of the kernel that uses the route. */
		if (a.type == RTAX_CC_ALGO || a.len != sizeof(uint32_t))
			continue;
		if (ret->nr_metrics == RTNL_METRICS_MAX)
			return -E2BIG;
		ret->metrics[ret->nr_metrics].type = a.type;
		ret->metrics[ret->nr_metrics++].value = nl_attr_u32(&a, 0);
	}
	return 0;
}

static int rtnl_parse_route_attr(const struct nl_attr *a, struct rtnl_route *ret)
{
	struct rtnl_nexthop *first = &ret->nexthops[0];

	switch (a->type) {
	case RTA_DST:
		return rtnl_get_own_ip(a, ret->family, &ret->dst);
	case RTA_PREFSRC:
		return rtnl_get_own_ip(a, ret->family, &ret->source);
	case RTA_TABLE:
		ret->table = nl_attr_u32(a, ret->table);
		return 0;
	case RTA_PRIORITY:
		ret->priority = nl_attr_u32(a, 0);
		return 0;
	case RTA_OIF:
		first->ifindex = (int)nl_attr_u32(a, 0);
		ret->nr_nexthops = MAX(ret->nr_nexthops, 1u);
		return 0;
	case RTA_GATEWAY:
	case RTA_VIA:
		ret->nr_nexthops = MAX(ret->nr_nexthops, 1u);
		return rtnl_parse_gateway(a, ret->family, &first->gateway);
	case RTA_METRICS:
		return rtnl_parse_metrics(a, ret);
	case RTA_MULTIPATH:
		return rtnl_parse_multipath(a, ret);
	default:
		return 0;
	}
}

int rtnl_parse_route(const struct nlmsghdr *h, struct rtnl_route *ret)
{
	struct rtnl_route v = {0};
	struct rtmsg i;
	const uint8_t *attrs;
	struct nl_attr a;
	size_t off = 0, len;
	int r = rtnl_open_msg(h, RTM_NEWROUTE, &i, sizeof(i), &attrs, &len);

	if (r)
		return r;
	v.family = i.rtm_family;
	v.dst_len = i.rtm_dst_len;
	v.tos = i.rtm_tos;
	v.protocol = i.rtm_protocol;
	v.scope = i.rtm_scope;
	v.type = i.rtm_type;
	v.table = i.rtm_table;
	v.flags = i.rtm_flags;
	if (!rtnl_ip_len(v.family))
		return -EAFNOSUPPORT;
	while (nl_attr_next(attrs, len, &off, &a)) {
		r = rtnl_parse_route_attr(&a, &v);
		if (r)
			return r;
	}
	if (v.dst_len > rtnl_ip_len(v.family) * 8 || (v.dst_len && !v.dst.len))
		return -EBADMSG;
	if (v.nr_nexthops == 1 && !v.nexthops[0].flags)
		v.nexthops[0].flags = (uint8_t)(v.flags & RTNH_F_ONLINK);
	*ret = v;
	return 0;
}

int rtnl_parse_neigh(const struct nlmsghdr *h, struct rtnl_neigh *ret)
{
	struct rtnl_neigh v = {0};
	struct ndmsg i;
	const uint8_t *attrs;
	struct nl_attr a;
	size_t off = 0, len;
	bool has_mac = false;
	int r = rtnl_open_msg(h, RTM_NEWNEIGH, &i, sizeof(i), &attrs, &len);

	if (r)
		return r;
	v.ifindex = i.ndm_ifindex;
	v.family = i.ndm_family;
	v.state = i.ndm_state;
	v.flags = i.ndm_flags;
	if (!rtnl_ip_len(v.family))
		return -EAFNOSUPPORT;
	while (nl_attr_next(attrs, len, &off, &a)) {
		if (a.type == NDA_DST && rtnl_get_own_ip(&a, v.family, &v.dst))
			return -EBADMSG;
		if (a.type != NDA_LLADDR || a.len != RTNL_MAC_LEN)
			continue;
		memcpy(v.mac, a.data, RTNL_MAC_LEN);
		has_mac = true;
	}
	if (v.ifindex <= 0 || !v.dst.len || !has_mac)
		return -EBADMSG;
	*ret = v;
	return 0;
}

void rtnl_begin_dump(struct nl_msg *m, uint16_t type, uint8_t family)
{
	/* Every family's head begins with its number; strict kernels want the whole head. */
	union {
		struct ifinfomsg link;
		struct ifaddrmsg addr;
		struct rtmsg route;
		struct ndmsg neigh;
		uint8_t family;
	} head;
	size_t len = type == RTM_GETLINK    ? sizeof(head.link)
		     : type == RTM_GETADDR  ? sizeof(head.addr)
		     : type == RTM_GETROUTE ? sizeof(head.route)
					    : sizeof(head.neigh);

	memset(&head, 0, sizeof(head));
	head.family = family;
	nl_begin(m, type, 0, &head, len);
}

void rtnl_begin_link(struct nl_msg *m, int ifindex, uint32_t flags, uint32_t change)
{
	struct ifinfomsg i = {.ifi_index = ifindex, .ifi_flags = flags, .ifi_change = change};

	nl_begin(m, RTM_NEWLINK, 0, &i, sizeof(i));
}

void rtnl_begin_addr(struct nl_msg *m, uint16_t flags, const struct rtnl_addr *a)
{
	struct ifaddrmsg i = {
		.ifa_family = a->family,
		.ifa_prefixlen = a->prefix_len,
		.ifa_flags = (uint8_t)a->flags,
		.ifa_scope = a->scope,
		.ifa_index = (uint32_t)a->ifindex,
	};
	struct ifa_cacheinfo c = {.ifa_valid = a->valid_s, .ifa_prefered = a->preferred_s};

	nl_begin(m, RTM_NEWADDR, flags, &i, sizeof(i));
	rtnl_put_ip(m, IFA_LOCAL, &a->local);
	rtnl_put_ip(m, IFA_ADDRESS, a->peer.len ? &a->peer : &a->local);
	rtnl_put_ip(m, IFA_BROADCAST, &a->broadcast);
	nl_put_u32(m, IFA_FLAGS, a->flags);
	nl_put(m, IFA_CACHEINFO, &c, sizeof(c));
}

void rtnl_begin_delete_addr(struct nl_msg *m, const struct rtnl_addr *a)
{
	struct ifaddrmsg i = {
		.ifa_family = a->family,
		.ifa_prefixlen = a->prefix_len,
		.ifa_index = (uint32_t)a->ifindex,
	};

	nl_begin(m, RTM_DELADDR, 0, &i, sizeof(i));
	rtnl_put_ip(m, IFA_LOCAL, &a->local);
	rtnl_put_ip(m, IFA_ADDRESS, a->peer.len ? &a->peer : &a->local);
}

static void rtnl_put_gateway(struct nl_msg *m, uint8_t family, const struct rtnl_ip *gateway)
{
	uint8_t via[2 + RTNL_ADDR_MAX] = {0};
	uint16_t via_family = gateway->len == 4 ? AF_INET : AF_INET6;

	if (!gateway->len || gateway->len == rtnl_ip_len(family)) {
		rtnl_put_ip(m, RTA_GATEWAY, gateway);
		return;
	}
	memcpy(via, &via_family, sizeof(via_family));
	memcpy(via + 2, gateway->bytes, gateway->len);
	nl_put(m, RTA_VIA, via, 2u + gateway->len);
}

static void rtnl_put_multipath(struct nl_msg *m, const struct rtnl_route *r)
{
	size_t nest = nl_nest(m, RTA_MULTIPATH);

	for (size_t i = 0; i < r->nr_nexthops; i++) {
		const struct rtnl_nexthop *n = &r->nexthops[i];
		struct rtnexthop head = {.rtnh_flags = n->flags & RTNH_F_ONLINK,
					 .rtnh_hops = n->weight,
					 .rtnh_ifindex = n->ifindex};
		size_t at = nl_put_raw(m, &head, sizeof(head));

		rtnl_put_gateway(m, r->family, &n->gateway);
		head.rtnh_len = (uint16_t)(m->len - at);
		if (!m->overflow)
			memcpy(m->data + at, &head, sizeof(head));
	}
	nl_nest_end(m, nest);
}

static void rtnl_put_metrics(struct nl_msg *m, const struct rtnl_route *r)
{
	size_t nest;

	if (!r->nr_metrics)
		return;
	nest = nl_nest(m, RTA_METRICS);
	for (size_t i = 0; i < r->nr_metrics; i++)
		nl_put_u32(m, r->metrics[i].type, r->metrics[i].value);
	nl_nest_end(m, nest);
}

void rtnl_begin_route(struct nl_msg *m, uint16_t type, uint16_t flags, const struct rtnl_route *r)
{
	const struct rtnl_nexthop *n = &r->nexthops[0];
	struct rtmsg i = {
		.rtm_family = r->family,
		.rtm_dst_len = r->dst_len,
		.rtm_tos = r->tos,
		.rtm_table = r->table < 256 ? (uint8_t)r->table : RT_TABLE_COMPAT,
		.rtm_protocol = r->protocol,
		.rtm_scope = r->scope,
		.rtm_type = r->type,
	};

	if (r->nr_nexthops == 1)
		i.rtm_flags = n->flags & RTNH_F_ONLINK;
	nl_begin(m, type, flags, &i, sizeof(i));
	nl_put_u32(m, RTA_TABLE, r->table);
	rtnl_put_ip(m, RTA_DST, &r->dst);
	rtnl_put_ip(m, RTA_PREFSRC, &r->source);
	if (r->priority)
		nl_put_u32(m, RTA_PRIORITY, r->priority);
	rtnl_put_metrics(m, r);
	if (r->nr_nexthops > 1) {
		rtnl_put_multipath(m, r);
	} else if (r->nr_nexthops) {
		if (n->ifindex)
			nl_put_u32(m, RTA_OIF, (uint32_t)n->ifindex);
		rtnl_put_gateway(m, r->family, &n->gateway);
	}
}

void rtnl_begin_neigh(struct nl_msg *m, uint16_t flags, const struct rtnl_neigh *n)
{
	struct ndmsg i = {
		.ndm_family = n->family,
		.ndm_ifindex = n->ifindex,
		.ndm_state = n->state,
		.ndm_flags = n->flags,
	};

	nl_begin(m, RTM_NEWNEIGH, flags, &i, sizeof(i));
	rtnl_put_ip(m, NDA_DST, &n->dst);
	nl_put(m, NDA_LLADDR, n->mac, RTNL_MAC_LEN);
}

const char *rtnl_ip_text(const struct rtnl_ip *ip, char *ret, size_t room)
{
	int family = ip->len == 4 ? AF_INET : AF_INET6;

	if (!ip->len || !inet_ntop(family, ip->bytes, ret, (socklen_t)room))
		return "-";
	return ret;
}

bool rtnl_ip_equal(const struct rtnl_ip *a, const struct rtnl_ip *b)
{
	return a->len == b->len && !memcmp(a->bytes, b->bytes, a->len);
}

struct rtnl_ip rtnl_ip_network(const struct rtnl_ip *ip, uint8_t prefix_len)
{
	struct rtnl_ip n = *ip;

	for (size_t i = 0; i < n.len; i++) {
		unsigned int bits = prefix_len > i * 8 ? prefix_len - (unsigned int)i * 8 : 0;

		if (bits < 8)
			n.bytes[i] &= (uint8_t)(0xff00u >> bits);
	}
	return n;
}
