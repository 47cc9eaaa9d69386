/*
 * virtio-vsock (virtio 1.2, section 5.10) in user space: streams between guest programs (AF_VSOCK) and
 * pairs of descriptors on this side, as src/stream/mux.h has them on the other backend.
 *
 * A stream joins (rfd, wfd) to a guest connection: what is read from rfd comes out in the guest, what
 * the guest sends is written to wfd. Directions end separately: end of file on rfd is the guest's
 * end of file; the guest's shutdown(SHUT_WR) closes wfd once everything was written. A reader that
 * stalls stops its own stream only; what waits in memory is bounded per stream (the credit given) and
 * in sum (VSOCK_BYTES_MAX).
 *
 * Threads: everything here is called on the loop's thread, callbacks come from the loop and may call
 * anything here. The guest's reset of the device (another thread) ends all streams; their done
 * callbacks follow from the loop.
 *
 * The process ignores SIGPIPE. Descriptors may be pipes, FIFOs, sockets, terminals, regular files and
 * the like of /dev/null; they are made non-blocking. When the last reader of a pipe given as wfd goes,
 * that direction ends at once; a FIFO whose readers come and go must be opened O_RDWR.
 */
#pragma once

#include <stdint.h>

#include "virtio.h"

/* Hundreds of commands at once, with three streams each. */
#define VSOCK_STREAMS_MAX 2048
/* Bytes from the guest that may wait for their readers, all streams together. */
#define VSOCK_BYTES_MAX (32u << 20)
#define VSOCK_HOST_CID 2
/* Time counts while the VM is paused, too. */
/* Longer than a shim waits for a clone that does not answer. */
#define VSOCK_CONNECT_TIMEOUT_MS 30000

struct vsock_stream;

/*
 * The stream is over and both descriptors are closed. err 0: both directions ended in order; or
 * -errno why it was cut short: -ECONNREFUSED nobody listens in the guest; -ETIMEDOUT the guest did not
 * answer; -EPIPE the guest takes no more of what rfd had, or wfd has no reader; -ECONNRESET the guest
 * or its kernel cut it off (a reset of the device too); -EPROTO the guest broke the protocol;
 * -ECANCELED vsock_detach() or the end of the device; others as read and write gave them.
 */
typedef void (*vsock_done_fn)(void *ctx, int err);

/* What becomes of a guest's connection to a port of the host. */
struct vsock_accept {
	int rfd, wfd;	    /* taken over; -1 = that direction is over from the start */
	vsock_done_fn done; /* may be NULL */
	void *ctx;
};

struct vsock_params {
	uint64_t guest_cid; /* 3 or more */
	/*
	 * A guest program connects to host_port: 0 and *ret filled = accepted, negative = refused.
	 * NULL = the host accepts nothing. Called from the loop without a lock.
	 */
	int (*on_connect)(void *ctx, uint32_t host_port, uint32_t guest_port,
			  struct vsock_accept *ret);
	void *ctx;
	/*
	 * Of the streams of a machine that was saved, those from smaller ports of the host are over when it is restored:
	 * the guest finds out when it uses them.
	 */
	uint32_t kept_from_port;
	/* How long vsock_connect() waits for the answer of a guest that runs; 0 = VSOCK_CONNECT_TIMEOUT_MS. */
	uint32_t connect_timeout_ms;
};

/* Taken over by a transport. */
int vsock_new(const struct vsock_params *params, struct virtio_device **ret, struct err *err);

/*
 * Connects to guest_port from host_port (a port of the caller's choice; the pair must not be in use). In a machine that
 * was saved with a stream between the two, and restored, it goes on where it was: every byte under way comes out once.
 * rfd or wfd may be -1: that direction then is over from the start; rfd == wfd (a socket) is allowed:
 * it is shut down per direction and closed once. Both are taken over, also on failure. -EADDRINUSE,
 * -ENOSPC (VSOCK_STREAMS_MAX), -ENOTCONN (no driver in the guest, or the device broke). The handle in
 * *ret (may be NULL) is valid until done was called, which is never from inside this function.
 */
int vsock_connect(struct virtio_device *dev, uint32_t host_port, uint32_t guest_port, int rfd,
		  int wfd, vsock_done_fn done, void *ctx, struct vsock_stream **ret);
/* Cuts a stream off: closes its descriptors, tells the guest; done follows with -ECANCELED. */
void vsock_detach(struct vsock_stream *s);

/* Between the two nobody's time runs out; it begins anew then. Loop's thread. */
void vsock_set_paused(struct virtio_device *dev, bool paused);

/* Has the guest's driver come up (DRIVER_OK)? */
bool vsock_is_ready(struct virtio_device *dev);
