/*
 * MP table; see mptable.h. Chapter 4 of the specification: a 16 byte floating pointer, a header, then
 * entries sorted by type: processors, one bus, one I/O APIC, its 24 lines, local interrupts.
 *
 * APIC ids are the processors' numbers; the I/O APIC has the first id after them. Every line is an edge
 * triggered line of an ISA bus, which is what irqfds make.
 */
#include "mptable.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "layout.h"
#include "util.h"

#define MP_VERSION 4 /* 1.4 */
#define MP_APIC_VERSION 0x14
#define MP_IOAPIC_VERSION 0x11
#define MP_LINES 24
#define MP_BUS_ISA 0
#define MP_ALL_APICS 0xff

enum mp_type { MP_PROCESSOR, MP_BUS, MP_IOAPIC, MP_INTSRC, MP_LINTSRC };
enum mp_int { MP_INT_VECTORED, MP_INT_NMI, MP_INT_SMI, MP_INT_EXTINT };

struct mp_floating {
	char signature[4];
	uint32_t table;
	uint8_t length, version, checksum, features[5];
} __attribute__((packed));

struct mp_header {
	char signature[4];
	uint16_t length;
	uint8_t version, checksum;
	char oem[8], product[12];
	uint32_t oem_table;
	uint16_t oem_table_len, nr_entries;
	uint32_t lapic;
	uint16_t ext_len;
	uint8_t ext_checksum, reserved;
} __attribute__((packed));

struct mp_processor {
	uint8_t type, apic_id, apic_version, flags;
	uint32_t signature, features, reserved[2];
} __attribute__((packed));

struct mp_bus {
	uint8_t type, id;
	char name[6];
} __attribute__((packed));

struct mp_ioapic {
	uint8_t type, id, version, flags;
	uint32_t address;
} __attribute__((packed));

/* Of a line of the I/O APIC, and of a local one. */
struct mp_interrupt {
	uint8_t type, kind;
	uint16_t flags;
	uint8_t bus, line, apic, pin;
} __attribute__((packed));

static_assert(sizeof(struct mp_floating) == 16 && sizeof(struct mp_header) == 44 &&
		      sizeof(struct mp_processor) == 20 && sizeof(struct mp_bus) == 8 &&
		      sizeof(struct mp_ioapic) == 8 && sizeof(struct mp_interrupt) == 8,
	      "sizes of the specification");

struct mp_writer {
	uint8_t *out;
	size_t room, len;
	uint16_t nr_entries;
	bool overflow;
};

static void mp_put(struct mp_writer *w, const void *data, size_t len)
{
	if (w->room - w->len < len) {
		w->overflow = true;
		return;
	}
	memcpy(w->out + w->len, data, len);
	w->len += len;
	w->nr_entries++;
}

static uint8_t mp_checksum(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint8_t sum = 0;

	while (len--)
		sum += *p++;
	return (uint8_t)-sum;
}

static void mp_put_processors(struct mp_writer *w, uint32_t nr_cpus)
{
	for (uint32_t i = 0; i < nr_cpus; i++) {
		struct mp_processor p = {
			.type = MP_PROCESSOR,
			.apic_id = (uint8_t)i,
			.apic_version = MP_APIC_VERSION,
			.flags = 1u | (i ? 0u : 2u), /* usable; the one that boots */
		};

		mp_put(w, &p, sizeof(p));
	}
}

static void mp_put_interrupts(struct mp_writer *w, uint8_t ioapic)
{
	for (uint8_t line = 0; line < MP_LINES; line++) {
		struct mp_interrupt i = {.type = MP_INTSRC,
					 .kind = MP_INT_VECTORED,
					 .bus = MP_BUS_ISA,
					 .line = line,
					 .apic = ioapic,
					 .pin = line};

		mp_put(w, &i, sizeof(i));
	}
	mp_put(w, &(struct mp_interrupt){.type = MP_LINTSRC, .kind = MP_INT_EXTINT, .apic = 0},
	       sizeof(struct mp_interrupt));
	mp_put(w,
	       &(struct mp_interrupt){
		       .type = MP_LINTSRC, .kind = MP_INT_NMI, .apic = MP_ALL_APICS, .pin = 1},
	       sizeof(struct mp_interrupt));
}

int mptable_write(uint8_t *out, size_t room, uint64_t gpa, uint32_t nr_cpus)
{
	struct mp_floating f = {.signature = "_MP_", .length = 1, .version = MP_VERSION};
	struct mp_header h = {.signature = "PCMP",
			      .version = MP_VERSION,
			      .oem = "HARPOON ",
			      .product = "MICROVM     ",
			      .lapic = LAYOUT_LAPIC};
	struct mp_writer w = {.out = out, .room = room, .len = sizeof(f) + sizeof(h)};
	uint8_t ioapic = (uint8_t)nr_cpus;

	if (!nr_cpus || nr_cpus > MPTABLE_CPUS_MAX || gpa > UINT32_MAX - room)
		return -EINVAL;
	if (room < w.len)
		return -ENOSPC;
	mp_put_processors(&w, nr_cpus);
	mp_put(&w, &(struct mp_bus){.type = MP_BUS, .id = MP_BUS_ISA, .name = "ISA   "},
	       sizeof(struct mp_bus));
	mp_put(&w,
	       &(struct mp_ioapic){.type = MP_IOAPIC,
				   .id = ioapic,
				   .version = MP_IOAPIC_VERSION,
				   .flags = 1,
				   .address = LAYOUT_IOAPIC},
	       sizeof(struct mp_ioapic));
	mp_put_interrupts(&w, ioapic);
	if (w.overflow)
		return -ENOSPC;
	h.length = (uint16_t)(w.len - sizeof(f));
	h.nr_entries = w.nr_entries;
	memcpy(out + sizeof(f), &h, sizeof(h));
	h.checksum = mp_checksum(out + sizeof(f), h.length);
	memcpy(out + sizeof(f), &h, sizeof(h));
	f.table = (uint32_t)(gpa + sizeof(f));
	f.checksum = mp_checksum(&f, sizeof(f));
	memcpy(out, &f, sizeof(f));
	return (int)w.len;
}
