/*
 * Connections from the host to the guest's own sockets. Which sockets listen is asked of the kernel every
 * RELAY_POLL_NS while a call waits for news: it has no notification of that. Format: sock_diag(7).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "relay_internal.h"

#define RELAY_POLL_NS 300000000ull
#define RELAY_DIAL_NS 5000000000ull
#define RELAY_SOCKETS_MAX 256
/* States of the kernel's net/tcp_states.h; the second one is that of UDP sockets that are not connected. */
#define RELAY_TCP_LISTEN 10
#define RELAY_TCP_CLOSE 7

struct relay_socket {
	uint32_t port;
	uint8_t len;
	uint8_t address[16];
	uint8_t ipv6_only;
	uint8_t datagrams;
};

struct relay_sockets {
	const struct relay *relay;
	bool datagrams; /* what is being listed */
	uint32_t first_client, last_client;
	struct relay_ports udp; /* of all such sockets, whatever their state */
	struct relay_socket v[RELAY_SOCKETS_MAX];
	size_t nr;
};

struct relay_dial {
	struct list link;
	struct relay *relay;
	struct rpc_call *call;
	uint32_t stream;
	int fd;
	struct loop_watch *watch;
	struct loop_timer timer;
};

static int relay_compare(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct relay_socket));
}

static bool relay_is_own(const struct relay *r, const struct relay_socket *s)
{
	const struct relay_listener *l;

	list_for_each (l, &r->listeners, link)
		if (l->port == s->port && l->address_len == s->len &&
		    !memcmp(l->address, s->address, s->len))
			return true;
	return false;
}

static int relay_visit_socket(void *ctx, const struct nlmsghdr *h)
{
	struct relay_sockets *found = ctx;
	struct relay_socket *s = &found->v[found->nr];
	struct inet_diag_msg m;
	const uint8_t *attrs;
	struct nl_attr a;
	size_t off = 0, len;

	if (nl_attrs(h, sizeof(m), &attrs, &len))
		return 0;
	memcpy(&m, (const uint8_t *)h + NLMSG_HDRLEN, sizeof(m));
	if (found->datagrams)
		found->udp.bits[ntohs(m.id.idiag_sport) / 8] |=
			(uint8_t)(1u << ntohs(m.id.idiag_sport) % 8);
	if (found->nr == RELAY_SOCKETS_MAX)
		return 0;
	if (m.idiag_state != (found->datagrams ? RELAY_TCP_CLOSE : RELAY_TCP_LISTEN))
		return 0;
	memset(s, 0, sizeof(*s));
	s->port = ntohs(m.id.idiag_sport);
	s->datagrams = found->datagrams;
	s->len = m.idiag_family == AF_INET ? 4 : 16;
	memcpy(s->address, m.id.idiag_src, s->len);
	while (nl_attr_next(attrs, len, &off, &a))
		if (a.type == INET_DIAG_SKV6ONLY && a.len == 1)
			s->ipv6_only = a.data[0];
	if (!relay_is_own(found->relay, s) &&
	    !(s->datagrams &&
	      (!s->port || (s->port >= found->first_client && s->port <= found->last_client))))
		found->nr++;
	return 0;
}

/* Several sockets may share an address (SO_REUSEPORT). */
static void relay_sort(struct relay_socket *v, size_t *nr)
{
	size_t kept = 0;

	qsort(v, *nr, sizeof(*v), relay_compare);
	for (size_t i = 0; i < *nr; i++)
		if (!kept || relay_compare(&v[kept - 1], &v[i]))
			v[kept++] = v[i];
	*nr = kept;
}

static int relay_find_sockets(struct relay *r, struct relay_sockets *ret, struct err *err)
{
	static const struct {
		uint8_t family, protocol;
		uint32_t states;
	} kinds[] = {{AF_INET, IPPROTO_TCP, 1u << RELAY_TCP_LISTEN},
		     {AF_INET6, IPPROTO_TCP, 1u << RELAY_TCP_LISTEN},
		     {AF_INET, IPPROTO_UDP, UINT32_MAX},
		     {AF_INET6, IPPROTO_UDP, UINT32_MAX}};
	bool is_whole = true;

	ret->relay = r;
	ret->nr = 0;
	memset(&ret->udp, 0, sizeof(ret->udp));
	relay_client_ports(&ret->first_client, &ret->last_client);
	if (r->diag.fd < 0 && nl_open(&r->diag, NETLINK_SOCK_DIAG, err))
		return err->code;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct inet_diag_req_v2 q = {
			.sdiag_family = kinds[i].family,
			.sdiag_protocol = kinds[i].protocol,
			.idiag_states = kinds[i].states,
		};
		struct nl_msg m;
		int e;

		ret->datagrams = kinds[i].protocol == IPPROTO_UDP;
		nl_begin(&m, SOCK_DIAG_BY_FAMILY, 0, &q, sizeof(q));
		e = nl_dump(&r->diag, &m, relay_visit_socket, ret, err, "list listening sockets");
		/* -EINTR: it changed meanwhile, and is looked at again soon. */
		if (e && e != -EINTR)
			return e;
		is_whole = is_whole && !e;
	}
	relay_sort(ret->v, &ret->nr);
	if (is_whole)
		relay_keep_flows(r, &ret->udp);
	return 0;
}

