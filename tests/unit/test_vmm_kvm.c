/*
 * Unit tests of src/vmm on a real /dev/kvm, however slow it is: tiny guests of a few dozen instructions, as ELF
 * kernels, in whole machines. Skipped with the reason where there is no /dev/kvm.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "cleanup.h"
#include "dev/virtiofs_window.h"
#include "layout.h"
#include "machine.h"
#include "session.h"

#define CODE 0x200000ull
#define COUNTER 0x300000ull /* what the guest counts up */
#define FLAG 0x300008ull    /* non-zero: the guest is to end */
#define IDT 0x310000ull
#define VECTOR 0x25
#define LIMIT_MS 20000

/*
 * The guests. They run in 64-bit mode with the first GiB mapped to itself; map_devices() below adds what
 * they need beyond. Each ends with a triple fault: an exception without a table.
 */
__asm__(".pushsection .rodata\n"
	".macro say char\n mov $0x3f8, %dx\n mov $\\char, %al\n out %al, %dx\n .endm\n"

	".globl guest_says_hi, guest_says_hi_end\n"
	"guest_says_hi:\n"
	" say 'h'\n say 'i'\n say 10\n"
	" lidt 1f(%rip)\n ud2\n"
	"1: .word 0\n .quad 0\n"
	"guest_says_hi_end:\n"

	".globl guest_resets, guest_resets_end\n"
	"guest_resets:\n"
	" mov $0xfe, %al\n out %al, $0x64\n"
	"1: pause\n jmp 1b\n"
	"guest_resets_end:\n"

	/* The magic number of slot 0, then what nothing answers for, byte by byte. */
	".globl guest_reads_mmio, guest_reads_mmio_end\n"
	"guest_reads_mmio:\n"
	" mov $0x308000, %esp\n mov $0xd0000000, %ebx\n mov (%rbx), %ecx\n call 2f\n"
	" mov $0xd0ff0000, %ebx\n mov (%rbx), %ecx\n call 2f\n"
	" mov $0x3f8, %dx\n mov $10, %al\n out %al, %dx\n"
	" lidt 1f(%rip)\n ud2\n"
	"1: .word 0\n .quad 0\n"
	"2: mov $4, %esi\n mov $0x3f8, %dx\n"
	"3: mov %ecx, %eax\n out %al, %dx\n shr $8, %ecx\n dec %esi\n jnz 3b\n ret\n"
	"guest_reads_mmio_end:\n"

	/* Starts all other processors at 0x30000 and waits until each has counted itself at 0x31000. */
	".globl guest_wakes_all, guest_wakes_all_end\n"
	"guest_wakes_all:\n"
	" mov $0x1b, %ecx\n rdmsr\n or $0xc00, %eax\n wrmsr\n"
	" mov $0x830, %ecx\n xor %edx, %edx\n"
	" mov $0xc4500, %eax\n wrmsr\n"
	" mov $0xc4630, %eax\n wrmsr\n"
	" mov $0x31000, %ebx\n"
	"1: pause\n mov (%rbx), %eax\n cmp 4(%rbx), %eax\n jne 1b\n"
	" lidt 1f(%rip)\n ud2\n"
	"1: .word 0\n .quad 0\n"
	"guest_wakes_all_end:\n"
	/* Real mode */
	".globl guest_woken, guest_woken_end\n"
	"guest_woken:\n"
	" .code16\n mov $0x3100, %ax\n mov %ax, %ds\n lock incl 0\n"
	"1: hlt\n jmp 1b\n .code64\n"
	"guest_woken_end:\n"

	/* What the host wrote at 4 GiB. */
	".globl guest_reads_high, guest_reads_high_end\n"
	"guest_reads_high:\n"
	" mov $0x100000000, %rbx\n mov (%rbx), %al\n mov $0x3f8, %dx\n out %al, %dx\n"
	" mov $10, %al\n out %al, %dx\n"
	" lidt 1f(%rip)\n ud2\n"
	"1: .word 0\n .quad 0\n"
	"guest_reads_high_end:\n"

	/* Counts until it is told to end. */
	".globl guest_counts, guest_counts_end\n"
	"guest_counts:\n"
	" mov $0x300000, %ebx\n"
	"1: incq (%rbx)\n cmpq $0, 8(%rbx)\n je 1b\n"
	" lidt 1f(%rip)\n ud2\n"
	"1: .word 0\n .quad 0\n"
	"guest_counts_end:\n"

	/* Kicks queue 0 of slot 0 and waits for its interrupt, line 5, by way of I/O and local APIC. */
	".globl guest_waits, guest_waits_end, guest_waits_handler\n"
	"guest_waits:\n"
	" mov $0x308000, %esp\n"
	" lidt 3f(%rip)\n"
	/* KVM lets the 8259s through at first */
	" mov $0xff, %al\n out %al, $0x21\n out %al, $0xa1\n"
	" mov $0x1b, %ecx\n rdmsr\n or $0xc00, %eax\n wrmsr\n"
	" mov $0x80f, %ecx\n mov $0x1ff, %eax\n xor %edx, %edx\n wrmsr\n"
	" mov $0xfec00000, %ebx\n"
	" movl $0x1b, (%rbx)\n movl $0, 0x10(%rbx)\n"
	" movl $0x1a, (%rbx)\n movl $0x25, 0x10(%rbx)\n"
	" mov $0xd0000000, %ebx\n movl $0, 0x50(%rbx)\n"
	" sti\n"
	"1: hlt\n jmp 1b\n"
	"guest_waits_handler:\n"
	" mov $0x3f8, %dx\n mov $'!', %al\n out %al, %dx\n mov $10, %al\n out %al, %dx\n"
	" lidt 2f(%rip)\n ud2\n"
	"2: .word 0\n .quad 0\n"
	"3: .word 0xfff\n .quad 0x310000\n"
	"guest_waits_end:\n"
	".popsection\n");

