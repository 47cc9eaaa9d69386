/* Streams multiplexed over one channel; see transport.h and mux.h. */
#include <errno.h>
#include <unistd.h>

#include "log.h"
#include "mux.h"
#include "transport.h"
#include "util.h"

struct transport_mux {
	struct transport base;
	struct mux *mux;
	loop_fn on_broken, on_restart;
	void *ctx;
};

static int transport_mux_attach(struct transport *t, uint32_t id, int rfd, int wfd,
				transport_done_fn done, void *ctx, struct transport_stream **ret)
{
	struct transport_mux *m = container_of(t, struct transport_mux, base);

	/* Handles are opaque on both sides: no wrapper needed. */
	return mux_attach(m->mux, id, rfd, wfd, done, ctx, (struct mux_stream **)ret);
}

static void transport_mux_detach(struct transport_stream *s)
{
	mux_detach((struct mux_stream *)s);
}

static int transport_mux_send_hello(struct transport *t, const void *data, size_t len)
{
	return mux_send_hello(container_of(t, struct transport_mux, base)->mux, data, len);
}

static void transport_mux_free(struct transport *t)
{
	struct transport_mux *m = container_of(t, struct transport_mux, base);

	mux_free(m->mux);
	free(m);
}

static const struct transport_ops transport_mux_ops = {
	.attach = transport_mux_attach,
	.detach = transport_mux_detach,
	.send_hello = transport_mux_send_hello,
	.free = transport_mux_free,
};

static void transport_mux_broken(void *ctx, int err)
{
	struct transport_mux *m = ctx;

	log_warn("transport", "channel to the host ended: error %d", -err);
	m->on_broken(m->ctx);
}

static void transport_mux_restarted(void *ctx)
{
	struct transport_mux *m = ctx;

	m->on_restart(m->ctx);
}

static const struct mux_callbacks transport_mux_callbacks = {
	.on_broken = transport_mux_broken,
	.on_restart = transport_mux_restarted,
};

struct transport *transport_mux_new(struct loop *loop, int fd, loop_fn on_broken,
				    loop_fn on_restart, void *ctx)
{
	struct transport_mux *m = xcalloc(1, sizeof(*m));

	m->base.ops = &transport_mux_ops;
	m->on_broken = on_broken;
	m->on_restart = on_restart;
	m->ctx = ctx;
	m->mux = mux_new(loop, fd, &transport_mux_callbacks, m);
	if (!m->mux) {
		free(m);
		return NULL;
	}
	return &m->base;
}
