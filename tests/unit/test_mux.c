/*
 * Unit tests of src/stream: two multiplexers over a socket pair in one loop, and one against a hand-made
 * hostile peer.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "io.h"
#include "mux.h"
#include "mux_frame.h"
#include "run_until.h"

#define NOT_DONE 1000
#define TIMEOUT_NS 20000000000ull

struct side {
	struct mux *mux;
	char hello[MUX_HELLO_MAX + 1];
	int nr_hello;
	int broken; /* NOT_DONE, or the error */
	bool free_in_callback;
};

struct fix {
	struct loop *loop;
	struct side a, b;
	int raw; /* the channel's other end where a test plays the peer; -1 otherwise */
};

static void on_hello(void *ctx, const void *data, size_t len)
{
	struct side *s = ctx;

	s->nr_hello++;
	memcpy(s->hello, data, len);
	s->hello[len] = 0;
}

static void on_broken(void *ctx, int err)
{
	struct side *s = ctx;

	assert_int_equal(s->broken, NOT_DONE);
	s->broken = err;
	if (s->free_in_callback) {
		mux_free(s->mux);
		s->mux = NULL;
	}
}

static const struct mux_callbacks callbacks = {.on_hello = on_hello, .on_broken = on_broken};

static void on_done(void *ctx, int err)
{
	int *ret = ctx;

	assert_int_equal(*ret, NOT_DONE);
	*ret = err;
}

static struct fix *fix_new(bool raw)
{
	struct fix *f = xcalloc(1, sizeof(*f));
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	*f = (struct fix){.loop = loop_new(), .raw = -1};
	f->a.broken = f->b.broken = NOT_DONE;
	f->a.mux = mux_new(f->loop, sv[0], &callbacks, &f->a);
	if (raw)
		f->raw = sv[1];
	else
		f->b.mux = mux_new(f->loop, sv[1], &callbacks, &f->b);
	return f;
}

static int setup(void **state)
{
	*state = fix_new(false);
	return 0;
}

static int setup_raw(void **state)
{
	*state = fix_new(true);
	return 0;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	mux_free(f->a.mux);
	mux_free(f->b.mux);
	loop_free(f->loop);
	if (f->raw >= 0)
		close(f->raw);
	free(f);
	return 0;
}

/* Rounds until nothing happens any more; a loop that never rests fails the test. */
static void run_idle(struct fix *f)
{
	for (int i = 0; i < 100000; i++) {
		uint64_t before = util_now_ns();

		assert_int_equal(loop_run_once(f->loop, 20), 0);
		if (util_now_ns() - before >= 19000000)
			return;
	}
	fail_msg("the loop spins");
}

static void make_pipe(int p[2])
{
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
}

static void make_pair(int p[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
}

static bool is_closed(int fd)
{
	return fcntl(fd, F_GETFD) < 0 && errno == EBADF;
}

static int nr_open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 200; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static uint8_t pattern(size_t i)
{
	return (uint8_t)((i * 2654435761u) >> 13);
}

/* ---- a peer made by hand ---- */

static void raw_send(struct fix *f, uint32_t id, uint8_t type, const void *data, uint16_t len)
{
	uint8_t h[MUX_HEADER_LEN];
	struct mux_frame fr = {.stream = id, .type = type, .len = len};

	mux_frame_encode(&fr, h);
	assert_int_equal(io_write_full(f->raw, h, sizeof(h)), 0);
	assert_int_equal(io_write_full(f->raw, data, len), 0);
}

static void raw_u32(struct fix *f, uint32_t id, uint8_t type, uint32_t v)
{
	uint8_t p[4];

	mux_put_u32(p, v);
	raw_send(f, id, type, p, 4);
}

/* The next frame the mux sent; a payload of up to 4 bytes as number. */
static struct mux_frame raw_recv(struct fix *f, uint32_t *value)
{
	uint8_t h[MUX_HEADER_LEN], p[4] = {0};
	struct mux_frame fr = {0};

	RUN_UNTIL(f, poll(&(struct pollfd){.fd = f->raw, .events = POLLIN}, 1, 0) == 1);
	assert_int_equal(io_read_full(f->raw, h, sizeof(h)), sizeof(h));
	assert_int_equal(mux_frame_decode(h, &fr), 0);
	assert_true(fr.len <= sizeof(p));
	assert_int_equal(io_read_full(f->raw, p, fr.len), fr.len);
	if (value)
		*value = mux_get_u32(p);
	return fr;
}

/* ---- two ends ---- */

static void test_hello_arrives_once(void **state)
{
	struct fix *f = *state;
	char big[MUX_HELLO_MAX + 1] = {0};

	assert_int_equal(mux_send_hello(f->a.mux, big, sizeof(big)), -EMSGSIZE);
	assert_int_equal(mux_send_hello(f->a.mux, "agent 1", 7), 0);
	assert_int_equal(mux_send_hello(f->b.mux, "", 0), 0);
	RUN_UNTIL(f, f->b.nr_hello && f->a.nr_hello);
	assert_string_equal(f->b.hello, "agent 1");
	assert_string_equal(f->a.hello, "");
	/* A second one is a violation by the sender. */
	assert_int_equal(mux_send_hello(f->a.mux, "x", 1), 0);
	RUN_UNTIL(f, f->b.broken != NOT_DONE);
	assert_int_equal(f->b.broken, -EPROTO);
	assert_int_equal(f->b.nr_hello, 1);
}

/* data: written into a's rfd, read from b's wfd; then end of file travels. */
static void attach_either_order(struct fix *f, bool a_first)
{
	int in[2], out[2], done_a = NOT_DONE, done_b = NOT_DONE;
	char text[64];

	make_pipe(in);
	make_pipe(out);
	assert_int_equal(write(in[1], "hello ", 6), 6);
	if (a_first)
		assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, on_done, &done_a, NULL), 0);
	else
		assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done_b, NULL), 0);
	run_idle(f);
	if (!a_first)
		assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, on_done, &done_a, NULL), 0);
	else
		assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done_b, NULL), 0);
	run_idle(f);
	assert_int_equal(done_a, NOT_DONE);
	assert_int_equal(done_b, NOT_DONE);
	assert_int_equal(write(in[1], "world", 5), 5);
	close(in[1]);
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_a, 0);
	assert_int_equal(done_b, 0);
	assert_int_equal(io_read_full(out[0], text, sizeof(text)), 11);
	assert_memory_equal(text, "hello world", 11);
	close(out[0]);
}

