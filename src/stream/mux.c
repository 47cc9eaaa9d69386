/*
 * Stream multiplexer: the channel. See mux.h for the contract, mux_frame.h for the frames,
 * mux_stream.c for what happens to a stream.
 *
 * Threads: the loop's. Callbacks to the owner run only at the end of an event (mux_leave) or inside
 * mux_free() and mux_detach(), so nothing is in the middle of a list or a frame when they do; each may
 * call anything here, mux_free() included.
 *
 * Output: one queue of bytes. Streams read straight into it, one frame each in turn, while it is
 * short; otherwise they wait in `ready` with their descriptors unwatched. Control frames always fit:
 * there are at most a few per number and per half window of data, so a queue over MUX_OUT_MAX means a
 * peer that sends and never reads, and ends the channel.
 *
 * Input is always read: what a stream can send is bounded by the credit it was given.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "mux_internal.h"

static void mux_on_channel(void *ctx, uint32_t events);

int mux_violation(struct mux *m, uint32_t id, const char *what)
{
	log_dbg("mux", "peer breaks the protocol on stream %u: %s", id, what);
	return -EPROTO;
}

void mux_send(struct mux *m, uint32_t id, enum mux_type type, const void *payload, size_t len)
{
	struct mux_frame f = {.stream = id, .type = (uint8_t)type, .len = (uint16_t)len};
	uint8_t *p;

	if (m->err || m->out_dead)
		return;
	p = buf_reserve(&m->out, MUX_HEADER_LEN + len);
	if (!p) {
		m->err = mux_violation(m, id, "it sends and never reads");
		return;
	}
	mux_frame_encode(&f, p);
	if (len)
		memcpy(p + MUX_HEADER_LEN, payload, len);
	buf_commit(&m->out, MUX_HEADER_LEN + len);
}

/* How much of the output may go now. */
static size_t mux_out_len(const struct mux *m)
{
	return m->holds ? m->hold_len : m->out.len;
}

static void mux_flush(struct mux *m)
{
	while (mux_out_len(m)) {
		ssize_t n = write(m->fd, buf_head(&m->out), mux_out_len(m));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			/* What the peer sent before it went is still to be read. */
			m->out_dead = true;
			m->hold_len = 0;
			buf_done(&m->out);
			mux_kick(m);
		}
		if (n <= 0)
			return;
		buf_consume(&m->out, (size_t)n);
		if (m->holds)
			m->hold_len -= (size_t)n;
	}
}

/* An idle channel keeps no buffers: there is one per VM. */
static void mux_on_trim(void *ctx)
{
	struct mux *m = ctx;

	if (!m->out.len)
		buf_done(&m->out);
	if (!m->in_len) {
		free(m->in);
		m->in = NULL;
	}
}

static void mux_pump(struct mux *m)
{
	if (m->out.len > MUX_OUT_LOW || m->out_dead || m->holds)
		return;
	while (!m->err && m->out.len < MUX_OUT_HIGH && !list_is_empty(&m->ready)) {
		struct mux_stream *s = list_entry(m->ready.next, struct mux_stream, ready);

		list_remove(&s->ready);
		mux_stream_pump(s);
	}
}

static void mux_work(struct mux *m)
{
	uint32_t events = EPOLLIN;

	mux_pump(m);
	mux_flush(m);
	if (m->err)
		return;
	/* A stream still in `ready` can go on as soon as the channel takes more. */
	if (!m->out_dead && (mux_out_len(m) || (!m->holds && !list_is_empty(&m->ready))))
		events |= EPOLLOUT;
	loop_watch_set(m->watch, events);
	if (!m->trim.loop && (m->in || m->out.data))
		loop_timer_arm(m->loop, &m->trim, MUX_TRIM_NS, mux_on_trim, m);
}

static void mux_cut_all(struct mux *m, int err)
{
	struct mux_stream *s;

	loop_watch_remove(m->watch);
	m->watch = NULL;
	loop_timer_cancel(&m->kick);
	loop_timer_cancel(&m->trim);
	list_for_each (s, &m->attached, link)
		mux_stream_cut(s, err);
}

