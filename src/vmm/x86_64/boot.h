/*
 * What the kernel finds in memory when it is entered by the 64-bit boot protocol (Documentation/arch/x86/
 * boot.rst): boot_params with the memory map, command line, page tables, descriptor table, MP table.
 * Writes guest memory and nothing else.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "guest_mem.h"

/* The kernel's COMMAND_LINE_SIZE, the terminating zero included. */
#define BOOT_CMDLINE_MAX 2048

struct boot_params_in {
	uint64_t mem_bytes; /* RAM as memory_layout() has placed it */
	uint32_t nr_vcpus;
	const char *cmdline;
	uint64_t initrd_gpa, initrd_len; /* len 0 = none */
};

int boot_write(const struct guest_mem *mem, const struct boot_params_in *in, struct err *err);
