/* Unit tests of src/virtio: guest memory translation and the split virtqueue, honest and hostile. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <linux/virtio_ring.h>

#include "util.h"
#include "virtq.h"

#define RAM_GPA 0x10000ull
#define WINDOW_OFF 0x1000000ull /* behind the RAM */
#define RAM_LEN 0x20000u
#define SIZE 8
#define DESC_OFF 0x0
#define AVAIL_OFF 0x1000
#define USED_OFF 0x2000
#define TABLE_OFF 0x3000
#define DATA_OFF 0x8000

struct fixture {
	uint8_t *ram;
	struct guest_mem mem;
	struct virtq q;
	struct virtq_chain chain;
	struct vring_desc *desc;
	struct vring_desc *table;
	struct vring_avail *avail;
	struct vring_used *used;
};

static struct virtq_config config_of(const struct fixture *f)
{
	return (struct virtq_config){
		.size = SIZE, .desc = f->desc, .avail = f->avail, .used = f->used};
}

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct virtq_config c;

	f->ram = aligned_alloc(4096, RAM_LEN);
	memset(f->ram, 0, RAM_LEN);
	assert_int_equal(guest_mem_add(&f->mem, (gpa_t){RAM_GPA}, RAM_LEN, f->ram), 0);
	f->desc = (void *)(f->ram + DESC_OFF);
	f->avail = (void *)(f->ram + AVAIL_OFF);
	f->used = (void *)(f->ram + USED_OFF);
	f->table = (void *)(f->ram + TABLE_OFF);
	c = config_of(f);
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	free(f->ram);
	free(f);
	return 0;
}

static void put_desc(struct vring_desc *d, uint64_t off, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	*d = (struct vring_desc){.addr = RAM_GPA + off, .len = len, .flags = flags, .next = next};
}

static void offer(struct fixture *f, uint16_t head)
{
	f->avail->ring[f->avail->idx % SIZE] = head;
	f->avail->idx++;
}

static void assert_broken(struct fixture *f)
{
	assert_int_equal(virtq_pop(&f->q, &f->chain), -EPROTO);
	assert_non_null(f->q.broken);
	/* For good. */
	assert_int_equal(virtq_pop(&f->q, &f->chain), -EPROTO);
	assert_false(virtq_has_more(&f->q));
}

static void test_translation_checks_the_whole_range(void **state)
{
	struct fixture *f = *state;
	const uint64_t end = RAM_GPA + RAM_LEN;

	assert_ptr_equal(guest_mem_ptr(&f->mem, (gpa_t){RAM_GPA}, RAM_LEN), f->ram);
	assert_ptr_equal(guest_mem_ptr(&f->mem, (gpa_t){end - 1}, 1), f->ram + RAM_LEN - 1);
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){end - 1}, 2));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){end}, 0));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){end}, 1));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){RAM_GPA - 1}, 1));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){RAM_GPA - 1}, 2));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){0}, 1));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){UINT64_MAX}, 1));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){RAM_GPA}, UINT64_MAX));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){RAM_GPA + 16}, UINT64_MAX - 8));
	assert_null(guest_mem_ptr(&f->mem, (gpa_t){UINT64_MAX - 15}, RAM_GPA + 32));
}

static void test_regions_do_not_overlap_or_wrap(void **state)
{
	struct guest_mem m = {0};
	uint8_t b[1];

	assert_int_equal(guest_mem_add(&m, (gpa_t){0x1000}, 0x1000, b), 0);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0x1fff}, 1, b), -EEXIST);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0}, 0x1001, b), -EEXIST);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0}, 0x10000, b), -EEXIST);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0}, 0x1000, b), 0);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0x2000}, 0, b), -EINVAL);
	assert_int_equal(guest_mem_add(&m, (gpa_t){UINT64_MAX}, 1, b), -EINVAL);
	for (unsigned int i = 2; i < GUEST_MEM_REGIONS_MAX; i++)
		assert_int_equal(guest_mem_add(&m, (gpa_t){i * 0x1000}, 0x1000, b), 0);
	assert_int_equal(guest_mem_add(&m, (gpa_t){1u << 30}, 1, b), -ENOSPC);
	/* Regions that touch are still two: no buffer may cross. */
	assert_null(guest_mem_ptr(&m, (gpa_t){0xfff}, 2));
}

