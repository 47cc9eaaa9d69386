/*
 * A guest that does nothing but harm: a tiny 64-bit "kernel" of its own, without a C library, that drives every
 * virtio-mmio device it finds with random and with targeted garbage. It needs 64 MiB of memory and one
 * processor, speaks over the serial port, and ends by the reset port.
 *
 * Command line: seed=N rounds=N last=BITS greet=1. Rounds go on over all devices in turn; whatever a device
 * does in answer is fine, as long as its registers still read. `last` chooses what may kill the guest itself
 * at the end (1: pages of its own code into the balloon and below writable buffers). With greet=1 its vsock
 * packets go to the port where the host awaits the agent's greeting; that may end the VM before its last
 * round, because what it says there is no greeting.
 *
 * Memory: program and stack below 4 MiB; rings in the pages from RINGS on; the arena is where addresses
 * usually point, so that the guest survives what devices write.
 */
#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#define RAM_END (64ull << 20)
#define PD_DEVICES 0x600000ull
#define RINGS 0x800000ull
#define RING_STRIDE 0x4000ull
#define ARENA 0x1000000ull
#define ARENA_END 0x3000000ull
#define LAYOUT_PDPT 0xa000ull
#define DEVICES 0xd0000000ull
#define DEVICE_STEP 0x1000ull
#define SLOTS 19
#define QUEUES_MAX 8
#define SIZE_MAX_LOG2 8
#define SERIAL 0x3f8
#define RESET_PORT 0x64

/* Zeroed by the loader; 16 KiB are plenty. */
__attribute__((used)) static uint8_t stack[16384] __attribute__((aligned(16)));

__asm__(".pushsection .text.start\n"
	".globl _start\n"
	"_start:\n"
	" lea stack+16384(%rip), %rsp\n"
	" mov %rsi, %rdi\n"
	" call evil_main\n"
	"1: hlt\n jmp 1b\n"
	".popsection\n");

void evil_main(const uint8_t *boot_params);

/* --- the machine --------------------------------------------------------------------------------- */

static void out8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void say(const char *s)
{
	while (*s)
		out8(SERIAL, (uint8_t)*s++);
}

static void say_number(uint64_t n)
{
	char digits[21];
	unsigned int at = sizeof(digits) - 1;

	digits[at] = '\0';
	do
		digits[--at] = (char)('0' + n % 10);
	while (n /= 10);
	say(&digits[at]);
}

static uint32_t read32(uint64_t at)
{
	return *(volatile uint32_t *)at;
}

static void write32(uint64_t at, uint32_t value)
{
	*(volatile uint32_t *)at = value;
}

/* The fourth GiB, where devices are, in 2 MiB pages: the boot tables map the first alone. */
static void map_devices(void)
{
	volatile uint64_t *pd = (volatile uint64_t *)PD_DEVICES;

	for (uint64_t i = 0; i < 512; i++)
		pd[i] = 3ull << 30 | i << 21 | 0x83;
	((volatile uint64_t *)LAYOUT_PDPT)[3] = PD_DEVICES | 3;
	__asm__ volatile("mov %%cr3, %%rax\n mov %%rax, %%cr3" : : : "rax", "memory");
}

/* The compiler may call these for copies and clears. */
void *memset(void *p, int c, unsigned long n);
void *memset(void *p, int c, unsigned long n)
{
	for (unsigned long i = 0; i < n; i++)
		((volatile uint8_t *)p)[i] = (uint8_t)c;
	return p;
}

void *memcpy(void *to, const void *from, unsigned long n);
void *memcpy(void *to, const void *from, unsigned long n)
{
	for (unsigned long i = 0; i < n; i++)
		((volatile uint8_t *)to)[i] = ((const uint8_t *)from)[i];
	return to;
}

/* --- chance -------------------------------------------------------------------------------------- */

static uint64_t state = 1;

static uint32_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32);
}

static bool one_in(uint32_t n)
{
	return rnd() % n == 0;
}

/* A length or count that hurts. */
static uint32_t odd_number(void)
{
	static const uint32_t odd[] = {0,     1,	  2,	      3,	  15,	     16,
				       44,    511,	  512,	      4096,	  65535,     65536,
				       65537, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};

	return one_in(3) ? rnd() : odd[rnd() % (sizeof(odd) / sizeof(odd[0]))];
}

