/*
 * The agent's streams: numbers of the shim's, each a vsock connection between the descriptors the shim
 * handed over and the agent in the guest. Loop's thread.
 *
 * The agent greets by connecting to AGENT_VSOCK_PORT of the host once; afterwards it only listens on
 * that port, and stream N is a connection from port N of the host: the number needs no header. In a restored
 * machine it is asked to greet (AGENT_VSOCK_GREET). Streams attached before the greeting wait for it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "list.h"
#include "loop.h"
#include "virtio.h"

struct streams_callbacks {
	/* Once; data is borrowed for the call. The bytes are the guest's. */
	void (*on_hello)(void *ctx, const void *data, size_t len);
	/* Stream `id` is over, both descriptors are closed; error as vsock_done_fn. */
	void (*on_done)(void *ctx, uint32_t id, int error);
};

struct streams {
	struct loop *loop; /* borrowed */
	struct streams_callbacks cb;
	void *ctx;
	struct virtio_device *dev; /* borrowed; NULL = the machine has no vsock device */
	struct list all;	   /* of struct stream */
	unsigned int nr;
	int hello_r, hello_w; /* owned: the greeting, as a pipe */
	bool greeting, greeted;
};

int streams_init(struct streams *s, struct loop *loop, const struct streams_callbacks *cb,
		 void *ctx);
/* The machine, and its vsock device, is gone. */
void streams_done(struct streams *s);
/* The device that carries them, once. */
int streams_new_device(struct streams *s, uint64_t cid, struct virtio_device **ret,
		       struct err *err);
/*
 * The agent has greeted in an earlier life, and is asked to do so again. The machine is restored, and does not run.
 * in_use: it had streams, which go on when their numbers are attached again.
 */
int streams_resume(struct streams *s, bool in_use);
/* The guest stands still, or runs again: what waits for its answer waits as long as it takes. */
void streams_set_paused(struct streams *s, bool paused);
/* rfd, wfd: taken over. A failure is reported by on_done, as everything about streams is. */
void streams_attach(struct streams *s, uint32_t id, int rfd, int wfd);
/* Nothing when it has ended. */
void streams_detach(struct streams *s, uint32_t id);