/* What a device shows can be read from, and nothing else. */
static void test_the_window_is_read_only(void **state)
{
	struct guest_mem m = {0};
	uint8_t ram[4096], window[4096];

	(void)state;
	assert_int_equal(guest_mem_add(&m, (gpa_t){0}, 0x1000, ram), 0);
	assert_null(guest_mem_read_ptr(&m, (gpa_t){0x2000}, 1));
	assert_int_equal(guest_mem_set_window(&m, (gpa_t){0xfff}, 0x1000, window), -EEXIST);
	assert_int_equal(guest_mem_set_window(&m, (gpa_t){0x2000}, 0, window), -EINVAL);
	assert_int_equal(guest_mem_set_window(&m, (gpa_t){0x2000}, 0x1000, window), 0);
	assert_int_equal(guest_mem_set_window(&m, (gpa_t){0x8000}, 0x1000, window), -EEXIST);
	assert_int_equal(guest_mem_add(&m, (gpa_t){0x2fff}, 0x1000, ram), -EEXIST);
	assert_null(guest_mem_ptr(&m, (gpa_t){0x2000}, 1));
	assert_ptr_equal(guest_mem_read_ptr(&m, (gpa_t){0x2ffe}, 2), window + 0xffe);
	assert_null(guest_mem_read_ptr(&m, (gpa_t){0x2ffe}, 3));
	assert_null(guest_mem_read_ptr(&m, (gpa_t){0x1fff}, 1));
	assert_ptr_equal(guest_mem_read_ptr(&m, (gpa_t){0x10}, 1), ram + 0x10);
}

static void test_buffers_in_the_window(void **state)
{
	struct fixture *f = *state;
	const gpa_t gpa = {RAM_GPA + WINDOW_OFF};
	uint8_t window[4096];

	assert_int_equal(guest_mem_set_window(&f->mem, gpa, sizeof(window), window), 0);
	put_desc(&f->desc[0], WINDOW_OFF + 16, 8, 0, 0);
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	assert_int_equal(f->chain.nr_readable, 1);
	assert_ptr_equal(f->chain.iov[0].iov_base, window + 16);
	put_desc(&f->desc[1], WINDOW_OFF + 16, 8, VRING_DESC_F_WRITE, 0);
	offer(f, 1);
	assert_broken(f);
}

static void test_start_refuses_bad_rings(void **state)
{
	struct fixture *f = *state;
	static const uint16_t sizes[] = {0, 3, 6, 12, 2048, 65535};
	struct virtq_config c;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		c = config_of(f);
		c.size = sizes[i];
		assert_int_equal(virtq_start(&f->q, &f->mem, &c), -EINVAL);
	}
	c = config_of(f);
	c.desc = f->ram + 8;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), -EINVAL);
	c = config_of(f);
	c.avail = f->ram + 1;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), -EINVAL);
	c = config_of(f);
	c.used = f->ram + 2;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), -EINVAL);
	c = config_of(f);
	assert_int_equal(virtq_start_gpa(&f->q, &f->mem, c, (gpa_t){RAM_GPA},
					 (gpa_t){RAM_GPA + AVAIL_OFF},
					 (gpa_t){RAM_GPA + RAM_LEN - 64}),
			 -EFAULT);
	assert_int_equal(virtq_start_gpa(&f->q, &f->mem, c, (gpa_t){RAM_GPA},
					 (gpa_t){RAM_GPA + AVAIL_OFF},
					 (gpa_t){RAM_GPA + RAM_LEN - virtq_used_len(SIZE) - 2}),
			 0);
}

