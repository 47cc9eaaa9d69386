/*
 * The window through which the guest sees files instead of copies of them (DAX): shared memory 0 of the virtio-fs device
 * (virtio 1.2, section 5.11.5), in slots of VIRTIOFS_WINDOW_SLOT bytes. In each of them one part of a file is mapped, or
 * nothing, which reads as zeros. All of it is read-only.
 *
 * A file may become shorter while it is mapped: what lies behind its end cannot be read any more, and a guest that tries
 * would stop there. What it finds instead, after virtiofs_window_mend(), is zeros. So does this process, which reads there
 * for requests that point into the window: with the first window SIGBUS gets a handler, and stays what it is elsewhere.
 *
 * Threads: any; a lock of its own.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

/* What Linux maps at a time (FUSE_DAX_SHIFT), and the alignment that harpoon-fs tells it (FUSE_MAP_ALIGNMENT). */
#define VIRTIOFS_WINDOW_SLOT (2u << 20)
/* A descriptor for each slot. */
#define VIRTIOFS_WINDOW_MAX (4ull << 30)
/* Of one process. */
#define VIRTIOFS_WINDOWS_MAX 4

struct virtiofs_window_slot {
	int fd; /* owned; -1 = the slot is free */
	uint64_t node_id, export_id;
	uint64_t offset;   /* in the file */
	uint32_t readable; /* bytes of it that could be read when it was looked at last */
	bool is_short;	   /* behind them zeros are mapped */
};

struct virtiofs_window {
	pthread_mutex_t lock;
	uint8_t *host; /* owned mapping; NULL = there is no window */
	uint64_t len;
	uint32_t nr;
	struct virtiofs_window_slot *slots; /* owned */
	uint64_t nr_mends;
	atomic_uint nr_short; /* slots that are */
	atomic_bool was_hit;  /* this process has met the end of some file */
};

/* len: whole slots; 0 = none, and everything else finds nothing to do. */
int virtiofs_window_init(struct virtiofs_window *w, uint64_t len, struct err *err);
void virtiofs_window_done(struct virtiofs_window *w);

/*
 * Maps one slot at `at` of the window anew; what->fd is taken over in any case. is_revoked(ctx, export_id), under the
 * window's lock: -ESTALE. -EINVAL: not a slot, or no part of a file.
 */
int virtiofs_window_map(struct virtiofs_window *w, uint64_t at,
			const struct virtiofs_window_slot *what,
			bool (*is_revoked)(void *ctx, uint64_t export_id), void *ctx);
/* Whole slots: -EINVAL. */
int virtiofs_window_unmap(struct virtiofs_window *w, uint64_t at, uint64_t len);
/* Everything of one export; of all (0). */
void virtiofs_window_clear(struct virtiofs_window *w, uint64_t export_id);

/* Puts zeros where files have become shorter. Returns how often something was to be done so far. */
uint64_t virtiofs_window_mend(struct virtiofs_window *w);
/* Maps again what was mended and has become longer since. */
void virtiofs_window_renew(struct virtiofs_window *w);