static void test_attach_sender_first(void **state)
{
	attach_either_order(*state, true);
}

static void test_attach_receiver_first(void **state)
{
	attach_either_order(*state, false);
}

static void test_number_in_use_and_bad_arguments(void **state)
{
	struct fix *f = *state;
	int p[2], q[2], done = NOT_DONE;

	make_pipe(p);
	make_pipe(q);
	assert_int_equal(mux_attach(f->a.mux, 16, p[0], -1, on_done, &done, NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 16, q[0], q[1], on_done, &done, NULL), -EEXIST);
	assert_true(is_closed(q[0]) && is_closed(q[1]));
	make_pipe(q);
	assert_int_equal(mux_attach(f->a.mux, 0, q[0], q[1], on_done, &done, NULL), -EINVAL);
	assert_true(is_closed(q[0]) && is_closed(q[1]));
	assert_int_equal(mux_attach(f->a.mux, 17, 999, -1, on_done, &done, NULL), -EBADF);
	mux_free(f->a.mux);
	f->a.mux = NULL;
	assert_int_equal(done, -ECANCELED);
	close(p[1]);
}

static void test_10_mib_bit_exact_with_slow_reader(void **state)
{
	struct fix *f = *state;
	const size_t total = 10 << 20;
	size_t sent = 0, got = 0;
	int in[2], out[2], done_a = NOT_DONE, done_b = NOT_DONE;
	uint8_t buf[50000];

	make_pair(in);
	make_pipe(out);
	assert_int_equal(io_set_nonblock(in[1], true), 0);
	assert_int_equal(io_set_nonblock(out[0], true), 0);
	assert_int_equal(mux_attach(f->a.mux, 20, in[0], -1, on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 20, -1, out[1], on_done, &done_b, NULL), 0);
	for (uint64_t round = 0; got < total; round++) {
		ssize_t n;

		assert_true(round < 1000000);
		for (size_t i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(sent + i);
		n = sent < total ? write(in[1], buf, MIN(sizeof(buf), total - sent)) : 0;
		if (n > 0)
			sent += (size_t)n;
		if (sent == total && in[1] >= 0) {
			close(in[1]);
			in[1] = -1;
		}
		assert_int_equal(loop_run_once(f->loop, 0), 0);
		/* Takes odd amounts, and only every third round. */
		if (round % 3)
			continue;
		n = read(out[0], buf, 7 + (round * 977) % 40000);
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != pattern(got + (size_t)i))
				fail_msg("byte %zu differs", got + (size_t)i);
		if (n > 0)
			got += (size_t)n;
	}
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_a, 0);
	assert_int_equal(done_b, 0);
	assert_int_equal(read(out[0], buf, 1), 0);
	close(out[0]);
}

static void test_stalled_stream_leaves_others(void **state)
{
	struct fix *f = *state;
	int in1[2], out1[2], in2[2], out2[2];
	char buf[4096] = {0};
	size_t stalled = 0;
	ssize_t n;

	make_pair(in1);
	make_pipe(out1);
	make_pipe(in2);
	make_pipe(out2);
	assert_int_equal(io_set_nonblock(in1[1], true), 0);
	assert_int_equal(mux_attach(f->a.mux, 16, in1[0], -1, NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out1[1], NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 17, in2[0], -1, NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 17, -1, out2[1], NULL, NULL, NULL), 0);
	/* Fill stream 16 until nothing moves: its pipe, the window and the socket are full. */
	for (int quiet = 0; quiet < 3;) {
		n = write(in1[1], buf, sizeof(buf));
		if (n > 0) {
			stalled += (size_t)n;
			quiet = 0;
		} else {
			quiet++;
			run_idle(f);
		}
	}
	assert_true(stalled >= MUX_WINDOW);
	assert_true(stalled < MUX_WINDOW + (1 << 20));
	for (int i = 0; i < 100; i++) {
		char ping[16];

		snprintf(ping, sizeof(ping), "ping %3d", i);
		assert_int_equal(write(in2[1], ping, 8), 8);
		RUN_UNTIL(f, poll(&(struct pollfd){.fd = out2[0], .events = POLLIN}, 1, 0) == 1);
		memset(buf, 0, sizeof(buf));
		assert_int_equal(read(out2[0], buf, sizeof(buf)), 8);
		assert_memory_equal(buf, ping, 8);
	}
	/* Everything stands still: the loop must rest, not turn. */
	run_idle(f);
	close(in1[1]);
	close(in2[1]);
	close(out1[0]);
	close(out2[0]);
}

