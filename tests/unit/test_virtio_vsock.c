/* virtio-vsock over a guest's driver in this process: streams, credit, ends, and guests that lie. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_mmio.h>
#include <linux/virtio_vsock.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"
#include "virtio_driver.h"
#include "vsock.h"

#define CID 42
#define RX 0
#define TX 1
#define BUF 4096
#define HDR ((uint32_t)sizeof(struct virtio_vsock_hdr))
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define HOST_PORT 1000
#define GUEST_PORT 10
/* Connections of a guest that wants too many. */
#define FLOOD (VSOCK_STREAMS_MAX / 2 + 50)

struct fixture {
	struct virtio_device *dev;
	struct vdrv *d;
	uint64_t rx_gpa[VDRV_QUEUE_SIZE_MAX]; /* by head */
	uint64_t tx_gpa;
	unsigned int nr_rx;
	/* What on_connect answers and saw. */
	int accept_error;
	struct vsock_accept accept;
	unsigned int nr_connects;
	uint32_t asked_port;
	bool reset_in_connect;
	/* The last packet received. */
	struct virtio_vsock_hdr h;
	uint8_t data[VIRTQ_SIZE_MAX * 64];
};

struct end {
	bool done;
	int err;
};

static void on_done(void *ctx, int err)
{
	struct end *e = ctx;

	assert_false(e->done);
	*e = (struct end){.done = true, .err = err};
}

static int on_connect(void *ctx, uint32_t host_port, uint32_t guest_port, struct vsock_accept *ret)
{
	struct fixture *f = ctx;

	f->nr_connects++;
	f->asked_port = host_port;
	if (f->reset_in_connect)
		vdrv_write(f->d, VIRTIO_MMIO_STATUS, 0);
	*ret = f->accept;
	return f->accept_error;
}

static void give_rx(struct fixture *f, unsigned int nr)
{
	for (unsigned int i = 0; i < nr; i++) {
		uint64_t gpa = vdrv_alloc(f->d, HDR + BUF);
		int head = vdrv_add(f->d, RX, &(struct vdrv_buf){gpa, HDR + BUF, true}, 1);

		assert_true(head >= 0);
		f->rx_gpa[head] = gpa;
	}
	vdrv_kick(f->d, RX);
}

/* The device without its driver. */
static int set_up_down(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	const struct vsock_params params = {
		.guest_cid = CID, .on_connect = on_connect, .ctx = f, .connect_timeout_ms = 500};
	struct err err;

	assert_int_equal(vsock_new(&params, &f->dev, &err), 0);
	f->d = vdrv_new(f->dev, NULL);
	f->accept.rfd = f->accept.wfd = -1;
	*state = f;
	return 0;
}

static int set_up(void **state)
{
	struct fixture *f;

	set_up_down(state);
	f = *state;
	vdrv_up(f->d, EVENT_IDX, 64);
	f->tx_gpa = vdrv_alloc(f->d, 128 << 10);
	give_rx(f, 32);
	vdrv_run(f->d);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vdrv_free(f->d);
	free(f);
	return 0;
}

/* The next packet for the guest, its buffer offered again; false = none now. */
static bool receive_now(struct fixture *f)
{
	struct vdrv_buf b = {.len = HDR + BUF, .writable = true};
	uint32_t len;
	int head = vdrv_used(f->d, RX, &len);
	int again;

	if (head < 0)
		return false;
	b.gpa = f->rx_gpa[head];
	assert_in_range(len, HDR, HDR + BUF);
	memcpy(&f->h, vdrv_ptr(f->d, b.gpa), HDR);
	assert_int_equal(le32toh(f->h.len), len - HDR);
	memcpy(f->data, (uint8_t *)vdrv_ptr(f->d, b.gpa) + HDR, len - HDR);
	assert_int_equal(le64toh(f->h.dst_cid), CID);
	again = vdrv_add(f->d, RX, &b, 1);
	f->rx_gpa[again] = b.gpa;
	vdrv_kick(f->d, RX);
	return true;
}

static void receive(struct fixture *f, uint16_t op)
{
	uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;

	while (!receive_now(f)) {
		assert_true(util_now_ns() < end);
		assert_int_equal(loop_run_once(f->d->loop, 10), 0);
	}
	assert_int_equal(le16toh(f->h.op), op);
}

static void assert_silent(struct fixture *f)
{
	vdrv_run(f->d);
	assert_false(receive_now(f));
}

static struct virtio_vsock_hdr packet(uint16_t op, uint32_t host_port, uint32_t guest_port)
{
	return (struct virtio_vsock_hdr){
		.src_cid = htole64(CID),
		.dst_cid = htole64(VSOCK_HOST_CID),
		.src_port = htole32(guest_port),
		.dst_port = htole32(host_port),
		.type = htole16(VIRTIO_VSOCK_TYPE_STREAM),
		.op = htole16(op),
		.buf_alloc = htole32(256 << 10),
	};
}

static void send_packet(struct fixture *f, const struct virtio_vsock_hdr *h, const void *data)
{
	uint32_t len = le32toh(h->len);
	struct vdrv_buf bufs[2] = {{f->tx_gpa, HDR, false}, {f->tx_gpa + HDR, len, false}};

	memcpy(vdrv_ptr(f->d, f->tx_gpa), h, HDR);
	if (len)
		memcpy(vdrv_ptr(f->d, f->tx_gpa + HDR), data, len);
	assert_true(vdrv_add(f->d, TX, bufs, len ? 2 : 1) >= 0);
	vdrv_kick(f->d, TX);
	vdrv_wait_used(f->d, TX, NULL);
}

static void send_op(struct fixture *f, uint16_t op, uint32_t flags)
{
	struct virtio_vsock_hdr h = packet(op, HOST_PORT, GUEST_PORT);

	h.flags = htole32(flags);
	send_packet(f, &h, NULL);
}

