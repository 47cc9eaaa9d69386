/*
 * Taps; see tap.h. The filter is u32 with a key that matches everything: every kernel has it, which cannot be
 * said of matchall. Formats: linux/pkt_cls.h, linux/tc_act/tc_mirred.h, tc-u32(8).
 */
#include "tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "rtnl.h"

#define TAP_INGRESS 0xffff0000u

int tap_open(bool stays, int *ret_ifindex, struct err *err)
{
	struct ifreq ifr = {.ifr_name = TAP_NAME_PREFIX "%d",
			    .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	cleanup_close int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return err_set(err, -errno, "open '/dev/net/tun' (modprobe tun)");
	if (ioctl(fd, TUNSETIFF, &ifr) || (stays && ioctl(fd, TUNSETPERSIST, 1ul)))
		return err_set(err, -errno, "make a tap");
	if (sock < 0 || ioctl(sock, SIOCGIFINDEX, &ifr))
		return err_set(err, -errno, "number of tap '%s'", ifr.ifr_name);
	*ret_ifindex = ifr.ifr_ifindex;
	return take_fd(&fd);
}

int tap_raise(struct nl_sock *nl, int tap, uint32_t mtu, struct err *err)
{
	uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
	size_t spec, inet6;
	struct nl_msg m;
	int r;

	rtnl_begin_link(&m, tap, 0, 0);
	nl_put_u32(&m, IFLA_MTU, mtu);
	spec = nl_nest(&m, IFLA_AF_SPEC);
	inet6 = nl_nest(&m, AF_INET6);
	nl_put(&m, IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof(mode));
	nl_nest_end(&m, inet6);
	nl_nest_end(&m, spec);
	r = nl_request(nl, &m, err, "set up a tap");
	/* Without IPv6 in the kernel there is nothing to switch off. */
	if (r == -EAFNOSUPPORT) {
		rtnl_begin_link(&m, tap, 0, 0);
		nl_put_u32(&m, IFLA_MTU, mtu);
		r = nl_request(nl, &m, err, "set up a tap");
	}
	if (r)
		return r;
	rtnl_begin_link(&m, tap, IFF_UP, IFF_UP);
	return nl_request(nl, &m, err, "bring up a tap");
}

static void tap_begin_qdisc(struct nl_msg *m, uint16_t type, uint16_t flags, int ifindex)
{
	struct tcmsg t = {
		.tcm_ifindex = ifindex, .tcm_handle = TAP_INGRESS, .tcm_parent = TC_H_INGRESS};

	nl_begin(m, type, flags, &t, sizeof(t));
	nl_put_text(m, TCA_KIND, "ingress");
}

static void tap_put_redirect(struct nl_msg *m, int to)
{
	struct tc_mirred p = {.action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR};
	size_t actions = nl_nest(m, TCA_U32_ACT), first = nl_nest(m, 1), options;

	p.ifindex = (uint32_t)to;
	nl_put_text(m, TCA_ACT_KIND, "mirred");
	options = nl_nest(m, TCA_ACT_OPTIONS);
	nl_put(m, TCA_MIRRED_PARMS, &p, sizeof(p));
	nl_nest_end(m, options);
	nl_nest_end(m, first);
	nl_nest_end(m, actions);
}

static int tap_redirect(struct nl_sock *nl, int from, int to, const char *what, struct err *err)
{
	struct tcmsg t = {
		.tcm_ifindex = from,
		.tcm_parent = TAP_INGRESS,
		.tcm_info = TC_H_MAKE(1u << 16, htons(ETH_P_ALL)),
	};
	/* A selector with one key, which is all zero: mask nothing, compare with nothing. */
	struct {
		struct tc_u32_sel sel;
		struct tc_u32_key key;
	} match = {.sel = {.flags = TC_U32_TERMINAL, .nkeys = 1}};
	struct nl_msg m;
	size_t options;

	nl_begin(&m, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &t, sizeof(t));
	nl_put_text(&m, TCA_KIND, "u32");
	options = nl_nest(&m, TCA_OPTIONS);
	nl_put(&m, TCA_U32_SEL, &match, sizeof(match));
	tap_put_redirect(&m, to);
	nl_nest_end(&m, options);
	return nl_request(nl, &m, err, what);
}

int tap_join(struct nl_sock *nl, int tap, int ifindex, const char *name, struct err *err)
{
	char what[96];
	struct nl_msg m;
	int r;

	snprintf(what, sizeof(what), "traffic control of interface '%s'", name);
	tap_begin_qdisc(&m, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, ifindex);
	r = nl_request(nl, &m, err, what);
	if (r)
		return r;
	tap_begin_qdisc(&m, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, tap);
	r = nl_request(nl, &m, err, what);
	if (!r)
		r = tap_redirect(nl, ifindex, tap, what, err);
	if (!r)
		r = tap_redirect(nl, tap, ifindex, what, err);
	if (r)
		tap_part(nl, ifindex, NULL);
	return r;
}

int tap_part(struct nl_sock *nl, int ifindex, struct err *err)
{
	struct nl_msg m;

	tap_begin_qdisc(&m, RTM_DELQDISC, 0, ifindex);
	return nl_request(nl, &m, err, "remove traffic control");
}