/* Usually in the arena; sometimes at its end, at the end of memory, where devices are, or nowhere. */
static uint64_t any_address(void)
{
	switch (rnd() % 16) {
	case 0:
		return RAM_END - rnd() % 8192;
	case 1:
		return DEVICES + rnd() % 8192;
	case 2:
		return (uint64_t)rnd() << 32 | rnd();
	case 3:
		return ~0ull - rnd() % 64;
	default:
		return ARENA + rnd() % (ARENA_END - ARENA - 0x200000);
	}
}

/* --- a device and its queues --------------------------------------------------------------------- */

struct queue {
	struct vring_desc *desc;
	struct vring_avail *avail;
	uint16_t size;
};

struct device {
	uint64_t base;
	uint32_t id;
	unsigned int nr_queues;
	struct queue q[QUEUES_MAX];
};

static struct device devices[SLOTS];
static unsigned int nr_devices;

static void reg(const struct device *d, uint32_t off, uint32_t value)
{
	write32(d->base + off, value);
}

static void find_devices(void)
{
	for (unsigned int slot = 0; slot < SLOTS; slot++) {
		uint64_t base = DEVICES + slot * DEVICE_STEP;
		struct device *d = &devices[nr_devices];

		if (read32(base) != 0x74726976 || !read32(base + VIRTIO_MMIO_DEVICE_ID))
			continue;
		d->base = base;
		d->id = read32(base + VIRTIO_MMIO_DEVICE_ID);
		for (unsigned int i = 0; i < QUEUES_MAX; i++) {
			write32(base + VIRTIO_MMIO_QUEUE_SEL, i);
			if (read32(base + VIRTIO_MMIO_QUEUE_NUM_MAX))
				d->nr_queues = i + 1;
		}
		nr_devices++;
	}
}

static void set_queue(struct device *d, unsigned int i)
{
	uint64_t at = RINGS + i * RING_STRIDE;
	struct queue *q = &d->q[i];

	reg(d, VIRTIO_MMIO_QUEUE_SEL, i);
	q->size = (uint16_t)(1u << rnd() % (SIZE_MAX_LOG2 + 1));
	while (q->size > read32(d->base + VIRTIO_MMIO_QUEUE_NUM_MAX))
		q->size /= 2;
	q->desc = (struct vring_desc *)at;
	q->avail = (struct vring_avail *)(at + 0x2000);
	memset(q->avail, 0, 64);
	reg(d, VIRTIO_MMIO_QUEUE_NUM, q->size);
	reg(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)at);
	reg(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)at + 0x2000);
	/* Now and then over the descriptors themselves. */
	reg(d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)at + (one_in(20) ? 0 : 0x3000));
	if (one_in(50))
		reg(d, VIRTIO_MMIO_QUEUE_USED_HIGH, rnd());
	reg(d, VIRTIO_MMIO_QUEUE_READY, 1);
}