static void send_data(struct fixture *f, const void *data, uint32_t len)
{
	struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_RW, HOST_PORT, GUEST_PORT);

	h.len = htole32(len);
	send_packet(f, &h, data);
}

/* A stream opened by the host, both ends of a socket pair for it in the test's hands. */
static int open_stream(struct fixture *f, struct end *e, struct vsock_stream **s)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, e, s),
			 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	assert_int_equal(le32toh(f->h.src_port), HOST_PORT);
	assert_int_equal(le32toh(f->h.dst_port), GUEST_PORT);
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	vdrv_run(f->d);
	return sv[0];
}

static void wait_end(struct fixture *f, const struct end *e, int err)
{
	vdrv_wait(f->d, &e->done);
	assert_int_equal(e->err, err);
}

static void assert_read(int fd, const char *want)
{
	char got[64] = {0};

	assert_int_equal(read(fd, got, sizeof(got)), strlen(want));
	assert_string_equal(got, want);
}

static void test_config_and_ids(void **state)
{
	struct fixture *f = *state;
	uint64_t cid;

	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &cid, sizeof(cid));
	assert_int_equal(le64toh(cid), CID);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_DEVICE_ID), 19);
}

static void test_host_connects_and_bytes_go_both_ways(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	assert_int_equal(write(fd, "to the guest", 12), 12);
	receive(f, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(le32toh(f->h.len), 12);
	assert_memory_equal(f->data, "to the guest", 12);
	assert_true(vdrv_interrupts(f->d) > 0);
	send_data(f, "from the guest", 14);
	assert_read(fd, "from the guest");
	close(fd);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags), VIRTIO_VSOCK_SHUTDOWN_SEND);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags),
			 VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
	send_op(f, VIRTIO_VSOCK_OP_RST, 0);
	wait_end(f, &e, -EPIPE);
	assert_silent(f);
}

static void test_connection_refused(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int sv[2];
	char c;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(
		vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, &e, NULL), 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	/* As Linux answers for a port without a listener: no credit in it. */
	send_packet(f,
		    &(struct virtio_vsock_hdr){.src_cid = htole64(CID),
					       .dst_cid = htole64(VSOCK_HOST_CID),
					       .src_port = htole32(GUEST_PORT),
					       .dst_port = htole32(HOST_PORT),
					       .type = htole16(VIRTIO_VSOCK_TYPE_STREAM),
					       .op = htole16(VIRTIO_VSOCK_OP_RST)},
		    NULL);
	wait_end(f, &e, -ECONNREFUSED);
	assert_int_equal(read(sv[0], &c, 1), 0);
	close(sv[0]);
}

static void test_no_driver_no_connection(void **state)
{
	struct fixture *f = *state;
	int sv[2];
	char c;

	assert_false(vsock_is_ready(f->dev));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(
		vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, NULL, NULL),
		-ENOTCONN);
	/* Taken over all the same. */
	assert_int_equal(read(sv[0], &c, 1), 0);
	close(sv[0]);
}

static void test_guest_connects(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_REQUEST, HOST_PORT, GUEST_PORT);
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	f->accept = (struct vsock_accept){.rfd = sv[1], .wfd = sv[1], .done = on_done, .ctx = &e};
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_RESPONSE);
	assert_int_equal(f->asked_port, HOST_PORT);
	send_data(f, "hello", 5);
	assert_read(sv[0], "hello");
	assert_int_equal(write(sv[0], "hi", 2), 2);
	receive(f, VIRTIO_VSOCK_OP_RW);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, 3);
	receive(f, VIRTIO_VSOCK_OP_RST);
	wait_end(f, &e, -EPIPE);
	close(sv[0]);
}

static void test_guest_is_refused(void **state)
{
	struct fixture *f = *state;
	struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_REQUEST, 7, GUEST_PORT);

	f->accept_error = -ECONNREFUSED;
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(le32toh(f->h.src_port), 7);
	assert_int_equal(f->asked_port, 7);
	assert_silent(f);
}

static void test_half_close_by_the_host(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	assert_int_equal(write(fd, "last", 4), 4);
	shutdown(fd, SHUT_WR);
	receive(f, VIRTIO_VSOCK_OP_RW);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags), VIRTIO_VSOCK_SHUTDOWN_SEND);
	/* The other direction goes on. */
	send_data(f, "answer", 6);
	assert_read(fd, "answer");
	assert_false(e.done);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_SEND);
	wait_end(f, &e, 0);
	assert_read(fd, "");
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags), 3);
	close(fd);
}

static void test_half_close_by_the_guest(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	send_data(f, "last", 4);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_SEND);
	assert_read(fd, "last");
	assert_read(fd, "");
	assert_int_equal(write(fd, "more", 4), 4);
	receive(f, VIRTIO_VSOCK_OP_RW);
	assert_false(e.done);
	/* Linux closes: both, then it waits for our RST. */
	shutdown(fd, SHUT_WR);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	wait_end(f, &e, 0);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, 3);
	receive(f, VIRTIO_VSOCK_OP_RST);
	assert_silent(f);
	close(fd);
}

static void test_one_way_streams_over_pipes(void **state)
{
	struct fixture *f = *state;
	static struct end in = {0}, out = {0};
	int in_pipe[2], out_pipe[2];
	struct virtio_vsock_hdr h;

	assert_int_equal(pipe2(in_pipe, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out_pipe, O_CLOEXEC), 0);
	assert_int_equal(vsock_connect(f->dev, 1, 100, in_pipe[0], -1, on_done, &in, NULL), 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	assert_int_equal(vsock_connect(f->dev, 2, 100, -1, out_pipe[1], on_done, &out, NULL), 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	h = packet(VIRTIO_VSOCK_OP_RESPONSE, 1, 100);
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags), VIRTIO_VSOCK_SHUTDOWN_RCV);
	h = packet(VIRTIO_VSOCK_OP_RESPONSE, 2, 100);
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(f->h.flags), VIRTIO_VSOCK_SHUTDOWN_SEND);
	assert_int_equal(write(in_pipe[1], "x", 1), 1);
	receive(f, VIRTIO_VSOCK_OP_RW);
	close(in_pipe[1]);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	wait_end(f, &in, 0);
	h = packet(VIRTIO_VSOCK_OP_RW, 2, 100);
	h.len = htole32(3);
	send_packet(f, &h, "abc");
	assert_read(out_pipe[0], "abc");
	/* The reader goes: the guest is told although it sends nothing. */
	close(out_pipe[0]);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	wait_end(f, &out, -EPIPE);
}

