/*
 * Streams of a machine that is saved while it has some, and goes on as another one; see vsock_internal.h.
 *
 * Saved is what both ends have to agree on (ports, credit, ends) and what the guest has sent and no descriptor has
 * taken yet. Connections that were not open then, or whose descriptors were done with, are not: a guest that
 * mentions one gets a RST.
 *
 * Restored, a stream is parked: it has no descriptors, takes what its credit allows, and waits for vsock_connect().
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "buf.h"
#include "cleanup.h"
#include "vsock_internal.h"

#define VSOCK_SAVED_MAX (VSOCK_STREAMS_MAX * (sizeof(struct vsock_saved) + (size_t)VSOCK_BUF_SIZE))

#define VSOCK_SAVED_READS 0x1u /* rfd was not at its end */
#define VSOCK_SAVED_WRITES 0x2u
#define VSOCK_SAVED_GONE 0x4u
#define VSOCK_SAVED_BY_GUEST 0x8u
#define VSOCK_SAVED_FLAGS 0xfu

#define VSOCK_SAVED_WANTS \
	(VSOCK_WANT_RESPONSE | VSOCK_WANT_RST | VSOCK_WANT_CREDIT_UPDATE | VSOCK_WANT_SHUTDOWN)

/* One stream; buf_len bytes follow. The same build reads it: integers in host order. */
struct vsock_saved {
	uint32_t flags;
	uint32_t host_port, guest_port;
	uint32_t want;
	uint32_t tx_cnt, peer_fwd_cnt, peer_buf_alloc;
	uint32_t buf_alloc, rx_cnt, fwd_cnt, last_fwd_cnt;
	uint32_t shut_sent, shut_peer;
	uint32_t buf_len;
};

/* ---- saving ---- */

static int vsock_save_stream(const struct vsock_stream *s, struct buf *out)
{
	uint32_t first = MIN(s->buf_len, VSOCK_BUF_SIZE - s->buf_head);
	const struct vsock_saved x = {
		.flags = (s->rfd != -1 ? VSOCK_SAVED_READS : 0) |
			 (s->wfd != -1 ? VSOCK_SAVED_WRITES : 0) |
			 (s->gone ? VSOCK_SAVED_GONE : 0) |
			 (s->by_guest ? VSOCK_SAVED_BY_GUEST : 0),
		.host_port = s->host_port,
		.guest_port = s->guest_port,
		.want = s->want & VSOCK_SAVED_WANTS,
		.tx_cnt = s->tx_cnt,
		.peer_fwd_cnt = s->peer_fwd_cnt,
		.peer_buf_alloc = s->peer_buf_alloc,
		.buf_alloc = s->buf_alloc,
		.rx_cnt = s->rx_cnt,
		.fwd_cnt = s->fwd_cnt,
		.last_fwd_cnt = s->last_fwd_cnt,
		.shut_sent = s->shut_sent,
		.shut_peer = s->shut_peer,
		.buf_len = s->buf_len,
	};
	int r = buf_append(out, &x, sizeof(x));

	if (!r && first)
		r = buf_append(out, s->buf + s->buf_head, first);
	if (!r && s->buf_len > first)
		r = buf_append(out, s->buf, s->buf_len - first);
	return r;
}

int vsock_save(struct virtio_device *dev, uint8_t **ret, size_t *ret_len, struct err *err)
{
	struct vsock *v = container_of(dev, struct vsock, dev);
	cleanup(buf_done) struct buf all;
	struct vsock_stream *s;
	int r = 0;

	buf_init(&all, VSOCK_SAVED_MAX);
	virtio_device_lock(dev);
	list_for_each (s, &v->streams, link) {
		if (!r && s->state == VSOCK_OPEN && !s->over)
			r = vsock_save_stream(s, &all);
	}
	virtio_device_unlock(dev);
	if (r)
		return err_set(err, r, "save the streams");
	*ret_len = all.len;
	*ret = xmalloc(all.len + 1);
	if (all.len)
		memcpy(*ret, buf_head(&all), all.len);
	return 0;
}

/* ---- loading ---- */