static void mux_tell(struct mux *m)
{
	while (!list_is_empty(&m->finished))
		mux_stream_finish(list_entry(m->finished.next, struct mux_stream, link));
}

void mux_enter(struct mux *m)
{
	m->depth++;
}

void mux_leave(struct mux *m)
{
	if (!m->err)
		mux_work(m);
	if (m->err && m->watch)
		mux_cut_all(m, m->err);
	mux_tell(m);
	if (m->err && !m->told && !m->freed) {
		m->told = true;
		if (m->cb.on_broken)
			m->cb.on_broken(m->ctx, m->err);
	}
	m->depth--;
	if (m->freed && !m->depth)
		free(m);
}

static void mux_on_kick(void *ctx)
{
	struct mux *m = ctx;

	if (m->out_dead) {
		mux_on_channel(m, EPOLLIN);
		return;
	}
	mux_enter(m);
	mux_leave(m);
}

void mux_kick(struct mux *m)
{
	if (!m->freed && !m->told && !m->kick.loop)
		loop_timer_arm(m->loop, &m->kick, 0, mux_on_kick, m);
}

static int mux_on_hello(struct mux *m, const uint8_t *data, size_t len)
{
	if (m->hello_got)
		return mux_violation(m, 0, "second hello");
	m->hello_got = true;
	if (m->cb.on_hello)
		m->cb.on_hello(m->ctx, data, len);
	return 0;
}

/* Everything in the output now may go, and nothing that comes after it. */
static void mux_stop_sending(struct mux *m, enum mux_type last)
{
	mux_send(m, 0, last, NULL, 0);
	m->holds = true;
	m->hold_len = m->out.len;
}

static void mux_on_restart(struct mux *m)
{
	/* Of the streams' former life, and never sent. */
	buf_consume(&m->out, m->out.len);
	m->holds = m->hello_got = false;
	mux_stream_restart_all(m);
	m->cb.on_restart(m->ctx);
}

static int mux_on_held(struct mux *m)
{
	if (!m->holds || m->held || m->cb.on_restart)
		return mux_violation(m, 0, "it holds unasked");
	m->held = true;
	if (m->cb.on_held)
		m->cb.on_held(m->ctx);
	return 0;
}

/* What the host says to a guest that is to be saved, or was. */
static int mux_on_order(struct mux *m, enum mux_type order)
{
	if (!m->cb.on_restart || m->holds == (order == MUX_HOLD))
		return mux_violation(m, 0, "an order out of place");
	if (order == MUX_HOLD)
		mux_stop_sending(m, MUX_HELD);
	else if (order == MUX_GO)
		m->holds = false;
	else
		mux_on_restart(m);
	return 0;
}

static int mux_frame(struct mux *m, const struct mux_frame *f, const uint8_t *payload)
{
	if (f->type == MUX_HELLO)
		return mux_on_hello(m, payload, f->len);
	if (f->type == MUX_HELD)
		return mux_on_held(m);
	if (f->type >= MUX_HOLD)
		return mux_on_order(m, f->type);
	return mux_stream_frame(m, f, payload);
}

int mux_hold(struct mux *m)
{
	if (m->err || m->out_dead)
		return -EPIPE;
	if (m->holds)
		return -EBUSY;
	m->held = false;
	mux_stop_sending(m, MUX_HOLD);
	mux_kick(m);
	return 0;
}

void mux_go(struct mux *m)
{
	if (!m->holds)
		return;
	m->holds = m->held = false;
	mux_send(m, 0, MUX_GO, NULL, 0);
	mux_kick(m);
}

void mux_restart(struct mux *m)
{
	mux_send(m, 0, MUX_RESTART, NULL, 0);
	mux_kick(m);
}

