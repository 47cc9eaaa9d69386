/*
 * virtio over MMIO, version 2 ("modern"; virtio 1.2, section 4.2): the register window of one device.
 *
 * Threads: read and write are called from any vCPU thread, several at a time; they wait for each other
 * and, in a reset, for the request a worker serves. The rest is called from the loop's thread. Locks:
 * see virtio.h; InterruptStatus and InterruptACK take the leaf lock only, so that interrupt handlers
 * never wait for a reset.
 *
 * Kicks: the monitor binds virtio_mmio_kick_fd() of each queue with KVM_IOEVENTFD at
 * VIRTIO_MMIO_QUEUE_NOTIFY of the window, length 4, datamatch = the queue's number. Writes that reach
 * virtio_mmio_write() do the same in a slower way. Interrupts: irq_fd is written once for each
 * notification, so an edge triggered KVM_IRQFD (without resample) is right.
 *
 * What the driver may do when (anything else is ignored; what is wrong is not half obeyed):
 *   - features are written between DRIVER and FEATURES_OK, which is refused (stays clear) unless
 *     VERSION_1 is among them and all were offered;
 *   - queue registers are written between FEATURES_OK and DRIVER_OK, while the queue is not ready;
 *     QueueReady = 1 with rings that cannot be used makes the device NEEDS_RESET;
 *   - after DRIVER_OK all of them are frozen until the reset;
 *   - status bits are only added, in the order of the specification.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "virtio.h"

/* Bytes of the window: registers, and the configuration space from 0x100 on. */
#define VIRTIO_MMIO_WINDOW 0x200
#define VIRTIO_MMIO_SHM_MAX 2

struct virtio_mmio;

/* A shared memory region that the device shows at a guest address (virtio-fs DAX window: id 0). */
struct virtio_mmio_shm {
	gpa_t gpa;
	uint64_t len; /* 0 = there is none */
};

struct virtio_mmio_config {
	struct virtio_device *dev;			 /* taken over */
	const struct guest_mem *mem;			 /* borrowed */
	int irq_fd;					 /* eventfd; taken over */
	struct virtio_mmio_shm shm[VIRTIO_MMIO_SHM_MAX]; /* by shared memory id */
};

/* Never NULL. */
struct virtio_mmio *virtio_mmio_new(const struct virtio_mmio_config *config);
/* Ends the device's threads, frees it and closes irq_fd. No vCPU runs any more. Accepts NULL. */
void virtio_mmio_free(struct virtio_mmio *m);
/* Once, before the guest runs; env is borrowed for the device's life. See virtio_device_start(). */
int virtio_mmio_start(struct virtio_mmio *m, const struct virtio_env *env, struct err *err);

/*
 * The guest's accesses, `off` from the window's begin. They never fail: what is not there, or not in
 * the right width, reads as zeros and swallows writes.
 */
void virtio_mmio_read(struct virtio_mmio *m, uint64_t off, void *data, uint32_t len);
void virtio_mmio_write(struct virtio_mmio *m, uint64_t off, const void *data, uint32_t len);

unsigned int virtio_mmio_nr_queues(const struct virtio_mmio *m);
/* Borrowed; -1 when there is no such queue. */
int virtio_mmio_kick_fd(const struct virtio_mmio *m, unsigned int queue);
struct virtio_device *virtio_mmio_device(struct virtio_mmio *m);

/* All a snapshot keeps of a window, in host byte order, without pointers. */
struct virtio_mmio_queue_state {
	uint64_t desc, avail, used;
	uint32_t num;
	uint32_t ready;
	uint32_t last_avail;
	uint32_t reserved;
};

struct virtio_mmio_state {
	uint64_t driver_features;
	uint32_t status; /* without NEEDS_RESET */
	uint32_t needs_reset;
	uint32_t interrupt_status;
	uint32_t config_generation;
	uint32_t device_features_sel, driver_features_sel, queue_sel, shm_sel;
	struct virtio_mmio_queue_state queues[VIRTIO_QUEUES_MAX];
};

/* Between virtio_device_quiesce() and _resume(). */
void virtio_mmio_save(struct virtio_mmio *m, struct virtio_mmio_state *ret);
/*
 * On a window that no guest has touched, after start. The state is checked as if a guest had written
 * it; -EINVAL or -EFAULT leaves a device as after a reset. The device's own state is restored before.
 */
int virtio_mmio_restore(struct virtio_mmio *m, const struct virtio_mmio_state *state);
/*
 * Raises the interrupt of a device that has told something that its driver has not acknowledged. After a restore, when
 * the interrupt controllers are there: the edge may have been lost on its way. One too many does no harm, the
 * driver looks at the status.
 */
void virtio_mmio_interrupt_again(struct virtio_mmio *m);
