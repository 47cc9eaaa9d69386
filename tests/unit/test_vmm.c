/* Unit tests of src/vmm: what needs no /dev/kvm. Boot data, processors, kernel loader, bus, serial port. */
#include <arpa/inet.h>
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch.h"
#include "boot.h"
#include "bus.h"
#include "cleanup.h"
#include "confine.h"
#include "cpuid.h"
#include "io.h"
#include "kernel.h"
#include "layout.h"
#include "mptable.h"
#include "netstream.h"
#include "serial.h"

#define RAM (8u << 20)

struct fixture {
	struct guest_mem mem;
	uint8_t *ram;
};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));

	f->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->ram, MAP_FAILED);
	assert_int_equal(guest_mem_add(&f->mem, (gpa_t){0}, RAM, f->ram), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	munmap(f->ram, RAM);
	free(f);
	return 0;
}

/* ---- memory layout ---- */

static void test_layout(void **state)
{
	const uint64_t gib = 1ull << 30;
	struct memory_range r[MEMORY_RANGES_MAX];

	assert_int_equal(arch_memory_layout(64u << 20, r), 1);
	assert_int_equal(r[0].gpa, 0);
	assert_int_equal(r[0].len, 64u << 20);
	assert_int_equal(arch_memory_layout(3 * gib, r), 1);
	assert_int_equal(r[0].len, 3 * gib);
	/* What the hole would hide goes on above 4 GiB, to the byte. */
	assert_int_equal(arch_memory_layout(3 * gib + 4096, r), 2);
	assert_int_equal(r[0].len, 3 * gib);
	assert_int_equal(r[1].gpa, 4 * gib);
	assert_int_equal(r[1].len, 4096);
	assert_int_equal(arch_memory_layout(64 * gib, r), 2);
	assert_int_equal(r[1].len, 61 * gib);
}

static void test_slots(void **state)
{
	uint64_t gpa, last = 0;
	unsigned int nr = 0;
	uint32_t irq;

	for (; arch_device_slot(nr, &gpa, &irq); nr++) {
		assert_true(gpa >= LAYOUT_LOW_RAM_END && gpa + 4096 <= LAYOUT_IOAPIC);
		assert_true(gpa > last && gpa % 4096 == 0);
		assert_in_range(irq, 5, 23);
		last = gpa;
	}
	assert_int_equal(nr, 19);
}

/* ---- boot data ---- */

static void test_boot_params(void **state)
{
	struct fixture *f = *state;
	const struct boot_params_in in = {.mem_bytes = 5ull << 30,
					  .nr_vcpus = 2,
					  .cmdline = "quiet panic=-1",
					  .initrd_gpa = 0x7000000,
					  .initrd_len = 12345};
	struct boot_params bp;
	struct err err = {0};

	assert_int_equal(boot_write(&f->mem, &in, &err), 0);
	memcpy(&bp, f->ram + LAYOUT_BOOT_PARAMS, sizeof(bp));
	assert_int_equal(bp.hdr.header, 0x53726448);
	assert_string_equal((char *)f->ram + bp.hdr.cmd_line_ptr, "quiet panic=-1");
	assert_int_equal(bp.hdr.ramdisk_image, 0x7000000);
	assert_int_equal(bp.hdr.ramdisk_size, 12345);
	assert_int_equal(bp.e820_entries, 4);
	/* RAM to the MP table, the table reserved, RAM to the hole, RAM from 4 GiB on. */
	assert_int_equal(bp.e820_table[0].size, LAYOUT_MPTABLE);
	assert_int_equal(bp.e820_table[1].type, 2);
	assert_int_equal(bp.e820_table[2].addr, 0x100000);
	assert_int_equal(bp.e820_table[2].size, 0xc0000000 - 0x100000);
	assert_int_equal(bp.e820_table[3].addr, 1ull << 32);
	assert_int_equal(bp.e820_table[3].size, 2ull << 30);
}

/* Walks the page tables as a processor does. */
static uint64_t translate(const struct fixture *f, uint64_t va)
{
	uint64_t entry, table = LAYOUT_PML4;

	for (int shift = 39; shift >= 21; shift -= 9) {
		memcpy(&entry, f->ram + table + (va >> shift & 511) * 8, 8);
		assert_true(entry & 1);
		table = entry & ~0xfffull;
		if (entry & 0x80)
			return table + (va & ((1ull << shift) - 1));
	}
	fail_msg("no large page");
	return 0;
}

