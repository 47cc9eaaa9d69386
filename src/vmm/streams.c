/* Streams over vsock; see streams.h. */
#include "streams.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "agent_hello.h"
#include "cleanup.h"
#include "dev/vsock.h"
#include "util.h"

/* Longer greetings are cut, which the shim notices. */
#define STREAMS_HELLO_MAX 256

struct stream {
	struct list link;
	struct streams *all;
	uint32_t id;
	int rfd, wfd;		   /* owned until connected */
	struct vsock_stream *conn; /* NULL = waits for the greeting, or has failed */
	struct loop_timer failed;  /* reports a failure from the loop */
	int error;
};

int streams_init(struct streams *s, struct loop *loop, const struct streams_callbacks *cb,
		 void *ctx)
{
	int ends[2];

	*s = (struct streams){.loop = loop, .cb = *cb, .ctx = ctx, .hello_r = -1, .hello_w = -1};
	list_init(&s->all);
	/* Made now: later no descriptor can be. */
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	s->hello_r = ends[0];
	s->hello_w = ends[1];
	return 0;
}

static void stream_close(struct stream *t)
{
	if (t->wfd != t->rfd)
		cleanup_closep(&t->wfd);
	cleanup_closep(&t->rfd);
	t->wfd = -1;
}

static void stream_free(struct stream *t)
{
	list_remove(&t->link);
	loop_timer_cancel(&t->failed);
	t->all->nr--;
	stream_close(t);
	free(t);
}

static void stream_on_done(void *ctx, int error)
{
	struct stream *t = ctx;
	struct streams *s = t->all;
	uint32_t id = t->id;

	stream_free(t);
	s->cb.on_done(s->ctx, id, error);
}

static void stream_on_failed(void *ctx)
{
	struct stream *t = ctx;

	stream_on_done(t, t->error);
}

/* In a round of its own. */
static void stream_fail(struct stream *t, int error)
{
	stream_close(t);
	t->error = error;
	loop_timer_arm(t->all->loop, &t->failed, 0, stream_on_failed, t);
}

static void stream_connect(struct stream *t)
{
	int rfd = t->rfd, wfd = t->wfd, r;

	t->rfd = t->wfd = -1;
	r = vsock_connect(t->all->dev, t->id, AGENT_VSOCK_PORT, rfd, wfd, stream_on_done, t,
			  &t->conn);
	if (r)
		stream_fail(t, r);
}

void streams_attach(struct streams *s, uint32_t id, int rfd, int wfd)
{
	struct stream *t = xcalloc(1, sizeof(*t));

	*t = (struct stream){.all = s, .id = id, .rfd = rfd, .wfd = wfd};
	list_append(&s->all, &t->link);
	s->nr++;
	if (!s->dev)
		stream_fail(t, -ENOTCONN);
	else if (s->nr > VSOCK_STREAMS_MAX)
		stream_fail(t, -ENOSPC);
	else if (s->greeted)
		stream_connect(t);
}

void streams_detach(struct streams *s, uint32_t id)
{
	struct stream *t;

	list_for_each (t, &s->all, link) {
		if (t->id != id)
			continue;
		if (t->conn)
			vsock_detach(t->conn);
		else if (!t->failed.loop)
			stream_fail(t, -ECANCELED);
		return;
	}
}

/* The agent has greeted and closed: what it said is in the pipe. */
static void streams_on_greeted(void *ctx, int error)
{
	struct streams *s = ctx;
	uint8_t hello[STREAMS_HELLO_MAX];
	struct stream *t;
	ssize_t n = read(s->hello_r, hello, sizeof(hello));

	cleanup_closep(&s->hello_r);
	s->greeted = true;
	list_for_each (t, &s->all, link) {
		if (!t->failed.loop)
			stream_connect(t);
	}
	s->cb.on_hello(s->ctx, hello, n > 0 ? (size_t)n : 0);
}

int streams_resume(struct streams *s, bool in_use)
{
	s->greeting = true;
	if (!s->dev)
		return -ENOTCONN;
	return vsock_connect(s->dev, in_use ? AGENT_VSOCK_RESTART : AGENT_VSOCK_GREET,
			     AGENT_VSOCK_PORT, -1, take_fd(&s->hello_w), streams_on_greeted, s,
			     NULL);
}

void streams_set_paused(struct streams *s, bool paused)
{
	if (s->dev)
		vsock_set_paused(s->dev, paused);
}

/* No container runs before the agent has greeted: the first to come is the agent. */
static int streams_on_connect(void *ctx, uint32_t host_port, uint32_t guest_port,
			      struct vsock_accept *ret)
{
	struct streams *s = ctx;

	if (host_port != AGENT_VSOCK_PORT || s->greeting)
		return -ECONNREFUSED;
	s->greeting = true;
	*ret = (struct vsock_accept){
		.rfd = -1, .wfd = take_fd(&s->hello_w), .done = streams_on_greeted, .ctx = s};
	return 0;
}

int streams_new_device(struct streams *s, uint64_t cid, struct virtio_device **ret, struct err *err)
{
	int r;

	if (s->dev)
		return err_say(err, -EEXIST, "a VM has one vsock device");
	r = vsock_new(&(struct vsock_params){.guest_cid = cid,
					     .on_connect = streams_on_connect,
					     .ctx = s,
					     .kept_from_port = AGENT_VSOCK_FIRST_KEPT},
		      &s->dev, err);
	*ret = s->dev;
	return r;
}

void streams_done(struct streams *s)
{
	struct stream *t;

	list_for_each (t, &s->all, link)
		stream_free(t);
	cleanup_closep(&s->hello_r);
	cleanup_closep(&s->hello_w);
}