static void test_bulk_streams_share_fairly(void **state)
{
	struct fix *f = *state;
	int in[4], out[4][2];
	size_t got[4] = {0}, total = 0;
	char buf[65536];

	for (int i = 0; i < 4; i++) {
		in[i] = open("/dev/zero", O_RDONLY | O_CLOEXEC);
		make_pipe(out[i]);
		assert_int_equal(io_set_nonblock(out[i][0], true), 0);
		assert_int_equal(mux_attach(f->a.mux, 16 + i, in[i], -1, NULL, NULL, NULL), 0);
		assert_int_equal(mux_attach(f->b.mux, 16 + i, -1, out[i][1], NULL, NULL, NULL), 0);
	}
	while (total < (16 << 20)) {
		assert_int_equal(loop_run_once(f->loop, 50), 0);
		for (int i = 0; i < 4; i++) {
			ssize_t n = read(out[i][0], buf, sizeof(buf));

			if (n > 0) {
				got[i] += (size_t)n;
				total += (size_t)n;
			}
		}
	}
	for (int i = 0; i < 4; i++) {
		assert_true(got[i] > (3 << 20));
		close(out[i][0]);
	}
}

static void test_half_close_each_way(void **state)
{
	struct fix *f = *state;
	int a[2], b[2], done_a = NOT_DONE, done_b = NOT_DONE;
	char buf[16];

	make_pair(a);
	make_pair(b);
	assert_int_equal(mux_attach(f->a.mux, 16, a[0], a[0], on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, b[0], b[0], on_done, &done_b, NULL), 0);
	assert_int_equal(write(a[1], "req", 3), 3);
	shutdown(a[1], SHUT_WR);
	RUN_UNTIL(f, poll(&(struct pollfd){.fd = b[1], .events = POLLIN}, 1, 0) == 1);
	run_idle(f);
	assert_int_equal(read(b[1], buf, sizeof(buf)), 3);
	assert_int_equal(read(b[1], buf, sizeof(buf)), 0);
	assert_int_equal(done_a, NOT_DONE);
	/* The other way is still open. */
	assert_int_equal(write(b[1], "answer", 6), 6);
	run_idle(f);
	assert_int_equal(read(a[1], buf, sizeof(buf)), 6);
	close(b[1]);
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_a, 0);
	assert_int_equal(done_b, 0);
	assert_int_equal(read(a[1], buf, sizeof(buf)), 0);
	close(a[1]);
}

static void test_detach_ends_the_other_side(void **state)
{
	struct fix *f = *state;
	struct mux_stream *s;
	int a[2], b[2], done_a = NOT_DONE, done_b = NOT_DONE;
	char buf[4];

	make_pair(a);
	make_pair(b);
	assert_int_equal(mux_attach(f->a.mux, 16, a[0], a[0], on_done, &done_a, &s), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, b[0], b[0], on_done, &done_b, NULL), 0);
	run_idle(f);
	/* In flight when the other side hears of the end. */
	assert_int_equal(write(b[1], "late", 4), 4);
	mux_detach(s);
	assert_int_equal(done_a, -ECANCELED);
	assert_int_equal(read(a[1], buf, sizeof(buf)), 0);
	RUN_UNTIL(f, done_b != NOT_DONE);
	assert_true(done_b == -ECONNRESET || done_b == -EPIPE);
	run_idle(f);
	assert_int_equal(f->a.broken, NOT_DONE);
	assert_int_equal(f->b.broken, NOT_DONE);
	close(a[1]);
	close(b[1]);
}

static void test_detach_before_the_peer_attaches(void **state)
{
	struct fix *f = *state;
	struct mux_stream *s;
	int a[2], b[2], done_a = NOT_DONE, done_b = NOT_DONE;
	char buf[4];

	make_pair(a);
	make_pair(b);
	assert_int_equal(mux_attach(f->a.mux, 16, a[0], a[0], on_done, &done_a, &s), 0);
	run_idle(f);
	mux_detach(s);
	run_idle(f);
	assert_int_equal(mux_attach(f->b.mux, 16, b[0], b[0], on_done, &done_b, NULL), 0);
	assert_int_equal(done_b, NOT_DONE); /* never from inside */
	RUN_UNTIL(f, done_b != NOT_DONE);
	assert_int_equal(done_b, -ECONNRESET);
	assert_int_equal(read(b[1], buf, sizeof(buf)), 0);
	close(a[1]);
	close(b[1]);
}

static void test_empty_input_ends_before_the_peer_attaches(void **state)
{
	struct fix *f = *state;
	int out[2], done_a = NOT_DONE, done_b = NOT_DONE;
	char c;

	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, -1, on_done, &done_a, NULL), 0);
	RUN_UNTIL(f, done_a != NOT_DONE);
	assert_int_equal(done_a, 0);
	run_idle(f);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done_b, NULL), 0);
	RUN_UNTIL(f, done_b != NOT_DONE);
	assert_int_equal(done_b, 0);
	assert_int_equal(read(out[0], &c, 1), 0);
	close(out[0]);
}

