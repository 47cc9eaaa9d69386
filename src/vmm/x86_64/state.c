/*
 * State of an x86-64 machine in KVM; see state.h. Documentation/virt/kvm/api.rst.
 *
 * Order of saving: the processor's run state first, because reading it lets the local APIC take pending
 * INITs; events last, with all vCPUs standing still.
 * Order of restoring: run state, registers (setting them clears pending exceptions, so before events), special
 * registers (they hold the APIC's base, so before the APIC), FPU, the local APIC (before MSRs: the deadline
 * timer wants its mode), MSRs with the TSC first and the deadline last, events.
 *
 * A deadline of zero may mean that the timer has just expired and its interrupt is on its way, which
 * no state of KVM's holds. So it is restored as "now": at worst the guest sees one interrupt of its timer too
 * many, which it expects at any time.
 */
#include "state.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

#include "util.h"

#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0

/*
 * What a guest can set and would miss. Not here: what is part of other structs (EFER, the APIC's base),
 * the host's own (microcode, capabilities), counters that are hidden from the guest.
 */
static const struct {
	uint32_t first, last;
} state_msrs[] = {
	{0x11, 0x12},		  /* kvmclock, as old guests have it */
	{0x3b, 0x3b},		  /* TSC_ADJUST */
	{0x48, 0x48},		  /* SPEC_CTRL */
	{0x122, 0x122},		  /* TSX_CTRL */
	{0x140, 0x140},		  /* MISC_FEATURES_ENABLES */
	{0x174, 0x176},		  /* SYSENTER */
	{0x1a0, 0x1a0},		  /* MISC_ENABLE */
	{0x200, 0x20f},		  /* variable MTRRs */
	{0x250, 0x250},		  /* fixed MTRRs */
	{0x258, 0x259},		  /* fixed MTRRs */
	{0x268, 0x26f},		  /* fixed MTRRs */
	{0x277, 0x277},		  /* PAT */
	{0x2ff, 0x2ff},		  /* MTRR default type */
	{0x6a0, 0x6a8},		  /* CET */
	{0xda0, 0xda0},		  /* XSS: without it XRSTORS faults in the guest */
	{0x4b564d00, 0x4b564d08}, /* KVM's paravirtual ones, kvmclock among them */
	{0xc0000081, 0xc0000084}, /* SYSCALL */
	{0xc0000100, 0xc0000103}, /* FS, GS, kernel GS, TSC_AUX */
	{0xc0010015, 0xc0010015}, /* HWCR */
	{0xc001011f, 0xc001011f}, /* VIRT_SPEC_CTRL */
};

static bool state_keeps_msr(uint32_t index)
{
	for (size_t i = 0; i < ARRAY_SIZE(state_msrs); i++) {
		if (index >= state_msrs[i].first && index <= state_msrs[i].last)
			return true;
	}
	return false;
}

int arch_msr_list_get(int kvm_fd, struct arch_msr_list *ret, struct err *err)
{
	struct {
		struct kvm_msr_list head;
		uint32_t indices[1024];
	} all = {.head.nmsrs = 1024};

	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &all.head))
		return err_set(err, -errno, "ask KVM for its model specific registers");
	ret->nr = 0;
	/* The two with a place of their own in the order. */
	ret->indices[ret->nr++] = MSR_TSC;
	for (uint32_t i = 0; i < all.head.nmsrs && ret->nr < ARCH_MSRS_MAX - 1; i++) {
		if (state_keeps_msr(all.head.indices[i]))
			ret->indices[ret->nr++] = all.head.indices[i];
	}
	ret->indices[ret->nr++] = MSR_TSC_DEADLINE;
	return 0;
}

struct state_one_msr {
	struct kvm_msrs head;
	struct kvm_msr_entry entry;
};

/* One by one: KVM stops at the first that this guest does not have, and lists more than that. */
static void state_save_msrs(int vcpu_fd, const struct arch_msr_list *list,
			    struct arch_vcpu_state *ret)
{
	for (uint32_t i = 0; i < list->nr; i++) {
		struct state_one_msr m = {.head.nmsrs = 1, .entry.index = list->indices[i]};

		if (ioctl(vcpu_fd, KVM_GET_MSRS, &m) == 1)
			ret->msrs[ret->nr_msrs++] = m.entry;
	}
}

static int state_restore_msrs(int vcpu_fd, const struct arch_vcpu_state *s, struct err *err)
{
	uint64_t tsc = 0;

	for (uint32_t i = 0; i < s->nr_msrs; i++) {
		struct state_one_msr m = {.head.nmsrs = 1, .entry = s->msrs[i]};

		if (m.entry.index == MSR_TSC)
			tsc = m.entry.data;
		if (m.entry.index == MSR_TSC_DEADLINE && !m.entry.data)
			m.entry.data = tsc;
		if (ioctl(vcpu_fd, KVM_SET_MSRS, &m) != 1)
			return err_say(err, -EINVAL,
				       "KVM does not take back model specific register 0x%x",
				       m.entry.index);
	}
	return 0;
}

