/* Unit tests of src/stream/dgrams: datagrams over a stream. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "dgrams.h"
#include "io.h"
#include "run_until.h"

#define TIMEOUT_NS 10000000000ull
#define LONGEST 65535
#define LAST 16

/* A stream whose other end the test has, and a pair of sockets that keep datagrams apart. */
struct fixture {
	struct loop *loop;
	struct dgrams *dgrams;
	int stream, udp, far;
	size_t lens[LAST], nr;
	uint8_t last[LONGEST];
	bool is_over;
};

static void on_datagram(void *ctx, const uint8_t *data, size_t len)
{
	struct fixture *f = ctx;

	assert_true(f->nr < LAST);
	f->lens[f->nr++] = len;
	memcpy(f->last, data, len);
}

static void on_end(void *ctx)
{
	struct fixture *f = ctx;

	f->is_over = true;
	dgrams_free(take_ptr(&f->dgrams));
}

static int set_up(void **state)
{
	static const struct dgrams_callbacks cb = {.on_datagram = on_datagram, .on_end = on_end};
	struct fixture *f = xcalloc(1, sizeof(*f));
	int udp[2];

	f->loop = loop_new();
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, udp), 0);
	f->udp = udp[0];
	f->far = udp[1];
	f->dgrams = dgrams_new(f->loop, &cb, f, &f->stream);
	assert_non_null(f->dgrams);
	assert_int_equal(io_set_nonblock(f->stream, false), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	dgrams_free(f->dgrams);
	loop_free(f->loop);
	cleanup_closep(&f->stream);
	cleanup_closep(&f->udp);
	cleanup_closep(&f->far);
	free(f);
	return 0;
}

static void settle(struct fixture *f)
{
	for (int i = 0; i < 10; i++)
		assert_int_equal(loop_run_once(f->loop, 0), 0);
}

/* However the stream cuts them. */
static void test_out_of_the_stream(void **state)
{
	static const uint8_t bytes[] = {0, 3, 'o', 'n', 'e', 0, 0, 0, 2, 'h', 'i'};
	struct fixture *f = *state;

	assert_int_equal(write(f->stream, bytes, sizeof(bytes)), sizeof(bytes));
	RUN_UNTIL(f, f->nr == 3);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		assert_int_equal(write(f->stream, bytes + i, 1), 1);
		settle(f);
	}
	assert_int_equal(f->nr, 6);
	for (size_t i = 0; i < 6; i += 3) {
		assert_int_equal(f->lens[i], 3);
		assert_int_equal(f->lens[i + 1], 0);
		assert_int_equal(f->lens[i + 2], 2);
	}
	assert_memory_equal(f->last, "hi", 2);
}

static void test_longest(void **state)
{
	struct fixture *f = *state;
	uint8_t *all = xmalloc(2 + LONGEST), *got = xmalloc(2 + LONGEST);

	memset(all, 'x', 2 + LONGEST);
	all[0] = all[1] = 0xff;
	all[2] = 'a';
	all[LONGEST + 1] = 'z';
	assert_int_equal(io_write_full(f->stream, all, 2 + LONGEST), 0);
	RUN_UNTIL(f, f->nr == 1);
	assert_int_equal(f->lens[0], LONGEST);
	assert_memory_equal(f->last, all + 2, LONGEST);

	assert_int_equal(send(f->far, all + 2, LONGEST, 0), LONGEST);
	assert_int_equal(dgrams_take(f->dgrams, f->udp), 0);
	for (size_t n = 0; n < 2 + LONGEST;) {
		ssize_t more = recv(f->stream, got + n, 2 + LONGEST - n, MSG_DONTWAIT);

		n += more > 0 ? (size_t)more : 0;
		settle(f);
	}
	assert_memory_equal(got, all, 2 + LONGEST);
	free(all);
	free(got);
}

/* A reader that stalls: datagrams are lost, none is cut or mixed with another. */
static void test_loses_what_does_not_fit(void **state)
{
	struct fixture *f = *state;
	uint8_t data[1024], got[2 + sizeof(data)];
	unsigned int taken = 0, come = 0;
	int size = 8192, last = -1;
	ssize_t n;

	assert_int_equal(setsockopt(f->stream, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
	for (; taken < 1000; taken++) {
		memset(data, (int)(taken % 251), sizeof(data));
		assert_int_equal(send(f->far, data, sizeof(data), 0), sizeof(data));
		assert_int_equal(dgrams_take(f->dgrams, f->udp), 0);
	}
	assert_int_equal(dgrams_take(f->dgrams, f->udp), -EAGAIN);
	while ((n = recv(f->stream, got, sizeof(got), MSG_WAITALL | MSG_DONTWAIT)) > 0) {
		assert_int_equal(n, sizeof(got));
		assert_int_equal(got[0] << 8 | got[1], sizeof(data));
		for (size_t i = 3; i < sizeof(got); i++)
			assert_int_equal(got[i], got[2]);
		assert_int_not_equal(got[2], last);
		last = got[2];
		come++;
		settle(f);
	}
	assert_in_range(come, 1, 999);
}

static void test_end(void **state)
{
	struct fixture *f = *state;

	/* Half a datagram is none. */
	assert_int_equal(write(f->stream, "\0\5hal", 5), 5);
	settle(f);
	assert_false(f->is_over);
	cleanup_closep(&f->stream);
	RUN_UNTIL(f, f->is_over);
	assert_int_equal(f->nr, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_out_of_the_stream, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_longest, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_loses_what_does_not_fit, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_end, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
