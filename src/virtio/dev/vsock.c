/*
 * virtio-vsock: queues, packets, life of streams; see vsock.h for the contract and vsock_stream.c for
 * one stream. Spec: virtio 1.2, 5.10.
 *
 * Everything runs on the loop's thread under dev->lock, but for the guest's reset, which only marks
 * streams; what has to happen to them (descriptors, watches, timers, done) follows in vsock_on_wake(),
 * on the loop's thread. Callbacks of the owner are called from there alone, without the lock.
 *
 * No busy loop by design: descriptors are watched edge triggered, once; `r_ready` and `w_ready` keep
 * what the edge said until the system call says EAGAIN. A stream without credit, and a queue without
 * buffers, are taken up again by the guest's packet or kick and by nothing else.
 *
 * The guest's queue is always drained (5.10.6.1.2: it must not wait for the receive queue): data goes to
 * the descriptor or into the stream's buffer, which the credit bounds; answers are flags on the stream
 * or entries of a short ring.
 */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "iov.h"
#include "log.h"
#include "util.h"
#include "vsock_internal.h"

enum { VSOCK_QUEUE_RX, VSOCK_QUEUE_TX, VSOCK_QUEUE_EVENT, VSOCK_QUEUE_MAX };

#define VSOCK_QUEUE_SIZE 256
#define VSOCK_EVENT_QUEUE_SIZE 16

static struct vsock *vsock_of(struct virtio_device *dev)
{
	return container_of(dev, struct vsock, dev);
}

void vsock_wake(struct vsock *v)
{
	const uint64_t one = 1;

	if (write(v->wake_fd, &one, sizeof(one)) < 0)
		log_dbg("vsock", "a wake-up was lost: %m");
}

/* --- to the guest -------------------------------------------------------------------------------- */

static void vsock_refuse(struct vsock *v, const struct virtio_vsock_hdr *h)
{
	unsigned int at = (v->refusal_head + v->nr_refusals) % VSOCK_REFUSALS_MAX;

	if (v->nr_refusals == VSOCK_REFUSALS_MAX)
		return;
	v->nr_refusals++;
	v->refusals[at] = (struct vsock_refusal){
		.src_cid = le64toh(h->dst_cid),
		.src_port = le32toh(h->dst_port),
		.dst_port = le32toh(h->src_port),
		.type = le16toh(h->type),
	};
}

static bool vsock_has_work(const struct vsock *v)
{
	return v->nr_refusals || !list_is_empty(&v->work);
}

/* The next packet, of whichever stream's turn it is. As vsock_stream_fill(). */
static int vsock_fill(struct vsock *v, struct virtio_vsock_hdr *h)
{
	if (v->nr_refusals) {
		const struct vsock_refusal *f = &v->refusals[v->refusal_head];

		*h = (struct virtio_vsock_hdr){
			.src_cid = htole64(f->src_cid),
			.dst_cid = htole64(v->params.guest_cid),
			.src_port = htole32(f->src_port),
			.dst_port = htole32(f->dst_port),
			.type = htole16(f->type),
			.op = htole16(VIRTIO_VSOCK_OP_RST),
		};
		v->refusal_head = (v->refusal_head + 1) % VSOCK_REFUSALS_MAX;
		v->nr_refusals--;
		return 0;
	}
	while (!list_is_empty(&v->work)) {
		struct vsock_stream *s = list_entry(v->work.next, struct vsock_stream, work);
		int n;

		/* To the end of the line; out of it when it has nothing. */
		list_remove(&s->work);
		n = vsock_stream_fill(s, h);
		if (n >= 0) {
			vsock_stream_want(s, 0);
			return n;
		}
	}
	return -EAGAIN;
}

/* One packet into the chain just taken; false = there was none after all. */
static bool vsock_send_one(struct vsock *v, struct virtio_queue *rx)
{
	struct virtio_vsock_hdr h;
	struct virtq_chain *c = &v->chain;
	int n = vsock_fill(v, &h);

	if (n < 0) {
		virtq_unpop(&rx->vq, c->head);
		return false;
	}
	iov_write(c->iov + c->nr_readable, c->nr_writable, 0, &h, sizeof(h));
	virtq_push(&rx->vq, c->head, (uint32_t)(sizeof(h) + (size_t)n));
	return true;
}

