/* The register window of a virtio device and the base of devices: what a driver may do when, resets, threads. */
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "util.h"
#include "virtio_driver.h"

#define ACK VIRTIO_CONFIG_S_ACKNOWLEDGE
#define DRIVER VIRTIO_CONFIG_S_DRIVER
#define FEATURES_OK VIRTIO_CONFIG_S_FEATURES_OK
#define DRIVER_OK VIRTIO_CONFIG_S_DRIVER_OK
#define FAILED VIRTIO_CONFIG_S_FAILED
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

/* --- a device of this test: queue 0 is blocking, queue 1 is not; 8 bytes of configuration space ----- */

struct probe {
	struct virtio_device dev;
	sem_t entered, leave;
	bool hold; /* a kick waits for `leave` */
	unsigned int nr_resets, nr_ready;
	uint8_t config[8];
	struct virtq_chain chain;
};

static struct probe *probe_of(struct virtio_device *dev)
{
	return container_of(dev, struct probe, dev);
}

static void probe_config_read(struct virtio_device *dev, uint32_t off, void *data, uint32_t len)
{
	assert_true(off + len <= sizeof(probe_of(dev)->config));
	memcpy(data, probe_of(dev)->config + off, len);
}

static void probe_config_write(struct virtio_device *dev, uint32_t off, const void *data,
			       uint32_t len)
{
	assert_true(off + len <= sizeof(probe_of(dev)->config));
	memcpy(probe_of(dev)->config + off, data, len);
}

static void probe_queue_ready(struct virtio_device *dev, unsigned int index)
{
	probe_of(dev)->nr_ready |= 1u << index;
}

static bool probe_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct probe *p = probe_of(dev);
	struct virtio_queue *q = &dev->queues[index];

	/* The chain is the worker's alone; queue 1 only counts kicks. */
	if (index == 1)
		return false;
	while (virtio_queue_pop(q, &p->chain) == 1) {
		if (p->hold) {
			sem_post(&p->entered);
			sem_wait(&p->leave);
		}
		memset(p->chain.iov[0].iov_base, 0x5a, p->chain.iov[0].iov_len);
		virtq_push(&q->vq, p->chain.head, (uint32_t)p->chain.iov[0].iov_len);
		virtio_queue_notify(q);
	}
	return !q->vq.broken && virtq_enable_kicks(&q->vq);
}

static void probe_reset(struct virtio_device *dev)
{
	probe_of(dev)->nr_resets++;
}

static void probe_free(struct virtio_device *dev)
{
	virtio_device_done(dev);
	sem_destroy(&probe_of(dev)->entered);
	sem_destroy(&probe_of(dev)->leave);
	free(probe_of(dev));
}

static const struct virtio_device_ops probe_ops = {
	.config_read = probe_config_read,
	.config_write = probe_config_write,
	.queue_ready = probe_queue_ready,
	.queue_kick = probe_queue_kick,
	.reset = probe_reset,
	.free = probe_free,
};

static struct probe *probe_new(void)
{
	static const struct virtio_device_info info = {
		.name = "probe",
		.id = 42,
		.features = 1u << 5 | 1u << 7,
		.config_len = 8,
		.nr_queues = 2,
		.queues = {{.size_max = 64, .blocking = true}, {.size_max = 16}},
	};
	struct probe *p = xcalloc(1, sizeof(*p));
	struct err err;

	sem_init(&p->entered, 0, 0);
	sem_init(&p->leave, 0, 0);
	assert_int_equal(virtio_device_init(&p->dev, &probe_ops, &info, &err), 0);
	return p;
}

struct fixture {
	struct vdrv *d;
	struct probe *p;
};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	const struct virtio_mmio_shm shm = {.gpa = {0x123456789000}, .len = 0x2000000000};

	f->p = probe_new();
	f->d = vdrv_new(&f->p->dev, &shm);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vdrv_free(f->d);
	free(f);
	return 0;
}