static void test_boot_tables(void **state)
{
	struct fixture *f = *state;
	const struct boot_params_in in = {.mem_bytes = RAM, .nr_vcpus = 1, .cmdline = ""};
	struct err err = {0};

	assert_int_equal(boot_write(&f->mem, &in, &err), 0);
	assert_int_equal(translate(f, 0), 0);
	assert_int_equal(translate(f, 0x1000000), 0x1000000);
	assert_int_equal(translate(f, 0x3fffffff), 0x3fffffff);
}

static void test_boot_refuses(void **state)
{
	struct fixture *f = *state;
	struct boot_params_in in = {.mem_bytes = RAM, .nr_vcpus = 1, .cmdline = ""};
	struct guest_mem none = {0};
	char line[BOOT_CMDLINE_MAX + 1];
	struct err err = {0};

	assert_int_equal(boot_write(&none, &in, &err), -EINVAL);
	memset(line, 'x', sizeof(line));
	line[BOOT_CMDLINE_MAX] = '\0';
	in.cmdline = line;
	assert_int_equal(boot_write(&f->mem, &in, &err), -E2BIG);
	line[BOOT_CMDLINE_MAX - 1] = '\0';
	assert_int_equal(boot_write(&f->mem, &in, &err), 0);
	in.initrd_gpa = 1ull << 32;
	assert_int_equal(boot_write(&f->mem, &in, &err), -E2BIG);
}

static uint8_t sum(const uint8_t *p, size_t len)
{
	uint8_t s = 0;

	while (len--)
		s += *p++;
	return s;
}

/* As the kernel's mpparse.c reads it. */
static void test_mptable(void **state)
{
	const size_t sizes[] = {20, 8, 8, 8, 8};
	uint8_t out[1024];

	for (uint32_t cpus = 1; cpus <= MPTABLE_CPUS_MAX; cpus++) {
		int len = mptable_write(out, sizeof(out), LAYOUT_MPTABLE, cpus);
		unsigned int nr[5] = {0};
		uint16_t table_len;
		uint32_t addr;
		size_t at = 44;

		assert_true(len > 0 && len <= 1024);
		assert_memory_equal(out, "_MP_", 4);
		assert_int_equal(sum(out, 16), 0);
		memcpy(&addr, out + 4, 4);
		assert_int_equal(addr, LAYOUT_MPTABLE + 16);
		memcpy(&table_len, out + 16 + 4, 2);
		assert_int_equal(table_len, len - 16);
		assert_memory_equal(out + 16, "PCMP", 4);
		assert_int_equal(sum(out + 16, table_len), 0);
		while (at < table_len) {
			uint8_t type = out[16 + at];

			assert_true(type < 5);
			if (type == 0)
				assert_int_equal(out[16 + at + 1], nr[0]);
			nr[type]++;
			at += sizes[type];
		}
		assert_int_equal(at, table_len);
		assert_int_equal(nr[0], cpus);
		assert_int_equal(nr[1], 1);
		assert_int_equal(nr[2], 1);
		assert_int_equal(nr[3], 24);
		assert_int_equal(nr[4], 2);
	}
	assert_int_equal(mptable_write(out, sizeof(out), 0x1000, 0), -EINVAL);
	assert_int_equal(mptable_write(out, sizeof(out), 0x1000, 33), -EINVAL);
	assert_int_equal(mptable_write(out, sizeof(out), UINT32_MAX, 1), -EINVAL);
	for (size_t room = 0; room < 300; room++)
		assert_int_equal(mptable_write(out, room, 0x1000, 1), -ENOSPC);
}

/* ---- processors ---- */

static struct kvm_cpuid_entry2 *find(struct cpuid_table *t, uint32_t leaf, uint32_t index)
{
	for (uint32_t i = 0; i < t->head.nent; i++) {
		if (t->entries[i].function == leaf && t->entries[i].index == index)
			return &t->entries[i];
	}
	return NULL;
}

