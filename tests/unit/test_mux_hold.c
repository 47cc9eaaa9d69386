/*
 * Unit tests of src/stream: a channel that is held while one side is saved, and goes on with the same or another
 * peer. b is the guest's side, which obeys.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "io.h"
#include "mux.h"
#include "run_until.h"

#define TIMEOUT_NS 20000000000ull

struct fix {
	struct loop *loop;
	struct mux *a, *b;
	int a_fd; /* keeps the channel open when a is gone, as a guest's port is */
	int nr_held, nr_restarts, nr_hellos, broken_a, broken_b, done;
};

static void on_held(void *ctx)
{
	((struct fix *)ctx)->nr_held++;
}

static void on_hello(void *ctx, const void *data, size_t len)
{
	((struct fix *)ctx)->nr_hellos++;
}

static void on_broken_a(void *ctx, int err)
{
	((struct fix *)ctx)->broken_a = err;
}

static void on_broken_b(void *ctx, int err)
{
	((struct fix *)ctx)->broken_b = err;
}

static void on_restart(void *ctx)
{
	struct fix *f = ctx;

	f->nr_restarts++;
	assert_int_equal(mux_send_hello(f->b, "again", 5), 0);
}

static void on_done(void *ctx, int err)
{
	((struct fix *)ctx)->done = err ? err : 1;
}

static const struct mux_callbacks host = {
	.on_hello = on_hello, .on_broken = on_broken_a, .on_held = on_held};
static const struct mux_callbacks guest = {.on_broken = on_broken_b, .on_restart = on_restart};