static void test_reader_gone_stops_the_sender(void **state)
{
	struct fix *f = *state;
	int in[2], out[2], done_a = NOT_DONE, done_b = NOT_DONE;

	make_pipe(in);
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done_b, NULL), 0);
	run_idle(f);
	/* Nothing is being sent: the loss is seen all the same. */
	close(out[0]);
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_b, -EPIPE);
	assert_int_equal(done_a, -EPIPE);
	assert_int_equal(write(in[1], "x", 1), -1);
	assert_int_equal(errno, EPIPE);
	assert_int_equal(f->a.broken, NOT_DONE);
	close(in[1]);
}

static void test_reader_gone_with_data_waiting(void **state)
{
	struct fix *f = *state;
	int out[2], zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	int done_a = NOT_DONE, done_b = NOT_DONE;

	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, zero, -1, on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done_b, NULL), 0);
	run_idle(f);
	assert_int_equal(done_b, NOT_DONE);
	close(out[0]);
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_b, -EPIPE);
	assert_int_equal(done_a, -EPIPE);
}

static void test_files_and_dev_null(void **state)
{
	struct fix *f = *state;
	char path[] = "/tmp/test_mux_XXXXXX";
	cleanup_close int file = mkstemp(path);
	int null_r = open("/dev/null", O_RDWR | O_CLOEXEC), rfd;
	int done_a = NOT_DONE, done_b = NOT_DONE, out = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	cleanup_close int check = dup(out);
	const size_t len = 1000003;
	uint8_t *data = xmalloc(len), *back = xmalloc(len);

	for (size_t i = 0; i < len; i++)
		data[i] = pattern(i);
	assert_int_equal(io_write_full(file, data, len), 0);
	rfd = open(path, O_RDONLY | O_CLOEXEC);
	unlink(path);
	assert_int_equal(mux_attach(f->a.mux, 16, rfd, null_r, on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, open("/dev/null", O_RDONLY | O_CLOEXEC), out,
				    on_done, &done_b, NULL),
			 0);
	RUN_UNTIL(f, done_a != NOT_DONE && done_b != NOT_DONE);
	assert_int_equal(done_a, 0);
	assert_int_equal(done_b, 0);
	assert_int_equal(lseek(check, 0, SEEK_END), len);
	assert_int_equal(pread(check, back, len, 0), len);
	assert_memory_equal(data, back, len);
	free(data);
	free(back);
}

static void test_read_and_write_errors_travel(void **state)
{
	struct fix *f = *state;
	int in[2], out[2], done[4] = {NOT_DONE, NOT_DONE, NOT_DONE, NOT_DONE};
	char c;

	/* A source that cannot be read. */
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, open("/", O_RDONLY | O_CLOEXEC), -1, on_done,
				    &done[0], NULL),
			 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], on_done, &done[1], NULL), 0);
	/* A file system that is full. */
	make_pipe(in);
	assert_int_equal(write(in[1], "data", 4), 4);
	assert_int_equal(mux_attach(f->a.mux, 17, in[0], -1, on_done, &done[2], NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 17, -1, open("/dev/full", O_WRONLY | O_CLOEXEC),
				    on_done, &done[3], NULL),
			 0);
	RUN_UNTIL(f, done[0] != NOT_DONE && done[1] != NOT_DONE && done[2] != NOT_DONE &&
			     done[3] != NOT_DONE);
	assert_int_equal(done[0], -EISDIR);
	assert_int_equal(done[1], -ECONNRESET);
	assert_int_equal(read(out[0], &c, 1), 0);
	assert_int_equal(done[2], -EPIPE);
	assert_int_equal(done[3], -ENOSPC);
	close(in[1]);
	close(out[0]);
}

static void test_terminal_hangup_is_end_of_file(void **state)
{
	struct fix *f = *state;
	int master, slave, end[2], done_a = NOT_DONE, done_b = NOT_DONE;
	static char big[100000];
	char buf[64];

	assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
	make_pair(end);
	assert_int_equal(mux_attach(f->a.mux, 16, master, dup(master), on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, end[0], end[0], on_done, &done_b, NULL), 0);
	assert_int_equal(write(slave, "out", 3), 3);
	assert_int_equal(write(end[1], "in\n", 3), 3);
	RUN_UNTIL(f, poll(&(struct pollfd){.fd = slave, .events = POLLIN}, 1, 0) == 1);
	assert_int_equal(read(slave, buf, sizeof(buf)), 3);
	close(slave);
	run_idle(f); /* a hung-up terminal reports it for ever: no spinning */
	assert_int_equal(recv(end[1], buf, sizeof(buf), 0), 7);
	assert_memory_equal(buf, "outin\r\n", 7);
	assert_int_equal(read(end[1], buf, sizeof(buf)), 0);
	assert_int_equal(done_a, NOT_DONE);
	/* What is typed now meets nobody; the terminal takes some of it all the same. */
	assert_int_equal(io_write_full(end[1], big, sizeof(big)), 0);
	RUN_UNTIL(f, done_a != NOT_DONE);
	assert_int_equal(done_a, -EIO);
	RUN_UNTIL(f, done_b != NOT_DONE);
	assert_int_equal(done_b, -EPIPE);
	close(end[1]);
}

