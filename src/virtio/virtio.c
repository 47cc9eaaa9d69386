/*
 * Between devices and transports; see virtio.h for threads, locks and the life of a device.
 *
 * A queue that is not blocking: its kick eventfd is watched by the loop, queue_kick() runs under
 * dev->lock. A blocking queue: its workers sleep on one epoll, where the kick descriptor is watched by
 * edge, so that each kick wakes one of them and nobody reads it; `run` says whether they may serve,
 * `nr_busy` how many do. Stopping clears run and waits until none does; a kick that comes meanwhile wakes a
 * worker for nothing, which is why starting kicks once.
 */
#include "virtio.h"

#include <assert.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "util.h"

#define VIRTIO_RING_FEATURES \
	(1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_RING_F_EVENT_IDX | \
	 1ULL << VIRTIO_RING_F_INDIRECT_DESC)

/* What a worker thread needs to begin; env outlives the thread. */
struct virtio_worker_start {
	struct virtio_queue *q;
	const struct virtio_env *env;
};

static void virtio_queue_wake(struct virtio_queue *q)
{
	const uint64_t one = 1;

	/* Cannot fail for want of room: nobody adds up to 2^64 kicks. */
	if (write(q->kick_fd, &one, sizeof(one)) < 0)
		log_dbg("virtio", "%s: a kick was lost: %m", q->dev->info.name);
}

static void virtio_queue_close(struct virtio_queue *q)
{
	loop_watch_remove(q->watch);
	cleanup_closep(&q->kick_fd);
	cleanup_closep(&q->quit_fd);
	cleanup_closep(&q->epoll_fd);
	pthread_mutex_destroy(&q->lock);
	pthread_cond_destroy(&q->idle);
}

static int virtio_queue_open_events(struct virtio_queue *q)
{
	struct epoll_event kick = {.events = EPOLLIN | EPOLLET};
	struct epoll_event quit = {.events = EPOLLIN};

	q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->kick_fd < 0)
		return -errno;
	if (!q->blocking)
		return 0;
	q->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (q->quit_fd < 0 || q->epoll_fd < 0 ||
	    epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, q->kick_fd, &kick) < 0 ||
	    epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, q->quit_fd, &quit) < 0)
		return -errno;
	return 0;
}

static int virtio_queue_open(struct virtio_queue *q, struct virtio_device *dev, unsigned int index,
			     const struct virtio_queue_spec *spec)
{
	int r;

	assert(spec->size_max && spec->size_max <= VIRTQ_SIZE_MAX);
	assert(spec->nr_workers <= VIRTIO_WORKERS_MAX);
	*q = (struct virtio_queue){
		.dev = dev,
		.index = index,
		.size_max = spec->size_max,
		.blocking = spec->blocking,
		.nr_workers = spec->blocking ? MAX(spec->nr_workers, 1u) : 0,
		.kick_fd = -1,
		.quit_fd = -1,
		.epoll_fd = -1,
	};
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->idle, NULL);
	r = virtio_queue_open_events(q);
	if (r)
		virtio_queue_close(q);
	return r;
}

int virtio_device_init(struct virtio_device *dev, const struct virtio_device_ops *ops,
		       const struct virtio_device_info *info, struct err *err)
{
	assert(info->nr_queues <= VIRTIO_QUEUES_MAX);
	for (unsigned int i = 0; i < info->nr_queues; i++) {
		int r = virtio_queue_open(&dev->queues[i], dev, i, &info->queues[i]);

		if (!r)
			continue;
		while (i--)
			virtio_queue_close(&dev->queues[i]);
		return err_set(err, r, "make an event descriptor for %s", info->name);
	}
	dev->ops = ops;
	dev->info = *info;
	pthread_mutex_init(&dev->lock, NULL);
	pthread_mutex_init(&dev->fault_lock, NULL);
	return 0;
}

void virtio_device_done(struct virtio_device *dev)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++)
		virtio_queue_close(&dev->queues[i]);
	pthread_mutex_destroy(&dev->lock);
	pthread_mutex_destroy(&dev->fault_lock);
}

void virtio_device_lock(struct virtio_device *dev)
{
	pthread_mutex_lock(&dev->lock);
}

void virtio_device_unlock(struct virtio_device *dev)
{
	pthread_mutex_unlock(&dev->lock);
}

bool virtio_device_has(const struct virtio_device *dev, unsigned int bit)
{
	return dev->features >> bit & 1;
}

uint64_t virtio_device_features(const struct virtio_device *dev)
{
	return dev->info.features | VIRTIO_RING_FEATURES;
}

void virtio_device_attach(struct virtio_device *dev, struct virtio_transport *t,
			  const struct guest_mem *mem)
{
	dev->transport = t;
	dev->mem = mem;
}

/* --- queues -------------------------------------------------------------------------------------- */

void virtio_queue_notify(struct virtio_queue *q)
{
	if (!q->vq.broken && virtq_should_notify(&q->vq))
		q->dev->transport->ops->notify_queue(q->dev->transport, q->index);
}

