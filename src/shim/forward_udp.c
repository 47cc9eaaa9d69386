/*
 * Datagrams for the guest: a flow for each peer, whose stream ends at a socket of the agent's that is connected to the
 * guest's server. The oldest flow makes room for a new one, and one that is not used ends.
 *
 * The sockets are bound without SO_REUSEADDR, so that nothing of the host's is taken over, and have it afterwards: what
 * the guest's server sends of its own accord goes through passt, which binds the same port for that. From then on
 * passt gets what comes in, and brings it to the same server.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "dgrams.h"
#include "forward_internal.h"
#include "log.h"
#include "util.h"

#define FORWARD_FLOWS_MAX 256
#define FORWARD_IDLE_NS 90000000000ull
/* Datagrams of one socket before others get their turn. */
#define FORWARD_ROUNDS 32

union forward_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* The address of ours that a datagram came to. */
union forward_info {
	struct in_pktinfo v4;
	struct in6_pktinfo v6;
};

struct forward_flow {
	struct list link;
	struct forward *forward;
	struct forward_socket *socket;
	union forward_address peer;
	socklen_t peer_len;
	union forward_info to;
	struct dgrams *dgrams;
	uint64_t used_ns;
};

union forward_control {
	struct cmsghdr head;
	uint8_t room[CMSG_SPACE(sizeof(union forward_info))];
};

int forward_set_up_udp(int fd, bool is_v4)
{
	int on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		return -1;
	return is_v4 ? setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on))
		     : setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
}

static void forward_flow_free(struct forward_flow *f)
{
	list_remove(&f->link);
	f->forward->nr_flows--;
	dgrams_free(f->dgrams);
	free(f);
}

void forward_drop_flows(struct forward *f, const struct forward_socket *s)
{
	struct forward_flow *flow;

	list_for_each (flow, &f->flows, link)
		if (!s || flow->socket == s)
			forward_flow_free(flow);
	if (!f->nr_flows)
		loop_timer_cancel(&f->idle);
}

bool forward_has_flows(const struct forward_socket *s)
{
	const struct forward_flow *f;

	list_for_each (f, &s->forward->flows, link)
		if (f->socket == s)
			return true;
	return false;
}

static void forward_flow_used(struct forward_flow *f)
{
	f->used_ns = util_now_ns();
	list_remove(&f->link);
	list_append(&f->forward->flows, &f->link);
}

static void forward_on_idle(void *ctx)
{
	struct forward *f = ctx;
	struct forward_flow *flow;
	uint64_t now = util_now_ns();

	list_for_each (flow, &f->flows, link)
		if (now - flow->used_ns >= FORWARD_IDLE_NS)
			forward_flow_free(flow);
	forward_sweep(f);
	if (f->nr_flows)
		loop_timer_arm(f->loop, &f->idle, FORWARD_IDLE_NS / 4, forward_on_idle, f);
}

/* ---- answers ---- */

static size_t forward_put_info(const struct forward_flow *f, union forward_control *ret)
{
	bool is_v4 = f->socket->ip.len == 4;
	size_t len = is_v4 ? sizeof(f->to.v4) : sizeof(f->to.v6);

	memset(ret, 0, sizeof(*ret));
	ret->head.cmsg_level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6;
	ret->head.cmsg_type = is_v4 ? IP_PKTINFO : IPV6_PKTINFO;
	ret->head.cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(&ret->head), &f->to, len);
	return CMSG_SPACE(len);
}

static void forward_on_answer(void *ctx, const uint8_t *data, size_t len)
{
	struct forward_flow *f = ctx;
	union forward_control control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
	struct msghdr m = {.msg_name = &f->peer,
			   .msg_namelen = f->peer_len,
			   .msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = forward_put_info(f, &control)};

	if (sendmsg(f->socket->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_dbg("forward", "an answer of %zu bytes is lost: %s", len, strerror(errno));
	forward_flow_used(f);
}

/* The agent has no such server any more, or the VM ends. */
static void forward_on_flow_end(void *ctx)
{
	struct forward_flow *flow = ctx;
	struct forward *f = flow->forward;

	forward_flow_free(flow);
	forward_sweep(f);
}

/* ---- from outside ---- */

static struct forward_flow *forward_flow_new(struct forward_socket *s)
{
	static const struct dgrams_callbacks cb = {.on_datagram = forward_on_answer,
						   .on_end = forward_on_flow_end};
	struct forward *f = s->forward;
	struct forward_flow *flow;
	int fd = -1;

	if (f->nr_flows >= FORWARD_FLOWS_MAX)
		forward_flow_free(list_entry(f->flows.next, struct forward_flow, link));
	if (!forward_has_room(f))
		return NULL;
	flow = xcalloc(1, sizeof(*flow));
	flow->forward = f;
	flow->socket = s;
	list_append(&f->flows, &flow->link);
	f->nr_flows++;
	flow->dgrams = dgrams_new(f->loop, &cb, flow, &fd);
	if (!flow->dgrams) {
		forward_flow_free(flow);
		return NULL;
	}
	forward_connect(s, fd);
	if (!f->idle.loop)
		loop_timer_arm(f->loop, &f->idle, FORWARD_IDLE_NS / 4, forward_on_idle, f);
	return flow;
}

static struct forward_flow *forward_find_flow(struct forward_socket *s,
					      const union forward_address *peer, socklen_t len)
{
	struct forward_flow *f;

	list_for_each (f, &s->forward->flows, link)
		if (f->socket == s && f->peer_len == len && !memcmp(&f->peer, peer, len))
			return f;
	f = forward_flow_new(s);
	if (!f)
		return NULL;
	memcpy(&f->peer, peer, len);
	f->peer_len = len;
	return f;
}

/* Interfaces are the routes' matter, but for addresses that mean nothing without one. */
static void forward_get_info(struct msghdr *m, union forward_info *ret)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			memcpy(&ret->v4, CMSG_DATA(c), sizeof(ret->v4));
			ret->v4.ipi_ifindex = 0;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			memcpy(&ret->v6, CMSG_DATA(c), sizeof(ret->v6));
			if (!IN6_IS_ADDR_LINKLOCAL(&ret->v6.ipi6_addr))
				ret->v6.ipi6_ifindex = 0;
		}
	}
}

/* Looks who sent the next one, and has it go there. -EAGAIN: there is none. */
static int forward_one(struct forward_socket *s)
{
	union forward_address peer;
	union forward_control control;
	struct msghdr m = {.msg_name = &peer,
			   .msg_namelen = sizeof(peer),
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	struct forward_flow *f;
	uint8_t none;

	memset(&peer, 0, sizeof(peer));
	if (recvmsg(s->fd, &m, MSG_PEEK | MSG_DONTWAIT) < 0)
		return -errno;
	f = forward_find_flow(s, &peer, m.msg_namelen);
	if (!f)
		return recv(s->fd, &none, sizeof(none), MSG_DONTWAIT) < 0 ? -errno : 0;
	forward_get_info(&m, &f->to);
	forward_flow_used(f);
	return dgrams_take(f->dgrams, s->fd);
}

void forward_on_datagrams(void *ctx, uint32_t events)
{
	for (int i = 0; i < FORWARD_ROUNDS; i++)
		if (forward_one(ctx) == -EAGAIN)
			break;
}