static struct cpuid_table *make_table(void)
{
	static const struct kvm_cpuid_entry2 host[] = {
		{.function = 0, .eax = 0x20},
		{.function = 1, .ebx = 0x07400800, .ecx = ~0u, .edx = ~0u},
		{.function = 4, .index = 0, .eax = 0xfc004121},
		{.function = 4, .index = 3, .eax = 0xfc1fc163},
		{.function = 6, .eax = ~0u, .ebx = 7, .ecx = 9},
		{.function = 7, .index = 0, .ebx = ~0u, .ecx = ~0u},
		{.function = 0xa, .eax = 0x07300804},
		{.function = 0xb, .index = 0, .eax = 1, .ebx = 2},
		{.function = 0xb, .index = 1, .eax = 7, .ebx = 64},
		{.function = 0x1f, .index = 0, .eax = 1},
		{.function = 0x40000001, .eax = ~0u},
		{.function = 0x80000001, .ecx = ~0u},
		{.function = 0x80000008, .ecx = 0x703f},
		{.function = 0x8000000a, .eax = 1},
		{.function = 0x8000001d, .index = 3, .eax = 0x3c163},
		{.function = 0x8000001e, .eax = 99, .ebx = 0x111, .ecx = 0x305},
		{.function = 0x8000001f, .eax = ~0u},
		{.function = 0x80000026, .index = 0, .eax = 1},
	};
	struct cpuid_table *t = xcalloc(1, sizeof(*t));

	t->head.nent = ARRAY_SIZE(host);
	memcpy(t->entries, host, sizeof(host));
	return t;
}

static void test_cpuid_topology(void **state)
{
	for (uint32_t cpus = 1; cpus <= 32; cpus++) {
		for (uint32_t id = 0; id < cpus; id++) {
			cleanup_free struct cpuid_table *t = make_table();
			uint32_t bits;

			assert_int_equal(cpuid_shape(t, &(struct cpuid_params){.apic_id = id,
									       .nr_cpus = cpus}),
					 0);
			assert_int_equal(find(t, 1, 0)->ebx >> 24, id);
			assert_int_equal(!!(find(t, 1, 0)->edx & 1u << 28), cpus > 1);
			/* One thread per core; all cores in one package. */
			assert_int_equal(find(t, 0xb, 0)->ebx, 1);
			assert_int_equal(find(t, 0xb, 0)->eax, 0);
			assert_int_equal(find(t, 0xb, 1)->ebx, cpus);
			assert_int_equal(find(t, 0xb, 1)->edx, id);
			bits = find(t, 0xb, 1)->eax;
			assert_int_equal(id >> bits, 0);
			assert_true(bits == 0 || cpus > 1u << (bits - 1));
			assert_int_equal(find(t, 0x80000008, 0)->ecx & 0xff, cpus - 1);
			assert_int_equal(find(t, 0x80000008, 0)->ecx >> 12, bits);
			assert_int_equal(find(t, 0x8000001e, 0)->eax, id);
			assert_int_equal(find(t, 0x8000001e, 0)->ebx, id);
			assert_int_equal(find(t, 0x8000001e, 0)->ecx, 0);
			/* First level caches are a core's own, the third level's are everybody's. */
			assert_int_equal(find(t, 4, 0)->eax >> 14 & 0xfff, 0);
			assert_int_equal(find(t, 4, 3)->eax >> 14 & 0xfff, cpus - 1);
			assert_int_equal(find(t, 4, 3)->eax >> 26, (1u << bits) - 1);
			assert_int_equal(find(t, 0x8000001d, 3)->eax >> 14, cpus - 1);
		}
	}
}

static void test_cpuid_hidden(void **state)
{
	cleanup_free struct cpuid_table *t = make_table();
	const struct cpuid_params p = {.nr_cpus = 2, .has_tsc_deadline = false};

	assert_int_equal(cpuid_shape(t, &p), 0);
	assert_null(find(t, 0xa, 0));
	assert_null(find(t, 0x1f, 0));
	assert_null(find(t, 0x8000000a, 0));
	assert_null(find(t, 0x8000001f, 0));
	assert_null(find(t, 0x80000026, 0));
	assert_false(find(t, 1, 0)->ecx &
		     (1u << 3 | 1u << 5 | 1u << 24));	     /* mwait, vmx, deadline */
	assert_true(find(t, 1, 0)->ecx & 1u << 31);	     /* a hypervisor */
	assert_false(find(t, 0x80000001, 0)->ecx & 1u << 2); /* svm */
	assert_false(find(t, 7, 0)->ebx & 1u << 2);	     /* sgx */
	assert_int_equal(find(t, 6, 0)->eax, 4);
	assert_true(find(t, 0x40000001, 0)->eax & 1u << 3);  /* kvmclock */
	assert_false(find(t, 0x40000001, 0)->eax & 1u << 4); /* asynchronous faults */
}

