/*
 * virtio-net; see net.h. Spec: virtio 1.2, 5.1.6.
 *
 * All on the loop's thread under dev->lock. The tap is watched by edge, once; `r_ready` and `w_ready`
 * keep what the edge said until EAGAIN.
 *
 * To the guest: a frame is read into `frame` and copied into as many receive buffers as it takes. When
 * the ring runs empty half-way the buffers taken are put back and the frame waits; the tap is not read
 * meanwhile. All buffers of a frame are given back at once, as the driver expects.
 *
 * From the guest: header and Ethernet addresses are copied, judged, and the copies are what the tap
 * gets, so that the guest cannot change them in between; the payload goes from the guest's buffers.
 */
#include "net.h"

#include <endian.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "iov.h"
#include "log.h"
#include "util.h"

enum { VIRTIO_NET_RX, VIRTIO_NET_TX, VIRTIO_NET_CTRL, VIRTIO_NET_QUEUES };

#define VIRTIO_NET_QUEUE_SIZE 256
#define VIRTIO_NET_CTRL_QUEUE_SIZE 16
/* Without the header: Ethernet (14) to the largest segment with a VLAN tag. */
#define VIRTIO_NET_FRAME_MIN ETH_HLEN
#define VIRTIO_NET_FRAME_MAX 65550
/* What is copied of a frame before it is sent. */
#define VIRTIO_NET_COPIED (VIRTIO_NET_TAP_HDR + ETH_HLEN)

struct virtio_net {
	struct virtio_device dev;
	struct virtio_net_params params; /* without the tap */
	struct virtio_net_config config; /* little-endian */
	struct virtio_net_counts counts;
	struct loop *loop; /* borrowed */
	int tap_fd;	   /* owned; -1 = link down */
	struct loop_watch *watch;
	bool r_ready, w_ready;
	uint32_t tap_offloads; /* what the tap is set to */
	size_t frame_len;      /* of the frame that waits for room; 0 = none */
	uint8_t frame[VIRTIO_NET_TAP_HDR + VIRTIO_NET_FRAME_MAX];
	struct virtq_chain first, chain; /* of the call that runs */
	struct virtq_done done[VIRTIO_NET_QUEUE_SIZE];
	struct iovec slice[VIRTQ_SIZE_MAX];
};

_Static_assert(sizeof(struct virtio_net_hdr_v1) == VIRTIO_NET_TAP_HDR, "the header of frames");

static struct virtio_net *virtio_net_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtio_net, dev);
}

/* --- offloads ------------------------------------------------------------------------------------ */

/* Feature bits that say what a guest accepts, and the tap's flag for it. */
static const struct {
	unsigned int guest, host;
	uint32_t tun;
} virtio_net_offload_table[] = {
	{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CSUM, TUN_F_CSUM},
	{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4, TUN_F_TSO4},
	{VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6, TUN_F_TSO6},
	{VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_HOST_ECN, TUN_F_TSO_ECN},
};

static uint64_t virtio_net_offload_features(uint32_t tun)
{
	uint64_t f = 0;

	for (size_t i = 0; i < ARRAY_SIZE(virtio_net_offload_table); i++) {
		if (tun & virtio_net_offload_table[i].tun)
			f |= 1ULL << virtio_net_offload_table[i].guest |
			     1ULL << virtio_net_offload_table[i].host;
	}
	return f;
}

/* The tap gives no frames that the guest did not agree to. */
static void virtio_net_sync_offloads(struct virtio_net *n)
{
	uint32_t want = 0;

	for (size_t i = 0; i < ARRAY_SIZE(virtio_net_offload_table); i++) {
		if (virtio_device_has(&n->dev, virtio_net_offload_table[i].guest))
			want |= virtio_net_offload_table[i].tun;
	}
	if (n->tap_fd < 0 || !n->dev.active || want == n->tap_offloads)
		return;
	if (ioctl(n->tap_fd, TUNSETOFFLOAD, (unsigned long)want))
		log_dbg("virtio", "net: the tap keeps its offloads: %m");
	n->tap_offloads = want;
}

/* --- to the guest -------------------------------------------------------------------------------- */