void vsock_pump(struct vsock *v)
{
	struct virtio_queue *rx = &v->dev.queues[VSOCK_QUEUE_RX];
	unsigned int budget = rx->vq.size;
	bool sent = false;

	while (rx->ready && vsock_has_work(v)) {
		int r;

		if (!budget--) {
			/* Others want the loop too. */
			virtio_device_kick(&v->dev, VSOCK_QUEUE_RX);
			break;
		}
		r = virtio_queue_pop(rx, &v->chain);
		if (!r && virtq_enable_kicks(&rx->vq))
			continue;
		if (r <= 0)
			break;
		if (iov_len(v->chain.iov + v->chain.nr_readable, v->chain.nr_writable) <=
		    sizeof(struct virtio_vsock_hdr)) {
			virtio_queue_fail(rx, "a receive buffer has no room for a packet");
			break;
		}
		if (!vsock_send_one(v, rx))
			break;
		sent = true;
	}
	if (sent)
		virtio_queue_notify(rx);
}

/* --- from the guest ------------------------------------------------------------------------------ */

static void vsock_receive_request(struct vsock *v, const struct virtio_vsock_hdr *h)
{
	struct vsock_stream *s = NULL;

	if (v->params.on_connect)
		s = vsock_stream_new(v, le32toh(h->dst_port), le32toh(h->src_port), true);
	if (!s) {
		vsock_refuse(v, h);
		return;
	}
	s->state = VSOCK_ACCEPTING;
	s->peer_buf_alloc = MIN(le32toh(h->buf_alloc), VSOCK_PEER_CREDIT_MAX);
	list_append(&v->accepting, &s->stage);
	vsock_wake(v);
}

static void vsock_receive(struct vsock *v, const struct virtio_vsock_hdr *h)
{
	uint16_t op = le16toh(h->op);
	struct vsock_stream *s;

	/* Somebody else's address: not even an answer. */
	if (le64toh(h->src_cid) != v->params.guest_cid)
		return;
	if (le64toh(h->dst_cid) != VSOCK_HOST_CID || le16toh(h->type) != VIRTIO_VSOCK_TYPE_STREAM) {
		if (op != VIRTIO_VSOCK_OP_RST)
			vsock_refuse(v, h);
		return;
	}
	s = vsock_stream_find(v, le32toh(h->dst_port), le32toh(h->src_port));
	if (s)
		vsock_stream_receive(s, h);
	else if (op == VIRTIO_VSOCK_OP_REQUEST)
		vsock_receive_request(v, h);
	else if (op != VIRTIO_VSOCK_OP_RST)
		vsock_refuse(v, h);
}

/* One chain of the transmit queue; false = the guest broke the queue. */
static bool vsock_take_packet(struct vsock *v, struct virtio_queue *tx)
{
	struct virtq_chain *c = &v->chain;
	struct virtio_vsock_hdr h;
	size_t len = iov_len(c->iov, c->nr_readable);

	if (iov_read(c->iov, c->nr_readable, 0, &h, sizeof(h)) != sizeof(h)) {
		virtio_queue_fail(tx, "a packet is shorter than its header");
		return false;
	}
	if (le32toh(h.len) > VSOCK_PACKET_MAX || le32toh(h.len) != len - sizeof(h)) {
		virtio_queue_fail(tx, "a packet's length is not that of its buffers");
		return false;
	}
	vsock_receive(v, &h);
	virtq_push(&tx->vq, c->head, 0);
	return true;
}

static bool vsock_drain(struct vsock *v, struct virtio_queue *tx)
{
	bool more = true;

	virtq_disable_kicks(&tx->vq);
	for (unsigned int budget = tx->vq.size; budget; budget--) {
		int r = virtio_queue_pop(tx, &v->chain);

		if (!r && virtq_enable_kicks(&tx->vq))
			continue;
		if (r <= 0 || !vsock_take_packet(v, tx)) {
			more = false;
			break;
		}
	}
	virtio_queue_notify(tx);
	vsock_pump(v);
	return more;
}

static bool vsock_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct vsock *v = vsock_of(dev);

	switch (index) {
	case VSOCK_QUEUE_TX:
		return vsock_drain(v, &dev->queues[index]);
	case VSOCK_QUEUE_RX:
		vsock_pump(v);
		return false;
	default:
		/* Buffers for events, of which there are none: a restored guest has its connections (vsock_save.c). */
		return false;
	}
}

/* --- streams come and go ------------------------------------------------------------------------- */

/* Without the lock around the callback: it may call anything here, and the guest may reset meanwhile. */
static void vsock_accept_one(struct vsock *v, struct vsock_stream *s)
{
	struct vsock_accept a = {.rfd = -1, .wfd = -1};
	int r;

	list_remove(&s->stage);
	virtio_device_unlock(&v->dev);
	r = v->params.on_connect(v->params.ctx, s->host_port, s->guest_port, &a);
	virtio_device_lock(&v->dev);
	if (r < 0) {
		if (!s->over)
			vsock_stream_abort(s, r);
		return;
	}
	s->done = a.done;
	s->ctx = a.ctx;
	r = vsock_stream_bind(s, a.rfd, a.wfd);
	if (s->over)
		return;
	if (r) {
		vsock_stream_abort(s, r);
		return;
	}
	s->state = VSOCK_OPEN;
	vsock_stream_want(s, VSOCK_WANT_RESPONSE);
	vsock_stream_check_end(s);
}

