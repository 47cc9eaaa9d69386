/*
 * One vsock stream; see vsock_internal.h. Spec: virtio 1.2, 5.10.6.
 *
 * Credit (5.10.6.3), all in 32 bits that wrap: a sender may have at most buf_alloc bytes under way that
 * the receiver has not consumed (fwd_cnt). What a guest claims is judged before it is used: it cannot
 * have consumed more than was sent, a smaller buffer leaves no credit rather than a huge one, and a
 * larger one than VSOCK_PEER_CREDIT_MAX counts as that. Nothing here is allocated by its numbers: data
 * for the guest is read straight into its own buffers. An older fwd_cnt than the last is no fault:
 * processors of the guest may overtake each other.
 *
 * Ends. Direction to the guest: rfd's end of file, an error, or the guest's SHUTDOWN_RCV; the guest is
 * told by SHUTDOWN_SEND. Direction from the guest: its SHUTDOWN_SEND (or RST) and then the buffer run
 * empty, or an error of wfd, of which the guest is told by SHUTDOWN_RCV. When both are over, the guest
 * gets a RST if it has said SHUTDOWN for both (that is what Linux waits for in close()); otherwise
 * SHUTDOWN for both, and its RST is awaited for the linger time.
 */
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <unistd.h>

#include "iov.h"
#include "util.h"
#include "vsock_internal.h"

/* --- life ---------------------------------------------------------------------------------------- */

static struct list *vsock_bucket(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	uint32_t mix = (host_port * 0x9e3779b1u) ^ (guest_port * 0x85ebca6bu);

	return &v->buckets[mix >> 24];
}

struct vsock_stream *vsock_stream_find(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_stream *s;

	list_for_each (s, vsock_bucket(v, host_port, guest_port), hash) {
		if (s->host_port == host_port && s->guest_port == guest_port)
			return s;
	}
	return NULL;
}

/* Room for one more, if need be in the place of one that only lingers. */
static bool vsock_stream_has_room(struct vsock *v, bool by_guest)
{
	struct vsock_stream *old;

	/* Half of them are the host's: a guest that opens all it can still has its agent reached. */
	if (by_guest && v->nr_by_guest >= VSOCK_STREAMS_MAX / 2)
		return false;
	if (v->nr_streams < VSOCK_STREAMS_MAX)
		return true;
	if (list_is_empty(&v->lingering))
		return false;
	old = list_entry(v->lingering.next, struct vsock_stream, stage);
	vsock_stream_free(old);
	return true;
}

/* The more streams there are, the less each may have waiting. */
static uint32_t vsock_stream_allowance(const struct vsock *v)
{
	if (v->promised < VSOCK_BYTES_MAX / 2)
		return VSOCK_BUF_SIZE;
	return v->promised < VSOCK_BYTES_MAX / 4 * 3 ? VSOCK_BUF_SMALL : VSOCK_BUF_TINY;
}

struct vsock_stream *vsock_stream_new(struct vsock *v, uint32_t host_port, uint32_t guest_port,
				      bool by_guest)
{
	struct vsock_stream *s;

	if (!vsock_stream_has_room(v, by_guest))
		return NULL;
	s = xcalloc(1, sizeof(*s));
	s->v = v;
	s->by_guest = by_guest;
	s->host_port = host_port;
	s->guest_port = guest_port;
	s->rfd = s->wfd = -1;
	s->buf_alloc = vsock_stream_allowance(v);
	v->promised += s->buf_alloc;
	v->nr_streams++;
	v->nr_by_guest += by_guest;
	list_init(&s->work);
	list_init(&s->stage);
	list_append(&v->streams, &s->link);
	list_append(vsock_bucket(v, host_port, guest_port), &s->hash);
	return s;
}

static_assert(VSOCK_STREAMS_MAX * VSOCK_BUF_TINY + VSOCK_BYTES_MAX / 4 * 3 <= VSOCK_BYTES_MAX,
	      "the sum of all credit");

/* The last larger promise may begin just below its share. */
static_assert(VSOCK_BYTES_MAX / 2 % VSOCK_BUF_SIZE == 0 &&
		      VSOCK_BYTES_MAX / 4 % VSOCK_BUF_SMALL == 0,
	      "larger promises fill their shares exactly");

void vsock_stream_free(struct vsock_stream *s)
{
	struct vsock *v = s->v;

	vsock_stream_release(s);
	loop_timer_cancel(&s->timer);
	list_remove(&s->link);
	list_remove(&s->hash);
	list_remove(&s->work);
	list_remove(&s->stage);
	v->promised -= s->buf_alloc;
	v->nr_streams--;
	v->nr_by_guest -= s->by_guest;
	free(s);
}

/* The owner will be told, from the loop. Any thread. */
static void vsock_stream_finish(struct vsock_stream *s, int err)
{
	if (s->over)
		return;
	s->over = true;
	if (!s->err)
		s->err = err;
	list_remove(&s->stage);
	list_append(&s->v->finished, &s->stage);
	vsock_wake(s->v);
}

