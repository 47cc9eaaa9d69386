/* Unit tests of src/stream/bridge: a stream between a socket and a pair of descriptors. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "bridge.h"
#include "cleanup.h"
#include "io.h"
#include "util.h"

#define LIMIT_MS 10000
#define NOT_YET 12345

/* The peer's end of the socket, and ours of what is joined to it. */
struct fixture {
	struct loop *loop;
	struct bridge *bridge;
	int peer, to_r, from_w;
	int result;
};

static void on_done(void *ctx, int err)
{
	((struct fixture *)ctx)->result = err;
}

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	int sock[2], r[2], w[2];

	signal(SIGPIPE, SIG_IGN);
	f->loop = loop_new();
	f->result = NOT_YET;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	assert_int_equal(pipe(r), 0);
	assert_int_equal(pipe(w), 0);
	f->peer = sock[1];
	f->to_r = r[1];
	f->from_w = w[0];
	io_set_nonblock(f->peer, true);
	io_set_nonblock(f->to_r, true);
	io_set_nonblock(f->from_w, true);
	f->bridge = bridge_new(f->loop, sock[0], r[0], w[1], on_done, f);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	if (f->result == NOT_YET)
		bridge_detach(f->bridge);
	cleanup_closep(&f->peer);
	cleanup_closep(&f->to_r);
	cleanup_closep(&f->from_w);
	loop_free(f->loop);
	free(f);
	return 0;
}

/* Reads len bytes, running the loop meanwhile; fewer at the end of file. */
static size_t take(struct fixture *f, int fd, char *data, size_t len)
{
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(fd, data + got, len - got);

		assert_true(util_now_ns() < deadline);
		if (!n)
			break;
		if (n > 0)
			got += (size_t)n;
		else
			assert_int_equal(errno, EAGAIN);
		loop_run_once(f->loop, 1);
	}
	return got;
}

static void assert_taken(struct fixture *f, int fd, const char *expected)
{
	char got[64] = "";

	assert_int_equal(take(f, fd, got, strlen(expected)), strlen(expected));
	assert_string_equal(got, expected);
}

static void assert_end(struct fixture *f, int fd)
{
	char byte;

	assert_int_equal(take(f, fd, &byte, 1), 0);
}

static void run_until_done(struct fixture *f)
{
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;

	while (f->result == NOT_YET) {
		assert_true(util_now_ns() < deadline);
		loop_run_once(f->loop, 10);
	}
}

