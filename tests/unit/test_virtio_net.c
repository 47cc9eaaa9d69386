/*
 * virtio-net over a guest's driver in this process, on a real tap in a network namespace of this test. A
 * packet socket on the tap's interface is the other end of the wire.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>

#include "net.h"
#include "util.h"
#include "virtio_driver.h"

#define RX 0
#define TX 1
#define CONTROL 2
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define MRG (1ull << VIRTIO_NET_F_MRG_RXBUF)
#define STATUS (1ull << VIRTIO_NET_F_STATUS | 1ull << VIRTIO_NET_F_MAC)
#define CTRL_VQ (1ull << VIRTIO_NET_F_CTRL_VQ | 1ull << VIRTIO_NET_F_CTRL_MAC_ADDR)
#define CSUM (1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM)
#define TSO4 (1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO4)
#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
#define HDR VIRTIO_NET_TAP_HDR
#define RX_BUF 1536
/* An experimental type: the kernel does nothing with such frames by itself. */
#define ETHERTYPE 0x88b5

static const uint8_t guest_mac[6] = {0x02, 0, 0, 0, 0, 0x11};
static const uint8_t host_mac[6] = {0x02, 0, 0, 0, 0, 0x22};

struct fixture {
	struct virtio_device *dev;
	struct vdrv *d;
	int wire; /* packet socket */
	uint64_t tx;
	uint64_t rx_gpa[VDRV_QUEUE_SIZE_MAX];
	uint8_t frame[70000]; /* the last one received by the guest, with its header */
	size_t frame_len;
	unsigned int nr_buffers;
};

static bool has_network; /* a namespace of our own, and taps */

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int hdr = HDR;
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -1;
	strncpy(ifr.ifr_name, name, sizeof(ifr.ifr_name) - 1);
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
	assert_int_equal(ioctl(fd, TUNSETVNETHDRSZ, &hdr), 0);
	assert_int_equal(ioctl(fd, TUNSETOFFLOAD, OFFLOADS), 0);
	return fd;
}

static int open_wire(const char *name)
{
	struct ifreq ifr = {0};
	struct sockaddr_ll addr = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE)};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETHERTYPE));

	assert_true(fd >= 0);
	strncpy(ifr.ifr_name, name, sizeof(ifr.ifr_name) - 1);
	ifr.ifr_mtu = 9000;
	assert_int_equal(ioctl(fd, SIOCSIFMTU, &ifr), 0);
	ifr.ifr_flags = IFF_UP;
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &ifr), 0);
	addr.sll_ifindex = (int)if_nametoindex(name);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void give_rx(struct fixture *f, unsigned int nr)
{
	for (unsigned int i = 0; i < nr; i++) {
		uint64_t gpa = vdrv_alloc(f->d, RX_BUF);
		int head = vdrv_add(f->d, RX, &(struct vdrv_buf){gpa, RX_BUF, true}, 1);

		assert_true(head >= 0);
		f->rx_gpa[head] = gpa;
	}
	vdrv_kick(f->d, RX);
}

static struct fixture *fixture_new(bool with_tap, bool pin_mac)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct virtio_net_params p = {
		.tap_fd = -1, .mtu = 1450, .offloads = OFFLOADS, .pin_mac = pin_mac};
	struct err err;

	memcpy(p.mac, guest_mac, 6);
	f->wire = -1;
	if (with_tap) {
		p.tap_fd = open_tap("tap0");
		assert_true(p.tap_fd >= 0);
		f->wire = open_wire("tap0");
	}
	assert_int_equal(virtio_net_new(&p, &f->dev, &err), 0);
	f->d = vdrv_new(f->dev, NULL);
	f->tx = vdrv_alloc(f->d, 128 << 10);
	return f;
}

static int set_up(void **state)
{
	struct fixture *f;

	if (!has_network)
		return 0;
	f = fixture_new(true, false);
	vdrv_up(f->d, EVENT_IDX | MRG | STATUS | CTRL_VQ | CSUM | TSO4, 128);
	*state = f;
	return 0;
}

static int set_up_without_tap(void **state)
{
	struct fixture *f = fixture_new(false, false);

	vdrv_up(f->d, EVENT_IDX | MRG | STATUS | CTRL_VQ | CSUM | TSO4, 128);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	if (!f)
		return 0;
	vdrv_free(f->d);
	if (f->wire >= 0)
		close(f->wire);
	free(f);
	return 0;
}

#define NEEDS_NETWORK() \
	do { \
		if (!has_network) { \
			print_message("# no network namespace or no /dev/net/tun here\n"); \
			skip(); \
		} \
	} while (0)

