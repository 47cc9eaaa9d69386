/*
 * virtio-vsock, between its files: vsock.c (queues, packets, who may connect), vsock_stream.c (one stream:
 * credit, packets, ends), vsock_fd.c (its descriptors and buffer) and vsock_save.c (streams of a machine that is
 * saved). Everything under dev->lock unless it says otherwise.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_vsock.h>

#include "list.h"
#include "vsock.h"

#define VSOCK_PACKET_MAX (64u << 10) /* payload of one packet, either way */
#define VSOCK_BUF_SIZE (256u << 10)  /* most that waits for one reader; power of two */
#define VSOCK_BUF_SMALL (32u << 10)  /* credit once half of VSOCK_BYTES_MAX is promised */
#define VSOCK_BUF_TINY (4u << 10)    /* credit once three quarters are */
#define VSOCK_SPARES_MAX 4	     /* empty buffers kept */
/* A peer's buffer counts for no more than this: sequence numbers must stay comparable. */
#define VSOCK_PEER_CREDIT_MAX (1u << 30)
#define VSOCK_LINGER_NS (2ull * 1000000000)
#define VSOCK_BUCKETS 256
#define VSOCK_REFUSALS_MAX 128

/* Packets that a stream has yet to send. */
#define VSOCK_WANT_REQUEST 0x01u
#define VSOCK_WANT_RESPONSE 0x02u
#define VSOCK_WANT_RST 0x04u
#define VSOCK_WANT_CREDIT_UPDATE 0x08u
#define VSOCK_WANT_SHUTDOWN 0x10u

/* In place of a descriptor: there will be one, when the stream is taken up. */
#define VSOCK_FD_LATER (-2)

#define VSOCK_SHUTDOWN_BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

enum vsock_state {
	VSOCK_ACCEPTING,  /* the guest asked, on_connect() has not answered */
	VSOCK_CONNECTING, /* we asked */
	VSOCK_OPEN,
	VSOCK_STATE_MAX
};

/*
 * Owned by struct vsock. `over` = both descriptors are done with; the owner is told from the loop, and
 * the struct stays until the guest has no use for it (`gone`) or the linger time is up.
 */
struct vsock_stream {
	struct list link;  /* in vsock.streams */
	struct list hash;  /* in a bucket while packets of the guest belong to it */
	struct list work;  /* in vsock.work while there may be something for the guest */
	struct list stage; /* in vsock.accepting, .finished or .lingering */
	struct vsock *v;
	enum vsock_state state;
	bool by_guest; /* the guest opened it */
	bool over, gone;
	bool parked; /* of a restored machine: nobody has taken it up yet; it is not over before */
	uint32_t host_port, guest_port;
	uint32_t want;
	int err;
	vsock_done_fn done;
	void *ctx;
	struct loop_timer timer; /* loop's thread */

	/* To the guest. Credit is what the peer's buffer has left for us (5.10.6.3). */
	int rfd; /* owned; -1 = this direction is over; VSOCK_FD_LATER */
	struct loop_watch *rwatch;
	bool r_ready; /* reading may give something: set by the edge, cleared by EAGAIN */
	bool credit_asked;
	uint32_t tx_cnt, peer_fwd_cnt, peer_buf_alloc;

	/* From the guest: what wfd does not take now waits in buf (a ring, NULL when empty). */
	int wfd;     /* owned; -1 = this direction is over; VSOCK_FD_LATER */
	bool one_fd; /* rfd and wfd were the same: a socket, rwatch serves both */
	struct loop_watch *wwatch;
	bool w_ready;
	uint8_t *buf;
	uint32_t buf_head, buf_len;
	uint32_t buf_alloc, rx_cnt, fwd_cnt, last_fwd_cnt;

	uint32_t shut_sent; /* VIRTIO_VSOCK_SHUTDOWN_*: what the guest was, or is to be, told */
	uint32_t shut_peer; /* what the guest said */
};

struct vsock_refusal {
	uint64_t src_cid;
	uint32_t src_port, dst_port;
	uint16_t type;
};

