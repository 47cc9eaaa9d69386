/*
 * One ttrpc connection, whichever side: frames in, messages out, both bounded. Loop's thread.
 *
 * The owner frees the channel, at any time, from inside its own callbacks too: nothing is called after
 * that, and memory goes when the channel's own frames on the stack are done.
 */
#pragma once

#include "buf.h"
#include "rpc.h"

struct rpc_chan;

struct rpc_chan_ops {
	/* payload: borrowed for the call. */
	void (*on_frame)(void *ctx, const struct rpc_frame_header *h, const uint8_t *payload);
	/* A frame over RPC_MESSAGE_MAX came and was thrown away. */
	void (*on_oversize)(void *ctx, const struct rpc_frame_header *h);
	/* Everything queued is written, or lost. May be NULL; does not free the channel. */
	void (*on_drained)(void *ctx);
	/* The connection is over (once). Never from inside rpc_chan_send(). */
	void (*on_end)(void *ctx);
};

/* fd: owned from here on, also on failure. NULL on failure, errno set. */
struct rpc_chan *rpc_chan_new(struct loop *loop, int fd, const struct rpc_chan_ops *ops, void *ctx);
void rpc_chan_free(struct rpc_chan *c);
/*
 * 0 = queued; -EMSGSIZE: over RPC_MESSAGE_MAX, nothing sent; -EPIPE: nothing can be sent any more (with
 * a peer that lets RPC_OUT_MAX pile up the connection ends).
 */
int rpc_chan_send(struct rpc_chan *c, uint32_t stream, enum rpc_frame_type type,
		  const ProtobufCMessage *msg);
bool rpc_chan_is_drained(const struct rpc_chan *c);
