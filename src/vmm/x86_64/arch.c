/*
 * An x86-64 machine on KVM; see arch.h and docs/vmm.md.
 *
 * Interrupt controllers are KVM's (local APICs, an I/O APIC, a pair of 8259s that nothing uses). There is no
 * PIT: time is kvmclock's, timer interrupts come from the local APIC in TSC-deadline mode.
 *
 * The first processor starts in 64-bit mode at the kernel's ELF entry, as the 64-bit boot protocol says;
 * the others wait for their INIT, as KVM creates them.
 */
#include "arch.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "boot.h"
#include "cleanup.h"
#include "cpuid.h"
#include "kernel.h"
#include "layout.h"
#include "util.h"

#define CR0_PE 0x1u
#define CR0_ET 0x10u
#define CR0_PG 0x80000000u
#define CR4_PAE 0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define RFLAGS_FIXED 0x2u

#define MSR_MISC_ENABLE 0x1a0
#define MISC_ENABLE_FAST_STRING 0x1u
#define MSR_MTRR_DEF_TYPE 0x2ff
#define MTRR_ENABLE_WRITE_BACK 0x806u

#define ARCH_PAGE 4096u

#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TASK 0x20
#define GDT_LIMIT 0x27

unsigned int arch_memory_layout(uint64_t mem_bytes, struct memory_range ranges[MEMORY_RANGES_MAX])
{
	uint64_t low = MIN(mem_bytes, LAYOUT_LOW_RAM_END);

	ranges[0] = (struct memory_range){.gpa = 0, .len = low};
	ranges[1] = (struct memory_range){.gpa = LAYOUT_HIGH_RAM_START, .len = mem_bytes - low};
	return ranges[1].len ? 2 : 1;
}

uint64_t arch_window_base(uint64_t mem_bytes)
{
	uint64_t high = mem_bytes - MIN(mem_bytes, LAYOUT_LOW_RAM_END);

	return (LAYOUT_HIGH_RAM_START + high + LAYOUT_WINDOW_ALIGN - 1) / LAYOUT_WINDOW_ALIGN *
	       LAYOUT_WINDOW_ALIGN;
}

bool arch_device_slot(unsigned int slot, uint64_t *ret_gpa, uint32_t *ret_irq)
{
	if (slot >= LAYOUT_SLOTS_MAX)
		return false;
	*ret_gpa = LAYOUT_MMIO_BASE + slot * LAYOUT_MMIO_STEP;
	*ret_irq = LAYOUT_IRQ_BASE + slot;
	return true;
}

/* What we rely on, and from which kernel on it is there. */
static int arch_check_kvm(int vm_fd, struct err *err)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = {
		{KVM_CAP_IRQCHIP, "interrupt controllers"}, {KVM_CAP_IRQFD, "irqfd"},
		{KVM_CAP_IOEVENTFD, "ioeventfd"},	    {KVM_CAP_USER_MEMORY, "memory slots"},
		{KVM_CAP_IMMEDIATE_EXIT, "immediate exit"}, {KVM_CAP_EXT_CPUID, "CPUID"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
		if (ioctl(vm_fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return err_say(err, -ENOTSUP, "this host's KVM has no %s (capability %d)",
				       needed[i].name, needed[i].cap);
	}
	return 0;
}

int arch_vm_init(int kvm_fd, int vm_fd, struct err *err)
{
	uint64_t identity = LAYOUT_KVM_IDENTITY;
	int r = arch_check_kvm(vm_fd, err);

	if (r)
		return r;
	if (ioctl(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) ||
	    ioctl(vm_fd, KVM_SET_TSS_ADDR, LAYOUT_KVM_TSS))
		return err_set(err, -errno, "reserve KVM's own guest pages");
	if (ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0))
		return err_set(err, -errno, "create the interrupt controllers");
	return 0;
}

static int arch_set_cpuid(int kvm_fd, int vcpu_fd, const struct cpuid_params *p, struct err *err)
{
	cleanup_free struct cpuid_table *t = xcalloc(1, sizeof(*t));
	int r;

	t->head.nent = CPUID_ENTRIES_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &t->head))
		return err_set(err, -errno, "ask KVM for processor features");
	r = cpuid_shape(t, p);
	if (r)
		return err_set(err, r, "describe a vCPU");
	if (ioctl(vcpu_fd, KVM_SET_CPUID2, &t->head))
		return err_set(err, -errno, "set processor features");
	return 0;
}

