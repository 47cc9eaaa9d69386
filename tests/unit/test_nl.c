/* Netlink messages: built and read back, cut short and made to lie; and a word with the real kernel. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "cleanup.h"
#include "nl.h"
#include "rtnl.h"

static struct rtnl_ip ip(const char *text)
{
	struct rtnl_ip v = {.len = strchr(text, ':') ? 16 : 4};

	assert_int_equal(inet_pton(v.len == 4 ? AF_INET : AF_INET6, text, v.bytes), 1);
	return v;
}

/* As it lies in a received datagram. */
static const struct nlmsghdr *seal(struct nl_msg *m)
{
	uint32_t len = (uint32_t)m->len;

	assert_false(m->overflow);
	memcpy(m->data, &len, sizeof(len));
	return (const void *)m->data;
}

/* What was read makes the same message again: structs are not compared, they have padding. */
static void assert_same_message(struct nl_msg *a, struct nl_msg *b)
{
	seal(a);
	seal(b);
	assert_int_equal(a->len, b->len);
	assert_memory_equal(a->data, b->data, a->len);
}

static void test_address_there_and_back(void **state)
{
	struct rtnl_addr a = {.ifindex = 7,
			      .family = AF_INET,
			      .prefix_len = 24,
			      .flags = IFA_F_NOPREFIXROUTE,
			      .local = ip("10.1.2.3"),
			      .broadcast = ip("10.1.2.255"),
			      .valid_s = 100,
			      .preferred_s = 50};
	struct rtnl_addr b;
	struct nl_msg m, again;
	char text[64];

	rtnl_begin_addr(&m, NLM_F_CREATE, &a);
	assert_int_equal(rtnl_parse_addr(seal(&m), &b), 0);
	assert_int_equal(b.valid_s, 100);
	assert_int_equal(b.flags, IFA_F_NOPREFIXROUTE);
	rtnl_begin_addr(&again, NLM_F_CREATE, &b);
	assert_same_message(&m, &again);
	a.local = ip("fd00::2");
	a.peer = ip("fd00::1");
	a.broadcast.len = 0;
	memset(&a.broadcast, 0, sizeof(a.broadcast));
	a.family = AF_INET6;
	a.prefix_len = 128;
	rtnl_begin_addr(&m, NLM_F_CREATE, &a);
	assert_int_equal(rtnl_parse_addr(seal(&m), &b), 0);
	rtnl_begin_addr(&again, NLM_F_CREATE, &b);
	assert_same_message(&m, &again);
	assert_string_equal(rtnl_ip_text(&b.local, text, sizeof(text)), "fd00::2");
	/* The wrong family's length, and a prefix longer than the address. */
	a.family = AF_INET;
	rtnl_begin_addr(&m, 0, &a);
	assert_int_equal(rtnl_parse_addr(seal(&m), &b), -EBADMSG);
	a = (struct rtnl_addr){
		.ifindex = 1, .family = AF_INET, .prefix_len = 33, .local = ip("1.2.3.4")};
	rtnl_begin_addr(&m, 0, &a);
	assert_int_equal(rtnl_parse_addr(seal(&m), &b), -EBADMSG);
}

static struct rtnl_route route(const char *dst, uint8_t len, const char *gateway)
{
	struct rtnl_route r = {.family = strchr(gateway, ':') ? AF_INET6 : AF_INET,
			       .dst_len = len,
			       .table = RT_TABLE_MAIN,
			       .protocol = RTPROT_STATIC,
			       .type = RTN_UNICAST,
			       .nr_nexthops = 1};

	if (dst)
		r.dst = ip(dst);
	r.nexthops[0] = (struct rtnl_nexthop){.ifindex = 3, .gateway = ip(gateway)};
	return r;
}

static void check_route(const struct rtnl_route *r)
{
	struct rtnl_route back;
	struct nl_msg m, again;

	rtnl_begin_route(&m, RTM_NEWROUTE, 0, r);
	assert_int_equal(rtnl_parse_route(seal(&m), &back), 0);
	assert_int_equal(back.nr_nexthops, r->nr_nexthops);
	assert_int_equal(back.nr_metrics, r->nr_metrics);
	assert_int_equal(back.nexthops[0].ifindex, r->nexthops[0].ifindex);
	assert_int_equal(back.nexthops[0].flags, r->nexthops[0].flags);
	assert_true(rtnl_ip_equal(&back.nexthops[0].gateway, &r->nexthops[0].gateway));
	rtnl_begin_route(&again, RTM_NEWROUTE, 0, &back);
	assert_same_message(&m, &again);
}

