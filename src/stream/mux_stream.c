/*
 * Stream multiplexer: the streams. See mux.h for the contract.
 *
 * Per side and number: OPEN first (with the credit we give), then DATA within the peer's credit, then
 * exactly one FIN or RESET. STOP asks the peer to end early; it answers with RESET. A number is over
 * when each side has sent its FIN or RESET, and only then may its state go: until then a detached
 * stream stays in the table without an owner and drops what still arrives.
 *
 * A number the peer has opened and ended before we attached it is answered at once and remembered as
 * `gone`, so that a late attach ends instead of waiting for nobody.
 *
 * Watching: a descriptor is armed only when something can be done with it. epoll reports EPOLLHUP and
 * EPOLLERR even when nothing is armed; a watch that fires with nothing wanted is brought in line, and
 * removed if it only reports the hang-up. It comes back when it is wanted again. wfd is watched with no
 * events from the start: EPOLLERR there means that nobody reads any more.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "mux_internal.h"

/* A buffer larger than this is given back when it runs empty. */
#define MUX_RX_KEEP (16 * 1024)
#define MUX_CREDIT_MAX INT32_MAX

/* ---- table ---- */

static struct list *mux_bucket(struct mux *m, uint32_t id)
{
	return &m->table[id % MUX_BUCKETS];
}

static struct mux_stream *mux_stream_find(struct mux *m, uint32_t id)
{
	struct mux_stream *s;

	list_for_each (s, mux_bucket(m, id), hash)
		if (s->id == id)
			return s;
	return NULL;
}

static struct mux_stream *mux_stream_new(struct mux *m, uint32_t id)
{
	struct mux_stream *s = xcalloc(1, sizeof(*s));

	*s = (struct mux_stream){.mux = m, .id = id, .fd = {-1, -1}, .in_table = true};
	buf_init(&s->rx, MUX_WINDOW);
	list_init(&s->link);
	list_init(&s->ready);
	list_append(mux_bucket(m, id), &s->hash);
	return s;
}

void mux_stream_free(struct mux_stream *s)
{
	list_remove(&s->hash);
	list_remove(&s->link);
	list_remove(&s->ready);
	buf_done(&s->rx);
	free(s);
}

static void mux_stream_leave_table(struct mux_stream *s)
{
	if (s->gone)
		s->mux->nr_gone--;
	else if (s->local)
		s->mux->nr_local--;
	else
		s->mux->nr_pending--;
	list_remove(&s->hash);
	s->in_table = false;
}

/* After any step: is its number over, is the stream over? May free it, so the last thing a caller does. */
static void mux_stream_check(struct mux_stream *s)
{
	if (s->in_table && !s->gone && s->tx_ended && s->rx_ended)
		mux_stream_leave_table(s);
	if (s->attached) {
		if (s->fd[MUX_R] < 0 && s->fd[MUX_W] < 0) {
			list_remove(&s->link);
			list_append(&s->mux->finished, &s->link);
		}
	} else if (!s->in_table) {
		mux_stream_free(s);
	}
}

/* ---- descriptors and watches ---- */

static void mux_stream_on_r(void *ctx, uint32_t events);
static void mux_stream_on_w(void *ctx, uint32_t events);
static void mux_stream_on_rw(void *ctx, uint32_t events);

/* Brings the kernel's idea of a direction in line with `want`; add: also when there is no watch. */
static void mux_stream_sync(struct mux_stream *s, int dir, bool add)
{
	static const loop_watch_fn fns[] = {mux_stream_on_r, mux_stream_on_w};
	int slot = s->shared ? MUX_R : dir;
	uint32_t events = s->shared ? s->want[MUX_R] | s->want[MUX_W] : s->want[dir];

	if (s->watch[slot]) {
		loop_watch_set(s->watch[slot], events);
		return;
	}
	if ((!events && !add) || s->nopoll[dir])
		return;
	s->watch[slot] = loop_watch_add(s->mux->loop, s->fd[dir], events,
					s->shared ? mux_stream_on_rw : fns[dir], s);
	if (!s->watch[slot]) {
		s->nopoll[dir] = true;
		if (s->shared)
			s->nopoll[!dir] = true;
	}
}

static void mux_stream_want(struct mux_stream *s, int dir, uint32_t events)
{
	s->want[dir] = events;
	mux_stream_sync(s, dir, false);
}

