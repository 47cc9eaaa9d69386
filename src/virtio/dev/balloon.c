/*
 * virtio-balloon; see balloon.h. Spec: virtio 1.2, 5.5.6.
 *
 * Page numbers come in readable buffers and are judged one by one; a run of neighbours becomes one
 * madvise(). Reported pages come as the buffers of a chain, which virtq.c has checked already; of each
 * only whole host pages are given back. The host's page may be larger than the guest's (then nothing
 * smaller than it is freed), so everything is cut to whole pages of ours.
 */
#include "balloon.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "iov.h"
#include "log.h"
#include "util.h"

/* The reporting queue follows directly, as the queues between belong to features not offered. */
enum {
	VIRTIO_BALLOON_INFLATE,
	VIRTIO_BALLOON_DEFLATE,
	VIRTIO_BALLOON_REPORTING,
	VIRTIO_BALLOON_QUEUES
};

#define VIRTIO_BALLOON_QUEUE_SIZE 128
/* Page numbers in one request (Linux: 256). */
#define VIRTIO_BALLOON_PFNS_MAX 1024
/* Requests until others have their turn. */
#define VIRTIO_BALLOON_BUDGET 16

struct virtio_balloon {
	struct virtio_device dev;
	struct virtio_balloon_params params;
	uintptr_t page; /* the host's */
	struct virtio_balloon_counts counts;
	struct virtq_chain chain; /* of the call that runs */
	uint32_t pfns[VIRTIO_BALLOON_PFNS_MAX];
};

static struct virtio_balloon *virtio_balloon_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtio_balloon, dev);
}

/* Gives whole pages of [p, p + len) back to the host; the bytes. */
static size_t virtio_balloon_release(const struct virtio_balloon *b, void *p, size_t len)
{
	uintptr_t from = ((uintptr_t)p + b->page - 1) & ~(b->page - 1);
	uintptr_t to = ((uintptr_t)p + len) & ~(b->page - 1);

	if (from >= to)
		return 0;
	/* A refusal costs memory, nothing else. */
	if (madvise((uint8_t *)p + (from - (uintptr_t)p), to - from,
		    b->params.shared_memory ? MADV_REMOVE : MADV_DONTNEED)) {
		log_dbg("virtio", "balloon: the host keeps %zu bytes: %m", (size_t)(to - from));
		return 0;
	}
	return to - from;
}

/* --- inflate and deflate ------------------------------------------------------------------------- */

/* Copies the page numbers out of the chain; their number, or a negative errno = the queue is broken. */
static int virtio_balloon_read_pfns(struct virtio_balloon *b, struct virtio_queue *q)
{
	const struct virtq_chain *c = &b->chain;
	size_t len = iov_len(c->iov, c->nr_readable);

	if (len % sizeof(b->pfns[0]) || len > sizeof(b->pfns)) {
		virtio_queue_fail(q, "a list of pages is cut short or too long");
		return -EPROTO;
	}
	iov_read(c->iov, c->nr_readable, 0, b->pfns, len);
	return (int)(len / sizeof(b->pfns[0]));
}

static int virtio_balloon_inflate(struct virtio_balloon *b, struct virtio_queue *q)
{
	int nr = virtio_balloon_read_pfns(b, q);
	int run;

	for (int i = 0; i < nr; i += run) {
		uint32_t first = le32toh(b->pfns[i]);
		uint64_t len;
		void *p;

		for (run = 1; i + run < nr && le32toh(b->pfns[i + run]) == first + (uint32_t)run;)
			run++;
		len = (uint64_t)run * VIRTIO_BALLOON_PAGE;
		p = guest_mem_ptr(b->dev.mem, (gpa_t){(uint64_t)first * VIRTIO_BALLOON_PAGE}, len);
		if (!p) {
			virtio_queue_fail(q, "a page for the balloon lies outside guest memory");
			return -EPROTO;
		}
		virtio_balloon_release(b, p, len);
		b->counts.inflated += (uint64_t)run;
	}
	return nr < 0 ? nr : 0;
}

/* Free page reporting: the buffers themselves are the pages. */
static int virtio_balloon_report(struct virtio_balloon *b)
{
	const struct iovec *iov = b->chain.iov + b->chain.nr_readable;

	for (unsigned int i = 0; i < b->chain.nr_writable; i++)
		b->counts.reported += virtio_balloon_release(b, iov[i].iov_base, iov[i].iov_len);
	return 0;
}