static void test_a_chain_is_taken_and_given_back(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(virtq_pop(&f->q, &f->chain), 0);
	put_desc(&f->desc[2], DATA_OFF, 40, VRING_DESC_F_NEXT, 5);
	put_desc(&f->desc[5], DATA_OFF + 0x100, 10, VRING_DESC_F_NEXT, 1);
	put_desc(&f->desc[1], DATA_OFF + 0x200, 100, VRING_DESC_F_WRITE, 0);
	offer(f, 2);
	assert_true(virtq_has_more(&f->q));
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	assert_int_equal(f->chain.head, 2);
	assert_int_equal(f->chain.nr_readable, 2);
	assert_int_equal(f->chain.nr_writable, 1);
	assert_int_equal(f->chain.total, 150);
	assert_ptr_equal(f->chain.iov[0].iov_base, f->ram + DATA_OFF);
	assert_int_equal(f->chain.iov[1].iov_len, 10);
	assert_ptr_equal(f->chain.iov[2].iov_base, f->ram + DATA_OFF + 0x200);
	assert_int_equal(f->q.nr_in_flight, 1);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 0);
	virtq_push(&f->q, 2, 77);
	assert_int_equal(f->q.nr_in_flight, 0);
	assert_int_equal(f->used->idx, 1);
	assert_int_equal(f->used->ring[0].id, 2);
	assert_int_equal(f->used->ring[0].len, 77);
}

static void test_touching_buffers_are_joined(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->desc[0], DATA_OFF, 40, VRING_DESC_F_NEXT, 1);
	put_desc(&f->desc[1], DATA_OFF + 40, 8, VRING_DESC_F_NEXT, 2);
	/* Touches too, but in the other direction. */
	put_desc(&f->desc[2], DATA_OFF + 48, 16, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 3);
	put_desc(&f->desc[3], DATA_OFF + 64, 0, VRING_DESC_F_WRITE, 0);
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	assert_int_equal(f->chain.nr_readable, 1);
	assert_int_equal(f->chain.iov[0].iov_len, 48);
	assert_int_equal(f->chain.nr_writable, 1);
	assert_int_equal(f->chain.iov[1].iov_len, 16);
}

static void test_indices_wrap_around(void **state)
{
	struct fixture *f = *state;
	struct virtq_config c = config_of(f);

	c.last_avail = 65534;
	f->avail->idx = 65534;
	f->used->idx = 65534;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
	for (unsigned int i = 0; i < 3 * SIZE; i++) {
		uint16_t head = (uint16_t)(i % SIZE);

		put_desc(&f->desc[head], DATA_OFF, 4, VRING_DESC_F_WRITE, 0);
		offer(f, head);
		assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
		assert_int_equal(f->chain.head, head);
		virtq_push(&f->q, head, 1);
	}
	assert_int_equal(f->used->idx, (uint16_t)(65534 + 3 * SIZE));
	assert_int_equal(virtq_pop(&f->q, &f->chain), 0);
}

static void test_avail_index_too_far_ahead(void **state)
{
	struct fixture *f = *state;

	f->avail->idx = SIZE + 1;
	assert_broken(f);
}

static void test_avail_index_going_back(void **state)
{
	struct fixture *f = *state;

	f->avail->idx = 65535;
	assert_broken(f);
}

static void test_head_beyond_the_queue(void **state)
{
	struct fixture *f = *state;

	offer(f, SIZE);
	assert_broken(f);
}

static void test_next_beyond_the_queue(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->desc[0], DATA_OFF, 4, VRING_DESC_F_NEXT, SIZE);
	offer(f, 0);
	assert_broken(f);
}

static void test_chain_in_a_circle(void **state)
{
	struct fixture *f = *state;

	for (uint16_t i = 0; i < SIZE; i++)
		put_desc(&f->desc[i], DATA_OFF, 0, VRING_DESC_F_NEXT, (uint16_t)((i + 1) % SIZE));
	offer(f, 0);
	assert_broken(f);
}

static void test_head_offered_twice(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->desc[3], DATA_OFF, 4, 0, 0);
	offer(f, 3);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	offer(f, 3);
	assert_broken(f);
}

static void test_head_offered_again_after_its_return(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->desc[3], DATA_OFF, 4, 0, 0);
	offer(f, 3);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	virtq_push(&f->q, 3, 0);
	offer(f, 3);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
}

