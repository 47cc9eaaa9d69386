/*
 * FIFOs; see taskio.h.
 *
 * Opening for writing fails with ENXIO until somebody reads, and the client opens its ends in the
 * background, maybe after we do. The shim must see the client's reader before its own keep-open reader exists:
 * else a short-lived process could write, end and close everything before the client's open() returns,
 * and that open() would then wait for ever. So the writer is opened first, tried again at growing
 * intervals while the VM boots anyway.
 *
 * Whether the path is a FIFO is decided on the opened descriptor, so a path swapped meanwhile gains
 * nothing; O_NONBLOCK makes the opening of anything else harmless.
 */
#include "taskio.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "util.h"

#define TASKIO_RETRY_MIN_NS 1000000ull
#define TASKIO_RETRY_MAX_NS 100000000ull
#define TASKIO_PATH_MAX 4096

/*
 * Handed to the VM as the stream's context. It outlives the process when a stream is cut off, as the VM says
 * "done" for it later, and is freed by that.
 */
struct taskio_link {
	struct taskio_stream *stream; /* NULL = nobody is interested any more */
};

static const char *const taskio_names[TASKIO_MAX] = {"stdin", "stdout", "stderr"};

static bool taskio_has_scheme(const char *uri, const char *scheme)
{
	return !strncmp(uri, scheme, strlen(scheme));
}

/* Takes a bare path or a URI apart. */
static int taskio_set_path(struct taskio_stream *s, enum taskio_index i, const char *uri,
			   struct err *err)
{
	const char *sep = strstr(uri, "://"), *path = uri, *name = taskio_names[i];

	if (strlen(uri) > TASKIO_PATH_MAX)
		return err_say(err, -EINVAL, "%s: path is longer than %d bytes", name,
			       TASKIO_PATH_MAX);
	if (taskio_has_scheme(uri, "fifo://"))
		path = sep + 3;
	else if (i != TASKIO_IN && taskio_has_scheme(uri, "file://")) {
		path = sep + 3;
		s->kind = TASKIO_FILE;
	} else if (i != TASKIO_IN && taskio_has_scheme(uri, "binary://")) {
		s->kind = TASKIO_BINARY;
	} else if (sep) {
		return err_say(err, -EINVAL, "%s: unknown STDIO scheme %.*s", name,
			       (int)MIN(sep - uri, 32), uri);
	}
	if (s->kind != TASKIO_BINARY && *path && *path != '/')
		return err_say(err, -EINVAL, "%s: '%.200s' is not an absolute path", name, path);
	s->path = xstrdup(path);
	return 0;
}

int taskio_init(struct taskio *io, struct loop *loop, const struct taskio_params *params,
		struct err *err)
{
	*io = (struct taskio){.loop = loop,
			      .terminal = params->terminal,
			      .logger = {.pidfd = -1, .ready_fd = -1},
			      .id = xstrdup(params->id),
			      .namespace_ = xstrdup(params->namespace_)};
	for (size_t i = 0; i < TASKIO_MAX; i++) {
		io->s[i].fd = io->s[i].keep_fd = io->s[i].file.rfd = io->s[i].file.file = -1;
		io->s[i].io = io;
	}
	for (size_t i = 0; i < TASKIO_MAX; i++) {
		/* A terminal has one output; clients may name a stderr that does not exist. */
		const char *path = params->terminal && i == TASKIO_ERR ? "" : params->paths[i];
		int r = taskio_set_path(&io->s[i], (enum taskio_index)i, path, err);

		if (r)
			return r;
	}
	/* One program serves both outputs; only what stdout says about it counts. */
	if (io->s[TASKIO_ERR].kind == TASKIO_BINARY && io->s[TASKIO_OUT].kind != TASKIO_BINARY)
		return err_say(err, -EINVAL, "stderr goes to a logging program, stdout does not");
	return 0;
}

