/*
 * A machine's state as a file, memory excepted: header, what the vCPUs share, each vCPU, each device. Memory is
 * a file of its own, guest memory as it is, with holes where it is zero: a clone maps it privately.
 *
 * The files are the template store's, which has compared their hashes; every number in them is checked all
 * the same. Loop's thread, no vCPU runs and every device is quiet.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "mmio.h"
#include "state.h"
#include "vcpu.h"

#define SNAPSHOT_DEVICE_STATE_MAX (1u << 20)

struct memory;

struct snapshot_parts {
	int vm_fd; /* borrowed, as all of it */
	struct vcpus *vcpus;
	const struct arch_msr_list *msrs;
	struct memory *mem;
	struct virtio_mmio *const *devices;
	unsigned int nr_devices;
	uint64_t mem_bytes;
};

int snapshot_save(const struct snapshot_parts *p, int fd, struct err *err);
/* *ret_bytes: what the file takes. */
int snapshot_save_memory(const struct snapshot_parts *p, int fd, uint64_t *ret_bytes,
			 struct err *err);
/* Memory first: devices look at their rings. */
int snapshot_restore_memory(const struct snapshot_parts *p, int fd, struct err *err);
int snapshot_restore(const struct snapshot_parts *p, int fd, struct err *err);