static void relay_tell(struct relay *r, struct relay_sockets *found)
{
	AGENT_PB(ListenersResponse) response = HARPOON__AGENT__V1__LISTENERS_RESPONSE__INIT;
	AGENT_PB(ListeningSocket) sockets[RELAY_SOCKETS_MAX];
	AGENT_PB(ListeningSocket) * list[RELAY_SOCKETS_MAX];
	struct rpc_call *call = take_ptr(&r->listeners_call);

	for (size_t i = 0; i < found->nr; i++) {
		harpoon__agent__v1__listening_socket__init(&sockets[i]);
		sockets[i].address.data = found->v[i].address;
		sockets[i].address.len = found->v[i].len;
		sockets[i].port = found->v[i].port;
		sockets[i].ipv6_only = found->v[i].ipv6_only;
		sockets[i].datagrams = found->v[i].datagrams;
		list[i] = &sockets[i];
	}
	response.sockets = list;
	response.n_sockets = found->nr;
	rpc_reply(call, &response.base);
}

static void relay_poll(void *ctx)
{
	struct relay *r = ctx;
	struct relay_sockets found;
	struct err err = {0};

	if (relay_find_sockets(r, &found, &err))
		rpc_fail_err(take_ptr(&r->listeners_call), &err);
	else if (found.nr != r->nr_known ||
		 memcmp(found.v, r->known, found.nr * sizeof(found.v[0])) != 0)
		relay_tell(r, &found);
	else
		loop_timer_arm(r->loop, &r->poll, RELAY_POLL_NS, relay_poll, r);
}

int relay_listeners(struct relay *r, const AGENT_PB(ListenersRequest) * request,
		    struct rpc_call *call, struct err *err)
{
	if (r->listeners_call)
		return err_say(err, -EBUSY, "listening sockets are being waited for already");
	free(r->known);
	r->known = xcalloc(request->n_known + 1, sizeof(*r->known));
	r->nr_known = 0;
	for (size_t i = 0; i < request->n_known; i++) {
		const AGENT_PB(ListeningSocket) *p = request->known[i];
		struct relay_socket *s = &r->known[r->nr_known++];

		s->port = p->port;
		s->len = (uint8_t)MIN(p->address.len, sizeof(s->address));
		if (s->len)
			memcpy(s->address, p->address.data, s->len);
		s->ipv6_only = p->ipv6_only;
		s->datagrams = p->datagrams;
	}
	relay_sort(r->known, &r->nr_known);
	r->listeners_call = call;
	loop_timer_arm(r->loop, &r->poll, 0, relay_poll, r);
	return 0;
}

/* ---- connecting ---- */

static void relay_dial_free(struct relay_dial *d)
{
	list_remove(&d->link);
	loop_timer_cancel(&d->timer);
	loop_watch_remove(d->watch);
	cleanup_closep(&d->fd);
	free(d);
}

static void relay_dial_fail(struct relay_dial *d, int e)
{
	struct rpc_call *call = d->call;

	relay_dial_free(d);
	rpc_fail(call, rpc_code_from_errno(e), "connect: %s", strerror(-e));
}

static void relay_on_dialed(void *ctx, uint32_t events)
{
	struct relay_dial *d = ctx;
	struct relay *r = d->relay;
	struct rpc_call *call = d->call;
	uint32_t stream = d->stream;
	socklen_t len = sizeof(int);
	int e = 0, fd;

	if (getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &e, &len) || e) {
		relay_dial_fail(d, e ? -e : -EIO);
		return;
	}
	loop_watch_remove(take_ptr(&d->watch));
	fd = take_fd(&d->fd);
	relay_dial_free(d);
	e = r->transport->ops->attach(r->transport, stream, fd, fd, NULL, NULL, NULL);
	if (e)
		rpc_fail(call, rpc_code_from_errno(e), "stream %u: %s", stream, strerror(-e));
	else
		rpc_reply_empty(call);
}

static void relay_on_dial_timeout(void *ctx)
{
	relay_dial_fail(ctx, -ETIMEDOUT);
}

int relay_connect(struct relay *r, const AGENT_PB(ConnectRequest) * request, struct rpc_call *call,
		  struct err *err)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)request->port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
				  .sin6_port = htons((uint16_t)request->port)};
	bool is_v4 = request->address.len == 4;
	int type = request->datagrams ? SOCK_DGRAM : SOCK_STREAM;
	cleanup_close int fd =
		socket(is_v4 ? AF_INET : AF_INET6, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const void *to = is_v4 ? (const void *)&v4 : (const void *)&v6;
	struct relay_dial *d;

	memcpy(is_v4 ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr, request->address.data,
	       request->address.len);
	if (fd < 0 || (connect(fd, to, is_v4 ? sizeof(v4) : sizeof(v6)) && errno != EINPROGRESS))
		return err_set(err, -errno, "connect");
	if (request->datagrams) {
		int e = relay_start_flow(r, take_fd(&fd), request->port, request->stream, err);

		if (!e)
			rpc_reply_empty(call);
		return e;
	}
	d = xcalloc(1, sizeof(*d));
	d->relay = r;
	d->stream = request->stream;
	d->fd = take_fd(&fd);
	list_append(&r->dials, &d->link);
	d->watch = loop_watch_add(r->loop, d->fd, EPOLLOUT, relay_on_dialed, d);
	if (!d->watch) {
		relay_dial_free(d);
		return err_set(err, -errno, "watch a connection");
	}
	d->call = call;
	loop_timer_arm(r->loop, &d->timer, RELAY_DIAL_NS, relay_on_dial_timeout, d);
	return 0;
}

void relay_stop_back(struct relay *r)
{
	struct relay_dial *d;

	list_for_each (d, &r->dials, link)
		relay_dial_fail(d, -ECANCELED);
	relay_drop_flows(r);
	loop_timer_cancel(&r->poll);
	nl_close(&r->diag);
	free(take_ptr(&r->known));
	r->nr_known = 0;
	if (r->listeners_call)
		rpc_fail(take_ptr(&r->listeners_call), RPC_CANCELED, "nobody waits any more");
}
