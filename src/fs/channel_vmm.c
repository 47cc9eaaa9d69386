/*
 * Channel: harpoon-vmm (fs_channel.h). One thread follows the trunk; each link has a worker of its own,
 * which waits for HELLO. Both kinds end the program when their socket ends.
 */
#include <errno.h>
#include <stdlib.h>

#include "fs_trunk.h"
#include "log.h"
#include "server.h"

struct channel_vmm {
	struct server_crew *crew;
	struct fs *fs;
	struct fs_trunk *trunk;
	unsigned int nr_workers;
	int control_fd; /* borrowed; -1 = none */
	pthread_mutex_t lock;
	pthread_cond_t started;
	bool running; /* lock: the trunk's links are there */
};

struct channel_link {
	struct channel_vmm *channel;
	unsigned int index;
};

static unsigned int channel_vmm_nr_workers(const struct server_options *o)
{
	/* As with vhost-user: one for FORGET, and those of the request queues. */
	return MIN(1 + o->nr_request_queues * o->nr_workers, FS_CHANNEL_LINKS_MAX);
}

unsigned int channel_vmm_nr_threads(const struct server_options *o)
{
	return 1 + channel_vmm_nr_workers(o);
}

static void *channel_vmm_trunk_thread(void *arg)
{
	struct channel_vmm *c = arg;
	struct err err = {0};
	int r;

	server_crew_prepared(c->crew, NULL);
	do {
		r = fs_trunk_handle(c->trunk, c->nr_workers, &err);
		pthread_mutex_lock(&c->lock);
		if (r > 0 && c->trunk->nr_links && !c->running) {
			c->running = true;
			pthread_cond_broadcast(&c->started);
		}
		pthread_mutex_unlock(&c->lock);
	} while (r > 0);
	if (r < 0)
		log_err(SERVER_COMP, "%s", err.msg);
	server_crew_end_program(c->crew);
	return NULL;
}

static void *channel_vmm_link_thread(void *arg)
{
	struct channel_link link = *(struct channel_link *)arg;
	struct channel_vmm *c = link.channel;
	struct fs_worker *w = NULL;
	struct err err = {0};
	int r = fs_worker_new(c->fs, &w, &err);

	free(arg);
	server_crew_prepared(c->crew, r < 0 ? &err : NULL);
	pthread_mutex_lock(&c->lock);
	while (!c->running)
		pthread_cond_wait(&c->started, &c->lock);
	pthread_mutex_unlock(&c->lock);
	/* The peer may want fewer links than there are workers. */
	if (link.index >= c->trunk->nr_links)
		return NULL;
	do
		r = fs_link_serve(c->trunk, w, c->trunk->links[link.index],
				  c->trunk->mem + (size_t)link.index * FS_CHANNEL_SLOT);
	while (r > 0);
	if (r < 0)
		log_err(SERVER_COMP, "link %u to harpoon-vmm: errno %d", link.index, -r);
	server_crew_end_program(c->crew);
	return NULL;
}

static void channel_vmm_complain(void *ctx, const char *what, int error)
{
	struct channel_vmm *c = ctx;

	server_complain(c->fs, c->control_fd, what, error);
}

int channel_vmm_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
		      struct err *err)
{
	struct channel_vmm *c = xcalloc(1, sizeof(*c));
	int r = fs_trunk_new(fs, o->vmm_fd, &c->trunk, err);

	if (r)
		return r;
	c->crew = crew;
	c->fs = fs;
	c->control_fd = o->control_fd;
	c->trunk->complain = channel_vmm_complain;
	c->trunk->complain_ctx = c;
	c->nr_workers = channel_vmm_nr_workers(o);
	if (pthread_mutex_init(&c->lock, NULL) || pthread_cond_init(&c->started, NULL))
		return err_set(err, -ENOMEM, "create the locks of the channel");
	fs_set_revoke_hook(fs, fs_trunk_revoke, c->trunk);
	fs_offer_mappings(fs);
	r = server_crew_start_thread(crew, channel_vmm_trunk_thread, c, err);
	for (unsigned int i = 0; i < c->nr_workers && !r; i++) {
		struct channel_link *link = xcalloc(1, sizeof(*link));

		*link = (struct channel_link){c, i};
		r = server_crew_start_thread(crew, channel_vmm_link_thread, link, err);
		if (r)
			free(link);
	}
	return r;
}