static void test_fifo_without_writer_is_not_end_of_file(void **state)
{
	struct fix *f = *state;
	char path[] = "/tmp/test_mux_fifo_XXXXXX";
	int r, w, out[2], done_a = NOT_DONE;
	char buf[8];

	close(mkstemp(path));
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	r = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, r, -1, on_done, &done_a, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], NULL, NULL, NULL), 0);
	run_idle(f);
	assert_int_equal(done_a, NOT_DONE);
	w = open(path, O_WRONLY | O_CLOEXEC);
	unlink(path);
	assert_int_equal(write(w, "abc", 3), 3);
	close(w);
	RUN_UNTIL(f, done_a != NOT_DONE);
	assert_int_equal(done_a, 0);
	run_idle(f);
	assert_int_equal(io_read_full(out[0], buf, sizeof(buf)), 3);
	close(out[0]);
}

static void test_hangup_on_a_stream_without_credit_rests(void **state)
{
	struct fix *f = *state;
	int in[2], done = NOT_DONE;

	make_pipe(in);
	assert_int_equal(write(in[1], "x", 1), 1);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, on_done, &done, NULL), 0);
	close(in[1]); /* EPOLLHUP for ever, and nobody to send to */
	run_idle(f);
	assert_int_equal(done, NOT_DONE);
	mux_free(f->a.mux);
	f->a.mux = NULL;
	assert_int_equal(done, -ECANCELED);
}

static void test_channel_end_ends_every_stream(void **state)
{
	struct fix *f = *state;
	int in[2], out[2], done[3] = {NOT_DONE, NOT_DONE, NOT_DONE}, fds = nr_open_fds();
	struct mux_stream *s;

	make_pipe(in);
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, on_done, &done[0], &s), 0);
	assert_int_equal(mux_attach(f->a.mux, 17, -1, out[1], on_done, &done[1], NULL), 0);
	run_idle(f);
	f->a.free_in_callback = true;
	mux_free(f->b.mux);
	f->b.mux = NULL;
	RUN_UNTIL(f, f->a.broken != NOT_DONE);
	assert_int_equal(f->a.broken, -EPIPE);
	assert_null(f->a.mux);
	assert_int_equal(done[0], -EPIPE);
	assert_int_equal(done[1], -EPIPE);
	close(in[1]);
	close(out[0]);
	assert_int_equal(nr_open_fds(), fds - 2); /* both channel ends */
}

static void test_last_words_before_channel_end_are_delivered(void **state)
{
	struct fix *f = *state;
	int in[2], out[2], done_in = NOT_DONE, done_out = NOT_DONE;
	char text[8];

	make_pipe(in);
	make_pipe(out);
	assert_int_equal(write(in[1], "unheard", 7), 7);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, out[1], on_done, &done_out, NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 17, in[0], -1, on_done, &done_in, NULL), 0);
	run_idle(f);
	raw_u32(f, 17, MUX_OPEN, 100);
	raw_u32(f, 16, MUX_OPEN, 0);
	raw_send(f, 16, MUX_DATA, "bye", 3);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	/* The peer reads nothing any more: writing fails, what it said still counts. */
	shutdown(f->raw, SHUT_RD);
	assert_int_equal(mux_send_hello(f->a.mux, "late", 4), 0);
	RUN_UNTIL(f, f->a.broken != NOT_DONE);
	assert_int_equal(f->a.broken, -EPIPE);
	assert_int_equal(done_out, 0);
	assert_int_equal(done_in, -EPIPE);
	assert_int_equal(io_read_full(out[0], text, sizeof(text)), 3);
	assert_memory_equal(text, "bye", 3);
	assert_int_equal(mux_attach(f->a.mux, 18, -1, -1, NULL, NULL, NULL), -EPIPE);
	close(out[0]);
	close(in[1]);
}

struct detach_other {
	struct mux_stream *other;
	int err;
};

static void detach_other(void *ctx, int err)
{
	struct detach_other *d = ctx;

	d->err = err;
	if (d->other)
		mux_detach(d->other);
}

static void test_callback_may_detach_another(void **state)
{
	struct fix *f = *state;
	int in[2], in2[2], done = NOT_DONE;
	struct detach_other d = {.err = NOT_DONE};

	make_pipe(in);
	make_pipe(in2);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, detach_other, &d, NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 17, in2[0], -1, on_done, &done, &d.other), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, -1, NULL, NULL, NULL), 0);
	RUN_UNTIL(f, d.err != NOT_DONE);
	assert_int_equal(d.err, -EPIPE);
	assert_int_equal(done, -ECANCELED);
	close(in[1]);
	close(in2[1]);
}

