/* QMP: what a line may be, and the client against a QEMU played by the test. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "io.h"
#include "qmp.h"
#include "util.h"

#define GREETING \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 1, \"major\": 10}, " \
	"\"package\": \"x\"}, \"capabilities\": []}}\r\n"

static void test_decode(void **state)
{
	static const char greeting[] = GREETING;
	static const char event[] =
		"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}";
	static const char done[] = "{\"return\": {}, \"id\": 7}";
	static const char error[] =
		"{\"id\":4294967295,\"error\":{\"class\":\"X\",\"desc\":\"no\"}}";
	struct qmp_message m;

	assert_int_equal(qmp_decode(greeting, strlen(greeting) - 2, &m), 0);
	assert_int_equal(m.kind, QMP_GREETING);
	assert_int_equal(m.major, 10);
	assert_int_equal(m.minor, 1);
	qmp_message_done(&m);

	assert_int_equal(qmp_decode(event, strlen(event), &m), 0);
	assert_int_equal(m.kind, QMP_EVENT);
	assert_string_equal(m.name, "SHUTDOWN");
	assert_non_null(m.data);
	qmp_message_done(&m);

	assert_int_equal(qmp_decode(done, strlen(done), &m), 0);
	assert_int_equal(m.kind, QMP_RETURN);
	assert_int_equal(m.id, 7);
	qmp_message_done(&m);

	assert_int_equal(qmp_decode(error, strlen(error), &m), 0);
	assert_int_equal(m.kind, QMP_ERROR);
	assert_int_equal(m.id, UINT32_MAX);
	assert_string_equal(m.name, "no");
	qmp_message_done(&m);
}

static void test_decode_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"x",
		"[]",
		"17",
		"{}",
		"{\"return\": {}}",
		"{\"return\": {}, \"id\": -1}",
		"{\"return\": {}, \"id\": 4294967296}",
		"{\"return\": {}, \"id\": \"1\"}",
		"{\"id\": 1}",
		"{\"id\": 1, \"error\": {}}",
		"{\"return\": {}, \"id\": 1} trailing",
		"{\"return\": {}, \"id\": 1",
		"{\"event\": 5}",
		"{\"QMP\": {}}",
		"{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1, \"minor\": 0}}}}",
		"{\"event\": \"\xff\xfe\"}",
		/* deeper than anything QEMU says */
		"{\"event\":\"x\",\"data\":{\"a\":[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]}}",
	};
	struct qmp_message m;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		print_message("# case %zu\n", i);
		assert_int_equal(qmp_decode(bad[i], strlen(bad[i]), &m), -EPROTO);
	}
}

struct seen {
	int greetings, events, broken, done;
	int err;
	char event[40];
	char error[80];
};

static void on_greeting(void *ctx, int major, int minor)
{
	((struct seen *)ctx)->greetings++;
}

static void on_event(void *ctx, const char *name, struct json_object *data)
{
	struct seen *s = ctx;

	s->events++;
	snprintf(s->event, sizeof(s->event), "%s", name);
}

static void on_broken(void *ctx, int err)
{
	struct seen *s = ctx;

	s->broken++;
	s->err = err;
}

static void on_done(void *ctx, const char *error)
{
	struct seen *s = ctx;

	s->done++;
	snprintf(s->error, sizeof(s->error), "%s", error ? error : "");
}

struct fixture {
	struct loop *loop;
	struct qmp *qmp;
	int peer;
	struct seen seen;
};

static void setup(struct fixture *f)
{
	static const struct qmp_callbacks cb = {on_greeting, on_event, on_broken};
	int pair[2];

	memset(f, 0, sizeof(*f));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	f->loop = loop_new();
	f->qmp = qmp_new(f->loop, pair[0], &cb, &f->seen);
	assert_non_null(f->qmp);
	f->peer = pair[1];
}

static void teardown(struct fixture *f)
{
	qmp_free(f->qmp);
	if (f->peer >= 0)
		close(f->peer);
	loop_free(f->loop);
}

static void say(struct fixture *f, const char *text)
{
	assert_int_equal(io_write_full(f->peer, text, strlen(text)), 0);
	loop_run_once(f->loop, 1000);
}

static void expect(struct fixture *f, const char *text)
{
	char in[256];
	ssize_t n = read(f->peer, in, sizeof(in) - 1);

	assert_true(n > 0);
	in[n] = '\0';
	assert_string_equal(in, text);
}

