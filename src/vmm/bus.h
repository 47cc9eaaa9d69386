/*
 * Which part of the machine an access of the guest reaches: one table for memory-mapped registers, one
 * for x86 ports. Filled before the guest runs, constant afterwards, so any number of vCPU threads use it
 * without a lock; each target guards itself.
 *
 * The guest may access anything in any width: what nothing answers for reads as ones (as an empty bus
 * does) and swallows writes.
 */
#pragma once

#include <stdint.h>

#define BUS_TARGETS_MAX 32

/* `off` counts from the target's first address; off + len lies within it, len is 1 to 8. */
struct bus_ops {
	void (*read)(void *ctx, uint64_t off, void *data, uint32_t len);
	void (*write)(void *ctx, uint64_t off, const void *data, uint32_t len);
};

struct bus_target {
	uint64_t addr, len;
	const struct bus_ops *ops;
	void *ctx; /* borrowed */
};

struct bus {
	unsigned int nr;
	struct bus_target targets[BUS_TARGETS_MAX]; /* sorted by address */
};

/* 0, -ENOSPC, -EEXIST on overlap, -EINVAL when empty or beyond the end. */
int bus_add(struct bus *bus, uint64_t addr, uint64_t len, const struct bus_ops *ops, void *ctx);
void bus_read(const struct bus *bus, uint64_t addr, void *data, uint32_t len);
void bus_write(const struct bus *bus, uint64_t addr, const void *data, uint32_t len);