static void vsock_on_linger(void *ctx)
{
	struct vsock_stream *s = ctx;
	struct vsock *v = s->v;

	virtio_device_lock(&v->dev);
	s->want = 0;
	vsock_stream_want(s, VSOCK_WANT_RST);
	vsock_pump(v);
	/* Told or not (the guest has no room): the place is needed. */
	s->gone = true;
	list_remove(&s->stage);
	list_append(&v->finished, &s->stage);
	vsock_wake(v);
	virtio_device_unlock(&v->dev);
}

static void vsock_finish_one(struct vsock *v, struct vsock_stream *s)
{
	vsock_done_fn done = s->done;
	void *ctx = s->ctx;
	int err = s->err;

	list_remove(&s->stage);
	s->done = NULL;
	vsock_stream_release(s);
	if (s->gone) {
		vsock_stream_free(s);
	} else {
		list_append(&v->lingering, &s->stage);
		loop_timer_arm(v->loop, &s->timer, VSOCK_LINGER_NS, vsock_on_linger, s);
	}
	virtio_device_unlock(&v->dev);
	if (done)
		done(ctx, err);
	virtio_device_lock(&v->dev);
}

static void vsock_finish_all(struct vsock *v)
{
	while (!list_is_empty(&v->accepting))
		vsock_accept_one(v, list_entry(v->accepting.next, struct vsock_stream, stage));
	while (!list_is_empty(&v->finished))
		vsock_finish_one(v, list_entry(v->finished.next, struct vsock_stream, stage));
}

static void vsock_on_wake(void *ctx, uint32_t events)
{
	struct vsock *v = ctx;
	uint64_t count;

	if (read(v->wake_fd, &count, sizeof(count)) < 0)
		return;
	virtio_device_lock(&v->dev);
	vsock_finish_all(v);
	vsock_pump(v);
	virtio_device_unlock(&v->dev);
}

static void vsock_on_connect_timeout(void *ctx)
{
	struct vsock_stream *s = ctx;
	struct vsock *v = s->v;

	virtio_device_lock(&v->dev);
	if (!s->over && s->state == VSOCK_CONNECTING) {
		vsock_stream_abort(s, -ETIMEDOUT);
		vsock_pump(v);
	}
	virtio_device_unlock(&v->dev);
}

/* A guest that stands still cannot answer. */
static void vsock_arm_connect_timeout(struct vsock_stream *s)
{
	struct vsock *v = s->v;

	if (!v->paused)
		loop_timer_arm(v->loop, &s->timer, v->params.connect_timeout_ms * 1000000ull,
			       vsock_on_connect_timeout, s);
}

void vsock_set_paused(struct virtio_device *dev, bool paused)
{
	struct vsock *v = vsock_of(dev);
	struct vsock_stream *s;

	virtio_device_lock(dev);
	v->paused = paused;
	list_for_each (s, &v->streams, link) {
		if (s->over || s->state != VSOCK_CONNECTING)
			continue;
		loop_timer_cancel(&s->timer);
		vsock_arm_connect_timeout(s);
	}
	virtio_device_unlock(dev);
}

static bool vsock_is_up(const struct vsock *v)
{
	const struct virtio_queue *rx = &v->dev.queues[VSOCK_QUEUE_RX];
	const struct virtio_queue *tx = &v->dev.queues[VSOCK_QUEUE_TX];

	return rx->ready && tx->ready && !rx->vq.broken && !tx->vq.broken;
}

bool vsock_is_ready(struct virtio_device *dev)
{
	bool ready;

	virtio_device_lock(dev);
	ready = vsock_is_up(vsock_of(dev));
	virtio_device_unlock(dev);
	return ready;
}

/* Under the lock: a stream that begins to connect, or goes on. Takes over the descriptors if it succeeds. */
static int vsock_connect_locked(struct vsock *v, uint32_t host_port, uint32_t guest_port, int rfd,
				int wfd, struct vsock_stream **ret)
{
	struct vsock_stream *s;

	if (!vsock_is_up(v))
		return -ENOTCONN;
	*ret = vsock_find_parked(v, host_port, guest_port);
	if (*ret) {
		vsock_stream_take_up(*ret, rfd, wfd);
		return 0;
	}
	if (vsock_stream_find(v, host_port, guest_port))
		return -EADDRINUSE;
	s = vsock_stream_new(v, host_port, guest_port, false);
	if (!s)
		return -ENOSPC;
	s->state = VSOCK_CONNECTING;
	*ret = s;
	return vsock_stream_bind(s, rfd, wfd);
}