/* Ends a direction locally. A socket used both ways is shut down first and closed with the second. */
static void mux_stream_close(struct mux_stream *s, int dir)
{
	int fd = s->fd[dir];
	int slot = s->shared ? MUX_R : dir;

	if (fd < 0)
		return;
	s->fd[dir] = -1;
	s->want[dir] = 0;
	if (dir == MUX_R)
		list_remove(&s->ready);
	else
		buf_done(&s->rx);
	if (s->fd[!dir] == fd) {
		shutdown(fd, dir == MUX_R ? SHUT_RD : SHUT_WR);
		mux_stream_sync(s, dir, false);
		return;
	}
	loop_watch_remove(s->watch[slot]);
	s->watch[slot] = NULL;
	close(fd);
}

static void mux_stream_set_err(struct mux_stream *s, int err)
{
	if (!s->err)
		s->err = err;
}

/* ---- sending: rfd to the peer ---- */

static void mux_stream_end_tx(struct mux_stream *s, enum mux_type how)
{
	mux_stream_close(s, MUX_R);
	if (s->tx_ended)
		return;
	s->tx_ended = true;
	mux_send(s->mux, s->id, how, NULL, 0);
}

/* There is credit: read when there is something to read. */
static void mux_stream_resume_tx(struct mux_stream *s)
{
	if (s->fd[MUX_R] < 0 || !s->tx_credit)
		return;
	if (!s->tx_more && !s->nopoll[MUX_R])
		mux_stream_want(s, MUX_R, EPOLLIN);
	/* Not `else`: epoll may just have refused it. */
	if ((s->tx_more || s->nopoll[MUX_R]) && list_is_empty(&s->ready))
		list_append(&s->mux->ready, &s->ready);
}

static void mux_stream_read_failed(struct mux_stream *s, int err)
{
	if (err == -EINTR || (err == -EAGAIN && !s->nopoll[MUX_R] && !s->hup[MUX_R])) {
		s->tx_more = err == -EINTR;
		mux_stream_resume_tx(s);
		return;
	}
	/* A terminal's master says EIO when the last user of the other side is gone. */
	if (err == -EIO && !s->nopoll[MUX_R] && isatty(s->fd[MUX_R])) {
		mux_stream_end_tx(s, MUX_FIN);
	} else {
		mux_stream_set_err(s, err == -EAGAIN ? -EIO : err);
		mux_stream_end_tx(s, MUX_RESET);
	}
	mux_stream_check(s);
}

void mux_stream_pump(struct mux_stream *s)
{
	struct buf *out = &s->mux->out;
	size_t want = MIN((size_t)s->tx_credit, (size_t)MUX_PAYLOAD_MAX);
	uint8_t *p = buf_reserve(out, MUX_HEADER_LEN + want);
	struct mux_frame f = {.stream = s->id, .type = MUX_DATA};
	ssize_t n;

	if (!p) {
		s->mux->err = mux_violation(s->mux, s->id, "it sends and never reads");
		return;
	}
	n = read(s->fd[MUX_R], p + MUX_HEADER_LEN, want);
	if (n < 0) {
		mux_stream_read_failed(s, -errno);
		return;
	}
	if (!n) {
		mux_stream_end_tx(s, MUX_FIN);
		mux_stream_check(s);
		return;
	}
	f.len = (uint16_t)n;
	mux_frame_encode(&f, p);
	buf_commit(out, MUX_HEADER_LEN + (size_t)n);
	s->tx_credit -= (uint32_t)n;
	s->tx_more = (size_t)n == want;
	if (s->tx_credit)
		mux_stream_resume_tx(s);
	else
		mux_stream_want(s, MUX_R, 0);
}

/* ---- receiving: the peer to wfd ---- */

static void mux_stream_stop(struct mux_stream *s)
{
	if (s->stop_sent || s->rx_ended)
		return;
	s->stop_sent = true;
	mux_send(s->mux, s->id, MUX_STOP, NULL, 0);
}

/* wfd takes no more: what is left for it goes nowhere, and the peer is told to stop. */
static void mux_stream_rx_failed(struct mux_stream *s, int err)
{
	mux_stream_set_err(s, err);
	mux_stream_close(s, MUX_W);
	mux_stream_stop(s);
}

