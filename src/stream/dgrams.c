/* Datagrams over a stream; see dgrams.h. */
#include "dgrams.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "util.h"

#define DGRAMS_LENGTH 2
#define DGRAMS_MAX (DGRAMS_LENGTH + 65535)

struct dgrams {
	struct dgrams_callbacks cb;
	void *ctx;
	int fd;
	struct loop_watch *watch;
	size_t in_len;				 /* of what has come and is no whole datagram */
	size_t out_off, out_len;		 /* of what waits to go: equal = nothing */
	uint8_t in[DGRAMS_MAX], out[DGRAMS_MAX]; /* untouched pages are nobody's */
};

static size_t dgrams_length(const uint8_t *head)
{
	return (size_t)head[0] << 8 | head[1];
}

/* Gives on what is complete, and keeps the rest. */
static void dgrams_parse(struct dgrams *d)
{
	size_t off = 0;

	while (d->in_len - off >= DGRAMS_LENGTH) {
		size_t len = dgrams_length(d->in + off);

		if (d->in_len - off - DGRAMS_LENGTH < len)
			break;
		d->cb.on_datagram(d->ctx, d->in + off + DGRAMS_LENGTH, len);
		off += DGRAMS_LENGTH + len;
	}
	d->in_len -= off;
	memmove(d->in, d->in + off, d->in_len);
}

/* The buffer has room for the longest datagram, so there is always some left. */
static bool dgrams_read(struct dgrams *d)
{
	ssize_t n = recv(d->fd, d->in + d->in_len, sizeof(d->in) - d->in_len, MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	d->in_len += (size_t)n;
	dgrams_parse(d);
	return n > 0;
}

static void dgrams_write(struct dgrams *d)
{
	while (d->out_off < d->out_len) {
		ssize_t n = send(d->fd, d->out + d->out_off, d->out_len - d->out_off,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		/* That it is over is told by reading. */
		if (n < 0 && errno != EINTR)
			break;
		d->out_off += n > 0 ? (size_t)n : 0;
	}
	loop_watch_set(d->watch, EPOLLIN | (d->out_off < d->out_len ? EPOLLOUT : 0));
}

static void dgrams_on_event(void *ctx, uint32_t events)
{
	struct dgrams *d = ctx;

	if (events & EPOLLOUT)
		dgrams_write(d);
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !dgrams_read(d)) {
		loop_watch_remove(take_ptr(&d->watch));
		d->cb.on_end(d->ctx);
	}
}

struct dgrams *dgrams_new(struct loop *loop, const struct dgrams_callbacks *cb, void *ctx,
			  int *ret_stream)
{
	struct dgrams *d;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return NULL;
	d = xmalloc(sizeof(*d));
	d->cb = *cb;
	d->ctx = ctx;
	d->fd = pair[0];
	d->in_len = d->out_off = d->out_len = 0;
	d->watch = loop_watch_add(loop, d->fd, EPOLLIN, dgrams_on_event, d);
	if (!d->watch) {
		close(pair[1]);
		dgrams_free(d);
		return NULL;
	}
	*ret_stream = pair[1];
	return d;
}

int dgrams_take(struct dgrams *d, int udp_fd)
{
	bool is_full = d->out_off < d->out_len;
	uint8_t none;
	ssize_t n = is_full ? recv(udp_fd, &none, sizeof(none), MSG_DONTWAIT)
			    : recv(udp_fd, d->out + DGRAMS_LENGTH, sizeof(d->out) - DGRAMS_LENGTH,
				   MSG_DONTWAIT);

	if (n < 0)
		return -errno;
	if (is_full || !d->watch)
		return 0;
	d->out[0] = (uint8_t)(n >> 8);
	d->out[1] = (uint8_t)n;
	d->out_off = 0;
	d->out_len = DGRAMS_LENGTH + (size_t)n;
	dgrams_write(d);
	return 0;
}

void dgrams_free(struct dgrams *d)
{
	if (!d)
		return;
	loop_watch_remove(d->watch);
	close(d->fd);
	free(d);
}
