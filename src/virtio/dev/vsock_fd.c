/*
 * The descriptors of a vsock stream: watched, read to their end, written, buffered when they take no more,
 * closed by halves; see vsock_internal.h. Everything on the loop's thread, under dev->lock.
 */
#include <assert.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "iov.h"
#include "util.h"
#include "vsock_internal.h"

/* --- bound and closed ---------------------------------------------------------------------------- */

static void vsock_stream_drop_buf(struct vsock_stream *s)
{
	struct vsock *v = s->v;

	if (s->buf && v->nr_spares < VSOCK_SPARES_MAX)
		v->spares[v->nr_spares++] = s->buf;
	else
		free(s->buf);
	s->buf = NULL;
	s->buf_len = 0;
}

static void vsock_stream_on_fd(void *ctx, uint32_t events);
static void vsock_stream_on_out(void *ctx, uint32_t events);

/* What epoll does not take (EPERM: regular files, /dev/null) is always ready: no watch. */
static int vsock_stream_watch(struct vsock_stream *s, int fd, uint32_t events, loop_watch_fn fn,
			      struct loop_watch **ret)
{
	int r = io_set_nonblock(fd, true);

	if (r)
		return r;
	*ret = loop_watch_add(s->v->loop, fd, events | EPOLLET, fn, s);
	return *ret || errno == EPERM ? 0 : -errno;
}

int vsock_stream_bind(struct vsock_stream *s, int rfd, int wfd)
{
	int r = 0;

	s->rfd = rfd;
	s->wfd = wfd;
	s->one_fd = rfd == wfd;
	s->r_ready = s->w_ready = true;
	if (rfd >= 0)
		r = vsock_stream_watch(s, rfd, EPOLLIN | (s->one_fd ? EPOLLOUT : 0),
				       vsock_stream_on_fd, &s->rwatch);
	else
		s->shut_sent |= VIRTIO_VSOCK_SHUTDOWN_SEND;
	if (!r && wfd >= 0 && !s->one_fd)
		r = vsock_stream_watch(s, wfd, EPOLLOUT, vsock_stream_on_out, &s->wwatch);
	if (wfd < 0)
		s->shut_sent |= VIRTIO_VSOCK_SHUTDOWN_RCV;
	return r;
}

/* Ends one direction's use of its descriptor: a socket for both is shut down by halves. */
static void vsock_stream_close_read(struct vsock_stream *s)
{
	if (s->rfd < 0) {
		s->rfd = -1;
		return;
	}
	if (s->one_fd && s->wfd >= 0) {
		shutdown(s->rfd, SHUT_RD);
	} else {
		loop_watch_remove(s->rwatch);
		s->rwatch = NULL;
		close(s->rfd);
	}
	s->rfd = -1;
}

static void vsock_stream_close_write(struct vsock_stream *s)
{
	vsock_stream_drop_buf(s);
	if (s->wfd < 0) {
		s->wfd = -1;
		return;
	}
	if (s->one_fd && s->rfd >= 0) {
		shutdown(s->wfd, SHUT_WR);
	} else {
		struct loop_watch **w = s->one_fd ? &s->rwatch : &s->wwatch;

		loop_watch_remove(*w);
		*w = NULL;
		close(s->wfd);
	}
	s->wfd = -1;
}

void vsock_stream_release(struct vsock_stream *s)
{
	vsock_stream_close_read(s);
	vsock_stream_close_write(s);
	loop_timer_cancel(&s->timer);
}

void vsock_stream_end_read(struct vsock_stream *s, int err)
{
	if (s->rfd == -1)
		return;
	vsock_stream_close_read(s);
	if (!s->err)
		s->err = err;
	s->shut_sent |= VIRTIO_VSOCK_SHUTDOWN_SEND;
	if (s->state == VSOCK_OPEN && !s->over)
		vsock_stream_want(s, VSOCK_WANT_SHUTDOWN);
	vsock_stream_check_end(s);
}

void vsock_stream_end_write(struct vsock_stream *s, int err)
{
	if (s->wfd == -1)
		return;
	/* What waited for it counts as consumed. */
	s->fwd_cnt += s->buf_len;
	vsock_stream_close_write(s);
	if (!s->err)
		s->err = err;
	if (err) {
		s->shut_sent |= VIRTIO_VSOCK_SHUTDOWN_RCV;
		if (s->state == VSOCK_OPEN && !s->over)
			vsock_stream_want(s, VSOCK_WANT_SHUTDOWN);
	}
	vsock_stream_check_end(s);
}

/* --- what comes from the guest ------------------------------------------------------------------- */

