/* Fuzzing a virtio device over a memory image; see virtio_image.h. */
#include "virtio_image.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "mmio.h"
#include "util.h"

#define SETTINGS 16
#define GUARD 4096u
#define QUEUE_STRIDE 4096u
#define AVAIL_OFF 0x400u
#define USED_OFF 0x800u
#define TURNS_MAX 8

struct op {
	uint8_t kind, a;
	uint16_t b;
};

static void check(bool ok)
{
	if (!ok)
		abort();
}

/* Guest memory between two pages that nobody may touch; zero at first, mapped once. */
static uint8_t *fresh_ram(void)
{
	static uint8_t *map;

	if (!map) {
		map = mmap(NULL, VIRTIO_IMAGE_RAM + 2 * GUARD, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		check(map != MAP_FAILED);
		check(!mprotect(map + GUARD, VIRTIO_IMAGE_RAM, PROT_READ | PROT_WRITE));
		signal(SIGPIPE, SIG_IGN);
	}
	check(!madvise(map + GUARD, VIRTIO_IMAGE_RAM, MADV_DONTNEED));
	return map + GUARD;
}

static void write_reg(struct virtio_mmio *m, uint32_t reg, uint32_t value)
{
	virtio_mmio_write(m, reg, &value, sizeof(value));
}

static void bring_up(struct virtio_mmio *m, const uint8_t *settings)
{
	const uint32_t ready = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	uint64_t features;

	memcpy(&features, settings, sizeof(features));
	features &= virtio_device_features(virtio_mmio_device(m));
	features |= 1ULL << VIRTIO_F_VERSION_1;
	write_reg(m, VIRTIO_MMIO_STATUS, 0);
	write_reg(m, VIRTIO_MMIO_STATUS, ready);
	write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
	write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	write_reg(m, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	write_reg(m, VIRTIO_MMIO_STATUS, ready | VIRTIO_CONFIG_S_FEATURES_OK);
	for (unsigned int i = 0; i < virtio_mmio_nr_queues(m); i++) {
		unsigned int log2 = settings[10] & VIRTIO_IMAGE_EXACT ? settings[8] % 7u
								      : (settings[8] + i) % 7u;

		write_reg(m, VIRTIO_MMIO_QUEUE_SEL, i);
		write_reg(m, VIRTIO_MMIO_QUEUE_NUM,
			  MIN(1u << log2, virtio_mmio_device(m)->queues[i].size_max));
		write_reg(m, VIRTIO_MMIO_QUEUE_DESC_LOW, i * QUEUE_STRIDE);
		write_reg(m, VIRTIO_MMIO_QUEUE_AVAIL_LOW, i * QUEUE_STRIDE + AVAIL_OFF);
		write_reg(m, VIRTIO_MMIO_QUEUE_USED_LOW, i * QUEUE_STRIDE + USED_OFF);
		write_reg(m, VIRTIO_MMIO_QUEUE_READY, 1);
	}
	write_reg(m, VIRTIO_MMIO_STATUS,
		  ready | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* As the worker would, in this thread. */
static void serve_blocking(struct virtio_device *dev)
{
	for (unsigned int i = 0; i < dev->info.nr_queues; i++) {
		struct virtio_queue *q = &dev->queues[i];

		for (unsigned int turn = 0; q->blocking && q->ready && turn < TURNS_MAX; turn++) {
			if (!dev->ops->queue_kick(dev, i))
				break;
		}
	}
}

static void serve(struct virtio_image *image)
{
	serve_blocking(image->dev);
	for (unsigned int turn = 0; turn < TURNS_MAX; turn++)
		check(!loop_run_once(image->loop, 0));
}

static void obey(struct virtio_image *image, struct virtio_mmio *m, const struct op *op,
		 const uint8_t *settings)
{
	uint32_t value = (uint32_t)op->b | (uint32_t)op->b << 16;
	uint8_t config[8];

	switch (op->kind % 8) {
	case 0:
		virtio_device_kick(image->dev, op->a % VIRTIO_QUEUES_MAX);
		serve(image);
		break;
	case 1: /* another processor of the guest changes memory */
		image->ram[op->b % VIRTIO_IMAGE_RAM] = op->a;
		break;
	case 2: /* further away */
		image->ram[(op->b * 16u) % VIRTIO_IMAGE_RAM] = op->a;
		break;
	case 3:
		bring_up(m, settings);
		break;
	case 4:
		if (image->host)
			image->host(image, op->a, op->b);
		serve(image);
		break;
	case 5:
		virtio_mmio_read(m, VIRTIO_MMIO_CONFIG + op->b, config, 1u << op->a % 4);
		break;
	case 6:
		memcpy(config, &value, sizeof(value));
		memcpy(config + 4, &value, sizeof(value));
		virtio_mmio_write(m, VIRTIO_MMIO_CONFIG + op->b % 64u, config, 1u << op->a % 4);
		break;
	default: /* one more entry in an available ring, for inputs that come to an end too early */
		image->ram[(op->a % 4u) * QUEUE_STRIDE + AVAIL_OFF + 2]++;
		break;
	}
}

static void fill_ram(uint8_t *ram, const uint8_t *data, size_t size)
{
	while (size > 4) {
		uint16_t at, len;

		memcpy(&at, data, sizeof(at));
		memcpy(&len, data + 2, sizeof(len));
		data += 4;
		size -= 4;
		len = (uint16_t)MIN((size_t)len, size);
		/* Addresses end at 64 KiB, lengths too: this is inside the megabyte. */
		memcpy(ram + at, data, len);
		data += len;
		size -= len;
	}
}

static void play(struct virtio_image *image, struct virtio_mmio *m, const uint8_t *data,
		 size_t size)
{
	const uint8_t *settings = data;
	size_t nr_ops =
		MIN(data[9] % (VIRTIO_IMAGE_OPS_MAX + 1u), (size - SETTINGS) / sizeof(struct op));
	const uint8_t *ops = data + SETTINGS, *memory = ops + nr_ops * sizeof(struct op);

	fill_ram(image->ram, memory, (size_t)(data + size - memory));
	bring_up(m, settings);
	serve(image);
	for (size_t i = 0; i < nr_ops; i++) {
		struct op op;

		memcpy(&op, ops + i * sizeof(op), sizeof(op));
		obey(image, m, &op, settings);
	}
	serve(image);
}

void virtio_image_run(struct virtio_image *image, struct virtio_device *dev, const uint8_t *data,
		      size_t size)
{
	struct guest_mem mem = {0};
	struct virtio_mmio_config config = {.dev = dev, .mem = &mem};
	struct virtio_mmio *m;
	struct err err;

	image->dev = dev;
	image->ram = fresh_ram();
	image->loop = loop_new();
	check(image->loop != NULL);
	check(!guest_mem_add(&mem, (gpa_t){0}, VIRTIO_IMAGE_RAM, image->ram));
	check(!dev->shm_len ||
	      !guest_mem_set_window(&mem, (gpa_t){VIRTIO_IMAGE_RAM}, dev->shm_len, dev->shm));
	config.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	m = virtio_mmio_new(&config);
	/* A device with blocking queues has nothing for the loop. */
	if (!dev->queues[0].blocking)
		check(!virtio_mmio_start(m, &(struct virtio_env){.loop = image->loop}, &err));
	if (size >= SETTINGS)
		play(image, m, data, size);
	if (image->end)
		image->end(image);
	virtio_mmio_free(m);
	loop_free(image->loop);
}
