/*
 * What the backends share: one virtual machine with its processes, and the interface a backend fills.
 *
 * vm.c owns everything here and the order of life and death; a backend starts its VMM process in
 * vm->vmm, makes the channel to the agent, and explains its end.
 */
#pragma once

#include <stdio.h>

#include "child.h"
#include "console.h"
#include "fs_server.h"
#include "hv.h"
#include "template.h"

struct mux;
struct checkpoint_run;

/* err: NULL = saved, and the guest stands still. */
typedef void (*hv_saved_fn)(void *ctx, const char *error);

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
	/* What of this backend's shapes a VM with these parameters, as lines of text for a template's key.
	 * NULL: it has no templates. */
	int (*describe)(const struct hv_params *p, FILE *f, struct err *err);
	/* Saves the machine to two empty files, borrowed. Its memory only if there is no save_memory; else the caller
	 * has that do it, which needs nobody's help. */
	int (*save)(struct hv_vm *vm, int state_fd, int memory_fd, hv_saved_fn done, void *ctx,
		    struct err *err);
	int (*save_memory)(struct hv_vm *vm, int memory_fd, struct err *err);
	/* What the guest was told of its time stamp counter, 0 = nothing. */
	uint32_t (*tsc_khz)(const struct hv_vm *vm);
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
	uint64_t given_bytes;	 /* of guest memory: hv_vm_gave_memory() */
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
	hv_done_fn pause_done; /* NULL = none waits */
	void *pause_ctx;
	char *shape;		       /* hv_describe(); NULL = nothing like it can be saved */
	struct checkpoint_run *saving; /* checkpoint.c: one under way */
	bool is_restored;	       /* tmpl is a checkpoint */
	uint32_t nr_disks;
	struct hv_disk disks[HV_DISKS_MAX]; /* descriptors owned, as those of nics */
	/* clone.c */
	struct template *tmpl; /* owned; what start() makes a clone of; NULL from readiness on */
	char key[TEMPLATE_KEY_LEN + 1]; /* of its template, be there one or not; "" = none wanted */
	bool wants_template;
	uint32_t nr_taps, nr_streams;
	bool falling_back;		      /* the clone failed, a cold boot follows */
	struct hv_nic nics[HV_NICS_MAX];      /* descriptors owned: for that cold boot */
	struct loop_timer clone_timer;	      /* its guest runs, or a cold boot is due */
	uint8_t record[TEMPLATE_CHANNEL_MAX]; /* HV_BIRTH_TEMPLATE: what came from the guest */
	size_t record_len;		      /* larger than the room: it was too much */
	struct loop_timer ready_timer;	      /* not ready in time */
	struct loop_timer grace_timer; /* one process has gone, the other is expected to follow */
	struct loop_timer exit_timer;  /* defers on_exit to a round of its own */
};

/* Guests add memory in blocks of this size, at multiples of it (Linux on x86-64, as long as it begins with less than 64 GiB). */
#define HV_MEMORY_BLOCK ((uint64_t)128 << 20)

/* Size of the machine, as opposed to what its guest begins with: so that whole blocks lead to hv_mem_max(). */
static inline uint64_t hv_machine_bytes(const struct hv_params *p)
{
	uint64_t max = hv_mem_max(p->config, p->mem_bytes), gap = -p->mem_bytes % HV_MEMORY_BLOCK;

	if (max == p->mem_bytes)
		return max;
	return (max + gap + HV_MEMORY_BLOCK - 1) / HV_MEMORY_BLOCK * HV_MEMORY_BLOCK;
}

/* As far as its guest may have touched memory. */
uint64_t hv_used_bytes(const struct hv_vm *vm);

extern const struct hv_ops hv_qemu_ops;
extern const struct hv_ops hv_kvm_ops;
/* backend: what hv_choose_backend() chose. */
const struct hv_ops *hv_ops_of(enum config_backend backend);

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
/* The backend's answer to a pause; error NULL = every vCPU stands still. */
void hv_paused(struct hv_vm *vm, const char *error);
/* Ends the VM for this reason, unless it is ending for an earlier one. */
void hv_end(struct hv_vm *vm, enum hv_exit_kind kind, const char *fmt, ...) HARPOON_PRINTF(3, 4);

/* checkpoint.c */
/* The channel is empty and stays so. */
void hv_checkpoint_held(struct hv_vm *vm);
void hv_checkpoint_end(struct hv_vm *vm, const char *error);
/* As above, and nobody is told. */
void hv_checkpoint_drop(struct hv_vm *vm);
/* Makes vm->tmpl of it, if vm is of its kind. */
int hv_checkpoint_take(struct hv_vm *vm, const struct hv_checkpoint *c, struct err *err);

/* clone.c: finds what a VM is to be made of. No template, no clone: only a checkpoint can fail to fit. */
int hv_clone_look_up(struct hv_vm *vm, struct err *err);
/* Called by a backend with a mux when a clone's guest runs: what its template had sent comes again. */
void hv_clone_runs(struct hv_vm *vm);
/* A clone fails before it is ready: true = it is taken care of. */
bool hv_clone_falls_back(struct hv_vm *vm, enum hv_exit_kind kind, const char *why);
/* A clone could not even be started: starts the VM cold. */
int hv_clone_start_failed(struct hv_vm *vm, int error, struct err *err);
/* It is ready, or ends: nothing is kept for another start. */
void hv_clone_settle(struct hv_vm *vm);
void hv_record(struct hv_vm *vm, const void *data, size_t len);
/* The text behind a key. Caller frees. */
int hv_describe(const struct hv_params *p, const struct hv_ops *ops, char **ret, struct err *err);

/* vm.c, for clone.c */
int hv_start_all(struct hv_vm *vm, struct err *err);
void hv_init_processes(struct hv_vm *vm);
/* Ends both at once and lets go of what belongs to them. */
void hv_drop_processes(struct hv_vm *vm);
void hv_share_free_all(struct hv_vm *vm);

/* Streams multiplexed over one descriptor (mux.h), for a backend's table. fd: owned from here on. */
void hv_mux_open(struct hv_vm *vm, int fd);
int hv_mux_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
		  void *ctx, struct hv_stream **ret);
void hv_mux_detach(struct hv_stream *s);