static uint32_t status(struct fixture *f)
{
	return vdrv_read(f->d, VIRTIO_MMIO_STATUS);
}

static void set_status(struct fixture *f, uint32_t value)
{
	vdrv_write(f->d, VIRTIO_MMIO_STATUS, value);
}

/* --- registers ----------------------------------------------------------------------------------- */

static void test_identity(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_VERSION), 2);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_DEVICE_ID), 42);
	assert_int_equal(vdrv_features(f->d), 1ull << 5 | 1ull << 7 | EVENT_IDX |
						      1ull << VIRTIO_RING_F_INDIRECT_DESC |
						      1ull << VIRTIO_F_VERSION_1);
	vdrv_write(f->d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	vdrv_write(f->d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, UINT32_MAX);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

static bool is_plain_register(uint64_t off)
{
	static const uint16_t known[] = {VIRTIO_MMIO_MAGIC_VALUE,     VIRTIO_MMIO_VERSION,
					 VIRTIO_MMIO_DEVICE_ID,	      VIRTIO_MMIO_VENDOR_ID,
					 VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_QUEUE_NUM_MAX,
					 VIRTIO_MMIO_SHM_LEN_LOW,     VIRTIO_MMIO_SHM_LEN_HIGH,
					 VIRTIO_MMIO_SHM_BASE_LOW,    VIRTIO_MMIO_SHM_BASE_HIGH};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if (off == known[i])
			return true;
	}
	return false;
}

static void test_every_offset_in_every_width(void **state)
{
	struct fixture *f = *state;
	static const uint32_t widths[] = {1, 2, 4, 8};

	for (uint64_t off = 0; off < 4096; off++) {
		for (size_t w = 0; w < ARRAY_SIZE(widths); w++) {
			uint32_t len = widths[w];
			const uint8_t ones[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
			/* One byte more on each side: nothing beyond len is written. */
			uint8_t got[10];
			bool in_config = off >= 0x100 && off + len <= 0x108;
			bool zero = !in_config && (len != 4 || !is_plain_register(off));

			memset(got, 0xee, sizeof(got));
			virtio_mmio_read(f->d->m, off, got + 1, len);
			assert_int_equal(got[0], 0xee);
			assert_int_equal(got[1 + len], 0xee);
			for (uint32_t i = 0; zero && i < len; i++)
				assert_int_equal(got[1 + i], 0);
			/* Whatever is written: a selector of all ones, no status beyond ACK|FAILED. */
			virtio_mmio_write(f->d->m, off, ones, len);
			if (status(f))
				assert_int_equal(off, VIRTIO_MMIO_STATUS);
			set_status(f, 0);
		}
	}
	assert_false(vdrv_needs_reset(f->d));
}

static void test_configuration_space_is_bounded(void **state)
{
	struct fixture *f = *state;
	const uint64_t value = 0x1122334455667788ull;
	uint64_t got;

	virtio_mmio_write(f->d->m, 0x100, &value, 8);
	virtio_mmio_read(f->d->m, 0x100, &got, 8);
	assert_int_equal(got, value);
	/* Half inside is outside. */
	virtio_mmio_read(f->d->m, 0x104, &got, 8);
	assert_int_equal(got, 0);
	virtio_mmio_write(f->d->m, 0x101, &(uint64_t){0}, 8);
	virtio_mmio_write(f->d->m, UINT64_MAX, &(uint64_t){0}, 8);
	virtio_mmio_read(f->d->m, UINT64_MAX - 3, &got, 8);
	assert_int_equal(got, 0);
	virtio_mmio_read(f->d->m, 0x100, &got, 8);
	assert_int_equal(got, value);
}

static void test_shared_memory_registers(void **state)
{
	struct fixture *f = *state;
	static const uint32_t absent[] = {1, 2, UINT32_MAX};

	vdrv_write(f->d, VIRTIO_MMIO_SHM_SEL, 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_LEN_LOW), 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_LEN_HIGH), 0x20);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_BASE_LOW), 0x56789000);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_BASE_HIGH), 0x1234);
	for (size_t i = 0; i < ARRAY_SIZE(absent); i++) {
		vdrv_write(f->d, VIRTIO_MMIO_SHM_SEL, absent[i]);
		assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_LEN_LOW), UINT32_MAX);
		assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_SHM_LEN_HIGH), UINT32_MAX);
	}
}