static bool virtio_net_guest_takes(const struct virtio_net *n)
{
	struct virtio_net_hdr_v1 h;

	memcpy(&h, n->frame, sizeof(h));
	if (h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM &&
	    !virtio_device_has(&n->dev, VIRTIO_NET_F_GUEST_CSUM))
		return false;
	switch (h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE:
		return true;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return virtio_device_has(&n->dev, VIRTIO_NET_F_GUEST_TSO4);
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return virtio_device_has(&n->dev, VIRTIO_NET_F_GUEST_TSO6);
	default:
		return false;
	}
}

/* A frame into n->frame; false = there is none now. Frames that the guest does not take are passed by. */
static bool virtio_net_read_tap(struct virtio_net *n)
{
	while (n->tap_fd >= 0 && n->r_ready) {
		ssize_t len = read(n->tap_fd, n->frame, sizeof(n->frame));

		if (len < 0) {
			if (errno != EINTR)
				n->r_ready = false;
			continue;
		}
		if ((size_t)len < VIRTIO_NET_COPIED || !virtio_net_guest_takes(n)) {
			n->counts.rx_dropped++;
			continue;
		}
		n->frame_len = (size_t)len;
		return true;
	}
	return false;
}

static void virtio_net_put_back(struct virtio_net *n, struct virtio_queue *rx, unsigned int nr)
{
	while (nr--)
		virtq_unpop(&rx->vq, n->done[nr].head);
}

/* The next receive buffer into *c; 1, 0 = none, negative = broken. */
static int virtio_net_take_buffer(struct virtio_queue *rx, struct virtq_chain *c, bool is_first)
{
	int r = virtio_queue_pop(rx, c);

	if (!r && virtq_enable_kicks(&rx->vq))
		r = virtio_queue_pop(rx, c);
	if (r == 1 &&
	    iov_len(c->iov + c->nr_readable, c->nr_writable) < (is_first ? VIRTIO_NET_COPIED : 1)) {
		virtio_queue_fail(rx, "a receive buffer has no room for a frame");
		return -EPROTO;
	}
	return r;
}

/* n->frame to the guest; 1 = done with it, 0 = it waits for buffers, negative = the queue is broken. */
static int virtio_net_deliver(struct virtio_net *n, struct virtio_queue *rx)
{
	bool merge = virtio_device_has(&n->dev, VIRTIO_NET_F_MRG_RXBUF);
	unsigned int nr = 0, nr_max = merge ? MIN(rx->vq.size, ARRAY_SIZE(n->done)) : 1;
	size_t off = 0;
	uint16_t nr_le;

	while (off < n->frame_len && nr < nr_max) {
		struct virtq_chain *c = nr ? &n->chain : &n->first;
		int r = virtio_net_take_buffer(rx, c, !nr);
		size_t done;

		if (!r)
			virtio_net_put_back(n, rx, nr);
		if (r <= 0)
			return r;
		done = iov_write(c->iov + c->nr_readable, c->nr_writable, 0, n->frame + off,
				 n->frame_len - off);
		n->done[nr++] = (struct virtq_done){.head = c->head, .written = (uint32_t)done};
		off += done;
	}
	if (off < n->frame_len) {
		/* Longer than all the guest could ever offer for it. */
		virtio_net_put_back(n, rx, nr);
		n->counts.rx_dropped++;
		return 1;
	}
	nr_le = htole16((uint16_t)nr);
	iov_write(n->first.iov + n->first.nr_readable, n->first.nr_writable,
		  offsetof(struct virtio_net_hdr_v1, num_buffers), &nr_le, sizeof(nr_le));
	virtq_push_all(&rx->vq, n->done, nr);
	n->counts.rx_frames++;
	return 1;
}

/* True = the budget is used up, more may be waiting. */
static bool virtio_net_fill(struct virtio_net *n)
{
	struct virtio_queue *rx = &n->dev.queues[VIRTIO_NET_RX];
	unsigned int budget = rx->vq.size;
	int r = 1;

	while (rx->ready && !rx->vq.broken && budget && r == 1) {
		if (!n->frame_len && !virtio_net_read_tap(n))
			break;
		r = virtio_net_deliver(n, rx);
		if (r == 1)
			n->frame_len = 0;
		budget--;
	}
	if (rx->ready)
		virtio_queue_notify(rx);
	return !budget && r == 1;
}

/* --- from the guest ------------------------------------------------------------------------------ */

