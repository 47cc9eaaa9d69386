/*
 * Fuzz entry: a virtqueue over guest memory that is all input. The input is laid over a small guest
 * memory, rings and tables included; the queue is drained as a device does, and between two requests
 * a byte of memory changes, as a guest's other processor could do it.
 *
 * Checked beyond "no crash": every buffer handed out lies inside guest memory and none is counted twice.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"
#include "virtq.h"

#define RAM_LEN 16384u
#define RAM_GPA 0x1000u
#define ROUNDS_MAX 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
	if (!ok)
		abort();
}

static void check_chain(const struct virtq_chain *c, const uint8_t *ram)
{
	uint64_t sum = 0;

	check(c->nr_readable + c->nr_writable <= VIRTQ_SIZE_MAX);
	for (unsigned int i = 0; i < (unsigned int)c->nr_readable + c->nr_writable; i++) {
		const uint8_t *p = c->iov[i].iov_base;

		check(p >= ram && p < ram + RAM_LEN && c->iov[i].iov_len <= RAM_LEN &&
		      c->iov[i].iov_len <= (size_t)(ram + RAM_LEN - p));
		sum += c->iov[i].iov_len;
	}
	check(sum == c->total);
}

static void drain(struct virtq *q, struct virtq_chain *c, uint8_t *ram, const uint8_t *extra,
		  size_t extra_len)
{
	for (unsigned int round = 0; round < ROUNDS_MAX; round++) {
		int r = virtq_pop(q, c);

		if (r < 0) {
			check(q->broken != NULL);
			return;
		}
		if (!r && !virtq_enable_kicks(q))
			return;
		if (r) {
			check_chain(c, ram);
			check(q->nr_in_flight <= q->size);
			if (c->head & 1)
				virtq_push(q, c->head, c->total);
			(void)virtq_should_notify(q);
		}
		if (extra_len >= 3) {
			uint16_t at;

			memcpy(&at, extra, sizeof(at));
			ram[at % RAM_LEN] = extra[2];
			extra += 3;
			extra_len -= 3;
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct virtq_chain chain;
	struct guest_mem mem = {0};
	struct virtq_config c = {0};
	struct virtq q;
	uint8_t *ram;
	size_t n;

	if (size < 8)
		return 0;
	c.size = (uint16_t)(1u << (data[0] % 12));
	c.event_idx = data[1] & 1;
	c.indirect = data[1] & 2;
	memcpy(&c.last_avail, data + 2, sizeof(c.last_avail));
	ram = aligned_alloc(4096, RAM_LEN);
	memset(ram, 0, RAM_LEN);
	n = MIN(size - 8, RAM_LEN);
	memcpy(ram, data + 8, n);
	check(guest_mem_add(&mem, (gpa_t){RAM_GPA}, RAM_LEN, ram) == 0);
	if (virtq_start_gpa(&q, &mem, c, (gpa_t){RAM_GPA + data[4] * 16u},
			    (gpa_t){RAM_GPA + data[5] * 16u},
			    (gpa_t){RAM_GPA + data[6] * 64u}) == 0)
		drain(&q, &chain, ram, data + 8 + n, size - 8 - n);
	free(ram);
	return 0;
}