static void taskio_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void taskio_close(struct taskio *io)
{
	io->drained = NULL;
	io->opened = NULL;
	loop_timer_cancel(&io->retry);
	for (size_t i = 0; i < TASKIO_MAX; i++) {
		struct taskio_stream *s = &io->s[i];

		if (s->link)
			s->link->stream = NULL;
		s->link = NULL;
		if (s->stream)
			hv_stream_detach(take_ptr(&s->stream));
		taskio_close_fd(&s->fd);
		taskio_close_fd(&s->keep_fd);
		logger_file_close(&s->file);
	}
	logger_stop(&io->logger);
}

void taskio_done(struct taskio *io)
{
	if (!io->loop)
		return;
	taskio_close(io);
	free(io->id);
	free(io->namespace_);
	io->id = io->namespace_ = NULL;
	for (size_t i = 0; i < TASKIO_MAX; i++) {
		free(io->s[i].path);
		io->s[i].path = NULL;
	}
}

void taskio_number(struct taskio *io, uint32_t *next)
{
	for (size_t i = 0; i < TASKIO_MAX; i++)
		io->s[i].id = *io->s[i].path ? (*next)++ : 0;
}

void taskio_renumber(struct taskio *io, const uint32_t *ids)
{
	for (size_t i = 0; i < TASKIO_MAX; i++) {
		struct taskio_stream *s = &io->s[i];

		s->id = ids[i];
		if (!s->id)
			*s->path = '\0';
		else if (!*s->path)
			s->fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	}
}