#define GUEST(name) extern const uint8_t name[], name##_end[]
GUEST(guest_says_hi);
GUEST(guest_resets);
GUEST(guest_reads_mmio);
GUEST(guest_reads_high);
GUEST(guest_wakes_all);
GUEST(guest_woken);
GUEST(guest_counts);
GUEST(guest_waits);
extern const uint8_t guest_waits_handler[];

struct fixture {
	struct loop *loop;
	struct machine *machine;
	int console; /* our end */
	bool is_paused, is_over;
	struct vcpus_end end;
};

static void on_paused(void *ctx)
{
	((struct fixture *)ctx)->is_paused = true;
}

static void on_end(void *ctx, const struct vcpus_end *end)
{
	struct fixture *f = ctx;

	f->is_over = true;
	f->end = *end;
}

/* An ELF file that holds the guest and nothing else. */
static int make_kernel(const uint8_t *code, const uint8_t *code_end)
{
	const uint64_t len = (uint64_t)(code_end - code);
	const Elf64_Ehdr head = {
		.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_entry = CODE,
		.e_phoff = sizeof(head),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1};
	const Elf64_Phdr segment = {.p_type = PT_LOAD,
				    .p_offset = 4096,
				    .p_paddr = CODE,
				    .p_filesz = len,
				    .p_memsz = len};
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
	assert_int_equal(pwrite(fd, &segment, sizeof(segment), sizeof(head)), sizeof(segment));
	assert_int_equal(pwrite(fd, code, len, 4096), len);
	return fd;
}

static int open_kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		print_message("/dev/kvm: %s\n", strerror(errno));
		skip();
	}
	return fd;
}

static void create(struct fixture *f, const uint8_t *code, const uint8_t *code_end,
		   uint64_t mem_bytes, unsigned int nr_vcpus)
{
	static const struct machine_callbacks cb = {.on_paused = on_paused, .on_end = on_end};
	struct err err = {0};
	int pair[2];
	struct machine_config c = {.kvm_fd = open_kvm(),
				   .kernel_fd = make_kernel(code, code_end),
				   .initrd_fd = -1,
				   .cmdline = "",
				   .mem_bytes = mem_bytes,
				   .nr_vcpus = nr_vcpus};

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	f->console = pair[0];
	c.console_fd = pair[1];
	f->loop = loop_new();
	if (machine_new(f->loop, &c, &cb, f, &f->machine, &err))
		fail_msg("%s", err.msg);
}

static void start(struct fixture *f)
{
	struct err err = {0};

	if (machine_start(f->machine, &(struct machine_env){0}, &err))
		fail_msg("%s", err.msg);
}

static void run_until(struct fixture *f, const bool *what)
{
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;

	while (!*what) {
		assert_true(util_now_ns() < deadline);
		assert_int_equal(loop_run_once(f->loop, 100), 0);
	}
}