int vsock_connect(struct virtio_device *dev, uint32_t host_port, uint32_t guest_port, int rfd,
		  int wfd, vsock_done_fn done, void *ctx, struct vsock_stream **ret)
{
	struct vsock *v = vsock_of(dev);
	struct vsock_stream *s = NULL;
	int r;

	virtio_device_lock(dev);
	r = vsock_connect_locked(v, host_port, guest_port, rfd, wfd, &s);
	if (!r) {
		s->done = done;
		s->ctx = ctx;
		if (s->state == VSOCK_CONNECTING) {
			vsock_arm_connect_timeout(s);
			vsock_stream_want(s, VSOCK_WANT_REQUEST);
		}
		vsock_pump(v);
		if (ret)
			*ret = s;
	} else if (s) {
		/* Which has the descriptors by now. */
		vsock_stream_free(s);
	} else {
		if (rfd >= 0)
			close(rfd);
		if (wfd >= 0 && wfd != rfd)
			close(wfd);
	}
	virtio_device_unlock(dev);
	return r;
}

void vsock_detach(struct vsock_stream *s)
{
	struct vsock *v = s->v;

	virtio_device_lock(&v->dev);
	if (!s->over) {
		vsock_stream_abort(s, -ECANCELED);
		vsock_pump(v);
	}
	virtio_device_unlock(&v->dev);
}

/* --- life ---------------------------------------------------------------------------------------- */

static int vsock_start(struct virtio_device *dev, struct loop *loop, struct err *err)
{
	struct vsock *v = vsock_of(dev);

	v->loop = loop;
	v->wake_watch = loop_watch_add(loop, v->wake_fd, EPOLLIN, vsock_on_wake, v);
	return v->wake_watch ? 0 : err_set(err, -errno, "watch the streams of vsock");
}

static void vsock_config_read(struct virtio_device *dev, uint32_t off, void *data, uint32_t len)
{
	const struct virtio_vsock_config config = {
		.guest_cid = htole64(vsock_of(dev)->params.guest_cid)};

	memcpy(data, (const uint8_t *)&config + off, len);
}

static void vsock_reset(struct virtio_device *dev)
{
	struct vsock *v = vsock_of(dev);
	struct vsock_stream *s;

	list_for_each (s, &v->streams, link)
		vsock_stream_void(s, -ECONNRESET);
	v->nr_refusals = 0;
}

static void vsock_free(struct virtio_device *dev)
{
	struct vsock *v = vsock_of(dev);

	virtio_device_lock(dev);
	vsock_finish_all(v);
	virtio_device_unlock(dev);
	loop_watch_remove(v->wake_watch);
	cleanup_closep(&v->wake_fd);
	while (v->nr_spares)
		free(v->spares[--v->nr_spares]);
	virtio_device_done(dev);
	free(v);
}

static const struct virtio_device_ops vsock_ops = {
	.start = vsock_start,
	.config_read = vsock_config_read,
	.queue_kick = vsock_queue_kick,
	.reset = vsock_reset,
	.save = vsock_save,
	.load = vsock_load,
	.free = vsock_free,
};

int vsock_new(const struct vsock_params *params, struct virtio_device **ret, struct err *err)
{
	static const struct virtio_device_info info = {
		.name = "vsock",
		.id = VIRTIO_ID_VSOCK,
		.config_len = sizeof(struct virtio_vsock_config),
		.nr_queues = VSOCK_QUEUE_MAX,
		.queues = {{.size_max = VSOCK_QUEUE_SIZE},
			   {.size_max = VSOCK_QUEUE_SIZE},
			   {.size_max = VSOCK_EVENT_QUEUE_SIZE}},
	};
	cleanup_free struct vsock *v = xcalloc(1, sizeof(*v));
	int r;

	v->params = *params;
	if (!v->params.connect_timeout_ms)
		v->params.connect_timeout_ms = VSOCK_CONNECT_TIMEOUT_MS;
	for (unsigned int i = 0; i < VSOCK_BUCKETS; i++)
		list_init(&v->buckets[i]);
	list_init(&v->streams);
	list_init(&v->work);
	list_init(&v->accepting);
	list_init(&v->finished);
	list_init(&v->lingering);
	v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->wake_fd < 0)
		return err_set(err, -errno, "make an event descriptor for vsock");
	r = virtio_device_init(&v->dev, &vsock_ops, &info, err);
	if (r) {
		cleanup_closep(&v->wake_fd);
		return r;
	}
	*ret = &take_ptr(&v)->dev;
	return 0;
}
