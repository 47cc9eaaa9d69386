/*
 * ttrpc client: one connection, many calls at a time. See rpc.h.
 *
 * Threads: the loop's. A call lives in `pending` until it is answered, its time is over, or the
 * connection ends; a later answer meets no call and is ignored, as is one nobody asked for. The peer may
 * be hostile (the agent in a guest): answers are bounded, and texts and codes from it are cleaned.
 */
#include <errno.h>
#include <string.h>

#include "log.h"
#include "rpc_chan.h"
#include "rpc_codec.h"
#include "ttrpc.pb-c.h"

#define RPC_NAMESPACE_KEY "containerd-namespace-ttrpc"
#define RPC_STREAM_LAST 0x7fffffffu

struct rpc_client {
	struct loop *loop;
	struct rpc_chan *chan;
	loop_fn on_closed;
	void *ctx;
	struct list pending;
	uint32_t next_stream;
	bool closed;
	bool freed;
	unsigned int depth; /* > 0: a callback is running */
};

struct rpc_pending {
	struct list link;
	struct rpc_client *client;
	uint32_t stream;
	const ProtobufCMessageDescriptor *type;
	struct loop_timer timer;
	rpc_done done;
	void *ctx;
};

/* Takes the call off the list and tells its caller, who may free the client. */
static void rpc_pending_end(struct rpc_pending *p, const ProtobufCMessage *response,
			    enum rpc_code code, const char *message)
{
	struct rpc_client *c = p->client;

	list_remove(&p->link);
	loop_timer_cancel(&p->timer);
	c->depth++;
	p->done(p->ctx, response, code, message);
	c->depth--;
	free(p);
	if (c->freed && !c->depth)
		free(c);
}

static void rpc_client_end_all(struct rpc_client *c, enum rpc_code code, const char *message)
{
	while (!list_is_empty(&c->pending))
		/* Each leaves the list, which the analyzer does not see. */
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
		rpc_pending_end(list_entry(c->pending.next, struct rpc_pending, link), NULL, code,
				message);
}

static void rpc_pending_on_timeout(void *ctx)
{
	rpc_pending_end(ctx, NULL, RPC_DEADLINE_EXCEEDED, "deadline exceeded");
}

static struct rpc_pending *rpc_client_find(struct rpc_client *c, uint32_t stream)
{
	struct rpc_pending *p;

	list_for_each (p, &c->pending, link)
		if (p->stream == stream)
			return p;
	return NULL;
}

static void rpc_pending_fail(struct rpc_pending *p, enum rpc_code code, const char *fmt, ...)
	HARPOON_PRINTF(3, 4);
