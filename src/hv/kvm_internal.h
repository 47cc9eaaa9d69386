/*
 * What the files of the kvm backend share: kvm.c (events, calls, the end), kvm_launch.c (from nothing to a guest that
 * runs), kvm_streams.c.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hv_internal.h"
#include "list.h"
#include "loop.h"
#include "vmm_control.h"

enum kvm_end { KVM_END_NONE, KVM_END_RESET, KVM_END_FAILED };

struct kvm {
	struct hv_vm *vm;
	int sock; /* owned */
	struct loop_watch *watch;
	struct list streams; /* of struct kvm_stream */
	bool running, greeted;
	enum vmm_event_kind expected; /* the answer to a pause, resume or save; 0 = none */
	hv_saved_fn on_saved;
	void *saved_ctx;
	struct loop_timer call_timer;
	/* A callback further up may have had the VM freed: > 0 keeps this struct. */
	unsigned int depth;
	bool freed;
	enum kvm_end end;
	char end_text[VMM_EVENT_TEXT_MAX * 4];
};

struct kvm_stream {
	struct hv_stream base;
	struct list link;
	struct kvm *kvm;
	uint32_t id;
	bool detached; /* its owner is gone; the VMM has still to say that it is over */
	bool is_over;  /* the VMM has said so, while nobody could be told */
	int error;
	hv_stream_done_fn done;
	void *ctx;
};

/* fds: borrowed. */
int kvm_send(struct kvm *k, struct vmm_request *req, const int *fds, size_t nr_fds);

/* kvm_launch.c: struct hv_ops's start. on_socket: what is to happen when the control socket can be read. */
int kvm_launch(struct hv_vm *vm, int fs_fd, loop_watch_fn on_socket, struct err *err);

/* kvm_streams.c: attach and detach as in struct hv_ops. */
int kvm_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done, void *ctx,
	       struct hv_stream **ret);
void kvm_detach(struct hv_stream *base);
struct kvm_stream *kvm_find_stream(struct kvm *k, uint32_t id);
/* Tells its owner, if there is one still, and frees it. */
void kvm_stream_over(struct kvm_stream *s, int error);
/* All of them; error: for those of which nothing is known. */
void kvm_end_streams(struct kvm *k, int error);
