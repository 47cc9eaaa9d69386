/*
 * Unit tests of src/rpc: the wire against known bytes, a server against hand-made frames, client and
 * server against each other, and what happens when either side goes or misbehaves.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "io.h"
#include "mux.h"
#include "rpc.h"
#include "rpc_codec.h"
#include "run_until.h"
#include "ttrpc.pb-c.h"

typedef Harpoon__Agent__V1__ProcessRef Ref;
typedef Harpoon__Agent__V1__WaitResponse WaitAnswer;
#define REF_INIT HARPOON__AGENT__V1__PROCESS_REF__INIT
#define WAIT_INIT HARPOON__AGENT__V1__WAIT_RESPONSE__INIT

#define TIMEOUT_NS 20000000000ull
#define HELD_MAX 20000

struct fix {
	struct loop *loop;
	struct rpc_server *server;
	struct rpc_client *client;
	int raw; /* test's end of a connection served */
	struct rpc_call *held[HELD_MAX];
	int nr_held;
	int nr_connects;
	char last_id[64];
	char last_ns[64];
	uint64_t last_deadline;
	bool free_server; /* inside the next handler */
	int flushed;
	int closed;
};

/* ---- the service under test ---- */

static void handle_connect(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const Ref *ref = (const Ref *)request;
	struct fix *f = ctx;
	const char *ns = rpc_call_metadata(call, "containerd-namespace-ttrpc");
	WaitAnswer answer = WAIT_INIT;

	snprintf(f->last_id, sizeof(f->last_id), "%s", ref->id);
	snprintf(f->last_ns, sizeof(f->last_ns), "%s", ns ? ns : "(none)");
	f->last_deadline = rpc_call_deadline_ns(call);
	f->nr_connects++;
	if (f->free_server) {
		rpc_server_free(f->server);
		f->server = NULL;
	}
	/* The wire form of a ConnectResponse: two varints. */
	answer.exit_status = 100;
	answer.exited_at_ns = 200;
	rpc_reply(call, &answer.base);
}

static void handle_hold(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	struct fix *f = ctx;

	assert_true(f->nr_held < HELD_MAX);
	f->held[f->nr_held++] = call;
}

static void handle_fail(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	rpc_fail(call, RPC_NOT_FOUND, "container not created: %s", ((const Ref *)request)->id);
}

static void handle_fail_err(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	struct err err;

	err_set(&err, -EEXIST, "create '%s'", ((const Ref *)request)->id);
	rpc_fail_err(call, &err);
}

static void handle_empty(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	rpc_reply_empty(call);
}

/* Answers with as many bytes as the id says. */
static void handle_big(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	Ref answer = REF_INIT;
	size_t len = strtoul(((const Ref *)request)->id, NULL, 10);
	cleanup_free char *text = xmalloc(len + 1);

	memset(text, 'x', len);
	text[len] = 0;
	answer.id = text;
	rpc_reply(call, &answer.base);
}

#define METHOD(n, o, f) \
	{ \
		.name = (n), .in = &harpoon__agent__v1__process_ref__descriptor, \
		.out = &harpoon__agent__v1__##o##__descriptor, .fn = (f) \
	}
static const struct rpc_method methods[] = {
	METHOD("Connect", wait_response, handle_connect),
	METHOD("Hold", wait_response, handle_hold),
	METHOD("Fail", wait_response, handle_fail),
	METHOD("FailErr", wait_response, handle_fail_err),
	METHOD("Empty", empty, handle_empty),
	METHOD("Big", process_ref, handle_big),
};
static const struct rpc_service task_service = {
	.name = "containerd.task.v2.Task", .methods = methods, .nr_methods = ARRAY_SIZE(methods)};
static const struct rpc_service *const services[] = {&task_service};

static void on_closed(void *ctx)
{
	struct fix *f = ctx;

	f->closed++;
}

static void on_flushed(void *ctx)
{
	struct fix *f = ctx;

	f->flushed++;
}

static int setup(void **state)
{
	struct fix *f = xcalloc(1, sizeof(*f));
	int sv[2];

	f->loop = loop_new();
	f->server = rpc_server_new(f->loop, services, 1, f);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(rpc_server_add_conn(f->server, sv[0], NULL), 0);
	f->raw = sv[1];
	*state = f;
	return 0;
}

/* Turns the raw end into a client. */
static int setup_client(void **state)
{
	struct fix *f;

	setup(state);
	f = *state;
	f->client = rpc_client_new(f->loop, f->raw, on_closed, f);
	f->raw = -1;
	assert_non_null(f->client);
	return 0;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	rpc_client_free(f->client);
	rpc_server_free(f->server);
	/* Answering after everything is gone must be safe. */
	for (int i = 0; i < f->nr_held; i++)
		rpc_fail(f->held[i], RPC_CANCELED, "too late");
	if (f->raw >= 0)
		close(f->raw);
	loop_free(f->loop);
	free(f);
	return 0;
}

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

/* ---- frames by hand ---- */

static void raw_bytes(struct fix *f, const void *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = send(f->raw, (const char *)data + done, len - done,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			done += (size_t)n;
		else
			assert_int_equal(errno, EAGAIN);
		loop_run_once(f->loop, 0);
	}
}

static void raw_header(struct fix *f, uint32_t stream, uint8_t type, uint8_t flags, uint32_t len)
{
	struct rpc_frame_header h = {.len = len, .stream = stream, .type = type, .flags = flags};
	uint8_t b[RPC_HEADER_LEN];

	rpc_frame_header_encode(&h, b);
	raw_bytes(f, b, sizeof(b));
}