/* --- the status dance ---------------------------------------------------------------------------- */

static void test_status_bits_in_order_only(void **state)
{
	struct fixture *f = *state;

	set_status(f, DRIVER);
	assert_int_equal(status(f), 0);
	set_status(f, DRIVER_OK | FEATURES_OK);
	assert_int_equal(status(f), 0);
	set_status(f, ACK | DRIVER);
	assert_int_equal(status(f), ACK | DRIVER);
	set_status(f, ACK | DRIVER | DRIVER_OK);
	assert_int_equal(status(f), ACK | DRIVER);
	/* VERSION_1 is missing. */
	set_status(f, ACK | DRIVER | FEATURES_OK);
	assert_int_equal(status(f), ACK | DRIVER);
	/* Taking away is not possible, nor are unknown bits. */
	set_status(f, ACK);
	assert_int_equal(status(f), ACK | DRIVER);
	set_status(f, ACK | DRIVER | 0x30 | VIRTIO_CONFIG_S_NEEDS_RESET);
	assert_int_equal(status(f), ACK | DRIVER);
	set_status(f, ACK | DRIVER | FAILED);
	assert_int_equal(status(f), ACK | DRIVER | FAILED);
	set_status(f, 0);
	assert_int_equal(status(f), 0);
}

static void test_features_that_were_not_offered(void **state)
{
	struct fixture *f = *state;

	set_status(f, ACK | DRIVER);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES, 1 | 2);
	set_status(f, ACK | DRIVER | FEATURES_OK);
	assert_int_equal(status(f), ACK | DRIVER);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES, UINT32_MAX);
	set_status(f, ACK | DRIVER | FEATURES_OK);
	assert_int_equal(status(f), ACK | DRIVER | FEATURES_OK);
	/* Agreed is agreed. */
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES, UINT32_MAX);
	set_status(f, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
	assert_int_equal(status(f), ACK | DRIVER | FEATURES_OK | DRIVER_OK);
	assert_int_equal(f->p->dev.features, 1ull << VIRTIO_F_VERSION_1);
}

static void test_features_before_driver(void **state)
{
	struct fixture *f = *state;

	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	vdrv_write(f->d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	set_status(f, ACK | DRIVER | FEATURES_OK);
	assert_int_equal(status(f), ACK | DRIVER);
}

/* --- queue registers ----------------------------------------------------------------------------- */

static void test_queue_registers_need_features_ok(void **state)
{
	struct fixture *f = *state;

	set_status(f, ACK | DRIVER);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_SEL, 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_NUM, 16);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)VDRV_RAM_GPA);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)VDRV_RAM_GPA);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)VDRV_RAM_GPA);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_READY), 0);
	assert_false(vdrv_needs_reset(f->d));
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_SEL, 2);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_READY), 0);
}

struct rings {
	uint32_t num;
	uint64_t desc, avail, used;
};

static void write_rings(struct fixture *f, unsigned int index, const struct rings *r)
{
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_SEL, index);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_NUM, r->num);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)r->desc);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(r->desc >> 32));
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)r->avail);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(r->avail >> 32));
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)r->used);
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(r->used >> 32));
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_READY, 1);
}