static void test_regular_file_is_a_source(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	char path[] = "/tmp/harpoon-vsock-XXXXXX";
	int fd = mkstemp(path);
	uint8_t *content = xmalloc(20000);
	uint32_t got = 0;

	for (int i = 0; i < 20000; i++)
		content[i] = (uint8_t)(i * 7);
	unlink(path);
	assert_int_equal(io_write_full(fd, content, 20000), 0);
	lseek(fd, 0, SEEK_SET);
	assert_int_equal(vsock_connect(f->dev, HOST_PORT, GUEST_PORT, fd, -1, on_done, &e, NULL),
			 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	while (got < 20000) {
		receive(f, VIRTIO_VSOCK_OP_RW);
		assert_memory_equal(f->data, content + got, le32toh(f->h.len));
		got += le32toh(f->h.len);
	}
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	wait_end(f, &e, 0);
	free(content);
}

/* Sends until the credit is used up. */
static uint32_t fill_credit(struct fixture *f, uint32_t buf_alloc)
{
	static uint8_t block[16 << 10];
	uint32_t sent = 0;

	while (sent + sizeof(block) <= buf_alloc) {
		memset(block, (int)(sent >> 14), sizeof(block));
		send_data(f, block, sizeof(block));
		sent += (uint32_t)sizeof(block);
	}
	return sent;
}

static void test_a_stalled_reader_stalls_its_stream_only(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0}, other = {0};
	uint32_t buf_alloc, got = 0, sent, size = 4096;
	int fd = open_stream(f, &e, NULL);
	struct virtio_vsock_hdr h;
	static uint8_t block[16 << 10];
	int p[2];

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	buf_alloc = le32toh(f->h.buf_alloc);
	assert_true(buf_alloc >= 64 << 10);
	sent = fill_credit(f, buf_alloc);
	/* The other one flows. */
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(vsock_connect(f->dev, 5, 6, -1, p[1], on_done, &other, NULL), 0);
	while (!receive_now(f) || le16toh(f->h.op) == VIRTIO_VSOCK_OP_CREDIT_UPDATE)
		vdrv_run(f->d);
	assert_int_equal(le16toh(f->h.op), VIRTIO_VSOCK_OP_REQUEST);
	h = packet(VIRTIO_VSOCK_OP_RESPONSE, 5, 6);
	send_packet(f, &h, NULL);
	h = packet(VIRTIO_VSOCK_OP_RW, 5, 6);
	h.len = htole32(3);
	send_packet(f, &h, "abc");
	assert_read(p[0], "abc");
	close(p[0]);
	/* Every byte is there, in order. */
	while (got < sent) {
		ssize_t n;

		vdrv_run(f->d);
		n = recv(fd, block, sizeof(block), MSG_DONTWAIT);
		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++, got++)
			assert_int_equal(block[i], got >> 14);
	}
	close(fd);
	vdrv_wait(f->d, &e.done);
}

static void test_credit_comes_back_as_it_is_consumed(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);
	uint32_t buf_alloc = le32toh(f->h.buf_alloc), sent = 0;
	static uint8_t block[32 << 10];
	bool updated = false;

	/* Ten times the buffer goes through when somebody reads. */
	while (sent < 10 * buf_alloc) {
		send_data(f, block, sizeof(block));
		sent += (uint32_t)sizeof(block);
		for (uint32_t got = 0; got < sizeof(block);) {
			ssize_t n = recv(fd, block, sizeof(block) - got, MSG_DONTWAIT);

			if (n > 0)
				got += (uint32_t)n;
			else
				vdrv_run(f->d);
		}
		while (receive_now(f)) {
			assert_int_equal(le16toh(f->h.op), VIRTIO_VSOCK_OP_CREDIT_UPDATE);
			assert_true(sent - le32toh(f->h.fwd_cnt) <= buf_alloc);
			updated = true;
		}
	}
	assert_true(updated);
	assert_false(e.done);
	send_op(f, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0);
	receive(f, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(le32toh(f->h.fwd_cnt), sent);
	close(fd);
	vdrv_wait(f->d, &e.done);
}

static void test_over_credit_is_reset(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int size = 4096;
	int fd = open_stream(f, &e, NULL);
	uint32_t buf_alloc = le32toh(f->h.buf_alloc);
	static uint8_t block[16 << 10];
	uint32_t budget = buf_alloc + (1 << 20);

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	while (!e.done && budget >= sizeof(block)) {
		send_data(f, block, sizeof(block));
		vdrv_run(f->d);
		budget -= (uint32_t)sizeof(block);
	}
	wait_end(f, &e, -EPROTO);
	while (receive_now(f) && le16toh(f->h.op) != VIRTIO_VSOCK_OP_RST)
		;
	assert_int_equal(le16toh(f->h.op), VIRTIO_VSOCK_OP_RST);
	close(fd);
	/* The device lives: another stream works. */
	e = (struct end){0};
	fd = open_stream(f, &e, NULL);
	send_data(f, "fine", 4);
	assert_read(fd, "fine");
	close(fd);
	vdrv_wait(f->d, &e.done);
}