static void raw_request(struct fix *f, uint32_t stream, const char *service, const char *method,
			const char *id)
{
	Ref ref = REF_INIT;
	Ttrpc__Request req = TTRPC__REQUEST__INIT;
	uint8_t inner[256], outer[1024];
	size_t len;

	ref.id = (char *)id;
	req.service = (char *)service;
	req.method = (char *)method;
	req.payload.data = inner;
	req.payload.len = protobuf_c_message_pack(&ref.base, inner);
	len = ttrpc__request__pack(&req, outer);
	raw_header(f, stream, RPC_FRAME_REQUEST, 0, (uint32_t)len);
	raw_bytes(f, outer, len);
}

/* The next answer; the caller frees it. */
static Ttrpc__Response *raw_answer(struct fix *f, uint32_t *stream)
{
	uint8_t b[RPC_HEADER_LEN], *payload;
	struct rpc_frame_header h;
	Ttrpc__Response *r;

	RUN_UNTIL(f, poll(&(struct pollfd){.fd = f->raw, .events = POLLIN}, 1, 0) == 1);
	assert_int_equal(io_read_full(f->raw, b, sizeof(b)), sizeof(b));
	rpc_frame_header_decode(b, &h);
	assert_int_equal(h.type, RPC_FRAME_RESPONSE);
	assert_int_equal(h.flags, 0);
	assert_true(h.len < 65536);
	payload = xmalloc(h.len + 1);
	assert_int_equal(io_read_full(f->raw, payload, h.len), h.len);
	r = ttrpc__response__unpack(NULL, h.len, payload);
	free(payload);
	assert_non_null(r);
	*stream = h.stream;
	return r;
}

static void expect_error(struct fix *f, uint32_t stream, enum rpc_code code, const char *text)
{
	uint32_t got;
	Ttrpc__Response *r = raw_answer(f, &got);

	assert_int_equal(got, stream);
	assert_non_null(r->status);
	assert_int_equal(r->status->code, code);
	if (text)
		assert_string_equal(r->status->message, text);
	assert_int_equal(r->payload.len, 0);
	ttrpc__response__free_unpacked(r, NULL);
}

static void expect_ok(struct fix *f, uint32_t stream)
{
	uint32_t got;
	Ttrpc__Response *r = raw_answer(f, &got);

	assert_int_equal(got, stream);
	assert_null(r->status);
	ttrpc__response__free_unpacked(r, NULL);
}

#define TASK "containerd.task.v2.Task"

static const uint8_t connect_frame[] =
	"\x00\x00\x00\x4f\x00\x00\x00\x01\x01\x00\x0a\x17" TASK "\x12\x07"
	"Connect\x1a\x04\x0a\x02"
	"c1\x2a\x25\x0a\x1a"
	"containerd-namespace-ttrpc\x12\x07"
	"default";
#define CONNECT_LEN (sizeof(connect_frame) - 1)

/* ---- codec ---- */

static void test_header_is_big_endian(void **state)
{
	struct rpc_frame_header h = {
		.len = 0x01020304, .stream = 0xa0b0c0d0, .type = 2, .flags = 5};
	struct rpc_frame_header back;
	uint8_t b[RPC_HEADER_LEN];

	rpc_frame_header_encode(&h, b);
	assert_memory_equal(b, "\x01\x02\x03\x04\xa0\xb0\xc0\xd0\x02\x05", RPC_HEADER_LEN);
	rpc_frame_header_decode(b, &back);
	assert_int_equal(back.len, h.len);
	assert_int_equal(back.stream, h.stream);
	assert_int_equal(back.type, h.type);
	assert_int_equal(back.flags, h.flags);
}

static void test_codes_and_errnos(void **state)
{
	/* Every code survives the way to an errno and back, ABORTED and the like included. */
	for (uint32_t code = RPC_OK; code <= RPC_UNAUTHENTICATED; code++)
		assert_int_equal(rpc_code_from_errno(rpc_code_to_errno(code)), code);
	assert_int_equal(rpc_code_to_errno(17), -EIO);
	assert_int_equal(rpc_code_to_errno(UINT32_MAX), -EIO);
	assert_int_equal(rpc_code_from_errno(-ENOENT), RPC_NOT_FOUND);
	assert_int_equal(rpc_code_from_errno(-EPERM), RPC_PERMISSION_DENIED);
	assert_int_equal(rpc_code_from_errno(-ENOTTY), RPC_UNKNOWN);
}

static void format(char *text, const char *fmt, ...) HARPOON_PRINTF(2, 3);
static void format(char *text, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	rpc_format_text(text, fmt, ap);
	va_end(ap);
}

static void test_texts_are_valid_utf8(void **state)
{
	char text[RPC_TEXT_MAX], longer[2 * RPC_TEXT_MAX];

	format(text, "%s", "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\x9f");
	assert_string_equal(text, "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\x9f");
	/* Lone, overlong, surrogate, beyond the last, and an unfinished one at the end. */
	format(text, "%s",
	       "a\xff"
	       "b\xc0\xaf"
	       "c\xed\xa0\x80"
	       "d\xf4\x90\x80\x80"
	       "e\xe2\x82");
	assert_string_equal(text, "a?b??c???d????e??");
	memset(longer, 'y', sizeof(longer));
	memcpy(longer + RPC_TEXT_MAX - 2, "\xc3\xbc", 2);
	longer[sizeof(longer) - 1] = 0;
	format(text, "%s", longer);
	assert_int_equal(strlen(text), RPC_TEXT_MAX - 1);
	assert_int_equal(text[RPC_TEXT_MAX - 2], '?');
}

