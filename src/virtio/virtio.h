/*
 * What a virtio device is, apart from what carries it (virtio 1.2, sections 2 and 3). A device (dev/)
 * implements struct virtio_device_ops and knows no transport; a transport (mmio.h) implements struct
 * virtio_transport_ops and knows no device. Both embed their base as a member. This file's functions
 * stand between them: they own the queues, the kicks, the worker threads and the lock.
 *
 * Life: x_new() of the device -> transport takes it over -> virtio_device_start() once, when the
 * process is jailed as far as namespaces and ids go (worker threads begin there) ->
 * virtio_device_activate() at DRIVER_OK <-> virtio_device_reset(), any number of times -> free, on the
 * loop's thread, when no vCPU runs any more.
 *
 * Threads. Three kinds: the loop's thread, vCPU threads, and the worker threads of each queue that is
 * declared `blocking`: one, unless it asks for more.
 *   - dev->lock guards the device's own state and every queue that is not blocking. It is held around
 *     each op that says so; a device takes it itself (virtio_device_lock) in its own callbacks from the
 *     loop. Under it nothing blocks and no foreign callback is called.
 *   - A blocking queue belongs to its worker thread while its queue_kick() runs, and to nobody else
 *     between: reset and quiesce wait for the call to return.
 *   - A blocking queue with several workers belongs to all of them: queue_kick() runs on any number of
 *     them at a time, and the device has a lock of its own around the virtq_ calls.
 *   - Order of locks: the transport's registers -> dev->lock or a worker's lock -> the transport's
 *     interrupt lock (a leaf; notify_* may be called under any of the others).
 *
 * Errors: functions return 0 or a negative errno; with `err`, a sentence too. A guest that breaks a
 * rule is no error here: virtio_device_fail() marks the device NEEDS_RESET, which is logged once in the
 * device's life, and the broken queue stands still until the guest resets the device.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "guest_mem.h"
#include "loop.h"
#include "virtq.h"

#define VIRTIO_QUEUES_MAX 8
#define VIRTIO_WORKERS_MAX 8

struct virtio_device;
struct virtio_transport;

/* At most these; a NULL op is one the device does not need. */
struct virtio_device_ops {
	/*
	 * Once, loop's thread, dev->lock not held: watches of the device's own descriptors. env is
	 * borrowed for the call, env->loop for the life of the device.
	 */
	int (*start)(struct virtio_device *dev, struct loop *loop, struct err *err);
	/*
	 * Configuration space, any vCPU thread, dev->lock held. The range lies within config_len. A
	 * write to what is read-only is ignored.
	 */
	void (*config_read)(struct virtio_device *dev, uint32_t off, void *data, uint32_t len);
	void (*config_write)(struct virtio_device *dev, uint32_t off, const void *data,
			     uint32_t len);
	/*
	 * DRIVER_OK: dev->queues[index].vq runs from now on (vCPU thread, dev->lock held). A first
	 * queue_kick() follows by itself.
	 */
	void (*queue_ready)(struct virtio_device *dev, unsigned int index);
	/*
	 * Something is in the queue, or was. At most vq.size requests per call; true = call again, more
	 * is waiting. Loop's thread with dev->lock held, or the queue's worker without it when the
	 * queue is blocking. A device that returns false has asked for kicks (virtq_enable_kicks) or
	 * knows what else will wake it.
	 */
	bool (*queue_kick)(struct virtio_device *dev, unsigned int index);
	/*
	 * The guest starts over (vCPU thread, dev->lock held, no queue_kick() running or coming): forget
	 * every request, every negotiated thing. Nothing may touch guest memory after it returned.
	 */
	void (*reset)(struct virtio_device *dev);
	/*
	 * Optional. Workers are about to be waited for: what may last for ever ends soon. Any thread, also
	 * while queue_kick() runs.
	 */
	void (*stopping)(struct virtio_device *dev);
	/*
	 * Optional, for a machine that is saved and restored: what the device has beside its queues and the transport's
	 * registers. Loop's thread, dev->lock not held, no vCPU runs, every worker rests. save: *ret is the caller's.
	 * load: after start, before the queues run again; the bytes are judged like anything else from outside.
	 */
	int (*save)(struct virtio_device *dev, uint8_t **ret, size_t *ret_len, struct err *err);
	int (*load)(struct virtio_device *dev, const uint8_t *state, size_t len, struct err *err);
	/*
	 * Optional, of a device with shared memory: the guest could not read some of it. Makes it readable, and tells
	 * how often there was something to make so, in all. A vCPU's thread, dev->lock not held.
	 */
	uint64_t (*shm_fault)(struct virtio_device *dev);
	/* Loop's thread, after the last reset: everything, the struct included. */
	void (*free)(struct virtio_device *dev);
};