/* What the guest says of its own buffer, and what may then be sent to it. */
static void test_peer_credit_arithmetic(void **state)
{
	static const struct {
		uint32_t buf_alloc, fwd_cnt;
		int err;	   /* 0 = the stream lives */
		uint32_t may_send; /* after 4 bytes were sent */
	} table[] = {
		{100, 0, 0, 96},
		{100, 4, 0, 100},
		{2, 0, 0, 0}, /* shrunk below what is under way: none, not 4 GiB */
		{0, 4, 0, 0},
		{UINT32_MAX, 4, 0, 5000},  /* more than there is to send */
		{100, 5, -EPROTO, 0},	   /* consumed more than was sent */
		{100, 0x80000005u, 0, 96}, /* so far behind that it is stale */
		{100, 0x7fffffffu, -EPROTO, 0},
		{100, UINT32_MAX, 0, 96}, /* older than the last: ignored */
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct fixture *f = *state;
		struct end e = {0};
		int fd = open_stream(f, &e, NULL);
		struct virtio_vsock_hdr h;
		uint32_t got = 0;
		uint8_t block[5000] = {0};

		assert_int_equal(write(fd, "1234", 4), 4);
		receive(f, VIRTIO_VSOCK_OP_RW);
		h = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, HOST_PORT, GUEST_PORT);
		h.buf_alloc = htole32(table[i].buf_alloc);
		h.fwd_cnt = htole32(table[i].fwd_cnt);
		send_packet(f, &h, NULL);
		if (table[i].err) {
			wait_end(f, &e, table[i].err);
			receive(f, VIRTIO_VSOCK_OP_RST);
			close(fd);
			continue;
		}
		assert_int_equal(write(fd, block, sizeof(block)), sizeof(block));
		vdrv_run(f->d);
		while (receive_now(f)) {
			if (le16toh(f->h.op) == VIRTIO_VSOCK_OP_RW)
				got += le32toh(f->h.len);
			else
				assert_int_equal(le16toh(f->h.op), VIRTIO_VSOCK_OP_CREDIT_REQUEST);
		}
		assert_int_equal(got, table[i].may_send);
		/* Asked once, not for ever. */
		assert_silent(f);
		send_op(f, VIRTIO_VSOCK_OP_RST, 0);
		wait_end(f, &e, -ECONNRESET);
		while (receive_now(f))
			;
		close(fd);
	}
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A loop that has nothing to do must sleep: at most a few rounds in the time given. */
static void assert_idle(struct fixture *f)
{
	uint64_t cpu = cpu_ns(), end = util_now_ns() + 200 * 1000000ull;
	unsigned int rounds = 0;

	vdrv_run(f->d);
	while (util_now_ns() < end) {
		assert_int_equal(loop_run_once(f->d->loop, 50), 0);
		rounds++;
	}
	assert_in_range(rounds, 1, 12);
	assert_true(cpu_ns() - cpu < 100 * 1000000ull);
}

static void test_no_busy_loop_without_receive_buffers(void **state)
{
	struct fixture *f = *state;
	static struct end e[3] = {{0}};
	int fd[3], nr = 0;
	uint8_t block[1000] = {0};

	for (int i = 0; i < 3; i++) {
		struct virtio_vsock_hdr h;
		int sv[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		fd[i] = sv[0];
		assert_int_equal(vsock_connect(f->dev, 50 + (uint32_t)i, 60, sv[1], sv[1], on_done,
					       &e[i], NULL),
				 0);
		receive(f, VIRTIO_VSOCK_OP_REQUEST);
		h = packet(VIRTIO_VSOCK_OP_RESPONSE, 50 + (uint32_t)i, 60);
		send_packet(f, &h, NULL);
	}
	/* The guest takes buffers back by not offering them again: 32 packets, then nothing. */
	for (int i = 0; i < 100; i++) {
		for (int k = 0; k < 3; k++)
			assert_true(write(fd[k], block, sizeof(block)) > 0);
		vdrv_run(f->d);
	}
	/* Hung up as well, which epoll reports whether asked or not. */
	close(fd[0]);
	shutdown(fd[1], SHUT_WR);
	assert_idle(f);
	while (vdrv_used(f->d, RX, NULL) >= 0)
		nr++;
	assert_int_equal(nr, 32);
	/* One kick, and it goes on (a pause and resume is the same to it). */
	give_rx(f, 32);
	virtio_device_quiesce(f->dev);
	virtio_device_resume(f->dev);
	receive(f, VIRTIO_VSOCK_OP_RW);
	close(fd[1]);
	close(fd[2]);
}

static void test_no_busy_loop_with_a_stalled_reader(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int size = 4096;
	int fd = open_stream(f, &e, NULL);

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	fill_credit(f, le32toh(f->h.buf_alloc));
	assert_idle(f);
	/* The guest is gone from the stream, its data still has to go out. */
	send_op(f, VIRTIO_VSOCK_OP_RST, 0);
	assert_idle(f);
	assert_false(e.done);
	close(fd);
	vdrv_wait(f->d, &e.done);
	assert_idle(f);
}

static void test_data_before_a_reset_is_delivered(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	send_data(f, "last words", 10);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, 3);
	send_op(f, VIRTIO_VSOCK_OP_RST, 0);
	vdrv_wait(f->d, &e.done);
	assert_read(fd, "last words");
	assert_read(fd, "");
	close(fd);
}

static void test_detach_tells_the_guest(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	struct vsock_stream *s;
	int fd = open_stream(f, &e, &s);

	vsock_detach(s);
	assert_false(e.done);
	receive(f, VIRTIO_VSOCK_OP_RST);
	wait_end(f, &e, -ECANCELED);
	assert_read(fd, "");
	close(fd);
}

static void test_device_reset_ends_streams(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	vdrv_write(f->d, VIRTIO_MMIO_STATUS, 0);
	assert_false(e.done);
	wait_end(f, &e, -ECONNRESET);
	assert_read(fd, "");
	close(fd);
	/* And a new driver finds a new device. */
	vdrv_up(f->d, EVENT_IDX, 64);
	give_rx(f, 16);
	e = (struct end){0};
	fd = open_stream(f, &e, NULL);
	close(fd);
	vdrv_wait(f->d, &e.done);
}