static void test_unpack_is_bounded(void **state)
{
	/* An empty string in a repeated field: 2 bytes each here, dozens in memory. */
	size_t len = RPC_MESSAGE_MAX;
	cleanup_free uint8_t *bomb = xmalloc(len);

	for (size_t i = 0; i < len; i += 2) {
		bomb[i] = 0x2a; /* Request.metadata */
		bomb[i + 1] = 0;
	}
	assert_null(rpc_unpack(&ttrpc__request__descriptor, len, bomb));
	for (size_t i = 0; i < len; i += 2) {
		bomb[i] = 0x78; /* unknown field 15, varint 0 */
		bomb[i + 1] = 0;
	}
	assert_null(rpc_unpack(&ttrpc__request__descriptor, len, bomb));
}

/* ---- server against bytes ---- */

static void test_known_bytes_connect(void **state)
{
	static const char answer[] =
		"\x00\x00\x00\x07\x00\x00\x00\x01\x02\x00\x12\x05\x08\x64\x10\xc8\x01";
	struct fix *f = *state;
	char got[64];

	raw_bytes(f, connect_frame, CONNECT_LEN);
	run_idle(f);
	assert_int_equal(recv(f->raw, got, sizeof(got), MSG_DONTWAIT), sizeof(answer) - 1);
	assert_memory_equal(got, answer, sizeof(answer) - 1);
	assert_string_equal(f->last_id, "c1");
	assert_string_equal(f->last_ns, "default");
	assert_int_equal(f->last_deadline, 0);
}

static void test_known_bytes_error(void **state)
{
	static const char answer[] =
		"\x00\x00\x00\x26\x00\x00\x00\x03\x02\x00\x0a\x24\x08\x05\x12\x20"
		"container not created: not found";
	struct fix *f = *state;
	char got[64];

	raw_request(f, 3, TASK, "Fail", "not found");
	run_idle(f);
	assert_int_equal(recv(f->raw, got, sizeof(got), MSG_DONTWAIT), sizeof(answer) - 1);
	assert_memory_equal(got, answer, sizeof(answer) - 1);
}

static void test_byte_by_byte(void **state)
{
	struct fix *f = *state;

	for (size_t i = 0; i < CONNECT_LEN; i++)
		raw_bytes(f, connect_frame + i, 1);
	expect_ok(f, 1);
}

static void test_answers_in_any_order(void **state)
{
	struct fix *f = *state;
	WaitAnswer answer = WAIT_INIT;

	raw_request(f, 1, TASK, "Hold", "a");
	raw_request(f, 3, TASK, "Hold", "b");
	raw_request(f, 5, TASK, "Connect", "c");
	expect_ok(f, 5);
	assert_int_equal(f->nr_held, 2);
	rpc_reply(f->held[1], &answer.base);
	expect_ok(f, 3);
	rpc_reply(f->held[0], &answer.base);
	expect_ok(f, 1);
	f->nr_held = 0;
}

static void test_unknown_service_and_method(void **state)
{
	struct fix *f = *state;

	raw_request(f, 1, "no.such.Service", "Connect", "a");
	expect_error(f, 1, RPC_UNIMPLEMENTED, "service no.such.Service");
	raw_request(f, 3, TASK, "connect", "a");
	expect_error(f, 3, RPC_UNIMPLEMENTED, "method connect");
	raw_request(f, 5, TASK, "Connect", "a");
	expect_ok(f, 5);
}

static void test_stream_ids(void **state)
{
	struct fix *f = *state;

	raw_request(f, 0, TASK, "Connect", "a");
	expect_error(f, 0, RPC_INVALID_ARGUMENT, NULL);
	raw_request(f, 2, TASK, "Connect", "a");
	expect_error(f, 2, RPC_INVALID_ARGUMENT, NULL);
	raw_request(f, 7, TASK, "Connect", "a");
	expect_ok(f, 7);
	raw_request(f, 7, TASK, "Connect", "a");
	expect_error(f, 7, RPC_INVALID_ARGUMENT, "stream id 7 does not follow 7: ids only go up");
	raw_request(f, 5, TASK, "Connect", "a");
	expect_error(f, 5, RPC_INVALID_ARGUMENT, NULL);
	raw_request(f, 0xffffffff, TASK, "Connect", "a");
	expect_ok(f, 0xffffffff);
}

static void test_bad_request_frame_is_answered(void **state)
{
	struct fix *f = *state;
	Ttrpc__Request req = TTRPC__REQUEST__INIT;
	uint8_t outer[128];
	size_t len;

	raw_header(f, 1, RPC_FRAME_REQUEST, 0, 4);
	raw_bytes(f, "\xff\xff\xff\xff", 4);
	expect_error(f, 1, RPC_INVALID_ARGUMENT, NULL);
	/* A sound envelope around a broken request. */
	req.service = TASK;
	req.method = "Connect";
	req.payload.data = (uint8_t *)"\x0a\x05x";
	req.payload.len = 3;
	len = ttrpc__request__pack(&req, outer);
	raw_header(f, 3, RPC_FRAME_REQUEST, 0, (uint32_t)len);
	raw_bytes(f, outer, len);
	expect_error(f, 3, RPC_INVALID_ARGUMENT, NULL);
	/* An empty frame is a request without a service. */
	raw_header(f, 5, RPC_FRAME_REQUEST, 0, 0);
	expect_error(f, 5, RPC_UNIMPLEMENTED, "service ");
	raw_request(f, 7, TASK, "Connect", "a");
	expect_ok(f, 7);
}

