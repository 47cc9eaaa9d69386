/*
 * Channel: vhost-user-fs. Requests are taken from virtqueues in guest memory and answered there.
 *
 * Threads: one follows the front-end's messages (vhost_user.c). Queue 0, which carries only FORGET,
 * has one worker; each request queue has several. All workers of a queue sleep on the same epoll; a
 * kick wakes one. Kicks stay enabled while a worker is busy, so an operation that blocks holds up
 * nothing as long as another worker is free; at a queue depth of one there is one wake-up for each
 * request and no hand-over.
 *
 * A queue's lock guards its struct virtq and counters, and is not held while a request is served.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs_control.h"
#include "io.h"
#include "log.h"
#include "server.h"
#include "vhost_user.h"

struct channel_queue {
	struct channel_vhost *channel;
	unsigned int index;
	int epoll_fd;
	int stop_fd; /* eventfd, level: readable from queue_stop() on */
	pthread_mutex_t lock;
	pthread_cond_t started; /* running became true */
	pthread_cond_t quiet;	/* nr_inside became zero */
	bool running;
	struct vhost_user_queue *q; /* valid while running, or nr_inside > 0 */
	unsigned int nr_inside;	    /* workers that may touch q */
	unsigned int nr_asleep;	    /* of these, how many wait for a kick */
};

struct channel_vhost {
	struct server_crew *crew;
	struct fs *fs;
	struct vhost_user *vu;
	int control_fd; /* borrowed; -1 = none */
	unsigned int nr_queues;
	struct channel_queue queues[1 + SERVER_REQUEST_QUEUES_MAX];
};

unsigned int channel_vhost_nr_threads(const struct server_options *o)
{
	return 1 + 1 + o->nr_request_queues * o->nr_workers;
}

static void channel_queue_start(void *ctx, unsigned int index, struct vhost_user_queue *vq)
{
	struct channel_vhost *c = ctx;
	struct channel_queue *q = &c->queues[index];
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.fd = vq->kick_fd};

	pthread_mutex_lock(&q->lock);
	q->q = vq;
	q->running = true;
	if (epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, vq->kick_fd, &ev) < 0) {
		log_err(SERVER_COMP, "queue %u: kicks cannot be waited for: errno %d", index,
			errno);
		q->running = false;
	}
	pthread_cond_broadcast(&q->started);
	pthread_mutex_unlock(&q->lock);
}

static void channel_queue_stop(void *ctx, unsigned int index)
{
	struct channel_vhost *c = ctx;
	struct channel_queue *q = &c->queues[index];
	eventfd_t value;

	pthread_mutex_lock(&q->lock);
	q->running = false;
	(void)eventfd_write(q->stop_fd, 1);
	fs_events_interrupt(c->fs);
	while (q->nr_inside)
		pthread_cond_wait(&q->quiet, &q->lock);
	(void)eventfd_read(q->stop_fd, &value);
	(void)epoll_ctl(q->epoll_fd, EPOLL_CTL_DEL, q->q->kick_fd, NULL);
	q->q = NULL;
	pthread_mutex_unlock(&q->lock);
}

static int channel_state_save(void *ctx, int fd)
{
	struct channel_vhost *c = ctx;
	cleanup_free uint8_t *state = NULL;
	size_t len = 0;
	int r = fs_state_save(c->fs, &state, &len);

	if (!r)
		return io_write_full(fd, state, len);
	server_complain(c->fs, c->control_fd, "save", r);
	return r;
}

/* One byte of room beyond the limit shows that there is more. */
static int channel_state_load(void *ctx, int fd)
{
	struct channel_vhost *c = ctx;
	cleanup_free uint8_t *state = calloc(1, FS_STATE_MAX + 1);
	ssize_t n = state ? io_read_full(fd, state, FS_STATE_MAX + 1) : -ENOMEM;

	int r;

	if (n < 0)
		return (int)n;
	r = n > (ssize_t)FS_STATE_MAX ? -EFBIG : fs_state_load(c->fs, state, (size_t)n);
	if (r)
		server_complain(c->fs, c->control_fd, "restore", r);
	return r;
}

static const struct vhost_user_ops channel_vhost_ops = {
	.queue_start = channel_queue_start,
	.queue_stop = channel_queue_stop,
	.state_save = channel_state_save,
	.state_load = channel_state_load,
};

/* Sleeps until a kick or the stop. Called and returns with the lock held. */
static void channel_queue_sleep(struct channel_queue *q)
{
	struct epoll_event ev;

	q->nr_asleep++;
	pthread_mutex_unlock(&q->lock);
	(void)epoll_wait(q->epoll_fd, &ev, 1, -1);
	pthread_mutex_lock(&q->lock);
	q->nr_asleep--;
}