/* A device as it is made for a machine that is restored; its driver is up already. */
static struct fixture *restored(const struct fixture *from, uint32_t kept_from)
{
	struct fixture *g = xcalloc(1, sizeof(*g));
	const struct vsock_params params = {
		.guest_cid = CID, .on_connect = on_connect, .ctx = g, .kept_from_port = kept_from};
	cleanup_free uint8_t *saved = NULL;
	size_t len = 0;
	struct err err;

	assert_int_equal(from->dev->ops->save(from->dev, &saved, &len, &err), 0);
	assert_true(len > 0);
	assert_int_equal(vsock_new(&params, &g->dev, &err), 0);
	g->d = vdrv_new(g->dev, NULL);
	/* Before, because this driver begins with a reset. */
	vdrv_up(g->d, EVENT_IDX, 64);
	assert_int_equal(g->dev->ops->load(g->dev, saved, len, &err), 0);
	g->tx_gpa = vdrv_alloc(g->d, 128 << 10);
	give_rx(g, 32);
	vdrv_run(g->d);
	return g;
}

static void free_restored(struct fixture *g)
{
	vdrv_free(g->d);
	free(g);
}

/* A stream over two pipes, of which the one to the host holds a page only. */
static void open_pipes(struct fixture *f, struct end *e, int *in, int *out)
{
	int i[2], o[2];

	assert_int_equal(pipe2(i, O_CLOEXEC), 0);
	assert_int_equal(pipe2(o, O_CLOEXEC), 0);
	assert_int_equal(fcntl(o[1], F_SETPIPE_SZ, BUF), BUF);
	assert_int_equal(vsock_connect(f->dev, HOST_PORT, GUEST_PORT, i[0], o[1], on_done, e, NULL),
			 0);
	*in = i[1];
	*out = o[0];
}

static void send_block(struct fixture *f, char what)
{
	char block[BUF];

	memset(block, what, sizeof(block));
	send_data(f, block, sizeof(block));
}

static void assert_block(struct fixture *f, int fd, char what)
{
	char block[BUF];

	assert_int_equal(read(fd, block, sizeof(block)), BUF);
	for (size_t i = 0; i < sizeof(block); i++)
		assert_int_equal(block[i], what);
	vdrv_run(f->d);
}

/* Bytes under way, credit and numbers are those of before. Both machines go on, each with its own descriptors. */
static void test_saved_streams_go_on(void **state)
{
	struct fixture *f = *state, *g;
	static struct end e, e2;
	struct virtio_vsock_hdr h;
	int in, out, in2, out2;

	open_pipes(f, &e, &in, &out);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	assert_int_equal(write(in, "to the guest", 12), 12);
	receive(f, VIRTIO_VSOCK_OP_RW);
	send_block(f, 'a');
	send_block(f, 'b');
	send_block(f, 'c');
	g = restored(f, 0);
	/* The guest goes on before anybody is there for it. */
	h = packet(VIRTIO_VSOCK_OP_RW, HOST_PORT, GUEST_PORT);
	h.len = htole32(5);
	h.fwd_cnt = htole32(12);
	send_packet(g, &h, "later");
	assert_silent(g);
	open_pipes(g, &e2, &in2, &out2);
	assert_int_equal(write(in2, "and more", 8), 8);
	receive(g, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "and more", 8);
	assert_block(g, out2, 'b');
	assert_block(g, out2, 'c');
	assert_read(out2, "later");
	assert_block(f, out, 'a');
	assert_block(f, out, 'b');
	assert_block(f, out, 'c');
	/* It cannot have consumed more than it was sent in both lives. */
	h = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, HOST_PORT, GUEST_PORT);
	h.fwd_cnt = htole32(20);
	send_packet(g, &h, NULL);
	assert_silent(g);
	h.fwd_cnt = htole32(21);
	send_packet(g, &h, NULL);
	receive(g, VIRTIO_VSOCK_OP_RST);
	wait_end(g, &e2, -EPROTO);
	free_restored(g);
	close(in2);
	close(out2);
	close(in);
	close(out);
}

