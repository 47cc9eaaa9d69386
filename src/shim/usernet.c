/*
 * passt, see usernet.h. It gets its end of a socket pair, addresses as arguments, and confines itself: user
 * nobody, namespaces of its own, an empty root, seccomp. It ends when the socket closes, which is when the VM's
 * process does. Nothing is served to the guest: what DHCP would say, the agent says.
 *
 * The host's loopback cannot be reached, and an address of the host is the guest's own address, there.
 */
#include "usernet.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "netread.h"
#include "util.h"

#define USERNET_ARGS_MAX 32
/* What passt can take of a frame; there is no wire whose MTU would matter. */
#define USERNET_MTU 65520

struct usernet {
	struct netread lent; /* one link, what passt lends of it */
	char *argv[USERNET_ARGS_MAX + 1];
	size_t nr_args;
	struct hv_helper helper;
	int vm_fd, helper_fd; /* owned */
};

static void usernet_freep(struct usernet **u)
{
	usernet_free(*u);
}

static void usernet_arg(struct usernet *u, const char *arg)
{
	if (u->nr_args == USERNET_ARGS_MAX)
		abort();
	u->argv[u->nr_args++] = xstrdup(arg);
}

static void usernet_arg_ip(struct usernet *u, const char *option, const struct rtnl_ip *ip)
{
	char text[64];

	usernet_arg(u, option);
	usernet_arg(u, rtnl_ip_text(ip, text, sizeof(text)));
}

/* The default route that counts, of those with a gateway. */
static const struct rtnl_route *usernet_find_default(const struct netread *host, uint8_t family)
{
	const struct rtnl_route *best = NULL;

	for (size_t i = 0; i < host->nr_routes; i++) {
		const struct rtnl_route *r = &host->routes[i];

		if (r->family == family && !r->dst_len && r->table == RT_TABLE_MAIN &&
		    r->type == RTN_UNICAST &&
		    r->nexthops[0].gateway.len == (family == AF_INET ? 4 : 16) &&
		    (!best || r->priority < best->priority))
			best = r;
	}
	return best;
}

static const struct rtnl_addr *usernet_find_address(const struct netread *host, int ifindex,
						    uint8_t family)
{
	for (size_t i = 0; i < host->nr_addrs; i++) {
		const struct rtnl_addr *a = &host->addrs[i];

		if (a->family == family && a->ifindex == ifindex && a->scope == RT_SCOPE_UNIVERSE)
			return a;
	}
	return NULL;
}

/* Takes what there is of a family. False: nothing. */
static bool usernet_lend(struct usernet *u, const struct netread *host, uint8_t family)
{
	const struct rtnl_route *r = usernet_find_default(host, family);
	const struct rtnl_addr *a;
	struct rtnl_route *mine;
	char len[8];

	if (!r || (u->lent.nr_links && u->lent.links[0].ifindex != r->nexthops[0].ifindex))
		return false;
	a = usernet_find_address(host, r->nexthops[0].ifindex, family);
	if (!a)
		return false;
	for (size_t i = 0; i < host->nr_links && !u->lent.nr_links; i++)
		if (host->links[i].ifindex == a->ifindex)
			u->lent.links[u->lent.nr_links++] = host->links[i];
	u->lent.addrs[u->lent.nr_addrs] = *a;
	u->lent.addrs[u->lent.nr_addrs].valid_s = UINT32_MAX;
	u->lent.addrs[u->lent.nr_addrs++].preferred_s = UINT32_MAX;
	mine = &u->lent.routes[u->lent.nr_routes++];
	*mine = (struct rtnl_route){.family = family,
				    .table = RT_TABLE_MAIN,
				    .type = RTN_UNICAST,
				    .protocol = RTPROT_STATIC,
				    .nr_nexthops = 1};
	mine->nexthops[0] = (struct rtnl_nexthop){
		.ifindex = a->ifindex, .flags = RTNH_F_ONLINK, .gateway = r->nexthops[0].gateway};
	/* The network of the address is wanted too, or the agent would take it away. */
	mine = &u->lent.routes[u->lent.nr_routes++];
	*mine = (struct rtnl_route){.family = family,
				    .dst_len = a->prefix_len,
				    .dst = rtnl_ip_network(&a->local, a->prefix_len),
				    .table = RT_TABLE_MAIN,
				    .type = RTN_UNICAST,
				    .protocol = RTPROT_KERNEL,
				    .scope = family == AF_INET ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
				    .priority = family == AF_INET ? 0 : 256,
				    .nr_nexthops = 1};
	mine->nexthops[0].ifindex = a->ifindex;
	usernet_arg_ip(u, "-a", &a->local);
	usernet_arg_ip(u, "-g", &r->nexthops[0].gateway);
	if (family == AF_INET) {
		snprintf(len, sizeof(len), "%u", a->prefix_len);
		usernet_arg(u, "-n");
		usernet_arg(u, len);
	}
	return true;
}

