/* virtio-balloon over a guest's driver in this process: which memory goes back, and which never may. */
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <linux/virtio_balloon.h>
#include <linux/virtio_mmio.h>

#include "balloon.h"
#include "util.h"
#include "virtio_driver.h"

#define INFLATE 0
#define DEFLATE 1
#define REPORT 2
#define PAGE VIRTIO_BALLOON_PAGE
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define REPORTING (1ull << VIRTIO_BALLOON_F_REPORTING)
#define NR_PAGES 64

struct fixture {
	struct virtio_device *dev;
	struct vdrv *d;
	uint64_t list;	/* page numbers go here */
	uint64_t pages; /* NR_PAGES of them */
};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct err err;

	assert_int_equal(virtio_balloon_new(&(struct virtio_balloon_params){0}, &f->dev, &err), 0);
	f->d = vdrv_new(f->dev, NULL);
	vdrv_up(f->d, EVENT_IDX | REPORTING, 64);
	f->list = vdrv_alloc(f->d, 64 << 10);
	f->pages = vdrv_alloc(f->d, NR_PAGES * PAGE);
	memset(vdrv_ptr(f->d, f->pages), 0x77, NR_PAGES * PAGE);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vdrv_free(f->d);
	free(f);
	return 0;
}

static bool is_zero(struct fixture *f, unsigned int page)
{
	const uint8_t *p = vdrv_ptr(f->d, f->pages + page * PAGE);

	assert_true(p[0] == 0 || p[0] == 0x77);
	for (unsigned int i = 0; i < PAGE; i++)
		assert_int_equal(p[i], p[0]);
	return !p[0];
}

static void put_pfn(struct fixture *f, unsigned int index, uint64_t gpa)
{
	((uint32_t *)vdrv_ptr(f->d, f->list))[index] = htole32((uint32_t)(gpa / PAGE));
}

static void send_list(struct fixture *f, unsigned int queue, uint32_t len)
{
	assert_true(vdrv_add(f->d, queue, &(struct vdrv_buf){f->list, len, false}, 1) >= 0);
	vdrv_kick(f->d, queue);
	vdrv_run(f->d);
}

static void test_inflate_gives_back_these_pages_alone(void **state)
{
	struct fixture *f = *state;
	static const unsigned int pages[] = {3, 4, 5, 10, 9, 20};
	struct virtio_balloon_counts counts;

	for (unsigned int i = 0; i < ARRAY_SIZE(pages); i++)
		put_pfn(f, i, f->pages + pages[i] * PAGE);
	send_list(f, INFLATE, sizeof(pages));
	assert_true(vdrv_used(f->d, INFLATE, NULL) >= 0);
	for (unsigned int page = 0; page < NR_PAGES; page++) {
		bool want = false;

		for (unsigned int i = 0; i < ARRAY_SIZE(pages); i++)
			want = want || pages[i] == page;
		assert_int_equal(is_zero(f, page), want);
	}
	virtio_balloon_get_counts(f->dev, &counts);
	assert_int_equal(counts.inflated, 6);
	/* Deflated pages are simply used again. */
	send_list(f, DEFLATE, sizeof(pages));
	assert_true(vdrv_used(f->d, DEFLATE, NULL) >= 0);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_pages_outside_memory(void **state)
{
	struct fixture *f = *state;
	const uint64_t end = VDRV_RAM_GPA + VDRV_RAM_LEN;
	const uint64_t bad[] = {0, VDRV_RAM_GPA - PAGE, end, (uint64_t)UINT32_MAX * PAGE};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		put_pfn(f, 0, bad[i]);
		send_list(f, INFLATE, 4);
		assert_true(vdrv_needs_reset(f->d));
		vdrv_up(f->d, EVENT_IDX | REPORTING, 64);
	}
	/* A run that begins inside and ends outside. */
	put_pfn(f, 0, end - PAGE);
	put_pfn(f, 1, end);
	send_list(f, INFLATE, 8);
	assert_true(vdrv_needs_reset(f->d));
}

