/*
 * virtio-balloon (virtio 1.2, section 5.5): takes memory from the guest (inflate), gives it back
 * (deflate, also by the guest itself when it runs out of memory), and takes pages that the guest reports
 * free as it goes (free page reporting): the host gets them back. What the guest finds there afterwards is zeroes
 * in anonymous memory; where a file is mapped over guest memory (the kernel, a template) it is the file's bytes
 * again. The guest may rely on neither, and is not told that it could (no VIRTIO_BALLOON_F_PAGE_POISON).
 *
 * Threads: the loop's. One request frees at most what its buffers name; after a few of them the loop is
 * given to others.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define VIRTIO_BALLOON_PAGE 4096u

struct virtio_balloon_params {
	/* Guest memory is a shared mapping: pages are given back with MADV_REMOVE, not MADV_DONTNEED. */
	bool shared_memory;
};

struct virtio_balloon_counts {
	uint32_t target_pages; /* what the host asked for */
	uint32_t actual_pages; /* what the guest says it gave */
	uint64_t inflated;     /* pages given back through the balloon, in all */
	uint64_t reported;     /* bytes given back by free page reporting, in all */
};

int virtio_balloon_new(const struct virtio_balloon_params *params, struct virtio_device **ret,
		       struct err *err);
/* Asks the guest to give, or take back, until the balloon holds so many pages of 4 KiB. */
void virtio_balloon_set_target(struct virtio_device *dev, uint32_t pages);
void virtio_balloon_get_counts(struct virtio_device *dev, struct virtio_balloon_counts *ret);