static void put(int fd, const char *text)
{
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static void test_both_ways(void **state)
{
	struct fixture *f = *state;

	put(f->to_r, "out");
	put(f->peer, "in");
	assert_taken(f, f->peer, "out");
	assert_taken(f, f->from_w, "in");
	/* One direction ends, the other goes on. */
	cleanup_closep(&f->to_r);
	assert_end(f, f->peer);
	put(f->peer, "more");
	assert_taken(f, f->from_w, "more");
	assert_int_equal(f->result, NOT_YET);
	shutdown(f->peer, SHUT_WR);
	assert_end(f, f->from_w);
	run_until_done(f);
	assert_int_equal(f->result, 0);
}

static void test_peer_ends_first(void **state)
{
	struct fixture *f = *state;

	put(f->peer, "last");
	shutdown(f->peer, SHUT_WR);
	assert_taken(f, f->from_w, "last");
	assert_end(f, f->from_w);
	put(f->to_r, "still");
	assert_taken(f, f->peer, "still");
	cleanup_closep(&f->to_r);
	run_until_done(f);
	assert_int_equal(f->result, 0);
}

/* Every byte, in order, through pipes much smaller than what is sent. */
static void test_volume(void **state)
{
	const size_t len = 3u << 20;
	struct fixture *f = *state;
	cleanup_free uint32_t *sent = xmalloc(len);
	cleanup_free uint32_t *got = xmalloc(len);
	size_t out = 0, in = 0;
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;

	for (size_t i = 0; i < len / 4; i++)
		sent[i] = (uint32_t)(i * 2654435761u);
	while (in < len) {
		ssize_t n = write(f->to_r, (char *)sent + out, MIN(len - out, 50000));

		assert_true(util_now_ns() < deadline);
		out += n > 0 ? (size_t)n : 0;
		loop_run_once(f->loop, 0);
		n = read(f->peer, (char *)got + in, len - in);
		in += n > 0 ? (size_t)n : 0;
	}
	assert_memory_equal(sent, got, len);
}

/* A reader that stalls: a bounded part is taken from the peer, the processor rests, the rest comes later. */
static void test_stalled_reader(void **state)
{
	struct fixture *f = *state;
	char block[4096] = "";
	size_t sent = 0, got = 0;
	unsigned int rounds = 0;

	for (;;) {
		ssize_t n = write(f->peer, block, sizeof(block));

		loop_run_once(f->loop, 0);
		if (n > 0)
			sent += (size_t)n;
		else if (++rounds > 200)
			break;
	}
	assert_true(sent < (2u << 20));
	/* Nothing can be done, so nothing is: a round waits for its whole time. */
	uint64_t before = util_now_ns();

	loop_run_once(f->loop, 30);
	assert_true(util_now_ns() - before > 25 * 1000000ull);
	put(f->to_r, "other way");
	assert_taken(f, f->peer, "other way");
	shutdown(f->peer, SHUT_WR);
	while (got < sent) {
		size_t n = take(f, f->from_w, block, MIN(sizeof(block), sent - got));

		assert_true(n > 0);
		got += n;
	}
	assert_end(f, f->from_w);
}

static void test_reader_goes(void **state)
{
	struct fixture *f = *state;

	loop_run_once(f->loop, 0);
	cleanup_closep(&f->from_w);
	for (int i = 0; i < 5; i++)
		loop_run_once(f->loop, 10);
	/* The peer is told by what its next write says. */
	assert_int_equal(write(f->peer, "x", 1), -1);
	assert_int_equal(errno, EPIPE);
	cleanup_closep(&f->to_r);
	run_until_done(f);
	assert_int_equal(f->result, -EPIPE);
}

static void test_peer_goes(void **state)
{
	struct fixture *f = *state;

	cleanup_closep(&f->peer);
	assert_end(f, f->from_w);
	/* What writes into the other direction learns it with its next write but one. */
	put(f->to_r, "x");
	run_until_done(f);
	assert_int_equal(f->result, -EPIPE);
	assert_int_equal(write(f->to_r, "x", 1), -1);
	assert_int_equal(errno, EPIPE);
}

static void test_detach(void **state)
{
	struct fixture *f = *state;

	bridge_detach(f->bridge);
	assert_int_equal(f->result, -ECANCELED);
	assert_end(f, f->peer);
	assert_end(f, f->from_w);
}

/* One descriptor both ways, as the agent's ttrpc has it. */
static void test_one_descriptor(void **state)
{
	struct fixture f = {.loop = loop_new(), .result = NOT_YET};
	int sock[2], own[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, own), 0);
	io_set_nonblock(sock[1], true);
	io_set_nonblock(own[1], true);
	f.bridge = bridge_new(f.loop, sock[0], own[0], own[0], on_done, &f);
	put(own[1], "ask");
	assert_taken(&f, sock[1], "ask");
	put(sock[1], "answer");
	assert_taken(&f, own[1], "answer");
	shutdown(own[1], SHUT_WR);
	assert_end(&f, sock[1]);
	put(sock[1], "late");
	assert_taken(&f, own[1], "late");
	close(sock[1]);
	assert_end(&f, own[1]);
	run_until_done(&f);
	assert_int_equal(f.result, 0);
	close(own[1]);
	loop_free(f.loop);
}

static void test_one_direction(void **state)
{
	struct fixture f = {.loop = loop_new(), .result = NOT_YET};
	int sock[2], w[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	assert_int_equal(pipe(w), 0);
	io_set_nonblock(w[0], true);
	f.bridge = bridge_new(f.loop, sock[0], -1, w[1], on_done, &f);
	put(sock[1], "output");
	assert_taken(&f, w[0], "output");
	close(sock[1]);
	run_until_done(&f);
	assert_int_equal(f.result, 0);
	assert_end(&f, w[0]);
	close(w[0]);
	/* Neither: over at once, from the loop. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	f.result = NOT_YET;
	f.bridge = bridge_new(f.loop, sock[0], -1, -1, on_done, &f);
	assert_int_equal(f.result, NOT_YET);
	run_until_done(&f);
	assert_int_equal(f.result, 0);
	close(sock[1]);
	loop_free(f.loop);
}

/* Descriptors that epoll refuses: always ready. */
static void test_files(void **state)
{
	struct fixture f = {.loop = loop_new(), .result = NOT_YET};
	cleanup_free char *got = xmalloc(200000);
	int null = open("/dev/null", O_WRONLY), sock[2];
	char name[] = "/tmp/test-bridge-XXXXXX";
	int file = mkstemp(name);

	assert_true(file >= 0 && null >= 0);
	unlink(name);
	assert_int_equal(ftruncate(file, 200000), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	io_set_nonblock(sock[1], true);
	f.bridge = bridge_new(f.loop, sock[0], file, null, on_done, &f);
	put(sock[1], "into nothing");
	assert_int_equal(take(&f, sock[1], got, 200000), 200000);
	assert_end(&f, sock[1]);
	close(sock[1]);
	run_until_done(&f);
	assert_int_equal(f.result, 0);
	loop_free(f.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_both_ways, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_peer_ends_first, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_volume, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stalled_reader, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_reader_goes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_peer_goes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_detach, set_up, tear_down),
		cmocka_unit_test(test_one_descriptor),
		cmocka_unit_test(test_one_direction),
		cmocka_unit_test(test_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
