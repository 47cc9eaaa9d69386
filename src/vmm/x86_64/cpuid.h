/* What the guest is told about its processors (CPUID). Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <linux/kvm.h>

#define CPUID_ENTRIES_MAX 256

struct cpuid_table {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[CPUID_ENTRIES_MAX];
};

struct cpuid_params {
	uint32_t apic_id, nr_cpus;
	bool has_tsc_deadline; /* KVM_CAP_TSC_DEADLINE_TIMER */
};

/* `table` holds what KVM supports; afterwards what this processor shall be. 0, or -ENOSPC. */
int cpuid_shape(struct cpuid_table *table, const struct cpuid_params *p);