static bool virtio_net_gso_is_good(const struct virtio_net *n, const struct virtio_net_hdr_v1 *h,
				   size_t frame_len)
{
	unsigned int feature;

	if (h->gso_type == VIRTIO_NET_HDR_GSO_NONE)
		return true;
	switch (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		feature = VIRTIO_NET_F_HOST_TSO4;
		break;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		feature = VIRTIO_NET_F_HOST_TSO6;
		break;
	default:
		return false;
	}
	if (h->gso_type & VIRTIO_NET_HDR_GSO_ECN &&
	    !virtio_device_has(&n->dev, VIRTIO_NET_F_HOST_ECN))
		return false;
	return virtio_device_has(&n->dev, feature) && h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM &&
	       h->gso_size && le16toh(h->hdr_len) <= frame_len;
}

/* Judges the header of a frame, and clears what the tap has no use for. */
static bool virtio_net_header_is_good(const struct virtio_net *n, struct virtio_net_hdr_v1 *h,
				      size_t frame_len)
{
	h->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
	h->num_buffers = 0;
	if (h->gso_type == VIRTIO_NET_HDR_GSO_NONE) {
		h->hdr_len = 0;
		h->gso_size = 0;
	}
	if (!h->flags) {
		h->csum_start = 0;
		h->csum_offset = 0;
	} else if (!virtio_device_has(&n->dev, VIRTIO_NET_F_CSUM) ||
		   (size_t)le16toh(h->csum_start) + le16toh(h->csum_offset) + 2 > frame_len) {
		return false;
	}
	return virtio_net_gso_is_good(n, h, frame_len);
}

/* The frame in n->chain to the tap. 1 = done with it, 0 = the tap takes none now. */
static int virtio_net_send(struct virtio_net *n, size_t len)
{
	const struct virtq_chain *c = &n->chain;
	struct {
		struct virtio_net_hdr_v1 h;
		struct ethhdr eth;
	} __attribute__((packed)) copy;
	size_t frame_len = len - VIRTIO_NET_TAP_HDR;
	struct virtio_net_hdr_v1 h;
	unsigned int nr = 1;
	ssize_t r;

	if (n->tap_fd < 0 || frame_len < VIRTIO_NET_FRAME_MIN || frame_len > VIRTIO_NET_FRAME_MAX)
		return 1;
	iov_read(c->iov, c->nr_readable, 0, &copy, sizeof(copy));
	h = copy.h;
	if (!virtio_net_header_is_good(n, &h, frame_len))
		return 1;
	copy.h = h;
	if (n->params.pin_mac && memcmp(copy.eth.h_source, n->params.mac, ETH_ALEN) != 0)
		return 1;
	n->slice[0] = (struct iovec){.iov_base = &copy, .iov_len = sizeof(copy)};
	nr += iov_slice(c->iov, c->nr_readable, sizeof(copy), len - sizeof(copy), n->slice + 1,
			ARRAY_SIZE(n->slice) - 1);
	do
		r = writev(n->tap_fd, n->slice, (int)nr);
	while (r < 0 && errno == EINTR);
	if (r < 0 && errno == EAGAIN) {
		n->w_ready = false;
		return 0;
	}
	if (r >= 0)
		n->counts.tx_frames++;
	return 1;
}

static bool virtio_net_drain(struct virtio_net *n)
{
	struct virtio_queue *tx = &n->dev.queues[VIRTIO_NET_TX];
	uint64_t sent = n->counts.tx_frames, nr_done = 0;
	bool more = true;

	if (!tx->ready || !n->w_ready)
		return false;
	virtq_disable_kicks(&tx->vq);
	for (unsigned int budget = tx->vq.size; budget; budget--) {
		int r = virtio_queue_pop(tx, &n->chain);
		size_t len;

		if (!r && virtq_enable_kicks(&tx->vq))
			continue;
		more = r > 0;
		if (r <= 0)
			break;
		len = iov_len(n->chain.iov, n->chain.nr_readable);
		if (len < VIRTIO_NET_TAP_HDR) {
			virtio_queue_fail(tx, "a frame is shorter than its header");
			more = false;
			break;
		}
		if (!virtio_net_send(n, len)) {
			virtq_unpop(&tx->vq, n->chain.head);
			more = false;
			break;
		}
		virtq_push(&tx->vq, n->chain.head, 0);
		nr_done++;
	}
	n->counts.tx_dropped += nr_done - (n->counts.tx_frames - sent);
	virtio_queue_notify(tx);
	return more;
}

