/*
 * Split virtqueue, device side. See virtq.h for the contract; spec: virtio 1.2, 2.7.
 *
 * The guest may rewrite every ring and descriptor while we look. So each field is read once into a
 * local, judged, and only the local is used. The rules, each of which breaks the queue:
 *   - the available index is at most `size` ahead of us;
 *   - a head is below size and not already in flight;
 *   - a chain has at most `size` links, all below size, and at most VIRTQ_SIZE_MAX buffers;
 *   - every buffer lies inside one region of guest memory;
 *   - the buffers of a chain add up to less than 4 GiB;
 *   - no readable buffer follows a writable one;
 *   - indirect tables only when negotiated: not nested, not chained on, whole descriptors, at most
 *     `size` of them.
 *
 * Atomics: avail->idx is read with acquire (pairs with the guest's release when it offers buffers);
 * used->idx is stored with release (pairs with the guest's read of the used ring). The full fences
 * pair with the guest's between its index store and its look at the event or flags field.
 */
#include "virtq.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include <linux/virtio_ring.h>

#include "util.h"

static_assert(sizeof(struct vring_desc) == 16, "descriptor layout");
static_assert(sizeof(struct vring_used_elem) == 8, "used element layout");

uint64_t virtq_desc_len(uint16_t size)
{
	return (uint64_t)size * sizeof(struct vring_desc);
}

uint64_t virtq_avail_len(uint16_t size)
{
	return sizeof(struct vring_avail) + (uint64_t)size * sizeof(uint16_t) + sizeof(uint16_t);
}

uint64_t virtq_used_len(uint16_t size)
{
	return sizeof(struct vring_used) + (uint64_t)size * sizeof(struct vring_used_elem) +
	       sizeof(uint16_t);
}

static uint16_t virtq_load16(const __virtio16 *p)
{
	return le16toh(__atomic_load_n(p, __ATOMIC_RELAXED));
}

/* used_event lives behind the available ring, avail_event behind the used ring. */
static const __virtio16 *virtq_used_event(const struct virtq *q)
{
	return &q->avail->ring[q->size];
}

static __virtio16 *virtq_avail_event(const struct virtq *q)
{
	return (__virtio16 *)(void *)&q->used->ring[q->size];
}

static uint16_t virtq_avail_idx(const struct virtq *q)
{
	return le16toh(__atomic_load_n(&q->avail->idx, __ATOMIC_ACQUIRE));
}

static bool virtq_is_aligned(const void *p, uintptr_t align)
{
	return p && !((uintptr_t)p & (align - 1));
}

int virtq_start(struct virtq *q, const struct guest_mem *mem, const struct virtq_config *config)
{
	uint16_t size = config->size;

	if (!size || size > VIRTQ_SIZE_MAX || (size & (size - 1)))
		return -EINVAL;
	if (!virtq_is_aligned(config->desc, 16) || !virtq_is_aligned(config->avail, 2) ||
	    !virtq_is_aligned(config->used, 4))
		return -EINVAL;
	*q = (struct virtq){
		.mem = mem,
		.desc = config->desc,
		.avail = config->avail,
		.used = config->used,
		.size = size,
		.last_avail = config->last_avail,
		.event_idx = config->event_idx,
		.indirect = config->indirect,
	};
	q->used_idx = virtq_load16(&q->used->idx);
	return 0;
}

int virtq_start_gpa(struct virtq *q, const struct guest_mem *mem, struct virtq_config config,
		    gpa_t desc, gpa_t avail, gpa_t used)
{
	config.desc = guest_mem_ptr(mem, desc, virtq_desc_len(config.size));
	config.avail = guest_mem_ptr(mem, avail, virtq_avail_len(config.size));
	config.used = guest_mem_ptr(mem, used, virtq_used_len(config.size));
	if (!config.desc || !config.avail || !config.used)
		return -EFAULT;
	return virtq_start(q, mem, &config);
}

static int virtq_break(struct virtq *q, const char *why)
{
	q->broken = why;
	return -EPROTO;
}

/* A descriptor copied out of guest memory, in host byte order. */
struct virtq_desc {
	gpa_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

static struct virtq_desc virtq_desc_copy(const struct vring_desc *table, uint16_t index)
{
	struct vring_desc raw;

