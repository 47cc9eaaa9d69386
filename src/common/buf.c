/* Byte queue; see buf.h. */
#include "buf.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "util.h"

#define BUF_MIN_CAP 512

void buf_init(struct buf *b, size_t max)
{
	*b = (struct buf){.max = max};
}

void buf_done(struct buf *b)
{
	free(b->data);
	*b = (struct buf){.max = b->max};
}

uint8_t *buf_reserve(struct buf *b, size_t len)
{
	if (len > b->max || b->len > b->max - len)
		return NULL;
	if (b->off + b->len + len <= b->cap)
		return b->data + b->off + b->len;
	if (b->off) {
		memmove(b->data, b->data + b->off, b->len);
		b->off = 0;
	}
	if (b->len + len > b->cap) {
		size_t cap = MAX(b->cap * 2, (size_t)BUF_MIN_CAP);

		b->cap = MIN(MAX(cap, b->len + len), b->max);
		b->data = xrealloc(b->data, b->cap);
	}
	return b->data + b->len;
}

void buf_commit(struct buf *b, size_t len)
{
	assert(b->off + b->len + len <= b->cap);
	b->len += len;
}

int buf_append(struct buf *b, const void *data, size_t len)
{
	uint8_t *p;

	if (!len)
		return 0;
	p = buf_reserve(b, len);
	if (!p)
		return -ENOBUFS;
	memcpy(p, data, len);
	b->len += len;
	return 0;
}

void buf_consume(struct buf *b, size_t len)
{
	assert(len <= b->len);
	b->off += len;
	b->len -= len;
	if (!b->len)
		b->off = 0;
}