static void test_other_frames_are_ignored(void **state)
{
	struct fix *f = *state;

	raw_header(f, 1, RPC_FRAME_DATA, 0x05, 0);
	raw_header(f, 1, RPC_FRAME_RESPONSE, 0, 3);
	raw_bytes(f, "abc", 3);
	raw_header(f, 9, 77, 0xff, 1);
	raw_bytes(f, "x", 1);
	/* A streaming call is refused, and what follows on it ignored. */
	raw_header(f, 1, RPC_FRAME_REQUEST, 0x02, 0);
	raw_header(f, 1, RPC_FRAME_DATA, 0, 2);
	raw_bytes(f, "ab", 2);
	expect_error(f, 1, RPC_UNIMPLEMENTED, "streaming calls are not served");
	raw_request(f, 3, TASK, "Connect", "a");
	expect_ok(f, 3);
}

static void oversize(struct fix *f, uint32_t stream, uint32_t len)
{
	static uint8_t junk[65536];
	char text[128];

	raw_header(f, stream, RPC_FRAME_REQUEST, 0, len);
	for (uint32_t sent = 0; sent < len;) {
		uint32_t n = MIN(len - sent, (uint32_t)sizeof(junk));

		raw_bytes(f, junk, n);
		sent += n;
	}
	snprintf(text, sizeof(text), "a message of %u bytes is over the limit of 4194304", len);
	expect_error(f, stream, RPC_RESOURCE_EXHAUSTED, text);
}

static void test_oversize_is_skipped_and_answered(void **state)
{
	struct fix *f = *state;

	oversize(f, 1, RPC_MESSAGE_MAX + 1);
	raw_request(f, 3, TASK, "Connect", "a");
	expect_ok(f, 3);
	oversize(f, 5, 3 * RPC_MESSAGE_MAX);
	raw_request(f, 7, TASK, "Connect", "a");
	expect_ok(f, 7);
}

static void test_largest_request_is_taken(void **state)
{
	struct fix *f = *state;
	cleanup_free uint8_t *frame = xcalloc(1, RPC_MESSAGE_MAX);
	Ttrpc__Request req = TTRPC__REQUEST__INIT;
	cleanup_free uint8_t *pad = xcalloc(1, RPC_MESSAGE_MAX);
	size_t len;

	/* Unknown field 100 of ProcessRef fills it up to the limit. */
	req.service = TASK;
	req.method = "Connect";
	req.payload.data = pad;
	pad[0] = 0xa2;
	pad[1] = 0x06;
	req.payload.len = RPC_MESSAGE_MAX - 64;
	len = req.payload.len - 6;
	for (int i = 0; i < 4; i++)
		pad[2 + i] = (uint8_t)(((len >> (7 * i)) & 0x7f) | (i < 3 ? 0x80 : 0));
	len = ttrpc__request__pack(&req, frame);
	assert_true(len <= RPC_MESSAGE_MAX);
	raw_header(f, 1, RPC_FRAME_REQUEST, 0, (uint32_t)len);
	raw_bytes(f, frame, len);
	expect_ok(f, 1);
}

static void test_calls_per_connection_are_bounded(void **state)
{
	struct fix *f = *state;
	uint32_t id = 1;

	for (int i = 0; i < RPC_CALLS_MAX; i++, id += 2)
		raw_request(f, id, TASK, "Hold", "a");
	run_idle(f);
	assert_int_equal(f->nr_held, RPC_CALLS_MAX);
	raw_request(f, id, TASK, "Hold", "a");
	expect_error(f, id, RPC_RESOURCE_EXHAUSTED, NULL);
	rpc_fail(f->held[--f->nr_held], RPC_UNKNOWN, "enough");
	expect_error(f, id - 2, RPC_UNKNOWN, "enough");
	raw_request(f, id + 2, TASK, "Hold", "a");
	run_idle(f);
	assert_int_equal(f->nr_held, RPC_CALLS_MAX);
}

static void test_calls_of_dead_connections_are_bounded(void **state)
{
	struct fix *f = *state;
	uint32_t id = 1;

	while (f->nr_held < RPC_SERVER_CALLS_MAX) {
		int sv[2];

		for (int i = 0; i < RPC_CALLS_MAX; i++, id += 2)
			raw_request(f, id, TASK, "Hold", "a");
		run_idle(f);
		close(f->raw);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		assert_int_equal(rpc_server_add_conn(f->server, sv[0], NULL), 0);
		f->raw = sv[1];
		id = 1;
	}
	raw_request(f, id, TASK, "Hold", "a");
	expect_error(f, id, RPC_RESOURCE_EXHAUSTED, NULL);
	rpc_fail(f->held[--f->nr_held], RPC_UNKNOWN, "nobody hears this");
	raw_request(f, id + 2, TASK, "Connect", "a");
	expect_ok(f, id + 2);
}

