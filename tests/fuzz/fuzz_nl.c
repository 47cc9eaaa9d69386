/* A datagram of anybody's: every message in it goes through every parser, and what is parsed is in range. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "nl.h"
#include "rtnl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void fuzz_message(const struct nlmsghdr *h)
{
	struct rtnl_link l;
	struct rtnl_addr a;
	struct rtnl_route r;
	struct rtnl_neigh n;
	struct nl_msg m;
	char text[64];

	if (!rtnl_parse_link(h, &l) && (l.ifindex <= 0 || !memchr(l.name, 0, sizeof(l.name))))
		abort();
	if (!rtnl_parse_addr(h, &a)) {
		if (a.prefix_len > a.local.len * 8)
			abort();
		rtnl_ip_text(&a.local, text, sizeof(text));
		rtnl_begin_addr(&m, 0, &a);
	}
	if (!rtnl_parse_route(h, &r)) {
		if (r.nr_nexthops > RTNL_NEXTHOPS_MAX || r.nr_metrics > RTNL_METRICS_MAX)
			abort();
		rtnl_begin_route(&m, h->nlmsg_type, 0, &r);
	}
	if (!rtnl_parse_neigh(h, &n))
		rtnl_begin_neigh(&m, 0, &n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	/* Messages are aligned in the buffer they are received in. */
	cleanup_free uint8_t *copy = malloc(len ? len : 1);
	const struct nlmsghdr *h;
	size_t off = 0;

	if (len)
		memcpy(copy, data, len);
	while ((h = nl_next(copy, len, &off)))
		fuzz_message(h);
	return 0;
}