/* What has ended before, what ends while nobody is there, and what nobody wants any more. */
static void test_saved_streams_end(void **state)
{
	struct fixture *f = *state, *g;
	static struct end e, e2, e3;
	int in, out, in2, out2;
	char c;

	open_pipes(f, &e, &in, &out);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	send_block(f, 'a');
	send_block(f, 'b');
	close(in);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	g = restored(f, 0);
	send_op(g, VIRTIO_VSOCK_OP_SHUTDOWN, 3);
	assert_silent(g);
	open_pipes(g, &e2, &in2, &out2);
	assert_block(g, out2, 'b');
	receive(g, VIRTIO_VSOCK_OP_RST);
	wait_end(g, &e2, 0);
	assert_int_equal(read(out2, &c, 1), 0);
	assert_int_equal(write(in2, "x", 1), -1);
	assert_int_equal(errno, EPIPE);
	close(in2);
	close(out2);
	free_restored(g);

	g = restored(f, 0);
	assert_int_equal(vsock_connect(g->dev, HOST_PORT, GUEST_PORT, -1, -1, on_done, &e3, NULL),
			 0);
	receive(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(le32toh(g->h.flags), 3);
	wait_end(g, &e3, 0);
	free_restored(g);

	/* Of smaller numbers nothing is known. */
	g = restored(f, HOST_PORT + 1);
	send_data(g, "x", 1);
	receive(g, VIRTIO_VSOCK_OP_RST);
	free_restored(g);
	close(out);
}

/* A file from anywhere: what no device can have saved is refused. */
static void test_saved_streams_of_others(void **state)
{
	struct fixture *f = *state;
	static struct end e;
	cleanup_free uint8_t *saved = NULL;
	size_t len = 0, refused = 0;
	struct err err;
	int fd = open_stream(f, &e, NULL);

	assert_int_equal(f->dev->ops->save(f->dev, &saved, &len, &err), 0);
	/* These two have a stream between them. */
	assert_int_equal(f->dev->ops->load(f->dev, saved, len, &err), -EPROTO);
	assert_int_equal(f->dev->ops->load(f->dev, saved, len - 1, &err), -EPROTO);
	for (size_t i = 0; i < len; i++) {
		const struct vsock_params params = {.guest_cid = CID};
		struct virtio_device *dev;
		struct vdrv *d;

		saved[i] ^= 0xff;
		assert_int_equal(vsock_new(&params, &dev, &err), 0);
		d = vdrv_new(dev, NULL);
		refused += dev->ops->load(dev, saved, len, &err) < 0;
		vdrv_free(d);
		saved[i] ^= 0xff;
	}
	/* Flags, credit and ends; numbers that only the guest can know are taken as they are. */
	assert_in_range(refused, len / 2, len - 1);
	close(fd);
}

static void test_strangers_get_a_reset(void **state)
{
	struct fixture *f = *state;
	static const uint16_t ops[] = {VIRTIO_VSOCK_OP_INVALID,
				       VIRTIO_VSOCK_OP_RESPONSE,
				       VIRTIO_VSOCK_OP_SHUTDOWN,
				       VIRTIO_VSOCK_OP_RW,
				       VIRTIO_VSOCK_OP_CREDIT_UPDATE,
				       VIRTIO_VSOCK_OP_CREDIT_REQUEST,
				       VIRTIO_VSOCK_OP_CREDIT_REQUEST + 1,
				       0xffff};
	struct virtio_vsock_hdr h;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		send_op(f, ops[i], 0);
		receive(f, VIRTIO_VSOCK_OP_RST);
		assert_int_equal(le32toh(f->h.src_port), HOST_PORT);
		assert_int_equal(le32toh(f->h.dst_port), GUEST_PORT);
	}
	/* Never a RST for a RST. */
	send_op(f, VIRTIO_VSOCK_OP_RST, 0);
	assert_silent(f);
	/* Other types, other addresses. */
	h = packet(VIRTIO_VSOCK_OP_REQUEST, HOST_PORT, GUEST_PORT);
	h.type = htole16(VIRTIO_VSOCK_TYPE_SEQPACKET);
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(le16toh(f->h.type), VIRTIO_VSOCK_TYPE_SEQPACKET);
	h = packet(VIRTIO_VSOCK_OP_REQUEST, HOST_PORT, GUEST_PORT);
	h.dst_cid = htole64(77);
	send_packet(f, &h, NULL);
	receive(f, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(le64toh(f->h.src_cid), 77);
	h = packet(VIRTIO_VSOCK_OP_REQUEST, HOST_PORT, GUEST_PORT);
	h.src_cid = htole64(CID + 1);
	send_packet(f, &h, NULL);
	assert_silent(f);
	assert_int_equal(f->nr_connects, 0);
}

static void test_wrong_packets_in_a_stream(void **state)
{
	struct fixture *f = *state;
	static const uint16_t ops[] = {VIRTIO_VSOCK_OP_INVALID, VIRTIO_VSOCK_OP_REQUEST,
				       VIRTIO_VSOCK_OP_RESPONSE, 0x1234};

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		struct end e = {0};
		int fd = open_stream(f, &e, NULL);

		send_op(f, ops[i], 0);
		receive(f, VIRTIO_VSOCK_OP_RST);
		wait_end(f, &e, -EPROTO);
		close(fd);
	}
}

static void test_data_after_shutdown(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_SEND);
	send_data(f, "x", 1);
	receive(f, VIRTIO_VSOCK_OP_RST);
	wait_end(f, &e, -EPROTO);
	close(fd);
}

static void send_raw(struct fixture *f, const struct virtio_vsock_hdr *h, uint32_t len)
{
	memcpy(vdrv_ptr(f->d, f->tx_gpa), h, HDR);
	assert_true(vdrv_add(f->d, TX, &(struct vdrv_buf){f->tx_gpa, len, false}, 1) >= 0);
	vdrv_kick(f->d, TX);
	vdrv_run(f->d);
}

static void test_packets_that_lie_about_their_length(void **state)
{
	static const struct {
		uint32_t claim, buffers;
	} table[] = {{0, 4},
		     {0, HDR - 1},
		     {10, HDR},
		     {10, HDR + 9},
		     {10, HDR + 11},
		     {UINT32_MAX, HDR},
		     {UINT32_MAX - HDR, HDR + 8},
		     {(64 << 10) + 1, HDR + (64 << 10) + 1}};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct fixture *f = *state;
		struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_RW, HOST_PORT, GUEST_PORT);

		h.len = htole32(table[i].claim);
		send_raw(f, &h, table[i].buffers);
		assert_true(vdrv_needs_reset(f->d));
		vdrv_up(f->d, EVENT_IDX, 64);
		assert_false(vdrv_needs_reset(f->d));
	}
}

static void test_receive_buffers_too_small(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int sv[2];
	uint64_t gpa = vdrv_alloc(f->d, HDR);

	vdrv_up(f->d, EVENT_IDX, 64);
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){gpa, HDR, true}, 1) >= 0);
	vdrv_kick(f->d, RX);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(
		vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, &e, NULL), 0);
	assert_true(vdrv_needs_reset(f->d));
	close(sv[0]);
	vdrv_write(f->d, VIRTIO_MMIO_STATUS, 0);
	wait_end(f, &e, -ECONNRESET);
}

