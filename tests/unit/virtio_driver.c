/* A guest's virtio driver inside a test; see virtio_driver.h. */
#include "virtio_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "util.h"

struct vdrv *vdrv_new(struct virtio_device *dev, const struct virtio_mmio_shm *shm)
{
	struct vdrv *d = xcalloc(1, sizeof(*d));
	struct virtio_mmio_config config = {.dev = dev, .mem = &d->mem};
	struct err err;

	d->ram = aligned_alloc(4096, VDRV_RAM_LEN);
	memset(d->ram, 0, VDRV_RAM_LEN);
	assert_int_equal(guest_mem_add(&d->mem, (gpa_t){VDRV_RAM_GPA}, VDRV_RAM_LEN, d->ram), 0);
	d->loop = loop_new();
	assert_non_null(d->loop);
	config.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_true(config.irq_fd >= 0);
	d->irq_fd = dup(config.irq_fd);
	if (shm)
		config.shm[0] = *shm;
	d->m = virtio_mmio_new(&config);
	d->env = (struct virtio_env){.loop = d->loop};
	assert_int_equal(virtio_mmio_start(d->m, &d->env, &err), 0);
	return d;
}

void vdrv_free(struct vdrv *d)
{
	virtio_mmio_free(d->m);
	loop_free(d->loop);
	close(d->irq_fd);
	free(d->ram);
	free(d);
}

uint32_t vdrv_read(struct vdrv *d, uint32_t reg)
{
	uint32_t v;

	virtio_mmio_read(d->m, reg, &v, sizeof(v));
	return v;
}

void vdrv_write(struct vdrv *d, uint32_t reg, uint32_t value)
{
	virtio_mmio_write(d->m, reg, &value, sizeof(value));
}

uint64_t vdrv_features(struct vdrv *d)
{
	uint64_t v;

	vdrv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	v = (uint64_t)vdrv_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	vdrv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	return v | vdrv_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
}

static void vdrv_add_status(struct vdrv *d, uint32_t bit)
{
	vdrv_write(d, VIRTIO_MMIO_STATUS, vdrv_read(d, VIRTIO_MMIO_STATUS) | bit);
}

void vdrv_negotiate(struct vdrv *d, uint64_t features)
{
	features |= 1ULL << VIRTIO_F_VERSION_1;
	vdrv_write(d, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(vdrv_read(d, VIRTIO_MMIO_STATUS), 0);
	vdrv_add_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	vdrv_add_status(d, VIRTIO_CONFIG_S_DRIVER);
	vdrv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	vdrv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
	vdrv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	vdrv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	vdrv_add_status(d, VIRTIO_CONFIG_S_FEATURES_OK);
	assert_true(vdrv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK);
}

uint64_t vdrv_alloc(struct vdrv *d, uint32_t len)
{
	uint64_t gpa = VDRV_RAM_GPA + d->ram_used;

	d->ram_used += (len + 4095u) & ~4095u;
	assert_true(d->ram_used <= VDRV_RAM_LEN);
	return gpa;
}

void *vdrv_ptr(struct vdrv *d, uint64_t gpa)
{
	return d->ram + (gpa - VDRV_RAM_GPA);
}

static void vdrv_write64(struct vdrv *d, uint32_t reg_low, uint64_t value)
{
	vdrv_write(d, reg_low, (uint32_t)value);
	vdrv_write(d, reg_low + 4, (uint32_t)(value >> 32));
}

void vdrv_queue(struct vdrv *d, unsigned int index, uint16_t size)
{
	struct vdrv_queue *q = &d->q[index];

	if (!q->desc || q->size != size) {
		q->desc_gpa = vdrv_alloc(d, (uint32_t)virtq_desc_len(size));
		q->avail_gpa = vdrv_alloc(d, (uint32_t)virtq_avail_len(size));
		q->used_gpa = vdrv_alloc(d, (uint32_t)virtq_used_len(size));
	}
	*q = (struct vdrv_queue){.index = index,
				 .size = size,
				 .desc_gpa = q->desc_gpa,
				 .avail_gpa = q->avail_gpa,
				 .used_gpa = q->used_gpa,
				 .nr_free = size};
	q->desc = vdrv_ptr(d, q->desc_gpa);
	q->avail = vdrv_ptr(d, q->avail_gpa);
	q->used = vdrv_ptr(d, q->used_gpa);
	memset(q->desc, 0, virtq_desc_len(size));
	memset(q->avail, 0, virtq_avail_len(size));
	memset(q->used, 0, virtq_used_len(size));
	for (uint16_t i = 0; i < size; i++)
		q->desc[i].next = (uint16_t)(i + 1);
	vdrv_write(d, VIRTIO_MMIO_QUEUE_SEL, index);
	assert_int_equal(vdrv_read(d, VIRTIO_MMIO_QUEUE_READY), 0);
	assert_true(vdrv_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX) >= size);
	vdrv_write(d, VIRTIO_MMIO_QUEUE_NUM, size);
	vdrv_write64(d, VIRTIO_MMIO_QUEUE_DESC_LOW, q->desc_gpa);
	vdrv_write64(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, q->avail_gpa);
	vdrv_write64(d, VIRTIO_MMIO_QUEUE_USED_LOW, q->used_gpa);
	vdrv_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(vdrv_read(d, VIRTIO_MMIO_QUEUE_READY), 1);
}

