/*
 * ttrpc server: connections, dispatch, calls. See rpc.h.
 *
 * Threads: the loop's. A connection owns its channel and lists its calls; a call belongs to its handler
 * until it is answered, so the end of a connection (or of the server) only cuts the tie between them.
 *
 * Hostile input: connections only from our own uid where there is a listening socket; otherwise the
 * other side of the stream handed in. Frames, calls, request bytes and unread answers are bounded.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "rpc_chan.h"
#include "rpc_codec.h"
#include "ttrpc.pb-c.h"

/* Connections taken per round, so that a flood of them does not hold up the loop. */
#define RPC_ACCEPT_BATCH 16
/* How long to leave the listening socket alone when descriptors or memory ran out. */
#define RPC_ACCEPT_PAUSE_NS 200000000ull
#define RPC_FLAG_REMOTE_OPEN 0x02

struct rpc_server {
	struct loop *loop;
	const struct rpc_service *const *services;
	size_t nr_services;
	void *ctx;
	struct list conns;
	unsigned int nr_conns;
	struct list orphans; /* calls whose connection is gone */
	unsigned int nr_calls;
	int listen_fd; /* owned, -1 = none */
	struct loop_watch *listen_watch;
	struct loop_timer accept_timer;
	struct loop_timer flush_timer;
	loop_fn flush_fn;
	void *flush_ctx;
};

struct rpc_conn {
	struct list link;
	struct rpc_server *server;
	struct rpc_chan *chan;
	struct list calls;
	unsigned int nr_calls;
	size_t call_bytes;
	uint32_t last_stream;
};

struct rpc_call {
	struct list link;	   /* rpc_conn.calls, or rpc_server.orphans */
	struct rpc_server *server; /* NULL = gone */
	struct rpc_conn *conn;	   /* NULL = gone */
	uint32_t stream;
	size_t bytes;
	const struct rpc_method *method;
	Ttrpc__Request *envelope; /* its payload already given back */
	ProtobufCMessage *request;
	uint64_t deadline_ns;
};

/* ---- answers ---- */

static int rpc_conn_send(struct rpc_conn *c, uint32_t stream, const Ttrpc__Response *r)
{
	return rpc_chan_send(c->chan, stream, RPC_FRAME_RESPONSE, &r->base);
}

static void rpc_conn_vfail(struct rpc_conn *c, uint32_t stream, enum rpc_code code, const char *fmt,
			   va_list ap) HARPOON_PRINTF(4, 0);
static void rpc_conn_vfail(struct rpc_conn *c, uint32_t stream, enum rpc_code code, const char *fmt,
			   va_list ap)
{
	char text[RPC_TEXT_MAX];
	Ttrpc__Status status = TTRPC__STATUS__INIT;
	Ttrpc__Response response = TTRPC__RESPONSE__INIT;

	rpc_format_text(text, fmt, ap);
	/* Code 0 would read as success. */
	status.code = code == RPC_OK ? RPC_UNKNOWN : code;
	status.message = text;
	response.status = &status;
	rpc_conn_send(c, stream, &response);
}

static void rpc_conn_fail(struct rpc_conn *c, uint32_t stream, enum rpc_code code, const char *fmt,
			  ...) HARPOON_PRINTF(4, 5);
static void rpc_conn_fail(struct rpc_conn *c, uint32_t stream, enum rpc_code code, const char *fmt,
			  ...)
{
	va_list ap;

	va_start(ap, fmt);
	rpc_conn_vfail(c, stream, code, fmt, ap);
	va_end(ap);
}

static void rpc_call_free(struct rpc_call *call)
{
	if (call->conn) {
		call->conn->nr_calls--;
		call->conn->call_bytes -= call->bytes;
	}
	if (call->server)
		call->server->nr_calls--;
	list_remove(&call->link);
	protobuf_c_message_free_unpacked(call->request, NULL);
	protobuf_c_message_free_unpacked(&call->envelope->base, NULL);
	free(call);
}