/* Opens and checks one end. -ENXIO: nobody reads yet. */
static int taskio_open_end(const struct taskio_stream *s, const char *name, int flags,
			   struct err *err)
{
	cleanup_close int fd = open(s->path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	struct stat st;

	if (fd < 0 && errno == ENXIO)
		return -ENXIO;
	if (fd < 0)
		return err_set(err, -errno, "open %s '%s'", name, s->path);
	if (fstat(fd, &st))
		return err_set(err, -errno, "look at %s '%s'", name, s->path);
	if (!S_ISFIFO(st.st_mode))
		return err_say(err, -EINVAL, "%s '%s' is not a FIFO", name, s->path);
	return take_fd(&fd);
}

static int taskio_open_fifo(struct taskio *io, enum taskio_index i, struct err *err)
{
	struct taskio_stream *s = &io->s[i];
	int own = i == TASKIO_IN ? O_RDONLY : O_WRONLY;
	int keep = i == TASKIO_IN ? O_WRONLY : O_RDONLY;
	int r = taskio_open_end(s, taskio_names[i], own, err);

	if (r < 0)
		return r;
	s->fd = r;
	if (i == TASKIO_IN && io->stdin_closed)
		return 0;
	r = taskio_open_end(s, taskio_names[i], keep, err);
	if (r < 0)
		return r == -ENXIO ? err_set(err, r, "open %s '%s'", taskio_names[i], s->path) : r;
	s->keep_fd = r;
	return 0;
}

static void taskio_check_drained(void *ctx);

static int taskio_open_logger(struct taskio *io, struct err *err)
{
	int fds[2], r;

	if (io->logger.pid)
		return 0;
	r = logger_start(&io->logger, io->s[TASKIO_OUT].path, io->id, io->namespace_, fds, err);
	if (r)
		return r;
	io->s[TASKIO_OUT].fd = fds[0];
	if (*io->s[TASKIO_ERR].path)
		io->s[TASKIO_ERR].fd = fds[1];
	else
		close(fds[1]);
	return 0;
}

static int taskio_open_one(struct taskio *io, enum taskio_index i, struct err *err)
{
	struct taskio_stream *s = &io->s[i];

	if (!*s->path || s->fd >= 0)
		return 0;
	switch (s->kind) {
	case TASKIO_FIFO:
		return taskio_open_fifo(io, i, err);
	case TASKIO_FILE:
		s->fd = logger_file_open(&s->file, io->loop, s->path, taskio_check_drained, io,
					 err);
		return MIN(s->fd, 0);
	case TASKIO_BINARY:
		return taskio_open_logger(io, err);
	}
	return 0;
}

static void taskio_try_open(void *ctx)
{
	struct taskio *io = ctx;
	taskio_opened_fn opened = io->opened;
	struct err err = {0};
	int r = 0;

	for (size_t i = 0; i < TASKIO_MAX && !r; i++)
		r = taskio_open_one(io, (enum taskio_index)i, &err);
	if (!r && io->logger.pid && !logger_is_ready(&io->logger))
		r = -ENXIO;
	if (r == -ENXIO && !err.code && util_now_ns() < io->deadline_ns) {
		loop_timer_arm(io->loop, &io->retry, io->retry_ns, taskio_try_open, io);
		io->retry_ns = MIN(io->retry_ns * 2, TASKIO_RETRY_MAX_NS);
		return;
	}
	if (r == -ENXIO && !err.code)
		err_say(&err, -ETIMEDOUT,
			"nobody opened the output FIFOs for reading (or the logging program was "
			"not "
			"ready) within %u s",
			(unsigned int)(TASKIO_OPEN_LIMIT_NS / 1000000000u));
	io->opened = NULL;
	if (opened)
		opened(io->opened_ctx, &err);
}

void taskio_open(struct taskio *io, taskio_opened_fn opened, void *ctx)
{
	io->opened = opened;
	io->opened_ctx = ctx;
	io->retry_ns = TASKIO_RETRY_MIN_NS;
	io->deadline_ns = util_now_ns() + TASKIO_OPEN_LIMIT_NS;
	loop_timer_arm(io->loop, &io->retry, 0, taskio_try_open, io);
}

bool taskio_is_drained(const struct taskio *io)
{
	for (size_t i = TASKIO_OUT; i < TASKIO_MAX; i++) {
		if (io->s[i].stream || io->s[i].file.rfd >= 0)
			return false;
	}
	return true;
}

static void taskio_check_drained(void *ctx)
{
	struct taskio *io = ctx;
	loop_fn drained = io->drained;

	if (!drained || !taskio_is_drained(io))
		return;
	io->drained = NULL;
	drained(io->drained_ctx);
}

/* One stream is over. For an output, closing the keep-open end is the client's end of file. */
static void taskio_stream_done(void *ctx, int err)
{
	cleanup_free struct taskio_link *link = ctx;
	struct taskio_stream *s = link->stream;

	if (!s)
		return;
	s->link = NULL;
	s->stream = NULL;
	taskio_close_fd(&s->keep_fd);
	taskio_check_drained(s->io);
}

static int taskio_attach_one(struct taskio *io, enum taskio_index i, struct hv_vm *vm,
			     struct err *err)
{
	struct taskio_stream *s = &io->s[i];
	int fd = take_fd(&s->fd);
	int r;

	if (fd < 0)
		return 0;
	s->link = xcalloc(1, sizeof(*s->link));
	s->link->stream = s;
	r = hv_vm_attach_stream(vm, s->id, i == TASKIO_IN ? fd : -1, i == TASKIO_IN ? -1 : fd,
				taskio_stream_done, s->link, &s->stream, err);
	if (r) {
		free(s->link);
		s->link = NULL;
	}
	return r;
}

int taskio_attach(struct taskio *io, struct hv_vm *vm, loop_fn drained, void *ctx, struct err *err)
{
	int r = 0;

	for (size_t i = 0; i < TASKIO_MAX && !r; i++)
		r = taskio_attach_one(io, (enum taskio_index)i, vm, err);
	io->drained = drained;
	io->drained_ctx = ctx;
	return r;
}

void taskio_close_stdin(struct taskio *io)
{
	io->stdin_closed = true;
	taskio_close_fd(&io->s[TASKIO_IN].keep_fd);
}
