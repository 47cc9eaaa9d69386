/*
 * virtio-console; see console.h. Spec: virtio 1.2, 5.3.
 *
 * All on the loop's thread under dev->lock. The descriptors are watched by edge, once; `out_ready` and
 * `in_ready` keep what the edge said until EAGAIN. Nothing here is of the guest's size: output passes
 * through the ring or is lost, input is read straight into the guest's buffers.
 */
#include "console.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "iov.h"
#include "util.h"

enum { VIRTIO_CONSOLE_RX, VIRTIO_CONSOLE_TX, VIRTIO_CONSOLE_QUEUES };

#define VIRTIO_CONSOLE_QUEUE_SIZE 64
/* Room kept for the line that tells of a loss. */
#define VIRTIO_CONSOLE_NOTE_MAX 96

struct virtio_console {
	struct virtio_device dev;
	int out_fd, in_fd; /* owned, -1 = none */
	struct loop_watch *out_watch, *in_watch;
	bool out_ready, in_ready;
	uint64_t nr_lost;   /* in all */
	uint64_t nr_untold; /* since the last note */
	size_t buf_head, buf_len;
	uint8_t buf[VIRTIO_CONSOLE_BUF_SIZE];
	struct virtq_chain chain; /* of the call that runs */
};

static struct virtio_console *virtio_console_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtio_console, dev);
}

/* --- output -------------------------------------------------------------------------------------- */

static void virtio_console_close_out(struct virtio_console *c)
{
	loop_watch_remove(c->out_watch);
	c->out_watch = NULL;
	cleanup_closep(&c->out_fd);
	c->buf_len = 0;
}

static void virtio_console_flush(struct virtio_console *c)
{
	while (c->out_fd >= 0 && c->out_ready && c->buf_len) {
		size_t first = MIN(c->buf_len, sizeof(c->buf) - c->buf_head);
		const struct iovec iov[2] = {
			{.iov_base = c->buf + c->buf_head, .iov_len = first},
			{.iov_base = c->buf, .iov_len = c->buf_len - first},
		};
		ssize_t n = writev(c->out_fd, iov, 2);

		if (n >= 0) {
			c->buf_head = (c->buf_head + (size_t)n) % sizeof(c->buf);
			c->buf_len -= (size_t)n;
		} else if (errno == EAGAIN) {
			c->out_ready = false;
		} else if (errno != EINTR) {
			/* The reader is gone for good. */
			virtio_console_close_out(c);
		}
	}
}

static void virtio_console_put(struct virtio_console *c, const struct iovec *iov, unsigned int nr,
			       size_t off, size_t len)
{
	size_t at = (c->buf_head + c->buf_len) % sizeof(c->buf);
	size_t first = MIN(len, sizeof(c->buf) - at);

	iov_read(iov, nr, off, c->buf + at, first);
	iov_read(iov, nr, off + first, c->buf, len - first);
	c->buf_len += len;
}

static size_t virtio_console_room(const struct virtio_console *c)
{
	const size_t most = sizeof(c->buf) - VIRTIO_CONSOLE_NOTE_MAX;

	return most - MIN(c->buf_len, most);
}

/* Where output was lost, and now there is room again. */
static void virtio_console_note_loss(struct virtio_console *c)
{
	char text[VIRTIO_CONSOLE_NOTE_MAX];
	struct iovec iov = {.iov_base = text};

	if (!c->nr_untold || !virtio_console_room(c))
		return;
	iov.iov_len = (size_t)snprintf(text, sizeof(text),
				       "\n[harpoon-vmm: %llu bytes of console output lost]\n",
				       (unsigned long long)c->nr_untold);
	c->nr_untold = 0;
	virtio_console_put(c, &iov, 1, 0, iov.iov_len);
}

/* One request of any size: as much as passes through the ring. */
static void virtio_console_write(struct virtio_console *c)
{
	size_t len = iov_len(c->chain.iov, c->chain.nr_readable), off = 0;

	while (off < len && c->out_fd >= 0) {
		size_t n;

		virtio_console_note_loss(c);
		n = MIN(len - off, virtio_console_room(c));
		if (!n)
			break;
		virtio_console_put(c, c->chain.iov, c->chain.nr_readable, off, n);
		off += n;
		virtio_console_flush(c);
	}
	if (c->out_fd < 0)
		return;
	c->nr_lost += len - off;
	c->nr_untold += len - off;
}

static bool virtio_console_drain(struct virtio_console *c, struct virtio_queue *tx)
{
	bool more = true;

	virtq_disable_kicks(&tx->vq);
	for (unsigned int budget = tx->vq.size; budget; budget--) {
		int r = virtio_queue_pop(tx, &c->chain);

		if (!r && virtq_enable_kicks(&tx->vq))
			continue;
		if (r <= 0) {
			more = false;
			break;
		}
		virtio_console_write(c);
		virtq_push(&tx->vq, c->chain.head, 0);
	}
	virtio_queue_notify(tx);
	return more;
}

static void virtio_console_on_out(void *ctx, uint32_t events)
{
	struct virtio_console *c = ctx;

	virtio_device_lock(&c->dev);
	c->out_ready = true;
	if (events & EPOLLERR)
		virtio_console_close_out(c);
	virtio_console_flush(c);
	virtio_device_unlock(&c->dev);
}