static void test_slow_reader_is_closed(void **state)
{
	struct fix *f = *state;
	bool closed = false;
	uint32_t id = 1;

	/* Answers of 1 MB each, none of them read. */
	for (; id < 400 && !closed; id += 2) {
		Ref ref = REF_INIT;
		Ttrpc__Request req = TTRPC__REQUEST__INIT;
		uint8_t inner[64], outer[256], b[RPC_HEADER_LEN];
		struct rpc_frame_header h = {.stream = id, .type = RPC_FRAME_REQUEST};

		ref.id = "1000000";
		req.service = TASK;
		req.method = "Big";
		req.payload.data = inner;
		req.payload.len = protobuf_c_message_pack(&ref.base, inner);
		h.len = (uint32_t)ttrpc__request__pack(&req, outer);
		rpc_frame_header_encode(&h, b);
		closed = send(f->raw, b, sizeof(b), MSG_NOSIGNAL) < 0 ||
			 send(f->raw, outer, h.len, MSG_NOSIGNAL) < 0;
		loop_run_once(f->loop, 0);
	}
	assert_true(closed);
	assert_int_equal(errno, EPIPE);
	assert_true(id >= 2 * 16 && id < 2 * 40);
	run_idle(f);
}

static void test_answer_too_large(void **state)
{
	struct fix *f = *state;

	raw_request(f, 1, TASK, "Big", "4194304");
	expect_error(f, 1, RPC_RESOURCE_EXHAUSTED, NULL);
	raw_request(f, 3, TASK, "Big", "4194300"); /* fits alone, not in its envelope */
	expect_error(f, 3, RPC_RESOURCE_EXHAUSTED, NULL);
}

static void test_answer_after_connection_died(void **state)
{
	struct fix *f = *state;
	WaitAnswer answer = WAIT_INIT;

	raw_request(f, 1, TASK, "Hold", "a");
	raw_request(f, 3, TASK, "Hold", "b");
	run_idle(f);
	close(f->raw);
	f->raw = -1;
	run_idle(f);
	rpc_reply(f->held[0], &answer.base);
	assert_null(rpc_call_metadata(f->held[1], "x"));
	rpc_server_free(f->server);
	f->server = NULL;
	rpc_reply_empty(f->held[1]);
	f->nr_held = 0;
}

static void test_handler_may_free_the_server(void **state)
{
	struct fix *f = *state;
	uint8_t both[2 * CONNECT_LEN];

	/* Two requests in one piece: the second must not reach anybody. */
	memcpy(both, connect_frame, CONNECT_LEN);
	memcpy(both + CONNECT_LEN, connect_frame, CONNECT_LEN);
	both[CONNECT_LEN + 7] = 3;
	f->free_server = true;
	assert_int_equal(send(f->raw, both, sizeof(both), MSG_NOSIGNAL), sizeof(both));
	run_idle(f);
	assert_null(f->server);
	assert_int_equal(f->nr_connects, 1);
}

static void test_garbage_and_half_frames(void **state)
{
	struct fix *f = *state;
	char c;

	raw_bytes(f, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27); /* an oversize frame to us: waits */
	run_idle(f);
	assert_int_equal(recv(f->raw, &c, 1, MSG_DONTWAIT), -1);
	shutdown(f->raw, SHUT_WR);
	RUN_UNTIL(f, recv(f->raw, &c, 1, MSG_DONTWAIT) == 0);
}

static void test_pipelined_requests(void **state)
{
	struct fix *f = *state;
	const uint32_t n = 20000;
	cleanup_free uint8_t *all = xmalloc(n * CONNECT_LEN);
	size_t sent = 0, got = 0;
	uint8_t buf[65536];

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *p = all + i * CONNECT_LEN;
		uint32_t id = 2 * i + 1;

		memcpy(p, connect_frame, CONNECT_LEN);
		p[4] = (uint8_t)(id >> 24);
		p[5] = (uint8_t)(id >> 16);
		p[6] = (uint8_t)(id >> 8);
		p[7] = (uint8_t)id;
	}
	while (got < n * 17) {
		ssize_t r = send(f->raw, all + sent, n * CONNECT_LEN - sent, MSG_DONTWAIT);

		if (r > 0)
			sent += (size_t)r;
		assert_int_equal(loop_run_once(f->loop, 1000), 0);
		r = recv(f->raw, buf, sizeof(buf), MSG_DONTWAIT);
		if (r > 0)
			got += (size_t)r;
	}
	assert_int_equal(got, n * 17);
}

static void test_flush(void **state)
{
	struct fix *f = *state;
	size_t got = 0;
	char buf[65536];

	rpc_server_flush(f->server, on_flushed, f);
	assert_int_equal(f->flushed, 0);
	RUN_UNTIL(f, f->flushed == 1);
	raw_request(f, 1, TASK, "Big", "3000000");
	rpc_server_flush(f->server, on_flushed, f);
	run_idle(f);
	assert_int_equal(f->flushed, 1);
	while (f->flushed == 1) {
		ssize_t n = recv(f->raw, buf, sizeof(buf), MSG_DONTWAIT);

		if (n > 0)
			got += (size_t)n;
		assert_int_equal(loop_run_once(f->loop, 0), 0);
	}
	assert_int_equal(f->flushed, 2);
	assert_true(got > 2000000);
	/* A reader that leaves is no reason to wait. */
	raw_request(f, 3, TASK, "Big", "3000000");
	rpc_server_flush(f->server, on_flushed, f);
	run_idle(f);
	assert_int_equal(f->flushed, 2);
	close(f->raw);
	f->raw = -1;
	RUN_UNTIL(f, f->flushed == 3);
}