/* What was written to wfd; less than len: it is full. -errno: it takes no more. */
static ssize_t mux_stream_write(struct mux_stream *s, const uint8_t *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = write(s->fd[MUX_W], data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			return -errno;
		/* A hung-up terminal takes bytes until it is full, then neither takes nor fails. */
		if (n <= 0 && (s->nopoll[MUX_W] || s->hup[MUX_W]))
			return -EIO;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* wfd took n bytes: the peer may send as many again; told in halves of the window. */
static void mux_stream_grant(struct mux_stream *s, size_t n)
{
	uint8_t credit[4];

	s->rx_unacked += (uint32_t)n;
	if (s->rx_ended || s->rx_unacked < MUX_WINDOW / 2)
		return;
	mux_put_u32(credit, s->rx_unacked);
	s->rx_credit += s->rx_unacked;
	s->rx_unacked = 0;
	mux_send(s->mux, s->id, MUX_WINDOW_MORE, credit, sizeof(credit));
}

/* Everything that came is delivered; is more to come? */
static void mux_stream_rx_drained(struct mux_stream *s)
{
	if (s->rx.cap > MUX_RX_KEEP)
		buf_done(&s->rx);
	mux_stream_want(s, MUX_W, 0);
	if (s->rx_ended)
		mux_stream_close(s, MUX_W);
}

static void mux_stream_flush_rx(struct mux_stream *s)
{
	ssize_t n = mux_stream_write(s, buf_head(&s->rx), s->rx.len);

	if (n < 0) {
		mux_stream_rx_failed(s, (int)n);
		return;
	}
	buf_consume(&s->rx, (size_t)n);
	mux_stream_grant(s, (size_t)n);
	if (!s->rx.len)
		mux_stream_rx_drained(s);
}

static int mux_stream_on_data(struct mux_stream *s, const uint8_t *data, size_t len)
{
	ssize_t n = 0;

	if (!s->local || s->rx_ended)
		return mux_violation(s->mux, s->id, "data for a closed stream");
	if (len > s->rx_credit)
		return mux_violation(s->mux, s->id, "more data than credit");
	s->rx_credit -= (uint32_t)len;
	if (s->fd[MUX_W] < 0)
		return 0; /* sent before our STOP arrived */
	if (!s->rx.len) {
		n = mux_stream_write(s, data, len);
		if (n < 0) {
			mux_stream_rx_failed(s, (int)n);
			return 0;
		}
		mux_stream_grant(s, (size_t)n);
	}
	if ((size_t)n == len)
		return 0;
	if (buf_append(&s->rx, data + n, len - (size_t)n))
		return mux_violation(s->mux, s->id, "more data than window");
	mux_stream_want(s, MUX_W, EPOLLOUT);
	/* epoll refuses a descriptor that was full: it cannot be waited for. */
	if (s->nopoll[MUX_W])
		mux_stream_rx_failed(s, -EIO);
	return 0;
}

/* ---- descriptor events ---- */

static void mux_stream_event(struct mux_stream *s, bool r, bool w, uint32_t events)
{
	struct mux *m = s->mux;
	bool used = false;
	int slot = r ? MUX_R : MUX_W;

	mux_enter(m);
	if (r && s->want[MUX_R] && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
		used = true;
		s->hup[MUX_R] = !(events & EPOLLIN);
		if (list_is_empty(&s->ready))
			list_append(&m->ready, &s->ready);
		else /* the channel is full: it waits its turn unwatched */
			mux_stream_want(s, MUX_R, 0);
	}
	if (w && s->want[MUX_W] && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
		used = true;
		s->hup[MUX_W] = !(events & EPOLLOUT) && (events & (EPOLLHUP | EPOLLERR));
		mux_stream_flush_rx(s);
	} else if (w && s->fd[MUX_W] >= 0 && (events & EPOLLERR)) {
		used = true;
		mux_stream_rx_failed(s, -EPIPE);
	}
	if (!used && (events & (EPOLLHUP | EPOLLERR))) {
		loop_watch_remove(s->watch[slot]);
		s->watch[slot] = NULL;
	} else if (!used) {
		mux_stream_sync(s, slot, false);
	}
	mux_stream_check(s);
	mux_leave(m);
}

static void mux_stream_on_r(void *ctx, uint32_t events)
{
	mux_stream_event(ctx, true, false, events);
}

static void mux_stream_on_w(void *ctx, uint32_t events)
{
	mux_stream_event(ctx, false, true, events);
}

static void mux_stream_on_rw(void *ctx, uint32_t events)
{
	mux_stream_event(ctx, true, true, events);
}

/* ---- frames from the peer ---- */

static int mux_stream_on_open(struct mux *m, struct mux_stream *s, uint32_t id, uint32_t credit)
{
	if (s && s->gone) {
		/* The number starts anew; what we remembered of its last life is over. */
		mux_stream_leave_table(s);
		mux_stream_free(s);
		s = NULL;
	}
	if (s && s->peer_open)
		return mux_violation(m, id, "opened twice");
	if (credit > MUX_CREDIT_MAX)
		return mux_violation(m, id, "credit out of range");
	if (!s) {
		if (m->nr_pending >= MUX_STREAMS_MAX)
			return mux_violation(m, id, "too many streams");
		s = mux_stream_new(m, id);
		m->nr_pending++;
	}
	s->peer_open = true;
	s->tx_credit = credit;
	mux_stream_resume_tx(s);
	return 0;
}

/* Both directions of the peer ended before we attached: answer, and remember it for a late attach. */
static void mux_stream_make_gone(struct mux_stream *s)
{
	struct mux *m = s->mux;

	mux_stream_stop(s);
	mux_stream_end_tx(s, MUX_RESET);
	m->nr_pending--;
	s->gone = true;
	if (m->nr_gone >= MUX_GONE_MAX) {
		struct mux_stream *oldest = list_entry(m->gone.next, struct mux_stream, link);

		mux_stream_leave_table(oldest);
		mux_stream_free(oldest);
	}
	m->nr_gone++;
	list_append(&m->gone, &s->link);
}

static int mux_stream_on_end(struct mux *m, struct mux_stream *s, uint32_t id, enum mux_type how)
{
	if (!s || s->rx_ended)
		return mux_violation(m, id, "ended twice or never opened");
	s->rx_ended = true;
	if (how == MUX_RESET) {
		s->rx_reset = true;
		if (s->fd[MUX_W] >= 0)
			mux_stream_set_err(s, -ECONNRESET);
	}
	if (!s->local) {
		if (how == MUX_RESET || s->stop_got)
			mux_stream_make_gone(s);
		return 0;
	}
	if (s->fd[MUX_W] >= 0 && !s->rx.len)
		mux_stream_rx_drained(s);
	mux_stream_check(s);
	return 0;
}

static void mux_stream_on_stop(struct mux_stream *s)
{
	if (s->gone)
		return;
	s->stop_got = true;
	if (!s->local) {
		if (s->rx_ended)
			mux_stream_make_gone(s);
		return;
	}
	if (s->tx_ended)
		return;
	mux_stream_set_err(s, -EPIPE);
	mux_stream_end_tx(s, MUX_RESET);
	mux_stream_check(s);
}

int mux_stream_frame(struct mux *m, const struct mux_frame *f, const uint8_t *payload)
{
	struct mux_stream *s = mux_stream_find(m, f->stream);
	uint32_t credit;

	switch (f->type) {
	case MUX_OPEN:
		return mux_stream_on_open(m, s, f->stream, mux_get_u32(payload));
	case MUX_WINDOW_MORE:
		credit = mux_get_u32(payload);
		if (!credit || credit > MUX_CREDIT_MAX)
			return mux_violation(m, f->stream, "credit out of range");
		/* It may cross our own end of the stream. */
		if (!s || !s->peer_open || s->gone)
			return 0;
		if (credit > MUX_CREDIT_MAX - s->tx_credit)
			return mux_violation(m, f->stream, "credit out of range");
		s->tx_credit += credit;
		mux_stream_resume_tx(s);
		return 0;
	case MUX_DATA: {
		int r;

		if (!s)
			return mux_violation(m, f->stream, "data for an unknown stream");
		r = mux_stream_on_data(s, payload, f->len);
		if (!r)
			mux_stream_check(s);
		return r;
	}
	case MUX_STOP:
		if (s)
			mux_stream_on_stop(s);
		return 0;
	default:
		return mux_stream_on_end(m, s, f->stream, f->type);
	}
}

/* ---- another peer ---- */

/* It goes on: what came and was not delivered is still here, what was sent has arrived. */
static void mux_stream_reopen(struct mux_stream *s)
{
	uint8_t credit[4];

	s->peer_open = s->stop_got = s->stop_sent = s->rx_ended = s->rx_reset = false;
	s->tx_credit = s->rx_unacked = 0;
	s->rx_credit = MUX_WINDOW - (uint32_t)s->rx.len;
	mux_stream_want(s, MUX_R, 0);
	list_remove(&s->ready);
	mux_put_u32(credit, s->rx_credit);
	mux_send(s->mux, s->id, MUX_OPEN, credit, sizeof(credit));
	if (s->tx_ended)
		mux_send(s->mux, s->id, MUX_FIN, NULL, 0);
	if (s->fd[MUX_W] < 0)
		mux_stream_stop(s);
}

static void mux_stream_restart(struct mux_stream *s)
{
	if (s->attached && s->id >= MUX_STREAM_FIRST_FREE) {
		mux_stream_reopen(s);
		return;
	}
	s->tx_ended = s->rx_ended = true;
	mux_stream_leave_table(s);
	list_remove(&s->ready);
	if (s->attached)
		mux_stream_cut(s, -ECONNRESET);
	else
		mux_stream_free(s);
}

void mux_stream_restart_all(struct mux *m)
{
	struct mux_stream *s;

	for (size_t i = 0; i < MUX_BUCKETS; i++)
		list_for_each (s, &m->table[i], hash)
			mux_stream_restart(s);
}

/* ---- the owner's side ---- */

void mux_stream_cut(struct mux_stream *s, int err)
{
	mux_stream_set_err(s, err);
	mux_stream_close(s, MUX_R);
	mux_stream_close(s, MUX_W);
	list_remove(&s->link);
	list_append(&s->mux->finished, &s->link);
}

void mux_stream_finish(struct mux_stream *s)
{
	mux_stream_done_fn done = s->done;
	void *ctx = s->ctx;
	int err = s->err;

	list_remove(&s->link);
	s->attached = false;
	/* May free it, and the callback may free the mux: neither is touched afterwards. */
	mux_stream_check(s);
	if (done)
		done(ctx, err);
}

void mux_detach(struct mux_stream *s)
{
	struct mux *m = s->mux;

	mux_stream_close(s, MUX_R);
	mux_stream_close(s, MUX_W);
	mux_stream_stop(s);
	mux_stream_end_tx(s, MUX_RESET);
	mux_kick(m);
	s->err = -ECANCELED;
	mux_stream_finish(s);
}

static void mux_close_pair(int rfd, int wfd)
{
	if (rfd >= 0)
		close(rfd);
	if (wfd >= 0 && wfd != rfd)
		close(wfd);
}

static int mux_attach_check(struct mux *m, const struct mux_stream *s, uint32_t id, int rfd,
			    int wfd)
{
	int r = 0;

	if (m->err)
		return -EPIPE;
	if (!id)
		return -EINVAL;
	if (s && s->local)
		return -EEXIST;
	if (m->nr_local >= MUX_STREAMS_MAX)
		return -ENOSPC;
	if (rfd >= 0)
		r = io_set_nonblock(rfd, true);
	if (!r && wfd >= 0)
		r = io_set_nonblock(wfd, true);
	return r;
}

/* The peer was here and left. */
static void mux_attach_gone(struct mux_stream *s, int rfd, int wfd)
{
	if (wfd >= 0 && s->rx_reset)
		s->err = -ECONNRESET;
	else if (rfd >= 0)
		s->err = -EPIPE;
	mux_close_pair(rfd, wfd);
	mux_stream_leave_table(s);
	mux_stream_check(s);
}

static void mux_attach_live(struct mux_stream *s, int rfd, int wfd)
{
	struct mux *m = s->mux;
	uint8_t credit[4];

	if (s->peer_open)
		m->nr_pending--;
	m->nr_local++;
	s->local = true;
	s->fd[MUX_R] = rfd;
	s->fd[MUX_W] = wfd;
	s->shared = rfd >= 0 && rfd == wfd;
	s->rx_credit = wfd >= 0 ? MUX_WINDOW : 0;
	mux_put_u32(credit, s->rx_credit);
	mux_send(m, s->id, MUX_OPEN, credit, sizeof(credit));
	if (rfd < 0 || s->stop_got)
		mux_stream_end_tx(s, rfd < 0 ? MUX_FIN : MUX_RESET);
	if (rfd >= 0 && s->stop_got)
		s->err = -EPIPE;
	if (wfd < 0)
		mux_stream_stop(s);
	else if (s->rx_ended)
		mux_stream_close(s, MUX_W);
	for (int dir = MUX_R; dir <= MUX_W; dir++)
		if (s->fd[dir] >= 0)
			mux_stream_sync(s, dir, true);
	mux_stream_resume_tx(s);
	mux_stream_check(s);
}

int mux_attach(struct mux *m, uint32_t id, int rfd, int wfd, mux_stream_done_fn done, void *ctx,
	       struct mux_stream **ret)
{
	struct mux_stream *s = mux_stream_find(m, id);
	int r = mux_attach_check(m, s, id, rfd, wfd);

	if (r) {
		mux_close_pair(rfd, wfd);
		return r;
	}
	if (!s)
		s = mux_stream_new(m, id);
	s->attached = true;
	s->done = done;
	s->ctx = ctx;
	list_remove(&s->link);
	list_append(&m->attached, &s->link);
	if (s->gone)
		mux_attach_gone(s, rfd, wfd);
	else
		mux_attach_live(s, rfd, wfd);
	mux_kick(m);
	if (ret)
		*ret = s;
	return 0;
}
