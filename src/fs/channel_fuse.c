/*
 * Channel: /dev/fuse of this host. For tests, and for looking at exports without any VM. Each worker
 * thread reads one request, serves it and writes the answer. Unmounting ends the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "server.h"

#define CHANNEL_FUSE_BUF (FS_DATA_MAX + FS_HEADROOM + 65536)

struct channel_fuse {
	struct server_crew *crew;
	struct fs *fs;
	int fd;
};

unsigned int channel_fuse_nr_threads(const struct server_options *o)
{
	return o->nr_workers;
}

int channel_fuse_mount(const char *dir, struct err *err)
{
	cleanup_close int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[128];

	if (fd < 0)
		return err_set(err, -errno, "open /dev/fuse");
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd);
	if (mount("harpoon-fs", dir, "fuse.harpoon", MS_NOSUID | MS_NODEV, options) < 0)
		return err_set(err, -errno, "mount on '%s'", dir);
	return take_fd(&fd);
}

static void channel_fuse_serve(struct channel_fuse *c, struct fs_worker *w, void *in, void *out)
{
	for (;;) {
		ssize_t n = read(c->fd, in, CHANNEL_FUSE_BUF);
		struct iovec req = {in, n > 0 ? (size_t)n : 0};
		struct iovec reply = {out, CHANNEL_FUSE_BUF};
		size_t len;

		/* ENOENT: the request was interrupted before it was read. */
		if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		if (n <= 0)
			return;
		len = fs_worker_handle(w, &req, 1, &reply, 1);
		/* The request may be gone meanwhile; nobody waits for the answer then. */
		if (len && write(c->fd, out, len) < 0 && errno != ENOENT)
			log_dbg(SERVER_COMP, "answer of %zu bytes was not taken: errno %d", len,
				errno);
	}
}

static void *channel_fuse_thread(void *arg)
{
	struct channel_fuse *c = arg;
	cleanup_free void *in = xmalloc(CHANNEL_FUSE_BUF), *out = xmalloc(CHANNEL_FUSE_BUF);
	struct fs_worker *w = NULL;
	struct err err = {0};
	int r = fs_worker_new(c->fs, &w, &err);

	server_crew_prepared(c->crew, r < 0 ? &err : NULL);
	channel_fuse_serve(c, w, in, out);
	log_dbg(SERVER_COMP, "/dev/fuse was unmounted");
	fs_worker_free(w);
	server_crew_end_program(c->crew);
	return NULL;
}

int channel_fuse_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
		       struct err *err)
{
	struct channel_fuse *c = xcalloc(1, sizeof(*c));
	int r = 0;

	*c = (struct channel_fuse){.crew = crew, .fs = fs, .fd = o->fuse_fd};
	for (unsigned int i = 0; i < o->nr_workers && !r; i++)
		r = server_crew_start_thread(crew, channel_fuse_thread, c, err);
	return r;
}