static void test_numbers_and_memory_do_not_run_out(void **state)
{
	struct fix *f = *state;
	int fds = nr_open_fds();

	/* Three times MUX_STREAMS_MAX lives, of every kind. */
	for (uint32_t id = 16; id < 16 + 3 * MUX_STREAMS_MAX; id++) {
		int done_a = NOT_DONE, done_b = NOT_DONE;
		struct mux_stream *s;

		assert_int_equal(mux_attach(f->a.mux, id, -1, -1, on_done, &done_a, &s), 0);
		if (id % 3 == 0)
			mux_detach(s);
		if (id % 3 != 1)
			assert_int_equal(mux_attach(f->b.mux, id, -1, -1, on_done, &done_b, NULL),
					 0);
		RUN_UNTIL(f, done_a != NOT_DONE && (id % 3 == 1 || done_b != NOT_DONE));
	}
	run_idle(f);
	assert_int_equal(nr_open_fds(), fds);
	assert_int_equal(f->a.broken, NOT_DONE);
	assert_int_equal(f->b.broken, NOT_DONE);
}

static void test_too_many_streams_is_enospc(void **state)
{
	struct fix *f = *state;

	/* Over at once here; but the peer, who says nothing, may still send on each. */
	for (uint32_t i = 0; i < MUX_STREAMS_MAX; i++)
		assert_int_equal(mux_attach(f->a.mux, 16 + i, -1, -1, NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 15, -1, -1, NULL, NULL, NULL), -ENOSPC);
	assert_int_equal(fcntl(f->raw, F_SETFL, O_NONBLOCK), 0);
	run_idle(f);
	raw_u32(f, 16, MUX_OPEN, 0);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	run_idle(f);
	assert_int_equal(mux_attach(f->a.mux, 15, -1, -1, NULL, NULL, NULL), 0);
}

static void test_throughput(void **state)
{
	struct fix *f = *state;
	const size_t total = 100 << 20;
	size_t got = 0;
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), out[2];
	struct rusage before, after;
	static char buf[256 * 1024];
	double cpu;

	make_pair(out);
	assert_int_equal(io_set_nonblock(out[0], true), 0);
	assert_int_equal(mux_attach(f->a.mux, 16, zero, -1, NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->b.mux, 16, -1, out[1], NULL, NULL, NULL), 0);
	getrusage(RUSAGE_SELF, &before);
	while (got < total) {
		ssize_t n;

		assert_int_equal(loop_run_once(f->loop, 50), 0);
		n = read(out[0], buf, sizeof(buf));
		if (n > 0)
			got += (size_t)n;
	}
	getrusage(RUSAGE_SELF, &after);
	cpu = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
	      (double)(after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
	      (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec) / 1e6 +
	      (double)(after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6;
	print_message("# 100 MiB through both ends: %.3f s of CPU\n", cpu);
	/* Far above what it takes, also under sanitizers: catches per-byte work and spinning. */
	assert_true(cpu < 10.0);
	close(out[0]);
}

/* ---- hostile peer ---- */

static void expect_violation(void **state)
{
	struct fix *f = *state;

	RUN_UNTIL(f, f->a.broken != NOT_DONE);
	assert_int_equal(f->a.broken, -EPROTO);
}

static void test_malformed_headers(void **state)
{
	static const uint8_t bad[][MUX_HEADER_LEN] = {
		{16, 0, 0, 0, 0, 0, 0, 0},	    /* no such type */
		{16, 0, 0, 0, 8, 0, 0, 0},	    /* no such type */
		{16, 0, 0, 0, MUX_FIN, 1, 0, 0},    /* reserved */
		{16, 0, 0, 0, MUX_FIN, 0, 1, 0},    /* FIN with payload */
		{16, 0, 0, 0, MUX_OPEN, 0, 3, 0},   /* short credit */
		{16, 0, 0, 0, MUX_DATA, 0, 0, 0},   /* empty data */
		{16, 0, 0, 0, MUX_DATA, 0, 1, 128}, /* 32 KiB + 1 */
		{16, 0, 0, 0, MUX_HELLO, 0, 0, 0},  /* hello on a stream */
		{0, 0, 0, 0, MUX_HELLO, 0, 1, 1},   /* hello too long */
		{0, 0, 0, 0, MUX_FIN, 0, 0, 0},	    /* stream 0 */
	};
	uint8_t good[MUX_HEADER_LEN];
	struct mux_frame ret, fr = {.stream = 0x12345678, .type = MUX_DATA, .len = 32768};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(mux_frame_decode(bad[i], &ret), -EPROTO);
	mux_frame_encode(&fr, good);
	assert_memory_equal(good, "\x78\x56\x34\x12\x04\x00\x00\x80", 8);
	assert_int_equal(mux_frame_decode(good, &ret), 0);
	assert_int_equal(ret.stream, 0x12345678);
	assert_int_equal(ret.len, 32768);
}

static void test_garbage_breaks_the_channel(void **state)
{
	struct fix *f = *state;

	assert_int_equal(io_write_full(f->raw, "GET / HTTP/1.1\r\n", 16), 0);
	expect_violation(state);
}

static void test_data_without_stream(void **state)
{
	raw_send(*state, 16, MUX_DATA, "x", 1);
	expect_violation(state);
}

static void test_data_before_credit(void **state)
{
	raw_u32(*state, 16, MUX_OPEN, MUX_WINDOW);
	raw_send(*state, 16, MUX_DATA, "x", 1);
	expect_violation(state);
}

static void test_data_over_credit(void **state)
{
	struct fix *f = *state;
	static uint8_t block[MUX_PAYLOAD_MAX];
	int out[2], done = NOT_DONE;
	uint32_t credit;

	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, out[1], on_done, &done, NULL), 0);
	assert_int_equal(raw_recv(f, &credit).type, MUX_OPEN);
	assert_int_equal(credit, MUX_WINDOW);
	raw_u32(f, 16, MUX_OPEN, 0);
	/* The pipe takes 64 KiB: less than half a window, so nothing is granted again. */
	for (size_t sent = 0; sent < MUX_WINDOW; sent += sizeof(block)) {
		raw_send(f, 16, MUX_DATA, block, sizeof(block));
		run_idle(f);
	}
	assert_int_equal(f->a.broken, NOT_DONE);
	raw_send(f, 16, MUX_DATA, "x", 1);
	expect_violation(state);
	assert_int_equal(done, -EPROTO);
	close(out[0]);
}