static void test_readable_after_writable(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->desc[0], DATA_OFF, 4, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
	put_desc(&f->desc[1], DATA_OFF + 64, 4, 0, 0);
	offer(f, 0);
	assert_broken(f);
}

static void test_buffers_outside_memory(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{0, 1},
		{RAM_GPA - 1, 2},
		{RAM_GPA + RAM_LEN, 1},
		{RAM_GPA + RAM_LEN - 1, 2},
		{RAM_GPA, RAM_LEN + 1},
		{UINT64_MAX, 1},
		{UINT64_MAX - 3, UINT32_MAX},
		{RAM_GPA, UINT32_MAX},
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct virtq_config c = config_of(f);

		memset(f->ram, 0, DATA_OFF);
		assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
		f->desc[0] = (struct vring_desc){.addr = bad[i].addr, .len = bad[i].len};
		offer(f, 0);
		assert_broken(f);
	}
}

static void test_chain_of_four_gibibytes(void **state)
{
	struct guest_mem m = {0};
	struct fixture *f = *state;
	struct virtq_config c = config_of(f);

	/* Never touched: only the sum of the lengths matters. */
	assert_int_equal(guest_mem_add(&m, (gpa_t){1ull << 40}, 1ull << 32, f->ram), 0);
	assert_int_equal(virtq_start(&f->q, &m, &c), 0);
	for (uint16_t i = 0; i < 2; i++)
		f->desc[i] = (struct vring_desc){.addr = 1ull << 40,
						 .len = 1u << 31,
						 .flags = i ? 0 : VRING_DESC_F_NEXT,
						 .next = 1};
	offer(f, 0);
	assert_broken(f);
}

static void start_indirect(struct fixture *f)
{
	struct virtq_config c = config_of(f);

	c.indirect = true;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
}

static void test_indirect_table(void **state)
{
	struct fixture *f = *state;

	start_indirect(f);
	put_desc(&f->table[0], DATA_OFF, 40, VRING_DESC_F_NEXT, 2);
	put_desc(&f->table[2], DATA_OFF + 0x100, 80, VRING_DESC_F_WRITE, 0);
	/* A direct buffer before the indirect one is allowed. */
	put_desc(&f->desc[0], DATA_OFF + 0x400, 8, VRING_DESC_F_NEXT, 1);
	put_desc(&f->desc[1], TABLE_OFF, 3 * 16, VRING_DESC_F_INDIRECT, 0);
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	assert_int_equal(f->chain.nr_readable, 2);
	assert_int_equal(f->chain.nr_writable, 1);
	assert_int_equal(f->chain.total, 128);
}

static void test_indirect_not_negotiated(void **state)
{
	struct fixture *f = *state;

	put_desc(&f->table[0], DATA_OFF, 40, 0, 0);
	put_desc(&f->desc[0], TABLE_OFF, 16, VRING_DESC_F_INDIRECT, 0);
	offer(f, 0);
	assert_broken(f);
}

static void test_bad_indirect_tables(void **state)
{
	static const struct {
		uint64_t off;
		uint32_t len;
		uint16_t flags;
	} bad[] = {
		{TABLE_OFF, 0, 0},
		{TABLE_OFF, 15, 0},
		{TABLE_OFF, 17, 0},
		{TABLE_OFF, (SIZE + 1) * 16, 0},
		{TABLE_OFF, 0xfffffff0u, 0},
		{RAM_LEN - 16, 32, 0},
		{TABLE_OFF, 32, VRING_DESC_F_NEXT},
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memset(f->ram, 0, DATA_OFF);
		start_indirect(f);
		put_desc(&f->table[0], DATA_OFF, 4, 0, 0);
		put_desc(&f->desc[0], bad[i].off, bad[i].len, VRING_DESC_F_INDIRECT | bad[i].flags,
			 1);
		offer(f, 0);
		assert_broken(f);
	}
}