static void rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message)
{
	Ttrpc__Response response = TTRPC__RESPONSE__INIT;
	size_t len = protobuf_c_message_get_packed_size(message);
	int r = -EMSGSIZE;

	if (len <= RPC_MESSAGE_MAX) {
		response.payload.len = len;
		response.payload.data = xmalloc(MAX(len, (size_t)1));
		protobuf_c_message_pack(message, response.payload.data);
		r = rpc_conn_send(call->conn, call->stream, &response);
		free(response.payload.data);
	}
	if (r == -EMSGSIZE)
		rpc_conn_fail(call->conn, call->stream, RPC_RESOURCE_EXHAUSTED,
			      "the answer of %s has %zu bytes, more than a message may (%u)",
			      call->method->name, len, RPC_MESSAGE_MAX);
}

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *response)
{
	assert(response->descriptor == call->method->out);
	if (call->conn)
		rpc_call_send(call, response);
	rpc_call_free(call);
}

void rpc_reply_empty(struct rpc_call *call)
{
	Ttrpc__Response response = TTRPC__RESPONSE__INIT;

	if (call->conn)
		rpc_conn_send(call->conn, call->stream, &response);
	rpc_call_free(call);
}

void rpc_fail(struct rpc_call *call, enum rpc_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (call->conn)
		rpc_conn_vfail(call->conn, call->stream, code, fmt, ap);
	va_end(ap);
	rpc_call_free(call);
}

void rpc_fail_err(struct rpc_call *call, const struct err *err)
{
	rpc_fail(call, rpc_code_from_errno(err->code), "%s", err->msg);
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *call)
{
	return call->deadline_ns;
}

const char *rpc_call_metadata(const struct rpc_call *call, const char *key)
{
	for (size_t i = 0; i < call->envelope->n_metadata; i++)
		if (!strcasecmp(call->envelope->metadata[i]->key, key))
			return call->envelope->metadata[i]->value;
	return NULL;
}

/* ---- dispatch ---- */

/* NULL: the call was answered with the reason. */
static const struct rpc_method *rpc_conn_find(struct rpc_conn *c, uint32_t stream,
					      const Ttrpc__Request *req)
{
	const struct rpc_server *s = c->server;

	for (size_t i = 0; i < s->nr_services; i++) {
		const struct rpc_service *service = s->services[i];

		if (strcmp(service->name, req->service) != 0)
			continue;
		for (size_t j = 0; j < service->nr_methods; j++)
			if (!strcmp(service->methods[j].name, req->method))
				return &service->methods[j];
		rpc_conn_fail(c, stream, RPC_UNIMPLEMENTED, "method %s", req->method);
		return NULL;
	}
	rpc_conn_fail(c, stream, RPC_UNIMPLEMENTED, "service %s", req->service);
	return NULL;
}

static uint64_t rpc_deadline(int64_t timeout_ns)
{
	uint64_t now = util_now_ns(), at;

	if (!timeout_ns)
		return 0;
	return __builtin_add_overflow(now, (uint64_t)timeout_ns, &at) ? UINT64_MAX : at;
}

/* Takes the envelope in every case. */
static void rpc_conn_call(struct rpc_conn *c, const struct rpc_frame_header *h, Ttrpc__Request *req)
{
	const struct rpc_method *method = rpc_conn_find(c, h->stream, req);
	ProtobufCMessage *request = NULL;
	struct rpc_call *call;

	if (method && req->timeout_nano < 0)
		rpc_conn_fail(c, h->stream, RPC_DEADLINE_EXCEEDED, "%s: no time left",
			      method->name);
	else if (method)
		request = rpc_unpack(method->in, req->payload.len, req->payload.data);
	if (method && req->timeout_nano >= 0 && !request)
		rpc_conn_fail(c, h->stream, RPC_INVALID_ARGUMENT,
			      "%s: the request (%zu bytes) is not a valid %s", method->name,
			      req->payload.len, method->in->name);
	if (!request) {
		protobuf_c_message_free_unpacked(&req->base, NULL);
		return;
	}
	free(req->payload.data);
	req->payload = (ProtobufCBinaryData){0};
	call = xcalloc(1, sizeof(*call));
	*call = (struct rpc_call){.server = c->server,
				  .conn = c,
				  .stream = h->stream,
				  .bytes = h->len,
				  .method = method,
				  .envelope = req,
				  .request = request,
				  .deadline_ns = rpc_deadline(req->timeout_nano)};
	list_append(&c->calls, &call->link);
	c->server->nr_calls++;
	c->nr_calls++;
	c->call_bytes += h->len;
	/* Last: the handler may answer, and may free the server. */
	method->fn(call, request, c->server->ctx);
}

