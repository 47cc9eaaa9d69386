/*
 * More memory for the guest; see memory.h.
 *
 * What the machine has is in the boot loader's map, which the kernel keeps as it was given. What the kernel uses of
 * it is in /proc/iomem; what was in that map and is not there can be added by address, in blocks of sysfs's size.
 */
#include "memory.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

#define MEMORY_IOMEM "/proc/iomem"
/* A bare struct boot_params: Documentation/ABI/testing/sysfs-kernel-boot_params. */
#define MEMORY_BOOT_PARAMS "/sys/kernel/boot_params/data"
/* Documentation/admin-guide/mm/memory-hotplug.rst */
#define MEMORY_DIR "/sys/devices/system/memory"
#define MEMORY_TEXT_MAX (1u << 20)
#define MEMORY_MIB ((uint64_t)1 << 20)
#define MEMORY_E820_RAM 1

uint64_t memory_sum(const char *iomem)
{
	static const char ram[] = " : System RAM";
	uint64_t sum = 0;

	for (const char *line = iomem; *line;) {
		const char *end = line + strcspn(line, "\n");
		char *rest;
		uint64_t first = strtoull(line, &rest, 16), last;

		/* Parts of a range are indented. */
		if (*line != ' ' && *rest == '-') {
			last = strtoull(rest + 1, &rest, 16);
			/* Whole MiB: the hole in the first one counts as memory in every machine's size. */
			if (rest + strlen(ram) == end && !strncmp(rest, ram, strlen(ram)))
				sum += (last / MEMORY_MIB + 1 - first / MEMORY_MIB) * MEMORY_MIB;
		}
		line = *end ? end + 1 : end;
	}
	return sum;
}

static int memory_read(const char *path, char **ret, size_t *ret_len, struct err *err)
{
	int r = io_read_file(AT_FDCWD, path, MEMORY_TEXT_MAX, ret, ret_len);

	return r ? err_set(err, r, "read '%s'", path) : 0;
}

static int memory_block_size(uint64_t *ret, struct err *err)
{
	cleanup_free char *text = NULL;
	int r = memory_read(MEMORY_DIR "/block_size_bytes", &text, NULL, err);

	if (r)
		return r;
	*ret = strtoull(text, NULL, 16);
	return *ret ? 0 : err_say(err, -EPROTO, "memory blocks of no size");
}

static int memory_add(uint64_t at, uint64_t block, struct err *err)
{
	char text[32], path[128];
	int r;

	snprintf(text, sizeof(text), "0x%" PRIx64, at);
	r = io_write_file(AT_FDCWD, MEMORY_DIR "/probe", text, strlen(text));
	if (r)
		return err_set(err, r, "add memory at %s", text);
	snprintf(path, sizeof(path), MEMORY_DIR "/memory%" PRIu64 "/state", at / block);
	r = io_write_file(AT_FDCWD, path, "online", strlen("online"));
	return r ? err_set(err, r, "use the memory at %s", text) : 0;
}

/* Of one range of the machine's memory. */
static int memory_grow_range(const struct boot_e820_entry *e, uint64_t block, uint64_t *have,
			     uint64_t want, struct err *err)
{
	uint64_t at = (e->addr + block - 1) / block * block;
	int r = 0;

	for (; *have < want && !r && at + block <= e->addr + e->size; at += block) {
		char path[128];

		snprintf(path, sizeof(path), MEMORY_DIR "/memory%" PRIu64, at / block);
		if (!access(path, F_OK))
			continue;
		r = memory_add(at, block, err);
		*have += r ? 0 : block;
	}
	return r;
}

int memory_grow(uint64_t bytes, struct err *err)
{
	cleanup_free char *iomem = NULL, *boot = NULL;
	const struct boot_params *params;
	uint64_t have, block = 0;
	size_t len = 0;
	int r = memory_read(MEMORY_IOMEM, &iomem, NULL, err);

	have = r ? 0 : memory_sum(iomem);
	if (r || have >= bytes)
		return r;
	r = memory_read(MEMORY_BOOT_PARAMS, &boot, &len, err);
	if (!r)
		r = memory_block_size(&block, err);
	if (r)
		return r;
	params = (const void *)boot;
	if (len < sizeof(*params) || params->e820_entries > ARRAY_SIZE(params->e820_table))
		return err_say(err, -EPROTO, "the map of the machine's memory has %zu bytes", len);
	for (size_t i = 0; i < params->e820_entries && !r; i++)
		if (params->e820_table[i].type == MEMORY_E820_RAM)
			r = memory_grow_range(&params->e820_table[i], block, &have, bytes, err);
	if (!r && have < bytes)
		r = err_say(err, -ENOMEM, "the VM has %" PRIu64 " MiB and cannot have %" PRIu64,
			    have / MEMORY_MIB, bytes / MEMORY_MIB);
	return r;
}