/* A frame of `len` bytes, the header not counted. */
static void fill_frame(uint8_t *frame, const uint8_t *to, const uint8_t *from, size_t len)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	frame[12] = ETHERTYPE >> 8;
	frame[13] = ETHERTYPE & 0xff;
	for (size_t i = 14; i < len; i++)
		frame[i] = (uint8_t)(i * 13 + len);
}

static void send_raw(struct fixture *f, uint32_t len)
{
	struct vdrv_buf bufs[2] = {{f->tx, HDR, false}, {f->tx + HDR, len - HDR, false}};

	if (len <= HDR)
		bufs[0].len = len;
	assert_true(vdrv_add(f->d, TX, bufs, len > HDR ? 2 : 1) >= 0);
	vdrv_kick(f->d, TX);
}

static void guest_sends(struct fixture *f, const struct virtio_net_hdr_v1 *h, const uint8_t *from,
			uint32_t len)
{
	memcpy(vdrv_ptr(f->d, f->tx), h, HDR);
	fill_frame(vdrv_ptr(f->d, f->tx + HDR), host_mac, from, len);
	send_raw(f, HDR + len);
	vdrv_wait_used(f->d, TX, NULL);
}

static void assert_wire(struct fixture *f, uint32_t len)
{
	uint8_t got[10000], want[10000];

	fill_frame(want, host_mac, guest_mac, len);
	assert_int_equal(recv(f->wire, got, sizeof(got), 0), len);
	assert_memory_equal(got, want, len);
}

static void assert_wire_is_silent(struct fixture *f)
{
	uint8_t got[10];

	assert_int_equal(recv(f->wire, got, sizeof(got), 0), -1);
	assert_int_equal(errno, EAGAIN);
}

static void wire_sends(struct fixture *f, uint32_t len)
{
	uint8_t frame[10000];

	fill_frame(frame, guest_mac, host_mac, len);
	assert_int_equal(send(f->wire, frame, len, 0), len);
}

/* The next frame for the guest, gathered from its buffers, which are offered again; false = none now. */
static bool guest_receives_now(struct fixture *f)
{
	unsigned int nr = 1;

	f->frame_len = 0;
	for (f->nr_buffers = 0; f->nr_buffers < nr; f->nr_buffers++) {
		struct vdrv_buf b = {.len = RX_BUF, .writable = true};
		uint32_t len;
		int head = vdrv_used(f->d, RX, &len);
		int again;

		/* All buffers of a frame appear at once. */
		if (head < 0) {
			assert_int_equal(f->nr_buffers, 0);
			return false;
		}
		b.gpa = f->rx_gpa[head];
		assert_in_range(len, 1, RX_BUF);
		memcpy(f->frame + f->frame_len, vdrv_ptr(f->d, b.gpa), len);
		f->frame_len += len;
		if (!f->nr_buffers) {
			struct virtio_net_hdr_v1 h;

			memcpy(&h, f->frame, sizeof(h));
			nr = le16toh(h.num_buffers);
			assert_in_range(nr, 1, 64);
		}
		again = vdrv_add(f->d, RX, &b, 1);
		f->rx_gpa[again] = b.gpa;
	}
	vdrv_kick(f->d, RX);
	return true;
}

static void guest_receives(struct fixture *f)
{
	uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;

	while (!guest_receives_now(f)) {
		assert_true(util_now_ns() < end);
		assert_int_equal(loop_run_once(f->d->loop, 10), 0);
	}
}

static void assert_received(struct fixture *f, uint32_t len)
{
	uint8_t want[10000];

	guest_receives(f);
	fill_frame(want, guest_mac, host_mac, len);
	assert_int_equal(f->frame_len, HDR + len);
	assert_memory_equal(f->frame + HDR, want, len);
}

static const struct virtio_net_hdr_v1 plain;

static void test_configuration(void **state)
{
	struct fixture *f;
	struct virtio_net_config c;

	NEEDS_NETWORK();
	f = *state;
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_memory_equal(c.mac, guest_mac, 6);
	assert_int_equal(le16toh(c.mtu), 1450);
	assert_int_equal(le16toh(c.status), VIRTIO_NET_S_LINK_UP);
	assert_true(vdrv_features(f->d) & 1ull << VIRTIO_NET_F_MTU);
	assert_true(vdrv_features(f->d) & 1ull << VIRTIO_NET_F_HOST_TSO6);
	assert_false(vdrv_features(f->d) & 1ull << VIRTIO_NET_F_HOST_ECN);
}

