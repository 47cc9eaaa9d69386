/*
 * Guest RAM: private anonymous memory of this process and the KVM slots that show it to the guest. No
 * other process ever maps it.
 *
 * Loop's thread. The table does not change while a vCPU runs.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "guest_mem.h"

/* One piece of guest memory; what the architecture's layout is made of. */
struct memory_range {
	uint64_t gpa, len;
};
#define MEMORY_RANGES_MAX 2

struct memory {
	struct guest_mem guest; /* what devices see */
	int vm_fd;		/* borrowed */
	unsigned int nr_slots;
};

/* Maps and shows all ranges. On failure what was mapped is undone by memory_done(). */
int memory_init(struct memory *m, int vm_fd, const struct memory_range *ranges, unsigned int nr,
		struct err *err);
/* Shows memory that is not ours to the guest, which can only read it. host: borrowed until the VM is gone. */
int memory_add_window(struct memory *m, uint64_t gpa, uint64_t len, void *host, struct err *err);
/* No vCPU runs any more. Accepts a zeroed struct. */
void memory_done(struct memory *m);
