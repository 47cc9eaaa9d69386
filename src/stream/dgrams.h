/*
 * Datagrams over a stream: each with its length before it, 16 bits in network order. At both ends a UDP socket takes
 * and gives them. What does not fit at once is lost, as datagrams are; what was begun is completed.
 *
 * Thread: the loop's.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "loop.h"

struct dgrams;

struct dgrams_callbacks {
	/* One has come out of the stream. Nothing may be freed inside. */
	void (*on_datagram)(void *ctx, const uint8_t *data, size_t len);
	/* The stream is over: dgrams_free() follows, also inside. */
	void (*on_end)(void *ctx);
};

/* *ret_stream: the other end of the stream, of the caller, non-blocking. NULL: errno. */
struct dgrams *dgrams_new(struct loop *loop, const struct dgrams_callbacks *cb, void *ctx,
			  int *ret_stream);
/* Takes the next datagram of a non-blocking UDP socket. -errno as recv() has it, when there is none; 0 also when it was lost. */
int dgrams_take(struct dgrams *d, int udp_fd);
/* Accepts NULL. */
void dgrams_free(struct dgrams *d);