static void test_rings_that_cannot_be_used(void **state)
{
	struct fixture *f = *state;
	const uint64_t ram = VDRV_RAM_GPA, end = VDRV_RAM_GPA + VDRV_RAM_LEN;
	const struct rings table[] = {
		{0, ram, ram, ram},
		{3, ram, ram, ram},
		{128, ram, ram, ram}, /* a power of two, above the queue's maximum */
		{65536 + 16, ram, ram, ram},
		{UINT32_MAX, ram, ram, ram},
		{16, ram + 8, ram, ram},
		{16, ram, ram + 1, ram},
		{16, ram, ram, ram + 2},
		{16, end - 240, ram, ram},
		{16, ram, end - 36, ram},
		{16, ram, ram, end - 132},
		{16, ram - 16, ram, ram},
		{16, 0, 0, 0},
		{16, UINT64_MAX - 15, ram, ram},
		{16, ram | 1ull << 63, ram, ram},
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		vdrv_negotiate(f->d, 0);
		write_rings(f, 0, &table[i]);
		assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(vdrv_needs_reset(f->d));
		set_status(f, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
		assert_int_equal(status(f) & DRIVER_OK, 0);
	}
	vdrv_negotiate(f->d, 0);
	assert_false(vdrv_needs_reset(f->d));
	write_rings(f, 0, &(struct rings){16, end - 256, ram, ram + 64});
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_READY), 1);
}

static void test_queue_registers_are_frozen(void **state)
{
	struct fixture *f = *state;
	struct rings good = {16, VDRV_RAM_GPA, VDRV_RAM_GPA + 0x1000, VDRV_RAM_GPA + 0x2000};
	struct rings bad = {32, VDRV_RAM_GPA + 0x4000, 0, UINT64_MAX};
	struct virtio_mmio_state s;

	vdrv_negotiate(f->d, 0);
	write_rings(f, 0, &good);
	/* Frozen while ready. */
	write_rings(f, 0, &bad);
	virtio_mmio_save(f->d->m, &s);
	assert_int_equal(s.queues[0].num, 16);
	assert_int_equal(s.queues[0].desc, good.desc);
	assert_int_equal(s.queues[0].avail, good.avail);
	assert_int_equal(s.queues[0].used, good.used);
	/* Not ready again: writable; that is what a driver does that gives up half-way. */
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_QUEUE_READY), 0);
	good.num = 8;
	write_rings(f, 0, &good);
	vdrv_driver_ok(f->d);
	/* For good after DRIVER_OK, the queue that is not ready too. */
	vdrv_write(f->d, VIRTIO_MMIO_QUEUE_READY, 0);
	write_rings(f, 0, &bad);
	write_rings(f, 1, &good);
	virtio_mmio_save(f->d->m, &s);
	assert_int_equal(s.queues[0].ready, 1);
	assert_int_equal(s.queues[0].num, 8);
	assert_int_equal(s.queues[1].ready, 0);
	assert_int_equal(s.queues[1].num, 0);
	assert_int_equal(f->p->nr_ready, 1);
	assert_false(vdrv_needs_reset(f->d));
}

/* --- queues at work ------------------------------------------------------------------------------ */

static int add_one(struct fixture *f, uint64_t gpa, uint32_t len)
{
	return vdrv_add(f->d, 0, &(struct vdrv_buf){gpa, len, true}, 1);
}

static void test_a_worker_serves_its_queue(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;
	uint32_t len;

	vdrv_up(f->d, EVENT_IDX, 16);
	gpa = vdrv_alloc(f->d, 64);
	for (int i = 0; i < 100; i++) {
		int head = add_one(f, gpa, 64);

		vdrv_kick(f->d, 0);
		assert_int_equal(vdrv_wait_used(f->d, 0, &len), head);
		assert_int_equal(len, 64);
		assert_int_equal(((uint8_t *)vdrv_ptr(f->d, gpa))[63], 0x5a);
	}
}

