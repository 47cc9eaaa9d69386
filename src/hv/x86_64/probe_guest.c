/*
 * KVM probe guest, x86-64: 64-bit mode with paging, as the real guest kernel runs; real mode and 32-bit
 * mode say nothing, because some hosts run only 64-bit code natively and others only emulate it.
 *
 * Guest physical memory: 0x1000 PML4, 0x2000 page directory pointers, 0x3000 page directory with one
 * 2 MiB page that maps address 0 to itself, 0x4000 the code.
 *
 * Numbers: Intel SDM vol. 3, 4.5 (paging) and 3.4.5 (descriptors).
 */
#include "probe_guest.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#define GUEST_PML4 0x1000
#define GUEST_PDPT 0x2000
#define GUEST_PD 0x3000
#define GUEST_CODE 0x4000
/* Intel wants three pages below 4 GiB for itself, outside of every memory slot. */
#define GUEST_TSS 0xfffbd000ul

#define PTE_PRESENT_WRITE 0x3u
#define PTE_LARGE 0x80u
#define CR0_PE 0x1u
#define CR0_ET 0x10u
#define CR0_PG 0x80000000u
#define CR4_PAE 0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u

/* 1: inc %rax; jmp 1b */
static const uint8_t guest_code[] = {0x48, 0xff, 0xc0, 0xeb, 0xfb};
#define GUEST_INSNS_PER_ROUND 2

static void guest_put_entry(uint8_t *mem, uint64_t table, uint64_t entry)
{
	memcpy(mem + table, &entry, sizeof(entry));
}

static void guest_set_segments(struct kvm_sregs *s)
{
	struct kvm_segment data = {.limit = 0xffffffff,
				   .selector = 0x10,
				   .type = 3, /* data, writable, accessed */
				   .present = 1,
				   .s = 1,
				   .g = 1};
	struct kvm_segment code = data;

	code.selector = 0x8;
	code.type = 11; /* code, readable, accessed */
	code.l = 1;
	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
}

int probe_guest_load(int vm_fd, int vcpu_fd, uint8_t *mem)
{
	struct kvm_regs regs = {.rip = GUEST_CODE, .rflags = 0x2};
	struct kvm_sregs s;

	guest_put_entry(mem, GUEST_PML4, GUEST_PDPT | PTE_PRESENT_WRITE);
	guest_put_entry(mem, GUEST_PDPT, GUEST_PD | PTE_PRESENT_WRITE);
	guest_put_entry(mem, GUEST_PD, PTE_LARGE | PTE_PRESENT_WRITE);
	memcpy(mem + GUEST_CODE, guest_code, sizeof(guest_code));
	if (ioctl(vm_fd, KVM_SET_TSS_ADDR, GUEST_TSS) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &s) < 0)
		return -errno;
	guest_set_segments(&s);
	s.cr0 = CR0_PE | CR0_ET | CR0_PG;
	s.cr3 = GUEST_PML4;
	s.cr4 = CR4_PAE;
	s.efer = EFER_LME | EFER_LMA;
	if (ioctl(vcpu_fd, KVM_SET_SREGS, &s) < 0 || ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0)
		return -errno;
	return 0;
}

int probe_guest_count(int vcpu_fd, uint64_t *ret_insns)
{
	struct kvm_regs regs;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0)
		return -errno;
	*ret_insns = regs.rax * GUEST_INSNS_PER_ROUND;
	return 0;
}