void virtio_queue_fail(struct virtio_queue *q, const char *why)
{
	struct virtio_device *dev = q->dev;
	bool first;

	q->vq.broken = why;
	pthread_mutex_lock(&dev->fault_lock);
	first = !dev->fault_logged;
	dev->fault_logged = true;
	pthread_mutex_unlock(&dev->fault_lock);
	if (first)
		log_warn("virtio", "%s: queue %u: %s; the guest must reset the device",
			 dev->info.name, q->index, why);
	dev->transport->ops->notify_config(dev->transport, VIRTIO_EVENT_NEEDS_RESET);
}

int virtio_queue_pop(struct virtio_queue *q, struct virtq_chain *chain)
{
	bool was_broken = q->vq.broken;
	int r = virtq_pop(&q->vq, chain);

	if (r < 0 && !was_broken)
		virtio_queue_fail(q, q->vq.broken);
	return r;
}

void virtio_device_config_changed(struct virtio_device *dev)
{
	dev->transport->ops->notify_config(dev->transport, VIRTIO_EVENT_CONFIG);
}

/* --- who serves them ----------------------------------------------------------------------------- */

static void virtio_queue_on_kick(void *ctx, uint32_t events)
{
	struct virtio_queue *q = ctx;
	struct virtio_device *dev = q->dev;
	uint64_t count;
	bool again = false;

	if (read(q->kick_fd, &count, sizeof(count)) < 0)
		return;
	virtio_device_lock(dev);
	if (q->ready)
		again = dev->ops->queue_kick(dev, q->index);
	virtio_device_unlock(dev);
	if (again)
		virtio_queue_wake(q);
}

/* May this worker serve now? It then has to say virtio_worker_leave(). */
static bool virtio_worker_enter(struct virtio_queue *q)
{
	bool run;

	pthread_mutex_lock(&q->lock);
	run = q->run && !q->quit;
	q->nr_busy += run;
	pthread_mutex_unlock(&q->lock);
	return run;
}

static void virtio_worker_leave(struct virtio_queue *q)
{
	pthread_mutex_lock(&q->lock);
	if (!--q->nr_busy)
		pthread_cond_broadcast(&q->idle);
	pthread_mutex_unlock(&q->lock);
}

static bool virtio_worker_must_quit(struct virtio_queue *q)
{
	bool quit;

	pthread_mutex_lock(&q->lock);
	quit = q->quit;
	pthread_mutex_unlock(&q->lock);
	return quit;
}

void virtio_queue_wake_other(struct virtio_queue *q)
{
	bool asleep;

	pthread_mutex_lock(&q->lock);
	asleep = q->nr_busy < q->nr_workers;
	pthread_mutex_unlock(&q->lock);
	if (asleep)
		virtio_queue_wake(q);
}

static void *virtio_worker(void *arg)
{
	struct virtio_worker_start start = *(struct virtio_worker_start *)arg;
	struct virtio_queue *q = start.q;
	char name[16];

	free(arg);
	snprintf(name, sizeof(name), "%.12s-%u", q->dev->info.name, q->index % 10);
	pthread_setname_np(pthread_self(), name);
	if (start.env->thread_init)
		start.env->thread_init(start.env->ctx, name);
	while (!virtio_worker_must_quit(q)) {
		struct epoll_event event;
		bool again = true;

		if (epoll_wait(q->epoll_fd, &event, 1, -1) < 0 && errno != EINTR)
			break;
		while (again && virtio_worker_enter(q)) {
			again = q->dev->ops->queue_kick(q->dev, q->index);
			virtio_worker_leave(q);
		}
	}
	return NULL;
}

static void virtio_worker_stop(struct virtio_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->run = false;
	while (q->nr_busy)
		pthread_cond_wait(&q->idle, &q->lock);
	pthread_mutex_unlock(&q->lock);
}

static void virtio_worker_go(struct virtio_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->run = true;
	pthread_mutex_unlock(&q->lock);
}

static void virtio_worker_end(struct virtio_queue *q)
{
	const uint64_t one = 1;

	if (!q->nr_threads)
		return;
	pthread_mutex_lock(&q->lock);
	q->quit = true;
	pthread_mutex_unlock(&q->lock);
	if (write(q->quit_fd, &one, sizeof(one)) < 0)
		log_err("virtio", "%s: the threads of a queue do not end: %m", q->dev->info.name);
	while (q->nr_threads)
		pthread_join(q->threads[--q->nr_threads], NULL);
}

static int virtio_worker_begin(struct virtio_queue *q, const struct virtio_env *env)
{
	while (q->nr_threads < q->nr_workers) {
		struct virtio_worker_start *start = xcalloc(1, sizeof(*start));
		int r;

		*start = (struct virtio_worker_start){.q = q, .env = env};
		r = pthread_create(&q->threads[q->nr_threads], NULL, virtio_worker, start);
		if (r) {
			free(start);
			return -r;
		}
		q->nr_threads++;
	}
	return 0;
}