static int virtio_balloon_serve(struct virtio_balloon *b, struct virtio_queue *q)
{
	switch (q->index) {
	case VIRTIO_BALLOON_INFLATE:
		return virtio_balloon_inflate(b, q);
	case VIRTIO_BALLOON_DEFLATE:
		/* Pages come back by being touched. */
		return MIN(virtio_balloon_read_pfns(b, q), 0);
	default:
		return virtio_balloon_report(b);
	}
}

static bool virtio_balloon_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtio_balloon *b = virtio_balloon_of(dev);
	struct virtio_queue *q = &dev->queues[index];
	bool more = true;

	for (unsigned int budget = VIRTIO_BALLOON_BUDGET; budget; budget--) {
		int r = virtio_queue_pop(q, &b->chain);

		if (!r && virtq_enable_kicks(&q->vq))
			continue;
		more = r > 0;
		if (r <= 0)
			break;
		if (virtio_balloon_serve(b, q))
			return false;
		virtq_push(&q->vq, b->chain.head, 0);
	}
	virtio_queue_notify(q);
	return more;
}

/* --- the device ---------------------------------------------------------------------------------- */

static void virtio_balloon_config_read(struct virtio_device *dev, uint32_t off, void *data,
				       uint32_t len)
{
	const struct virtio_balloon *b = virtio_balloon_of(dev);
	const struct virtio_balloon_config config = {
		.num_pages = htole32(b->counts.target_pages),
		.actual = htole32(b->counts.actual_pages),
	};

	memcpy(data, (const uint8_t *)&config + off, len);
}

static void virtio_balloon_config_write(struct virtio_device *dev, uint32_t off, const void *data,
					uint32_t len)
{
	uint32_t actual;

	if (off != offsetof(struct virtio_balloon_config, actual) || len != sizeof(actual))
		return;
	memcpy(&actual, data, sizeof(actual));
	virtio_balloon_of(dev)->counts.actual_pages = le32toh(actual);
}

static void virtio_balloon_reset(struct virtio_device *dev)
{
	/* The next driver begins with an empty balloon. */
	virtio_balloon_of(dev)->counts.actual_pages = 0;
}

static void virtio_balloon_free(struct virtio_device *dev)
{
	virtio_device_done(dev);
	free(virtio_balloon_of(dev));
}

static const struct virtio_device_ops virtio_balloon_ops = {
	.config_read = virtio_balloon_config_read,
	.config_write = virtio_balloon_config_write,
	.queue_kick = virtio_balloon_queue_kick,
	.reset = virtio_balloon_reset,
	.free = virtio_balloon_free,
};

void virtio_balloon_set_target(struct virtio_device *dev, uint32_t pages)
{
	virtio_device_lock(dev);
	virtio_balloon_of(dev)->counts.target_pages = pages;
	virtio_device_unlock(dev);
	virtio_device_config_changed(dev);
}

void virtio_balloon_get_counts(struct virtio_device *dev, struct virtio_balloon_counts *ret)
{
	virtio_device_lock(dev);
	*ret = virtio_balloon_of(dev)->counts;
	virtio_device_unlock(dev);
}

int virtio_balloon_new(const struct virtio_balloon_params *params, struct virtio_device **ret,
		       struct err *err)
{
	static const struct virtio_device_info info = {
		.name = "balloon",
		.id = VIRTIO_ID_BALLOON,
		.features = 1ULL << VIRTIO_BALLOON_F_DEFLATE_ON_OOM |
			    1ULL << VIRTIO_BALLOON_F_REPORTING,
		.config_len = sizeof(struct virtio_balloon_config),
		.nr_queues = VIRTIO_BALLOON_QUEUES,
		.queues = {{.size_max = VIRTIO_BALLOON_QUEUE_SIZE},
			   {.size_max = VIRTIO_BALLOON_QUEUE_SIZE},
			   {.size_max = VIRTIO_BALLOON_QUEUE_SIZE}},
	};
	cleanup_free struct virtio_balloon *b = xcalloc(1, sizeof(*b));
	int r = virtio_device_init(&b->dev, &virtio_balloon_ops, &info, err);

	if (r)
		return r;
	b->params = *params;
	b->page = (uintptr_t)sysconf(_SC_PAGESIZE);
	*ret = &take_ptr(&b)->dev;
	return 0;
}
