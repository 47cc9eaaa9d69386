/*
 * A machine's state as a file, memory excepted: header, what the vCPUs share, each vCPU, each device. Memory is
 * a file of its own, guest memory as it is, with holes where it is zero: a clone maps it privately.
 *
 * The files are the template store's, which has compared their hashes; every number in them is checked all
 * the same. Loop's thread, no vCPU runs and every device is quiet.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "mmio.h"
#include "state.h"
#include "vcpu.h"

/* Streams with all that waits for their readers are the most (vsock.h), harpoon-fs's sessions come next. */
#define SNAPSHOT_DEVICE_STATE_MAX (160u << 20)

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

/*
 * Both files, which are empty. No device works on guest memory meanwhile: what is in the rings is there still, or was
 * answered. Afterwards the machine may go on, whether this succeeded or not. used_bytes: of memory from its beginning on;
 * the rest is not looked at, which would cost a page table entry for each page, and is zero in the file.
 */
int snapshot_save(const struct snapshot_parts *p, int state_fd, int memory_fd, uint64_t used_bytes,
		  struct err *err);
/*
 * Memory first: devices look at their rings. is_own: no other machine is made of the file, which is copied; else it is
 * mapped.
 */
int snapshot_restore_memory(const struct snapshot_parts *p, int fd, bool is_own, struct err *err);
int snapshot_restore(const struct snapshot_parts *p, int fd, struct err *err);
