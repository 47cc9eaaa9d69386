/*
 * The MP table (Intel MultiProcessor Specification 1.4): tells a kernel without ACPI of processors,
 * interrupt controller and interrupt lines. Pure.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MPTABLE_CPUS_MAX 32

/*
 * Writes the floating pointer and the table for processors 0 to nr_cpus - 1; `gpa` is where out[0] will
 * be. Returns the bytes used, or -EINVAL (processors), -ENOSPC (room).
 */
int mptable_write(uint8_t *out, size_t room, uint64_t gpa, uint32_t nr_cpus);