static void test_routes_there_and_back(void **state)
{
	struct rtnl_route r = route(NULL, 0, "10.0.0.1");

	check_route(&r);
	r.nexthops[0].flags = RTNH_F_ONLINK;
	r.priority = 1024;
	r.table = 1000;
	r.metrics[0].type = RTAX_MTU;
	r.metrics[0].value = 1400;
	r.nr_metrics = 1;
	check_route(&r);
	r = route("2001:db8::", 32, "fe80::1");
	r.source = ip("2001:db8::5");
	check_route(&r);
	/* IPv4 by way of an IPv6 router. */
	r = route("10.9.0.0", 16, "10.0.0.1");
	r.nexthops[0].gateway = ip("fe80::1");
	check_route(&r);
	r.nr_nexthops = 2;
	r.nexthops[1] = (struct rtnl_nexthop){.ifindex = 4, .weight = 9, .gateway = ip("10.8.0.1")};
	check_route(&r);
}

static void test_too_many_nexthops(void **state)
{
	struct rtmsg head = {.rtm_family = AF_INET};
	struct rtnexthop n = {.rtnh_len = sizeof(n), .rtnh_ifindex = 1};
	struct rtnl_route r;
	struct nl_msg m;
	size_t nest;

	nl_begin(&m, RTM_NEWROUTE, 0, &head, sizeof(head));
	nest = nl_nest(&m, RTA_MULTIPATH);
	for (int i = 0; i <= RTNL_NEXTHOPS_MAX; i++)
		nl_put_raw(&m, &n, sizeof(n));
	nl_nest_end(&m, nest);
	assert_int_equal(rtnl_parse_route(seal(&m), &r), -E2BIG);
	/* A hop that says it is longer than the list; one that would never end. */
	for (uint16_t lie = 0; lie < 200; lie = lie ? 200 : 1) {
		n.rtnh_len = lie;
		nl_begin(&m, RTM_NEWROUTE, 0, &head, sizeof(head));
		nest = nl_nest(&m, RTA_MULTIPATH);
		nl_put_raw(&m, &n, sizeof(n));
		nl_nest_end(&m, nest);
		assert_int_equal(rtnl_parse_route(seal(&m), &r), -EBADMSG);
	}
}

static void test_neighbour_there_and_back(void **state)
{
	struct rtnl_neigh n = {.ifindex = 2,
			       .family = AF_INET6,
			       .state = NUD_PERMANENT,
			       .dst = ip("fd00::9"),
			       .mac = {2, 3, 4, 5, 6, 7}};
	struct rtnl_neigh back;
	struct nl_msg m, again;

	rtnl_begin_neigh(&m, NLM_F_CREATE, &n);
	assert_int_equal(rtnl_parse_neigh(seal(&m), &back), 0);
	assert_int_equal(back.state, NUD_PERMANENT);
	rtnl_begin_neigh(&again, NLM_F_CREATE, &back);
	assert_same_message(&m, &again);
}

/* Every parser sees the message cut at each length, with its length field telling the truth and lying. */
static void parse_all(const struct nlmsghdr *h)
{
	struct rtnl_link l;
	struct rtnl_addr a;
	struct rtnl_route r;
	struct rtnl_neigh n;

	rtnl_parse_link(h, &l);
	rtnl_parse_addr(h, &a);
	rtnl_parse_route(h, &r);
	rtnl_parse_neigh(h, &n);
}

static void test_cut_messages(void **state)
{
	struct rtnl_route r = route("10.9.0.0", 16, "10.0.0.1");
	struct nl_msg m;
	size_t nr = 0;

	r.nr_nexthops = 3;
	r.nr_metrics = 2;
	r.metrics[0].type = RTAX_MTU;
	r.metrics[1].type = RTAX_ADVMSS;
	rtnl_begin_route(&m, RTM_NEWROUTE, 0, &r);
	seal(&m);
	for (size_t len = 0; len <= m.len; len++) {
		/* An allocation of its own, so that a sanitizer sees a read behind it. */
		cleanup_free uint8_t *copy = malloc(len ? len : 1);
		uint32_t told = (uint32_t)len;
		const struct nlmsghdr *h;
		size_t off = 0;

		memcpy(copy, m.data, len);
		h = nl_next(copy, len, &off);
		assert_true(!h || len == m.len);
		if (len < sizeof(*h))
			continue;
		memcpy(copy, &told, sizeof(told));
		off = 0;
		h = nl_next(copy, len, &off);
		assert_non_null(h);
		parse_all(h);
		nr++;
	}
	assert_true(nr > 50);
}

