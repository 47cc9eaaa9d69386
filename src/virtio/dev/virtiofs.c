/*
 * The virtio-fs device; see virtiofs.h for threads. Serving is in virtiofs_serve.c.
 *
 * f->lock is held around every virtq call, because the request queue has several workers, and never while a
 * request is served.
 */
#include "virtiofs.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/virtio_fs.h>
#include <linux/virtio_ids.h>

#include "buf.h"
#include "cleanup.h"
#include "log.h"
#include "virtiofs_internal.h"

#define VIRTIOFS_COMP "virtio-fs"
/* It looks at every file that the guest knows, on whatever disk. */
#define VIRTIOFS_ANSWER_MS 30000

static_assert(sizeof(struct virtio_fs_config) == VIRTIOFS_TAG_MAX + 4, "configuration layout");

static struct virtiofs *virtiofs_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtiofs, dev);
}

void virtiofs_lose(struct virtiofs *f, const char *why)
{
	pthread_mutex_lock(&f->lock);
	if (!f->lost)
		f->lost = why;
	pthread_mutex_unlock(&f->lock);
	(void)eventfd_write(f->event_fd, 1);
}

/* --- the loop's part: trunk and events ----------------------------------------------------------- */

/* Answers the revocations whose files are all closed. */
static void virtiofs_answer_revoked(struct virtiofs *f)
{
	unsigned int left = 0;

	for (unsigned int i = 0; i < f->nr_revoking; i++) {
		uint64_t id = f->revoking[i];

		if (virtiofs_files_has(&f->files, id))
			f->revoking[left++] = id;
		else if (virtiofs_trunk_send(&f->channel, FS_TRUNK_REVOKE, id, NULL, 0))
			virtiofs_lose(f, "harpoon-fs is gone");
	}
	f->nr_revoking = left;
}

static void virtiofs_revoke(struct virtiofs *f, uint64_t export_id)
{
	/* harpoon-fs waits for each; when it gave up on that many, it has given up on us. */
	if (f->nr_revoking == ARRAY_SIZE(f->revoking)) {
		virtiofs_lose(f, "harpoon-fs took back too many exports at a time");
		return;
	}
	virtiofs_files_revoke(&f->files, export_id);
	virtiofs_window_clear(&f->window, export_id);
	f->revoking[f->nr_revoking++] = export_id;
	virtiofs_answer_revoked(f);
}

/* A message that nobody waits for. */
static void virtiofs_take_message(struct virtiofs *f, const struct fs_trunk_msg *msg)
{
	switch (msg->type) {
	case FS_TRUNK_REVOKE:
		virtiofs_revoke(f, msg->arg);
		return;
	case FS_TRUNK_HELLO:
		if (msg->error || f->greeted)
			virtiofs_lose(f, "harpoon-fs refused the channel");
		f->greeted = true;
		return;
	default:
		virtiofs_lose(f, "harpoon-fs sent an unknown message");
	}
}

static void virtiofs_on_trunk(void *ctx, uint32_t events)
{
	struct virtiofs *f = ctx;
	struct fs_trunk_msg msg = {0};
	int r = virtiofs_trunk_receive(&f->channel, &msg, NULL, 0, 0);

	(void)events;
	if (!r)
		virtiofs_take_message(f, &msg);
	else if (r != -ETIMEDOUT)
		virtiofs_lose(f, r == -EPIPE ? "harpoon-fs is gone"
					     : "harpoon-fs broke the protocol of the channel");
}

static void virtiofs_on_event(void *ctx, uint32_t events)
{
	struct virtiofs *f = ctx;
	const char *lost;
	eventfd_t value;

	(void)events;
	(void)eventfd_read(f->event_fd, &value);
	pthread_mutex_lock(&f->lock);
	lost = f->lost;
	pthread_mutex_unlock(&f->lock);
	if (!lost) {
		virtiofs_answer_revoked(f);
		return;
	}
	loop_watch_set(f->trunk_watch, 0);
	if (f->lost_told)
		return;
	f->lost_told = true;
	log_err(VIRTIOFS_COMP, "%s", lost);
	if (f->params.on_lost)
		f->params.on_lost(f->params.ctx, lost);
}