static int setup(void **state)
{
	struct fix *f = xcalloc(1, sizeof(*f));
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	f->loop = loop_new();
	f->a_fd = fcntl(sv[0], F_DUPFD_CLOEXEC, 0);
	f->a = mux_new(f->loop, sv[0], &host, f);
	f->b = mux_new(f->loop, sv[1], &guest, f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	mux_free(f->a);
	mux_free(f->b);
	loop_free(f->loop);
	close(f->a_fd);
	free(f);
	return 0;
}

static void run_idle(struct fix *f)
{
	uint64_t before;

	do {
		before = util_now_ns();
		assert_int_equal(loop_run_once(f->loop, 20), 0);
	} while (util_now_ns() - before < 19000000);
}

static int waiting(int fd)
{
	int n = -1;

	assert_int_equal(ioctl(fd, FIONREAD, &n), 0);
	return n;
}

static void expect(int fd, const char *text)
{
	char got[64] = "";

	assert_int_equal(read(fd, got, sizeof(got) - 1), strlen(text));
	assert_string_equal(got, text);
}

/* A process of the guest with one output and one input, as streams 16 and 17 of b. */
struct process {
	int out, in; /* its own ends */
	int a_out, a_in;
};

static void attach_guest(struct fix *f, struct process *p)
{
	int out[2], in[2];

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	p->out = out[1];
	p->in = in[0];
	assert_int_equal(mux_attach(f->b, 16, out[0], -1, NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->b, 17, -1, in[1], NULL, NULL, NULL), 0);
}

static void attach_host(struct fix *f, struct process *p)
{
	int out[2], in[2];

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	p->a_out = out[0];
	p->a_in = in[1];
	assert_int_equal(mux_attach(f->a, 16, -1, out[1], NULL, NULL, NULL), 0);
	assert_int_equal(mux_attach(f->a, 17, in[0], -1, NULL, NULL, NULL), 0);
}

static void process_done(struct process *p)
{
	close(p->out);
	close(p->in);
	close(p->a_out);
	close(p->a_in);
}

static void hold(struct fix *f)
{
	assert_int_equal(mux_hold(f->a), 0);
	assert_int_equal(mux_hold(f->a), -EBUSY);
	RUN_UNTIL(f, f->nr_held);
	run_idle(f);
	assert_int_equal(waiting(f->a_fd), 0);
	assert_int_equal(f->nr_held, 1);
}

static void test_goes_on(void **state)
{
	struct fix *f = *state;
	struct process p;

	attach_guest(f, &p);
	attach_host(f, &p);
	assert_int_equal(write(p.out, "one", 3), 3);
	run_idle(f);
	expect(p.a_out, "one");
	hold(f);
	/* Nothing of it moves, in either direction. */
	assert_int_equal(write(p.out, "two", 3), 3);
	assert_int_equal(write(p.a_in, "word", 4), 4);
	run_idle(f);
	assert_int_equal(waiting(p.a_out), 0);
	assert_int_equal(waiting(p.in), 0);
	assert_int_equal(waiting(f->a_fd), 0);
	mux_go(f->a);
	run_idle(f);
	expect(p.a_out, "two");
	expect(p.in, "word");
	/* And once more. */
	f->nr_held = 0;
	hold(f);
	mux_go(f->a);
	assert_int_equal(write(p.out, "three", 5), 5);
	run_idle(f);
	expect(p.a_out, "three");
	assert_int_equal(f->nr_restarts, 0);
	process_done(&p);
}

static void change_peer(struct fix *f)
{
	mux_free(f->a);
	f->a = mux_new(f->loop, fcntl(f->a_fd, F_DUPFD_CLOEXEC, 0), &host, f);
	mux_restart(f->a);
	RUN_UNTIL(f, f->nr_hellos);
	assert_int_equal(f->nr_restarts, 1);
}

static void test_goes_on_with_another_peer(void **state)
{
	struct fix *f = *state;
	struct process p;

	attach_guest(f, &p);
	attach_host(f, &p);
	assert_int_equal(mux_attach(f->b, MUX_STREAM_RPC, open("/dev/zero", O_RDWR | O_CLOEXEC), -1,
				    on_done, f, NULL),
			 0);
	assert_int_equal(write(p.a_in, "before ", 7), 7);
	run_idle(f);
	hold(f);
	assert_int_equal(write(p.out, "kept", 4), 4);
	run_idle(f);
	close(p.a_in);
	close(p.a_out);
	change_peer(f);
	/* What is no stream of a container is over. */
	assert_int_equal(f->done, -ECONNRESET);
	assert_int_equal(mux_attach(f->b, MUX_STREAM_RPC, -1, -1, NULL, NULL, NULL), 0);
	attach_host(f, &p);
	assert_int_equal(write(p.a_in, "after", 5), 5);
	run_idle(f);
	expect(p.a_out, "kept");
	expect(p.in, "before after");
	/* Ends are ends, as ever. */
	close(p.a_in);
	close(p.out);
	run_idle(f);
	expect(p.in, "");
	expect(p.a_out, "");
	assert_int_equal(f->broken_a, 0);
	assert_int_equal(f->broken_b, 0);
	close(p.in);
	close(p.a_out);
}

/* Much is under way in both directions: every byte comes out once, in order. */
static void test_no_byte_is_lost(void **state)
{
	struct fix *f = *state;
	static char data[3 * MUX_WINDOW], got[sizeof(data)];
	size_t sent = 0, n = 0;
	struct process p;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (char)((i * 2654435761u) >> 13);
	attach_guest(f, &p);
	attach_host(f, &p);
	assert_int_equal(io_set_nonblock(p.a_in, true), 0);
	assert_int_equal(io_set_nonblock(p.in, true), 0);
	for (int i = 0; i < 40; i++) {
		ssize_t w = write(p.a_in, data + sent, sizeof(data) - sent);

		sent += (size_t)MAX(w, 0);
		assert_int_equal(loop_run_once(f->loop, 5), 0);
	}
	hold(f);
	close(p.a_out);
	/* What the old peer had not sent is in its pipe, and lost with it here: take it out. */
	sent -= (size_t)waiting(p.a_in);
	close(p.a_in);
	change_peer(f);
	attach_host(f, &p);
	assert_int_equal(io_set_nonblock(p.a_in, true), 0);
	RUN_UNTIL(f, ({
			  ssize_t w = write(p.a_in, data + sent, sizeof(data) - sent);
			  ssize_t r = read(p.in, got + n, sizeof(got) - n);

			  sent += (size_t)MAX(w, 0);
			  n += (size_t)MAX(r, 0);
			  n == sizeof(got);
		  }));
	assert_memory_equal(got, data, sizeof(data));
	process_done(&p);
}

/* An input that had ended, and one that the new peer does not want. */
static void test_ends_across_a_restart(void **state)
{
	struct fix *f = *state;
	struct process p;

	attach_guest(f, &p);
	attach_host(f, &p);
	close(p.a_in);
	run_idle(f);
	expect(p.in, "");
	close(p.out);
	run_idle(f);
	hold(f);
	change_peer(f);
	run_idle(f);
	assert_int_equal(f->broken_a, 0);
	assert_int_equal(f->broken_b, 0);
	close(p.in);
	close(p.a_out);
}

static void test_a_host_does_not_obey(void **state)
{
	struct fix *f = *state;

	/* The guest asks its host to hold. */
	assert_int_equal(mux_hold(f->b), 0);
	RUN_UNTIL(f, f->broken_a);
	assert_int_equal(f->broken_a, -EPROTO);
}

static void test_restart_unheld(void **state)
{
	struct fix *f = *state;

	mux_restart(f->a);
	RUN_UNTIL(f, f->broken_b);
	assert_int_equal(f->broken_b, -EPROTO);
	assert_int_equal(f->nr_restarts, 0);
}

int main(void)
{
#define CASE(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
	const struct CMUnitTest tests[] = {
		CASE(test_goes_on),
		CASE(test_goes_on_with_another_peer),
		CASE(test_no_byte_is_lost),
		CASE(test_ends_across_a_restart),
		CASE(test_a_host_does_not_obey),
		CASE(test_restart_unheld),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("mux_hold", tests, NULL, NULL);
}
