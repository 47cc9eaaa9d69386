/*
 * Streams over vsock; see transport.h and agent_hello.h. The host connects to us: the number of a stream is
 * the port it comes from, and either side may be first to want it. No connection is open while no stream is,
 * so a VM that has just greeted can be saved and restored. One that is saved later keeps its connections: the VMM
 * that goes on with it has them, too.
 *
 * Only the host may connect: other programs of the guest are containers'.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "agent_hello.h"
#include "bridge.h"
#include "cleanup.h"
#include "list.h"
#include "log.h"
#include "mux.h"
#include "transport.h"
#include "util.h"

#define TRANSPORT_BACKLOG 128
/* Connections that came before their stream is wanted here. */
#define TRANSPORT_EARLY_MAX 512
/* Numbers given up here before the host came: the oldest are forgotten. */
#define TRANSPORT_GONE_MAX 1024

struct transport_vsock {
	struct transport base;
	struct loop *loop;
	int fd; /* owned; listens */
	struct loop_watch *watch;
	struct list wanted; /* of struct transport_stream: not connected yet */
	struct list joined; /* of struct transport_stream: with a bridge */
	struct list early;  /* of struct transport_early */
	struct list gone;   /* of struct transport_gone, oldest first */
	unsigned int nr_early, nr_gone;
	struct agent_hello hello; /* what it said, to be said again */
	int hello_fd; /* owned: who waits for the greeting; -1 = it goes to the host's port */
	loop_fn on_restart;
	void *ctx;
};

static_assert(AGENT_VSOCK_FIRST_KEPT == MUX_STREAM_FIRST_FREE, "whatever carries a stream");

struct transport_stream {
	struct list link;
	struct transport_vsock *all;
	uint32_t id;
	int rfd, wfd; /* owned until joined */
	struct bridge *bridge;
	transport_done_fn done;
	void *ctx;
};

struct transport_early {
	struct list link;
	uint32_t id;
	int fd; /* owned */
};

struct transport_gone {
	struct list link;
	uint32_t id;
};

static void transport_stream_over(void *ctx, int err)
{
	struct transport_stream *s = ctx;
	transport_done_fn done = s->done;
	void *done_ctx = s->ctx;

	list_remove(&s->link);
	free(s);
	if (done)
		done(done_ctx, err);
}

static void transport_join(struct transport_stream *s, int fd)
{
	list_remove(&s->link);
	list_append(&s->all->joined, &s->link);
	s->bridge = bridge_new(s->all->loop, fd, s->rfd, s->wfd, transport_stream_over, s);
}

static void transport_early_free(struct transport_vsock *v, struct transport_early *e)
{
	list_remove(&e->link);
	v->nr_early--;
	cleanup_closep(&e->fd);
	free(e);
}

static struct transport_stream *transport_find(struct list *streams, uint32_t id)
{
	struct transport_stream *s;

	list_for_each (s, streams, link) {
		if (s->id == id)
			return s;
	}
	return NULL;
}

static int transport_vsock_attach(struct transport *t, uint32_t id, int rfd, int wfd,
				  transport_done_fn done, void *ctx, struct transport_stream **ret)
{
	struct transport_vsock *v = container_of(t, struct transport_vsock, base);
	struct transport_stream *s;
	struct transport_early *e;

	if (transport_find(&v->wanted, id) || transport_find(&v->joined, id)) {
		if (wfd >= 0 && wfd != rfd)
			close(wfd);
		if (rfd >= 0)
			close(rfd);
		return -EEXIST;
	}
	s = xcalloc(1, sizeof(*s));
	*s = (struct transport_stream){
		.all = v, .id = id, .rfd = rfd, .wfd = wfd, .done = done, .ctx = ctx};
	list_append(&v->wanted, &s->link);
	if (ret)
		*ret = s;
	list_for_each (e, &v->early, link) {
		if (e->id != id)
			continue;
		transport_join(s, take_fd(&e->fd));
		transport_early_free(v, e);
		break;
	}
	return 0;
}

static void transport_remember_gone(struct transport_vsock *v, uint32_t id)
{
	struct transport_gone *g = xcalloc(1, sizeof(*g));

	g->id = id;
	list_append(&v->gone, &g->link);
	if (v->nr_gone++ < TRANSPORT_GONE_MAX)
		return;
	g = list_entry(v->gone.next, struct transport_gone, link);
	list_remove(&g->link);
	v->nr_gone--;
	free(g);
}

static void transport_vsock_detach(struct transport_stream *s)
{
	if (s->bridge) {
		bridge_detach(s->bridge);
		return;
	}
	transport_remember_gone(s->all, s->id);
	if (s->wfd != s->rfd)
		cleanup_closep(&s->wfd);
	cleanup_closep(&s->rfd);
	transport_stream_over(s, -ECANCELED);
}

static bool transport_forget_gone(struct transport_vsock *v, uint32_t id)
{
	struct transport_gone *g;

	list_for_each (g, &v->gone, link) {
		if (g->id != id)
			continue;
		list_remove(&g->link);
		v->nr_gone--;
		free(g);
		return true;
	}
	return false;
}

