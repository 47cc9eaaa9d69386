/*
 * ttrpc connection; see rpc_chan.h.
 *
 * Input: a buffer that grows with what really arrived, never with what a header promises, and is given
 * back when empty (connections idle for hours). A frame longer than RPC_MESSAGE_MAX is skipped byte by
 * byte and reported when it is through; the connection lives on.
 *
 * Output: queued while an event is handled and written in one go at its end; at once otherwise. When
 * writing fails the peer's last answers are still read: the end comes with the end of file.
 */
#include "rpc_chan.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "log.h"

#define RPC_READ_MIN (16 * 1024)
#define RPC_READ_MAX (256 * 1024)

struct rpc_chan {
	struct loop *loop;
	const struct rpc_chan_ops *ops;
	void *ctx;
	int fd; /* owned */
	struct loop_watch *watch;
	struct loop_timer kick; /* reports an end found outside of an event */
	struct buf in;
	struct buf out;
	struct rpc_frame_header skipped;
	uint32_t skip; /* bytes of `skipped` still to come */
	bool out_dead;
	bool over;  /* on_end is due, or was called */
	bool ended; /* on_end was called */
	bool freed;
	unsigned int depth;
};

static void rpc_chan_on_event(void *ctx, uint32_t events);

struct rpc_chan *rpc_chan_new(struct loop *loop, int fd, const struct rpc_chan_ops *ops, void *ctx)
{
	struct rpc_chan *c = xcalloc(1, sizeof(*c));
	int r = io_set_nonblock(fd, true);

	*c = (struct rpc_chan){.loop = loop, .ops = ops, .ctx = ctx, .fd = fd};
	buf_init(&c->in, RPC_HEADER_LEN + RPC_MESSAGE_MAX + RPC_READ_MAX);
	buf_init(&c->out, RPC_OUT_MAX);
	if (!r)
		c->watch = loop_watch_add(loop, fd, EPOLLIN, rpc_chan_on_event, c);
	if (!c->watch) {
		int saved = r ? -r : errno;

		close(fd);
		free(c);
		errno = saved;
		return NULL;
	}
	return c;
}

static void rpc_chan_put(struct rpc_chan *c)
{
	if (!c->freed || c->depth)
		return;
	buf_done(&c->in);
	buf_done(&c->out);
	free(c);
}

void rpc_chan_free(struct rpc_chan *c)
{
	if (!c)
		return;
	loop_watch_remove(c->watch);
	loop_timer_cancel(&c->kick);
	close(c->fd);
	c->freed = true;
	rpc_chan_put(c);
}

bool rpc_chan_is_drained(const struct rpc_chan *c)
{
	return !c->out.len;
}

/* ---- output ---- */

static void rpc_chan_flush(struct rpc_chan *c)
{
	bool had = c->out.len;

	while (c->out.len) {
		ssize_t n = send(c->fd, buf_head(&c->out), c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			c->out_dead = true;
			buf_done(&c->out);
			/* Makes sure that the end of file comes, after what was already sent to us. */
			shutdown(c->fd, SHUT_RDWR);
			break;
		}
		if (n <= 0)
			break;
		buf_consume(&c->out, (size_t)n);
	}
	loop_watch_set(c->watch, c->out.len ? EPOLLIN | EPOLLOUT : EPOLLIN);
	if (c->out.len || !had)
		return;
	buf_done(&c->out);
	if (c->ops->on_drained)
		c->ops->on_drained(c->ctx);
}

static void rpc_chan_end(struct rpc_chan *c)
{
	if (c->freed || c->ended || !c->over)
		return;
	c->ended = true;
	/* A hung-up descriptor reports itself for ever; the owner may free us later. */
	loop_watch_remove(c->watch);
	c->watch = NULL;
	c->ops->on_end(c->ctx);
}

static void rpc_chan_on_kick(void *ctx)
{
	struct rpc_chan *c = ctx;

	c->depth++;
	rpc_chan_end(c);
	c->depth--;
	rpc_chan_put(c);
}