void vsock_stream_void(struct vsock_stream *s, int err)
{
	s->gone = true;
	s->want = 0;
	list_remove(&s->hash);
	list_remove(&s->work);
	if (!s->over) {
		vsock_stream_finish(s, err);
		return;
	}
	/* It lingered, or waits to be finished: either way it is freed there. */
	list_remove(&s->stage);
	list_append(&s->v->finished, &s->stage);
	vsock_wake(s->v);
}

void vsock_stream_want(struct vsock_stream *s, uint32_t what)
{
	if (s->gone)
		return;
	s->want |= what;
	list_remove(&s->work);
	list_append(&s->v->work, &s->work);
}

void vsock_stream_abort(struct vsock_stream *s, int err)
{
	s->want = 0;
	vsock_stream_want(s, VSOCK_WANT_RST);
	vsock_stream_finish(s, err);
}

void vsock_stream_check_end(struct vsock_stream *s)
{
	if (s->over || s->parked || s->state != VSOCK_OPEN || s->rfd != -1 || s->wfd != -1)
		return;
	if (s->shut_peer == VSOCK_SHUTDOWN_BOTH) {
		s->want = 0;
		vsock_stream_want(s, VSOCK_WANT_RST);
	} else if (!s->gone) {
		s->shut_sent = VSOCK_SHUTDOWN_BOTH;
		vsock_stream_want(s, VSOCK_WANT_SHUTDOWN);
	}
	vsock_stream_finish(s, 0);
}

/* --- from the guest ------------------------------------------------------------------------------ */

static void vsock_stream_receive_data(struct vsock_stream *s, uint32_t len)
{
	if (s->shut_peer & VIRTIO_VSOCK_SHUTDOWN_SEND ||
	    len > s->buf_alloc - (s->rx_cnt - s->fwd_cnt)) {
		vsock_stream_abort(s, -EPROTO);
		return;
	}
	s->rx_cnt += len;
	vsock_stream_deliver(s, sizeof(struct virtio_vsock_hdr), len);
}

static uint32_t vsock_stream_credit(const struct vsock_stream *s)
{
	uint32_t in_flight = s->tx_cnt - s->peer_fwd_cnt;

	return in_flight < s->peer_buf_alloc ? s->peer_buf_alloc - in_flight : 0;
}

/* false = a claim that cannot be true. */
static bool vsock_stream_learn_credit(struct vsock_stream *s, const struct virtio_vsock_hdr *h)
{
	uint32_t fwd_cnt = le32toh(h->fwd_cnt);

	if ((int32_t)(fwd_cnt - s->tx_cnt) > 0)
		return false;
	s->peer_buf_alloc = MIN(le32toh(h->buf_alloc), VSOCK_PEER_CREDIT_MAX);
	if ((int32_t)(fwd_cnt - s->peer_fwd_cnt) > 0)
		s->peer_fwd_cnt = fwd_cnt;
	if (vsock_stream_credit(s)) {
		s->credit_asked = false;
		if (s->state == VSOCK_OPEN && s->rfd >= 0 && s->r_ready)
			vsock_stream_want(s, 0);
	}
	return true;
}

static void vsock_stream_receive_shutdown(struct vsock_stream *s, uint32_t flags)
{
	s->shut_peer |= flags & VSOCK_SHUTDOWN_BOTH;
	if (s->shut_peer & VIRTIO_VSOCK_SHUTDOWN_RCV)
		vsock_stream_end_read(s, -EPIPE);
	if (s->shut_peer & VIRTIO_VSOCK_SHUTDOWN_SEND)
		vsock_stream_flush(s);
	vsock_stream_check_end(s);
}

/* The guest's kernel knows the stream no more; what it sent before is still delivered. */
static void vsock_stream_receive_rst(struct vsock_stream *s)
{
	int err = s->shut_peer & VIRTIO_VSOCK_SHUTDOWN_SEND ? 0 : -ECONNRESET;

	if (s->over || s->state != VSOCK_OPEN) {
		vsock_stream_void(s, s->state == VSOCK_CONNECTING ? -ECONNREFUSED : -ECONNRESET);
		return;
	}
	s->gone = true;
	s->want = 0;
	list_remove(&s->hash);
	list_remove(&s->work);
	s->shut_peer = VSOCK_SHUTDOWN_BOTH;
	if (s->wfd != -1 && !s->err)
		s->err = err;
	vsock_stream_end_read(s, -ECONNRESET);
	vsock_stream_flush(s);
	vsock_stream_check_end(s);
}

/* Both descriptors are done with; what the guest still says only decides when the struct may go. */
static void vsock_stream_receive_late(struct vsock_stream *s, const struct virtio_vsock_hdr *h)
{
	uint16_t op = le16toh(h->op);

	if (op == VIRTIO_VSOCK_OP_SHUTDOWN)
		s->shut_peer |= le32toh(h->flags) & VSOCK_SHUTDOWN_BOTH;
	if (s->shut_peer == VSOCK_SHUTDOWN_BOTH || op == VIRTIO_VSOCK_OP_RW ||
	    op == VIRTIO_VSOCK_OP_REQUEST)
		vsock_stream_want(s, VSOCK_WANT_RST);
}