/* Waits for the answer to a message of ours. */
static int virtiofs_await(struct virtiofs *f, uint32_t type, uint8_t *data, size_t room,
			  struct fs_trunk_msg *ret, struct err *err)
{
	*ret = (struct fs_trunk_msg){0};
	for (;;) {
		int r = virtiofs_trunk_receive(&f->channel, ret, data, room, VIRTIOFS_ANSWER_MS);

		if (r)
			return err_set(err, r, "wait for harpoon-fs");
		if (ret->type == type)
			break;
		virtiofs_take_message(f, ret);
	}
	return ret->error ? err_set(err, ret->error, "harpoon-fs answered") : 0;
}

/* A saved device: the window's slots that are in use, then the session of harpoon-fs. */
struct virtiofs_saved_slot {
	uint64_t at, node_id, offset;
};
#define VIRTIOFS_SAVED_WINDOW_MAX \
	(sizeof(uint64_t) + \
	 VIRTIOFS_WINDOW_MAX / VIRTIOFS_WINDOW_SLOT * sizeof(struct virtiofs_saved_slot))

/* Appends the next part of the session, which begins at `start`; *ret_len: of all of it. */
static int virtiofs_save_part(struct virtiofs *f, struct buf *to, size_t start, size_t *ret_len,
			      struct err *err)
{
	cleanup_free uint8_t *data = xmalloc(FS_TRUNK_DATA_MAX);
	size_t from = to->len - start;
	struct fs_trunk_msg msg;
	int r = virtiofs_trunk_send(&f->channel, FS_TRUNK_SAVE, from, NULL, 0);

	if (r)
		return err_set(err, r, "ask harpoon-fs for its session");
	r = virtiofs_await(f, FS_TRUNK_SAVE, data, FS_TRUNK_DATA_MAX, &msg, err);
	if (r)
		return r;
	if (msg.arg > FS_TRUNK_STATE_MAX || (from && msg.arg != *ret_len) || !msg.len ||
	    msg.len > msg.arg - from)
		return err_say(err, -EPROTO,
			       "harpoon-fs tells its session in parts that do not fit");
	*ret_len = msg.arg;
	r = buf_append(to, data, msg.len);
	return r ? err_set(err, r, "keep the session of harpoon-fs") : 0;
}

static int virtiofs_save_window(struct virtiofs *f, struct buf *to)
{
	const struct virtiofs_window *w = &f->window;
	uint64_t nr = 0;
	int r;

	for (uint32_t i = 0; i < w->nr; i++)
		nr += w->slots[i].fd >= 0;
	r = buf_append(to, &nr, sizeof(nr));
	for (uint32_t i = 0; i < w->nr && !r; i++) {
		const struct virtiofs_saved_slot s = {(uint64_t)i * VIRTIOFS_WINDOW_SLOT,
						      w->slots[i].node_id, w->slots[i].offset};

		if (w->slots[i].fd >= 0)
			r = buf_append(to, &s, sizeof(s));
	}
	return r;
}

static int virtiofs_save(struct virtio_device *dev, uint8_t **ret, size_t *ret_len, struct err *err)
{
	struct virtiofs *f = virtiofs_of(dev);
	cleanup(buf_done) struct buf all;
	size_t len = 0, start;
	int r;

	buf_init(&all, FS_TRUNK_STATE_MAX + VIRTIOFS_SAVED_WINDOW_MAX);
	r = virtiofs_save_window(f, &all);
	if (r)
		return err_set(err, r, "keep what is mapped");
	start = all.len;
	do
		r = virtiofs_save_part(f, &all, start, &len, err);
	while (!r && all.len - start < len);
	if (r)
		return r;
	*ret = xmalloc(all.len);
	memcpy(*ret, buf_head(&all), all.len);
	*ret_len = all.len;
	return 0;
}

static int virtiofs_load_session(struct virtiofs *f, const uint8_t *state, size_t len,
				 struct err *err)
{
	struct fs_trunk_msg msg;
	int r;

	do {
		size_t n = MIN(len, (size_t)FS_TRUNK_DATA_MAX);

		r = virtiofs_trunk_send(&f->channel, FS_TRUNK_LOAD, len - n, state, n);
		if (r)
			return err_set(err, r, "give harpoon-fs its session");
		r = virtiofs_await(f, FS_TRUNK_LOAD, NULL, 0, &msg, err);
		state += n;
		len -= n;
	} while (!r && len);
	return r;
}