static void rpc_pending_fail(struct rpc_pending *p, enum rpc_code code, const char *fmt, ...)
{
	char text[RPC_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	rpc_format_text(text, fmt, ap);
	va_end(ap);
	rpc_pending_end(p, NULL, code, text);
}

static void rpc_pending_answer(struct rpc_pending *p, const Ttrpc__Response *r)
{
	ProtobufCMessage *m = NULL;

	if (r->status && r->status->code) {
		int32_t code = r->status->code;

		if (code < 0 || code > RPC_UNAUTHENTICATED)
			code = RPC_UNKNOWN;
		rpc_pending_fail(p, (enum rpc_code)code, "%s", r->status->message);
		return;
	}
	if (p->type) {
		m = rpc_unpack(p->type, r->payload.len, r->payload.data);
		if (!m) {
			rpc_pending_fail(p, RPC_INTERNAL,
					 "the answer (%zu bytes) is not a valid %s", r->payload.len,
					 p->type->name);
			return;
		}
	}
	rpc_pending_end(p, m, RPC_OK, "");
	protobuf_c_message_free_unpacked(m, NULL);
}

static void rpc_client_on_frame(void *ctx, const struct rpc_frame_header *h, const uint8_t *payload)
{
	struct rpc_client *c = ctx;
	struct rpc_pending *p;
	ProtobufCMessage *m;

	if (h->type != RPC_FRAME_RESPONSE)
		return;
	p = rpc_client_find(c, h->stream);
	if (!p) {
		log_dbg("rpc", "answer on stream %u, where no call is waiting", h->stream);
		return;
	}
	m = rpc_unpack(&ttrpc__response__descriptor, h->len, payload);
	if (!m) {
		rpc_pending_fail(p, RPC_INTERNAL,
				 "the frame (%u bytes) is not a valid ttrpc response", h->len);
		return;
	}
	rpc_pending_answer(p, (Ttrpc__Response *)m);
	protobuf_c_message_free_unpacked(m, NULL);
}

static void rpc_client_on_oversize(void *ctx, const struct rpc_frame_header *h)
{
	struct rpc_pending *p = rpc_client_find(ctx, h->stream);

	if (p && h->type == RPC_FRAME_RESPONSE)
		rpc_pending_fail(p, RPC_RESOURCE_EXHAUSTED,
				 "the answer has %u bytes, more than a message may (%u)", h->len,
				 RPC_MESSAGE_MAX);
}

static void rpc_client_on_end(void *ctx)
{
	struct rpc_client *c = ctx;

	c->closed = true;
	c->depth++;
	rpc_client_end_all(c, RPC_UNAVAILABLE, "ttrpc: closed");
	if (c->on_closed && !c->freed)
		c->on_closed(c->ctx);
	c->depth--;
	if (c->freed && !c->depth)
		free(c);
}

struct rpc_client *rpc_client_new(struct loop *loop, int fd, loop_fn on_closed, void *ctx)
{
	static const struct rpc_chan_ops ops = {
		.on_frame = rpc_client_on_frame,
		.on_oversize = rpc_client_on_oversize,
		.on_end = rpc_client_on_end,
	};
	struct rpc_client *c = xcalloc(1, sizeof(*c));

	*c = (struct rpc_client){
		.loop = loop, .on_closed = on_closed, .ctx = ctx, .next_stream = 1};
	list_init(&c->pending);
	c->chan = rpc_chan_new(loop, fd, &ops, c);
	if (!c->chan) {
		free(c);
		return NULL;
	}
	return c;
}

void rpc_client_free(struct rpc_client *c)
{
	if (!c || c->freed)
		return;
	c->freed = true;
	c->closed = true;
	rpc_chan_free(c->chan);
	c->depth++;
	rpc_client_end_all(c, RPC_CANCELED, "the connection was closed by its owner");
	c->depth--;
	if (!c->depth)
		free(c);
}

/* The request in its envelope, on the wire. */
static int rpc_client_send(struct rpc_client *c, const struct rpc_request *req, uint32_t stream)
{
	Ttrpc__KeyValue ns = TTRPC__KEY_VALUE__INIT, *metadata[] = {&ns};
	Ttrpc__Request envelope = TTRPC__REQUEST__INIT;
	size_t len = protobuf_c_message_get_packed_size(req->request);
	int r;

	if (len > RPC_MESSAGE_MAX)
		return -EMSGSIZE;
	/* Not written to; protobuf-c has no const. */
	envelope.service = (char *)req->service;
	envelope.method = (char *)req->method;
	envelope.timeout_nano = (int64_t)MIN(req->timeout_ns, (uint64_t)INT64_MAX);
	if (req->namespace_) {
		ns.key = (char *)RPC_NAMESPACE_KEY;
		ns.value = (char *)req->namespace_;
		envelope.metadata = metadata;
		envelope.n_metadata = 1;
	}
	envelope.payload.len = len;
	envelope.payload.data = xmalloc(MAX(len, (size_t)1));
	protobuf_c_message_pack(req->request, envelope.payload.data);
	r = rpc_chan_send(c->chan, stream, RPC_FRAME_REQUEST, &envelope.base);
	free(envelope.payload.data);
	return r;
}

int rpc_client_call(struct rpc_client *c, const struct rpc_request *req, rpc_done done, void *ctx)
{
	struct rpc_pending *p;
	int r;

	if (c->closed || c->next_stream > RPC_STREAM_LAST)
		return -EPIPE;
	r = rpc_client_send(c, req, c->next_stream);
	if (r)
		return r;
	p = xcalloc(1, sizeof(*p));
	*p = (struct rpc_pending){.client = c,
				  .stream = c->next_stream,
				  .type = req->response,
				  .done = done,
				  .ctx = ctx};
	c->next_stream += 2;
	list_append(&c->pending, &p->link);
	if (req->timeout_ns)
		loop_timer_arm(c->loop, &p->timer, req->timeout_ns, rpc_pending_on_timeout, p);
	return 0;
}