static void test_negative_timeout(void **state)
{
	struct fix *f = *state;
	Ttrpc__Request req = TTRPC__REQUEST__INIT;
	uint8_t outer[128];
	size_t len;

	req.service = TASK;
	req.method = "Connect";
	req.timeout_nano = -1;
	len = ttrpc__request__pack(&req, outer);
	raw_header(f, 1, RPC_FRAME_REQUEST, 0, (uint32_t)len);
	raw_bytes(f, outer, len);
	expect_error(f, 1, RPC_DEADLINE_EXCEEDED, "Connect: no time left");
	req.timeout_nano = INT64_MAX;
	len = ttrpc__request__pack(&req, outer);
	raw_header(f, 3, RPC_FRAME_REQUEST, 0, (uint32_t)len);
	raw_bytes(f, outer, len);
	expect_ok(f, 3);
	assert_true(f->last_deadline > (uint64_t)INT64_MAX);
}

/* ---- listening ---- */

static int connect_to(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr))) {
		close(fd);
		return -1;
	}
	return fd;
}

static void test_listen(void **state)
{
	struct fix *f = *state;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct err err = {0};
	pid_t child;
	int status;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/test_rpc.%d", getpid());
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(chmod(addr.sun_path, 0666), 0);
	assert_int_equal(listen(fd, 10), 0);
	assert_int_equal(rpc_server_listen(f->server, fd, &err), 0);
	assert_int_equal(rpc_server_listen(f->server, dup(STDERR_FILENO), &err), -EBUSY);
	close(f->raw);
	f->raw = connect_to(&addr);
	raw_bytes(f, connect_frame, CONNECT_LEN);
	expect_ok(f, 1);
	if (geteuid() == 0) {
		/* Somebody else gets end of file, not an answer. */
		child = fork();
		if (child == 0) {
			char c;
			int s;

			if (setuid(65534))
				_exit(2);
			s = connect_to(&addr);
			if (s < 0 || send(s, connect_frame, CONNECT_LEN, MSG_NOSIGNAL) < 0)
				_exit(errno == EPIPE ? 0 : 3);
			_exit(recv(s, &c, 1, 0) <= 0 ? 0 : 1);
		}
		RUN_UNTIL(f, waitpid(child, &status, WNOHANG) == child);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
	}
	unlink(addr.sun_path);
}

static void test_accept_without_descriptors_rests(void **state)
{
	struct fix *f = *state;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), next;
	struct rlimit old, low;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/test_rpc_fd.%d", getpid());
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 10), 0);
	assert_int_equal(rpc_server_listen(f->server, fd, NULL), 0);
	close(f->raw);
	f->raw = connect_to(&addr);
	unlink(addr.sun_path);
	next = dup(STDERR_FILENO);
	close(next);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = (struct rlimit){.rlim_cur = (rlim_t)next, .rlim_max = old.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	/* A readable socket that cannot be accepted from: the loop must rest all the same. */
	run_idle(f);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_true(send(f->raw, connect_frame, CONNECT_LEN, MSG_NOSIGNAL) > 0);
	expect_ok(f, 1);
}

static void test_connections_are_bounded(void **state)
{
	struct fix *f = *state;
	int fds[RPC_CONNS_MAX], sv[2], n = 0;
	struct err err = {0};
	struct rlimit limit;

	/* Both ends of each are here: more than the usual 1024. */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = MIN(limit.rlim_max, (rlim_t)4096);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	while (n < RPC_CONNS_MAX - 1) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		assert_int_equal(rpc_server_add_conn(f->server, sv[0], &err), 0);
		fds[n++] = sv[1];
	}
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(rpc_server_add_conn(f->server, sv[0], &err), -EMFILE);
	close(sv[1]);
	close(fds[--n]);
	run_idle(f);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(rpc_server_add_conn(f->server, sv[0], &err), 0);
	fds[n++] = sv[1];
	while (n)
		close(fds[--n]);
	run_idle(f);
}

/* ---- client ---- */

struct answer {
	struct fix *f;
	int n;
	enum rpc_code code;
	char message[RPC_TEXT_MAX];
	uint32_t status;
	bool free_client;
};

static void on_answer(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		      const char *message)
{
	struct answer *a = ctx;

	a->n++;
	a->code = code;
	snprintf(a->message, sizeof(a->message), "%s", message);
	if (response && response->descriptor == &harpoon__agent__v1__wait_response__descriptor)
		a->status = ((const WaitAnswer *)response)->exit_status;
	if (a->free_client) {
		rpc_client_free(a->f->client);
		a->f->client = NULL;
	}
}

static int call(struct fix *f, const char *method, const char *id, uint64_t timeout_ns,
		struct answer *a)
{
	Ref ref = REF_INIT;
	struct rpc_request req = {.service = TASK,
				  .method = method,
				  .request = &ref.base,
				  .response = &harpoon__agent__v1__wait_response__descriptor,
				  .timeout_ns = timeout_ns,
				  .namespace_ = "k8s.io"};

	a->f = f;
	ref.id = (char *)id;
	if (strcmp(method, "Big") == 0) /* another message; not looked at */
		req.response = NULL;
	return rpc_client_call(f->client, &req, on_answer, a);
}

static void test_client_call(void **state)
{
	struct fix *f = *state;
	struct answer a = {0}, b = {0}, c = {0}, d = {0};
	uint64_t now = util_now_ns();

	assert_int_equal(call(f, "Connect", "c1", 5000000000, &a), 0);
	assert_int_equal(call(f, "Fail", "gone", 0, &b), 0);
	assert_int_equal(call(f, "FailErr", "x\xff", 0, &c), 0);
	assert_int_equal(call(f, "Empty", "x", 0, &d), 0);
	assert_int_equal(a.n, 0);
	RUN_UNTIL(f, a.n && b.n && c.n && d.n);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(a.status, 100);
	assert_string_equal(f->last_ns, "k8s.io");
	assert_true(f->last_deadline > now && f->last_deadline < now + 10000000000);
	assert_int_equal(b.code, RPC_NOT_FOUND);
	assert_string_equal(b.message, "container not created: gone");
	assert_int_equal(c.code, RPC_ALREADY_EXISTS);
	assert_string_equal(c.message, "create 'x?': File exists");
	assert_int_equal(d.code, RPC_OK);
}