static void test_cpuid_full(void **state)
{
	cleanup_free struct cpuid_table *t = xcalloc(1, sizeof(*t));
	const struct cpuid_params p = {.nr_cpus = 1};

	t->head.nent = CPUID_ENTRIES_MAX;
	assert_int_equal(cpuid_shape(t, &p), -ENOSPC);
}

/* ---- kernel loader ---- */

struct image {
	Elf64_Ehdr head;
	Elf64_Phdr segments[2];
	uint8_t rest[16384];
};

static struct image make_image(void)
{
	struct image i = {
		.head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			 .e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_entry = 0x200010,
			 .e_phoff = sizeof(Elf64_Ehdr),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 2},
		/* Whole pages and a ragged end; lies alike in file and memory. */
		.segments[0] = {.p_type = PT_LOAD,
				.p_offset = 4096,
				.p_paddr = 0x200000,
				.p_filesz = 8292,
				.p_memsz = 12288},
		/* Lies otherwise: has to be read. */
		.segments[1] = {.p_type = PT_LOAD,
				.p_offset = 200,
				.p_paddr = 0x300000,
				.p_filesz = 5000,
				.p_memsz = 5000},
	};

	for (size_t k = 0; k < sizeof(i.rest); k++)
		i.rest[k] = (uint8_t)(k * 7 + 1);
	return i;
}

static int image_fd(const struct image *i, size_t len)
{
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, i, len), len);
	return fd;
}

static int load(struct fixture *f, const struct image *i, size_t len, struct kernel_image *ret)
{
	cleanup_close int fd = image_fd(i, len);
	struct err err = {0};
	int r = kernel_load(fd, &f->mem, LAYOUT_KERNEL_MIN, ret, &err);

	if (r)
		assert_true(err.msg[0]);
	return r;
}

static void test_kernel_loads(void **state)
{
	struct fixture *f = *state;
	struct image i = make_image();
	const uint8_t *file = (const uint8_t *)&i;
	struct kernel_image k;

	assert_int_equal(load(f, &i, sizeof(i), &k), 0);
	assert_int_equal(k.entry, 0x200010);
	assert_int_equal(k.start, 0x200000);
	assert_int_equal(k.end, 0x300000 + 5000);
	assert_memory_equal(f->ram + 0x200000, file + 4096, 8292);
	for (size_t n = 8292; n < 12288; n++)
		assert_int_equal(f->ram[0x200000 + n], 0);
	assert_memory_equal(f->ram + 0x300000, file + 200, 5000);
}

/* A guest that writes to its kernel changes neither the file nor another guest's kernel. */
static void test_kernel_is_private(void **state)
{
	struct fixture *f = *state;
	struct image i = make_image();
	cleanup_close int fd = image_fd(&i, sizeof(i));
	struct kernel_image k;
	struct err err = {0};
	uint8_t byte;

	assert_int_equal(kernel_load(fd, &f->mem, LAYOUT_KERNEL_MIN, &k, &err), 0);
	f->ram[0x200000] ^= 0xff;
	assert_int_equal(pread(fd, &byte, 1, 4096), 1);
	assert_int_equal(byte, (uint8_t)(f->ram[0x200000] ^ 0xff));
}

static void test_kernel_refuses(void **state)
{
	struct fixture *f = *state;
	const struct image good = make_image();
	struct kernel_image k;
	struct image i;

	for (size_t len = 0; len < sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr); len++)
		assert_int_equal(load(f, &good, len, &k), -ENOEXEC);
	assert_int_equal(load(f, &good, 4096 + 8291, &k), -ENOEXEC);

