/*
 * Memory that the guest's machine has and its kernel was not told of when it booted (mem=).
 */
#pragma once

#include <stdint.h>

#include "err.h"

/*
 * Adds blocks of it (128 MiB) until the guest has `bytes`, by size of its memory map. Idempotent. -ENOMEM: the machine
 * has no more, or the kernel no room to count it; what was added stays.
 */
int memory_grow(uint64_t bytes, struct err *err);

/* Size of the memory in a text of /proc/iomem. */
uint64_t memory_sum(const char *iomem);