	memcpy(&raw, &table[index], sizeof(raw));
	/* The compiler must not read the guest's copy again behind our back. */
	__asm__ __volatile__("" : "+m"(raw));
	return (struct virtq_desc){
		.addr = {le64toh(raw.addr)},
		.len = le32toh(raw.len),
		.flags = le16toh(raw.flags),
		.next = le16toh(raw.next),
	};
}

/* Appends one buffer, joined with the one before where they touch. */
static int virtq_add_buffer(struct virtq *q, struct virtq_chain *chain, const struct virtq_desc *d)
{
	bool writable = d->flags & VRING_DESC_F_WRITE;
	unsigned int nr = chain->nr_readable + chain->nr_writable;
	struct iovec *last = nr ? &chain->iov[nr - 1] : NULL;
	uint8_t *host;

	if (!writable && chain->nr_writable)
		return virtq_break(q, "a readable buffer follows a writable one");
	if (__builtin_add_overflow(chain->total, d->len, &chain->total))
		return virtq_break(q, "a chain holds 4 GiB or more");
	if (!d->len)
		return 0;
	host = writable ? guest_mem_ptr(q->mem, d->addr, d->len)
			: (uint8_t *)guest_mem_read_ptr(q->mem, d->addr, d->len);
	if (!host)
		return virtq_break(q, "a buffer lies outside guest memory");
	if (last && writable == (chain->nr_writable > 0) &&
	    (uint8_t *)last->iov_base + last->iov_len == host) {
		last->iov_len += d->len;
		return 0;
	}
	if (nr == ARRAY_SIZE(chain->iov))
		return virtq_break(q, "a chain has too many buffers");
	chain->iov[nr] = (struct iovec){.iov_base = host, .iov_len = d->len};
	if (writable)
		chain->nr_writable++;
	else
		chain->nr_readable++;
	return 0;
}

/* Follows one descriptor table from `index`; in_table = it is an indirect one. */
static int virtq_walk(struct virtq *q, struct virtq_chain *chain, const struct vring_desc *table,
		      uint16_t table_size, uint16_t index, bool in_table);

static int virtq_walk_indirect(struct virtq *q, struct virtq_chain *chain,
			       const struct virtq_desc *d)
{
	const struct vring_desc *table;

	if (!q->indirect)
		return virtq_break(q, "an indirect descriptor was not negotiated");
	if (d->flags & VRING_DESC_F_NEXT)
		return virtq_break(q, "an indirect descriptor is chained on");
	if (!d->len || d->len % sizeof(struct vring_desc))
		return virtq_break(q, "an indirect table is not a number of whole descriptors");
	if (d->len / sizeof(struct vring_desc) > q->size)
		return virtq_break(q, "an indirect table is longer than the queue");
	table = guest_mem_ptr(q->mem, d->addr, d->len);
	if (!table)
		return virtq_break(q, "an indirect table lies outside guest memory");
	return virtq_walk(q, chain, table, (uint16_t)(d->len / sizeof(struct vring_desc)), 0, true);
}

static int virtq_walk(struct virtq *q, struct virtq_chain *chain, const struct vring_desc *table,
		      uint16_t table_size, uint16_t index, bool in_table)
{
	for (unsigned int links = 0; links < table_size; links++) {
		struct virtq_desc d;
		int r;

		if (index >= table_size)
			return virtq_break(q, "a descriptor index is beyond its table");
		d = virtq_desc_copy(table, index);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (in_table)
				return virtq_break(q, "an indirect table is nested");
			return virtq_walk_indirect(q, chain, &d);
		}
		r = virtq_add_buffer(q, chain, &d);
		if (r < 0)
			return r;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		index = d.next;
	}
	return virtq_break(q, "a chain of descriptors is longer than its table");
}

int virtq_pop(struct virtq *q, struct virtq_chain *chain)
{
	uint16_t head, waiting;
	uint64_t bit;
	int r;

	if (q->broken)
		return -EPROTO;
	waiting = (uint16_t)(virtq_avail_idx(q) - q->last_avail);
	if (!waiting)
		return 0;
	if (waiting > q->size)
		return virtq_break(q, "the available index ran ahead of the queue size");
	head = virtq_load16(&q->avail->ring[q->last_avail & (q->size - 1)]);
	if (head >= q->size)
		return virtq_break(q, "an available head is beyond the queue");
	bit = 1ULL << (head % 64);
	if (q->in_flight[head / 64] & bit)
		return virtq_break(q, "a head was offered while still in use");
	chain->head = head;
	chain->nr_readable = 0;
	chain->nr_writable = 0;
	chain->total = 0;
	r = virtq_walk(q, chain, q->desc, q->size, head, false);
	if (r < 0)
		return r;
	q->in_flight[head / 64] |= bit;
	q->nr_in_flight++;
	q->last_avail++;
	return 1;
}

void virtq_unpop(struct virtq *q, uint16_t head)
{
	q->in_flight[head / 64] &= ~(1ULL << (head % 64));
	q->nr_in_flight--;
	q->last_avail--;
}

bool virtq_has_more(const struct virtq *q)
{
	return !q->broken && virtq_avail_idx(q) != q->last_avail;
}

void virtq_push_all(struct virtq *q, const struct virtq_done *done, unsigned int nr)
{
	for (unsigned int i = 0; i < nr; i++) {
		struct vring_used_elem *e = &q->used->ring[q->used_idx & (q->size - 1)];

		q->in_flight[done[i].head / 64] &= ~(1ULL << (done[i].head % 64));
		q->nr_in_flight--;
		e->id = htole32(done[i].head);
		e->len = htole32(done[i].written);
		q->used_idx++;
	}
	__atomic_store_n(&q->used->idx, htole16(q->used_idx), __ATOMIC_RELEASE);
}

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
	virtq_push_all(q, &(struct virtq_done){.head = head, .written = written}, 1);
}

bool virtq_should_notify(struct virtq *q)
{
	uint16_t old = q->signalled;
	bool valid = q->signalled_valid;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!q->event_idx)
		return !(virtq_load16(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
	q->signalled = q->used_idx;
	q->signalled_valid = true;
	return !valid || vring_need_event(virtq_load16(virtq_used_event(q)), q->used_idx, old);
}

bool virtq_enable_kicks(struct virtq *q)
{
	if (q->event_idx)
		__atomic_store_n(virtq_avail_event(q), htole16(q->last_avail), __ATOMIC_RELAXED);
	else
		__atomic_store_n(&q->used->flags, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return virtq_has_more(q);
}

void virtq_disable_kicks(struct virtq *q)
{
	/* With the event index, not moving avail_event is enough: kicks stop by themselves. */
	if (!q->event_idx)
		__atomic_store_n(&q->used->flags, htole16(VRING_USED_F_NO_NOTIFY),
				 __ATOMIC_RELAXED);
}