#define REFUSED(change, code) \
	do { \
		i = good; \
		change; \
		assert_int_equal(load(f, &i, sizeof(i), &k), code); \
	} while (0)
	REFUSED(i.head.e_ident[0] = 'X', -ENOEXEC);
	REFUSED(i.head.e_ident[EI_CLASS] = ELFCLASS32, -ENOEXEC);
	REFUSED(i.head.e_machine = EM_AARCH64, -ENOEXEC);
	REFUSED(i.head.e_phnum = 0, -ENOEXEC);
	REFUSED(i.head.e_phnum = 65, -ENOEXEC);
	REFUSED(i.head.e_phentsize = 32, -ENOEXEC);
	REFUSED(i.head.e_phoff = UINT64_MAX - 10, -ENOEXEC);
	REFUSED(i.head.e_entry = 0x100, -ENOEXEC);
	REFUSED(i.head.e_entry = 0x200000 + 8292, -ENOEXEC); /* in what is zero */
	REFUSED(i.segments[0].p_offset = UINT64_MAX - 4095, -ENOEXEC);
	REFUSED(i.segments[0].p_filesz = UINT64_MAX, -ENOEXEC);
	REFUSED(i.segments[0].p_memsz = 100, -ENOEXEC);
	REFUSED(i.segments[0].p_memsz = UINT64_MAX, -ENOMEM);
	REFUSED(i.segments[0].p_paddr = 0x9000, -ENOMEM); /* our page tables */
	REFUSED(i.segments[0].p_paddr = RAM - 4096, -ENOMEM);
	REFUSED(i.segments[0].p_paddr = UINT64_MAX - 4095, -ENOMEM);
#undef REFUSED
}

/* ---- bus ---- */

struct target {
	uint64_t off;
	uint32_t len;
	unsigned int reads, writes;
};

static void target_read(void *ctx, uint64_t off, void *data, uint32_t len)
{
	struct target *t = ctx;

	t->off = off;
	t->len = len;
	t->reads++;
	memset(data, 0x5a, len);
}

static void target_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	struct target *t = ctx;

	t->off = off;
	t->len = len;
	t->writes++;
}

static const struct bus_ops target_ops = {.read = target_read, .write = target_write};

static void test_bus(void **state)
{
	struct target a = {0}, b = {0};
	struct bus bus = {0};
	uint8_t data[8];

	assert_int_equal(bus_add(&bus, 0x2000, 0x200, &target_ops, &b), 0);
	assert_int_equal(bus_add(&bus, 0x1000, 0x200, &target_ops, &a), 0);
	bus_read(&bus, 0x1000, data, 4);
	assert_int_equal(a.reads, 1);
	assert_int_equal(data[3], 0x5a);
	bus_write(&bus, 0x21fc, data, 4);
	assert_int_equal(b.writes, 1);
	assert_int_equal(b.off, 0x1fc);
	/* Beside, between, across the end: an empty bus. */
	const uint64_t nowhere[] = {0, 0xfff, 0x1200, 0x1fff, 0x2200, UINT64_MAX, 0x11fd, 0x21ff};

	for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
		memset(data, 0, sizeof(data));
		bus_read(&bus, nowhere[i], data, 4);
		assert_memory_equal(data, "\xff\xff\xff\xff\0\0\0\0", 8);
		bus_write(&bus, nowhere[i], data, 4);
	}
	assert_int_equal(a.reads + b.reads, 1);
	assert_int_equal(a.writes + b.writes, 1);
}

static void test_bus_refuses(void **state)
{
	struct bus bus = {0};

	assert_int_equal(bus_add(&bus, 0x1000, 0x1000, &target_ops, NULL), 0);
	assert_int_equal(bus_add(&bus, 0x1fff, 1, &target_ops, NULL), -EEXIST);
	assert_int_equal(bus_add(&bus, 0xfff, 2, &target_ops, NULL), -EEXIST);
	assert_int_equal(bus_add(&bus, 0, 0x10000, &target_ops, NULL), -EEXIST);
	assert_int_equal(bus_add(&bus, 5, 0, &target_ops, NULL), -EINVAL);
	assert_int_equal(bus_add(&bus, UINT64_MAX, 2, &target_ops, NULL), -EINVAL);
	for (unsigned int i = 1; i < BUS_TARGETS_MAX; i++)
		assert_int_equal(bus_add(&bus, 0x10000 + i, 1, &target_ops, NULL), 0);
	assert_int_equal(bus_add(&bus, 0, 1, &target_ops, NULL), -ENOSPC);
}

