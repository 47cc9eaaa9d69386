/*
 * The publisher against a ttrpc server: order, containerd that is down, comes, goes in the middle of a call,
 * refuses an event, never answers; the bound of the queue.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "containerd_events.pb-c.h"
#include "events.h"
#include "log.h"
#include "rpc.h"
#include "util.h"

#define GOT_MAX 4096

struct env {
	struct loop *loop;
	struct publisher *p;
	struct rpc_server *server;
	char dir[64], path[100];
	unsigned int got[GOT_MAX];
	size_t nr_got;
	unsigned int refuse; /* the event with this pid gets an error */
	bool hold;	     /* answer nothing: keep the call */
	struct rpc_call *held;
	bool flushed;
};

static struct env *env;

static void on_forward(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ForwardRequest *f = (const void *)m;
	const Ctrd__Any *any = f->envelope->event;
	Ctrd__TaskStart *e = ctrd__task_start__unpack(NULL, any->value.len, any->value.data);
	unsigned int pid = e->pid;

	ctrd__task_start__free_unpacked(e, NULL);
	assert_string_equal(any->type_url, "containerd.events.TaskStart");
	assert_string_equal(f->envelope->topic, "/tasks/start");
	assert_true(env->nr_got < GOT_MAX);
	env->got[env->nr_got++] = pid;
	if (env->hold) {
		env->held = call;
		return;
	}
	if (env->refuse == pid)
		rpc_fail(call, RPC_INVALID_ARGUMENT, "bad event");
	else
		rpc_reply_empty(call);
}

static const struct rpc_method methods[] = {
	{"Forward", &ctrd__forward_request__descriptor, &ctrd__empty__descriptor, on_forward}};
static const struct rpc_service service = {"containerd.services.events.ttrpc.v1.Events", methods,
					   1};
static const struct rpc_service *const services[] = {&service};

static void containerd_up(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", env->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 8), 0);
	env->server = rpc_server_new(env->loop, services, 1, NULL);
	assert_int_equal(rpc_server_listen(env->server, fd, NULL), 0);
}

static void containerd_down(void)
{
	if (env->held)
		rpc_fail(env->held, RPC_UNAVAILABLE, "going down");
	env->held = NULL;
	rpc_server_free(env->server);
	env->server = NULL;
	unlink(env->path);
}

static int setup(void **state)
{
	struct env *e = env = xcalloc(1, sizeof(*e));

	*state = e;
	signal(SIGPIPE, SIG_IGN);
	log_init(STDERR_FILENO, LOG_LEVEL_ERR, NULL);
	snprintf(e->dir, sizeof(e->dir), "/tmp/harpoon-test-XXXXXX");
	if (!mkdtemp(e->dir))
		return -1;
	snprintf(e->path, sizeof(e->path), "%s/events", e->dir);
	e->loop = loop_new();
	e->p = publisher_new(e->loop, e->path, "ns");
	return 0;
}

static int teardown(void **state)
{
	struct env *e = *state;

	publisher_free(e->p);
	containerd_down();
	loop_free(e->loop);
	rmdir(e->dir);
	free(e);
	return 0;
}

static void publish(unsigned int n)
{
	Ctrd__TaskStart e = CTRD__TASK_START__INIT;

	e.container_id = "c1";
	e.pid = n;
	publisher_publish(env->p, "/tasks/start", "TaskStart", &e.base);
}

static void until_got(size_t n)
{
	uint64_t end = util_now_ns() + 20000000000ull;

	while (env->nr_got < n) {
		assert_true(util_now_ns() < end);
		loop_run_once(env->loop, 50);
	}
}

static void test_order(void **state)
{
	containerd_up();
	for (unsigned int i = 0; i < 500; i++)
		publish(i);
	until_got(500);
	for (unsigned int i = 0; i < 500; i++)
		assert_int_equal(env->got[i], i);
}

static void test_waits_for_containerd(void **state)
{
	for (unsigned int i = 0; i < 10; i++)
		publish(i);
	for (int i = 0; i < 20; i++)
		loop_run_once(env->loop, 10);
	assert_int_equal(env->nr_got, 0);
	containerd_up();
	until_got(10);
	for (unsigned int i = 0; i < 10; i++)
		assert_int_equal(env->got[i], i);
}

/* containerd goes away with a call unanswered, and comes back: that event again, then the others. */
static void test_restart_loses_nothing(void **state)
{
	containerd_up();
	publish(1);
	until_got(1);
	env->hold = true;
	publish(2);
	publish(3);
	until_got(2);
	containerd_down();
	for (int i = 0; i < 10; i++)
		loop_run_once(env->loop, 10);
	env->hold = false;
	publish(4);
	containerd_up();
	until_got(5);
	assert_int_equal(env->got[2], 2);
	assert_int_equal(env->got[3], 3);
	assert_int_equal(env->got[4], 4);
}

static void test_refused_event_does_not_block(void **state)
{
	containerd_up();
	env->refuse = 2;
	publish(1);
	publish(2);
	publish(3);
	until_got(3);
	for (int i = 0; i < 10; i++)
		loop_run_once(env->loop, 5);
	assert_int_equal(env->nr_got, 3);
	assert_int_equal(env->got[2], 3);
}

/* More events than the queue holds, with nobody there: the oldest are kept, the newest refused. */
static void test_queue_is_bounded(void **state)
{
	for (unsigned int i = 0; i < EVENTS_QUEUE_MAX + 100; i++)
		publish(i);
	containerd_up();
	until_got(EVENTS_QUEUE_MAX);
	for (int i = 0; i < 10; i++)
		loop_run_once(env->loop, 5);
	assert_int_equal(env->nr_got, EVENTS_QUEUE_MAX);
	assert_int_equal(env->got[EVENTS_QUEUE_MAX - 1], EVENTS_QUEUE_MAX - 1);
}

static void on_flushed(void *ctx)
{
	env->flushed = true;
}

static void test_flush(void **state)
{
	uint64_t begin;

	containerd_up();
	publish(1);
	publish(2);
	publisher_flush(env->p, 10000000000ull, on_flushed, NULL);
	assert_false(env->flushed);
	while (!env->flushed)
		loop_run_once(env->loop, 50);
	assert_int_equal(env->nr_got, 2);
	/* Nothing queued: at once. Nobody there: at the limit. */
	env->flushed = false;
	publisher_flush(env->p, 10000000000ull, on_flushed, NULL);
	loop_run_once(env->loop, 50);
	assert_true(env->flushed);
	containerd_down();
	loop_run_once(env->loop, 0);
	publish(3);
	env->flushed = false;
	begin = util_now_ns();
	publisher_flush(env->p, 200000000ull, on_flushed, NULL);
	while (!env->flushed)
		loop_run_once(env->loop, 50);
	assert_true(util_now_ns() - begin >= 200000000ull);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_order),
		T(test_waits_for_containerd),
		T(test_restart_loses_nothing),
		T(test_refused_event_does_not_block),
		T(test_queue_is_bounded),
		T(test_flush),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
