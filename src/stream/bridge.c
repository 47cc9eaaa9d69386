/*
 * A stream between a socket and a pair of descriptors; see bridge.h.
 *
 * Two flows share the socket. Each flow has a buffer that is filled from one end when empty and emptied into
 * the other. An end remembers whether it may be readable or writable: cleared when it says EAGAIN, set
 * by the loop. It is watched only for what a flow waits for; epoll reports EPOLLHUP and EPOLLERR all the
 * same, and a watch that only does that is removed until something is wanted again.
 *
 * wfd is watched with no events from the start: EPOLLERR there means that nobody reads any more.
 */
#include "bridge.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "util.h"

/* Buffers moved before others get their turn. */
#define BRIDGE_ROUNDS 8

struct bridge_end {
	struct bridge *bridge;
	int fd; /* owned; -1 = closed */
	struct loop_watch *watch;
	bool can_read, can_write;
	bool no_poll; /* epoll refuses it: a file, /dev/null; always ready */
};

enum { FLOW_OUT, FLOW_IN, FLOW_MAX };

struct bridge_flow {
	struct bridge_end *from, *to;
	uint8_t *data; /* BRIDGE_BUFFER bytes, or NULL while nothing waits */
	size_t head, len;
	bool is_over;
};

struct bridge {
	struct loop *loop;
	struct bridge_end sock, r, w; /* w is not used when rfd == wfd */
	struct bridge_flow flows[FLOW_MAX];
	struct loop_timer again;
	int err;
	bridge_done_fn done;
	void *ctx;
};

static void bridge_close_end(struct bridge_end *e)
{
	loop_watch_remove(e->watch);
	e->watch = NULL;
	if (e->fd >= 0)
		close(e->fd);
	e->fd = -1;
}

/* A descriptor that the other flow still uses is shut down, else closed. */
static void bridge_end_side(struct bridge *b, struct bridge_end *e, int how)
{
	const struct bridge_flow *out = &b->flows[FLOW_OUT], *in = &b->flows[FLOW_IN];
	bool used = (!out->is_over && (out->from == e || out->to == e)) ||
		    (!in->is_over && (in->from == e || in->to == e));

	if (used)
		shutdown(e->fd, how);
	else
		bridge_close_end(e);
}

static void bridge_end_flow(struct bridge *b, struct bridge_flow *f, int err)
{
	if (f->is_over)
		return;
	f->is_over = true;
	f->len = 0;
	if (err && !b->err)
		b->err = err;
	free(f->data);
	f->data = NULL;
	bridge_end_side(b, f->from, SHUT_RD);
	bridge_end_side(b, f->to, SHUT_WR);
}

/* True: something was read. */
static bool bridge_fill(struct bridge *b, struct bridge_flow *f)
{
	ssize_t n;

	if (!f->from->can_read)
		return false;
	if (!f->data)
		f->data = xmalloc(BRIDGE_BUFFER);
	n = read(f->from->fd, f->data, BRIDGE_BUFFER);
	if (n > 0) {
		f->head = 0;
		f->len = (size_t)n;
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN && !f->from->no_poll) {
		f->from->can_read = false;
		free(f->data);
		f->data = NULL;
		return false;
	}
	/* A terminal's master says EIO when the last user of the other side is gone. */
	if (n < 0 && !(errno == EIO && isatty(f->from->fd)))
		bridge_end_flow(b, f, -errno);
	else
		bridge_end_flow(b, f, 0);
	return false;
}

/* True: something was written. */
static bool bridge_empty(struct bridge *b, struct bridge_flow *f)
{
	ssize_t n;

	if (!f->to->can_write)
		return false;
	n = write(f->to->fd, f->data + f->head, f->len);
	if (n > 0) {
		f->head += (size_t)n;
		f->len -= (size_t)n;
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN && !f->to->no_poll)
		f->to->can_write = false;
	else
		bridge_end_flow(b, f, n < 0 ? -errno : -EIO);
	return false;
}

/* True: it could go on. */
static bool bridge_move(struct bridge *b, struct bridge_flow *f)
{
	bool moved = true;

	for (int i = 0; i < BRIDGE_ROUNDS && moved && !f->is_over; i++)
		moved = f->len ? bridge_empty(b, f) : bridge_fill(b, f);
	return moved && !f->is_over;
}