static void test_frames_both_ways(void **state)
{
	static const uint32_t lens[] = {14, 60, 1514, 9014};
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	give_rx(f, 64);
	for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
		guest_sends(f, &plain, guest_mac, lens[i]);
		assert_wire(f, lens[i]);
		wire_sends(f, lens[i]);
		assert_received(f, lens[i]);
		assert_int_equal(f->nr_buffers, (HDR + lens[i] + RX_BUF - 1) / RX_BUF);
	}
	assert_true(vdrv_interrupts(f->d) > 0);
}

static void test_a_burst_waits_for_buffers(void **state)
{
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	/* More than one frame and less than two of seven buffers each: nothing half-done is shown. */
	give_rx(f, 10);
	for (uint32_t i = 0; i < 100; i++)
		wire_sends(f, 9000 + i % 8);
	vdrv_run(f->d);
	for (uint32_t i = 0; i < 100; i++) {
		assert_received(f, 9000 + i % 8);
		assert_int_equal(f->nr_buffers, 6);
	}
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.rx_frames, 100);
	assert_int_equal(counts.rx_dropped, 0);
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void test_no_busy_loop_while_frames_wait(void **state)
{
	struct fixture *f;
	uint64_t cpu, end;
	unsigned int rounds = 0;

	NEEDS_NETWORK();
	f = *state;
	for (int i = 0; i < 20; i++)
		wire_sends(f, 1000);
	vdrv_run(f->d);
	cpu = cpu_ns();
	for (end = util_now_ns() + 200 * 1000000ull; util_now_ns() < end; rounds++)
		assert_int_equal(loop_run_once(f->d->loop, 50), 0);
	assert_in_range(rounds, 1, 12);
	assert_true(cpu_ns() - cpu < 100 * 1000000ull);
	give_rx(f, 32);
	for (int i = 0; i < 20; i++)
		assert_received(f, 1000);
}

static void test_partial_checksum_is_completed(void **state)
{
	struct virtio_net_hdr_v1 h = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
				      .csum_start = htole16(34),
				      .csum_offset = htole16(16)};
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	guest_sends(f, &h, guest_mac, 100);
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.tx_frames, 1);
	assert_int_equal(counts.tx_dropped, 0);
}

static void test_headers_that_lie(void **state)
{
	static const struct virtio_net_hdr_v1 table[] = {
		/* The checksum lies outside the frame. */
		{.flags = 1, .csum_start = 99},
		{.flags = 1, .csum_start = 14, .csum_offset = 85},
		{.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff},
		/* Not negotiated, or no such thing. */
		{.flags = 1,
		 .gso_type = VIRTIO_NET_HDR_GSO_TCPV6,
		 .gso_size = 50,
		 .csum_start = 14},
		{.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_UDP, .gso_size = 50, .csum_start = 14},
		{.flags = 1, .gso_type = 0x7f, .gso_size = 50, .csum_start = 14},
		{.flags = 1,
		 .gso_type = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
		 .gso_size = 50,
		 .csum_start = 14},
		{.gso_type = VIRTIO_NET_HDR_GSO_ECN},
		/* Segments of nothing, without a checksum, with a header longer than the frame. */
		{.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .csum_start = 14},
		{.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 50},
		{.flags = 1,
		 .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		 .gso_size = 50,
		 .csum_start = 14,
		 .hdr_len = 101},
	};
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		guest_sends(f, &table[i], guest_mac, 100);
		virtio_net_get_counts(f->dev, &counts);
		assert_int_equal(counts.tx_dropped, i + 1);
	}
	assert_wire_is_silent(f);
	/* Garbage in fields without a meaning does no harm. */
	guest_sends(f,
		    &(struct virtio_net_hdr_v1){.flags = 0xfe,
						.csum_start = 0xffff,
						.num_buffers = 0xffff,
						.hdr_len = 0xffff},
		    guest_mac, 100);
	assert_wire(f, 100);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_lengths(void **state)
{
	static const uint32_t dropped[] = {HDR, HDR + 1, HDR + 13, HDR + 65551, 127 << 10};
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	memset(vdrv_ptr(f->d, f->tx), 0, 128 << 10);
	for (size_t i = 0; i < ARRAY_SIZE(dropped); i++) {
		send_raw(f, dropped[i]);
		vdrv_wait_used(f->d, TX, NULL);
		virtio_net_get_counts(f->dev, &counts);
		assert_int_equal(counts.tx_dropped, i + 1);
	}
	assert_false(vdrv_needs_reset(f->d));
	send_raw(f, HDR - 1);
	vdrv_run(f->d);
	assert_true(vdrv_needs_reset(f->d));
}