enum virtio_event {
	VIRTIO_EVENT_CONFIG,	  /* the configuration space has changed */
	VIRTIO_EVENT_NEEDS_RESET, /* the guest broke a rule: DEVICE_NEEDS_RESET */
};

/* Called by devices from any thread and under any lock; they do not block. */
struct virtio_transport_ops {
	void (*notify_queue)(struct virtio_transport *t, unsigned int index);
	void (*notify_config)(struct virtio_transport *t, enum virtio_event event);
};

struct virtio_transport {
	const struct virtio_transport_ops *ops;
};

struct virtio_queue {
	struct virtq vq; /* runs while `ready`; see "Threads" for who may touch it */
	bool ready;	 /* dev->lock */
	/* Constant after virtio_device_init(). */
	struct virtio_device *dev;
	unsigned int index;
	uint16_t size_max;
	bool blocking;
	int kick_fd; /* eventfd, owned, non-blocking: ioeventfd target */
	struct loop_watch *watch;
	unsigned int nr_workers; /* of a blocking queue */
	/* The workers of a blocking queue; the lock guards run, quit and nr_busy. */
	int epoll_fd; /* owned: kick_fd by edge, so that a kick wakes one of them, and quit_fd */
	int quit_fd;  /* owned: eventfd that wakes all of them, for good */
	pthread_t threads[VIRTIO_WORKERS_MAX];
	unsigned int nr_threads; /* started */
	pthread_mutex_t lock;
	pthread_cond_t idle;
	unsigned int nr_busy;
	bool run, quit;
};

struct virtio_queue_spec {
	uint16_t size_max;  /* power of two, at most VIRTQ_SIZE_MAX */
	bool blocking;	    /* serving a request may sleep: worker threads of its own */
	uint8_t nr_workers; /* how many, at most VIRTIO_WORKERS_MAX; 0 means one */
};

struct virtio_device_info {
	const char *name;    /* static text: for logs and thread names */
	uint32_t id;	     /* VIRTIO_ID_* */
	uint64_t features;   /* the device type's own bits; the ring's are added here */
	uint32_t config_len; /* bytes of configuration space */
	unsigned int nr_queues;
	struct virtio_queue_spec queues[VIRTIO_QUEUES_MAX];
};

/* Embedded by every device. Fields are for reading; this file's functions change them. */
struct virtio_device {
	const struct virtio_device_ops *ops;
	const struct guest_mem *mem;	    /* borrowed; NULL while not taken over by a transport */
	struct virtio_transport *transport; /* borrowed */
	struct virtio_device_info info;
	pthread_mutex_t lock;
	bool active;	   /* dev->lock: between activate and reset */
	uint64_t features; /* dev->lock, constant while active: what both sides agreed on */
	pthread_mutex_t fault_lock;
	bool fault_logged; /* fault_lock */
	struct virtio_queue queues[VIRTIO_QUEUES_MAX];
	/* Shared memory 0 (virtio 1.2, section 2.10), which the guest may read; the device's own mapping. Constant. */
	uint8_t *shm;
	uint64_t shm_len; /* 0 = none */
};

/* --- for devices ---------------------------------------------------------------------------------- */

/*
 * First call of a device's constructor, on zeroed memory; makes the kick descriptors. On failure
 * nothing is held. Undone by virtio_device_done(), the last call of ops->free.
 */
