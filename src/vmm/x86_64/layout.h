/*
 * Guest physical memory of an x86-64 machine. docs/vmm.md has the picture.
 *
 * RAM begins at 0; what does not fit below the hole goes on at 4 GiB. The first MiB holds what is handed
 * over at boot, and nothing in it is needed once the kernel runs, the MP table excepted.
 */
#pragma once

#define LAYOUT_LOW_RAM_END 0xc0000000ull
#define LAYOUT_HIGH_RAM_START 0x100000000ull
/* What a device shows lies behind the RAM: Linux adds it in blocks of memory, of 128 MiB or 2 GiB. */
#define LAYOUT_WINDOW_ALIGN 0x80000000ull

/* Virtio devices: one page each, the interrupt line counts up with the slot. */
#define LAYOUT_MMIO_BASE 0xd0000000ull
#define LAYOUT_MMIO_STEP 0x1000ull
/* Lines 0 to 4 are what a PC has there (timer, keyboard, cascade, serial ports). */
#define LAYOUT_IRQ_BASE 5u
#define LAYOUT_IRQ_LAST 23u
#define LAYOUT_SLOTS_MAX (LAYOUT_IRQ_LAST - LAYOUT_IRQ_BASE + 1)

#define LAYOUT_IOAPIC 0xfec00000u
#define LAYOUT_LAPIC 0xfee00000u
/* Intel processors want four pages of KVM's own outside of every memory slot. */
#define LAYOUT_KVM_IDENTITY 0xfffbc000ull
#define LAYOUT_KVM_TSS 0xfffbd000ull

/* Handed over at boot. */
#define LAYOUT_GDT 0x500ull
#define LAYOUT_BOOT_PARAMS 0x7000ull
#define LAYOUT_PML4 0x9000ull
#define LAYOUT_PDPT 0xa000ull
#define LAYOUT_PD 0xb000ull
#define LAYOUT_CMDLINE 0x20000ull
/* What a PC calls the extended BIOS data area: the kernel looks for the MP table there. */
#define LAYOUT_MPTABLE 0x9fc00ull
#define LAYOUT_MPTABLE_END 0xa0000ull
/* The kernel and the initrd are loaded from here on. */
#define LAYOUT_KERNEL_MIN 0x100000ull