static void test_client_deadline_and_late_answer(void **state)
{
	struct fix *f = *state;
	struct answer a = {0}, b = {0};
	WaitAnswer answer = WAIT_INIT;

	assert_int_equal(call(f, "Hold", "c1", 20000000, &a), 0);
	RUN_UNTIL(f, a.n);
	assert_int_equal(a.code, RPC_DEADLINE_EXCEEDED);
	assert_int_equal(f->nr_held, 1);
	rpc_reply(f->held[0], &answer.base);
	f->nr_held = 0;
	assert_int_equal(call(f, "Connect", "c1", 0, &b), 0);
	RUN_UNTIL(f, b.n);
	assert_int_equal(b.code, RPC_OK);
	assert_int_equal(a.n, 1);
}

static void test_client_connection_end(void **state)
{
	struct fix *f = *state;
	struct answer a = {0}, b = {0};

	assert_int_equal(call(f, "Hold", "c1", 1000000000000, &a), 0);
	assert_int_equal(call(f, "Hold", "c2", 0, &b), 0);
	RUN_UNTIL(f, f->nr_held == 2);
	rpc_server_free(f->server);
	f->server = NULL;
	RUN_UNTIL(f, f->closed);
	assert_int_equal(a.code, RPC_UNAVAILABLE);
	assert_string_equal(a.message, "ttrpc: closed");
	assert_int_equal(b.code, RPC_UNAVAILABLE);
	assert_int_equal(call(f, "Connect", "c1", 0, &a), -EPIPE);
	run_idle(f);
	assert_int_equal(a.n, 1);
	assert_int_equal(b.n, 1);
	assert_int_equal(f->closed, 1);
}

static void test_client_free_with_pending_calls(void **state)
{
	struct fix *f = *state;
	struct answer a = {.free_client = true}, b = {0};

	/* The first answer frees the client from inside its callback. */
	assert_int_equal(call(f, "Connect", "c1", 0, &a), 0);
	assert_int_equal(call(f, "Hold", "c2", 0, &b), 0);
	RUN_UNTIL(f, a.n);
	assert_null(f->client);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(b.n, 1);
	assert_int_equal(b.code, RPC_CANCELED);
	assert_int_equal(f->closed, 0);
	run_idle(f);
}

static void test_client_message_too_large(void **state)
{
	struct fix *f = *state;
	struct answer a = {0};
	cleanup_free char *id = xmalloc(RPC_MESSAGE_MAX + 1);

	memset(id, 'x', RPC_MESSAGE_MAX);
	id[RPC_MESSAGE_MAX] = 0;
	assert_int_equal(call(f, "Connect", id, 0, &a), -EMSGSIZE);
	id[RPC_MESSAGE_MAX - 8] = 0;
	assert_int_equal(call(f, "Connect", id, 0, &a), -EMSGSIZE);
	id[RPC_MESSAGE_MAX - 100] = 0;
	assert_int_equal(call(f, "Connect", id, 0, &a), 0);
	RUN_UNTIL(f, a.n);
	assert_int_equal(a.code, RPC_OK);
}

/* As between shim and agent: each side's rpc end is one end of a socket pair, the other is a stream. */
static void test_over_a_multiplexed_stream(void **state)
{
	static const struct mux_callbacks cb = {0};
	struct fix *f = *state;
	struct answer a = {0}, b = {0}, c = {0};
	int channel[2], host[2], guest[2];
	struct mux *shim, *agent;

	rpc_client_free(f->client);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, host), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, guest), 0);
	shim = mux_new(f->loop, channel[0], &cb, NULL);
	agent = mux_new(f->loop, channel[1], &cb, NULL);
	assert_int_equal(mux_attach(shim, MUX_STREAM_RPC, host[0], host[0], NULL, NULL, NULL), 0);
	f->client = rpc_client_new(f->loop, host[1], on_closed, f);
	/* Asked before anybody listens. */
	assert_int_equal(call(f, "Connect", "early", 0, &a), 0);
	run_idle(f);
	assert_int_equal(mux_attach(agent, MUX_STREAM_RPC, guest[0], guest[0], NULL, NULL, NULL),
			 0);
	assert_int_equal(rpc_server_add_conn(f->server, guest[1], NULL), 0);
	assert_int_equal(call(f, "Big", "4000000", 0, &b), 0);
	RUN_UNTIL(f, a.n && b.n);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(a.status, 100);
	assert_int_equal(b.code, RPC_OK);
	/* The guest is gone: what was asked ends, and so does the connection. */
	assert_int_equal(call(f, "Hold", "c1", 0, &c), 0);
	RUN_UNTIL(f, f->nr_held == 1);
	mux_free(agent);
	RUN_UNTIL(f, f->closed);
	assert_int_equal(c.code, RPC_UNAVAILABLE);
	mux_free(shim);
}

/* A client against a hand-made server. */
static int setup_liar(void **state)
{
	struct fix *f;
	int sv[2];

	setup(state);
	f = *state;
	close(f->raw);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	f->raw = sv[1];
	f->client = rpc_client_new(f->loop, sv[0], on_closed, f);
	assert_non_null(f->client);
	return 0;
}