static int virtiofs_load(struct virtio_device *dev, const uint8_t *state, size_t len,
			 struct err *err)
{
	struct virtiofs *f = virtiofs_of(dev);
	struct virtiofs_saved_slot s;
	uint64_t nr = UINT64_MAX;
	size_t start;
	int r;

	if (len >= sizeof(nr))
		memcpy(&nr, state, sizeof(nr));
	if (nr > f->window.nr || len - sizeof(nr) <= nr * sizeof(s))
		return err_say(err, -EPROTO, "the state of the file system is cut short");
	start = sizeof(nr) + nr * sizeof(s);
	r = virtiofs_load_session(f, state + start, len - start, err);
	for (uint64_t i = 0; i < nr && !r; i++) {
		memcpy(&s, state + sizeof(nr) + i * sizeof(s), sizeof(s));
		r = virtiofs_serve_map(f, s.at, s.node_id, s.offset);
		if (r)
			err_set(err, r, "map a file again that the guest had mapped");
	}
	return r;
}

void virtiofs_get_stats(struct virtio_device *dev, struct virtiofs_stats *ret)
{
	struct virtiofs *f = virtiofs_of(dev);

	pthread_mutex_lock(&f->lock);
	*ret = (struct virtiofs_stats){.direct = f->nr_direct, .channel = f->nr_channel};
	pthread_mutex_unlock(&f->lock);
	ret->files = virtiofs_files_count(&f->files);
}

/* --- the workers' part --------------------------------------------------------------------------- */

static struct virtiofs_lane *virtiofs_take_lane_locked(struct virtiofs *f, unsigned int index)
{
	struct virtiofs_lane *l = f->free_lanes;

	if (index == VIRTIOFS_QUEUE_HIPRIO)
		return &f->lanes[0];
	/* There are as many as workers. */
	f->free_lanes = l->next_free;
	return l;
}

static void virtiofs_give_lane_locked(struct virtiofs_lane *l, unsigned int index)
{
	if (index == VIRTIOFS_QUEUE_HIPRIO)
		return;
	l->next_free = l->f->free_lanes;
	l->f->free_lanes = l;
}

/* One request, by one of the queue's workers. */
static bool virtiofs_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtiofs *f = virtiofs_of(dev);
	struct virtio_queue *q = &dev->queues[index];
	struct virtiofs_lane *l;
	bool again = false;
	size_t len;
	int r;

	pthread_mutex_lock(&f->lock);
	l = virtiofs_take_lane_locked(f, index);
	r = virtio_queue_pop(q, &l->chain);
	if (r > 0) {
		/* Kicks are asked for all the time: another worker may be free to take the next one. */
		bool more = virtq_enable_kicks(&q->vq);

		pthread_mutex_unlock(&f->lock);
		if (more)
			virtio_queue_wake_other(q);
		len = virtiofs_serve(l);
		pthread_mutex_lock(&f->lock);
		virtq_push(&q->vq, l->chain.head, (uint32_t)len);
		virtio_queue_notify(q);
		again = true;
	} else if (!r) {
		again = virtq_enable_kicks(&q->vq);
	}
	virtiofs_give_lane_locked(l, index);
	pthread_mutex_unlock(&f->lock);
	return again;
}

/* --- the device ------------------------------------------------------------------------------------ */

static void virtiofs_config_read(struct virtio_device *dev, uint32_t off, void *data, uint32_t len)
{
	memcpy(data, virtiofs_of(dev)->config + off, len);
}

static int virtiofs_start(struct virtio_device *dev, struct loop *loop, struct err *err)
{
	struct virtiofs *f = virtiofs_of(dev);

	f->trunk_watch = loop_watch_add(loop, f->channel.trunk, EPOLLIN, virtiofs_on_trunk, f);
	f->event_watch = loop_watch_add(loop, f->event_fd, EPOLLIN, virtiofs_on_event, f);
	if (!f->trunk_watch || !f->event_watch)
		return err_set(err, -errno, "watch the channel to harpoon-fs");
	return 0;
}