static void test_connection_flood_is_bounded(void **state)
{
	struct fixture *f = *state;
	unsigned int nr_answers = 0, nr_rst = 0;
	static struct end e = {0};
	int fd;

	/* Accepted, and never used: the host's half remains. */
	for (uint32_t port = 2000; port < 2000 + FLOOD; port++) {
		struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_REQUEST, 1, port);
		int sv[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
		f->accept = (struct vsock_accept){.rfd = sv[0], .wfd = sv[0]};
		f->nr_connects = 0;
		send_packet(f, &h, NULL);
		vdrv_run(f->d);
		if (!f->nr_connects)
			close(sv[0]);
		while (receive_now(f)) {
			nr_answers++;
			nr_rst += le16toh(f->h.op) == VIRTIO_VSOCK_OP_RST;
		}
		/* Not closed: the stream stays open. The process ends soon. */
		fcntl(sv[1], F_SETFD, FD_CLOEXEC);
	}
	assert_int_equal(nr_answers, FLOOD);
	assert_int_equal(nr_rst, FLOOD - VSOCK_STREAMS_MAX / 2);
	fd = open_stream(f, &e, NULL);
	send_data(f, "still here", 10);
	assert_read(fd, "still here");
	close(fd);
	vdrv_wait(f->d, &e.done);
	closefrom(20);
}

static void test_refusals_flood_is_bounded(void **state)
{
	struct fixture *f = *state;
	unsigned int nr = 0;

	/* Take the receive buffers away first. */
	vdrv_up(f->d, EVENT_IDX, 64);
	for (int i = 0; i < 5000; i++)
		send_op(f, VIRTIO_VSOCK_OP_RW, 0);
	give_rx(f, 64);
	vdrv_run(f->d);
	for (int round = 0; round < 5; round++) {
		while (receive_now(f)) {
			assert_int_equal(le16toh(f->h.op), VIRTIO_VSOCK_OP_RST);
			nr++;
		}
		vdrv_run(f->d);
	}
	assert_int_equal(nr, 128);
}

static void test_guest_that_does_not_answer(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(
		vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, &e, NULL), 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	wait_end(f, &e, -ETIMEDOUT);
	receive(f, VIRTIO_VSOCK_OP_RST);
	/* Too late. */
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	receive(f, VIRTIO_VSOCK_OP_RST);
	close(sv[0]);
}

/* The time of a guest that stands still does not run out; afterwards all of it is there again. */
static void test_paused_guest_that_does_not_answer(void **state)
{
	struct fixture *f = *state;
	struct end e = {0}, late = {0};
	uint64_t end;
	int sv[2], sv2[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv2), 0);
	assert_int_equal(
		vsock_connect(f->dev, HOST_PORT, GUEST_PORT, sv[1], sv[1], on_done, &e, NULL), 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	vsock_set_paused(f->dev, true);
	assert_int_equal(vsock_connect(f->dev, HOST_PORT + 1, GUEST_PORT, sv2[1], sv2[1], on_done,
				       &late, NULL),
			 0);
	receive(f, VIRTIO_VSOCK_OP_REQUEST);
	/* Twice the time that connecting may take. */
	end = util_now_ns() + 1000000000ull;
	while (util_now_ns() < end)
		assert_int_equal(loop_run_once(f->d->loop, 50), 0);
	assert_false(e.done || late.done);
	vsock_set_paused(f->dev, false);
	send_op(f, VIRTIO_VSOCK_OP_RESPONSE, 0);
	wait_end(f, &late, -ETIMEDOUT);
	receive(f, VIRTIO_VSOCK_OP_RST);
	assert_false(e.done);
	assert_int_equal(write(sv[0], "x", 1), 1);
	receive(f, VIRTIO_VSOCK_OP_RW);
	close(sv[0]);
	close(sv2[0]);
}

static void test_guest_that_never_closes(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	shutdown(fd, SHUT_WR);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	send_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_SEND);
	receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
	wait_end(f, &e, 0);
	close(fd);
	/* The ports stay in use until the guest is cut off. */
	assert_int_equal(vsock_connect(f->dev, HOST_PORT, GUEST_PORT, -1, -1, on_done, NULL, NULL),
			 -EADDRINUSE);
	receive(f, VIRTIO_VSOCK_OP_RST);
	vdrv_run(f->d);
	e = (struct end){0};
	fd = open_stream(f, &e, NULL);
	close(fd);
	vdrv_wait(f->d, &e.done);
}

/* Streams that only wait for the guest's last word give way to new ones. */
static void test_lingering_streams_give_way(void **state)
{
	struct fixture *f = *state;

	for (uint32_t i = 0; i < VSOCK_STREAMS_MAX + 50; i++) {
		struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_RESPONSE, i, 1);
		struct end e = {0};

		assert_int_equal(vsock_connect(f->dev, i, 1, -1, -1, on_done, &e, NULL), 0);
		receive(f, VIRTIO_VSOCK_OP_REQUEST);
		send_packet(f, &h, NULL);
		receive(f, VIRTIO_VSOCK_OP_SHUTDOWN);
		wait_end(f, &e, 0);
	}
}

static void test_reset_while_the_host_decides(void **state)
{
	struct fixture *f = *state;
	struct virtio_vsock_hdr h = packet(VIRTIO_VSOCK_OP_REQUEST, HOST_PORT, GUEST_PORT);
	static struct end e = {0};
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	f->accept = (struct vsock_accept){.rfd = sv[1], .wfd = sv[1], .done = on_done, .ctx = &e};
	f->reset_in_connect = true;
	memcpy(vdrv_ptr(f->d, f->tx_gpa), &h, HDR);
	assert_true(vdrv_add(f->d, TX, &(struct vdrv_buf){f->tx_gpa, HDR, false}, 1) >= 0);
	vdrv_kick(f->d, TX);
	wait_end(f, &e, -ECONNRESET);
	assert_read(sv[0], "");
	close(sv[0]);
}

/* --- a driver on another processor --------------------------------------------------------------- */

struct processor {
	struct fixture *f;
	bool stop; /* atomic, and so are the counts */
	unsigned int nr_answers, nr_starts;
};

static bool processor_goes_on(struct processor *p)
{
	return !__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE);
}

