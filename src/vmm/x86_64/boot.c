/*
 * Boot data; see boot.h. Sources: Documentation/arch/x86/boot.rst (64-bit protocol), zero-page.rst; Intel
 * SDM vol. 3, 4.5 for the page tables.
 *
 * The page tables map the first GiB to itself with 2 MiB pages; the kernel makes its own before it
 * touches anything beyond.
 */
#include "boot.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#include "layout.h"
#include "mptable.h"
#include "util.h"

#define PTE_PRESENT_WRITE 0x3u
#define PTE_LARGE 0x80u
#define PD_ENTRIES 512
#define PD_PAGE 0x200000ull

#define BOOT_LOADER_UNKNOWN 0xff
#define BOOT_FLAG 0xaa55
#define BOOT_MAGIC 0x53726448 /* "HdrS" */
#define BOOT_KERNEL_ALIGN 0x1000000
#define E820_RAM 1
#define E820_RESERVED 2

static const uint64_t boot_gdt[] = {
	0,
	0,
	0x00af9b000000ffffull, /* 0x10: code, 64 bit */
	0x00cf93000000ffffull, /* 0x18: data */
	0x00008b0000000067ull, /* 0x20: task state, busy; never used */
};

static void boot_add_range(struct boot_params *bp, uint64_t addr, uint64_t end, uint32_t type)
{
	if (end <= addr)
		return;
	bp->e820_table[bp->e820_entries++] =
		(struct boot_e820_entry){.addr = addr, .size = end - addr, .type = type};
}

static void boot_fill_params(struct boot_params *bp, const struct boot_params_in *in)
{
	uint64_t low = MIN(in->mem_bytes, LAYOUT_LOW_RAM_END);

	bp->hdr.type_of_loader = BOOT_LOADER_UNKNOWN;
	bp->hdr.boot_flag = BOOT_FLAG;
	bp->hdr.header = BOOT_MAGIC;
	bp->hdr.kernel_alignment = BOOT_KERNEL_ALIGN;
	bp->hdr.cmd_line_ptr = LAYOUT_CMDLINE;
	bp->hdr.cmdline_size = (uint32_t)strlen(in->cmdline);
	bp->hdr.ramdisk_image = (uint32_t)in->initrd_gpa;
	bp->hdr.ramdisk_size = (uint32_t)in->initrd_len;
	boot_add_range(bp, 0, LAYOUT_MPTABLE, E820_RAM);
	boot_add_range(bp, LAYOUT_MPTABLE, LAYOUT_MPTABLE_END, E820_RESERVED);
	boot_add_range(bp, LAYOUT_KERNEL_MIN, low, E820_RAM);
	boot_add_range(bp, LAYOUT_HIGH_RAM_START, LAYOUT_HIGH_RAM_START + in->mem_bytes - low,
		       E820_RAM);
}

static void boot_fill_tables(uint64_t *pml4, uint64_t *pdpt, uint64_t *pd)
{
	pml4[0] = LAYOUT_PDPT | PTE_PRESENT_WRITE;
	pdpt[0] = LAYOUT_PD | PTE_PRESENT_WRITE;
	for (uint64_t i = 0; i < PD_ENTRIES; i++)
		pd[i] = i * PD_PAGE | PTE_LARGE | PTE_PRESENT_WRITE;
}

int boot_write(const struct guest_mem *mem, const struct boot_params_in *in, struct err *err)
{
	/* All of it lies in the first MiB, which is one piece of RAM. */
	uint8_t *base = guest_mem_ptr(mem, (gpa_t){0}, LAYOUT_KERNEL_MIN);
	struct boot_params bp = {0};
	size_t len = strlen(in->cmdline);
	int r;

	if (!base)
		return err_say(err, -EINVAL, "a VM needs memory from address 0 on");
	if (len >= BOOT_CMDLINE_MAX)
		return err_say(err, -E2BIG,
			       "the kernel's command line has %zu bytes, at most %d are possible",
			       len, BOOT_CMDLINE_MAX - 1);
	if (in->initrd_gpa + in->initrd_len > UINT32_MAX)
		return err_say(err, -E2BIG, "the initrd does not fit below 4 GiB");
	boot_fill_params(&bp, in);
	memcpy(base + LAYOUT_BOOT_PARAMS, &bp, sizeof(bp));
	memcpy(base + LAYOUT_CMDLINE, in->cmdline, len + 1);
	memcpy(base + LAYOUT_GDT, boot_gdt, sizeof(boot_gdt));
	boot_fill_tables((uint64_t *)(void *)(base + LAYOUT_PML4),
			 (uint64_t *)(void *)(base + LAYOUT_PDPT),
			 (uint64_t *)(void *)(base + LAYOUT_PD));
	r = mptable_write(base + LAYOUT_MPTABLE, LAYOUT_MPTABLE_END - LAYOUT_MPTABLE,
			  LAYOUT_MPTABLE, in->nr_vcpus);
	return r < 0 ? err_set(err, r, "describe %u processors to the guest", in->nr_vcpus) : 0;
}
