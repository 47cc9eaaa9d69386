/*
 * What the backends share: one virtual machine with its processes, and the interface a backend fills.
 *
 * vm.c owns everything here and the order of life and death; a backend starts its VMM process in
 * vm->vmm, makes the channel to the agent, and explains its end.
 */
#pragma once

#include "child.h"
#include "console.h"
#include "fs_server.h"
#include "hv.h"

struct mux;

struct hv_ops {
	const char *name;
	enum fs_server_channel fs_channel;
	/* Allocates vm->backend. Nothing is started. */
	int (*new)(struct hv_vm *vm, struct err *err);
	/* Starts vm->vmm, sets vm->console, and says hv_channel_opened(). fs_fd: the VMM's end of the
	 * file server's channel, borrowed. */
	int (*start)(struct hv_vm *vm, int fs_fd, struct err *err);
	int (*pause)(struct hv_vm *vm, struct err *err);
	int (*resume)(struct hv_vm *vm, struct err *err);
	/* As hv_vm_attach_stream(), while the channel is open. *ret: a handle with ops set. */
	int (*attach)(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
		      void *ctx, struct hv_stream **ret);
	void (*detach)(struct hv_stream *s);
	/* vm->vmm was reaped and vm->console drained: what happened? */
	void (*explain_exit)(struct hv_vm *vm, struct hv_exit *ret);
	/* vm->vmm is gone. Runs the done callbacks of streams that are left. Accepts a VM whose new()
	 * failed or never ran. */
	void (*free)(struct hv_vm *vm);
};

enum hv_state {
	HV_NEW,	    /* nothing runs */
	HV_RUNNING, /* processes run, or did until a moment ago */
	HV_ENDING,  /* everything is being killed; vm->why says why */
	HV_ENDED,   /* on_exit was called */
};

/* A tree to be exported once the file server runs. */
struct hv_share {
	struct list link;
	char name[HV_SHARE_NAME_MAX];
	int fd; /* owned */
	uint32_t flags;
};

struct hv_vm {
	const struct hv_ops *ops;
	void *backend; /* the backend's own, freed by ops->free */
	struct loop *loop;
	struct hv_callbacks cb;
	void *ctx;
	struct hv_params params; /* id is a copy */
	char *id;
	enum hv_state state;
	struct child vmm;
	struct fs_server fs;
	struct child net_helper;
	struct list shares;	 /* of struct hv_share, until the start */
	struct console *console; /* owned; NULL before the start */
	/* The agent's channel: open from the start on, over when nothing more comes out of it. */
	bool channel_open, channel_over;
	struct mux *mux; /* owned; backends whose streams are multiplexed over one descriptor */
	struct hv_ready ready;
	bool is_ready;
	struct hv_exit why;
	struct loop_timer ready_timer; /* not ready in time */
	struct loop_timer grace_timer; /* one process has gone, the other is expected to follow */
	struct loop_timer exit_timer;  /* defers on_exit to a round of its own */
};

extern const struct hv_ops hv_qemu_ops;
extern const struct hv_ops hv_kvm_ops;

/* Base of a backend's handle. */
struct hv_stream {
	const struct hv_ops *ops;
};

/* The way to the agent exists from now on. */
void hv_channel_opened(struct hv_vm *vm);
/* Nothing more comes from the agent; every stream's done callback has run. -EPROTO: the guest, or its
 * VMM, broke the protocol. The VM ends, or is about to. */
void hv_channel_ended(struct hv_vm *vm, int err);
/* The agent's greeting came; the guest is hostile. */
void hv_greeted(struct hv_vm *vm, const void *data, size_t len);
/* For explain_exit: the guest reset itself. Orderly, or did it crash? The console knows. */
void hv_explain_reset(const struct hv_vm *vm, struct hv_exit *ret);
/* Ends the VM for this reason, unless it is ending for an earlier one. */
void hv_end(struct hv_vm *vm, enum hv_exit_kind kind, const char *fmt, ...) HARPOON_PRINTF(3, 4);

/* Streams multiplexed over one descriptor (mux.h), for a backend's table. fd: owned from here on. */
void hv_mux_open(struct hv_vm *vm, int fd);
int hv_mux_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
		  void *ctx, struct hv_stream **ret);
void hv_mux_detach(struct hv_stream *s);
