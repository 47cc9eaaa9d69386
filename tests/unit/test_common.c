/* Unit tests of src/common: buf, err, log escaping, loop, io. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "buf.h"
#include "cleanup.h"
#include "err.h"
#include "io.h"
#include "log.h"
#include "loop.h"
#include "sha256.h"

static void test_buf_grows_to_max_and_no_further(void **state)
{
	struct buf b;
	uint8_t chunk[100];

	memset(chunk, 7, sizeof(chunk));
	buf_init(&b, 1000);
	for (int i = 0; i < 10; i++)
		assert_int_equal(buf_append(&b, chunk, sizeof(chunk)), 0);
	assert_int_equal(buf_append(&b, chunk, 1), -ENOBUFS);
	assert_int_equal(b.len, 1000);
	buf_consume(&b, 950);
	assert_int_equal(buf_append(&b, chunk, 100), 0);
	assert_int_equal(b.len, 150);
	assert_int_equal(buf_head(&b)[149], 7);
	buf_done(&b);
}

static void test_err_set_and_wrap(void **state)
{
	struct err e = {0};

	assert_int_equal(err_set(&e, -ENOENT, "open '%s'", "x"), -ENOENT);
	assert_string_equal(e.msg, "open 'x': No such file or directory");
	assert_int_equal(err_wrap(&e, "start %s", "c1"), -ENOENT);
	assert_string_equal(e.msg, "start c1: open 'x': No such file or directory");
	assert_int_equal(err_set(NULL, -EPERM, "x"), -EPERM);
}

static void test_log_cannot_be_forged(void **state)
{
	int p[2];
	char line[4096];
	ssize_t n;

	assert_int_equal(pipe(p), 0);
	log_init(p[1], LOG_LEVEL_INFO, "c1");
	log_info("test", "a\nb\"c\x1b[31m");
	log_dbg("test", "not shown");
	log_init(STDERR_FILENO, LOG_LEVEL_INFO, NULL);
	n = read(p[0], line, sizeof(line) - 1);
	assert_true(n > 0);
	line[n] = '\0';
	assert_non_null(strstr(line, "level=info comp=test id=c1 msg=\"a\\x0ab\\\"c\\x1b[31m\"\n"));
	assert_ptr_equal(strchr(line, '\n'), line + n - 1);
	close(p[0]);
	close(p[1]);
}

static void test_dates(void **state)
{
	/* Every hour of the day and every day of the year come up, to the end of the year 9999. */
	for (uint64_t t = 0; t < 253402300800ull; t += 86400 * 3 + 3607) {
		struct util_date d = util_date_of(t);
		time_t at = (time_t)t;
		struct tm tm;

		gmtime_r(&at, &tm);
		assert_int_equal(d.year, tm.tm_year + 1900);
		assert_int_equal(d.month, tm.tm_mon + 1);
		assert_int_equal(d.day, tm.tm_mday);
		assert_int_equal(d.hour, tm.tm_hour);
		assert_int_equal(d.minute, tm.tm_min);
		assert_int_equal(d.second, tm.tm_sec);
	}
	/* Leap days, and the year that has none. */
	assert_int_equal(util_date_of(951782400).day, 29);   /* 2000-02-29 */
	assert_int_equal(util_date_of(4107542400).month, 3); /* 2100-03-01 */
	assert_int_equal(util_date_of(4107542399).day, 28);
}

static void test_log_levels(void **state)
{
	enum log_level l;

	assert_int_equal(log_level_parse("debug", &l), 0);
	assert_int_equal(l, LOG_LEVEL_DBG);
	assert_int_equal(log_level_parse("loud", &l), -EINVAL);
}

struct order {
	char s[16];
	size_t n;
};

static struct order order;

static void order_a(void *ctx)
{
	order.s[order.n++] = 'a';
}

static void order_b(void *ctx)
{
	order.s[order.n++] = 'b';
	loop_stop(ctx);
}

static void test_loop_timers_fire_in_order(void **state)
{
	struct loop *l = loop_new();
	struct loop_timer a = {0}, b = {0}, c = {0};

	memset(&order, 0, sizeof(order));
	loop_timer_arm(l, &b, 2000000, order_b, l);
	loop_timer_arm(l, &a, 1000000, order_a, NULL);
	loop_timer_arm(l, &c, 0, order_a, NULL);
	loop_timer_cancel(&c);
	assert_int_equal(loop_run(l), 0);
	assert_string_equal(order.s, "ab");
	loop_free(l);
}