static void test_attribute_walk_ends(void **state)
{
	struct nlattr lies[] = {
		{.nla_len = 0}, {.nla_len = 3}, {.nla_len = 5}, {.nla_len = 0xffff}};
	struct nl_attr a;

	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		size_t off = 0;

		assert_false(nl_attr_next(&lies[i], sizeof(lies[i]), &off, &a));
	}
}

static void test_overflow_is_noted(void **state)
{
	struct ifinfomsg head = {0};
	uint8_t block[1000] = {0};
	struct nl_sock s = {.fd = -1};
	struct err err = {0};
	struct nl_msg m;

	nl_begin(&m, RTM_NEWLINK, 0, &head, sizeof(head));
	for (int i = 0; i < 5; i++)
		nl_put(&m, 1, block, sizeof(block));
	assert_true(m.overflow);
	assert_true(m.len <= NL_MSG_MAX);
	assert_int_equal(nl_request(&s, &m, &err, "try"), -EMSGSIZE);
}

static int find_loopback(void *ctx, const struct nlmsghdr *h)
{
	struct rtnl_link l;

	assert_int_equal(rtnl_parse_link(h, &l), 0);
	if (!strcmp(l.name, "lo")) {
		assert_int_equal(l.type, 772); /* ARPHRD_LOOPBACK */
		*(int *)ctx = l.ifindex;
	}
	return 0;
}

static int stop_at_once(void *ctx, const struct nlmsghdr *h)
{
	++*(int *)ctx;
	return -ECANCELED;
}

static void test_kernel(void **state)
{
	struct nl_sock s;
	struct err err = {0};
	struct nl_msg m;
	int lo = 0, seen = 0;

	assert_int_equal(nl_open(&s, NETLINK_ROUTE, &err), 0);
	rtnl_begin_dump(&m, RTM_GETLINK, AF_UNSPEC);
	assert_int_equal(nl_dump(&s, &m, find_loopback, &lo, &err, "list links"), 0);
	assert_true(lo > 0);
	rtnl_begin_dump(&m, RTM_GETADDR, AF_UNSPEC);
	nl_dump(&s, &m, stop_at_once, &seen, &err, "list addresses");
	assert_true(seen <= 1);
	/* The kernel refuses, and the sentence says what was attempted. The socket goes on. */
	rtnl_begin_link(&m, 0x7ffffff0, 0, 0);
	assert_true(nl_request(&s, &m, &err, "change a link that is not there") < 0);
	assert_non_null(strstr(err.msg, "change a link that is not there: "));
	lo = 0;
	rtnl_begin_dump(&m, RTM_GETLINK, AF_UNSPEC);
	assert_int_equal(nl_dump(&s, &m, find_loopback, &lo, &err, "list links"), 0);
	assert_true(lo > 0);
	nl_close(&s);
}

static void test_network_of(void **state)
{
	static const struct {
		const char *ip;
		uint8_t len;
		const char *network;
	} rows[] = {
		{"10.1.2.3", 16, "10.1.0.0"},
		{"10.1.2.3", 32, "10.1.2.3"},
		{"10.1.2.3", 0, "0.0.0.0"},
		{"10.1.2.255", 25, "10.1.2.128"},
		{"fd00:1:2:3::4", 64, "fd00:1:2:3::"},
		{"fd00::ffff", 127, "fd00::fffe"},
	};
	char text[64];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct rtnl_ip a = ip(rows[i].ip), n = rtnl_ip_network(&a, rows[i].len);

		assert_string_equal(rtnl_ip_text(&n, text, sizeof(text)), rows[i].network);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_address_there_and_back),
		cmocka_unit_test(test_routes_there_and_back),
		cmocka_unit_test(test_too_many_nexthops),
		cmocka_unit_test(test_neighbour_there_and_back),
		cmocka_unit_test(test_cut_messages),
		cmocka_unit_test(test_attribute_walk_ends),
		cmocka_unit_test(test_overflow_is_noted),
		cmocka_unit_test(test_kernel),
		cmocka_unit_test(test_network_of),
	};

	return cmocka_run_group_tests_name("nl", tests, NULL, NULL);
}
