/*
 * virtio-blk (virtio 1.2, section 5.2) over a raw file or a block device: read, write, flush, discard,
 * write zeroes, get id. Errors of the host reach the guest as VIRTIO_BLK_S_IOERR.
 *
 * Threads: the queue is blocking, its one worker does all I/O with preadv and pwritev. The size is that
 * of the file when the device is made; if it shrinks later, requests beyond its end fail.
 *
 * Durability: with FLUSH negotiated, what a guest flushed is durable (fdatasync); a driver without
 * FLUSH gets a write-through disk (5.2.6.2).
 */
#pragma once

#include <stdbool.h>

#include "virtio.h"

struct virtio_blk_params {
	int fd; /* taken over, also on failure; opened O_RDWR unless read_only */
	bool read_only;
	const char *serial; /* what GET_ID says, at most 20 bytes of it; copied; may be NULL */
};

/* -EINVAL: neither a regular file nor a block device, or less than one sector. */
int virtio_blk_new(const struct virtio_blk_params *params, struct virtio_device **ret,
		   struct err *err);
