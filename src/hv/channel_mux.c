/*
 * Streams of a backend that has one byte channel to the agent: all multiplexed over it, see mux.h.
 *
 * Thread: the loop's.
 */
#include <errno.h>

#include "hv_internal.h"
#include "mux.h"
#include "util.h"

struct hv_mux_stream {
	struct hv_stream base;
	struct mux_stream *stream;
	hv_stream_done_fn done;
	void *ctx;
};

static void hv_mux_on_done(void *ctx, int err)
{
	struct hv_mux_stream *s = ctx;
	hv_stream_done_fn done = s->done;
	void *done_ctx = s->ctx;

	free(s);
	if (done)
		done(done_ctx, err);
}

int hv_mux_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
		  void *ctx, struct hv_stream **ret)
{
	struct hv_mux_stream *s = xcalloc(1, sizeof(*s));
	int r;

	*s = (struct hv_mux_stream){.base.ops = vm->ops, .done = done, .ctx = ctx};
	r = mux_attach(vm->mux, id, rfd, wfd, hv_mux_on_done, s, &s->stream);
	if (r) {
		free(s);
		return r;
	}
	*ret = &s->base;
	return 0;
}

void hv_mux_detach(struct hv_stream *s)
{
	mux_detach(container_of(s, struct hv_mux_stream, base)->stream);
}

static void hv_mux_on_hello(void *ctx, const void *data, size_t len)
{
	hv_greeted(ctx, data, len);
}

static void hv_mux_on_broken(void *ctx, int err)
{
	hv_channel_ended(ctx, err);
}

static void hv_mux_on_held(void *ctx)
{
	hv_checkpoint_held(ctx);
}

static void hv_mux_on_input(void *ctx, const void *data, size_t len)
{
	hv_record(ctx, data, len);
}

void hv_mux_open(struct hv_vm *vm, int fd)
{
	static const struct mux_callbacks cb = {.on_hello = hv_mux_on_hello,
						.on_broken = hv_mux_on_broken,
						.on_held = hv_mux_on_held};
	static const struct mux_callbacks recording = {.on_hello = hv_mux_on_hello,
						       .on_broken = hv_mux_on_broken,
						       .on_input = hv_mux_on_input};
	bool record = vm->params.birth == HV_BIRTH_TEMPLATE;

	vm->mux = mux_new(vm->loop, fd, record ? &recording : &cb, vm);
	hv_channel_opened(vm);
}