/* ---- serial port ---- */

static uint8_t in8(struct serial *s, uint64_t reg)
{
	uint8_t byte = 0xee;

	serial_bus_ops.read(s, reg, &byte, 1);
	return byte;
}

static void out8(struct serial *s, uint64_t reg, uint8_t byte)
{
	serial_bus_ops.write(s, reg, &byte, 1);
}

/* As the kernel's early printk does it: divisor, then each byte after a look at the line status. */
static void test_serial_sends(void **state)
{
	struct serial s;
	char got[64] = "";
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	serial_init(&s, pair[0]);
	out8(&s, 3, 0x83);
	out8(&s, 0, 12);
	out8(&s, 1, 0);
	assert_int_equal(in8(&s, 0), 12);
	out8(&s, 3, 0x03);
	for (const char *p = "hello\nwor"; *p; p++) {
		assert_int_equal(in8(&s, 5) & 0x20, 0x20);
		out8(&s, 0, (uint8_t)*p);
	}
	/* A line goes out as a whole; its rest with a flush. */
	assert_int_equal(recv(pair[1], got, sizeof(got), MSG_DONTWAIT), 6);
	assert_memory_equal(got, "hello\n", 6);
	serial_flush(&s);
	assert_int_equal(recv(pair[1], got, sizeof(got), MSG_DONTWAIT), 3);
	serial_done(&s);
	close(pair[1]);
}

/* A reader that does not read costs bytes, never time; what is lost is said. */
static void test_serial_slow_reader(void **state)
{
	const unsigned int nr = 4u << 20;
	cleanup_free char *all = xmalloc(nr * 2);
	struct serial s;
	size_t got = 0;
	int pair[2];
	ssize_t n;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	serial_init(&s, pair[0]);
	for (unsigned int i = 0; i < nr; i++)
		out8(&s, 0, i % 64 == 63 ? '\n' : 'x');
	assert_true(s.nr_lost > 0 && s.nr_lost < nr);
	while ((n = recv(pair[1], all + got, nr * 2 - got, MSG_DONTWAIT)) > 0)
		got += (size_t)n;
	assert_int_equal(got + s.nr_lost, nr);
	out8(&s, 0, '\n');
	n = recv(pair[1], all, nr, MSG_DONTWAIT);
	assert_true(n > 0);
	all[n] = '\0';
	assert_non_null(strstr(all, " bytes lost]"));
	serial_done(&s);
	close(pair[1]);
}

static void test_serial_registers(void **state)
{
	uint8_t wide[8];
	struct serial s;

	serial_init(&s, -1);
	out8(&s, 7, 0x5a);
	assert_int_equal(in8(&s, 7), 0x5a);
	out8(&s, 1, 0xff);
	assert_int_equal(in8(&s, 1), 0x0f);
	out8(&s, 4, 0xff);
	assert_int_equal(in8(&s, 4), 0x1f);
	assert_int_equal(in8(&s, 2), 0x01);
	out8(&s, 5, 0xff);
	assert_int_equal(in8(&s, 5), 0x60);
	/* All eight at once, either way. */
	serial_bus_ops.read(&s, 0, wide, 8);
	assert_int_equal(wide[7], 0x5a);
	serial_bus_ops.write(&s, 0, wide, 8);
	serial_done(&s);
}

/* ---- network streams ---- */

struct net {
	struct loop *loop;
	struct netstream *n;
	int peer, device;
};

static struct net net_new(void)
{
	struct net t = {.loop = loop_new()};
	struct err err = {0};
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(netstream_new(t.loop, pair[0], &t.n, &t.device, &err), 0);
	t.peer = pair[1];
	io_set_nonblock(t.peer, true);
	return t;
}

static void net_done(struct net *t)
{
	netstream_free(t->n);
	loop_free(t->loop);
	close(t->peer);
	close(t->device);
}

static void net_run(struct net *t)
{
	for (int i = 0; i < 5; i++)
		loop_run_once(t->loop, 0);
}

static size_t put_frame(uint8_t *out, uint32_t len, uint8_t fill)
{
	uint32_t head = htonl(len);

	memcpy(out, &head, 4);
	memset(out + 4, fill, len);
	return 4 + len;
}