static void test_kicks_before_driver_ok_are_not_lost(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;

	vdrv_negotiate(f->d, EVENT_IDX);
	vdrv_queue(f->d, 0, 16);
	gpa = vdrv_alloc(f->d, 64);
	add_one(f, gpa, 64);
	vdrv_kick(f->d, 0);
	usleep(1000);
	assert_int_equal(vdrv_used(f->d, 0, NULL), -1);
	vdrv_driver_ok(f->d);
	vdrv_wait_used(f->d, 0, NULL);
	/* Queues there are not. */
	vdrv_kick(f->d, 2);
	vdrv_kick(f->d, UINT32_MAX);
}

static void test_interrupt_status_and_ack(void **state)
{
	struct fixture *f = *state;
	uint32_t generation;

	vdrv_up(f->d, 0, 16);
	vdrv_interrupts(f->d);
	add_one(f, vdrv_alloc(f->d, 64), 64);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
	while (!vdrv_interrupts(f->d))
		;
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
	generation = vdrv_read(f->d, VIRTIO_MMIO_CONFIG_GENERATION);
	virtio_device_config_changed(&f->p->dev);
	assert_int_equal(vdrv_interrupts(f->d), 1);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS), 3);
	vdrv_write(f->d, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
	vdrv_write(f->d, VIRTIO_MMIO_INTERRUPT_ACK, UINT32_MAX);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
	/* Not before the driver's reset has begun anew: the counter goes on. */
	set_status(f, 0);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
}

static void wait_needs_reset(struct fixture *f)
{
	uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;

	while (!vdrv_needs_reset(f->d)) {
		assert_true(util_now_ns() < end);
		assert_int_equal(loop_run_once(f->d->loop, 1), 0);
	}
}

static void test_a_broken_queue_needs_a_reset(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa = vdrv_alloc(f->d, 64);

	for (int i = 0; i < 4; i++) {
		vdrv_up(f->d, EVENT_IDX, 16);
		vdrv_interrupts(f->d);
		/* Forged while the worker does not look. */
		virtio_device_quiesce(&f->p->dev);
		add_one(f, gpa, 64);
		if (i == 0)
			f->d->q[0].avail->idx += 17;
		else if (i == 1)
			f->d->q[0].avail->ring[0] = 16;
		else if (i == 2)
			f->d->q[0].desc[0].addr = 0;
		else
			f->d->q[0].desc[0].len = UINT32_MAX;
		virtio_device_resume(&f->p->dev);
		wait_needs_reset(f);
		assert_true(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
		/* Nothing more is served, whatever is offered. */
		add_one(f, gpa, 64);
		vdrv_kick(f->d, 0);
		vdrv_run(f->d);
		assert_int_equal(vdrv_used(f->d, 0, NULL), -1);
	}
	vdrv_up(f->d, EVENT_IDX, 16);
	assert_false(vdrv_needs_reset(f->d));
	add_one(f, gpa, 64);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
}

struct resetter {
	struct fixture *f;
	bool done; /* atomic */
};

static void *reset_thread(void *ctx)
{
	struct resetter *r = ctx;

	set_status(r->f, 0);
	__atomic_store_n(&r->done, true, __ATOMIC_RELEASE);
	return NULL;
}

static void test_a_reset_waits_for_the_request_under_way(void **state)
{
	struct fixture *f = *state;
	struct resetter r = {.f = f};
	uint64_t gpa = vdrv_alloc(f->d, 64);
	uint32_t value;
	pthread_t t;

	f->p->hold = true;
	vdrv_up(f->d, EVENT_IDX, 16);
	add_one(f, gpa, 64);
	vdrv_kick(f->d, 0);
	sem_wait(&f->p->entered);
	assert_int_equal(pthread_create(&t, NULL, reset_thread, &r), 0);
	usleep(50000);
	assert_false(__atomic_load_n(&r.done, __ATOMIC_ACQUIRE));
	/* Interrupt handlers of other processors do not wait for it. */
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_INTERRUPT_STATUS, &value, 4);
	virtio_mmio_write(f->d->m, VIRTIO_MMIO_INTERRUPT_ACK, &value, 4);
	sem_post(&f->p->leave);
	pthread_join(t, NULL);
	assert_true(r.done);
	assert_int_equal(status(f), 0);
	/* From here on no worker writes there. */
	memset(vdrv_ptr(f->d, gpa), 0, 64);
	vdrv_kick(f->d, 0);
	usleep(10000);
	assert_int_equal(((uint8_t *)vdrv_ptr(f->d, gpa))[0], 0);
	f->p->hold = false;
}