/* As a driver does it, with any choice of features. */
static void bring_up(struct device *d)
{
	const uint32_t driver = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	uint32_t low;

	reg(d, VIRTIO_MMIO_STATUS, 0);
	reg(d, VIRTIO_MMIO_STATUS, driver);
	reg(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	low = read32(d->base + VIRTIO_MMIO_DEVICE_FEATURES);
	if (one_in(2))
		low &= rnd();
	reg(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	reg(d, VIRTIO_MMIO_DRIVER_FEATURES, low);
	reg(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg(d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	reg(d, VIRTIO_MMIO_STATUS, driver | VIRTIO_CONFIG_S_FEATURES_OK);
	for (unsigned int i = 0; i < d->nr_queues && i < QUEUES_MAX; i++)
		set_queue(d, i);
	reg(d, VIRTIO_MMIO_STATUS,
	    driver | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void offer(struct queue *q, uint16_t head)
{
	q->avail->ring[q->avail->idx % q->size] = head;
	/* The entry before its index; the processor keeps the order by itself. */
	__asm__ volatile("" : : : "memory");
	*(volatile uint16_t *)&q->avail->idx = (uint16_t)(q->avail->idx + 1);
}

static void kick(const struct device *d, unsigned int i)
{
	__asm__ volatile("" : : : "memory");
	reg(d, VIRTIO_MMIO_QUEUE_NOTIFY, i);
}

static void put_desc(struct queue *q, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags)
{
	q->desc[i % q->size] = (struct vring_desc){
		.addr = addr, .len = len, .flags = flags, .next = (uint16_t)((i + 1) % q->size)};
}

/* --- attacks: registers -------------------------------------------------------------------------- */

static void attack_registers(struct device *d)
{
	for (unsigned int i = 0; i < 20; i++) {
		uint64_t at = d->base + rnd() % (one_in(4) ? 0x1000 : 0x180);

		switch (rnd() % 5) {
		case 0:
			*(volatile uint8_t *)at = (uint8_t)rnd();
			break;
		case 1:
			*(volatile uint16_t *)at = (uint16_t)odd_number();
			break;
		case 2:
			(void)*(volatile uint64_t *)at;
			break;
		case 3:
			write32(at & ~3ull, odd_number());
			break;
		default:
			(void)read32(at & ~3ull);
			break;
		}
	}
}

/* Queue registers of a device at work: they must be frozen. */
static void attack_frozen(struct device *d)
{
	static const uint16_t regs[] = {VIRTIO_MMIO_QUEUE_NUM,	     VIRTIO_MMIO_QUEUE_DESC_LOW,
					VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW,
					VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_USED_HIGH,
					VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_QUEUE_READY};

	bring_up(d);
	for (unsigned int i = 0; i < 16; i++) {
		reg(d, VIRTIO_MMIO_QUEUE_SEL, rnd() % 10);
		reg(d, regs[rnd() % (sizeof(regs) / sizeof(regs[0]))], odd_number());
	}
	for (unsigned int i = 0; i < d->nr_queues; i++) {
		put_desc(&d->q[i], 0, any_address(), 64, one_in(2) ? VRING_DESC_F_WRITE : 0);
		offer(&d->q[i], 0);
		kick(d, i);
	}
}

/* --- attacks: rings ------------------------------------------------------------------------------ */

static void attack_random_rings(struct device *d)
{
	bring_up(d);
	for (unsigned int i = 0; i < d->nr_queues; i++) {
		struct queue *q = &d->q[i];

		for (unsigned int k = 0; k < 16; k++) {
			put_desc(q, rnd(), any_address(), one_in(2) ? rnd() % 4096 : odd_number(),
				 (uint16_t)(rnd() % (one_in(4) ? 65536 : 8)));
			q->desc[rnd() % q->size].next = (uint16_t)(rnd() % (q->size + 1u));
			offer(q, (uint16_t)(one_in(10) ? rnd() : rnd() % q->size));
		}
		kick(d, i);
	}
}

static void attack_one_rule(struct device *d)
{
	unsigned int i;
	struct queue *q;

	bring_up(d);
	if (!d->nr_queues)
		return;
	i = rnd() % d->nr_queues;
	q = &d->q[i];
	put_desc(q, 0, any_address(), 64, VRING_DESC_F_WRITE);
	switch (rnd() % 9) {
	case 0: /* the index jumps */
		q->avail->idx = (uint16_t)(q->avail->idx + q->size + 1 + rnd() % 1000);
		break;
	case 1: /* a head that is none */
		offer(q, (uint16_t)(q->size + rnd() % 100));
		break;
	case 2: /* a circle */
		for (unsigned int k = 0; k < q->size; k++)
			put_desc(q, k, ARENA, one_in(2) ? 0 : 16, VRING_DESC_F_NEXT);
		offer(q, 0);
		break;
	case 3: /* the same head, over and over */
		for (unsigned int k = 0; k < q->size; k++)
			offer(q, 0);
		break;
	case 4: /* tables in tables, of odd lengths, of themselves */
		put_desc(q, 0, (uint64_t)q->desc, one_in(2) ? odd_number() : 16u * q->size,
			 (uint16_t)(VRING_DESC_F_INDIRECT | (rnd() & 3)));
		offer(q, 0);
		break;
	case 5: /* 4 GiB and more in one chain */
		for (unsigned int k = 0; k < q->size; k++)
			put_desc(q, k, ARENA, 0x2000000,
				 (uint16_t)(VRING_DESC_F_WRITE |
					    (k + 1u < q->size ? VRING_DESC_F_NEXT : 0)));
		offer(q, 0);
		break;
	case 6: /* readable after writable */
		put_desc(q, 0, ARENA, 64, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
		put_desc(q, 1, ARENA, 64, 0);
		offer(q, 0);
		break;
	case 7: /* buffers across the end of memory */
		put_desc(q, 0, RAM_END - 32, 64, one_in(2) ? VRING_DESC_F_WRITE : 0);
		offer(q, 0);
		break;
	default: /* no byte at all */
		put_desc(q, 0, any_address(), 0, VRING_DESC_F_NEXT);
		put_desc(q, 1, any_address(), 0, VRING_DESC_F_WRITE);
		offer(q, 0);
		break;
	}
	kick(d, i);
}

/* --- attacks: requests that look right ----------------------------------------------------------- */

static void put8(uint64_t at, uint8_t v)
{
	*(volatile uint8_t *)at = v;
}

static void put16(uint64_t at, uint32_t v)
{
	put8(at, (uint8_t)v);
	put8(at + 1, (uint8_t)(v >> 8));
}

static void put64(uint64_t at, uint64_t v)
{
	write32(at, (uint32_t)v);
	write32(at + 4, (uint32_t)(v >> 32));
}

/* The host's port for most packets: where nobody listens, or AGENT_VSOCK_PORT (src/agent/agent_hello.h). */
static uint32_t vsock_port = 1025;

/* virtio-vsock, 5.10.6: plausible ports and operations, credit and lengths that lie. */
static uint32_t fill_vsock(uint64_t at)
{
	uint32_t len = one_in(2) ? rnd() % 256 : 0;

	put64(at, one_in(20) ? rnd() : 3);
	put64(at + 8, one_in(20) ? rnd() : 2);
	write32(at + 16, 1000 + rnd() % 16);
	write32(at + 20, one_in(2) ? vsock_port : 1025 + rnd() % 1024);
	write32(at + 24, one_in(10) ? odd_number() : len);
	put16(at + 28, one_in(20) ? rnd() : 1);
	put16(at + 30, one_in(20) ? rnd() : rnd() % 9);
	write32(at + 32, rnd() % 4);
	write32(at + 36, odd_number());
	write32(at + 40, one_in(2) ? 0 : odd_number());
	return 44 + len;
}

/* virtio-blk, 5.2.6: any type, any place. */
static uint32_t fill_blk(uint64_t at)
{
	static const uint8_t types[] = {0, 1, 4, 8, 11, 13, 14};

	write32(at, one_in(10) ? rnd() : types[rnd() % sizeof(types)]);
	write32(at + 4, rnd());
	put64(at + 8, one_in(4) ? any_address() : rnd() % 256);
	for (unsigned int k = 16; k < 48; k += 4)
		write32(at + k, one_in(2) ? rnd() % 256 : odd_number());
	return 16 + 16 * (rnd() % 34);
}

/* virtio-net, 5.1.6: headers with any checksum and segmentation. */
static uint32_t fill_net(uint64_t at)
{
	put8(at, (uint8_t)(rnd() % 4));
	put8(at + 1, (uint8_t)(one_in(4) ? rnd() : rnd() % 5));
	for (unsigned int k = 2; k < 12; k += 2)
		put16(at + k, one_in(2) ? rnd() % 100 : odd_number());
	return one_in(4) ? rnd() % 80000 : rnd() % 2000;
}

/* virtio-balloon, 5.5.6: pages of the arena, and some that are nowhere. */
static uint32_t fill_balloon(uint64_t at)
{
	uint32_t nr = rnd() % 64;

	for (uint32_t k = 0; k < nr; k++)
		write32(at + 4ull * k,
			one_in(100) ? rnd() : (uint32_t)(ARENA >> 12) + rnd() % 0x1000);
	return one_in(10) ? odd_number() % 8192 : 4 * nr;
}

/* FUSE requests (the kernel's fuse.h): an opcode, lengths that lie, nodes that nobody knows. */
static uint32_t fill_fs(uint64_t at)
{
	uint32_t len = 40 + rnd() % 200;

	write32(at, one_in(10) ? odd_number() : len);
	write32(at + 4, one_in(10) ? rnd() : rnd() % 55);
	put64(at + 8, rnd());
	put64(at + 16, one_in(2) ? 1 : rnd() % 16);
	for (unsigned int k = 24; k < len; k += 4)
		write32(at + k, one_in(3) ? odd_number() : rnd() % 256);
	/* Now and then what a kernel begins with: INIT, or the look-up of the one name there is. */
	if (one_in(3)) {
		len = one_in(2) ? 40 + 16 : 40 + 64;
		write32(at + 4, 26);
		write32(at + 40, 7);
		write32(at + 44, 36);
		/* FUSE_INIT_EXT, FUSE_MAP_ALIGNMENT; FUSE_HAS_INODE_DAX */
		write32(at + 52, 1u << 30 | 1u << 26);
		write32(at + 56, 1u << 1);
	} else if (one_in(3)) {
		/* SETUPMAPPING and REMOVEMAPPING of slots that are there, and of some that are not. */
		len = one_in(2) ? 40 + 40 : 40 + 4 + 16;
		write32(at + 4, len == 80 ? 48 : 49);
		for (unsigned int k = 40; k < 80; k += 8)
			put64(at + k, one_in(4) ? rnd() : (uint64_t)(rnd() % 9) << 21);
		if (len == 80)
			put64(at + 64, 1 + rnd() % 3);
		else
			write32(at + 40, one_in(4) ? rnd() : 1);
	} else if (one_in(3)) {
		len = 40 + 5;
		write32(at + 4, 1);
		put64(at + 16, 1);
		put64(at + 40, 0x65657274);
	}
	if (!one_in(10))
		write32(at, len);
	return len;
}

static uint32_t fill_request(const struct device *d, uint64_t at)
{
	switch (d->id) {
	case VIRTIO_ID_VSOCK:
		return fill_vsock(at);
	case VIRTIO_ID_BLOCK:
		return fill_blk(at);
	case VIRTIO_ID_NET:
		return fill_net(at);
	case VIRTIO_ID_BALLOON:
		return fill_balloon(at);
	case VIRTIO_ID_FS:
		return fill_fs(at);
	default:
		return rnd() % 65536;
	}
}

/* One request of one to three pieces, and where an answer may go. */
static void offer_request(struct device *d, unsigned int i, unsigned int slot)
{
	struct queue *q = &d->q[i];
	uint64_t at = ARENA + (rnd() % 256) * 0x10000ull;
	uint32_t len = fill_request(d, at), cut = len ? rnd() % len : 0;

	if (q->size < 4) {
		put_desc(q, 0, at, len, one_in(2) ? VRING_DESC_F_WRITE : 0);
		offer(q, 0);
		return;
	}
	slot = slot * 4 % q->size;
	put_desc(q, slot, at, cut, VRING_DESC_F_NEXT);
	put_desc(q, slot + 1, at + cut, len - cut, one_in(4) ? 0 : VRING_DESC_F_NEXT);
	put_desc(q, slot + 2, ARENA + rnd() % 0x1000000, 512 * (rnd() % 9),
		 VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
	put_desc(q, slot + 3, ARENA + rnd() % 0x1000000, 1 + rnd() % 4096, VRING_DESC_F_WRITE);
	offer(q, (uint16_t)slot);
}

/* Buffers for what devices send, some too small. */
static void offer_buffers(struct device *d, unsigned int i)
{
	struct queue *q = &d->q[i];

	for (unsigned int k = 0; k < q->size; k++) {
		put_desc(q, k, ARENA + 0x1000000 + k * 0x2000ull,
			 one_in(40) ? rnd() % 64 : 64 + rnd() % 8000, VRING_DESC_F_WRITE);
		offer(q, (uint16_t)k);
	}
}

static void attack_requests(struct device *d)
{
	unsigned int turns = 2 + rnd() % 6;

	bring_up(d);
	/* The queue for what comes in: 0 of console, net and vsock. */
	if (d->id == VIRTIO_ID_NET || d->id == VIRTIO_ID_VSOCK || d->id == VIRTIO_ID_CONSOLE) {
		offer_buffers(d, 0);
		kick(d, 0);
	}
	for (unsigned int turn = 0; turn < turns; turn++) {
		unsigned int i = d->nr_queues ? rnd() % d->nr_queues : 0;

		for (unsigned int k = 0; k < 4 && d->nr_queues; k++)
			offer_request(d, i, turn * 4 + k);
		kick(d, i);
	}
}

/* While the device works on it, everything changes under its hands. */
static void attack_while_it_looks(struct device *d)
{
	attack_requests(d);
	for (unsigned int k = 0; k < 400; k++) {
		unsigned int i = d->nr_queues ? rnd() % d->nr_queues : 0;
		uint64_t at = RINGS + i * RING_STRIDE + rnd() % 0x200;

		if (one_in(8))
			at += 0x2000;
		*(volatile uint8_t *)at = (uint8_t)rnd();
		if (one_in(64))
			kick(d, i);
	}
	if (one_in(2))
		reg(d, VIRTIO_MMIO_STATUS, 0);
}

/* Kicks and resets without end. */
static void attack_storm(struct device *d)
{
	attack_requests(d);
	for (unsigned int k = 0; k < 50; k++)
		kick(d, rnd() % 10);
	for (unsigned int k = 0; k < 4; k++)
		reg(d, VIRTIO_MMIO_STATUS, 0);
}

/* The guest's own pages; whatever comes of it. */
static void attack_last(struct device *d)
{
	bring_up(d);
	for (unsigned int i = 0; i < d->nr_queues; i++) {
		struct queue *q = &d->q[i];

		for (uint64_t page = 0; page < 1024; page++)
			write32(ARENA + page * 4, (uint32_t)page);
		put_desc(q, 0, ARENA, 4096, q->size > 1 ? VRING_DESC_F_NEXT : 0);
		put_desc(q, 1, 0, 4u << 20, VRING_DESC_F_WRITE);
		offer(q, 0);
		kick(d, i);
	}
}

/* --- the program --------------------------------------------------------------------------------- */

static uint64_t option(const char *line, const char *name, uint64_t otherwise)
{
	for (; *line; line++) {
		const char *a = line, *b = name;
		uint64_t n = 0;

		while (*b && *a == *b) {
			a++;
			b++;
		}
		if (*b)
			continue;
		for (; *a >= '0' && *a <= '9'; a++)
			n = n * 10 + (uint64_t)(*a - '0');
		return n;
	}
	return otherwise;
}

static void attack(struct device *d)
{
	static void (*const attacks[])(struct device *) = {
		attack_registers, attack_frozen,	 attack_random_rings, attack_one_rule,
		attack_one_rule,  attack_requests,	 attack_requests,     attack_requests,
		attack_storm,	  attack_while_it_looks,
	};

	attacks[rnd() % (sizeof(attacks) / sizeof(attacks[0]))](d);
	/* Whatever became of it, it is still there, and starts over when asked. */
	if (read32(d->base) != 0x74726976)
		say("evil: a device is gone\n");
	reg(d, VIRTIO_MMIO_INTERRUPT_ACK, 3);
}

void evil_main(const uint8_t *boot_params)
{
	/* boot_params: cmd_line_ptr at 0x228 (Documentation/arch/x86/zero-page.rst). */
	const char *line = (const char *)(uint64_t) * (const uint32_t *)(boot_params + 0x228);
	uint64_t rounds = option(line, "rounds=", 100), last = option(line, "last=", 0);

	if (option(line, "greet=", 0))
		vsock_port = 1024;
	state = option(line, "seed=", 1) * 0x9e3779b97f4a7c15ull + 1;
	map_devices();
	find_devices();
	say("evil: ");
	say_number(nr_devices);
	say(" devices\n");
	for (uint64_t round = 0; round < rounds && nr_devices; round++) {
		attack(&devices[round % nr_devices]);
		if (round % 100 == 99) {
			say("evil: round ");
			say_number(round + 1);
			say("\n");
		}
	}
	say("evil: done\n");
	for (unsigned int i = 0; i < nr_devices && last & 1; i++)
		attack_last(&devices[i]);
	for (;;)
		out8(RESET_PORT, 0xfe);
}