static void test_receive_buffers_too_small(void **state)
{
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){f->tx, 25, true}, 1) >= 0);
	vdrv_kick(f->d, RX);
	wire_sends(f, 60);
	vdrv_run(f->d);
	assert_true(vdrv_needs_reset(f->d));
}

/* Without merged buffers a frame has to fit into one; the next one then comes through. */
static void test_without_merged_buffers(void **state)
{
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	vdrv_up(f->d, EVENT_IDX | STATUS, 128);
	give_rx(f, 8);
	wire_sends(f, 4000);
	wire_sends(f, 1000);
	assert_received(f, 1000);
	assert_int_equal(f->nr_buffers, 1);
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.rx_dropped, 1);
}

/* A TCP segment of 4000 bytes in one frame, for `gso_size` 1000. */
#define BIG (54 + 4000)
static void fill_big_frame(uint8_t *frame, const uint8_t *to, const uint8_t *from)
{
	/* IPv4, then TCP. */
	static const uint8_t headers[] = {0x45, 0, 0x0f, 0xc8, 0,    1,	   0x40, 0, 64, 6,
					  0,	0, 10,	 0,    0,    1,	   10,	 0, 0,	2,
					  0x10, 0, 0x20, 0,    0,    0,	   0,	 1, 0,	0,
					  0,	1, 0x50, 0x10, 0xff, 0xff, 0,	 0, 0,	0};

	fill_frame(frame, to, from, BIG);
	frame[12] = 8;
	frame[13] = 0;
	memcpy(frame + 14, headers, sizeof(headers));
}

static const struct virtio_net_hdr_v1 big = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
					     .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
					     .hdr_len = 54,
					     .gso_size = 1000,
					     .csum_start = 34,
					     .csum_offset = 16};

/* The host's kernel sends a frame that is to be cut into segments; the socket then has headers. */
static void wire_sends_big(struct fixture *f)
{
	const struct sockaddr_ll to = {.sll_family = AF_PACKET,
				       .sll_protocol = htons(ETH_P_IP),
				       .sll_ifindex = (int)if_nametoindex("tap0"),
				       .sll_halen = 6};
	uint8_t frame[10 + BIG];
	int on = 1;

	memcpy(frame, &big, 10);
	fill_big_frame(frame + 10, guest_mac, host_mac);
	assert_int_equal(setsockopt(f->wire, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)), 0);
	assert_int_equal(sendto(f->wire, frame, sizeof(frame), 0, (const void *)&to, sizeof(to)),
			 sizeof(frame));
}

static void test_segmentation_is_left_to_the_guest(void **state)
{
	struct virtio_net_hdr_v1 h;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	give_rx(f, 16);
	wire_sends_big(f);
	guest_receives(f);
	assert_int_equal(f->frame_len, HDR + BIG);
	memcpy(&h, f->frame, sizeof(h));
	assert_int_equal(h.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
	assert_int_equal(h.gso_size, 1000);
	assert_int_equal(h.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
}

/* A guest that has not agreed to such frames gets segments, with checksums, by the tap. */
static void test_segmentation_for_a_modest_guest(void **state)
{
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	vdrv_up(f->d, EVENT_IDX | MRG | STATUS, 128);
	give_rx(f, 16);
	vdrv_run(f->d);
	wire_sends_big(f);
	for (int i = 0; i < 4; i++) {
		guest_receives(f);
		assert_int_equal(f->frame_len, HDR + 54 + 1000);
		assert_int_equal(f->frame[0], 0);
		assert_int_equal(f->frame[1], VIRTIO_NET_HDR_GSO_NONE);
	}
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.rx_dropped, 0);
}

static void test_segmentation_of_what_the_guest_sends(void **state)
{
	struct virtio_net_counts counts;
	struct fixture *f;

	NEEDS_NETWORK();
	f = *state;
	memcpy(vdrv_ptr(f->d, f->tx), &big, HDR);
	fill_big_frame(vdrv_ptr(f->d, f->tx + HDR), host_mac, guest_mac);
	send_raw(f, HDR + BIG);
	vdrv_wait_used(f->d, TX, NULL);
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.tx_frames, 1);
	assert_int_equal(counts.tx_dropped, 0);
}

static uint8_t control(struct fixture *f, const void *data, uint32_t len)
{
	struct vdrv_buf bufs[2] = {{f->tx, len, false}, {f->tx + 4096, 1, true}};

	memcpy(vdrv_ptr(f->d, f->tx), data, len);
	assert_true(vdrv_add(f->d, CONTROL, bufs, 2) >= 0);
	vdrv_kick(f->d, CONTROL);
	vdrv_wait_used(f->d, CONTROL, NULL);
	return *(uint8_t *)vdrv_ptr(f->d, f->tx + 4096);
}