/* What firmware would have set. */
static int arch_set_msrs(int vcpu_fd, struct err *err)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[2];
	} msrs = {
		.head.nmsrs = 2,
		.entries = {{.index = MSR_MISC_ENABLE, .data = MISC_ENABLE_FAST_STRING},
			    {.index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLE_WRITE_BACK}},
	};

	if (ioctl(vcpu_fd, KVM_SET_MSRS, &msrs) != (int)msrs.head.nmsrs)
		return err_set(err, -errno, "set a vCPU's model specific registers");
	return 0;
}

int arch_vcpu_init(int kvm_fd, int vcpu_fd, unsigned int index, unsigned int nr, struct err *err)
{
	int r = arch_set_cpuid(kvm_fd, vcpu_fd,
			       &(struct cpuid_params){
				       .apic_id = index,
				       .nr_cpus = nr,
				       .has_tsc_deadline = ioctl(kvm_fd, KVM_CHECK_EXTENSION,
								 KVM_CAP_TSC_DEADLINE_TIMER) > 0,
			       },
			       err);

	return r ? r : arch_set_msrs(vcpu_fd, err);
}

static void arch_set_segments(struct kvm_sregs *s)
{
	struct kvm_segment data = {.limit = 0xffffffff,
				   .selector = SELECTOR_DATA,
				   .type = 3, /* data, writable, accessed */
				   .present = 1,
				   .db = 1,
				   .s = 1,
				   .g = 1};
	struct kvm_segment code = data;

	code.selector = SELECTOR_CODE;
	code.type = 11; /* code, readable, accessed */
	code.db = 0;
	code.l = 1;
	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->tr = (struct kvm_segment){
		.limit = 0x67, .selector = SELECTOR_TASK, .type = 11, .present = 1};
	s->gdt.base = LAYOUT_GDT;
	s->gdt.limit = GDT_LIMIT;
	s->idt.base = 0;
	s->idt.limit = 0;
}

/* Documentation/arch/x86/boot.rst, "64-bit boot protocol": rsi holds the address of boot_params. */
static int arch_set_entry(int vcpu_fd, uint64_t entry, struct err *err)
{
	struct kvm_regs regs = {.rip = entry, .rsi = LAYOUT_BOOT_PARAMS, .rflags = RFLAGS_FIXED};
	struct kvm_sregs s;

	if (ioctl(vcpu_fd, KVM_GET_SREGS, &s))
		return err_set(err, -errno, "read a vCPU's registers");
	arch_set_segments(&s);
	s.cr0 = CR0_PE | CR0_ET | CR0_PG;
	s.cr3 = LAYOUT_PML4;
	s.cr4 = CR4_PAE;
	s.efer = EFER_LME | EFER_LMA;
	if (ioctl(vcpu_fd, KVM_SET_SREGS, &s) || ioctl(vcpu_fd, KVM_SET_REGS, &regs))
		return err_set(err, -errno, "set a vCPU's registers");
	return 0;
}

/* Right behind the kernel: the guest may have been told of a part of its memory only, and of that from below. */
static int arch_load_initrd(const struct memory *mem, const struct arch_boot *b,
			    uint64_t kernel_end, struct boot_params_in *ret, struct err *err)
{
	uint64_t low = MIN(b->mem_bytes, LAYOUT_LOW_RAM_END), len;
	struct stat st;

	if (b->initrd_fd < 0)
		return 0;
	if (fstat(b->initrd_fd, &st))
		return err_set(err, -errno, "look at the initrd");
	len = (uint64_t)st.st_size;
	ret->initrd_gpa = (kernel_end + ARCH_PAGE - 1) / ARCH_PAGE * ARCH_PAGE;
	if (!len || len > low || ret->initrd_gpa > low - len)
		return err_say(err, -ENOMEM,
			       "the initrd, %llu bytes, does not fit into %llu MiB of memory "
			       "beside the kernel",
			       (unsigned long long)len, (unsigned long long)(b->mem_bytes >> 20));
	ret->initrd_len = len;
	return kernel_place_file(b->initrd_fd, &mem->guest, ret->initrd_gpa, len, err);
}

int arch_boot(const struct memory *mem, int vcpu_fd, const struct arch_boot *b, struct err *err)
{
	struct boot_params_in in = {
		.mem_bytes = b->mem_bytes, .nr_vcpus = b->nr_vcpus, .cmdline = b->cmdline};
	struct kernel_image kernel;
	int r = kernel_load(b->kernel_fd, &mem->guest, LAYOUT_KERNEL_MIN, &kernel, err);

	if (!r)
		r = arch_load_initrd(mem, b, kernel.end, &in, err);
	if (!r)
		r = boot_write(&mem->guest, &in, err);
	return r ? r : arch_set_entry(vcpu_fd, kernel.entry, err);
}
