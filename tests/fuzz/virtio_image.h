/*
 * Fuzzing a virtio device over a memory image. Input: 16 bytes of settings, a table of operations, and
 * what is in the guest's memory, rings included; the rest of its 1 MiB is zero.
 *
 *   0..7   features that the driver accepts, of those offered (VERSION_1 is added)
 *   8      queue sizes: queue i has 1 << ((byte + i) % 7)
 *   9      number of operations, modulo VIRTIO_IMAGE_OPS_MAX + 1
 *   10..11 VIRTIO_IMAGE_EXACT: queue size from the byte 8 alone; other bits spare
 *   12..15 spare
 *   16..   operations, four bytes each: kind, a, b (16 bits)
 *   then   memory in pieces: address (16 bits), length (16 bits), bytes
 *
 * Queue i lies at i * 4096: descriptors, the available ring at + 0x400, the used ring at + 0x800.
 * Around guest memory lie pages without access: a device that leaves it crashes. A device's shared memory is at 1 MiB.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "virtio.h"

#define VIRTIO_IMAGE_RAM (1u << 20)
#define VIRTIO_IMAGE_OPS_MAX 64
#define VIRTIO_IMAGE_EXACT 1

struct virtio_image {
	struct loop *loop;
	struct virtio_device *dev;
	uint8_t *ram;
	void *ctx; /* the target's */
	/* What the host does meanwhile (operation kind 4); may be NULL. */
	void (*host)(struct virtio_image *image, uint8_t a, uint16_t b);
	void (*end)(struct virtio_image *image); /* just before the device is freed; may be NULL */
};

/*
 * Plays one input on a device just made, which it frees. Workers are not started: their queues are
 * served from here, so that the same input always does the same.
 */
void virtio_image_run(struct virtio_image *image, struct virtio_device *dev, const uint8_t *data,
		      size_t size);
