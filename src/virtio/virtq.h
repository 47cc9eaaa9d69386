/*
 * Split virtqueue, device side (virtio 1.2, section 2.7), over a guest that lies.
 *
 * A queue belongs to one thread at a time; a caller with several threads holds its own lock around
 * every call. Nothing here allocates, blocks or ends the process: a guest that breaks a rule makes the
 * queue broken, which the device reports as NEEDS_RESET and which only virtq_start() heals.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "guest_mem.h"

#define VIRTQ_SIZE_MAX 1024

struct vring_desc;
struct vring_avail;
struct vring_used;

struct virtq {
	const struct guest_mem *mem; /* borrowed; outlives the queue's run */
	struct vring_desc *desc;     /* the three rings: guest memory, borrowed */
	struct vring_avail *avail;
	struct vring_used *used;
	const char *broken; /* static text: the rule the guest broke; NULL = healthy */
	uint16_t size;
	uint16_t last_avail; /* next entry of the available ring to take */
	uint16_t used_idx;   /* next entry of the used ring to fill */
	uint16_t signalled;  /* used_idx when the guest was last told */
	bool signalled_valid;
	bool event_idx;
	bool indirect;
	uint16_t nr_in_flight;
	uint64_t in_flight[VIRTQ_SIZE_MAX / 64]; /* heads taken and not yet given back */
};

struct virtq_config {
	uint16_t size;	     /* power of two, at most VIRTQ_SIZE_MAX */
	uint16_t last_avail; /* where to go on; 0 for a fresh queue */
	bool event_idx;	     /* VIRTIO_RING_F_EVENT_IDX was negotiated */
	bool indirect;	     /* VIRTIO_RING_F_INDIRECT_DESC was negotiated */
	/* Host pointers to the rings, whose whole extent (virtq_*_len) the caller has checked. */
	void *desc, *avail, *used;
};

/* One request: readable buffers first, then writable ones. */
struct virtq_chain {
	uint16_t head;
	uint16_t nr_readable; /* iov[0 .. nr_readable) */
	uint16_t nr_writable; /* iov[nr_readable .. nr_readable + nr_writable) */
	uint32_t total;	      /* bytes of all of them */
	struct iovec iov[VIRTQ_SIZE_MAX];
};

/* Bytes of each ring for a size, the event index fields included. */
uint64_t virtq_desc_len(uint16_t size);
uint64_t virtq_avail_len(uint16_t size);
uint64_t virtq_used_len(uint16_t size);

/* 0, or -EINVAL: size, alignment. Forgets all earlier state. */
int virtq_start(struct virtq *q, const struct guest_mem *mem, const struct virtq_config *config);

/* As virtq_start() with the rings at guest addresses, which are checked; -EFAULT outside memory. */
int virtq_start_gpa(struct virtq *q, const struct guest_mem *mem, struct virtq_config config,
		    gpa_t desc, gpa_t avail, gpa_t used);

/*
 * Takes the next request. 1 = *chain is filled, 0 = none, -EPROTO = the queue is broken (q->broken
 * says why, once it is set every call answers this).
 */
int virtq_pop(struct virtq *q, struct virtq_chain *chain);
/*
 * Takes back the last virtq_pop(), whose chain was not used and is not to be used any more: the next
 * pop answers it again (as the guest has it then). Only directly after that pop.
 */
void virtq_unpop(struct virtq *q, uint16_t head);
/* Is there a request that virtq_pop() would take? A hint: the guest may lie. */
bool virtq_has_more(const struct virtq *q);

/* Gives a request back, with `written` bytes placed in its writable buffers. */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
/* Several at once: the guest sees all of them or none (buffers that belong together). */
struct virtq_done {
	uint16_t head;
	uint32_t written;
};
void virtq_push_all(struct virtq *q, const struct virtq_done *done, unsigned int nr);
/* After pushes: must the guest be interrupted? */
bool virtq_should_notify(struct virtq *q);

/*
 * Asks for kicks, before sleeping. True when requests arrived meanwhile: pop again instead of sleeping.
 */
bool virtq_enable_kicks(struct virtq *q);
void virtq_disable_kicks(struct virtq *q);