/* --- input --------------------------------------------------------------------------------------- */

static void virtio_console_close_in(struct virtio_console *c)
{
	loop_watch_remove(c->in_watch);
	c->in_watch = NULL;
	cleanup_closep(&c->in_fd);
}

/* Reads into the chain just taken; the bytes, or 0 when there are none now. */
static size_t virtio_console_read(struct virtio_console *c)
{
	ssize_t n;

	do
		n = readv(c->in_fd, c->chain.iov + c->chain.nr_readable, c->chain.nr_writable);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return (size_t)n;
	if (n < 0 && errno == EAGAIN)
		c->in_ready = false;
	else
		virtio_console_close_in(c);
	return 0;
}

/* Bounded by the guest's buffers; the queue's size is the budget of one call. */
static bool virtio_console_fill(struct virtio_console *c, struct virtio_queue *rx)
{
	unsigned int budget = rx->vq.size;
	bool any = false;

	while (rx->ready && c->in_fd >= 0 && c->in_ready && budget) {
		int r = virtio_queue_pop(rx, &c->chain);
		size_t n;

		budget--;
		if (!r && virtq_enable_kicks(&rx->vq))
			continue;
		if (r <= 0)
			break;
		if (!c->chain.nr_writable) {
			virtio_queue_fail(rx, "an input buffer cannot be written");
			break;
		}
		n = virtio_console_read(c);
		if (!n) {
			virtq_unpop(&rx->vq, c->chain.head);
			break;
		}
		virtq_push(&rx->vq, c->chain.head, (uint32_t)n);
		any = true;
	}
	if (any)
		virtio_queue_notify(rx);
	return !budget;
}

static void virtio_console_on_in(void *ctx, uint32_t events)
{
	struct virtio_console *c = ctx;

	virtio_device_lock(&c->dev);
	c->in_ready = true;
	if (virtio_console_fill(c, &c->dev.queues[VIRTIO_CONSOLE_RX]))
		virtio_device_kick(&c->dev, VIRTIO_CONSOLE_RX);
	virtio_device_unlock(&c->dev);
}

/* --- the device ---------------------------------------------------------------------------------- */

static bool virtio_console_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtio_console *c = virtio_console_of(dev);

	return index == VIRTIO_CONSOLE_TX ? virtio_console_drain(c, &dev->queues[index])
					  : virtio_console_fill(c, &dev->queues[index]);
}

/* What epoll does not take (EPERM: regular files, /dev/null) is always ready. */
static int virtio_console_watch(struct loop *loop, int fd, uint32_t events, loop_watch_fn fn,
				struct virtio_console *c, struct loop_watch **ret)
{
	if (fd < 0)
		return 0;
	*ret = loop_watch_add(loop, fd, events | EPOLLET, fn, c);
	return *ret || errno == EPERM ? 0 : -errno;
}

static int virtio_console_start(struct virtio_device *dev, struct loop *loop, struct err *err)
{
	struct virtio_console *c = virtio_console_of(dev);
	int r;

	r = virtio_console_watch(loop, c->out_fd, EPOLLOUT, virtio_console_on_out, c,
				 &c->out_watch);
	if (!r)
		r = virtio_console_watch(loop, c->in_fd, EPOLLIN, virtio_console_on_in, c,
					 &c->in_watch);
	return r ? err_set(err, r, "watch the console's descriptors") : 0;
}

static void virtio_console_free(struct virtio_device *dev)
{
	struct virtio_console *c = virtio_console_of(dev);

	virtio_console_flush(c);
	virtio_console_close_out(c);
	virtio_console_close_in(c);
	virtio_device_done(dev);
	free(c);
}

static const struct virtio_device_ops virtio_console_ops = {
	.start = virtio_console_start,
	.queue_kick = virtio_console_queue_kick,
	.free = virtio_console_free,
};

uint64_t virtio_console_nr_lost(struct virtio_device *dev)
{
	uint64_t n;

	virtio_device_lock(dev);
	n = virtio_console_of(dev)->nr_lost;
	virtio_device_unlock(dev);
	return n;
}

int virtio_console_new(const struct virtio_console_params *params, struct virtio_device **ret,
		       struct err *err)
{
	static const struct virtio_device_info info = {
		.name = "console",
		.id = VIRTIO_ID_CONSOLE,
		.nr_queues = VIRTIO_CONSOLE_QUEUES,
		.queues = {{.size_max = VIRTIO_CONSOLE_QUEUE_SIZE},
			   {.size_max = VIRTIO_CONSOLE_QUEUE_SIZE}},
	};
	cleanup_close int out_fd = params->out_fd, in_fd = params->in_fd;
	cleanup_free struct virtio_console *c = xcalloc(1, sizeof(*c));
	int r = 0;

	if (out_fd >= 0)
		r = io_set_nonblock(out_fd, true);
	if (!r && in_fd >= 0)
		r = io_set_nonblock(in_fd, true);
	if (r)
		return err_set(err, r, "make the console's descriptors non-blocking");
	r = virtio_device_init(&c->dev, &virtio_console_ops, &info, err);
	if (r)
		return r;
	c->out_fd = take_fd(&out_fd);
	c->in_fd = take_fd(&in_fd);
	c->out_ready = c->in_ready = true;
	*ret = &take_ptr(&c)->dev;
	return 0;
}
