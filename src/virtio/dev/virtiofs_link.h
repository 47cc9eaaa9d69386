/*
 * harpoon-vmm's end of the channel to harpoon-fs (fs_channel.h). The peer is taken for hostile: what it sends is
 * judged, and what it leaves in shared memory is only ever copied to the guest.
 *
 * Threads: virtiofs_link_call() by one thread per link at a time; the trunk is the loop's.
 */
#pragma once

#include <stdbool.h>
#include <sys/uio.h>

#include "err.h"
#include "fs_channel.h"

/* One link: owned by struct virtiofs_channel. */
struct virtiofs_link {
	int sock;
	uint8_t *slot; /* the request's area, then the answer's */
};

struct virtiofs_channel {
	int trunk; /* owned */
	unsigned int nr_links;
	struct virtiofs_link links[FS_CHANNEL_LINKS_MAX];
	uint8_t *mem; /* owned mapping */
};

/* trunk is taken over in any case. Sends HELLO; the answer comes by the trunk. */
int virtiofs_channel_open(struct virtiofs_channel *c, int trunk, unsigned int nr_links,
			  struct err *err);
/* Accepts one that is zeroed. */
void virtiofs_channel_close(struct virtiofs_channel *c);

struct virtiofs_call {
	size_t len;  /* of the request, which is in the slot; at most FS_CHANNEL_AREA */
	size_t room; /* for the answer */
	/* Filled: */
	struct fs_link_reply reply; /* len is at most `room` and FS_CHANNEL_AREA */
	int fd; /* the opened file, owned by the caller from here on; -1 = none */
};
/* One request to its answer. -EPIPE: harpoon-fs is gone; -EPROTO: it broke the protocol. */
int virtiofs_link_call(const struct virtiofs_link *link, struct virtiofs_call *call);
/* After a call that moved much: gives the slot's memory back. */
void virtiofs_link_trim(const struct virtiofs_link *link, size_t len);

/* One message over the trunk. */
int virtiofs_trunk_send(const struct virtiofs_channel *c, uint32_t type, uint64_t arg,
			const void *data, size_t len);
/*
 * Receives one message; more data than `room` breaks the protocol. 0, or -ETIMEDOUT (0 ms: nothing is
 * there now), -EPIPE: harpoon-fs is gone, -EPROTO.
 */
int virtiofs_trunk_receive(const struct virtiofs_channel *c, struct fs_trunk_msg *ret, void *data,
			   size_t room, int timeout_ms);
