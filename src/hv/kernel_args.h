/* The guest kernel's command line. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct kernel_args {
	bool template; /* the VM is to be saved once its agent is ready */
	bool emulated; /* by TCG, not run by the processor */
	uint32_t nr_vcpus;
	uint64_t mem_bytes,
		machine_bytes; /* what the guest begins with, of what there is; whole MiB */
	uint32_t tsc_khz;      /* of the counter the guest sees, 0 = unknown */
	const char *extra;     /* the administrator's, comes last; may be "" */
};

/* Caller frees. */
char *kernel_args_build(const struct kernel_args *a);
