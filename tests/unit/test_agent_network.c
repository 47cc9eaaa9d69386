/*
 * The agent's network set-up, in a network namespace of this test: veth pairs that have the hardware addresses
 * of a VM's devices stand where those would be. Needs a new network namespace (root, or a user namespace).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "network.h"
#include "request.h"
#include "rtnl.h"

#define PB(name) AGENT_PB(name)

struct seen {
	struct rtnl_link links[16];
	struct rtnl_addr addrs[32];
	struct rtnl_route routes[64];
	struct rtnl_neigh neighs[32];
	size_t nr_links, nr_addrs, nr_routes, nr_neighs;
};

static int see(void *ctx, const struct nlmsghdr *h)
{
	struct seen *s = ctx;

	if (!rtnl_parse_link(h, &s->links[s->nr_links]))
		s->nr_links++;
	else if (!rtnl_parse_addr(h, &s->addrs[s->nr_addrs]))
		s->nr_addrs++;
	else if (!rtnl_parse_route(h, &s->routes[s->nr_routes]))
		s->nr_routes += s->routes[s->nr_routes].table == RT_TABLE_LOCAL ? 0 : 1;
	else if (!rtnl_parse_neigh(h, &s->neighs[s->nr_neighs]))
		s->nr_neighs++;
	assert_true(s->nr_links < 16 && s->nr_addrs < 32 && s->nr_routes < 64 && s->nr_neighs < 32);
	return 0;
}

static void look(struct seen *ret)
{
	static const uint16_t types[] = {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH};
	struct nl_sock nl;
	struct nl_msg m;

	memset(ret, 0, sizeof(*ret));
	assert_int_equal(nl_open(&nl, NETLINK_ROUTE, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		rtnl_begin_dump(&m, types[i], AF_UNSPEC);
		assert_int_equal(nl_dump(&nl, &m, see, ret, NULL, "look"), 0);
	}
	nl_close(&nl);
}

/* A device as the VM is born with, and its far end, which is up. */
static void make_nic(unsigned int nic, const char *name, const char *far)
{
	uint8_t mac[6] = {0x02, 0x68, 0x70, 0x6e, 0x00, (uint8_t)nic};
	struct ifinfomsg head = {0}, peer = {0};
	size_t info, data, far_end;
	struct err err = {0};
	struct nl_sock nl;
	struct nl_msg m;

	nl_begin(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	nl_put_text(&m, IFLA_IFNAME, name);
	nl_put(&m, IFLA_ADDRESS, mac, sizeof(mac));
	info = nl_nest(&m, IFLA_LINKINFO);
	nl_put_text(&m, IFLA_INFO_KIND, "veth");
	data = nl_nest(&m, IFLA_INFO_DATA);
	far_end = nl_nest(&m, VETH_INFO_PEER);
	nl_put_raw(&m, &peer, sizeof(peer));
	nl_put_text(&m, IFLA_IFNAME, far);
	nl_nest_end(&m, far_end);
	nl_nest_end(&m, data);
	nl_nest_end(&m, info);
	assert_int_equal(nl_open(&nl, NETLINK_ROUTE, &err), 0);
	if (nl_request(&nl, &m, &err, "make a veth pair"))
		fail_msg("%s", err.msg);
	rtnl_begin_link(&m, (int)if_nametoindex(far), IFF_UP, IFF_UP);
	assert_int_equal(nl_request(&nl, &m, &err, "bring up the far end"), 0);
	nl_close(&nl);
}

/* Every test in a namespace of its own. */
static int new_namespace(void **state)
{
	if (unshare(CLONE_NEWNET) && unshare(CLONE_NEWUSER | CLONE_NEWNET)) {
		*state = (void *)"no";
		return 0;
	}
	make_nic(0, "eth0", "far0");
	make_nic(1, "eth1", "far1");
	return 0;
}

static void need_namespace(void **state)
{
	if (*state)
		skip();
}

static ProtobufCBinaryData ip(const char *text)
{
	size_t len = strchr(text, ':') ? 16 : 4;
	uint8_t *data = calloc(1, len);

	assert_int_equal(inet_pton(len == 4 ? AF_INET : AF_INET6, text, data), 1);
	return (ProtobufCBinaryData){len, data};
}

static ProtobufCBinaryData mac(uint8_t last)
{
	uint8_t *data = calloc(1, 6);

	data[0] = 0x0a;
	data[5] = last;
	return (ProtobufCBinaryData){6, data};
}

static PB(NetInterface) * add_interface(PB(NetworkRequest) * r, uint32_t nic, const char *name)
{
	PB(NetInterface) *p = calloc(1, sizeof(*p));

	harpoon__agent__v1__net_interface__init(p);
	p->nic = nic;
	p->name = strdup(name);
	p->mac = mac((uint8_t)(0x50 + nic));
	p->mtu = 1400 + nic;
	p->txqlen = 1000;
	p->addresses = calloc(8, sizeof(void *));
	p->neighbours = calloc(8, sizeof(void *));
	if (!r->interfaces) {
		r->interfaces = calloc(8, sizeof(void *));
		r->routes = calloc(16, sizeof(void *));
	}
	r->nr_nics = 2;
	r->interfaces[r->n_interfaces++] = p;
	return p;
}

static void add_address(PB(NetInterface) * p, const char *text, uint32_t prefix_len)
{
	PB(NetAddress) *a = calloc(1, sizeof(*a));

	harpoon__agent__v1__net_address__init(a);
	a->local = ip(text);
	a->prefix_len = prefix_len;
	a->valid_s = a->preferred_s = UINT32_MAX;
	p->addresses[p->n_addresses++] = a;
}

static PB(NetRoute) *
	add_route(PB(NetworkRequest) * r, const char *dst, uint32_t len, const char *gateway)
{
	PB(NetRoute) *p = calloc(1, sizeof(*p));
	PB(NetNexthop) *h = calloc(1, sizeof(*h));

	harpoon__agent__v1__net_route__init(p);
	harpoon__agent__v1__net_nexthop__init(h);
	p->ipv6 = strchr(gateway ? gateway : dst, ':') != NULL;
	if (len)
		p->dst = ip(dst);
	p->dst_len = len;
	p->table = RT_TABLE_MAIN;
	p->protocol = gateway ? RTPROT_STATIC : RTPROT_KERNEL;
	p->scope = gateway || p->ipv6 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
	p->type = RTN_UNICAST;
	if (gateway)
		h->gateway = ip(gateway);
	p->nexthops = calloc(4, sizeof(void *));
	p->nexthops[p->n_nexthops++] = h;
	r->routes[r->n_routes++] = p;
	return p;
}

static void set_up(PB(NetworkRequest) * r)
{
	struct err err = {0};

	if (request_check_network(r, &err) || network_set_up(r, &err))
		fail_msg("%s", err.msg);
	protobuf_c_message_free_unpacked(&r->base, NULL);
}

static PB(NetworkRequest) * new_request(void)
{
	PB(NetworkRequest) *r = calloc(1, sizeof(*r));

	harpoon__agent__v1__network_request__init(r);
	return r;
}

static const struct rtnl_link *link_named(const struct seen *s, const char *name)
{
	for (size_t i = 0; i < s->nr_links; i++)
		if (!strcmp(s->links[i].name, name))
			return &s->links[i];
	return NULL;
}

static bool has_address(const struct seen *s, int ifindex, const char *text, uint8_t prefix_len)
{
	char buf[64];

	for (size_t i = 0; i < s->nr_addrs; i++)
		if (s->addrs[i].ifindex == ifindex && s->addrs[i].prefix_len == prefix_len &&
		    !strcmp(rtnl_ip_text(&s->addrs[i].local, buf, sizeof(buf)), text)) {
			assert_false(s->addrs[i].flags & IFA_F_TENTATIVE);
			return true;
		}
	return false;
}

static const struct rtnl_route *find_route(const struct seen *s, const char *dst, uint8_t len,
					   const char *gateway)
{
	char a[64], b[64];

	for (size_t i = 0; i < s->nr_routes; i++) {
		const struct rtnl_route *r = &s->routes[i];

		if (r->dst_len == len && !strcmp(rtnl_ip_text(&r->dst, a, sizeof(a)), dst) &&
		    !strcmp(rtnl_ip_text(&r->nexthops[0].gateway, b, sizeof(b)), gateway))
			return r;
	}
	return NULL;
}

/* One interface with both families, a default route each, another device that has no use. */
static void test_one_interface(void **state)
{
	PB(NetworkRequest) *r = new_request();
	PB(NetInterface) *p = add_interface(r, 0, "eth0");
	const struct rtnl_link *l;
	struct seen s;

	need_namespace(state);
	add_address(p, "10.1.2.3", 24);
	add_address(p, "fd00:1::3", 64);
	/* Given before what their gateways need. */
	add_route(r, NULL, 0, "10.1.2.1");
	add_route(r, NULL, 0, "fd00:1::1");
	add_route(r, "10.1.2.0", 24, NULL);
	add_route(r, "fd00:1::", 64, NULL)->priority = 256;
	set_up(r);
	look(&s);
	l = link_named(&s, "eth0");
	assert_non_null(l);
	assert_true(l->flags & IFF_UP);
	assert_int_equal(l->mtu, 1400);
	assert_int_equal(l->mac[0], 0x0a);
	assert_int_equal(l->mac[5], 0x50);
	assert_true(has_address(&s, l->ifindex, "10.1.2.3", 24));
	assert_true(has_address(&s, l->ifindex, "fd00:1::3", 64));
	assert_non_null(find_route(&s, "-", 0, "10.1.2.1"));
	assert_non_null(find_route(&s, "-", 0, "fd00:1::1"));
	assert_non_null(find_route(&s, "10.1.2.0", 24, "-"));
	/* No address that the host's side does not have. */
	for (size_t i = 0; i < s.nr_addrs; i++)
		assert_true(s.addrs[i].ifindex != l->ifindex || s.addrs[i].scope != RT_SCOPE_LINK);
	assert_false(link_named(&s, "eth1")->flags & IFF_UP);
}

/* The devices have each other's names; static routes, neighbours, a multipath route, another table. */
static void test_swapped_names_and_the_rest(void **state)
{
	PB(NetworkRequest) *r = new_request();
	PB(NetInterface) *a = add_interface(r, 0, "eth1"), *b = add_interface(r, 1, "eth0");
	PB(NetNeighbour) *n = calloc(1, sizeof(*n));
	PB(NetRoute) * route;
	PB(NetNexthop) *second = calloc(1, sizeof(*second));
	const struct rtnl_route *found;
	const struct rtnl_link *l;
	struct seen s;
	char buf[64];

	need_namespace(state);
	add_address(a, "10.1.0.2", 16);
	add_address(b, "10.2.0.2", 16);
	add_route(r, "10.1.0.0", 16, NULL);
	add_route(r, "10.2.0.0", 16, NULL)->nexthops[0]->interface = 1;
	route = add_route(r, "10.9.0.0", 16, "10.1.0.9");
	harpoon__agent__v1__net_nexthop__init(second);
	second->interface = 1;
	second->gateway = ip("10.2.0.9");
	second->weight = 3;
	route->nexthops[route->n_nexthops++] = second;
	route = add_route(r, "10.8.0.0", 16, "192.168.7.7");
	route->nexthops[0]->flags = RTNH_F_ONLINK;
	route->table = 1234;
	harpoon__agent__v1__net_neighbour__init(n);
	n->address = ip("10.1.0.77");
	n->mac = mac(0x77);
	a->neighbours[a->n_neighbours++] = n;
	set_up(r);
	look(&s);
	l = link_named(&s, "eth1");
	assert_int_equal(l->mac[5], 0x50);
	assert_true(has_address(&s, l->ifindex, "10.1.0.2", 16));
	assert_int_equal(link_named(&s, "eth0")->mac[5], 0x51);
	found = find_route(&s, "10.9.0.0", 16, "10.1.0.9");
	assert_non_null(found);
	assert_int_equal(found->nr_nexthops, 2);
	assert_int_equal(found->nexthops[1].weight, 3);
	found = find_route(&s, "10.8.0.0", 16, "192.168.7.7");
	assert_non_null(found);
	assert_int_equal(found->table, 1234);
	for (size_t i = 0; i < s.nr_neighs; i++)
		if (s.neighs[i].state == NUD_PERMANENT &&
		    !strcmp(rtnl_ip_text(&s.neighs[i].dst, buf, sizeof(buf)), "10.1.0.77"))
			return;
	fail_msg("no neighbour 10.1.0.77");
}

/* As CNI's ptp plugin leaves it: the address's own network is not reached directly. */
static void test_removed_prefix_route(void **state)
{
	PB(NetworkRequest) *r = new_request();
	PB(NetInterface) *p = add_interface(r, 0, "eth0");
	PB(NetRoute) * route;
	struct seen s;

	need_namespace(state);
	add_address(p, "10.1.2.3", 24);
	route = add_route(r, "10.1.2.1", 32, NULL);
	route->protocol = RTPROT_BOOT;
	add_route(r, "10.1.2.0", 24, "10.1.2.1");
	set_up(r);
	look(&s);
	assert_null(find_route(&s, "10.1.2.0", 24, "-"));
	assert_non_null(find_route(&s, "10.1.2.1", 32, "-"));
	assert_non_null(find_route(&s, "10.1.2.0", 24, "10.1.2.1"));
}

static void test_no_such_device(void **state)
{
	PB(NetworkRequest) *r = new_request();
	struct err err = {0};

	need_namespace(state);
	add_interface(r, 5, "net5");
	r->nr_nics = 6;
	assert_int_equal(request_check_network(r, &err), 0);
	assert_int_equal(network_set_up(r, &err), -ENODEV);
	assert_non_null(strstr(err.msg, "net5"));
	protobuf_c_message_free_unpacked(&r->base, NULL);
}

static void refuse(PB(NetworkRequest) * r, const char *word)
{
	struct err err = {0};

	assert_int_equal(request_check_network(r, &err), -EINVAL);
	if (!strstr(err.msg, word))
		fail_msg("'%s' does not say '%s'", err.msg, word);
	protobuf_c_message_free_unpacked(&r->base, NULL);
}

static void test_bad_requests(void **state)
{
	static const char *const names[] = {"", ".", "..", "a/b", "a b", "a:b", "0123456789abcdef"};
	PB(NetworkRequest) * r;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		r = new_request();
		add_interface(r, 0, names[i]);
		refuse(r, "no name");
	}
	r = new_request();
	add_interface(r, 2, "eth0");
	refuse(r, "device 2 of 2");
	r = new_request();
	add_interface(r, 0, "eth0");
	add_interface(r, 1, "eth0");
	refuse(r, "twice");
	r = new_request();
	add_address(add_interface(r, 0, "eth0"), "10.0.0.1", 33);
	refuse(r, "address");
	r = new_request();
	add_interface(r, 0, "eth0");
	add_route(r, NULL, 0, "10.0.0.1")->nexthops[0]->interface = 1;
	refuse(r, "leads nowhere");
	r = new_request();
	add_interface(r, 0, "eth0");
	add_route(r, "10.0.0.0", 33, "10.0.0.1");
	refuse(r, "route");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_one_interface, new_namespace),
		cmocka_unit_test_setup(test_swapped_names_and_the_rest, new_namespace),
		cmocka_unit_test_setup(test_removed_prefix_route, new_namespace),
		cmocka_unit_test_setup(test_no_such_device, new_namespace),
		cmocka_unit_test(test_bad_requests),
	};

	return cmocka_run_group_tests_name("agent_network", tests, NULL, NULL);
}
