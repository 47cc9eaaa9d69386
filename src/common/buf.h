/*
 * Byte queue: append at the end, consume at the front. Grows up to the maximum given at
 * initialisation and refuses more (-ENOBUFS), so a peer cannot make it grow without end.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct buf {
	uint8_t *data; /* owned */
	size_t off;    /* first byte not consumed */
	size_t len;    /* bytes not consumed */
	size_t cap;
	size_t max;
};

void buf_init(struct buf *b, size_t max);
void buf_done(struct buf *b);
static inline const uint8_t *buf_head(const struct buf *b)
{
	return b->data + b->off;
}
/* Room for exactly `len` more bytes at the end, NULL when over the maximum; then buf_commit(). */
uint8_t *buf_reserve(struct buf *b, size_t len);
void buf_commit(struct buf *b, size_t len);
/* 0 or -ENOBUFS (nothing appended). */
int buf_append(struct buf *b, const void *data, size_t len);
void buf_consume(struct buf *b, size_t len);