static void virtio_net_on_tap(void *ctx, uint32_t events)
{
	struct virtio_net *n = ctx;

	virtio_device_lock(&n->dev);
	if (events & ~(uint32_t)EPOLLOUT)
		n->r_ready = true;
	if (events & ~(uint32_t)EPOLLIN)
		n->w_ready = true;
	if (virtio_net_fill(n))
		virtio_device_kick(&n->dev, VIRTIO_NET_RX);
	if (virtio_net_drain(n))
		virtio_device_kick(&n->dev, VIRTIO_NET_TX);
	virtio_device_unlock(&n->dev);
}

/* --- the control queue --------------------------------------------------------------------------- */

/* The data behind the command's header, exactly len bytes. */
static bool virtio_net_ctrl_data(const struct virtq_chain *c, void *data, size_t len)
{
	const size_t off = sizeof(struct virtio_net_ctrl_hdr);

	return iov_len(c->iov, c->nr_readable) == off + len &&
	       iov_read(c->iov, c->nr_readable, off, data, len) == len;
}

static uint8_t virtio_net_obey(struct virtio_net *n, const struct virtio_net_ctrl_hdr *h)
{
	uint8_t mac[ETH_ALEN], on;

	switch (h->class) {
	case VIRTIO_NET_CTRL_RX:
		/* The tap gives everything there is on the link; what is not wanted the guest drops. */
		return h->cmd <= VIRTIO_NET_CTRL_RX_ALLMULTI &&
				       virtio_net_ctrl_data(&n->chain, &on, sizeof(on))
			       ? VIRTIO_NET_OK
			       : VIRTIO_NET_ERR;
	case VIRTIO_NET_CTRL_MAC:
		if (h->cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
			return VIRTIO_NET_OK;
		if (h->cmd != VIRTIO_NET_CTRL_MAC_ADDR_SET || n->params.pin_mac ||
		    !virtio_net_ctrl_data(&n->chain, mac, sizeof(mac)))
			return VIRTIO_NET_ERR;
		memcpy(n->config.mac, mac, sizeof(mac));
		return VIRTIO_NET_OK;
	default:
		return VIRTIO_NET_ERR;
	}
}

static bool virtio_net_control(struct virtio_net *n, struct virtio_queue *q)
{
	const struct virtq_chain *c = &n->chain;
	bool more = true;

	for (unsigned int budget = q->vq.size; budget; budget--) {
		struct virtio_net_ctrl_hdr h;
		uint8_t ack;
		int r = virtio_queue_pop(q, &n->chain);

		if (!r && virtq_enable_kicks(&q->vq))
			continue;
		more = r > 0;
		if (r <= 0)
			break;
		if (iov_read(c->iov, c->nr_readable, 0, &h, sizeof(h)) != sizeof(h) ||
		    !c->nr_writable) {
			virtio_queue_fail(q, "a command has no header, or no room for its answer");
			return false;
		}
		ack = virtio_net_obey(n, &h);
		iov_write(c->iov + c->nr_readable, c->nr_writable, 0, &ack, sizeof(ack));
		virtq_push(&q->vq, c->head, sizeof(ack));
	}
	virtio_queue_notify(q);
	return more;
}

/* --- the device ---------------------------------------------------------------------------------- */

static bool virtio_net_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtio_net *n = virtio_net_of(dev);

	virtio_net_sync_offloads(n);
	switch (index) {
	case VIRTIO_NET_RX:
		return virtio_net_fill(n);
	case VIRTIO_NET_TX:
		return virtio_net_drain(n);
	default:
		return virtio_net_control(n, &dev->queues[index]);
	}
}

static void virtio_net_config_read(struct virtio_device *dev, uint32_t off, void *data,
				   uint32_t len)
{
	memcpy(data, (const uint8_t *)&virtio_net_of(dev)->config + off, len);
}

static void virtio_net_reset(struct virtio_device *dev)
{
	struct virtio_net *n = virtio_net_of(dev);

	/* A frame that waited was for the driver that is gone. */
	n->frame_len = 0;
	memcpy(n->config.mac, n->params.mac, sizeof(n->config.mac));
}

static void virtio_net_unplug(struct virtio_net *n)
{
	loop_watch_remove(n->watch);
	n->watch = NULL;
	cleanup_closep(&n->tap_fd);
	n->config.status = 0;
}