static void test_quiesce_and_resume(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;

	vdrv_up(f->d, EVENT_IDX, 16);
	gpa = vdrv_alloc(f->d, 64);
	for (int i = 0; i < 200; i++) {
		virtio_device_quiesce(&f->p->dev);
		add_one(f, gpa, 64);
		vdrv_kick(f->d, 0);
		assert_int_equal(vdrv_used(f->d, 0, NULL), -1);
		virtio_device_resume(&f->p->dev);
		vdrv_wait_used(f->d, 0, NULL);
	}
}

static void test_save_and_restore(void **state)
{
	struct fixture *f = *state, other = {0};
	struct virtio_mmio_state s, bad;
	uint64_t gpa;

	vdrv_up(f->d, EVENT_IDX, 16);
	gpa = vdrv_alloc(f->d, 64);
	for (int i = 0; i < 21; i++) {
		add_one(f, gpa, 64);
		vdrv_kick(f->d, 0);
		vdrv_wait_used(f->d, 0, NULL);
	}
	virtio_device_quiesce(&f->p->dev);
	add_one(f, gpa, 64);
	virtio_mmio_save(f->d->m, &s);
	assert_int_equal(s.queues[0].last_avail, 21);
	/* A second machine with the first one's memory. */
	other.p = probe_new();
	other.d = vdrv_new(&other.p->dev, NULL);
	memcpy(other.d->ram, f->d->ram, VDRV_RAM_LEN);
	other.d->q[0] = f->d->q[0];
	other.d->q[0].used = vdrv_ptr(other.d, f->d->q[0].used_gpa);
	other.d->q[0].avail = vdrv_ptr(other.d, f->d->q[0].avail_gpa);
	other.d->q[0].desc = vdrv_ptr(other.d, f->d->q[0].desc_gpa);
	bad = s;
	bad.queues[0].used = UINT64_MAX;
	assert_int_equal(virtio_mmio_restore(other.d->m, &bad), -EFAULT);
	bad = s;
	bad.queues[7].ready = 1;
	assert_int_equal(virtio_mmio_restore(other.d->m, &bad), -EINVAL);
	bad = s;
	bad.driver_features = UINT64_MAX;
	assert_int_equal(virtio_mmio_restore(other.d->m, &bad), -EINVAL);
	bad = s;
	bad.status = 0x80000000u;
	assert_int_equal(virtio_mmio_restore(other.d->m, &bad), -EINVAL);
	assert_int_equal(virtio_mmio_restore(other.d->m, &s), 0);
	assert_int_equal(status(&other), ACK | DRIVER | FEATURES_OK | DRIVER_OK);
	/* The request that was offered before. */
	vdrv_wait_used(other.d, 0, NULL);
	assert_int_equal(vdrv_used(other.d, 0, NULL), -1);
	vdrv_free(other.d);
}

