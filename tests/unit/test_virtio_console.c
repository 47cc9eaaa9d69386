/* virtio-console and virtio-rng over a guest's driver in this process. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_mmio.h>

#include "console.h"
#include "io.h"
#include "rng.h"
#include "util.h"
#include "virtio_driver.h"

#define RX 0
#define TX 1
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)

struct fixture {
	struct virtio_device *dev;
	struct vdrv *d;
	int out, in; /* the test's ends */
	uint64_t gpa;
};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	int out[2], in[2];
	struct err err;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	f->out = out[0];
	f->in = in[1];
	assert_int_equal(virtio_console_new(
				 &(struct virtio_console_params){.out_fd = out[1], .in_fd = in[0]},
				 &f->dev, &err),
			 0);
	f->d = vdrv_new(f->dev, NULL);
	vdrv_up(f->d, EVENT_IDX, 64);
	f->gpa = vdrv_alloc(f->d, 1 << 20);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vdrv_free(f->d);
	close(f->out);
	close(f->in);
	free(f);
	return 0;
}

static void print(struct fixture *f, uint32_t len)
{
	assert_true(vdrv_add(f->d, TX, &(struct vdrv_buf){f->gpa, len, false}, 1) >= 0);
	vdrv_kick(f->d, TX);
	vdrv_wait_used(f->d, TX, NULL);
}

static void test_output(void **state)
{
	struct fixture *f = *state;
	char got[32] = {0};

	memcpy(vdrv_ptr(f->d, f->gpa), "Linux version\n", 14);
	print(f, 14);
	assert_int_equal(read(f->out, got, sizeof(got)), 14);
	assert_string_equal(got, "Linux version\n");
	/* No byte at all is no fault. */
	print(f, 0);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_flood_with_a_stopped_reader(void **state)
{
	struct fixture *f = *state;
	const uint32_t len = 1 << 20;
	static char got[256 << 10];
	uint64_t lost, total = 0;
	char *note;
	size_t n;

	memset(vdrv_ptr(f->d, f->gpa), 'x', len);
	for (int i = 0; i < 32; i++) {
		print(f, len);
		total += len;
	}
	lost = virtio_console_nr_lost(f->dev);
	/* A pipe holds 64 KiB, we hold as much: everything else is counted. */
	assert_in_range(lost, total - (192 << 10), total - (64 << 10));
	fcntl(f->out, F_SETFL, O_NONBLOCK);
	for (n = 0; n < total - lost;) {
		ssize_t r = read(f->out, got, sizeof(got) - 1);

		if (r > 0)
			n += (size_t)r;
		else
			vdrv_run(f->d);
	}
	assert_int_equal(n, total - lost);
	/* And said, before what comes next. */
	memcpy(vdrv_ptr(f->d, f->gpa), "next", 4);
	print(f, 4);
	vdrv_run(f->d);
	n = (size_t)read(f->out, got, sizeof(got) - 1);
	got[n] = 0;
	note = xasprintf("\n[harpoon-vmm: %llu bytes of console output lost]\nnext",
			 (unsigned long long)lost);
	assert_string_equal(got, note);
	free(note);
}

static void test_reader_is_gone(void **state)
{
	struct fixture *f = *state;

	close(f->out);
	f->out = open("/dev/null", O_RDONLY | O_CLOEXEC);
	vdrv_run(f->d);
	for (int i = 0; i < 10; i++)
		print(f, 4096);
	assert_false(vdrv_needs_reset(f->d));
	assert_int_equal(virtio_console_nr_lost(f->dev), 0);
}

static void test_input(void **state)
{
	struct fixture *f = *state;
	uint32_t len;

	assert_int_equal(write(f->in, "typed", 5), 5);
	vdrv_run(f->d);
	/* It waits for a buffer. */
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){f->gpa, 4, true}, 1) >= 0);
	vdrv_kick(f->d, RX);
	vdrv_wait_used(f->d, RX, &len);
	assert_int_equal(len, 4);
	assert_memory_equal(vdrv_ptr(f->d, f->gpa), "type", 4);
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){f->gpa, 64, true}, 1) >= 0);
	vdrv_kick(f->d, RX);
	vdrv_wait_used(f->d, RX, &len);
	assert_int_equal(len, 1);
	/* A buffer waits for bytes, and is not taken before. */
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){f->gpa, 64, true}, 1) >= 0);
	vdrv_kick(f->d, RX);
	vdrv_run(f->d);
	assert_int_equal(vdrv_used(f->d, RX, NULL), -1);
	assert_int_equal(write(f->in, "more", 4), 4);
	vdrv_wait_used(f->d, RX, &len);
	assert_int_equal(len, 4);
	close(f->in);
	f->in = -1;
	vdrv_run(f->d);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_input_buffer_that_cannot_be_written(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(write(f->in, "x", 1), 1);
	assert_true(vdrv_add(f->d, RX, &(struct vdrv_buf){f->gpa, 4, false}, 1) >= 0);
	vdrv_kick(f->d, RX);
	vdrv_run(f->d);
	assert_true(vdrv_needs_reset(f->d));
}

/* --- rng ----------------------------------------------------------------------------------------- */

static void test_rng(void **state)
{
	struct virtio_device *dev;
	struct vdrv *d;
	struct err err;
	uint64_t gpa;
	uint32_t len;
	uint8_t first[64];

	(void)state;
	assert_int_equal(virtio_rng_new(&dev, &err), 0);
	d = vdrv_new(dev, NULL);
	vdrv_up(d, EVENT_IDX, 16);
	gpa = vdrv_alloc(d, 1 << 20);
	for (int i = 0; i < 2; i++) {
		assert_true(vdrv_add(d, 0, &(struct vdrv_buf){gpa, 64, true}, 1) >= 0);
		vdrv_kick(d, 0);
		vdrv_wait_used(d, 0, &len);
		assert_int_equal(len, 64);
		if (i)
			assert_memory_not_equal(first, vdrv_ptr(d, gpa), 64);
		memcpy(first, vdrv_ptr(d, gpa), 64);
	}
	/* A huge request is answered in part. */
	assert_true(vdrv_add(d, 0, &(struct vdrv_buf){gpa, 1 << 20, true}, 1) >= 0);
	vdrv_kick(d, 0);
	vdrv_wait_used(d, 0, &len);
	assert_int_equal(len, VIRTIO_RNG_REQUEST_MAX);
	/* No room is a fault. */
	assert_true(vdrv_add(d, 0, &(struct vdrv_buf){gpa, 64, false}, 1) >= 0);
	vdrv_kick(d, 0);
	vdrv_run(d);
	assert_true(vdrv_needs_reset(d));
	vdrv_free(d);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_output),
		CASE(test_flood_with_a_stopped_reader),
		CASE(test_reader_is_gone),
		CASE(test_input),
		CASE(test_input_buffer_that_cannot_be_written),
		cmocka_unit_test(test_rng),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