/* What can be refused without looking into the request. */
static bool rpc_conn_admits(struct rpc_conn *c, const struct rpc_frame_header *h)
{
	if (h->stream % 2 == 0) {
		rpc_conn_fail(c, h->stream, RPC_INVALID_ARGUMENT,
			      "stream id %u is even: those of a client are odd", h->stream);
		return false;
	}
	if (h->stream <= c->last_stream) {
		rpc_conn_fail(c, h->stream, RPC_INVALID_ARGUMENT,
			      "stream id %u does not follow %u: ids only go up", h->stream,
			      c->last_stream);
		return false;
	}
	c->last_stream = h->stream;
	if (h->flags & RPC_FLAG_REMOTE_OPEN) {
		rpc_conn_fail(c, h->stream, RPC_UNIMPLEMENTED, "streaming calls are not served");
		return false;
	}
	if (c->nr_calls >= RPC_CALLS_MAX || h->len > RPC_CALL_BYTES_MAX - c->call_bytes ||
	    c->server->nr_calls >= RPC_SERVER_CALLS_MAX) {
		rpc_conn_fail(c, h->stream, RPC_RESOURCE_EXHAUSTED,
			      "too many unanswered calls: %u with %zu bytes on this connection, %u "
			      "in all",
			      c->nr_calls, c->call_bytes, c->server->nr_calls);
		return false;
	}
	return true;
}

static void rpc_conn_on_frame(void *ctx, const struct rpc_frame_header *h, const uint8_t *payload)
{
	struct rpc_conn *c = ctx;
	ProtobufCMessage *req;

	/* Data frames belong to streams, which were refused; other types to some later version. */
	if (h->type != RPC_FRAME_REQUEST || !rpc_conn_admits(c, h))
		return;
	req = rpc_unpack(&ttrpc__request__descriptor, h->len, payload);
	if (!req) {
		rpc_conn_fail(c, h->stream, RPC_INVALID_ARGUMENT,
			      "the frame (%u bytes) is not a valid ttrpc request", h->len);
		return;
	}
	rpc_conn_call(c, h, (Ttrpc__Request *)req);
}

static void rpc_conn_on_oversize(void *ctx, const struct rpc_frame_header *h)
{
	if (h->type == RPC_FRAME_REQUEST)
		rpc_conn_fail(ctx, h->stream, RPC_RESOURCE_EXHAUSTED,
			      "a message of %u bytes is over the limit of %u", h->len,
			      RPC_MESSAGE_MAX);
}

/* ---- connections ---- */

static void rpc_server_on_flushed(void *ctx)
{
	struct rpc_server *s = ctx;
	loop_fn fn = s->flush_fn;
	struct rpc_conn *c;

	list_for_each (c, &s->conns, link)
		if (!rpc_chan_is_drained(c->chan))
			return;
	s->flush_fn = NULL;
	if (fn)
		fn(s->flush_ctx);
}

static void rpc_server_check_flushed(struct rpc_server *s)
{
	if (s->flush_fn)
		loop_timer_arm(s->loop, &s->flush_timer, 0, rpc_server_on_flushed, s);
}

static void rpc_conn_free(struct rpc_conn *c)
{
	struct rpc_call *call;

	list_for_each (call, &c->calls, link) {
		list_remove(&call->link);
		list_append(&c->server->orphans, &call->link);
		call->conn = NULL;
	}
	rpc_chan_free(c->chan);
	list_remove(&c->link);
	c->server->nr_conns--;
	free(c);
}

static void rpc_conn_on_drained(void *ctx)
{
	struct rpc_conn *c = ctx;

	rpc_server_check_flushed(c->server);
}

static void rpc_conn_on_end(void *ctx)
{
	struct rpc_conn *c = ctx;
	struct rpc_server *s = c->server;

	rpc_conn_free(c);
	rpc_server_check_flushed(s);
}

