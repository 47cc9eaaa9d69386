/*
 * Datagrams from the host to the guest's own sockets: one UDP socket for each peer of the host's, whose answers go
 * back over its stream. The shim decides how long a flow lives: until it ends the stream.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "dgrams.h"
#include "io.h"
#include "relay_internal.h"

#define RELAY_FLOWS_MAX 1024
#define RELAY_CLIENT_PORTS "/proc/sys/net/ipv4/ip_local_port_range"
/* Datagrams of one flow before others get their turn. */
#define RELAY_ROUNDS 16

struct relay_flow {
	struct list link;
	struct relay *relay;
	int fd;
	uint32_t port; /* of the server */
	struct loop_watch *watch;
	struct dgrams *dgrams;
};

static void relay_flow_free(struct relay_flow *f)
{
	list_remove(&f->link);
	f->relay->nr_flows--;
	loop_watch_remove(f->watch);
	cleanup_closep(&f->fd);
	dgrams_free(f->dgrams);
	free(f);
}

void relay_drop_flows(struct relay *r)
{
	struct relay_flow *f;

	list_for_each (f, &r->flows, link)
		relay_flow_free(f);
}

void relay_keep_flows(struct relay *r, const struct relay_ports *ports)
{
	struct relay_flow *f;

	list_for_each (f, &r->flows, link)
		if (!(ports->bits[f->port / 8] & 1u << f->port % 8))
			relay_flow_free(f);
}

/* What cannot be sent is lost: nobody listens any more, or its queue is full. */
static void relay_flow_on_datagram(void *ctx, const uint8_t *data, size_t len)
{
	struct relay_flow *f = ctx;

	if (send(f->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		errno = 0;
}

static void relay_flow_on_end(void *ctx)
{
	relay_flow_free(ctx);
}

/* -ECONNREFUSED: nobody listens there any more. Should somebody do so later, another flow finds him. */
static void relay_flow_on_answer(void *ctx, uint32_t events)
{
	struct relay_flow *f = ctx;
	int e = 0;

	for (int i = 0; i < RELAY_ROUNDS && !e; i++)
		e = dgrams_take(f->dgrams, f->fd);
	if (e == -ECONNREFUSED)
		relay_flow_free(f);
}

static int relay_flow_open(struct relay_flow *f, uint32_t stream, struct err *err)
{
	static const struct dgrams_callbacks cb = {.on_datagram = relay_flow_on_datagram,
						   .on_end = relay_flow_on_end};
	struct relay *r = f->relay;
	int fd = -1, e;

	f->watch = loop_watch_add(r->loop, f->fd, EPOLLIN, relay_flow_on_answer, f);
	if (f->watch)
		f->dgrams = dgrams_new(r->loop, &cb, f, &fd);
	if (!f->dgrams)
		return err_set(err, -errno, "a stream for datagrams");
	e = r->transport->ops->attach(r->transport, stream, fd, fd, NULL, NULL, NULL);
	return e ? err_set(err, e, "stream %u", stream) : 0;
}

int relay_start_flow(struct relay *r, int fd, uint32_t port, uint32_t stream, struct err *err)
{
	struct relay_flow *f = xcalloc(1, sizeof(*f));
	int e;

	f->relay = r;
	f->fd = fd;
	f->port = port;
	list_append(&r->flows, &f->link);
	r->nr_flows++;
	e = r->nr_flows > RELAY_FLOWS_MAX
		    ? err_say(err, -EAGAIN, "%d peers send datagrams already", RELAY_FLOWS_MAX)
		    : relay_flow_open(f, stream, err);
	if (e)
		relay_flow_free(f);
	return e;
}

void relay_client_ports(uint32_t *first, uint32_t *last)
{
	cleanup_free char *text = NULL;

	/* The kernel's own default. */
	*first = 32768;
	*last = 60999;
	if (io_read_file(AT_FDCWD, RELAY_CLIENT_PORTS, 64, &text, NULL))
		return;
	/* NOLINTNEXTLINE(cert-err34-c): the kernel's own text, two small numbers */
	if (sscanf(text, "%u %u", first, last) != 2)
		*first = *last = 0;
}