static void test_data_after_fin(void **state)
{
	struct fix *f = *state;
	int out[2];

	make_pair(out);
	assert_int_equal(mux_attach(f->a.mux, 16, out[1], out[1], NULL, NULL, NULL), 0);
	raw_u32(f, 16, MUX_OPEN, 0);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	raw_send(f, 16, MUX_DATA, "x", 1);
	expect_violation(state);
	close(out[0]);
}

static void test_fin_twice(void **state)
{
	struct fix *f = *state;

	raw_u32(f, 16, MUX_OPEN, 0);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	expect_violation(state);
}

static void test_open_twice(void **state)
{
	raw_u32(*state, 16, MUX_OPEN, 5);
	raw_u32(*state, 16, MUX_OPEN, 5);
	expect_violation(state);
}

static void test_credit_overflow(void **state)
{
	raw_u32(*state, 16, MUX_OPEN, INT32_MAX);
	raw_u32(*state, 16, MUX_WINDOW_MORE, 1);
	expect_violation(state);
}

static void test_too_many_pending(void **state)
{
	struct fix *f = *state;

	for (uint32_t i = 0; i < MUX_STREAMS_MAX; i++) {
		raw_u32(f, 16 + i, MUX_OPEN, 1);
		loop_run_once(f->loop, 0);
	}
	run_idle(f);
	assert_int_equal(f->a.broken, NOT_DONE);
	raw_u32(f, 16 + MUX_STREAMS_MAX, MUX_OPEN, 1);
	expect_violation(state);
}

static void test_sends_and_never_reads(void **state)
{
	struct fix *f = *state;

	/* Every opened and reset number must be answered; the answers pile up. */
	assert_int_equal(io_set_nonblock(f->raw, false), 0);
	for (uint32_t id = 16; f->a.broken == NOT_DONE; id++) {
		assert_true(id < 1000000);
		raw_u32(f, id, MUX_OPEN, 1);
		raw_send(f, id, MUX_RESET, NULL, 0);
		loop_run_once(f->loop, 0);
	}
	assert_int_equal(f->a.broken, -EPROTO);
}

static void test_data_after_detach_is_dropped(void **state)
{
	struct fix *f = *state;
	struct mux_stream *s;
	int p[2], done = NOT_DONE;

	make_pipe(p);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, p[1], on_done, &done, &s), 0);
	assert_int_equal(raw_recv(f, NULL).type, MUX_OPEN);
	assert_int_equal(raw_recv(f, NULL).type, MUX_FIN);
	raw_u32(f, 16, MUX_OPEN, 0);
	raw_send(f, 16, MUX_DATA, "one", 3);
	run_idle(f);
	mux_detach(s);
	assert_int_equal(done, -ECANCELED);
	/* Its RESET already had a FIN for it: only STOP is left to say. */
	assert_int_equal(raw_recv(f, NULL).type, MUX_STOP);
	raw_send(f, 16, MUX_DATA, "two", 3);
	raw_u32(f, 16, MUX_WINDOW_MORE, 5);
	run_idle(f);
	assert_int_equal(f->a.broken, NOT_DONE);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, -1, NULL, NULL, NULL), -EEXIST);
	raw_send(f, 16, MUX_RESET, NULL, 0);
	/* Crossing frames of a stream that is over are not a violation... */
	raw_u32(f, 16, MUX_WINDOW_MORE, 5);
	raw_send(f, 16, MUX_STOP, NULL, 0);
	run_idle(f);
	assert_int_equal(f->a.broken, NOT_DONE);
	/* ...data is. */
	raw_send(f, 16, MUX_DATA, "x", 1);
	expect_violation(state);
	close(p[0]);
}

static void test_what_the_peer_did_before_attach_counts(void **state)
{
	struct fix *f = *state;
	int in[2], out[2], done[3] = {NOT_DONE, NOT_DONE, NOT_DONE};
	char c;

	/* End of file only: wfd is closed, rfd goes on. */
	raw_u32(f, 16, MUX_OPEN, 10);
	raw_send(f, 16, MUX_FIN, NULL, 0);
	/* STOP only: rfd is closed. */
	raw_u32(f, 17, MUX_OPEN, 0);
	raw_send(f, 17, MUX_STOP, NULL, 0);
	/* Both: the number is over, and answered. */
	raw_u32(f, 18, MUX_OPEN, 0);
	raw_send(f, 18, MUX_STOP, NULL, 0);
	raw_send(f, 18, MUX_FIN, NULL, 0);
	run_idle(f);
	assert_int_equal(raw_recv(f, NULL).type, MUX_RESET);
	make_pair(in);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], in[0], on_done, &done[0], NULL), 0);
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 17, out[0], -1, on_done, &done[1], NULL), 0);
	assert_int_equal(mux_attach(f->a.mux, 18, open("/dev/zero", O_RDONLY | O_CLOEXEC), -1,
				    on_done, &done[2], NULL),
			 0);
	RUN_UNTIL(f, done[1] != NOT_DONE && done[2] != NOT_DONE);
	assert_int_equal(done[1], -EPIPE);
	assert_int_equal(done[2], -EPIPE);
	assert_int_equal(read(in[1], &c, 1), 0);
	assert_int_equal(done[0], NOT_DONE);
	close(in[1]);
	RUN_UNTIL(f, done[0] != NOT_DONE);
	assert_int_equal(done[0], 0);
	close(out[1]);
}

