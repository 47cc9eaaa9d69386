/*
 * Listening for the guest; see forward.h.
 *
 * A call for news is always under way at the agent. Its answer is the whole set of listening sockets: what is new is
 * opened, what has gone is closed. The guest may name anything: the set is bounded, addresses that are not the
 * host's and ports that are taken fail to bind, which is logged once per socket, and the rest is the right
 * that a container in the host's network has anyway.
 *
 * A connection is attached to its stream at once and the agent asked to make the other half; what is sent meanwhile
 * waits in the socket. If the agent cannot, the stream is cut off.
 */
#include "forward.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "forward_internal.h"
#include "log.h"
#include "vmreq.h"

#define FORWARD_BACKLOG 128
#define FORWARD_RETRY_NS 1000000000ull

struct forward_conn {
	struct list link;
	struct forward *forward;
	struct hv_stream *stream; /* NULL = over */
	bool is_asked;		  /* the agent's answer is to come */
};

static void forward_ask(void *ctx);

static void forward_socket_free(struct forward_socket *s)
{
	forward_drop_flows(s->forward, s);
	s->forward->nr_sockets--;
	list_remove(&s->link);
	loop_watch_remove(s->watch);
	cleanup_closep(&s->fd);
	free(s);
}

/* A connection's record lives until both its stream and the agent's call are over. */
static void forward_conn_check(struct forward_conn *c)
{
	if (c->stream || c->is_asked)
		return;
	c->forward->nr_conns--;
	list_remove(&c->link);
	free(c);
}

static void forward_stream_done(void *ctx, int err)
{
	struct forward_conn *c = ctx;

	c->stream = NULL;
	forward_conn_check(c);
}

static void forward_connected(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct forward_conn *c = ctx;

	c->is_asked = false;
	if (code != RPC_OK && code != RPC_UNAVAILABLE && code != RPC_CANCELED && c->stream) {
		log_dbg("forward", "%s", message);
		/* Calls forward_stream_done(). */
		hv_stream_detach(c->stream);
		return;
	}
	forward_conn_check(c);
}

/* The address in the guest that leads to the socket. */
static struct rtnl_ip forward_target(const struct forward_socket *s)
{
	static const uint8_t none[16];
	struct rtnl_ip ip = s->ip;

	if (memcmp(ip.bytes, none, ip.len) != 0)
		return ip;
	if (ip.len == 16 && s->ipv6_only)
		ip.bytes[15] = 1;
	else
		ip = (struct rtnl_ip){.len = 4, .bytes = {127, 0, 0, 1}};
	return ip;
}

void forward_connect(struct forward_socket *s, int fd)
{
	VMREQ_PB(ConnectRequest) req = HARPOON__AGENT__V1__CONNECT_REQUEST__INIT;
	struct forward *f = s->forward;
	struct rtnl_ip to = forward_target(s);
	struct forward_conn *c = xcalloc(1, sizeof(*c));
	struct err err = {0};

	c->forward = f;
	list_append(&f->conns, &c->link);
	f->nr_conns++;
	req.stream = (*f->next_stream)++;
	if (hv_vm_attach_stream(f->vm, req.stream, fd, fd, forward_stream_done, c, &c->stream,
				&err)) {
		log_warn("forward", "%s", err.msg);
		forward_conn_check(c);
		return;
	}
	c->is_asked = true;
	req.address.data = to.bytes;
	req.address.len = to.len;
	req.port = s->port;
	req.datagrams = s->datagrams;
	agent_client_call(f->agent, AGENT_CONNECT, &req.base, 0, forward_connected, c);
}

bool forward_has_room(const struct forward *f)
{
	return f->agent && f->nr_conns < FORWARD_CONNS_MAX;
}

static void forward_on_connection(void *ctx, uint32_t events)
{
	struct forward_socket *s = ctx;
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (!forward_has_room(s->forward))
		close(fd);
	else
		forward_connect(s, fd);
}

static int forward_listen(const struct forward_socket *s)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(s->port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(s->port)};
	bool is_v4 = s->ip.len == 4;
	int type = s->datagrams ? SOCK_DGRAM : SOCK_STREAM;
	cleanup_close int fd =
		socket(is_v4 ? AF_INET : AF_INET6, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int on = 1, only = s->ipv6_only;

	memcpy(is_v4 ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr, s->ip.bytes, s->ip.len);
	/* Of UDP sockets the option would let us share a port that is taken. */
	if (fd < 0 ||
	    (!s->datagrams && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on))) ||
	    (!is_v4 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only))))
		return -errno;
	if (bind(fd, is_v4 ? (const void *)&v4 : (const void *)&v6,
		 is_v4 ? sizeof(v4) : sizeof(v6)) ||
	    (s->datagrams ? forward_set_up_udp(fd, is_v4) : listen(fd, FORWARD_BACKLOG)))
		return -errno;
	return take_fd(&fd);
}