int virtio_device_init(struct virtio_device *dev, const struct virtio_device_ops *ops,
		       const struct virtio_device_info *info, struct err *err);
void virtio_device_done(struct virtio_device *dev);

void virtio_device_lock(struct virtio_device *dev);
void virtio_device_unlock(struct virtio_device *dev);

/* Was the feature bit (VIRTIO_x_F_y) agreed on? Constant while the device is active. */
bool virtio_device_has(const struct virtio_device *dev, unsigned int bit);
/*
 * By a worker that takes a request while more wait: wakes another one, if there is one asleep. (What is
 * waiting has been kicked for already, and that kick woke this one.)
 */
void virtio_queue_wake_other(struct virtio_queue *q);
/* After pushes, by the queue's owner: interrupts the guest if it wants to be. */
void virtio_queue_notify(struct virtio_queue *q);
/*
 * By the queue's owner: the guest broke a rule, which `why` (static text) names. The queue is broken
 * from here on (virtq_pop() answers -EPROTO) and the device NEEDS_RESET.
 */
void virtio_queue_fail(struct virtio_queue *q, const char *why);
/* virtq_pop() which reports a broken queue by virtio_queue_fail(). Same answers. */
int virtio_queue_pop(struct virtio_queue *q, struct virtq_chain *chain);
/* The configuration space has changed (the device's fields already have). Any thread. */
void virtio_device_config_changed(struct virtio_device *dev);

/* --- for transports ------------------------------------------------------------------------------- */

/* Everything a transport offers for a device: its own bits and the ring's. */
uint64_t virtio_device_features(const struct virtio_device *dev);
/* Before start: the device now speaks through t and works on mem. Both outlive it. */
void virtio_device_attach(struct virtio_device *dev, struct virtio_transport *t,
			  const struct guest_mem *mem);

struct virtio_env {
	struct loop *loop; /* borrowed for the life of the device */
	/* First thing on each worker thread, e.g. its seccomp filter; may end the process. May be NULL. */
	void (*thread_init)(void *ctx, const char *name);
	void *ctx;
};
/* Loop's thread, once: starts worker threads and watches. `env` is borrowed until the free. */
int virtio_device_start(struct virtio_device *dev, const struct virtio_env *env, struct err *err);

struct virtio_queue_setup {
	bool ready;
	uint16_t size;
	uint16_t last_avail; /* 0, or what a snapshot kept */
	gpa_t desc, avail, used;
};
/* 0, or why these rings cannot be used: -EINVAL, -EFAULT. Any thread; takes nothing. */
int virtio_device_check_queue(const struct virtio_device *dev, unsigned int index,
			      const struct virtio_queue_setup *s);
/*
 * DRIVER_OK (any thread): starts all queues that are ready (setup has one entry per queue). On failure
 * the device is as after a reset. The transport serialises activate and reset.
 */
int virtio_device_activate(struct virtio_device *dev, uint64_t features,
			   const struct virtio_queue_setup *setup);
/* Any thread. Waits for a request that a worker is serving; then nothing touches guest memory. */
void virtio_device_reset(struct virtio_device *dev);

/* Out of bounds: reads as zeros, writes are ignored. Any thread. */
void virtio_device_config_read(struct virtio_device *dev, uint64_t off, void *data, uint32_t len);
void virtio_device_config_write(struct virtio_device *dev, uint64_t off, const void *data,
				uint32_t len);
/* As the ioeventfd does it. Unknown queues are ignored. Any thread. */
void virtio_device_kick(struct virtio_device *dev, unsigned int index);

/*
 * Loop's thread, with no vCPU running: after quiesce returned, no worker works on a request, and as
 * the caller is the loop's thread, no device does: memory, queues and registers can be saved. Resume
 * starts workers again and looks at every queue once, so that no kick is lost.
 */
void virtio_device_quiesce(struct virtio_device *dev);
void virtio_device_resume(struct virtio_device *dev);

/* Resets, ends worker threads, frees. Accepts NULL. */
void virtio_device_free(struct virtio_device *dev);