static int state_save_xsave(int vm_fd, int vcpu_fd, struct arch_vcpu_state *ret)
{
	int len = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	if (len > ARCH_XSAVE_MAX)
		return -E2BIG;
	if (len <= (int)sizeof(struct kvm_xsave)) {
		ret->xsave_len = sizeof(struct kvm_xsave);
		return ioctl(vcpu_fd, KVM_GET_XSAVE, ret->xsave) ? -errno : 0;
	}
	ret->xsave_len = (uint32_t)len;
	return ioctl(vcpu_fd, KVM_GET_XSAVE2, ret->xsave) ? -errno : 0;
}

int arch_vcpu_save(int vm_fd, int vcpu_fd, const struct arch_msr_list *msrs,
		   struct arch_vcpu_state *ret, struct err *err)
{
	int r;

	memset(ret, 0, sizeof(*ret));
	if (ioctl(vcpu_fd, KVM_GET_MP_STATE, &ret->mp) ||
	    ioctl(vcpu_fd, KVM_GET_REGS, &ret->regs) ||
	    ioctl(vcpu_fd, KVM_GET_SREGS, &ret->sregs) ||
	    ioctl(vcpu_fd, KVM_GET_XCRS, &ret->xcrs) ||
	    ioctl(vcpu_fd, KVM_GET_DEBUGREGS, &ret->debugregs) ||
	    ioctl(vcpu_fd, KVM_GET_LAPIC, &ret->lapic))
		return err_set(err, -errno, "read a vCPU's state");
	r = state_save_xsave(vm_fd, vcpu_fd, ret);
	if (r)
		return err_set(err, r, "read a vCPU's floating point state");
	state_save_msrs(vcpu_fd, msrs, ret);
	if (ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &ret->events))
		return err_set(err, -errno, "read a vCPU's pending events");
	return 0;
}

/* struct kvm_* are passed on: KVM checks what they say. */
int arch_vcpu_restore(int vm_fd, int vcpu_fd, const struct arch_vcpu_state *s, struct err *err)
{
	int len = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2), r;

	if (s->xsave_len != MAX((uint32_t)MAX(len, 0), sizeof(struct kvm_xsave)) ||
	    s->nr_msrs > ARCH_MSRS_MAX)
		return err_say(err, -EINVAL, "the saved vCPU is of another kind of processor");
	if (ioctl(vcpu_fd, KVM_SET_MP_STATE, &s->mp) || ioctl(vcpu_fd, KVM_SET_REGS, &s->regs) ||
	    ioctl(vcpu_fd, KVM_SET_SREGS, &s->sregs) || ioctl(vcpu_fd, KVM_SET_XSAVE, s->xsave) ||
	    ioctl(vcpu_fd, KVM_SET_XCRS, &s->xcrs) ||
	    ioctl(vcpu_fd, KVM_SET_DEBUGREGS, &s->debugregs) ||
	    ioctl(vcpu_fd, KVM_SET_LAPIC, &s->lapic))
		return err_set(err, -errno, "set a vCPU's state");
	r = state_restore_msrs(vcpu_fd, s, err);
	if (r)
		return r;
	if (ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &s->events))
		return err_set(err, -errno, "set a vCPU's pending events");
	return 0;
}

int arch_vm_save(int vm_fd, struct arch_vm_state *ret, struct err *err)
{
	memset(ret, 0, sizeof(*ret));
	if (ioctl(vm_fd, KVM_GET_CLOCK, &ret->clock))
		return err_set(err, -errno, "read the guest's clock");
	/* The guest's clock goes on where it stood; the agent sets the time of day. */
	ret->clock.flags = 0;
	for (uint32_t i = 0; i < ARCH_CHIPS; i++) {
		ret->chips[i].chip_id = i;
		if (ioctl(vm_fd, KVM_GET_IRQCHIP, &ret->chips[i]))
			return err_set(err, -errno, "read an interrupt controller");
	}
	return 0;
}

int arch_vm_restore(int vm_fd, const struct arch_vm_state *s, struct err *err)
{
	struct kvm_clock_data clock = {.clock = s->clock.clock};

	if (ioctl(vm_fd, KVM_SET_CLOCK, &clock))
		return err_set(err, -errno, "set the guest's clock");
	for (uint32_t i = 0; i < ARCH_CHIPS; i++) {
		struct kvm_irqchip chip = s->chips[i];

		chip.chip_id = i;
		if (ioctl(vm_fd, KVM_SET_IRQCHIP, &chip))
			return err_set(err, -errno, "set an interrupt controller");
	}
	return 0;
}
