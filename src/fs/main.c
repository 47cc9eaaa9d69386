/*
 * harpoon-fs: FUSE passthrough server for many exported trees. docs/fs.md describes it.
 *
 * The main thread sets everything up, gives up what serving does not need, and then follows the control
 * socket. Requests are served by the channel's threads. The program ends when the control socket or
 * the channel does.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "server.h"

struct main_state {
	struct fs *fs;
	struct loop *loop;
	struct server_options options;
	struct server_crew crew;
	struct err err;
};

static void main_on_control(void *ctx, uint32_t events)
{
	struct main_state *s = ctx;
	int r = control_handle(s->fs, s->options.control_fd, &s->err);

	(void)events;
	if (r <= 0)
		loop_stop(s->loop);
}

static void main_on_done(void *ctx, uint32_t events)
{
	struct main_state *s = ctx;

	(void)events;
	loop_stop(s->loop);
}

static int main_add_exports(struct main_state *s)
{
	for (unsigned int i = 0; i < s->options.nr_exports; i++) {
		const struct server_export *x = &s->options.exports[i];
		int r = fs_export_add(s->fs, x->name, x->fd, x->flags);

		if (r < 0)
			return err_set(&s->err, r, "export '%s'", x->name);
	}
	return 0;
}

static int main_watch(struct main_state *s)
{
	s->loop = loop_new();
	if (!s->loop || !loop_watch_add(s->loop, s->crew.done_fd, EPOLLIN, main_on_done, s) ||
	    (s->options.control_fd >= 0 &&
	     !loop_watch_add(s->loop, s->options.control_fd, EPOLLIN, main_on_control, s)))
		return err_set(&s->err, -errno, "watch the control socket");
	return 0;
}

struct main_channel {
	unsigned int (*nr_threads)(const struct server_options *o);
	int (*start)(struct server_crew *crew, struct fs *fs, const struct server_options *o,
		     struct err *err);
};

static const struct main_channel *main_channel(const struct server_options *o)
{
	static const struct main_channel vhost = {channel_vhost_nr_threads, channel_vhost_start};
	static const struct main_channel vmm = {channel_vmm_nr_threads, channel_vmm_start};
	static const struct main_channel fuse = {channel_fuse_nr_threads, channel_fuse_start};

	if (o->vhost_user_fd >= 0)
		return &vhost;
	return o->vmm_fd >= 0 ? &vmm : &fuse;
}

static int main_start_channel(struct main_state *s)
{
	const struct server_options *o = &s->options;
	const struct main_channel *c = main_channel(o);
	int r = server_crew_init(&s->crew, c->nr_threads(o), &s->err);

	if (!r)
		r = c->start(&s->crew, s->fs, o, &s->err);
	return r ? r : server_crew_wait_prepared(&s->crew, &s->err);
}

/* From options to a server that has given up everything it does not need. */
static int main_set_up(struct main_state *s)
{
	struct fs_config config = {0};
	int r = 0;

	umask(0);
	if (s->options.mount)
		r = s->options.fuse_fd = channel_fuse_mount(s->options.mount, &s->err);
	if (r < 0)
		return r;
	confine_close_other_fds(&s->options);
	config.max_fds = confine_limits();
	config.proc_fd = fs_open_proc(&s->err);
	if (config.proc_fd < 0)
		return config.proc_fd;
	r = fs_new(&config, &s->fs, &s->err);
	if (!r)
		r = main_add_exports(s);
	if (!r)
		r = confine_namespaces(&s->err);
	if (!r)
		r = confine_privileges(s->options.allow_devices, &s->err);
	if (!r)
		r = main_start_channel(s);
	if (!r)
		r = main_watch(s);
	return r ? r : confine_syscalls(&s->err);
}

int main(int argc, char **argv)
{
	static struct main_state s;
	int r;

	log_init(STDERR_FILENO, LOG_LEVEL_WARN, NULL);
	r = server_options_parse(&s.options, argc, argv, &s.err);
	if (r > 0)
		return 0;
	if (!r)
		r = main_set_up(&s);
	if (r < 0) {
		fprintf(stderr, "harpoon-fs: %s\n", s.err.msg);
		return r == -EINVAL ? 2 : 1;
	}
	server_crew_open_gate(&s.crew);
	r = loop_run(s.loop);
	if (r < 0 || s.err.code) {
		log_err(SERVER_COMP, "%s", s.err.code ? s.err.msg : "the main loop failed");
		return 1;
	}
	return 0;
}