int rpc_server_add_conn(struct rpc_server *s, int fd, struct err *err)
{
	static const struct rpc_chan_ops ops = {
		.on_frame = rpc_conn_on_frame,
		.on_oversize = rpc_conn_on_oversize,
		.on_drained = rpc_conn_on_drained,
		.on_end = rpc_conn_on_end,
	};
	struct rpc_conn *c;

	if (s->nr_conns >= RPC_CONNS_MAX) {
		close(fd);
		return err_say(err, -EMFILE, "more than %d ttrpc connections", RPC_CONNS_MAX);
	}
	c = xcalloc(1, sizeof(*c));
	c->server = s;
	list_init(&c->calls);
	c->chan = rpc_chan_new(s->loop, fd, &ops, c);
	if (!c->chan) {
		int r = -errno;

		free(c);
		return err_set(err, r, "serve ttrpc connection");
	}
	list_append(&s->conns, &c->link);
	s->nr_conns++;
	return 0;
}

/* ---- listening ---- */

static void rpc_server_on_accept_timer(void *ctx)
{
	struct rpc_server *s = ctx;

	loop_watch_set(s->listen_watch, EPOLLIN);
}

static void rpc_server_take(struct rpc_server *s, int fd)
{
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);
	struct err err = {0};

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) || len != sizeof(peer) ||
	    peer.uid != geteuid()) {
		log_dbg("rpc", "connection of uid %u (pid %d) refused", peer.uid, peer.pid);
		close(fd);
		return;
	}
	if (rpc_server_add_conn(s, fd, &err))
		log_dbg("rpc", "%s", err.msg);
}

static void rpc_server_on_listen(void *ctx, uint32_t events)
{
	struct rpc_server *s = ctx;

	(void)events;
	for (int i = 0; i < RPC_ACCEPT_BATCH; i++) {
		int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			rpc_server_take(s, fd);
			continue;
		}
		if (errno == EAGAIN)
			return;
		if (errno == EINTR || errno == ECONNABORTED)
			continue;
		/* No descriptors or memory: the socket stays readable, so look away for a while. */
		log_dbg("rpc", "accept failed, trying again later");
		loop_watch_set(s->listen_watch, 0);
		loop_timer_arm(s->loop, &s->accept_timer, RPC_ACCEPT_PAUSE_NS,
			       rpc_server_on_accept_timer, s);
		return;
	}
}

int rpc_server_listen(struct rpc_server *s, int listen_fd, struct err *err)
{
	int r;

	if (s->listen_fd >= 0) {
		close(listen_fd);
		return err_say(err, -EBUSY, "the ttrpc server is already listening");
	}
	r = io_set_nonblock(listen_fd, true);
	if (!r) {
		s->listen_watch =
			loop_watch_add(s->loop, listen_fd, EPOLLIN, rpc_server_on_listen, s);
		r = s->listen_watch ? 0 : -errno;
	}
	if (r) {
		close(listen_fd);
		return err_set(err, r, "listen for ttrpc connections");
	}
	s->listen_fd = listen_fd;
	return 0;
}

/* ---- server ---- */

struct rpc_server *rpc_server_new(struct loop *loop, const struct rpc_service *const *services,
				  size_t nr_services, void *ctx)
{
	struct rpc_server *s = xcalloc(1, sizeof(*s));

	*s = (struct rpc_server){.loop = loop,
				 .services = services,
				 .nr_services = nr_services,
				 .ctx = ctx,
				 .listen_fd = -1};
	list_init(&s->conns);
	list_init(&s->orphans);
	return s;
}

void rpc_server_free(struct rpc_server *s)
{
	struct rpc_conn *c;
	struct rpc_call *call;

	if (!s)
		return;
	list_for_each (c, &s->conns, link)
		rpc_conn_free(c);
	list_for_each (call, &s->orphans, link) {
		list_remove(&call->link);
		call->server = NULL;
	}
	loop_watch_remove(s->listen_watch);
	if (s->listen_fd >= 0)
		close(s->listen_fd);
	loop_timer_cancel(&s->accept_timer);
	loop_timer_cancel(&s->flush_timer);
	free(s);
}

unsigned int rpc_server_nr_conns(const struct rpc_server *s)
{
	return s->nr_conns;
}

void rpc_server_flush(struct rpc_server *s, loop_fn fn, void *ctx)
{
	s->flush_fn = fn;
	s->flush_ctx = ctx;
	rpc_server_check_flushed(s);
}
