/*
 * virtio-rng; see rng.h. Spec: virtio 1.2, 5.4. getrandom() never sleeps once the host is up, so the
 * loop's thread serves the queue. Bytes pass through a buffer of ours: the guest's memory is written
 * once, by a plain copy.
 */
#include "rng.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <sys/random.h>

#include "cleanup.h"
#include "iov.h"
#include "util.h"

#define VIRTIO_RNG_QUEUE_SIZE 16

struct virtio_rng {
	struct virtio_device dev;
	struct virtq_chain chain; /* of the call that runs */
};

static struct virtio_rng *virtio_rng_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtio_rng, dev);
}

/* Answers the chain just taken; the bytes written, or 0 when the guest gave no room. */
static uint32_t virtio_rng_serve(const struct virtq_chain *c)
{
	uint8_t bytes[VIRTIO_RNG_REQUEST_MAX];
	size_t want = MIN(iov_len(c->iov + c->nr_readable, c->nr_writable), sizeof(bytes));
	ssize_t n = getrandom(bytes, want, 0);

	if (n <= 0)
		return 0;
	return (uint32_t)iov_write(c->iov + c->nr_readable, c->nr_writable, 0, bytes, (size_t)n);
}

static bool virtio_rng_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtio_rng *rng = virtio_rng_of(dev);
	struct virtio_queue *q = &dev->queues[index];
	bool more = true;

	for (unsigned int budget = q->vq.size; budget; budget--) {
		int r = virtio_queue_pop(q, &rng->chain);
		uint32_t n;

		if (!r && virtq_enable_kicks(&q->vq))
			continue;
		if (r <= 0) {
			more = false;
			break;
		}
		n = virtio_rng_serve(&rng->chain);
		if (!n) {
			/* An answer without a byte would have the driver ask again for ever. */
			virtio_queue_fail(q, "a request has no room for random bytes");
			return false;
		}
		virtq_push(&q->vq, rng->chain.head, n);
	}
	virtio_queue_notify(q);
	return more;
}

static void virtio_rng_free(struct virtio_device *dev)
{
	virtio_device_done(dev);
	free(virtio_rng_of(dev));
}

static const struct virtio_device_ops virtio_rng_ops = {
	.queue_kick = virtio_rng_queue_kick,
	.free = virtio_rng_free,
};

int virtio_rng_new(struct virtio_device **ret, struct err *err)
{
	static const struct virtio_device_info info = {
		.name = "rng",
		.id = VIRTIO_ID_RNG,
		.nr_queues = 1,
		.queues = {{.size_max = VIRTIO_RNG_QUEUE_SIZE}},
	};
	cleanup_free struct virtio_rng *rng = xcalloc(1, sizeof(*rng));
	int r = virtio_device_init(&rng->dev, &virtio_rng_ops, &info, err);

	if (r)
		return r;
	*ret = &take_ptr(&rng)->dev;
	return 0;
}