void vdrv_driver_ok(struct vdrv *d)
{
	vdrv_add_status(d, VIRTIO_CONFIG_S_DRIVER_OK);
	assert_true(vdrv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK);
}

void vdrv_up(struct vdrv *d, uint64_t features, uint16_t size)
{
	vdrv_negotiate(d, features);
	for (unsigned int i = 0; i < virtio_mmio_nr_queues(d->m); i++) {
		uint32_t max;

		vdrv_write(d, VIRTIO_MMIO_QUEUE_SEL, i);
		max = vdrv_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX);
		vdrv_queue(d, i, MIN(size, (uint16_t)max));
	}
	vdrv_driver_ok(d);
}

int vdrv_add(struct vdrv *d, unsigned int queue, const struct vdrv_buf *bufs, unsigned int nr)
{
	struct vdrv_queue *q = &d->q[queue];
	uint16_t head = q->free_head, at = head, idx;

	if (nr > q->nr_free)
		return -1;
	for (unsigned int i = 0; i < nr; i++) {
		struct vring_desc *e = &q->desc[at];

		e->addr = bufs[i].gpa;
		e->len = bufs[i].len;
		e->flags = (uint16_t)((bufs[i].writable ? VRING_DESC_F_WRITE : 0) |
				      (i + 1 < nr ? VRING_DESC_F_NEXT : 0));
		at = e->next;
	}
	q->free_head = at;
	q->nr_free = (uint16_t)(q->nr_free - nr);
	q->chain_len[head] = (uint16_t)nr;
	idx = q->avail->idx;
	q->avail->ring[idx % q->size] = head;
	__atomic_store_n(&q->avail->idx, (uint16_t)(idx + 1), __ATOMIC_RELEASE);
	return head;
}

void vdrv_kick(struct vdrv *d, unsigned int queue)
{
	vdrv_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
}

int vdrv_used(struct vdrv *d, unsigned int queue, uint32_t *len)
{
	struct vdrv_queue *q = &d->q[queue];
	uint16_t idx = __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
	uint16_t head, last;

	if (idx == q->last_used)
		return -1;
	head = (uint16_t)q->used->ring[q->last_used % q->size].id;
	if (len)
		*len = q->used->ring[q->last_used % q->size].len;
	q->last_used++;
	assert_true(head < q->size && q->chain_len[head]);
	last = head;
	for (unsigned int i = 1; i < q->chain_len[head]; i++)
		last = q->desc[last].next;
	q->desc[last].next = q->free_head;
	q->free_head = head;
	q->nr_free = (uint16_t)(q->nr_free + q->chain_len[head]);
	q->chain_len[head] = 0;
	return head;
}

int vdrv_wait_used(struct vdrv *d, unsigned int queue, uint32_t *len)
{
	uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;
	int head = vdrv_used(d, queue, len);

	while (head < 0) {
		assert_true(util_now_ns() < end);
		assert_int_equal(loop_run_once(d->loop, 10), 0);
		head = vdrv_used(d, queue, len);
	}
	return head;
}

void vdrv_run(struct vdrv *d)
{
	/* No wait: what is ready is served, and what that makes ready, some steps deep. */
	for (int round = 0; round < 64; round++)
		assert_int_equal(loop_run_once(d->loop, 0), 0);
}

uint64_t vdrv_interrupts(struct vdrv *d)
{
	uint64_t n;

	return read(d->irq_fd, &n, sizeof(n)) < 0 ? 0 : n;
}

bool vdrv_needs_reset(struct vdrv *d)
{
	return vdrv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

void vdrv_wait(struct vdrv *d, const bool *flag)
{
	uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;

	while (!*flag) {
		assert_true(util_now_ns() < end);
		assert_int_equal(loop_run_once(d->loop, 10), 0);
	}
}
