/*
 * Fuzz entry: the register window of a virtio device. Input: six bytes per access: offset (16 bits, the
 * top bit = read, bits 12-13 = width) and value; values with the top bit set are scaled to guest
 * memory, so that rings inside it are likely. The device is the random number generator.
 *
 * Checked beyond "no crash": registers of a running queue do not change, a status without DRIVER_OK
 * means that no queue runs.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "mmio.h"
#include "rng.h"
#include "util.h"

#define RAM_LEN (64u << 10)
#define RAM_GPA 0x10000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
	if (!ok)
		abort();
}

static void check_frozen(struct virtio_mmio *m, const struct virtio_mmio_state *before)
{
	struct virtio_mmio_state now;
	uint32_t ok = VIRTIO_CONFIG_S_DRIVER_OK;

	virtio_mmio_save(m, &now);
	for (unsigned int i = 0; i < VIRTIO_QUEUES_MAX; i++)
		now.queues[i].last_avail = before->queues[i].last_avail;
	if (before->status & ok && now.status & ok) {
		check(!memcmp(now.queues, before->queues, sizeof(now.queues)));
		check(now.driver_features == before->driver_features);
	}
	check(!!(now.status & ok) == virtio_mmio_device(m)->active);
}

static void access_one(struct virtio_mmio *m, const uint8_t *bytes)
{
	struct virtio_mmio_state before;
	uint16_t where;
	uint32_t value, len;
	uint8_t wide[8] = {0};

	memcpy(&where, bytes, sizeof(where));
	memcpy(&value, bytes + 2, sizeof(value));
	if (value & 0x80000000u)
		value = RAM_GPA + (value & (RAM_LEN - 1) & ~15u);
	len = (where >> 12 & 3) == 3 ? 8 : 4u >> (where >> 12 & 3);
	memcpy(wide, &value, sizeof(value));
	virtio_mmio_save(m, &before);
	if (where & 0x8000)
		virtio_mmio_read(m, where & 0xfff, wide, len);
	else
		virtio_mmio_write(m, where & 0xfff, wide, len);
	check_frozen(m, &before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t ram[RAM_LEN] __attribute__((aligned(4096)));
	struct guest_mem mem = {0};
	struct virtio_mmio_config config = {.mem = &mem};
	struct loop *loop = loop_new();
	struct virtio_mmio *m;
	struct err err;

	memset(ram, 0, sizeof(ram));
	check(loop != NULL);
	check(!guest_mem_add(&mem, (gpa_t){RAM_GPA}, RAM_LEN, ram));
	check(!virtio_rng_new(&config.dev, &err));
	config.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	m = virtio_mmio_new(&config);
	check(!virtio_mmio_start(m, &(struct virtio_env){.loop = loop}, &err));
	for (size_t at = 0; at + 6 <= size; at += 6) {
		access_one(m, data + at);
		if (at % 48 == 42)
			check(!loop_run_once(loop, 0));
	}
	virtio_mmio_free(m);
	loop_free(loop);
	return 0;
}