/* An interrupt that was on its way when the machine was saved comes in the restored one; others do not. */
static void test_interrupt_again(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa;

	vdrv_up(f->d, EVENT_IDX, 16);
	gpa = vdrv_alloc(f->d, 64);
	add_one(f, gpa, 64);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
	virtio_device_quiesce(&f->p->dev);
	vdrv_interrupts(f->d);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
	virtio_mmio_interrupt_again(f->d->m);
	assert_int_equal(vdrv_interrupts(f->d), 1);
	vdrv_write(f->d, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
	virtio_mmio_interrupt_again(f->d->m);
	assert_int_equal(vdrv_interrupts(f->d), 0);
}

/* --- threads ------------------------------------------------------------------------------------- */

struct vcpu {
	struct virtio_mmio *m;
	uint64_t seed;
	uint64_t end_ns;
};

static uint32_t vcpu_random(struct vcpu *v)
{
	v->seed ^= v->seed << 13;
	v->seed ^= v->seed >> 7;
	v->seed ^= v->seed << 17;
	return (uint32_t)(v->seed >> 32);
}

/* Random accesses, with the dance of a driver strewn in so that the device gets to work. */
static void *vcpu_main(void *ctx)
{
	static const uint32_t dance[][2] = {
		{VIRTIO_MMIO_STATUS, 0},
		{VIRTIO_MMIO_STATUS, ACK | DRIVER},
		{VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1},
		{VIRTIO_MMIO_DRIVER_FEATURES, 1},
		{VIRTIO_MMIO_STATUS, ACK | DRIVER | FEATURES_OK},
		{VIRTIO_MMIO_QUEUE_SEL, 0},
		{VIRTIO_MMIO_QUEUE_NUM, 8},
		{VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)VDRV_RAM_GPA},
		{VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)VDRV_RAM_GPA + 0x1000},
		{VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)VDRV_RAM_GPA + 0x2000},
		{VIRTIO_MMIO_QUEUE_READY, 1},
		{VIRTIO_MMIO_STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK},
		{VIRTIO_MMIO_QUEUE_NOTIFY, 0},
		{VIRTIO_MMIO_INTERRUPT_ACK, 3},
	};
	struct vcpu *v = ctx;
	unsigned int step = 0;

	while (util_now_ns() < v->end_ns) {
		uint32_t off = vcpu_random(v) % 0x110, value = vcpu_random(v) % 64;

		if (vcpu_random(v) % 4) {
			off = dance[step][0];
			value = dance[step][1];
			step = (step + 1) % ARRAY_SIZE(dance);
		}
		virtio_mmio_write(v->m, off, &value, 4);
		virtio_mmio_read(v->m, vcpu_random(v) % 0x110, &value, 4);
	}
	return NULL;
}

static void test_processors_race_over_the_registers(void **state)
{
	struct fixture *f = *state;
	struct vcpu v[2];
	pthread_t t[2];
	uint64_t end = util_now_ns() + 500 * 1000000ull;

	for (unsigned int i = 0; i < 2; i++) {
		v[i] = (struct vcpu){.m = f->d->m, .seed = 77 + i, .end_ns = end};
		assert_int_equal(pthread_create(&t[i], NULL, vcpu_main, &v[i]), 0);
	}
	while (util_now_ns() < end)
		assert_int_equal(loop_run_once(f->d->loop, 10), 0);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	/* It still works. */
	vdrv_up(f->d, EVENT_IDX, 16);
	add_one(f, vdrv_alloc(f->d, 64), 64);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
	assert_true(f->p->nr_resets > 1);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_identity),
		CASE(test_every_offset_in_every_width),
		CASE(test_configuration_space_is_bounded),
		CASE(test_shared_memory_registers),
		CASE(test_status_bits_in_order_only),
		CASE(test_features_that_were_not_offered),
		CASE(test_features_before_driver),
		CASE(test_queue_registers_need_features_ok),
		CASE(test_rings_that_cannot_be_used),
		CASE(test_queue_registers_are_frozen),
		CASE(test_a_worker_serves_its_queue),
		CASE(test_kicks_before_driver_ok_are_not_lost),
		CASE(test_interrupt_status_and_ack),
		CASE(test_a_broken_queue_needs_a_reset),
		CASE(test_a_reset_waits_for_the_request_under_way),
		CASE(test_quiesce_and_resume),
		CASE(test_save_and_restore),
		CASE(test_interrupt_again),
		CASE(test_processors_race_over_the_registers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