static void assert_console(struct fixture *f, const char *expected, size_t len)
{
	char got[256];
	ssize_t n = recv(f->console, got, sizeof(got), MSG_DONTWAIT);

	assert_int_equal(n, len);
	assert_memory_equal(got, expected, len);
}

static void *ram(struct fixture *f, uint64_t gpa, uint64_t len)
{
	void *p = guest_mem_ptr(machine_mem(f->machine), (gpa_t){gpa}, len);

	assert_non_null(p);
	return p;
}

static uint64_t peek(struct fixture *f, uint64_t gpa)
{
	return __atomic_load_n((uint64_t *)ram(f, gpa, 8), __ATOMIC_SEQ_CST);
}

static void poke(struct fixture *f, uint64_t gpa, uint64_t value)
{
	__atomic_store_n((uint64_t *)ram(f, gpa, 8), value, __ATOMIC_SEQ_CST);
}

/* The fourth GiB, where devices are, and the fifth, in 2 MiB pages. After start: the tables are there. */
static void map_devices(struct fixture *f)
{
	for (uint64_t gib = 3; gib <= 4; gib++) {
		uint64_t table = 0x320000 + gib * 0x1000;

		poke(f, LAYOUT_PDPT + gib * 8, table | 3);
		for (uint64_t i = 0; i < 512; i++)
			poke(f, table + i * 8, (gib << 30) | i << 21 | 0x83);
	}
}

static void finish(struct fixture *f)
{
	machine_free(f->machine);
	loop_free(f->loop);
	close(f->console);
}

static void test_runs_and_resets(void **state)
{
	struct fixture f = {0};

	create(&f, guest_says_hi, guest_says_hi_end, 64u << 20, 1);
	start(&f);
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	assert_string_equal(f.end.text, "triple fault");
	assert_console(&f, "hi\n", 3);
	finish(&f);
}

static void test_reset_port(void **state)
{
	struct fixture f = {0};

	create(&f, guest_resets, guest_resets_end, 64u << 20, 1);
	start(&f);
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	assert_string_equal(f.end.text, "reset port");
	finish(&f);
}

/* ---- a device that counts kicks and answers each with an interrupt ---- */

struct counter {
	struct virtio_device dev;
	unsigned int kicks;
	bool kicked;
};

static bool counter_kick(struct virtio_device *dev, unsigned int index)
{
	struct counter *c = container_of(dev, struct counter, dev);
	struct virtq_chain *chain = xmalloc(sizeof(*chain));
	struct virtio_queue *q = &dev->queues[index];

	while (virtio_queue_pop(q, chain) > 0) {
		c->kicks++;
		virtq_push(&q->vq, chain->head, 0);
	}
	if (c->kicks)
		c->kicked = true;
	virtq_enable_kicks(&q->vq);
	virtio_queue_notify(q);
	free(chain);
	return false;
}

static void counter_free(struct virtio_device *dev)
{
	virtio_device_done(dev);
	free(container_of(dev, struct counter, dev));
}

static const struct virtio_device_ops counter_ops = {.queue_kick = counter_kick,
						     .free = counter_free};

static struct counter *add_counter(struct fixture *f)
{
	const struct virtio_device_info info = {
		.name = "counter", .id = VIRTIO_ID_RNG, .nr_queues = 1, .queues = {{8, 0}}};
	struct counter *c = xcalloc(1, sizeof(*c));
	struct err err = {0};

	if (virtio_device_init(&c->dev, &counter_ops, &info, &err) ||
	    machine_add_device(f->machine, &c->dev, &err))
		fail_msg("%s", err.msg);
	return c;
}

static void test_mmio(void **state)
{
	struct fixture f = {0};

	create(&f, guest_reads_mmio, guest_reads_mmio_end, 64u << 20, 1);
	add_counter(&f);
	start(&f);
	map_devices(&f);
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	assert_console(&f, "virt\xff\xff\xff\xff\n", 9);
	finish(&f);
}

