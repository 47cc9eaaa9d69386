/* What a machine's architecture decides: one folder per architecture implements this. Loop's thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "memory.h"

/* Where RAM lies; ranges in ascending order, the first holds the kernel. Returns how many. */
unsigned int arch_memory_layout(uint64_t mem_bytes, struct memory_range ranges[MEMORY_RANGES_MAX]);

/* Where memory that a device shows begins: beyond all RAM, as far aligned as a guest may want it. */
uint64_t arch_window_base(uint64_t mem_bytes);

/* Window and interrupt line of virtio slot 0, 1, ...; false: there is no such slot. */
bool arch_device_slot(unsigned int slot, uint64_t *ret_gpa, uint32_t *ret_irq);

/* Checks what KVM can do, makes interrupt controllers and timers. Before any vCPU. */
int arch_vm_init(int kvm_fd, int vm_fd, struct err *err);
/* What a vCPU is, as the guest sees it. */
int arch_vcpu_init(int kvm_fd, int vcpu_fd, unsigned int index, unsigned int nr, struct err *err);

struct arch_boot {
	int kernel_fd, initrd_fd; /* borrowed; initrd_fd -1 = none */
	const char *cmdline;
	uint64_t mem_bytes;
	unsigned int nr_vcpus;
};
/* Loads everything and points the first vCPU at it. */
int arch_boot(const struct memory *mem, int vcpu_fd, const struct arch_boot *boot, struct err *err);
