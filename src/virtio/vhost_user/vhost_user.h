/*
 * vhost-user back-end (the server's side): the conversation with the front-end (QEMU) that hands over
 * guest memory and virtqueues of one device. It holds mappings, descriptors and ring addresses, and
 * tells the device when a queue may run and when it must stand still.
 *
 * One thread owns a struct vhost_user and calls everything here. While a queue is started, its
 * struct virtq and descriptors belong to the device's threads; after queue_stop() has returned they
 * belong to the owner again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "guest_mem.h"
#include "vhost_user_msg.h"
#include "virtq.h"

#define VHOST_USER_QUEUES_MAX 16

struct vhost_user;

struct vhost_user_queue {
	struct virtq vq;
	int kick_fd; /* eventfd the guest's kicks arrive on; owned by struct vhost_user */
	int call_fd; /* eventfd that interrupts the guest; -1 = nobody listens */
};

struct vhost_user_ops {
	/* The queue may run: q is valid until queue_stop() for it returns. */
	void (*queue_start)(void *ctx, unsigned int index, struct vhost_user_queue *q);
	/* Must not return before nothing of the queue or of guest memory is in use. */
	void (*queue_stop)(void *ctx, unsigned int index);
	/*
	 * What the device keeps besides its queues, written to or read from fd (borrowed, a pipe that
	 * blocks) up to its end. No queue runs meanwhile. 0 or -errno, which the front-end gets to know
	 * as failure. Both NULL = the device cannot be saved.
	 */
	int (*state_save)(void *ctx, int fd);
	int (*state_load)(void *ctx, int fd);
};

struct vhost_user_config {
	int fd;			  /* connected stream socket; taken over */
	uint64_t device_features; /* offered beside the ring features that virtq.c implements */
	unsigned int nr_queues;	  /* at most VHOST_USER_QUEUES_MAX */
	const struct vhost_user_ops *ops;
	void *ctx;
};

int vhost_user_new(const struct vhost_user_config *config, struct vhost_user **ret,
		   struct err *err);
/* Stops all queues, unmaps, closes. Accepts NULL. */
void vhost_user_free(struct vhost_user *vu);

/*
 * Waits for one message and obeys it. 1 = go on, 0 = the front-end hung up, negative = it broke the
 * protocol or the connection failed: free it.
 */
int vhost_user_handle_message(struct vhost_user *vu, struct err *err);

/*
 * One message already received: for the function above and for tests. Takes over fds[] in any case.
 * Fills *reply and *reply_size when an answer is due (size 0 = none).
 */
int vhost_user_dispatch(struct vhost_user *vu, const struct vhost_user_header *h,
			const union vhost_user_payload *p, int *fds, unsigned int nr_fds,
			union vhost_user_payload *reply, uint32_t *reply_size, struct err *err);