static void test_kick_and_interrupt(void **state)
{
	const uint64_t handler = CODE + (uint64_t)(guest_waits_handler - guest_waits);
	const struct virtio_queue_setup setup = {.ready = true,
						 .size = 8,
						 .desc = {0x340000},
						 .avail = {0x341000},
						 .used = {0x342000}};
	struct fixture f = {0};
	struct counter *c;

	create(&f, guest_waits, guest_waits_end, 64u << 20, 1);
	c = add_counter(&f);
	start(&f);
	map_devices(&f);
	/* One gate, 64-bit, present; Intel SDM vol. 3, figure 6-8. */
	poke(&f, IDT + VECTOR * 16,
	     (handler & 0xffff) | 0x10ull << 16 | 0x8e00ull << 32 | (handler >> 16 & 0xffff) << 48);
	poke(&f, IDT + VECTOR * 16 + 8, handler >> 32);
	assert_int_equal(virtio_device_activate(&c->dev, 1ull << VIRTIO_F_VERSION_1, &setup), 0);
	/* One request is offered after the device has begun: the guest's kick is what shows it. */
	for (int i = 0; i < 20; i++)
		loop_run_once(f.loop, 0);
	assert_int_equal(c->kicks, 0);
	poke(&f, 0x340000, COUNTER);
	poke(&f, 0x340008, 16);
	poke(&f, 0x341000, 1u << 16);
	machine_run(f.machine);
	run_until(&f, &c->kicked);
	run_until(&f, &f.is_over);
	assert_int_equal(c->kicks, 1);
	assert_console(&f, "!\n", 2);
	finish(&f);
}

static void test_memory_above_hole(void **state)
{
	struct fixture f = {0};

	create(&f, guest_reads_high, guest_reads_high_end, LAYOUT_LOW_RAM_END + (4u << 20), 1);
	start(&f);
	map_devices(&f);
	*(char *)ram(&f, LAYOUT_HIGH_RAM_START, 1) = 'H';
	assert_null(guest_mem_ptr(machine_mem(f.machine), (gpa_t){LAYOUT_LOW_RAM_END}, 1));
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_console(&f, "H\n", 2);
	finish(&f);
}

/* ---- a device that shows a file ---- */

struct shower {
	struct virtio_device dev;
	struct virtiofs_window window;
	int fd; /* borrowed */
};

static uint64_t shower_fault(struct virtio_device *dev)
{
	return virtiofs_window_mend(&container_of(dev, struct shower, dev)->window);
}

static void shower_free(struct virtio_device *dev)
{
	struct shower *s = container_of(dev, struct shower, dev);

	virtiofs_window_done(&s->window);
	virtio_device_done(dev);
	free(s);
}

static const struct virtio_device_ops shower_ops = {
	.queue_kick = counter_kick, .shm_fault = shower_fault, .free = shower_free};

static bool is_revoked(void *ctx, uint64_t export_id)
{
	return false;
}

/* The file's first byte is a 'W'. */
static struct shower *add_shower(struct fixture *f)
{
	const struct virtio_device_info info = {
		.name = "shower", .id = VIRTIO_ID_FS, .nr_queues = 1, .queues = {{8, 0}}};
	const struct virtiofs_window_slot slot = {.fd = memfd_create("shown", MFD_CLOEXEC)};
	struct shower *s = xcalloc(1, sizeof(*s));
	struct err err = {0};