static uint32_t bridge_wanted(const struct bridge *b, const struct bridge_end *e)
{
	uint32_t events = 0;

	for (int i = 0; i < FLOW_MAX; i++) {
		const struct bridge_flow *f = &b->flows[i];

		if (f->is_over)
			continue;
		if (f->from == e && !f->len && !e->can_read)
			events |= EPOLLIN;
		if (f->to == e && f->len && !e->can_write)
			events |= EPOLLOUT;
	}
	return events;
}

static void bridge_on_event(void *ctx, uint32_t events);

static void bridge_watch(struct bridge *b, struct bridge_end *e, bool always)
{
	uint32_t events = bridge_wanted(b, e);

	if (e->fd < 0 || e->no_poll)
		return;
	if (e->watch)
		loop_watch_set(e->watch, events);
	else if (events || always)
		e->watch = loop_watch_add(b->loop, e->fd, events, bridge_on_event, e);
	if (!e->watch && (events || always))
		e->no_poll = e->can_read = e->can_write = true;
}

static void bridge_finish(struct bridge *b)
{
	bridge_done_fn done = b->done;
	void *ctx = b->ctx;
	int err = b->err;

	loop_timer_cancel(&b->again);
	bridge_close_end(&b->sock);
	bridge_close_end(&b->r);
	bridge_close_end(&b->w);
	for (int i = 0; i < FLOW_MAX; i++)
		free(b->flows[i].data);
	free(b);
	if (done)
		done(ctx, err);
}

static void bridge_run(void *ctx)
{
	struct bridge *b = ctx;
	bool more = bridge_move(b, &b->flows[FLOW_OUT]);

	more |= bridge_move(b, &b->flows[FLOW_IN]);
	if (b->flows[FLOW_OUT].is_over && b->flows[FLOW_IN].is_over) {
		bridge_finish(b);
		return;
	}
	bridge_watch(b, &b->sock, false);
	bridge_watch(b, &b->r, false);
	bridge_watch(b, &b->w, false);
	if (more && !b->again.loop)
		loop_timer_arm(b->loop, &b->again, 0, bridge_run, b);
}

/* Nobody reads what this end is given; what is on its way there goes nowhere. */
static void bridge_end_broke(struct bridge *b, struct bridge_end *e)
{
	for (int i = 0; i < FLOW_MAX; i++) {
		/* The socket tells by what reading and writing it answer, in their order. */
		if (b->flows[i].to == e && e != &b->sock)
			bridge_end_flow(b, &b->flows[i], -EPIPE);
	}
}

static void bridge_on_event(void *ctx, uint32_t events)
{
	struct bridge_end *e = ctx;
	struct bridge *b = e->bridge;
	bool hung = events & (EPOLLHUP | EPOLLERR);

	if (hung && !bridge_wanted(b, e)) {
		loop_watch_remove(e->watch);
		e->watch = NULL;
	}
	if ((events & EPOLLIN) || hung)
		e->can_read = true;
	if ((events & EPOLLOUT) || hung)
		e->can_write = true;
	if (events & EPOLLERR)
		bridge_end_broke(b, e);
	bridge_run(b);
}

struct bridge *bridge_new(struct loop *loop, int sock, int rfd, int wfd, bridge_done_fn done,
			  void *ctx)
{
	struct bridge *b = xcalloc(1, sizeof(*b));
	bool is_one = rfd >= 0 && rfd == wfd;

	*b = (struct bridge){.loop = loop, .done = done, .ctx = ctx};
	b->sock = (struct bridge_end){.bridge = b, .fd = sock, .can_read = true, .can_write = true};
	b->r = b->w = b->sock;
	b->r.fd = rfd;
	b->w.fd = is_one ? -1 : wfd;
	b->flows[FLOW_OUT] = (struct bridge_flow){.from = &b->r, .to = &b->sock};
	b->flows[FLOW_IN] = (struct bridge_flow){.from = &b->sock, .to = is_one ? &b->r : &b->w};
	io_set_nonblock(sock, true);
	if (rfd >= 0)
		io_set_nonblock(rfd, true);
	if (wfd >= 0)
		io_set_nonblock(wfd, true);
	bridge_watch(b, b->flows[FLOW_IN].to, true);
	if (rfd < 0)
		bridge_end_flow(b, &b->flows[FLOW_OUT], 0);
	if (wfd < 0)
		bridge_end_flow(b, &b->flows[FLOW_IN], 0);
	loop_timer_arm(loop, &b->again, 0, bridge_run, b);
	return b;
}

void bridge_detach(struct bridge *b)
{
	b->err = -ECANCELED;
	bridge_finish(b);
}