struct pair {
	struct loop_watch *w[2];
	int calls;
};

static void pair_fn(void *ctx, uint32_t events)
{
	struct pair *p = ctx;

	p->calls++;
	loop_watch_remove(p->w[0]);
	loop_watch_remove(p->w[1]);
}

/* Two ready descriptors in one round; the first callback removes both: the second must not run. */
static void test_loop_removed_watch_is_never_called(void **state)
{
	struct loop *l = loop_new();
	int a[2], b[2];
	struct pair p = {0};

	assert_int_equal(pipe(a), 0);
	assert_int_equal(pipe(b), 0);
	assert_int_equal(write(a[1], "x", 1), 1);
	assert_int_equal(write(b[1], "x", 1), 1);
	p.w[0] = loop_watch_add(l, a[0], EPOLLIN, pair_fn, &p);
	p.w[1] = loop_watch_add(l, b[0], EPOLLIN, pair_fn, &p);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(p.calls, 1);
	loop_free(l);
	close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

static void test_io_files(void **state)
{
	char dir[] = "/tmp/harpoon-test-XXXXXX";
	cleanup_free char *data = NULL;
	size_t len;
	int fd;

	assert_non_null(mkdtemp(dir));
	fd = open(dir, O_RDONLY | O_DIRECTORY);
	assert_int_equal(io_replace_file(fd, "f", "hello", 5), 0);
	assert_int_equal(io_read_file(fd, "f", 5, &data, &len), 0);
	assert_int_equal(len, 5);
	assert_string_equal(data, "hello");
	assert_int_equal(io_read_file(fd, "f", 4, &data, &len), -EFBIG);
	assert_int_equal(io_read_file(fd, "g", 4, &data, &len), -ENOENT);
	unlinkat(fd, "f", 0);
	close(fd);
	rmdir(dir);
}

static void test_io_fds_surplus_is_closed(void **state)
{
	int sv[2], out[1] = {-1};
	size_t nr = 1;
	char c;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	assert_int_equal(io_send_fds(sv[0], "x", 1, (int[]){0, 0}, 2), 0);
	assert_int_equal(io_recv_fds(sv[1], &c, 1, out, &nr), -EMSGSIZE);
	assert_int_equal(nr, 0);
	nr = 1;
	assert_int_equal(io_send_fds(sv[0], "y", 1, (int[]){0}, 1), 0);
	assert_int_equal(io_recv_fds(sv[1], &c, 1, out, &nr), 1);
	assert_int_equal(nr, 1);
	assert_true(fcntl(out[0], F_GETFD) & FD_CLOEXEC);
	close(out[0]);
	close(sv[0]);
	close(sv[1]);
}

static void test_sha256_vectors(void **state)
{
	char hex[SHA256_HEX_LEN + 1], a[64];

	sha256_hex("", 0, hex);
	assert_string_equal(hex,
			    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	sha256_hex("abc", 3, hex);
	assert_string_equal(hex,
			    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
	assert_string_equal(hex,
			    "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	memset(a, 'a', sizeof(a));
	sha256_hex(a, 55, hex);
	assert_string_equal(hex,
			    "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
	sha256_hex(a, 64, hex);
	assert_string_equal(hex,
			    "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

/* However a message is cut, it is the same message. */
static void test_sha256_in_pieces(void **state)
{
	char whole[SHA256_HEX_LEN + 1], hex[SHA256_HEX_LEN + 1];
	uint8_t data[300];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7);
	for (size_t len = 0; len <= sizeof(data); len += 13) {
		sha256_hex(data, len, whole);
		for (size_t piece = 1; piece < 150; piece += 9) {
			struct sha256 s;

			sha256_init(&s);
			for (size_t off = 0; off < len; off += piece)
				sha256_add(&s, data + off, MIN(piece, len - off));
			sha256_end(&s, hex);
			assert_string_equal(hex, whole);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_buf_grows_to_max_and_no_further),
		cmocka_unit_test(test_err_set_and_wrap),
		cmocka_unit_test(test_log_cannot_be_forged),
		cmocka_unit_test(test_log_levels),
		cmocka_unit_test(test_dates),
		cmocka_unit_test(test_loop_timers_fire_in_order),
		cmocka_unit_test(test_loop_removed_watch_is_never_called),
		cmocka_unit_test(test_io_files),
		cmocka_unit_test(test_io_fds_surplus_is_closed),
		cmocka_unit_test(test_sha256_vectors),
		cmocka_unit_test(test_sha256_in_pieces),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
