/*
 * Streams of the kvm backend: the descriptors go to harpoon-vmm, which joins each to a vsock connection. What is kept
 * here is who is to be told of the end.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "kvm_internal.h"
#include "util.h"

void kvm_stream_over(struct kvm_stream *s, int error)
{
	hv_stream_done_fn done = s->detached ? NULL : s->done;
	void *ctx = s->ctx;

	list_remove(&s->link);
	free(s);
	if (done)
		done(ctx, error);
}

void kvm_end_streams(struct kvm *k, int error)
{
	/* A callback may end others. */
	while (!list_is_empty(&k->streams)) {
		struct kvm_stream *s = list_entry(k->streams.next, struct kvm_stream, link);

		kvm_stream_over(s, s->is_over ? s->error : error);
	}
}

struct kvm_stream *kvm_find_stream(struct kvm *k, uint32_t id)
{
	struct kvm_stream *s;

	list_for_each (s, &k->streams, link) {
		if (s->id == id)
			return s;
	}
	return NULL;
}

int kvm_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done, void *ctx,
	       struct hv_stream **ret)
{
	struct kvm *k = vm->backend;
	struct vmm_request req = {.op = VMM_OP_ATTACH, .stream.id = id};
	cleanup_close int r_end = rfd;
	cleanup_close int w_end = wfd == rfd ? -1 : wfd;
	struct kvm_stream *s;
	int fds[2], r;
	size_t nr = 0;

	if (rfd >= 0) {
		req.stream.flags |= VMM_STREAM_READS;
		fds[nr++] = r_end;
	}
	if (wfd >= 0)
		req.stream.flags |= VMM_STREAM_WRITES;
	if (wfd >= 0 && wfd == rfd)
		req.stream.flags |= VMM_STREAM_ONE;
	else if (wfd >= 0)
		fds[nr++] = w_end;
	if (kvm_find_stream(k, id))
		return -EEXIST;
	r = kvm_send(k, &req, fds, nr);
	if (r)
		return r;
	s = xcalloc(1, sizeof(*s));
	*s = (struct kvm_stream){.base.ops = vm->ops, .kvm = k, .id = id, .done = done, .ctx = ctx};
	list_append(&k->streams, &s->link);
	*ret = &s->base;
	return 0;
}

void kvm_detach(struct hv_stream *base)
{
	struct kvm_stream *s = container_of(base, struct kvm_stream, base);
	struct vmm_request req = {.op = VMM_OP_DETACH, .stream.id = s->id};
	hv_stream_done_fn done = s->done;

	s->detached = true;
	/* A VMM that is gone has closed everything. */
	kvm_send(s->kvm, &req, NULL, 0);
	if (done)
		done(s->ctx, -ECANCELED);
}