static int virtio_net_plug(struct virtio_net *n, struct err *err)
{
	int r;

	if (n->tap_fd < 0)
		return 0;
	r = io_set_nonblock(n->tap_fd, true);
	if (!r) {
		n->watch = loop_watch_add(n->loop, n->tap_fd, EPOLLIN | EPOLLOUT | EPOLLET,
					  virtio_net_on_tap, n);
		r = n->watch ? 0 : -errno;
	}
	if (r) {
		virtio_net_unplug(n);
		return err_set(err, r, "watch a tap");
	}
	n->r_ready = n->w_ready = true;
	n->tap_offloads = n->params.offloads;
	n->config.status = htole16(VIRTIO_NET_S_LINK_UP);
	virtio_net_sync_offloads(n);
	return 0;
}

static int virtio_net_start(struct virtio_device *dev, struct loop *loop, struct err *err)
{
	struct virtio_net *n = virtio_net_of(dev);

	n->loop = loop;
	return virtio_net_plug(n, err);
}

int virtio_net_set_tap(struct virtio_device *dev, int tap_fd, struct err *err)
{
	struct virtio_net *n = virtio_net_of(dev);
	int r;

	virtio_device_lock(dev);
	virtio_net_unplug(n);
	/* Without a tap nothing waits: what is sent is thrown away. */
	n->w_ready = true;
	n->frame_len = 0;
	n->tap_fd = tap_fd;
	r = virtio_net_plug(n, err);
	virtio_device_unlock(dev);
	virtio_device_config_changed(dev);
	virtio_device_kick(dev, VIRTIO_NET_RX);
	virtio_device_kick(dev, VIRTIO_NET_TX);
	return r;
}

void virtio_net_get_counts(struct virtio_device *dev, struct virtio_net_counts *ret)
{
	virtio_device_lock(dev);
	*ret = virtio_net_of(dev)->counts;
	virtio_device_unlock(dev);
}

static void virtio_net_free(struct virtio_device *dev)
{
	struct virtio_net *n = virtio_net_of(dev);

	virtio_net_unplug(n);
	virtio_device_done(dev);
	free(n);
}

static const struct virtio_device_ops virtio_net_ops = {
	.start = virtio_net_start,
	.config_read = virtio_net_config_read,
	.queue_kick = virtio_net_queue_kick,
	.reset = virtio_net_reset,
	.free = virtio_net_free,
};

static uint64_t virtio_net_features(const struct virtio_net_params *params)
{
	uint64_t f = 1ULL << VIRTIO_NET_F_MAC | 1ULL << VIRTIO_NET_F_STATUS |
		     1ULL << VIRTIO_NET_F_MRG_RXBUF | 1ULL << VIRTIO_NET_F_CTRL_VQ |
		     1ULL << VIRTIO_NET_F_CTRL_RX | 1ULL << VIRTIO_NET_F_CTRL_MAC_ADDR;

	if (params->mtu)
		f |= 1ULL << VIRTIO_NET_F_MTU;
	return f | virtio_net_offload_features(params->offloads);
}

int virtio_net_new(const struct virtio_net_params *params, struct virtio_device **ret,
		   struct err *err)
{
	const struct virtio_device_info info = {
		.name = "net",
		.id = VIRTIO_ID_NET,
		.features = virtio_net_features(params),
		.config_len = sizeof(struct virtio_net_config),
		.nr_queues = VIRTIO_NET_QUEUES,
		.queues = {{.size_max = VIRTIO_NET_QUEUE_SIZE},
			   {.size_max = VIRTIO_NET_QUEUE_SIZE},
			   {.size_max = VIRTIO_NET_CTRL_QUEUE_SIZE}},
	};
	cleanup_close int tap_fd = params->tap_fd;
	cleanup_free struct virtio_net *n = xcalloc(1, sizeof(*n));
	int r = virtio_device_init(&n->dev, &virtio_net_ops, &info, err);

	if (r)
		return r;
	n->params = *params;
	n->params.tap_fd = -1;
	n->tap_fd = take_fd(&tap_fd);
	n->w_ready = true;
	memcpy(n->config.mac, params->mac, sizeof(n->config.mac));
	n->config.mtu = htole16(params->mtu);
	*ret = &take_ptr(&n)->dev;
	return 0;
}