static void test_control_queue(void **state)
{
	struct fixture *f = *state;
	struct virtio_net_config c;

	assert_int_equal(control(f, "\0\0\1", 3), VIRTIO_NET_OK);  /* promiscuous */
	assert_int_equal(control(f, "\0\1\0", 3), VIRTIO_NET_OK);  /* all multicast */
	assert_int_equal(control(f, "\0\2\0", 3), VIRTIO_NET_ERR); /* not offered */
	assert_int_equal(control(f, "\0\0", 2), VIRTIO_NET_ERR);
	assert_int_equal(control(f, "\2\0\1\0", 4), VIRTIO_NET_ERR); /* VLAN */
	assert_int_equal(control(f, "\1\1\2\0\0\0\0\x33", 8), VIRTIO_NET_OK);
	assert_int_equal(control(f, "\1\1\2\0\0\0\0", 7), VIRTIO_NET_ERR);
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(c.mac[5], 0x33);
	vdrv_write(f->d, VIRTIO_MMIO_STATUS, 0);
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(c.mac[5], 0x11);
	vdrv_up(f->d, EVENT_IDX | CTRL_VQ, 128);
	/* No room for the answer. */
	assert_true(vdrv_add(f->d, CONTROL, &(struct vdrv_buf){f->tx, 3, false}, 1) >= 0);
	vdrv_kick(f->d, CONTROL);
	vdrv_run(f->d);
	assert_true(vdrv_needs_reset(f->d));
}

static void test_the_tap_comes_later(void **state)
{
	struct fixture *f = *state;
	struct virtio_net_config c;
	struct virtio_net_counts counts;
	struct err err;
	int tap;

	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(c.status, 0);
	give_rx(f, 16);
	guest_sends(f, &plain, guest_mac, 100);
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.tx_dropped, 1);
	NEEDS_NETWORK();
	tap = open_tap("tap1");
	f->wire = open_wire("tap1");
	vdrv_interrupts(f->d);
	assert_int_equal(virtio_net_set_tap(f->dev, tap, &err), 0);
	assert_int_equal(vdrv_interrupts(f->d), 1);
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(le16toh(c.status), VIRTIO_NET_S_LINK_UP);
	guest_sends(f, &plain, guest_mac, 100);
	assert_wire(f, 100);
	wire_sends(f, 200);
	assert_received(f, 200);
	assert_int_equal(virtio_net_set_tap(f->dev, -1, &err), 0);
	guest_sends(f, &plain, guest_mac, 100);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_pinned_address(void **state)
{
	struct fixture *f;
	struct virtio_net_counts counts;

	NEEDS_NETWORK();
	f = fixture_new(true, true);
	*state = f;
	vdrv_up(f->d, EVENT_IDX | MRG | CTRL_VQ, 128);
	guest_sends(f, &plain, host_mac, 100);
	assert_wire_is_silent(f);
	virtio_net_get_counts(f->dev, &counts);
	assert_int_equal(counts.tx_dropped, 1);
	guest_sends(f, &plain, guest_mac, 100);
	assert_wire(f, 100);
	assert_int_equal(control(f, "\1\1\2\0\0\0\0\x33", 8), VIRTIO_NET_ERR);
}

/* A namespace of our own; as another user, one of a user namespace too. */
static bool enter_network(void)
{
	int fd;

	if (unshare(CLONE_NEWNET) && unshare(CLONE_NEWUSER | CLONE_NEWNET))
		return false;
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return false;
	close(fd);
	/* The kernel is not to talk by itself. */
	fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		assert_int_equal(write(fd, "1", 1), 1);
		close(fd);
	}
	return true;
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_configuration),
		CASE(test_frames_both_ways),
		CASE(test_a_burst_waits_for_buffers),
		CASE(test_no_busy_loop_while_frames_wait),
		CASE(test_partial_checksum_is_completed),
		CASE(test_headers_that_lie),
		CASE(test_lengths),
		CASE(test_receive_buffers_too_small),
		CASE(test_without_merged_buffers),
		CASE(test_segmentation_is_left_to_the_guest),
		CASE(test_segmentation_for_a_modest_guest),
		CASE(test_segmentation_of_what_the_guest_sends),
		cmocka_unit_test_setup_teardown(test_control_queue, set_up_without_tap, tear_down),
		cmocka_unit_test_setup_teardown(test_the_tap_comes_later, set_up_without_tap,
						tear_down),
		cmocka_unit_test_teardown(test_pinned_address, tear_down),
	};

	has_network = enter_network();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
