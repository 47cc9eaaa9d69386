/*
 * An uncompressed kernel (ELF, System V ABI chapter 4 and 5) into guest memory. The file is the
 * administrator's; its bytes are checked all the same.
 *
 * Whole pages of the file are mapped over guest memory, private: nothing is copied, and what a guest
 * does not change is one page of the host's cache for all VMs. Only the ragged ends are read.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "guest_mem.h"

struct kernel_image {
	uint64_t entry;	     /* where the first processor starts */
	uint64_t start, end; /* guest memory it takes */
};

/* fd: borrowed; the mappings keep the file. mem: regions must be private mappings of ours. min: lowest
 * address the kernel may take. */
int kernel_load(int fd, const struct guest_mem *mem, uint64_t min, struct kernel_image *ret,
		struct err *err);

/* A file as it is to guest memory at gpa (page aligned), in the same way. */
int kernel_place_file(int fd, const struct guest_mem *mem, uint64_t gpa, uint64_t len,
		      struct err *err);