/* A read of changes by others waits for them. On a vCPU's thread as a rule, whose filter has write(2) and no more. */
static void virtiofs_stopping(struct virtio_device *dev)
{
	const struct fs_trunk_msg msg = {.type = FS_TRUNK_INTERRUPT};

	/* Without a peer there is nothing that waits. */
	(void)!write(virtiofs_of(dev)->channel.trunk, &msg, sizeof(msg));
}

static void virtiofs_free(struct virtio_device *dev)
{
	struct virtiofs *f = virtiofs_of(dev);

	loop_watch_remove(f->trunk_watch);
	loop_watch_remove(f->event_watch);
	virtiofs_channel_close(&f->channel);
	virtiofs_files_done(&f->files);
	virtiofs_window_done(&f->window);
	close(f->event_fd);
	free(f->lanes);
	pthread_mutex_destroy(&f->lock);
	virtio_device_done(&f->dev);
	free(f);
}

static uint64_t virtiofs_shm_fault(struct virtio_device *dev)
{
	return virtiofs_window_mend(&virtiofs_of(dev)->window);
}

static const struct virtio_device_ops virtiofs_ops = {
	.start = virtiofs_start,
	.config_read = virtiofs_config_read,
	.queue_kick = virtiofs_queue_kick,
	.stopping = virtiofs_stopping,
	.save = virtiofs_save,
	.load = virtiofs_load,
	.shm_fault = virtiofs_shm_fault,
	.free = virtiofs_free,
};

static const struct virtio_device_info virtiofs_info = {
	.name = "virtio-fs",
	.id = VIRTIO_ID_FS,
	.config_len = sizeof(struct virtio_fs_config),
	.nr_queues = VIRTIOFS_NR_QUEUES,
	.queues =
		{
			[VIRTIOFS_QUEUE_HIPRIO] = {.size_max = 128, .blocking = true},
			/* A request of 1 MiB has 256 pages and its arguments. */
			[VIRTIOFS_QUEUE_REQUEST] = {.size_max = 1024,
						    .blocking = true,
						    .nr_workers = VIRTIOFS_WORKERS},
		},
};

static void virtiofs_make_lanes(struct virtiofs *f)
{
	f->lanes = xcalloc(VIRTIOFS_LINKS, sizeof(*f->lanes));
	for (unsigned int i = 0; i < VIRTIOFS_LINKS; i++) {
		f->lanes[i].f = f;
		f->lanes[i].link = &f->channel.links[i];
		if (i)
			virtiofs_give_lane_locked(&f->lanes[i], VIRTIOFS_QUEUE_REQUEST);
	}
}

static void virtiofs_fill_config(struct virtiofs *f, const char *tag)
{
	struct virtio_fs_config c = {.num_request_queues = htole32(1)};

	/* Not terminated when it is as long as it may be. */
	memcpy(c.tag, tag, strnlen(tag, sizeof(c.tag)));
	memcpy(f->config, &c, sizeof(c));
}

int virtiofs_new(const struct virtiofs_params *params, struct virtio_device **ret, struct err *err)
{
	int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), sock = params->sock, r;
	cleanup_free struct virtiofs *f = xcalloc(1, sizeof(*f));

	if (event_fd < 0) {
		close(sock);
		return err_set(err, -errno, "make an event descriptor");
	}
	r = virtiofs_channel_open(&f->channel, sock, VIRTIOFS_LINKS, err);
	if (!r)
		r = virtiofs_window_init(&f->window, params->window_bytes, err);
	if (!r)
		r = virtio_device_init(&f->dev, &virtiofs_ops, &virtiofs_info, err);
	if (r) {
		virtiofs_window_done(&f->window);
		virtiofs_channel_close(&f->channel);
		close(event_fd);
		return r;
	}
	f->dev.shm = f->window.host;
	f->dev.shm_len = f->window.len;
	f->params = *params;
	f->event_fd = event_fd;
	pthread_mutex_init(&f->lock, NULL);
	virtiofs_files_init(&f->files, params->max_files, event_fd);
	virtiofs_make_lanes(f);
	virtiofs_fill_config(f, params->tag);
	*ret = &take_ptr(&f)->dev;
	return 0;
}