int virtio_device_start(struct virtio_device *dev, const struct virtio_env *env, struct err *err)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++) {
		struct virtio_queue *q = &dev->queues[i];
		int r;

		if (q->blocking) {
			r = virtio_worker_begin(q, env);
			if (r)
				return err_set(err, r, "start a thread for %s", dev->info.name);
			continue;
		}
		q->watch = loop_watch_add(env->loop, q->kick_fd, EPOLLIN, virtio_queue_on_kick, q);
		if (!q->watch)
			return err_set(err, -errno, "watch the queues of %s", dev->info.name);
	}
	return dev->ops->start ? dev->ops->start(dev, env->loop, err) : 0;
}

/* --- activation and reset ------------------------------------------------------------------------ */

static struct virtq_config virtio_queue_config(uint64_t features,
					       const struct virtio_queue_setup *s)
{
	return (struct virtq_config){
		.size = s->size,
		.last_avail = s->last_avail,
		.event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1,
		.indirect = features >> VIRTIO_RING_F_INDIRECT_DESC & 1,
	};
}

int virtio_device_check_queue(const struct virtio_device *dev, unsigned int index,
			      const struct virtio_queue_setup *s)
{
	struct virtq scratch;

	if (index >= dev->info.nr_queues || s->size > dev->queues[index].size_max)
		return -EINVAL;
	return virtq_start_gpa(&scratch, dev->mem, virtio_queue_config(0, s), s->desc, s->avail,
			       s->used);
}

static int virtio_device_start_queues(struct virtio_device *dev,
				      const struct virtio_queue_setup *setup)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++) {
		struct virtio_queue *q = &dev->queues[i];
		int r;

		if (!setup[i].ready)
			continue;
		if (setup[i].size > q->size_max)
			return -EINVAL;
		r = virtq_start_gpa(&q->vq, dev->mem, virtio_queue_config(dev->features, &setup[i]),
				    setup[i].desc, setup[i].avail, setup[i].used);
		if (r)
			return r;
		q->ready = true;
	}
	return 0;
}

static void virtio_device_forget(struct virtio_device *dev)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++)
		dev->queues[i].ready = false;
	dev->active = false;
	dev->features = 0;
}

static void virtio_device_wake_all(struct virtio_device *dev)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++) {
		struct virtio_queue *q = &dev->queues[i];

		if (!q->ready)
			continue;
		if (q->blocking)
			virtio_worker_go(q);
		virtio_queue_wake(q);
	}
}

int virtio_device_activate(struct virtio_device *dev, uint64_t features,
			   const struct virtio_queue_setup *setup)
{
	int r;

	virtio_device_lock(dev);
	dev->features = features;
	r = virtio_device_start_queues(dev, setup);
	if (r) {
		virtio_device_forget(dev);
		virtio_device_unlock(dev);
		return r;
	}
	dev->active = true;
	for (unsigned int i = 0; dev->ops->queue_ready && i < dev->info.nr_queues; i++) {
		if (dev->queues[i].ready)
			dev->ops->queue_ready(dev, i);
	}
	virtio_device_wake_all(dev);
	virtio_device_unlock(dev);
	return 0;
}

void virtio_device_quiesce(struct virtio_device *dev)
{
	if (dev->ops->stopping)
		dev->ops->stopping(dev);
	for (unsigned int i = 0; i < dev->info.nr_queues; i++) {
		if (dev->queues[i].blocking)
			virtio_worker_stop(&dev->queues[i]);
	}
}

void virtio_device_resume(struct virtio_device *dev)
{
	virtio_device_lock(dev);
	virtio_device_wake_all(dev);
	virtio_device_unlock(dev);
}

void virtio_device_reset(struct virtio_device *dev)
{
	virtio_device_quiesce(dev);
	virtio_device_lock(dev);
	if (dev->ops->reset)
		dev->ops->reset(dev);
	virtio_device_forget(dev);
	virtio_device_unlock(dev);
}

void virtio_device_free(struct virtio_device *dev)
{
	if (!dev)
		return;
	virtio_device_reset(dev);
	for (unsigned int i = 0; i < dev->info.nr_queues; i++)
		virtio_worker_end(&dev->queues[i]);
	dev->ops->free(dev);
}

/* --- configuration space and kicks --------------------------------------------------------------- */

static bool virtio_config_is_inside(const struct virtio_device *dev, uint64_t off, uint32_t len)
{
	return off <= dev->info.config_len && len <= dev->info.config_len - off;
}

void virtio_device_config_read(struct virtio_device *dev, uint64_t off, void *data, uint32_t len)
{
	memset(data, 0, len);
	if (!dev->ops->config_read || !virtio_config_is_inside(dev, off, len))
		return;
	virtio_device_lock(dev);
	dev->ops->config_read(dev, (uint32_t)off, data, len);
	virtio_device_unlock(dev);
}

void virtio_device_config_write(struct virtio_device *dev, uint64_t off, const void *data,
				uint32_t len)
{
	if (!dev->ops->config_write || !virtio_config_is_inside(dev, off, len))
		return;
	virtio_device_lock(dev);
	dev->ops->config_write(dev, (uint32_t)off, data, len);
	virtio_device_unlock(dev);
}

void virtio_device_kick(struct virtio_device *dev, unsigned int index)
{
	if (index < dev->info.nr_queues)
		virtio_queue_wake(&dev->queues[index]);
}
