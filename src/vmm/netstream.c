/* Frames between a stream and a device that wants a tap; see netstream.h. */
#include "netstream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "util.h"

/* What precedes a frame on the device's side: struct virtio_net_hdr_v1. */
#define NETSTREAM_TAP_HEADER 12u
#define NETSTREAM_LENGTH 4u
#define NETSTREAM_FRAME_MIN 14u
#define NETSTREAM_FRAME_MAX 65550u
#define NETSTREAM_ROOM (NETSTREAM_TAP_HEADER + NETSTREAM_FRAME_MAX)
/* Frames each way before others get their turn. */
#define NETSTREAM_ROUNDS 32

struct netstream {
	struct loop *loop;
	int stream, tap; /* owned; tap: our end of the pair */
	struct loop_watch *stream_watch, *tap_watch;
	/* From the stream: a length and its frame as far as they came. */
	size_t in_len;
	uint8_t in[NETSTREAM_LENGTH + NETSTREAM_FRAME_MAX];
	/* To the stream: a message of the device's with the length put into the end of its header. */
	size_t out_pos, out_len;
	uint8_t out[NETSTREAM_ROOM];
};

static void netstream_stop(struct netstream *n, const char *why)
{
	if (why)
		log_warn("vmm", "the network stream ended: %s", why);
	loop_watch_remove(n->stream_watch);
	loop_watch_remove(n->tap_watch);
	n->stream_watch = n->tap_watch = NULL;
	cleanup_closep(&n->stream);
}

/* Bytes of the frame that is coming, its length included; 0: not known yet, or wrong. */
static size_t netstream_wanted(const struct netstream *n)
{
	uint32_t len;

	if (n->in_len < NETSTREAM_LENGTH)
		return 0;
	memcpy(&len, n->in, sizeof(len));
	len = ntohl(len);
	return len >= NETSTREAM_FRAME_MIN && len <= NETSTREAM_FRAME_MAX ? NETSTREAM_LENGTH + len
									: 0;
}

/* 1 = a whole frame is there, 0 = not now, -1 = the stream is over. */
static int netstream_read(struct netstream *n)
{
	for (;;) {
		size_t wanted = netstream_wanted(n);
		ssize_t got;

		if (wanted && n->in_len == wanted)
			return 1;
		if (!wanted && n->in_len >= NETSTREAM_LENGTH) {
			netstream_stop(n, "a frame has an impossible length");
			return -1;
		}
		got = read(n->stream, n->in + n->in_len,
			   (wanted ? wanted : NETSTREAM_LENGTH) - n->in_len);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return 0;
		if (got <= 0) {
			netstream_stop(n, got ? strerror(errno) : NULL);
			return -1;
		}
		n->in_len += (size_t)got;
	}
}

/* False: the device's queue is full. What cannot be delivered for another reason is dropped. */
static bool netstream_deliver(struct netstream *n)
{
	uint8_t header[NETSTREAM_TAP_HEADER] = {0};
	struct iovec iov[] = {{header, sizeof(header)},
			      {n->in + NETSTREAM_LENGTH, n->in_len - NETSTREAM_LENGTH}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = ARRAY_SIZE(iov)};
	ssize_t r;

	do
		r = sendmsg(n->tap, &msg, MSG_NOSIGNAL);
	while (r < 0 && errno == EINTR);
	if (r < 0 && errno == EAGAIN)
		return false;
	n->in_len = 0;
	return true;
}

/* 1 = a frame waits in out, 0 = none now, -1 = the device is gone. */
static int netstream_take(struct netstream *n)
{
	uint32_t len;
	ssize_t got;

	if (n->out_pos < n->out_len)
		return 1;
	do
		got = recv(n->tap, n->out, sizeof(n->out), 0);
	while (got < 0 && errno == EINTR);
	if (got < 0 && errno == EAGAIN)
		return 0;
	if (got <= 0)
		return -1;
	n->out_pos = n->out_len = 0;
	/* The guest may send anything; what is no frame goes nowhere. */
	if ((size_t)got < NETSTREAM_TAP_HEADER + NETSTREAM_FRAME_MIN)
		return 1;
	len = htonl((uint32_t)((size_t)got - NETSTREAM_TAP_HEADER));
	n->out_pos = NETSTREAM_TAP_HEADER - NETSTREAM_LENGTH;
	n->out_len = (size_t)got;
	memcpy(n->out + n->out_pos, &len, sizeof(len));
	return 1;
}

/* False: the stream takes nothing now, or is over. */
static bool netstream_send(struct netstream *n)
{
	while (n->out_pos < n->out_len) {
		ssize_t put =
			send(n->stream, n->out + n->out_pos, n->out_len - n->out_pos, MSG_NOSIGNAL);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0 && errno == EAGAIN)
			return false;
		if (put <= 0) {
			netstream_stop(n, strerror(errno));
			return false;
		}
		n->out_pos += (size_t)put;
	}
	return true;
}

static void netstream_run(void *ctx, uint32_t events)
{
	struct netstream *n = ctx;
	bool in_waits = false, out_waits = false;

	for (int i = 0; i < NETSTREAM_ROUNDS && n->stream_watch; i++) {
		if (netstream_read(n) <= 0)
			break;
		in_waits = !netstream_deliver(n);
		if (in_waits)
			break;
	}
	for (int i = 0; i < NETSTREAM_ROUNDS && n->stream_watch; i++) {
		if (netstream_take(n) <= 0)
			break;
		out_waits = !netstream_send(n);
		if (out_waits)
			break;
	}
	if (!n->stream_watch)
		return;
	loop_watch_set(n->stream_watch, (in_waits ? 0 : EPOLLIN) | (out_waits ? EPOLLOUT : 0));
	loop_watch_set(n->tap_watch, (out_waits ? 0 : EPOLLIN) | (in_waits ? EPOLLOUT : 0));
}

static void netstream_freep(struct netstream **n)
{
	netstream_free(*n);
}

int netstream_new(struct loop *loop, int stream, struct netstream **ret, int *ret_fd,
		  struct err *err)
{
	cleanup(netstream_freep) struct netstream *n = xcalloc(1, sizeof(*n));
	cleanup_close int device = -1;
	int pair[2];

	n->loop = loop;
	n->stream = stream;
	n->tap = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return err_set(err, -errno, "make a network device's socket pair");
	n->tap = pair[0];
	device = pair[1];
	io_set_nonblock(stream, true);
	n->stream_watch = loop_watch_add(loop, stream, EPOLLIN, netstream_run, n);
	n->tap_watch = loop_watch_add(loop, n->tap, EPOLLIN, netstream_run, n);
	if (!n->stream_watch || !n->tap_watch)
		return err_set(err, -errno, "watch a network stream");
	*ret_fd = take_fd(&device);
	*ret = take_ptr(&n);
	return 0;
}

void netstream_free(struct netstream *n)
{
	if (!n)
		return;
	netstream_stop(n, NULL);
	cleanup_closep(&n->tap);
	free(n);
}