static void vsock_stream_receive_open(struct vsock_stream *s, const struct virtio_vsock_hdr *h)
{
	switch (le16toh(h->op)) {
	case VIRTIO_VSOCK_OP_RW:
		vsock_stream_receive_data(s, le32toh(h->len));
		break;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		vsock_stream_receive_shutdown(s, le32toh(h->flags));
		break;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		vsock_stream_want(s, VSOCK_WANT_CREDIT_UPDATE);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		break;
	default:
		vsock_stream_abort(s, -EPROTO);
		break;
	}
}

void vsock_stream_receive(struct vsock_stream *s, const struct virtio_vsock_hdr *h)
{
	uint16_t op = le16toh(h->op);

	/* The kernel's answer for a socket it does not know has no credit in it. */
	if (op == VIRTIO_VSOCK_OP_RST) {
		vsock_stream_receive_rst(s);
		return;
	}
	if (s->over) {
		vsock_stream_receive_late(s, h);
		return;
	}
	if (!vsock_stream_learn_credit(s, h)) {
		vsock_stream_abort(s, -EPROTO);
		return;
	}
	if (s->state == VSOCK_OPEN) {
		vsock_stream_receive_open(s, h);
	} else if (s->state == VSOCK_CONNECTING && op == VIRTIO_VSOCK_OP_RESPONSE) {
		s->state = VSOCK_OPEN;
		loop_timer_cancel(&s->timer);
		/* Directions that were over from the start, or ended meanwhile. */
		vsock_stream_want(s, s->shut_sent ? VSOCK_WANT_SHUTDOWN : 0);
		vsock_stream_check_end(s);
	} else {
		vsock_stream_abort(s, -EPROTO);
	}
}

/* --- to the guest -------------------------------------------------------------------------------- */

static void vsock_stream_header(struct vsock_stream *s, struct virtio_vsock_hdr *h, uint16_t op)
{
	*h = (struct virtio_vsock_hdr){
		.src_cid = htole64(VSOCK_HOST_CID),
		.dst_cid = htole64(s->v->params.guest_cid),
		.src_port = htole32(s->host_port),
		.dst_port = htole32(s->guest_port),
		.type = htole16(VIRTIO_VSOCK_TYPE_STREAM),
		.op = htole16(op),
		.buf_alloc = htole32(s->buf_alloc),
		.fwd_cnt = htole32(s->fwd_cnt),
	};
	if (op == VIRTIO_VSOCK_OP_SHUTDOWN)
		h->flags = htole32(s->shut_sent);
	s->last_fwd_cnt = s->fwd_cnt;
	s->want &= ~VSOCK_WANT_CREDIT_UPDATE;
}

/* Reads from rfd into the guest's buffers, behind where the header goes. As vsock_stream_fill(). */
static int vsock_stream_fill_data(struct vsock_stream *s, struct virtio_vsock_hdr *h)
{
	struct vsock *v = s->v;
	struct virtq_chain *c = &v->chain;
	uint32_t credit = vsock_stream_credit(s);
	unsigned int nr;
	ssize_t n;

	if (s->rfd < 0 || !s->r_ready)
		return -EAGAIN;
	if (!credit) {
		if (s->credit_asked)
			return -EAGAIN;
		s->credit_asked = true;
		vsock_stream_header(s, h, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
		return 0;
	}
	nr = iov_slice(c->iov + c->nr_readable, c->nr_writable, sizeof(*h),
		       MIN(credit, VSOCK_PACKET_MAX), v->slice, ARRAY_SIZE(v->slice));
	do
		n = readv(s->rfd, v->slice, (int)nr);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		s->tx_cnt += (uint32_t)n;
		vsock_stream_header(s, h, VIRTIO_VSOCK_OP_RW);
		h->len = htole32((uint32_t)n);
		return (int)n;
	}
	if (n < 0 && errno == EAGAIN) {
		s->r_ready = false;
		return -EAGAIN;
	}
	vsock_stream_end_read(s, n < 0 ? -errno : 0);
	return -EAGAIN;
}

int vsock_stream_fill(struct vsock_stream *s, struct virtio_vsock_hdr *h)
{
	static const struct {
		uint32_t want;
		uint16_t op;
	} order[] = {
		{VSOCK_WANT_RST, VIRTIO_VSOCK_OP_RST},
		{VSOCK_WANT_REQUEST, VIRTIO_VSOCK_OP_REQUEST},
		{VSOCK_WANT_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE},
		{VSOCK_WANT_CREDIT_UPDATE, VIRTIO_VSOCK_OP_CREDIT_UPDATE},
		{VSOCK_WANT_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN},
	};
	int n;

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		if (!(s->want & order[i].want))
			continue;
		s->want &= ~order[i].want;
		vsock_stream_header(s, h, order[i].op);
		if (order[i].want == VSOCK_WANT_RST)
			vsock_stream_void(s, -ECONNRESET);
		return 0;
	}
	if (s->over || s->state != VSOCK_OPEN)
		return -EAGAIN;
	n = vsock_stream_fill_data(s, h);
	/* The end of rfd has just been seen: tell at once. */
	return n == -EAGAIN && s->want ? vsock_stream_fill(s, h) : n;
}
