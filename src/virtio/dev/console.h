/*
 * virtio-console (virtio 1.2, section 5.3), port 0 alone: the guest's hvc0. Output goes to a descriptor
 * whose reader may be slow or gone: VIRTIO_CONSOLE_BUF_SIZE bytes wait for it, what comes beyond is
 * lost and counted, and the guest never waits (its kernel would do so with a lock held). Where bytes
 * were lost, the sink gets a line that says how many.
 *
 * Threads: the loop's.
 */
#pragma once

#include <stdint.h>

#include "virtio.h"

#define VIRTIO_CONSOLE_BUF_SIZE (64u << 10)

struct virtio_console_params {
	int out_fd; /* taken over, also on failure; made non-blocking; -1 = output is thrown away */
	int in_fd;  /* as above; -1 = no input */
};

int virtio_console_new(const struct virtio_console_params *params, struct virtio_device **ret,
		       struct err *err);
/* Bytes of output lost so far. */
uint64_t virtio_console_nr_lost(struct virtio_device *dev);