static void forward_open(struct forward *f, const VMREQ_PB(ListeningSocket) * m)
{
	struct forward_socket *s = xcalloc(1, sizeof(*s));
	char text[64];

	s->forward = f;
	s->ip.len = (uint8_t)m->address.len;
	memcpy(s->ip.bytes, m->address.data, m->address.len);
	s->port = (uint16_t)m->port;
	s->ipv6_only = m->ipv6_only;
	s->datagrams = m->datagrams;
	s->is_wanted = true;
	list_append(&f->sockets, &s->link);
	f->nr_sockets++;
	s->fd = forward_listen(s);
	if (s->fd >= 0)
		s->watch = loop_watch_add(
			f->loop, s->fd, EPOLLIN,
			s->datagrams ? forward_on_datagrams : forward_on_connection, s);
	rtnl_ip_text(&s->ip, text, sizeof(text));
	if (s->fd < 0)
		log_warn("forward", "the container listens at %s port %u (%s), the host cannot: %s",
			 text, s->port, s->datagrams ? "UDP" : "TCP", strerror(-s->fd));
	else
		log_info("forward", "listening for the container at %s port %u (%s)", text, s->port,
			 s->datagrams ? "UDP" : "TCP");
	s->fd = MAX(s->fd, -1);
}

static struct forward_socket *forward_find(struct forward *f, const VMREQ_PB(ListeningSocket) * m)
{
	struct forward_socket *s;

	list_for_each (s, &f->sockets, link)
		if (s->port == m->port && s->ip.len == m->address.len &&
		    s->ipv6_only == !!m->ipv6_only && s->datagrams == !!m->datagrams &&
		    !memcmp(s->ip.bytes, m->address.data, s->ip.len))
			return s;
	return NULL;
}

void forward_sweep(struct forward *f)
{
	struct forward_socket *s;

	list_for_each (s, &f->sockets, link)
		if (!s->is_wanted && !forward_has_flows(s))
			forward_socket_free(s);
}

static void forward_apply(struct forward *f, const VMREQ_PB(ListenersResponse) * r)
{
	struct forward_socket *s;

	list_for_each (s, &f->sockets, link)
		s->is_wanted = false;
	for (size_t i = 0; i < r->n_sockets; i++) {
		s = r->sockets[i]->address.len ? forward_find(f, r->sockets[i]) : NULL;
		if (s)
			s->is_wanted = true;
	}
	forward_sweep(f);
	for (size_t i = 0; i < r->n_sockets && f->nr_sockets < FORWARD_SOCKETS_MAX; i++) {
		const VMREQ_PB(ListeningSocket) *m = r->sockets[i];

		if ((m->address.len == 4 || m->address.len == 16) && m->port && m->port <= 65535 &&
		    !forward_find(f, m))
			forward_open(f, m);
	}
}

static void forward_told(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			 const char *message)
{
	struct forward *f = ctx;

	if (!f->agent || code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		return;
	if (code == RPC_OK)
		forward_apply(f, (const void *)response);
	else
		log_warn("forward", "listening sockets of the guest: %s", message);
	/* Not at once: a guest whose answer never fits would keep us busy. */
	loop_timer_arm(f->loop, &f->retry,
		       code == RPC_OK ? FORWARD_RETRY_NS / 10 : FORWARD_RETRY_NS, forward_ask, f);
}

static void forward_ask(void *ctx)
{
	VMREQ_PB(ListenersRequest) req = HARPOON__AGENT__V1__LISTENERS_REQUEST__INIT;
	VMREQ_PB(ListeningSocket) known[FORWARD_SOCKETS_MAX];
	VMREQ_PB(ListeningSocket) * list[FORWARD_SOCKETS_MAX];
	struct forward *f = ctx;
	struct forward_socket *s;

	list_for_each (s, &f->sockets, link) {
		VMREQ_PB(ListeningSocket) *m = &known[req.n_known];

		if (!s->is_wanted)
			continue;
		harpoon__agent__v1__listening_socket__init(m);
		m->address.data = s->ip.bytes;
		m->address.len = s->ip.len;
		m->port = s->port;
		m->ipv6_only = s->ipv6_only;
		m->datagrams = s->datagrams;
		list[req.n_known++] = m;
	}
	req.known = list;
	agent_client_call(f->agent, AGENT_LISTENERS, &req.base, 0, forward_told, f);
}

struct forward *forward_new(struct loop *loop, struct hv_vm *vm, struct agent_client *agent,
			    uint32_t *next_stream)
{
	struct forward *f = xcalloc(1, sizeof(*f));

	f->loop = loop;
	f->vm = vm;
	f->agent = agent;
	f->next_stream = next_stream;
	list_init(&f->sockets);
	list_init(&f->conns);
	list_init(&f->flows);
	forward_ask(f);
	return f;
}

void forward_stop(struct forward *f)
{
	struct forward_socket *s;

	if (!f)
		return;
	f->agent = NULL;
	loop_timer_cancel(&f->retry);
	forward_drop_flows(f, NULL);
	list_for_each (s, &f->sockets, link)
		forward_socket_free(s);
}

void forward_free(struct forward *f)
{
	struct forward_conn *c;

	if (!f)
		return;
	forward_stop(f);
	/* Both their stream and their call are over: the VM and the agent's client are gone. */
	list_for_each (c, &f->conns, link) {
		list_remove(&c->link);
		free(c);
	}
	free(f);
}