/* All whole frames in the input; the rest moves to its front. */
static void mux_parse(struct mux *m)
{
	size_t off = 0;

	while (!m->err && m->in_len - off >= MUX_HEADER_LEN) {
		struct mux_frame f;
		int r = mux_frame_decode(m->in + off, &f);

		if (r) {
			m->err = mux_violation(m, mux_get_u32(m->in + off), "malformed frame");
			return;
		}
		if (m->in_len - off < MUX_HEADER_LEN + (size_t)f.len)
			break;
		r = mux_frame(m, &f, m->in + off + MUX_HEADER_LEN);
		/* mux_free() by a callback has set err itself. */
		if (r && !m->err)
			m->err = r;
		off += MUX_HEADER_LEN + (size_t)f.len;
	}
	if (m->err)
		return;
	m->in_len -= off;
	memmove(m->in, m->in + off, m->in_len);
}

static void mux_read(struct mux *m)
{
	ssize_t n;

	if (!m->in)
		m->in = xmalloc(MUX_IN_LEN);
	n = read(m->fd, m->in + m->in_len, MUX_IN_LEN - m->in_len);
	if (n > 0) {
		if (m->cb.on_input)
			m->cb.on_input(m->ctx, m->in + m->in_len, (size_t)n);
		m->in_len += (size_t)n;
		mux_parse(m);
		if (m->out_dead)
			mux_kick(m);
		return;
	}
	if (n < 0 && errno == EINTR)
		return;
	if (n < 0 && errno == EAGAIN && !m->out_dead)
		return;
	m->err = -EPIPE;
}

int mux_feed(struct mux *m, const void *data, size_t len)
{
	if (len > MUX_IN_LEN - m->in_len)
		return -EMSGSIZE;
	mux_enter(m);
	if (!m->err) {
		if (!m->in)
			m->in = xmalloc(MUX_IN_LEN);
		memcpy(m->in + m->in_len, data, len);
		m->in_len += len;
		mux_parse(m);
	}
	mux_leave(m);
	return 0;
}

static void mux_on_channel(void *ctx, uint32_t events)
{
	struct mux *m = ctx;

	mux_enter(m);
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		mux_read(m);
	mux_leave(m);
}

struct mux *mux_new(struct loop *loop, int fd, const struct mux_callbacks *cb, void *ctx)
{
	struct mux *m = xcalloc(1, sizeof(*m));

	*m = (struct mux){.loop = loop, .cb = *cb, .ctx = ctx, .fd = fd};
	buf_init(&m->out, MUX_OUT_MAX);
	for (size_t i = 0; i < MUX_BUCKETS; i++)
		list_init(&m->table[i]);
	list_init(&m->attached);
	list_init(&m->ready);
	list_init(&m->finished);
	list_init(&m->gone);
	if (!io_set_nonblock(fd, true))
		m->watch = loop_watch_add(loop, fd, EPOLLIN, mux_on_channel, m);
	if (!m->watch) {
		/* Not a descriptor that can carry a channel: broken from the start. */
		m->err = -EPIPE;
		mux_kick(m);
	}
	return m;
}

static void mux_free_table(struct mux *m)
{
	struct mux_stream *s;

	for (size_t i = 0; i < MUX_BUCKETS; i++)
		list_for_each (s, &m->table[i], hash)
			mux_stream_free(s);
}

void mux_free(struct mux *m)
{
	if (!m || m->freed)
		return;
	m->freed = true;
	m->depth++;
	if (!m->err)
		m->err = -ECANCELED;
	mux_cut_all(m, -ECANCELED);
	mux_tell(m);
	mux_free_table(m);
	close(m->fd);
	buf_done(&m->out);
	free(m->in);
	m->in = NULL;
	m->depth--;
	if (!m->depth)
		free(m);
}

int mux_send_hello(struct mux *m, const void *data, size_t len)
{
	if (len > MUX_HELLO_MAX)
		return -EMSGSIZE;
	if (m->err)
		return -EPIPE;
	mux_send(m, 0, MUX_HELLO, data, len);
	mux_kick(m);
	return 0;
}
