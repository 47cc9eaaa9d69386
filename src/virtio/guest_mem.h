/*
 * Guest physical memory as this process has it mapped: a short table of regions. The only way from a
 * guest address to a pointer is guest_mem_ptr(), which checks the whole range.
 *
 * A table is filled before the devices that use it run, and changed only while they stand still.
 */
#pragma once

#include <stdint.h>

/* A guest physical address. A type of its own so that it cannot be mixed with lengths or pointers. */
typedef struct {
	uint64_t v;
} gpa_t;

#define GUEST_MEM_REGIONS_MAX 32

struct guest_mem_region {
	gpa_t gpa;
	uint64_t len;
	uint8_t *host; /* borrowed mapping of len bytes */
};

struct guest_mem {
	unsigned int nr;
	struct guest_mem_region regions[GUEST_MEM_REGIONS_MAX];
	/* No RAM: what a device shows there. Its bytes may be a request's, but nothing is written to it. len 0 = none. */
	struct guest_mem_region window;
};

/* 0; -EINVAL when empty or beyond the end of the address space; -EEXIST on overlap; -ENOSPC. */
int guest_mem_add(struct guest_mem *mem, gpa_t gpa, uint64_t len, void *host);
/* The same for the window, of which there is one. */
int guest_mem_set_window(struct guest_mem *mem, gpa_t gpa, uint64_t len, void *host);

/*
 * Pointer to [gpa, gpa + len), which must lie inside one region; NULL otherwise. A length of zero is
 * valid inside a region.
 */
void *guest_mem_ptr(const struct guest_mem *mem, gpa_t gpa, uint64_t len);
/* For what is only read, which may lie in the window, too. */
const void *guest_mem_read_ptr(const struct guest_mem *mem, gpa_t gpa, uint64_t len);