static void test_client_against_a_liar(void **state)
{
	static const uint8_t status[] = "\x0a\x10\x08\xff\xff\xff\xff\x0f\x12\x08"
					"bad\x1b\xff\xff..";
	struct fix *f = *state;
	struct answer a[5] = {{0}};

	for (int i = 0; i < 5; i++)
		assert_int_equal(call(f, "Connect", "c1", 0, &a[i]), 0);
	/* Nobody asked on 99 and 2; a request to a client; data; an unknown type. */
	raw_header(f, 99, RPC_FRAME_RESPONSE, 0, 0);
	raw_header(f, 2, RPC_FRAME_RESPONSE, 0, 0);
	raw_header(f, 1, RPC_FRAME_REQUEST, 0, 0);
	raw_header(f, 1, RPC_FRAME_DATA, 0, 0);
	raw_header(f, 1, 200, 0, 0);
	run_idle(f);
	for (int i = 0; i < 5; i++)
		assert_int_equal(a[i].n, 0);
	/* Not a response; a response around rubbish; a code out of range; empty; twice. */
	raw_header(f, 1, RPC_FRAME_RESPONSE, 0, 2);
	raw_bytes(f, "\x0a\x05", 2);
	raw_header(f, 3, RPC_FRAME_RESPONSE, 0, 4);
	raw_bytes(f, "\x12\x02\x0a\x05", 4);
	raw_header(f, 5, RPC_FRAME_RESPONSE, 0, sizeof(status) - 1);
	raw_bytes(f, status, sizeof(status) - 1);
	raw_header(f, 7, RPC_FRAME_RESPONSE, 0, 0);
	raw_header(f, 7, RPC_FRAME_RESPONSE, 0, 0);
	RUN_UNTIL(f, a[0].n && a[1].n && a[2].n && a[3].n);
	run_idle(f);
	assert_int_equal(a[0].code, RPC_INTERNAL);
	assert_int_equal(a[1].code, RPC_INTERNAL);
	assert_int_equal(a[2].code, RPC_UNKNOWN);
	assert_string_equal(a[2].message, "bad\x1b??..");
	assert_int_equal(a[3].code, RPC_OK);
	assert_int_equal(a[3].n, 1);
	assert_int_equal(a[4].n, 0);
	/* An answer over the limit ends its call, not the connection. */
	raw_header(f, 9, RPC_FRAME_RESPONSE, 0, RPC_MESSAGE_MAX + 1);
	for (uint32_t i = 0; i < RPC_MESSAGE_MAX + 1; i += 4096)
		raw_bytes(f, (uint8_t[4096]){0}, MIN(4096u, RPC_MESSAGE_MAX + 1 - i));
	RUN_UNTIL(f, a[4].n);
	assert_int_equal(a[4].code, RPC_RESOURCE_EXHAUSTED);
	assert_int_equal(f->closed, 0);
}

static void test_client_last_answer_before_the_end(void **state)
{
	struct fix *f = *state;
	struct answer a = {0}, b = {0};
	char buf[4096];

	assert_int_equal(call(f, "Shutdown", "c1", 0, &a), 0);
	assert_true(recv(f->raw, buf, sizeof(buf), 0) > 0);
	raw_header(f, 1, RPC_FRAME_RESPONSE, 0, 0);
	f->closed = 0;
	close(f->raw);
	f->raw = -1;
	/* Writing to the closed connection fails; the answer read before it counts. */
	call(f, "Connect", "c1", 0, &b);
	RUN_UNTIL(f, f->closed);
	assert_int_equal(a.n, 1);
	assert_int_equal(a.code, RPC_OK);
}

int main(void)
{
#define RAW(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
#define CLIENT(t) cmocka_unit_test_setup_teardown(t, setup_client, teardown)
#define LIAR(t) cmocka_unit_test_setup_teardown(t, setup_liar, teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header_is_big_endian),
		cmocka_unit_test(test_codes_and_errnos),
		cmocka_unit_test(test_texts_are_valid_utf8),
		cmocka_unit_test(test_unpack_is_bounded),
		RAW(test_known_bytes_connect),
		RAW(test_known_bytes_error),
		RAW(test_byte_by_byte),
		RAW(test_answers_in_any_order),
		RAW(test_unknown_service_and_method),
		RAW(test_stream_ids),
		RAW(test_bad_request_frame_is_answered),
		RAW(test_other_frames_are_ignored),
		RAW(test_oversize_is_skipped_and_answered),
		RAW(test_largest_request_is_taken),
		RAW(test_calls_per_connection_are_bounded),
		RAW(test_calls_of_dead_connections_are_bounded),
		RAW(test_slow_reader_is_closed),
		RAW(test_answer_too_large),
		RAW(test_answer_after_connection_died),
		RAW(test_handler_may_free_the_server),
		RAW(test_garbage_and_half_frames),
		RAW(test_pipelined_requests),
		RAW(test_flush),
		RAW(test_negative_timeout),
		RAW(test_listen),
		RAW(test_accept_without_descriptors_rests),
		RAW(test_connections_are_bounded),
		CLIENT(test_client_call),
		CLIENT(test_client_deadline_and_late_answer),
		CLIENT(test_client_connection_end),
		CLIENT(test_client_free_with_pending_calls),
		CLIENT(test_client_message_too_large),
		CLIENT(test_over_a_multiplexed_stream),
		LIAR(test_client_against_a_liar),
		LIAR(test_client_last_answer_before_the_end),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("rpc", tests, NULL, NULL);
}