/* Only what could have become of a stream of ours. */
static bool vsock_saved_is_sound(const struct vsock_saved *x)
{
	return !(x->flags & ~VSOCK_SAVED_FLAGS) && !(x->want & ~VSOCK_SAVED_WANTS) &&
	       (x->buf_alloc == VSOCK_BUF_SIZE || x->buf_alloc == VSOCK_BUF_SMALL ||
		x->buf_alloc == VSOCK_BUF_TINY) &&
	       x->buf_len <= x->buf_alloc && x->rx_cnt - x->fwd_cnt == x->buf_len &&
	       x->peer_buf_alloc <= VSOCK_PEER_CREDIT_MAX &&
	       (int32_t)(x->tx_cnt - x->peer_fwd_cnt) >= 0 &&
	       !((x->shut_sent | x->shut_peer) & ~(uint32_t)VSOCK_SHUTDOWN_BOTH) &&
	       (!x->buf_len || x->flags & VSOCK_SAVED_WRITES);
}

static int vsock_load_stream(struct vsock *v, const struct vsock_saved *x, const uint8_t *data)
{
	struct vsock_stream *s;

	if (!vsock_saved_is_sound(x) || vsock_stream_find(v, x->host_port, x->guest_port) ||
	    vsock_find_parked(v, x->host_port, x->guest_port))
		return -EPROTO;
	if (x->host_port < v->params.kept_from_port)
		return 0;
	s = vsock_stream_new(v, x->host_port, x->guest_port, x->flags & VSOCK_SAVED_BY_GUEST);
	if (!s)
		return -ENOSPC;
	s->state = VSOCK_OPEN;
	s->parked = true;
	v->promised += x->buf_alloc - (uint64_t)s->buf_alloc;
	s->buf_alloc = x->buf_alloc;
	if (v->promised > VSOCK_BYTES_MAX)
		return -EPROTO;
	s->tx_cnt = x->tx_cnt;
	s->peer_fwd_cnt = x->peer_fwd_cnt;
	s->peer_buf_alloc = x->peer_buf_alloc;
	s->rx_cnt = x->rx_cnt;
	s->fwd_cnt = x->fwd_cnt;
	s->last_fwd_cnt = x->last_fwd_cnt;
	s->shut_sent = x->shut_sent;
	s->shut_peer = x->shut_peer;
	s->rfd = x->flags & VSOCK_SAVED_READS ? VSOCK_FD_LATER : -1;
	s->wfd = x->flags & VSOCK_SAVED_WRITES ? VSOCK_FD_LATER : -1;
	if (x->buf_len) {
		s->buf = xmalloc(VSOCK_BUF_SIZE);
		memcpy(s->buf, data, x->buf_len);
		s->buf_len = x->buf_len;
	}
	if (x->flags & VSOCK_SAVED_GONE) {
		s->gone = true;
		list_remove(&s->hash);
		list_remove(&s->work);
	} else if (x->want) {
		vsock_stream_want(s, x->want);
	}
	return 0;
}

int vsock_load(struct virtio_device *dev, const uint8_t *state, size_t len, struct err *err)
{
	struct vsock *v = container_of(dev, struct vsock, dev);
	int r = 0;

	virtio_device_lock(dev);
	while (len && !r) {
		struct vsock_saved x;

		r = -EPROTO;
		if (len < sizeof(x))
			break;
		memcpy(&x, state, sizeof(x));
		state += sizeof(x);
		len -= sizeof(x);
		if (x.buf_len > len)
			break;
		r = vsock_load_stream(v, &x, state);
		state += x.buf_len;
		len -= x.buf_len;
	}
	virtio_device_unlock(dev);
	return r ? err_set(err, r, "go on with the saved streams") : 0;
}

/* ---- taken up ---- */

struct vsock_stream *vsock_find_parked(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_stream *s;

	list_for_each (s, &v->streams, link) {
		if (s->parked && !s->over && s->host_port == host_port &&
		    s->guest_port == guest_port)
			return s;
	}
	return NULL;
}

void vsock_stream_take_up(struct vsock_stream *s, int rfd, int wfd)
{
	bool reads = s->rfd != -1, writes = s->wfd != -1;
	uint32_t shut_sent = s->shut_sent;
	int r;

	s->parked = false;
	/* Nobody is there any more for what the guest has sent. */
	if (wfd < 0 && writes)
		vsock_stream_end_write(s, 0);
	r = vsock_stream_bind(s, rfd, wfd);
	if (r) {
		vsock_stream_abort(s, r);
		return;
	}
	if (!reads)
		vsock_stream_end_read(s, 0);
	if (!writes)
		vsock_stream_end_write(s, 0);
	vsock_stream_flush(s);
	vsock_stream_want(s, s->shut_sent != shut_sent ? VSOCK_WANT_SHUTDOWN : 0);
	vsock_stream_check_end(s);
}