static void test_a_number_cut_off_may_start_anew(void **state)
{
	struct fix *f = *state;
	int out[2];
	char buf[4];

	raw_u32(f, 16, MUX_OPEN, 10);
	raw_send(f, 16, MUX_RESET, NULL, 0);
	run_idle(f);
	assert_int_equal(raw_recv(f, NULL).type, MUX_RESET);
	raw_u32(f, 16, MUX_OPEN, 10);
	run_idle(f);
	make_pipe(out);
	assert_int_equal(mux_attach(f->a.mux, 16, -1, out[1], NULL, NULL, NULL), 0);
	raw_send(f, 16, MUX_DATA, "new", 3);
	run_idle(f);
	assert_int_equal(read(out[0], buf, sizeof(buf)), 3);
	close(out[0]);
}

static void test_credit_is_respected(void **state)
{
	struct fix *f = *state;
	int in[2];
	uint8_t h[MUX_HEADER_LEN + 8];
	struct mux_frame fr = {0};

	make_pipe(in);
	assert_int_equal(write(in[1], "abcdefgh", 8), 8);
	assert_int_equal(mux_attach(f->a.mux, 16, in[0], -1, NULL, NULL, NULL), 0);
	assert_int_equal(raw_recv(f, NULL).type, MUX_OPEN);
	assert_int_equal(raw_recv(f, NULL).type, MUX_STOP);
	run_idle(f);
	assert_int_equal(poll(&(struct pollfd){.fd = f->raw, .events = POLLIN}, 1, 0), 0);
	raw_u32(f, 16, MUX_OPEN, 3);
	run_idle(f);
	assert_int_equal(recv(f->raw, h, sizeof(h), MSG_DONTWAIT), MUX_HEADER_LEN + 3);
	assert_int_equal(mux_frame_decode(h, &fr), 0);
	assert_int_equal(fr.type, MUX_DATA);
	assert_memory_equal(h + MUX_HEADER_LEN, "abc", 3);
	raw_u32(f, 16, MUX_WINDOW_MORE, 100);
	run_idle(f);
	assert_int_equal(recv(f->raw, h, sizeof(h), MSG_DONTWAIT), MUX_HEADER_LEN + 5);
	assert_memory_equal(h + MUX_HEADER_LEN, "defgh", 5);
	close(in[1]);
}

int main(void)
{
#define ENDS(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
#define RAW(t) cmocka_unit_test_setup_teardown(t, setup_raw, teardown)
	const struct CMUnitTest tests[] = {
		ENDS(test_hello_arrives_once),
		ENDS(test_attach_sender_first),
		ENDS(test_attach_receiver_first),
		ENDS(test_number_in_use_and_bad_arguments),
		ENDS(test_10_mib_bit_exact_with_slow_reader),
		ENDS(test_stalled_stream_leaves_others),
		ENDS(test_bulk_streams_share_fairly),
		ENDS(test_half_close_each_way),
		ENDS(test_detach_ends_the_other_side),
		ENDS(test_detach_before_the_peer_attaches),
		ENDS(test_empty_input_ends_before_the_peer_attaches),
		ENDS(test_reader_gone_stops_the_sender),
		ENDS(test_reader_gone_with_data_waiting),
		ENDS(test_files_and_dev_null),
		ENDS(test_read_and_write_errors_travel),
		ENDS(test_terminal_hangup_is_end_of_file),
		ENDS(test_fifo_without_writer_is_not_end_of_file),
		ENDS(test_hangup_on_a_stream_without_credit_rests),
		ENDS(test_channel_end_ends_every_stream),
		RAW(test_last_words_before_channel_end_are_delivered),
		ENDS(test_callback_may_detach_another),
		ENDS(test_numbers_and_memory_do_not_run_out),
		RAW(test_too_many_streams_is_enospc),
		ENDS(test_throughput),
		RAW(test_malformed_headers),
		RAW(test_garbage_breaks_the_channel),
		RAW(test_data_without_stream),
		RAW(test_data_before_credit),
		RAW(test_data_over_credit),
		RAW(test_data_after_fin),
		RAW(test_fin_twice),
		RAW(test_open_twice),
		RAW(test_credit_overflow),
		RAW(test_too_many_pending),
		RAW(test_sends_and_never_reads),
		RAW(test_data_after_detach_is_dropped),
		RAW(test_what_the_peer_did_before_attach_counts),
		RAW(test_a_number_cut_off_may_start_anew),
		RAW(test_credit_is_respected),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("mux", tests, NULL, NULL);
}