/* Answers a REQUEST as a guest with a listener would. */
static void processor_answer(struct processor *p, uint64_t rx_gpa)
{
	struct virtio_vsock_hdr h, answer;

	memcpy(&h, vdrv_ptr(p->f->d, rx_gpa), HDR);
	if (le16toh(h.op) != VIRTIO_VSOCK_OP_REQUEST)
		return;
	answer = packet(VIRTIO_VSOCK_OP_RESPONSE, le32toh(h.src_port), le32toh(h.dst_port));
	memcpy(vdrv_ptr(p->f->d, p->f->tx_gpa), &answer, HDR);
	if (vdrv_add(p->f->d, TX, &(struct vdrv_buf){p->f->tx_gpa, HDR, false}, 1) >= 0)
		vdrv_kick(p->f->d, TX);
	while (vdrv_used(p->f->d, TX, NULL) < 0 && processor_goes_on(p))
		sched_yield();
	__atomic_fetch_add(&p->nr_answers, 1, __ATOMIC_RELAXED);
}

/* Starts the device over again and again, and serves streams for some turns in between. */
static void *processor_main(void *ctx)
{
	struct processor *p = ctx;
	struct vdrv *d = p->f->d;
	const struct vdrv_buf rx = {p->f->rx_gpa[0], HDR + BUF, true};

	while (processor_goes_on(p)) {
		uint64_t turn_ends = util_now_ns() + 200000000;

		vdrv_up(d, EVENT_IDX, 64);
		/* A few packets, whenever they come; then the next start is in the middle of something. */
		for (unsigned int k = __atomic_fetch_add(&p->nr_starts, 1, __ATOMIC_RELAXED) % 4;
		     k < 4 && util_now_ns() < turn_ends; k++) {
			/* One buffer, so that nobody writes where this reads. */
			if (vdrv_add(d, RX, &rx, 1) < 0)
				break;
			vdrv_kick(d, RX);
			while (vdrv_used(d, RX, NULL) < 0 && util_now_ns() < turn_ends)
				sched_yield();
			if (util_now_ns() < turn_ends)
				processor_answer(p, rx.gpa);
		}
	}
	vdrv_write(d, VIRTIO_MMIO_STATUS, 0);
	return NULL;
}

static void test_resets_race_with_streams(void **state)
{
	enum { NR = 16 };
	struct fixture *f = *state;
	struct processor p = {.f = f};
	uint64_t deadline = util_now_ns() + VDRV_WAIT_MS * 1000000ull;
	static struct end e[NR] = {{0}};
	int fd[NR];
	unsigned int at = 0;
	pthread_t t;

	for (unsigned int i = 0; i < NR; i++)
		fd[i] = -1;
	vdrv_write(f->d, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(pthread_create(&t, NULL, processor_main, &p), 0);
	while (__atomic_load_n(&p.nr_answers, __ATOMIC_RELAXED) < 20 ||
	       __atomic_load_n(&p.nr_starts, __ATOMIC_RELAXED) < 20) {
		struct end *end = &e[at % NR];
		int *ours = &fd[at % NR], sv[2];

		assert_true(util_now_ns() < deadline);
		at++;
		if (*ours >= 0 && end->done) {
			close(*ours);
			*ours = -1;
		}
		if (*ours < 0) {
			*end = (struct end){0};
			assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
			if (vsock_connect(f->dev, at, 7, sv[1], sv[1], on_done, end, NULL))
				close(sv[0]);
			else
				*ours = sv[0];
		} else if (at % 3 == 0) {
			shutdown(*ours, SHUT_WR);
		} else {
			assert_true(send(*ours, "data", 4, MSG_DONTWAIT) <= 4);
		}
		assert_int_equal(loop_run_once(f->d->loop, 0), 0);
	}
	__atomic_store_n(&p.stop, true, __ATOMIC_RELEASE);
	pthread_join(t, NULL);
	/* Each owner hears of the end. */
	for (unsigned int i = 0; i < NR; i++) {
		if (fd[i] < 0)
			continue;
		vdrv_wait(f->d, &e[i].done);
		close(fd[i]);
	}
}

static void test_ports_in_use(void **state)
{
	struct fixture *f = *state;
	static struct end e = {0};
	int fd = open_stream(f, &e, NULL);

	assert_int_equal(vsock_connect(f->dev, HOST_PORT, GUEST_PORT, -1, -1, on_done, NULL, NULL),
			 -EADDRINUSE);
	close(fd);
	vdrv_wait(f->d, &e.done);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_config_and_ids),
		CASE(test_host_connects_and_bytes_go_both_ways),
		CASE(test_connection_refused),
		cmocka_unit_test_setup_teardown(test_no_driver_no_connection, set_up_down,
						tear_down),
		CASE(test_guest_connects),
		CASE(test_guest_is_refused),
		CASE(test_half_close_by_the_host),
		CASE(test_half_close_by_the_guest),
		CASE(test_one_way_streams_over_pipes),
		CASE(test_regular_file_is_a_source),
		CASE(test_a_stalled_reader_stalls_its_stream_only),
		CASE(test_credit_comes_back_as_it_is_consumed),
		CASE(test_over_credit_is_reset),
		CASE(test_peer_credit_arithmetic),
		CASE(test_no_busy_loop_without_receive_buffers),
		CASE(test_no_busy_loop_with_a_stalled_reader),
		CASE(test_data_before_a_reset_is_delivered),
		CASE(test_detach_tells_the_guest),
		CASE(test_device_reset_ends_streams),
		CASE(test_saved_streams_go_on),
		CASE(test_saved_streams_end),
		CASE(test_saved_streams_of_others),
		CASE(test_strangers_get_a_reset),
		CASE(test_wrong_packets_in_a_stream),
		CASE(test_data_after_shutdown),
		CASE(test_packets_that_lie_about_their_length),
		CASE(test_receive_buffers_too_small),
		CASE(test_connection_flood_is_bounded),
		CASE(test_refusals_flood_is_bounded),
		CASE(test_guest_that_does_not_answer),
		CASE(test_paused_guest_that_does_not_answer),
		CASE(test_guest_that_never_closes),
		CASE(test_lingering_streams_give_way),
		CASE(test_reset_while_the_host_decides),
		CASE(test_resets_race_with_streams),
		CASE(test_ports_in_use),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