/* However the bytes come: each frame is one message, a zero header before it. */
static void test_netstream_to_device(void **state)
{
	struct net t = net_new();
	uint8_t all[4000], got[2000];
	size_t len = put_frame(all, 60, 'a');

	len += put_frame(all + len, 1514, 'b');
	len += put_frame(all + len, 14, 'c');
	for (size_t i = 0; i < len; i += 7) {
		assert_true(write(t.peer, all + i, MIN(7, len - i)) > 0);
		loop_run_once(t.loop, 0);
	}
	net_run(&t);
	assert_int_equal(recv(t.device, got, sizeof(got), MSG_DONTWAIT), 12 + 60);
	assert_memory_equal(got, "\0\0\0\0\0\0\0\0\0\0\0\0aaaa", 16);
	assert_int_equal(recv(t.device, got, sizeof(got), MSG_DONTWAIT), 12 + 1514);
	assert_int_equal(got[12 + 1513], 'b');
	assert_int_equal(recv(t.device, got, sizeof(got), MSG_DONTWAIT), 12 + 14);
	assert_int_equal(recv(t.device, got, sizeof(got), MSG_DONTWAIT), -1);
	net_done(&t);
}

static void test_netstream_to_stream(void **state)
{
	struct net t = net_new();
	uint8_t frame[12 + 1514] = {0}, got[4000];
	uint32_t len;

	memset(frame + 12, 'x', 1514);
	assert_int_equal(send(t.device, frame, 12 + 5, 0), 12 + 5); /* no frame */
	assert_int_equal(send(t.device, frame, sizeof(frame), 0), sizeof(frame));
	assert_int_equal(send(t.device, frame, 12 + 60, 0), 12 + 60);
	net_run(&t);
	assert_int_equal(read(t.peer, got, sizeof(got)), 4 + 1514 + 4 + 60);
	memcpy(&len, got, 4);
	assert_int_equal(ntohl(len), 1514);
	assert_memory_equal(got + 4, frame + 12, 1514);
	memcpy(&len, got + 4 + 1514, 4);
	assert_int_equal(ntohl(len), 60);
	net_done(&t);
}

/* Neither side reads: nothing is lost that was taken, nothing spins, and it goes on afterwards. */
static void test_netstream_stalls(void **state)
{
	struct net t = net_new();
	uint8_t frame[12 + 1500] = {0}, got[4 + 1500];
	unsigned int sent = 0, received = 0;
	uint64_t before;

	for (unsigned int refused = 0; refused < 50; loop_run_once(t.loop, 0)) {
		if (send(t.device, frame, sizeof(frame), MSG_DONTWAIT) > 0)
			sent++;
		else
			refused++;
	}
	net_run(&t);
	before = util_now_ns();
	loop_run_once(t.loop, 30);
	assert_true(util_now_ns() - before > 25 * 1000000ull);
	while (read(t.peer, got, sizeof(got)) == sizeof(got)) {
		received++;
		net_run(&t);
	}
	assert_int_equal(received, sent);
	net_done(&t);
}

static void test_netstream_refuses(void **state)
{
	static const uint32_t lengths[] = {0, 13, 65551, UINT32_MAX};

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct net t = net_new();
		uint32_t head = htonl(lengths[i]);
		uint8_t byte;

		assert_int_equal(write(t.peer, &head, 4), 4);
		net_run(&t);
		assert_int_equal(read(t.peer, &byte, 1), 0);
		/* The device's side stays, with nobody behind it. */
		assert_int_equal(recv(t.device, &byte, 1, MSG_DONTWAIT), -1);
		assert_int_equal(errno, EAGAIN);
		net_done(&t);
	}
}