static void test_lists_of_the_wrong_length(void **state)
{
	static const struct {
		uint32_t len;
		bool good;
	} table[] = {{0, true}, {1, false}, {3, false}, {5, false}, {4096, true}, {4100, false}};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct fixture *f = *state;

		for (unsigned int k = 0; k < 2048; k++)
			put_pfn(f, k, f->pages);
		send_list(f, INFLATE, table[i].len);
		assert_int_equal(vdrv_needs_reset(f->d), !table[i].good);
		vdrv_up(f->d, EVENT_IDX | REPORTING, 64);
		send_list(f, DEFLATE, table[i].len);
		assert_int_equal(vdrv_needs_reset(f->d), !table[i].good);
		vdrv_up(f->d, EVENT_IDX | REPORTING, 64);
	}
}

static void test_reported_pages_go_whole_or_not_at_all(void **state)
{
	struct fixture *f = *state;
	const struct vdrv_buf bufs[] = {
		{f->pages + 2 * PAGE, 4 * PAGE, true},	      /* 2 to 5 */
		{f->pages + 10 * PAGE + 100, 2 * PAGE, true}, /* 11 only */
		{f->pages + 20 * PAGE + 1, PAGE - 1, true},   /* none */
		{f->pages + 30 * PAGE, PAGE - 1, true},	      /* none */
	};
	struct virtio_balloon_counts counts;

	assert_true(vdrv_add(f->d, REPORT, bufs, ARRAY_SIZE(bufs)) >= 0);
	vdrv_kick(f->d, REPORT);
	vdrv_wait_used(f->d, REPORT, NULL);
	for (unsigned int page = 0; page < NR_PAGES; page++)
		assert_int_equal(is_zero(f, page), (page >= 2 && page <= 5) || page == 11);
	virtio_balloon_get_counts(f->dev, &counts);
	assert_int_equal(counts.reported, 5 * PAGE);
	/* What the guest offers for reading stays. */
	assert_true(vdrv_add(f->d, REPORT, &(struct vdrv_buf){f->pages + 40 * PAGE, PAGE, false},
			     1) >= 0);
	vdrv_kick(f->d, REPORT);
	vdrv_wait_used(f->d, REPORT, NULL);
	assert_false(is_zero(f, 40));
}

static void test_target_and_actual(void **state)
{
	struct fixture *f = *state;
	struct virtio_balloon_config c;
	struct virtio_balloon_counts counts;
	uint32_t v = htole32(1000), generation = vdrv_read(f->d, VIRTIO_MMIO_CONFIG_GENERATION);

	vdrv_interrupts(f->d);
	virtio_balloon_set_target(f->dev, 1234);
	assert_int_equal(vdrv_interrupts(f->d), 1);
	assert_int_equal(vdrv_read(f->d, VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(le32toh(c.num_pages), 1234);
	/* The guest's to write: actual, whole, and nothing else. */
	virtio_mmio_write(f->d->m, VIRTIO_MMIO_CONFIG + 4, &v, 4);
	virtio_mmio_write(f->d->m, VIRTIO_MMIO_CONFIG, &v, 4);
	virtio_mmio_write(f->d->m, VIRTIO_MMIO_CONFIG + 5, &v, 2);
	virtio_mmio_write(f->d->m, VIRTIO_MMIO_CONFIG + 2, &v, 4);
	virtio_balloon_get_counts(f->dev, &counts);
	assert_int_equal(counts.target_pages, 1234);
	assert_int_equal(counts.actual_pages, 1000);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_inflate_gives_back_these_pages_alone),
		CASE(test_pages_outside_memory),
		CASE(test_lists_of_the_wrong_length),
		CASE(test_reported_pages_go_whole_or_not_at_all),
		CASE(test_target_and_actual),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