/* Streams of smaller numbers, and everything that waits for one. */
static void transport_drop(struct transport_vsock *v, uint64_t below)
{
	struct transport_stream *s;
	struct transport_early *e;
	struct transport_gone *g;

	list_for_each (s, &v->wanted, link)
		if (s->id < below)
			transport_vsock_detach(s);
	list_for_each (s, &v->joined, link)
		if (s->id < below)
			transport_vsock_detach(s);
	list_for_each (e, &v->early, link)
		transport_early_free(v, e);
	list_for_each (g, &v->gone, link) {
		list_remove(&g->link);
		free(g);
	}
	v->nr_gone = 0;
}

/* The host has restored this machine and asks whether anybody is there. A new connection has room for it. */
static void transport_greet_again(const struct transport_vsock *v, int fd)
{
	if (write(fd, &v->hello, sizeof(v->hello)) != sizeof(v->hello))
		log_warn("transport", "the greeting could not be said again");
	close(fd);
}

/* Only the container's own streams go on; the new host uses the numbers of others again. */
static void transport_restart(struct transport_vsock *v, int fd)
{
	transport_drop(v, AGENT_VSOCK_FIRST_KEPT);
	cleanup_closep(&v->hello_fd);
	v->hello_fd = fd;
	v->on_restart(v->ctx);
}

/* fd: taken over. */
static void transport_connected(struct transport_vsock *v, uint32_t id, int fd)
{
	struct transport_stream *s = transport_find(&v->wanted, id);
	struct transport_early *e;

	if (id == AGENT_VSOCK_GREET) {
		transport_greet_again(v, fd);
		return;
	}
	if (id == AGENT_VSOCK_RESTART) {
		transport_restart(v, fd);
		return;
	}
	if (s) {
		transport_join(s, fd);
		return;
	}
	if (transport_forget_gone(v, id) || v->nr_early == TRANSPORT_EARLY_MAX) {
		close(fd);
		return;
	}
	e = xcalloc(1, sizeof(*e));
	e->id = id;
	e->fd = fd;
	list_append(&v->early, &e->link);
	v->nr_early++;
}

static void transport_on_connection(void *ctx, uint32_t events)
{
	struct transport_vsock *v = ctx;
	struct sockaddr_vm peer = {0};
	socklen_t len = sizeof(peer);
	int fd = accept4(v->fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (peer.svm_cid == VMADDR_CID_HOST)
		transport_connected(v, peer.svm_port, fd);
	else
		close(fd);
}

/* Blocks until the host has taken it, which is a matter of microseconds; nothing else runs yet. */
static int transport_vsock_send_hello(struct transport *t, const void *data, size_t len)
{
	const struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = AGENT_VSOCK_PORT};
	struct transport_vsock *v = container_of(t, struct transport_vsock, base);
	cleanup_close int fd = take_fd(&v->hello_fd);

	if (len != sizeof(v->hello))
		return -EINVAL;
	memcpy(&v->hello, data, len);
	if (fd < 0) {
		fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || connect(fd, (const struct sockaddr *)&host, sizeof(host)))
			return -errno;
	}
	return write(fd, data, len) == (ssize_t)len ? 0 : -EIO;
}

static void transport_vsock_free(struct transport *t)
{
	struct transport_vsock *v = container_of(t, struct transport_vsock, base);

	loop_watch_remove(v->watch);
	cleanup_closep(&v->fd);
	cleanup_closep(&v->hello_fd);
	transport_drop(v, UINT64_MAX);
	free(v);
}

static const struct transport_ops transport_vsock_ops = {
	.attach = transport_vsock_attach,
	.detach = transport_vsock_detach,
	.send_hello = transport_vsock_send_hello,
	.free = transport_vsock_free,
};

int transport_vsock_new(struct loop *loop, loop_fn on_restart, void *ctx, struct transport **ret,
			struct err *err)
{
	const struct sockaddr_vm own = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = AGENT_VSOCK_PORT};
	cleanup_close int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct transport_vsock *v;

	if (fd < 0 || bind(fd, (const struct sockaddr *)&own, sizeof(own)) ||
	    listen(fd, TRANSPORT_BACKLOG))
		return err_set(err, -errno, "listen on vsock port %u", AGENT_VSOCK_PORT);
	v = xcalloc(1, sizeof(*v));
	v->base.ops = &transport_vsock_ops;
	v->loop = loop;
	v->hello_fd = -1;
	v->on_restart = on_restart;
	v->ctx = ctx;
	list_init(&v->wanted);
	list_init(&v->joined);
	list_init(&v->early);
	list_init(&v->gone);
	v->fd = take_fd(&fd);
	v->watch = loop_watch_add(loop, v->fd, EPOLLIN, transport_on_connection, v);
	if (!v->watch) {
		int r = -errno;

		transport_vsock_free(&v->base);
		return err_set(err, r, "watch vsock port %u", AGENT_VSOCK_PORT);
	}
	*ret = &v->base;
	return 0;
}