	s->fd = slot.fd;
	assert_int_equal(pwrite(s->fd, "W", 1, 0), 1);
	if (virtio_device_init(&s->dev, &shower_ops, &info, &err) ||
	    virtiofs_window_init(&s->window, VIRTIOFS_WINDOW_SLOT, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(virtiofs_window_map(&s->window, 0, &slot, is_revoked, NULL), 0);
	s->dev.shm = s->window.host;
	s->dev.shm_len = s->window.len;
	if (machine_add_device(f->machine, &s->dev, &err))
		fail_msg("%s", err.msg);
	return s;
}

static void test_shown_memory(void **state)
{
	struct fixture f = {0};

	create(&f, guest_reads_high, guest_reads_high_end, 64u << 20, 1);
	add_shower(&f);
	start(&f);
	map_devices(&f);
	assert_null(guest_mem_ptr(machine_mem(f.machine), (gpa_t){LAYOUT_HIGH_RAM_START}, 1));
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_console(&f, "W\n", 2);
	finish(&f);
}

/* Some KVMs say that the guest cannot go on, others ask for the bytes. */
static void test_shown_memory_that_goes(void **state)
{
	struct fixture f = {0};
	struct shower *s;

	create(&f, guest_reads_high, guest_reads_high_end, 64u << 20, 1);
	s = add_shower(&f);
	start(&f);
	map_devices(&f);
	assert_int_equal(ftruncate(s->fd, 0), 0);
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	assert_console(&f, "\0\n", 2);
	finish(&f);
}

static void wait_for_count(struct fixture *f, uint64_t more_than)
{
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;

	while (peek(f, COUNTER) <= more_than) {
		assert_true(util_now_ns() < deadline);
		assert_int_equal(loop_run_once(f->loop, 1), 0);
	}
}

static void test_pause(void **state)
{
	struct fixture f = {0};
	uint64_t count;

	create(&f, guest_counts, guest_counts_end, 64u << 20, 1);
	start(&f);
	machine_run(f.machine);
	for (int i = 0; i < 5; i++) {
		wait_for_count(&f, peek(&f, COUNTER));
		f.is_paused = false;
		machine_pause(f.machine);
		run_until(&f, &f.is_paused);
		count = peek(&f, COUNTER);
		for (int k = 0; k < 10; k++) {
			loop_run_once(f.loop, 1);
			assert_int_equal(peek(&f, COUNTER), count);
		}
		machine_run(f.machine);
		wait_for_count(&f, count);
	}
	/* A pause that is taken back before it happened is none. */
	f.is_paused = false;
	machine_pause(f.machine);
	machine_run(f.machine);
	wait_for_count(&f, peek(&f, COUNTER));
	poke(&f, FLAG, 1);
	run_until(&f, &f.is_over);
	assert_false(f.is_paused);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	finish(&f);
}

/* All there are; the others wait for a start that never comes, and must end all the same. */
static void test_many_vcpus(void **state)
{
	struct fixture f = {0};

	create(&f, guest_counts, guest_counts_end, 64u << 20, VCPUS_MAX);
	start(&f);
	machine_run(f.machine);
	wait_for_count(&f, 0);
	machine_pause(f.machine);
	run_until(&f, &f.is_paused);
	machine_run(f.machine);
	poke(&f, FLAG, 1);
	run_until(&f, &f.is_over);
	finish(&f);
}

/* Each of them is started by its number, and runs. */
static void test_all_vcpus_start(void **state)
{
	const uint64_t len = (uint64_t)(guest_woken_end - guest_woken);
	struct fixture f = {0};

	create(&f, guest_wakes_all, guest_wakes_all_end, 64u << 20, VCPUS_MAX);
	start(&f);
	memcpy(ram(&f, 0x30000, len), guest_woken, len);
	*(uint32_t *)ram(&f, 0x31004, 4) = VCPUS_MAX - 1;
	machine_run(f.machine);
	run_until(&f, &f.is_over);
	assert_int_equal(f.end.kind, VCPUS_END_RESET);
	assert_int_equal(*(uint32_t *)ram(&f, 0x31000, 4), VCPUS_MAX - 1);
	finish(&f);
}

static void test_freed_while_running(void **state)
{
	struct fixture f = {0};

	create(&f, guest_counts, guest_counts_end, 64u << 20, 4);
	start(&f);
	machine_run(f.machine);
	wait_for_count(&f, 0);
	finish(&f);
}

static int make_file(void)
{
	int fd = memfd_create("saved", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* A saved machine goes on in another one, any number of times, and the file stays as it is. */
static void test_save_and_restore(void **state)
{
	int state_fd = make_file(), memory_fd = make_file();
	struct fixture f = {0};
	struct err err = {0};
	uint64_t count, kept;
	struct stat st;

	create(&f, guest_counts, guest_counts_end, 64u << 20, 2);
	start(&f);
	machine_run(f.machine);
	wait_for_count(&f, 1000);
	machine_pause(f.machine);
	run_until(&f, &f.is_paused);
	count = peek(&f, COUNTER);
	if (machine_save(f.machine, state_fd, memory_fd, 64u << 20, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(fstat(memory_fd, &st), 0);
	assert_int_equal(st.st_size, 64u << 20);
	/* Holes where nothing is. */
	assert_true((uint64_t)st.st_blocks * 512 < (1u << 20));
	/* The saved one goes on as well. */
	machine_run(f.machine);
	wait_for_count(&f, count);
	finish(&f);

	for (int i = 0; i < 3; i++) {
		f = (struct fixture){0};
		create(&f, guest_says_hi, guest_says_hi_end, 64u << 20, 2);
		/* Mapped, or copied. */
		if (machine_restore(f.machine, state_fd, memory_fd, i % 2, &(struct machine_env){0},
				    &err))
			fail_msg("%s", err.msg);
		assert_int_equal(peek(&f, COUNTER), count);
		machine_run(f.machine);
		wait_for_count(&f, count + 1000);
		poke(&f, FLAG, 1);
		run_until(&f, &f.is_over);
		assert_int_equal(f.end.kind, VCPUS_END_RESET);
		finish(&f);
		assert_int_equal(pread(memory_fd, &kept, sizeof(kept), COUNTER), sizeof(kept));
		assert_int_equal(kept, count);
	}
	close(state_fd);
	close(memory_fd);
}

/* All vCPUs, and memory on both sides of the hole. */
static void test_save_and_restore_large(void **state)
{
	const uint64_t mem_bytes = LAYOUT_LOW_RAM_END + (1536u << 20), high = 0x150000000ull;
	int state_fd = make_file(), memory_fd = make_file();
	struct fixture f = {0};
	struct err err = {0};
	uint64_t count;
	struct stat st;

	create(&f, guest_counts, guest_counts_end, mem_bytes, VCPUS_MAX);
	start(&f);
	machine_run(f.machine);
	wait_for_count(&f, 0);
	machine_pause(f.machine);
	run_until(&f, &f.is_paused);
	count = peek(&f, COUNTER);
	poke(&f, high, 0x1234567887654321ull);
	/* Behind what is said to be used. */
	poke(&f, 0x150100000ull, 1);
	if (machine_save(f.machine, state_fd, memory_fd, LAYOUT_LOW_RAM_END + (1281u << 20), &err))
		fail_msg("%s", err.msg);
	finish(&f);
	assert_int_equal(fstat(memory_fd, &st), 0);
	assert_int_equal(st.st_size, mem_bytes);
	assert_true((uint64_t)st.st_blocks * 512 < (1u << 20));

	f = (struct fixture){0};
	create(&f, guest_says_hi, guest_says_hi_end, mem_bytes, VCPUS_MAX);
	if (machine_restore(f.machine, state_fd, memory_fd, true, &(struct machine_env){0}, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(peek(&f, high), 0x1234567887654321ull);
	assert_int_equal(peek(&f, 0x150100000ull), 0);
	machine_run(f.machine);
	wait_for_count(&f, count);
	poke(&f, FLAG, 1);
	run_until(&f, &f.is_over);
	finish(&f);
	close(state_fd);
	close(memory_fd);
}

static int try_restore(int state_fd, int memory_fd, uint64_t mem_bytes, unsigned int nr_vcpus)
{
	struct fixture f = {0};
	struct err err = {0};
	int r;

	create(&f, guest_counts, guest_counts_end, mem_bytes, nr_vcpus);
	r = machine_restore(f.machine, state_fd, memory_fd, false, &(struct machine_env){0}, &err);
	if (r)
		assert_true(err.msg[0]);
	finish(&f);
	return r;
}

/* Another machine's, cut short, changed: refused with a sentence. */
static void test_restore_refuses(void **state)
{
	int state_fd = make_file(), memory_fd = make_file(), other = make_file();
	cleanup_free uint8_t *all = NULL;
	struct fixture f = {0};
	struct err err = {0};
	struct stat st;

	create(&f, guest_counts, guest_counts_end, 64u << 20, 1);
	start(&f);
	machine_run(f.machine);
	machine_pause(f.machine);
	run_until(&f, &f.is_paused);
	assert_int_equal(machine_save(f.machine, state_fd, memory_fd, 64u << 20, &err), 0);
	finish(&f);
	assert_int_equal(try_restore(state_fd, memory_fd, 64u << 20, 1), 0);
	assert_int_equal(try_restore(state_fd, memory_fd, 64u << 20, 2), -EPROTO);
	assert_int_equal(try_restore(state_fd, memory_fd, 65u << 20, 1), -EPROTO);
	assert_int_equal(try_restore(state_fd, other, 64u << 20, 1), -EPROTO);
	assert_int_equal(fstat(state_fd, &st), 0);
	all = xmalloc((size_t)st.st_size);
	assert_int_equal(pread(state_fd, all, (size_t)st.st_size, 0), st.st_size);
	for (off_t len = 0; len < st.st_size; len += 1 + len) {
		assert_int_equal(ftruncate(other, 0), 0);
		assert_int_equal(pwrite(other, all, (size_t)len, 0), len);
		assert_int_equal(try_restore(other, memory_fd, 64u << 20, 1), -EPROTO);
	}
	/* Bytes of any kind: an answer, whichever. */
	for (off_t at = 48; at < st.st_size; at += 997) {
		all[at] ^= 0x55;
		assert_int_equal(pwrite(other, all, (size_t)st.st_size, 0), st.st_size);
		try_restore(other, memory_fd, 64u << 20, 1);
		all[at] ^= 0x55;
	}
	close(state_fd);
	close(memory_fd);
	close(other);
}

static void test_refuses(void **state)
{
	static const struct machine_callbacks cb = {.on_paused = on_paused, .on_end = on_end};
	char line[MACHINE_CMDLINE_MAX + 2];
	const struct {
		uint64_t mem_bytes;
		unsigned int nr_vcpus;
		const char *cmdline;
		int error;
	} cases[] = {
		{0, 1, "", -EINVAL},	      {(64u << 20) + 1, 1, "", -EINVAL},
		{64u << 20, 0, "", -EINVAL},  {64u << 20, VCPUS_MAX + 1, "", -EINVAL},
		{64u << 20, 1, line, -E2BIG},
	};
	struct loop *loop = loop_new();

	memset(line, 'x', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct machine_config c = {.kvm_fd = open_kvm(),
					   .kernel_fd = -1,
					   .initrd_fd = -1,
					   .console_fd = -1,
					   .cmdline = cases[i].cmdline,
					   .mem_bytes = cases[i].mem_bytes,
					   .nr_vcpus = cases[i].nr_vcpus};
		struct machine *m = NULL;
		struct err err = {0};

		assert_int_equal(machine_new(loop, &c, &cb, NULL, &m, &err), cases[i].error);
		assert_null(m);
		assert_true(err.msg[0]);
	}
	loop_free(loop);
}

/* ---- the same by way of the control socket ---- */

static void send_request(struct session *s, struct vmm_request *req, int *fds, size_t nr)
{
	struct err err = {0};

	req->version = VMM_CONTROL_VERSION;
	if (session_handle(s, req, sizeof(*req), fds, nr, &err))
		fail_msg("%s", err.msg);
}

static void assert_event(int sock, enum vmm_event_kind kind)
{
	struct vmm_event e = {0};

	assert_int_equal(recv(sock, &e, sizeof(e), 0), sizeof(e));
	assert_int_equal(e.kind, kind);
}

static void test_session(void **state)
{
	struct vmm_request machine = {.op = VMM_OP_MACHINE,
				      .machine = {.mem_bytes = 64u << 20, .nr_vcpus = 1}};
	struct vmm_request device = {.op = VMM_OP_DEVICE, .device.kind = VMM_DEVICE_RNG};
	struct vmm_request start_req = {.op = VMM_OP_START};
	int fds[4] = {open_kvm(), make_kernel(guest_says_hi, guest_says_hi_end), -1, -1};
	struct loop *loop = loop_new();
	struct session *s;
	struct err err = {0};
	char got[8];
	int pair[2], console[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, console), 0);
	assert_int_equal(session_new(loop, pair[1], false, &s, &err), 0);
	/* An initrd of whatever kind: this guest does not look. */
	fds[2] = make_kernel(guest_says_hi, guest_says_hi_end);
	fds[3] = console[1];
	send_request(s, &machine, fds, 4);
	send_request(s, &device, NULL, 0);
	send_request(s, &start_req, NULL, 0);
	assert_event(pair[0], VMM_EVENT_RUNNING);
	/* Ends when the guest does. */
	assert_int_equal(loop_run(loop), 0);
	assert_event(pair[0], VMM_EVENT_RESET);
	assert_int_equal(recv(console[0], got, sizeof(got), MSG_DONTWAIT), 3);
	session_free(s);
	loop_free(loop);
	close(pair[0]);
	close(console[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_runs_and_resets),
		cmocka_unit_test(test_reset_port),
		cmocka_unit_test(test_mmio),
		cmocka_unit_test(test_kick_and_interrupt),
		cmocka_unit_test(test_memory_above_hole),
		cmocka_unit_test(test_shown_memory),
		cmocka_unit_test(test_shown_memory_that_goes),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_many_vcpus),
		cmocka_unit_test(test_all_vcpus_start),
		cmocka_unit_test(test_freed_while_running),
		cmocka_unit_test(test_save_and_restore),
		cmocka_unit_test(test_save_and_restore_large),
		cmocka_unit_test(test_restore_refuses),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_session),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