/* The peer does not read: give up on it. */
static void rpc_chan_overflow(struct rpc_chan *c)
{
	log_dbg("rpc", "the peer leaves more than %zu bytes of answers unread",
		(size_t)RPC_OUT_MAX);
	c->out_dead = true;
	buf_done(&c->out);
	c->over = true;
	loop_timer_arm(c->loop, &c->kick, 0, rpc_chan_on_kick, c);
}

int rpc_chan_send(struct rpc_chan *c, uint32_t stream, enum rpc_frame_type type,
		  const ProtobufCMessage *msg)
{
	struct rpc_frame_header h = {.stream = stream, .type = (uint8_t)type};
	size_t len;
	uint8_t *p;

	if (c->over || c->out_dead)
		return -EPIPE;
	len = protobuf_c_message_get_packed_size(msg);
	if (len > RPC_MESSAGE_MAX)
		return -EMSGSIZE;
	p = buf_reserve(&c->out, RPC_HEADER_LEN + len);
	if (!p) {
		rpc_chan_overflow(c);
		return -EPIPE;
	}
	h.len = (uint32_t)len;
	rpc_frame_header_encode(&h, p);
	protobuf_c_message_pack(msg, p + RPC_HEADER_LEN);
	buf_commit(&c->out, RPC_HEADER_LEN + len);
	if (!c->depth)
		rpc_chan_flush(c);
	return 0;
}

/* ---- input ---- */

/* Consumes what is left of a frame that is too long. */
static void rpc_chan_skip(struct rpc_chan *c)
{
	size_t n = MIN((size_t)c->skip, c->in.len);

	buf_consume(&c->in, n);
	c->skip -= (uint32_t)n;
	if (n && !c->skip)
		c->ops->on_oversize(c->ctx, &c->skipped);
}

/* One frame from the input; false when there is no whole one. */
static bool rpc_chan_next(struct rpc_chan *c)
{
	struct rpc_frame_header h;

	if (c->skip)
		rpc_chan_skip(c);
	if (c->freed || c->over || c->skip || c->in.len < RPC_HEADER_LEN)
		return false;
	rpc_frame_header_decode(buf_head(&c->in), &h);
	if (h.len > RPC_MESSAGE_MAX) {
		buf_consume(&c->in, RPC_HEADER_LEN);
		c->skipped = h;
		c->skip = h.len;
		return true;
	}
	if (c->in.len < RPC_HEADER_LEN + (size_t)h.len)
		return false;
	c->ops->on_frame(c->ctx, &h, buf_head(&c->in) + RPC_HEADER_LEN);
	buf_consume(&c->in, RPC_HEADER_LEN + (size_t)h.len);
	return !c->freed;
}

/* How much to read at once: the rest of the frame under way, within limits. */
static size_t rpc_chan_read_size(const struct rpc_chan *c)
{
	struct rpc_frame_header h;
	size_t rest;

	if (c->skip)
		return RPC_READ_MAX;
	if (c->in.len < RPC_HEADER_LEN)
		return RPC_READ_MIN;
	rpc_frame_header_decode(buf_head(&c->in), &h);
	rest = RPC_HEADER_LEN + (size_t)h.len - c->in.len;
	return MIN(MAX(rest, (size_t)RPC_READ_MIN), (size_t)RPC_READ_MAX);
}

static void rpc_chan_read(struct rpc_chan *c)
{
	size_t want = rpc_chan_read_size(c);
	/* Never NULL: at most one frame of at most RPC_MESSAGE_MAX is waiting. */
	uint8_t *p = buf_reserve(&c->in, want);
	ssize_t n = recv(c->fd, p, want, MSG_DONTWAIT);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		c->over = true;
		return;
	}
	buf_commit(&c->in, (size_t)n);
	while (rpc_chan_next(c))
		;
	if (!c->in.len)
		buf_done(&c->in);
}

static void rpc_chan_on_event(void *ctx, uint32_t events)
{
	struct rpc_chan *c = ctx;

	c->depth++;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		rpc_chan_read(c);
	if (!c->freed && !c->over)
		rpc_chan_flush(c);
	rpc_chan_end(c);
	c->depth--;
	rpc_chan_put(c);
}