static bool usernet_lend_all(struct usernet *u, const struct netread *host)
{
	static const char *const options[] = {"-f",	     "-q",	"--no-dhcp",
					      "--no-dhcpv6", "--no-ra", "--no-map-gw"};
	bool v4, v6;

	u->lent.links = xcalloc(1, sizeof(*u->lent.links));
	u->lent.addrs = xcalloc(2, sizeof(*u->lent.addrs));
	u->lent.routes = xcalloc(4, sizeof(*u->lent.routes));
	usernet_arg(u, "passt");
	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		usernet_arg(u, options[i]);
	v4 = usernet_lend(u, host, AF_INET);
	v6 = usernet_lend(u, host, AF_INET6);
	if (!v4 && !v6)
		return false;
	if (!v4 || !v6)
		usernet_arg(u, v4 ? "-4" : "-6");
	usernet_arg(u, "-i");
	usernet_arg(u, u->lent.links[0].name);
	usernet_arg(u, "-F");
	usernet_arg(u, "3");
	u->lent.links[0].mtu = USERNET_MTU;
	return true;
}

static int usernet_connect(struct usernet *u, const char *path, struct err *err)
{
	int pair[2];

	if (access(path, X_OK))
		return err_set(
			err, -errno,
			"passt '%s', which containers in the host's network need (key 'passt' of "
			"harpoon.conf; on Debian: apt-get install passt)",
			path);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socket pair for passt");
	u->vm_fd = pair[0];
	u->helper_fd = pair[1];
	u->helper = (struct hv_helper){.path = path, .argv = u->argv, .fd = u->helper_fd};
	return 0;
}

int usernet_new(const struct config *config, struct usernet **ret, struct err *err)
{
	cleanup(usernet_freep) struct usernet *u = xcalloc(1, sizeof(*u));
	cleanup(netread_done) struct netread host = {0};
	cleanup(nl_close) struct nl_sock nl = {.fd = -1};
	int r = nl_open(&nl, NETLINK_ROUTE, err);

	*ret = NULL;
	u->vm_fd = u->helper_fd = -1;
	if (!r)
		r = netread_take(&nl, NULL, 0, &host, err);
	if (r)
		return r;
	if (!usernet_lend_all(u, &host)) {
		log_warn("network",
			 "the host has no default route: the container has loopback only");
		return 0;
	}
	r = usernet_connect(u, config->passt, err);
	if (r)
		return r;
	*ret = take_ptr(&u);
	return 0;
}

void usernet_free(struct usernet *u)
{
	if (!u)
		return;
	usernet_vm_started(u);
	for (size_t i = 0; i < u->nr_args; i++)
		free(u->argv[i]);
	netread_done(&u->lent);
	free(u);
}

struct hv_nic usernet_nic(const struct usernet *u)
{
	return (struct hv_nic){.kind = HV_NIC_STREAM, .fd = u->vm_fd};
}

const struct hv_helper *usernet_helper(const struct usernet *u)
{
	return &u->helper;
}

void usernet_vm_started(struct usernet *u)
{
	cleanup_closep(&u->vm_fd);
	cleanup_closep(&u->helper_fd);
}

VMREQ_PB(NetworkRequest) * usernet_request(const struct usernet *u)
{
	return netread_request(&u->lent, 1);
}
