/* Listening for the host; see relay.h. Datagrams of name servers are in relay_dns.c. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "relay_internal.h"

#define RELAY_BACKLOG 128

union relay_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	struct sockaddr_un un;
};

struct relay *relay_new(struct loop *loop, struct transport *transport,
			const struct agent_params *params)
{
	struct relay *r = xcalloc(1, sizeof(*r));

	r->loop = loop;
	r->transport = transport;
	r->params = params;
	list_init(&r->listeners);
	list_init(&r->queries);
	list_init(&r->dials);
	list_init(&r->flows);
	r->diag.fd = -1;
	return r;
}

static void relay_listener_free(struct relay_listener *l)
{
	list_remove(&l->link);
	loop_watch_remove(l->watch);
	loop_watch_remove(l->udp_watch);
	cleanup_closep(&l->fd);
	cleanup_closep(&l->udp_fd);
	if (l->path)
		unlink(l->path);
	free(l->path);
	free(l);
}

void relay_free(struct relay *r)
{
	struct relay_listener *l;

	if (!r)
		return;
	relay_drop_queries(r);
	relay_stop_back(r);
	list_for_each (l, &r->listeners, link)
		relay_listener_free(l);
	free(r);
}

/* Nobody takes connections while no call waits. */
static void relay_arm(struct relay *r)
{
	uint32_t events = r->call ? EPOLLIN : 0;
	struct relay_listener *l;

	list_for_each (l, &r->listeners, link) {
		loop_watch_set(l->watch, events);
		if (l->udp_watch)
			loop_watch_set(l->udp_watch, events);
	}
}

void relay_hand_over(struct relay *r, uint32_t id, int fd)
{
	AGENT_PB(AcceptResponse) response = HARPOON__AGENT__V1__ACCEPT_RESPONSE__INIT;
	struct rpc_call *call = take_ptr(&r->call);
	int e = r->transport->ops->attach(r->transport, r->stream, fd, fd, NULL, NULL, NULL);

	relay_arm(r);
	if (e) {
		rpc_fail(call, rpc_code_from_errno(e), "stream %u for a connection: %s", r->stream,
			 strerror(-e));
		return;
	}
	response.id = id;
	rpc_reply(call, &response.base);
}

static void relay_on_connection(void *ctx, uint32_t events)
{
	struct relay_listener *l = ctx;
	int fd;

	if (!l->relay->call)
		return;
	fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		relay_hand_over(l->relay, l->id, fd);
}

static void relay_on_datagram(void *ctx, uint32_t events)
{
	struct relay_listener *l = ctx;

	if (l->relay->call)
		relay_take_datagram(l);
}

void relay_restart(struct relay *r)
{
	struct rpc_call *call = take_ptr(&r->call);

	relay_drop_queries(r);
	relay_stop_back(r);
	relay_arm(r);
	if (call)
		rpc_fail(call, RPC_CANCELED, "the connection is another one");
}

int relay_accept(struct relay *r, uint32_t stream, struct rpc_call *call, struct err *err)
{
	if (r->call)
		return err_say(err, -EBUSY, "a connection is being waited for already");
	r->call = call;
	r->stream = stream;
	relay_arm(r);
	return 0;
}

static socklen_t relay_make_address(const AGENT_PB(ListenRequest) * q, const char *path,
				    union relay_address *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (q->address.len == 4) {
		ret->v4.sin_family = AF_INET;
		ret->v4.sin_port = htons((uint16_t)q->port);
		memcpy(&ret->v4.sin_addr, q->address.data, 4);
		return sizeof(ret->v4);
	}
	if (q->address.len == 16) {
		ret->v6.sin6_family = AF_INET6;
		ret->v6.sin6_port = htons((uint16_t)q->port);
		memcpy(&ret->v6.sin6_addr, q->address.data, 16);
		return sizeof(ret->v6);
	}
	ret->un.sun_family = AF_UNIX;
	snprintf(ret->un.sun_path, sizeof(ret->un.sun_path), "%s", path);
	return sizeof(ret->un);
}

static int relay_open(const union relay_address *a, socklen_t len, int type, struct err *err)
{
	cleanup_close int fd = socket(a->any.sa_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int on = 1;

	if (fd < 0 || (a->any.sa_family != AF_UNIX &&
		       setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on))))
		return err_set(err, -errno, "socket");
	if (bind(fd, &a->any, len) || (type == SOCK_STREAM && listen(fd, RELAY_BACKLOG)))
		return err_set(err, -errno, "listen");
	return take_fd(&fd);
}

static int relay_fill(struct relay_listener *l, const AGENT_PB(ListenRequest) * q, struct err *err)
{
	union relay_address a;
	socklen_t len;

	if (!q->address.len)
		l->path = xasprintf("%s/%u", l->relay->params->sock_dir, q->id);
	len = relay_make_address(q, l->path, &a);
	l->fd = relay_open(&a, len, SOCK_STREAM, err);
	if (l->fd < 0)
		return l->fd;
	if (l->path && (chown(l->path, q->uid, q->gid) || chmod(l->path, q->mode)))
		return err_set(err, -errno, "owner and mode of a socket");
	l->watch = loop_watch_add(l->relay->loop, l->fd, 0, relay_on_connection, l);
	if (!l->watch)
		return err_set(err, -errno, "watch a socket");
	if (!q->dns)
		return 0;
	l->udp_fd = relay_open(&a, len, SOCK_DGRAM, err);
	if (l->udp_fd < 0)
		return l->udp_fd;
	l->udp_watch = loop_watch_add(l->relay->loop, l->udp_fd, 0, relay_on_datagram, l);
	return l->udp_watch ? 0 : err_set(err, -errno, "watch a socket");
}

int relay_listen(struct relay *r, const AGENT_PB(ListenRequest) * request, struct err *err)
{
	struct relay_listener *l;
	int e;

	list_for_each (l, &r->listeners, link)
		if (l->id == request->id)
			return 0;
	l = xcalloc(1, sizeof(*l));
	l->relay = r;
	l->id = request->id;
	l->fd = l->udp_fd = -1;
	l->port = request->port;
	l->address_len = request->address.len;
	if (l->address_len)
		memcpy(l->address, request->address.data, l->address_len);
	list_append(&r->listeners, &l->link);
	e = relay_fill(l, request, err);
	if (e)
		relay_listener_free(l);
	else
		relay_arm(r);
	return e;
}