/* Serves one request. Called and returns with the lock held. */
static void channel_queue_serve(struct channel_queue *q, struct fs_worker *w,
				const struct virtq_chain *chain)
{
	struct vhost_user_queue *vq = q->q;
	bool help = virtq_enable_kicks(&vq->vq) && q->nr_asleep;
	size_t len;

	pthread_mutex_unlock(&q->lock);
	/* More is waiting than this thread can do at once: pass the kick on. */
	if (help)
		(void)eventfd_write(vq->kick_fd, 1);
	len = fs_worker_handle(w, chain->iov, chain->nr_readable, chain->iov + chain->nr_readable,
			       chain->nr_writable);
	pthread_mutex_lock(&q->lock);
	virtq_push(&vq->vq, chain->head, (uint32_t)len);
	if (virtq_should_notify(&vq->vq) && vq->call_fd >= 0)
		(void)eventfd_write(vq->call_fd, 1);
}

/* Serves a queue until it stops or breaks. Called and returns with the lock held. */
static void channel_queue_run(struct channel_queue *q, struct fs_worker *w,
			      struct virtq_chain *chain)
{
	while (q->running) {
		int r = virtq_pop(&q->q->vq, chain);

		if (r > 0) {
			channel_queue_serve(q, w, chain);
		} else if (r < 0) {
			log_err(SERVER_COMP, "queue %u stops: %s", q->index, q->q->vq.broken);
			q->running = false;
			(void)eventfd_write(q->stop_fd, 1);
		} else if (!virtq_enable_kicks(&q->q->vq)) {
			channel_queue_sleep(q);
		}
	}
}

static void *channel_queue_thread(void *arg)
{
	struct channel_queue *q = arg;
	struct virtq_chain *chain = xcalloc(1, sizeof(*chain));
	struct fs_worker *w = NULL;
	struct err err = {0};
	int r = fs_worker_new(q->channel->fs, &w, &err);

	server_crew_prepared(q->channel->crew, r < 0 ? &err : NULL);
	pthread_mutex_lock(&q->lock);
	for (;;) {
		while (!q->running)
			pthread_cond_wait(&q->started, &q->lock);
		q->nr_inside++;
		channel_queue_run(q, w, chain);
		q->nr_inside--;
		if (!q->nr_inside)
			pthread_cond_signal(&q->quiet);
	}
	return NULL;
}

static void *channel_vhost_thread(void *arg)
{
	struct channel_vhost *c = arg;
	struct err err = {0};
	int r;

	server_crew_prepared(c->crew, NULL);
	do
		r = vhost_user_handle_message(c->vu, &err);
	while (r > 0);
	if (r < 0)
		log_err(SERVER_COMP, "%s", err.msg);
	server_crew_end_program(c->crew);
	return NULL;
}

static int channel_queue_init(struct channel_queue *q, struct channel_vhost *c, unsigned int index,
			      struct err *err)
{
	struct epoll_event ev = {.events = EPOLLIN};

	q->channel = c;
	q->index = index;
	q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	q->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->epoll_fd < 0 || q->stop_fd < 0 ||
	    epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, q->stop_fd, &ev) < 0)
		return err_set(err, -errno, "create the events of queue %u", index);
	if (pthread_mutex_init(&q->lock, NULL) || pthread_cond_init(&q->started, NULL) ||
	    pthread_cond_init(&q->quiet, NULL))
		return err_set(err, -ENOMEM, "create the locks of queue %u", index);
	return 0;
}

int channel_vhost_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
			struct err *err)
{
	struct channel_vhost *c = xcalloc(1, sizeof(*c));
	struct vhost_user_config config = {
		.fd = o->vhost_user_fd,
		.nr_queues = 1 + o->nr_request_queues,
		.ops = &channel_vhost_ops,
		.ctx = c,
	};
	int r = vhost_user_new(&config, &c->vu, err);

	c->crew = crew;
	c->fs = fs;
	c->control_fd = o->control_fd;
	c->nr_queues = config.nr_queues;
	for (unsigned int i = 0; i < c->nr_queues && !r; i++) {
		unsigned int workers = i ? o->nr_workers : 1;

		r = channel_queue_init(&c->queues[i], c, i, err);
		for (unsigned int n = 0; n < workers && !r; n++)
			r = server_crew_start_thread(crew, channel_queue_thread, &c->queues[i],
						     err);
	}
	return r ? r : server_crew_start_thread(crew, channel_vhost_thread, c, err);
}