/* ---- system call filters ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FILTER_KILLS 0
#else
#define FILTER_KILLS 1
#endif

typedef long (*call_fn)(void);

static long call_open(void)
{
	return syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY, 0);
}

static long call_socket(void)
{
	return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
}

static long call_connect(void)
{
	return syscall(SYS_connect, 0, NULL, 0);
}

static long call_execve(void)
{
	return syscall(SYS_execve, "/bin/true", NULL, NULL);
}

static long call_fork(void)
{
	return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static long call_ptrace(void)
{
	return syscall(SYS_ptrace, 0, 0, 0, 0);
}

static long call_kill(void)
{
	return syscall(SYS_kill, 1, 0);
}

static long call_tgkill_other(void)
{
	return syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static long call_mmap_exec(void)
{
	return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
}

static long call_mprotect_exec(void)
{
	return syscall(SYS_mprotect, NULL, 4096, PROT_EXEC);
}

static long call_create_vm(void)
{
	return syscall(SYS_ioctl, 0, KVM_CREATE_VM, 0);
}

static long call_set_memory(void)
{
	return syscall(SYS_ioctl, 0, KVM_SET_USER_MEMORY_REGION, NULL);
}

static long call_run(void)
{
	return syscall(SYS_ioctl, -1, KVM_RUN, 0);
}

static long call_get_regs(void)
{
	return syscall(SYS_ioctl, -1, KVM_GET_REGS, 0);
}

static long call_fcntl_dup(void)
{
	return syscall(SYS_fcntl, 0, F_DUPFD, 0);
}

static long call_x32(void)
{
	return syscall(0x40000000 | SYS_getpid);
}

static long call_epoll(void)
{
	return syscall(SYS_epoll_wait, -1, NULL, 1, 0);
}

static long call_mmap(void)
{
	return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
}

static long call_write(void)
{
	return syscall(SYS_write, -1, NULL, 0);
}

static long call_recvmsg(void)
{
	return syscall(SYS_recvmsg, -1, NULL, 0);
}

/* In a child that is filtered as such a thread: does the call return? */
static bool call_passes(enum confine_kind kind, call_fn fn)
{
	pid_t pid = fork();
	struct err err = {0};
	int status;

	assert_true(pid >= 0);
	if (!pid) {
		if (confine_thread(kind, &err))
			_exit(2);
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGSYS);
		return false;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return true;
}

static void test_filters(void **state)
{
	static const call_fn never[] = {
		call_open,	    call_socket,    call_connect,    call_execve,
		call_fork,	    call_ptrace,    call_kill,	     call_mmap_exec,
		call_mprotect_exec, call_create_vm, call_set_memory, call_tgkill_other,
		call_fcntl_dup,	    call_x32,
	};
	static const call_fn always[] = {call_mmap, call_write};

	if (!FILTER_KILLS) {
		print_message("# this build's filters only report\n");
		skip();
	}
	for (int kind = 0; kind < CONFINE_KIND_MAX; kind++) {
		for (size_t i = 0; i < ARRAY_SIZE(never); i++)
			assert_false(call_passes(kind, never[i]));
		for (size_t i = 0; i < ARRAY_SIZE(always); i++)
			assert_true(call_passes(kind, always[i]));
		assert_int_equal(call_passes(kind, call_run), kind == CONFINE_VCPU);
	}
	assert_false(call_passes(CONFINE_VCPU, call_epoll));
	assert_false(call_passes(CONFINE_VCPU, call_recvmsg));
	assert_true(call_passes(CONFINE_LOOP, call_epoll));
	assert_true(call_passes(CONFINE_LOOP, call_recvmsg));
	assert_true(call_passes(CONFINE_LOOP, call_get_regs));
	assert_false(call_passes(CONFINE_VCPU, call_get_regs));
	assert_false(call_passes(CONFINE_WORKER, call_get_regs));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_slots),
		cmocka_unit_test_setup_teardown(test_boot_params, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_boot_tables, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_boot_refuses, set_up, tear_down),
		cmocka_unit_test(test_mptable),
		cmocka_unit_test(test_cpuid_topology),
		cmocka_unit_test(test_cpuid_hidden),
		cmocka_unit_test(test_cpuid_full),
		cmocka_unit_test_setup_teardown(test_kernel_loads, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_kernel_is_private, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_kernel_refuses, set_up, tear_down),
		cmocka_unit_test(test_bus),
		cmocka_unit_test(test_bus_refuses),
		cmocka_unit_test(test_serial_sends),
		cmocka_unit_test(test_serial_slow_reader),
		cmocka_unit_test(test_serial_registers),
		cmocka_unit_test(test_netstream_to_device),
		cmocka_unit_test(test_netstream_to_stream),
		cmocka_unit_test(test_netstream_stalls),
		cmocka_unit_test(test_netstream_refuses),
		cmocka_unit_test(test_filters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