static void test_conversation(void **state)
{
	struct fixture f;

	setup(&f);
	say(&f, GREETING);
	assert_int_equal(f.seen.greetings, 1);
	expect(&f, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n");
	/* An answer in pieces, and an event behind it. */
	say(&f, "{\"return\": {}");
	say(&f, ", \"id\": 1}\r\n{\"event\": \"STOP\"}\r\n\r\n");
	assert_int_equal(f.seen.events, 1);
	assert_string_equal(f.seen.event, "STOP");
	assert_int_equal(qmp_call(f.qmp, "stop", 60000, on_done, &f.seen), 0);
	expect(&f, "{\"execute\":\"stop\",\"id\":2}\n");
	say(&f, "{\"id\": 2, \"error\": {\"class\": \"E\", \"desc\": \"not now\"}}\n");
	assert_int_equal(f.seen.done, 1);
	assert_string_equal(f.seen.error, "not now");
	assert_int_equal(qmp_call(f.qmp, "cont", 60000, on_done, &f.seen), 0);
	/* An answer to nothing we asked is no harm. */
	say(&f, "{\"id\": 77, \"return\": {}}\n");
	assert_int_equal(f.seen.done, 1);
	/* The connection ends: what is pending is answered, once. */
	close(f.peer);
	f.peer = -1;
	loop_run_once(f.loop, 1000);
	assert_int_equal(f.seen.done, 2);
	assert_string_equal(f.seen.error, "the connection to QEMU is over");
	assert_int_equal(f.seen.broken, 1);
	assert_int_equal(f.seen.err, -EPIPE);
	assert_int_equal(qmp_call(f.qmp, "cont", 60000, on_done, &f.seen), -EPIPE);
	teardown(&f);
}

static void test_timeout(void **state)
{
	struct fixture f;
	uint64_t start = util_now_ns();

	setup(&f);
	say(&f, GREETING);
	assert_int_equal(qmp_call(f.qmp, "stop", 20, on_done, &f.seen), 0);
	while (!f.seen.done && util_now_ns() - start < 5000000000ull)
		loop_run_once(f.loop, 100);
	assert_int_equal(f.seen.done, 1);
	assert_string_equal(f.seen.error, "QEMU does not answer");
	/* The answer comes after all. */
	say(&f, "{\"id\": 2, \"return\": {}}\n");
	assert_int_equal(f.seen.done, 1);
	assert_int_equal(f.seen.broken, 0);
	teardown(&f);
}

static void test_garbage(void **state)
{
	struct fixture f;

	setup(&f);
	say(&f, GREETING);
	say(&f, "{\"event\": \"A\"}\nrubbish\n{\"event\": \"B\"}\n");
	assert_string_equal(f.seen.event, "A");
	assert_int_equal(f.seen.broken, 1);
	assert_int_equal(f.seen.err, -EPROTO);
	teardown(&f);
}

/* A line without end must not fill memory. */
static void test_endless_line(void **state)
{
	struct fixture f;
	char block[4096];

	memset(block, 'x', sizeof(block));
	setup(&f);
	for (int i = 0; i < 64 && !f.seen.broken; i++) {
		assert_int_equal(io_write_full(f.peer, block, sizeof(block)), 0);
		loop_run_once(f.loop, 1000);
	}
	assert_int_equal(f.seen.broken, 1);
	assert_int_equal(f.seen.err, -EPROTO);
	teardown(&f);
}

static void test_too_many_calls(void **state)
{
	struct fixture f;

	setup(&f);
	say(&f, GREETING);
	/* qmp_capabilities itself is pending. */
	for (int i = 1; i < QMP_CALLS_MAX; i++)
		assert_int_equal(qmp_call(f.qmp, "stop", 60000, on_done, &f.seen), 0);
	assert_int_equal(qmp_call(f.qmp, "stop", 60000, on_done, &f.seen), -EBUSY);
	teardown(&f);
	assert_int_equal(f.seen.done, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode),	       cmocka_unit_test(test_decode_refused),
		cmocka_unit_test(test_conversation),   cmocka_unit_test(test_timeout),
		cmocka_unit_test(test_garbage),	       cmocka_unit_test(test_endless_line),
		cmocka_unit_test(test_too_many_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
