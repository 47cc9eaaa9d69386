/*
 * A guest's virtio driver inside a test: memory image, register window, rings as Linux lays them out
 * and drives them over virtio-mmio (status dance, features, queues, available and used rings). Tests
 * of hostile guests reach below it, to the registers and the rings themselves.
 *
 * Threads: the device's loop runs in the test's thread, by vdrv_run() and the waiting functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_ring.h>

#include "loop.h"
#include "mmio.h"

#define VDRV_RAM_GPA 0x100000ull
#define VDRV_RAM_LEN (8u << 20)
#define VDRV_QUEUE_SIZE_MAX 256
#define VDRV_WAIT_MS 10000

struct vdrv_queue {
	unsigned int index;
	uint16_t size;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t free_head, nr_free, last_used;
	uint16_t chain_len[VDRV_QUEUE_SIZE_MAX];
};

struct vdrv {
	struct loop *loop;
	struct virtio_mmio *m;
	uint8_t *ram;
	struct guest_mem mem;
	uint64_t ram_used; /* bump allocator */
	int irq_fd;	   /* the test's own copy */
	struct vdrv_queue q[VIRTIO_QUEUES_MAX];
	struct virtio_env env;
};

/* One buffer of a request. */
struct vdrv_buf {
	uint64_t gpa;
	uint32_t len;
	bool writable;
};

/* Takes over the device and starts it. */
struct vdrv *vdrv_new(struct virtio_device *dev, const struct virtio_mmio_shm *shm);
void vdrv_free(struct vdrv *d);

uint32_t vdrv_read(struct vdrv *d, uint32_t reg);
void vdrv_write(struct vdrv *d, uint32_t reg, uint32_t value);
/* The device's features, 64 bits. */
uint64_t vdrv_features(struct vdrv *d);

/* reset .. FEATURES_OK with exactly these features (VERSION_1 added); asserts that they are accepted. */
void vdrv_negotiate(struct vdrv *d, uint64_t features);
void vdrv_queue(struct vdrv *d, unsigned int index, uint16_t size);
void vdrv_driver_ok(struct vdrv *d);
/* All of the above, every queue in size `size` or its maximum, whichever is less. */
void vdrv_up(struct vdrv *d, uint64_t features, uint16_t size);

uint64_t vdrv_alloc(struct vdrv *d, uint32_t len);
void *vdrv_ptr(struct vdrv *d, uint64_t gpa);

/* Offers a chain; its head, or -1 when the ring is full. */
int vdrv_add(struct vdrv *d, unsigned int queue, const struct vdrv_buf *bufs, unsigned int nr);
/* The write to QueueNotify. */
void vdrv_kick(struct vdrv *d, unsigned int queue);
/* The next used entry: its head, or -1 when there is none now. */
int vdrv_used(struct vdrv *d, unsigned int queue, uint32_t *len);
/* Runs the loop until a used entry is there; fails the test after VDRV_WAIT_MS. */
int vdrv_wait_used(struct vdrv *d, unsigned int queue, uint32_t *len);
/* Serves what is ready now, and what follows from it. */
void vdrv_run(struct vdrv *d);
/* Interrupts since the last call. */
uint64_t vdrv_interrupts(struct vdrv *d);
bool vdrv_needs_reset(struct vdrv *d);
/* Runs the loop until *flag is set; fails the test after VDRV_WAIT_MS. */
void vdrv_wait(struct vdrv *d, const bool *flag);