static void test_indirect_inside_indirect(void **state)
{
	struct fixture *f = *state;

	start_indirect(f);
	put_desc(&f->table[0], TABLE_OFF, 16, VRING_DESC_F_INDIRECT, 0);
	put_desc(&f->desc[0], TABLE_OFF, 16, VRING_DESC_F_INDIRECT, 0);
	offer(f, 0);
	assert_broken(f);
}

static void test_indirect_table_in_a_circle(void **state)
{
	struct fixture *f = *state;

	start_indirect(f);
	put_desc(&f->table[0], DATA_OFF, 4, VRING_DESC_F_NEXT, 1);
	put_desc(&f->table[1], DATA_OFF, 4, VRING_DESC_F_NEXT, 0);
	put_desc(&f->desc[0], TABLE_OFF, 32, VRING_DESC_F_INDIRECT, 0);
	offer(f, 0);
	assert_broken(f);
}

static void test_restart_heals(void **state)
{
	struct fixture *f = *state;
	struct virtq_config c = config_of(f);

	offer(f, SIZE);
	assert_broken(f);
	f->avail->idx = 0;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
	assert_null(f->q.broken);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 0);
}

static void push_one(struct fixture *f)
{
	put_desc(&f->desc[0], DATA_OFF, 4, 0, 0);
	offer(f, 0);
	assert_int_equal(virtq_pop(&f->q, &f->chain), 1);
	virtq_push(&f->q, 0, 0);
}

static void test_notifications_by_flags(void **state)
{
	struct fixture *f = *state;

	push_one(f);
	assert_true(virtq_should_notify(&f->q));
	f->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	push_one(f);
	assert_false(virtq_should_notify(&f->q));
	virtq_disable_kicks(&f->q);
	assert_int_equal(f->used->flags, VRING_USED_F_NO_NOTIFY);
	assert_false(virtq_enable_kicks(&f->q));
	assert_int_equal(f->used->flags, 0);
	offer(f, 0);
	assert_true(virtq_enable_kicks(&f->q));
}

static void test_notifications_by_event_index(void **state)
{
	struct fixture *f = *state;
	struct virtq_config c = config_of(f);
	uint16_t *avail_event = (uint16_t *)&f->used->ring[SIZE];

	c.event_idx = true;
	assert_int_equal(virtq_start(&f->q, &f->mem, &c), 0);
	/* The first answer is always told; then only when used_event is passed. */
	push_one(f);
	assert_true(virtq_should_notify(&f->q));
	f->avail->ring[SIZE] = 2; /* tell me when entry 2 is there */
	push_one(f);
	assert_false(virtq_should_notify(&f->q));
	push_one(f);
	assert_true(virtq_should_notify(&f->q));
	push_one(f);
	assert_false(virtq_should_notify(&f->q));
	assert_false(virtq_enable_kicks(&f->q));
	assert_int_equal(*avail_event, 4);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_translation_checks_the_whole_range),
		CASE(test_regions_do_not_overlap_or_wrap),
		CASE(test_the_window_is_read_only),
		CASE(test_buffers_in_the_window),
		CASE(test_start_refuses_bad_rings),
		CASE(test_a_chain_is_taken_and_given_back),
		CASE(test_touching_buffers_are_joined),
		CASE(test_indices_wrap_around),
		CASE(test_avail_index_too_far_ahead),
		CASE(test_avail_index_going_back),
		CASE(test_head_beyond_the_queue),
		CASE(test_next_beyond_the_queue),
		CASE(test_chain_in_a_circle),
		CASE(test_head_offered_twice),
		CASE(test_head_offered_again_after_its_return),
		CASE(test_readable_after_writable),
		CASE(test_buffers_outside_memory),
		CASE(test_chain_of_four_gibibytes),
		CASE(test_indirect_table),
		CASE(test_indirect_not_negotiated),
		CASE(test_bad_indirect_tables),
		CASE(test_indirect_inside_indirect),
		CASE(test_indirect_table_in_a_circle),
		CASE(test_restart_heals),
		CASE(test_notifications_by_flags),
		CASE(test_notifications_by_event_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