/* Tells the guest of room once half of the buffer was consumed since it last heard. */
static void vsock_stream_consumed(struct vsock_stream *s, uint32_t n)
{
	s->fwd_cnt += n;
	if (s->fwd_cnt - s->last_fwd_cnt >= s->buf_alloc / 2)
		vsock_stream_want(s, VSOCK_WANT_CREDIT_UPDATE);
}

/* Writes what wfd takes of the vectors; the bytes written, or -errno. */
static ssize_t vsock_stream_write(struct vsock_stream *s, const struct iovec *iov, unsigned int nr)
{
	ssize_t n;

	do
		n = writev(s->wfd, iov, (int)nr);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno != EAGAIN)
		return -errno;
	s->w_ready = false;
	return 0;
}

void vsock_stream_flush(struct vsock_stream *s)
{
	while (s->wfd >= 0 && s->buf_len && s->w_ready) {
		uint32_t first = MIN(s->buf_len, VSOCK_BUF_SIZE - s->buf_head);
		struct iovec iov[2] = {
			{.iov_base = s->buf + s->buf_head, .iov_len = first},
			{.iov_base = s->buf, .iov_len = s->buf_len - first},
		};
		ssize_t n = vsock_stream_write(s, iov, 2);

		if (n < 0) {
			vsock_stream_end_write(s, (int)n);
			return;
		}
		s->buf_head = (s->buf_head + (uint32_t)n) % VSOCK_BUF_SIZE;
		s->buf_len -= (uint32_t)n;
		vsock_stream_consumed(s, (uint32_t)n);
	}
	if (!s->buf_len)
		vsock_stream_drop_buf(s);
	if (!s->buf_len && (s->shut_peer & VIRTIO_VSOCK_SHUTDOWN_SEND))
		vsock_stream_end_write(s, 0);
}

/* Keeps [off, off + len) of the vectors; the caller has checked the credit, so there is room. */
static void vsock_stream_keep(struct vsock_stream *s, const struct iovec *iov, unsigned int nr,
			      size_t off, uint32_t len)
{
	struct vsock *v = s->v;
	uint32_t at, first;

	if (!s->buf) {
		s->buf = v->nr_spares ? v->spares[--v->nr_spares] : xmalloc(VSOCK_BUF_SIZE);
		s->buf_head = 0;
	}
	at = (s->buf_head + s->buf_len) % VSOCK_BUF_SIZE;
	first = MIN(len, VSOCK_BUF_SIZE - at);
	iov_read(iov, nr, off, s->buf + at, first);
	iov_read(iov, nr, off + first, s->buf, len - first);
	s->buf_len += len;
}

void vsock_stream_deliver(struct vsock_stream *s, size_t off, uint32_t len)
{
	struct vsock *v = s->v;
	const struct iovec *iov = v->chain.iov;

	while (len && s->wfd >= 0 && !s->buf_len && s->w_ready) {
		unsigned int nr = iov_slice(iov, v->chain.nr_readable, off, len, v->slice,
					    ARRAY_SIZE(v->slice));
		ssize_t n = vsock_stream_write(s, v->slice, nr);

		if (n < 0) {
			vsock_stream_end_write(s, (int)n);
			break;
		}
		vsock_stream_consumed(s, (uint32_t)n);
		off += (size_t)n;
		len -= (uint32_t)n;
	}
	if (s->wfd == -1)
		vsock_stream_consumed(s, len);
	else if (len)
		vsock_stream_keep(s, iov, v->chain.nr_readable, off, len);
}

/* --- what the descriptors say -------------------------------------------------------------------- */

static void vsock_stream_on_out(void *ctx, uint32_t events)
{
	struct vsock_stream *s = ctx;
	struct vsock *v = s->v;

	virtio_device_lock(&v->dev);
	if (!s->over && s->wfd >= 0) {
		s->w_ready = true;
		/* The last reader went: the next write would say so, but none may come. */
		if (events & EPOLLERR)
			vsock_stream_end_write(s, -EPIPE);
		else
			vsock_stream_flush(s);
		vsock_pump(v);
	}
	virtio_device_unlock(&v->dev);
}

static void vsock_stream_on_fd(void *ctx, uint32_t events)
{
	struct vsock_stream *s = ctx;
	struct vsock *v = s->v;

	virtio_device_lock(&v->dev);
	if (!s->over && s->rfd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		s->r_ready = true;
		if (s->state == VSOCK_OPEN)
			vsock_stream_want(s, 0);
		vsock_pump(v);
	}
	if (!s->over && s->one_fd && s->wfd >= 0 && events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		s->w_ready = true;
		if (events & EPOLLHUP)
			vsock_stream_end_write(s, -EPIPE);
		else
			vsock_stream_flush(s);
		vsock_pump(v);
	}
	virtio_device_unlock(&v->dev);
}