struct vsock {
	struct virtio_device dev;
	struct vsock_params params;
	struct loop *loop; /* borrowed */
	int wake_fd;	   /* eventfd: there is something in accepting or finished */
	struct loop_watch *wake_watch;
	bool paused; /* no answer of the guest's can come */
	unsigned int nr_streams, nr_by_guest;
	uint64_t promised; /* sum of buf_alloc */
	struct list buckets[VSOCK_BUCKETS];
	struct list streams; /* all of them */
	struct list work, accepting, finished, lingering;
	/* RSTs for packets that belong to no stream; more than fit are not answered. */
	struct vsock_refusal refusals[VSOCK_REFUSALS_MAX];
	unsigned int refusal_head, nr_refusals;
	uint8_t *spares[VSOCK_SPARES_MAX];
	unsigned int nr_spares;
	struct virtq_chain chain; /* of the call that runs */
	struct iovec slice[VIRTQ_SIZE_MAX];
};

/* --- vsock.c -------------------------------------------------------------------------------------- */

void vsock_wake(struct vsock *v);
/* Sends what there is to send while the guest has room for it. Loop's thread. */
void vsock_pump(struct vsock *v);

/* --- vsock_stream.c; loop's thread, but for vsock_stream_void() -------------------------------------- */

/* NULL when there are too many. Both ports are free. */
struct vsock_stream *vsock_stream_new(struct vsock *v, uint32_t host_port, uint32_t guest_port,
				      bool by_guest);
/* Closes and frees; done has been called. */
void vsock_stream_free(struct vsock_stream *s);
struct vsock_stream *vsock_stream_find(struct vsock *v, uint32_t host_port, uint32_t guest_port);
/* A packet of the guest for this stream; payload = chain iov from `off` on, h->len bytes. */
void vsock_stream_receive(struct vsock_stream *s, const struct virtio_vsock_hdr *h);
/*
 * Fills the next packet into v->chain (payload first, then the header) and *h; the bytes of payload, or
 * -EAGAIN when there is nothing to send after all.
 */
int vsock_stream_fill(struct vsock_stream *s, struct virtio_vsock_hdr *h);
void vsock_stream_want(struct vsock_stream *s, uint32_t what);
/* Cut off: the guest gets a RST, the owner gets err. */
void vsock_stream_abort(struct vsock_stream *s, int err);
/* The guest has forgotten the stream: no packet any more, the owner gets err. Any thread. */
void vsock_stream_void(struct vsock_stream *s, int err);
/* Both directions over? Then the end is near. */
void vsock_stream_check_end(struct vsock_stream *s);

/* --- vsock_save.c; loop's thread --------------------------------------------------------------------- */

int vsock_save(struct virtio_device *dev, uint8_t **ret, size_t *ret_len, struct err *err);
int vsock_load(struct virtio_device *dev, const uint8_t *state, size_t len, struct err *err);
/* The stream of a restored machine that waits to be taken up; NULL = none does. */
struct vsock_stream *vsock_find_parked(struct vsock *v, uint32_t host_port, uint32_t guest_port);
/* Takes over the descriptors. What has ended meanwhile, and what is not wanted any more, is told to both sides. */
void vsock_stream_take_up(struct vsock_stream *s, int rfd, int wfd);

/* --- vsock_fd.c; loop's thread --------------------------------------------------------------------- */

/* Takes over the descriptors, also on failure (the stream is then to be aborted). */
int vsock_stream_bind(struct vsock_stream *s, int rfd, int wfd);
/* Watches and closes what is left of the descriptors. */
void vsock_stream_release(struct vsock_stream *s);
/* rfd gives no more (err: why, 0 = its end), or nobody wants it: the guest is told. */
void vsock_stream_end_read(struct vsock_stream *s, int err);
/* wfd takes no more: err, or 0 = in order, the guest said it was all. */
void vsock_stream_end_write(struct vsock_stream *s, int err);
/* Empties the buffer into wfd as far as it goes, and ends that direction when the guest said it was all. */
void vsock_stream_flush(struct vsock_stream *s);
/* [off, off + len) of v->chain's readable buffers to wfd, or kept for it: the credit has room. */
void vsock_stream_deliver(struct vsock_stream *s, size_t off, uint32_t len);
