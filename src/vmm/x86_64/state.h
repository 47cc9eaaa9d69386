/*
 * What KVM knows of a machine that stands still, as bytes: one struct for each vCPU, one for what they share.
 * No pointers; written and read on one kind of machine, by one version of the program.
 *
 * Restoring follows KVM's rules of order (each is explained in state.c).
 */
#pragma once

#include <stdint.h>

#include <linux/kvm.h>

#include "err.h"

#define ARCH_XSAVE_MAX 16384
#define ARCH_MSRS_MAX 256

struct arch_vcpu_state {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint32_t xsave_len, nr_msrs;
	struct kvm_msr_entry msrs[ARCH_MSRS_MAX];
	uint8_t xsave[ARCH_XSAVE_MAX];
};

enum { ARCH_CHIP_MASTER, ARCH_CHIP_SLAVE, ARCH_CHIP_IOAPIC, ARCH_CHIPS };

struct arch_vm_state {
	struct kvm_clock_data clock;
	struct kvm_irqchip chips[ARCH_CHIPS];
};

/* The list of registers is KVM's as it is on this host; taken while /dev/kvm is still open. */
struct arch_msr_list {
	uint32_t nr;
	uint32_t indices[ARCH_MSRS_MAX];
};
int arch_msr_list_get(int kvm_fd, struct arch_msr_list *ret, struct err *err);

int arch_vm_save(int vm_fd, struct arch_vm_state *ret, struct err *err);
int arch_vm_restore(int vm_fd, const struct arch_vm_state *state, struct err *err);
int arch_vcpu_save(int vm_fd, int vcpu_fd, const struct arch_msr_list *msrs,
		   struct arch_vcpu_state *ret, struct err *err);
int arch_vcpu_restore(int vm_fd, int vcpu_fd, const struct arch_vcpu_state *state, struct err *err);
