/*
 * Streams over one byte channel: many independent byte streams with per-stream credit, multiplexed
 * over one reliable descriptor (on the qemu backend: a virtio-serial port). Both ends, the shim's
 * hv layer and the agent, use this same code. docs/protocols.md has the wire format.
 *
 * A stream joins a pair of local descriptors to the same stream number on the other side: what is
 * read from `rfd` comes out of the peer's `wfd` and the other way round. Directions end separately:
 * end of file on rfd closes the peer's wfd once everything was delivered. Data flows only when both
 * sides have attached the number, in either order: a sender starts with no credit, and attaching is
 * what grants it. A reader that stalls stops its own stream only; at most MUX_WINDOW bytes of it wait
 * in memory.
 *
 * Threads: everything on the loop's thread. The peer is hostile: frames are bounded and checked, and a
 * protocol violation ends the channel (on_broken), nothing else. Callbacks come from the loop, or from
 * inside mux_free() and mux_detach(), and may call anything here, mux_free() included.
 *
 * Numbers: one side chooses them and does not use one twice in the life of a channel (counting up is
 * enough): the other side may still have to attach, or be told of, the earlier stream.
 *
 * The process ignores SIGPIPE. Descriptors may be pipes, FIFOs, sockets, terminals, regular files and
 * the like of /dev/null. When the last reader of a pipe or FIFO given as wfd goes, that direction ends
 * at once; a FIFO whose readers come and go must be opened O_RDWR.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "loop.h"

#define MUX_WINDOW (256 * 1024)
#define MUX_STREAMS_MAX 4096
#define MUX_HELLO_MAX 256
/* Stream 1 carries ttrpc between shim and agent; callers choose numbers from 16 on. */
#define MUX_STREAM_RPC 1
#define MUX_STREAM_FIRST_FREE 16

struct mux;
struct mux_stream;

/*
 * All directions are over and both descriptors are closed; err 0, or -errno why it was cut short:
 * -EPIPE the peer takes no more of what rfd had, or wfd has no reader; -ECONNRESET the peer cut it off;
 * other errors as read and write gave them.
 */
typedef void (*mux_stream_done_fn)(void *ctx, int err);

struct mux_callbacks {
	/* The peer said hello (once). data: the peer's greeting, borrowed for the call. */
	void (*on_hello)(void *ctx, const void *data, size_t len);
	/* The channel is over (-EPIPE: closed, -EPROTO: violation). Called once, at most; every
	 * stream's done callback has run before. The owner then calls mux_free(). */
	void (*on_broken)(void *ctx, int err);
	/* Whatever came from the peer, before it is acted on; may call nothing here. Usually NULL. */
	void (*on_input)(void *ctx, const void *data, size_t len);
	/* After mux_hold(): nothing more comes from the peer. */
	void (*on_held)(void *ctx);
	/*
	 * The guest's side only, which obeys its host; NULL = requests of this kind break the protocol. The peer
	 * is another one from now on (mux_restart()): streams of MUX_STREAM_FIRST_FREE and above are as they
	 * were, others are over. The owner detaches what it does not want to go on with, and greets.
	 */
	void (*on_restart)(void *ctx);
};

/* fd: the channel, owned by the mux from here on (made non-blocking). */
struct mux *mux_new(struct loop *loop, int fd, const struct mux_callbacks *cb, void *ctx);
/* Ends every stream (done callbacks run with -ECANCELED) and closes the channel. Accepts NULL. */
void mux_free(struct mux *mux);

/*
 * Takes bytes as if the peer had sent them just now: what a guest had sent before it was saved, when it goes
 * on as another one. From the loop. -EMSGSIZE: more than a channel's input buffer holds.
 */
int mux_feed(struct mux *mux, const void *data, size_t len);

/*
 * For a guest that is saved while it has streams, and goes on later with another host's process. mux_hold(): the
 * peer is asked to stop sending; on_held follows, and then both directions of the channel are empty and stay so,
 * whatever happens on the streams meanwhile. -EBUSY: it is held already. mux_go() ends it, and nobody notices. Or
 * the guest is restored elsewhere: there a new mux says mux_restart() first of all, attaches the numbers that were
 * in use, and every byte that was under way comes out once.
 */
int mux_hold(struct mux *mux);
void mux_go(struct mux *mux);
void mux_restart(struct mux *mux);

/* Sends the greeting; len at most MUX_HELLO_MAX. */
int mux_send_hello(struct mux *mux, const void *data, size_t len);

/*
 * Attaches a stream. rfd or wfd may be -1: that direction then is over from the start. Both are owned
 * by the mux from here on, also when this fails, and are made non-blocking; rfd == wfd (a socket) is
 * allowed: it is then shut down per direction and closed once. done may be NULL.
 * -EEXIST: number in use. -ENOSPC: MUX_STREAMS_MAX. -EPIPE: the channel is over. The returned handle
 * (in *ret, may be NULL) is valid until done was called, which is never from inside this function.
 */
int mux_attach(struct mux *mux, uint32_t id, int rfd, int wfd, mux_stream_done_fn done, void *ctx,
	       struct mux_stream **ret);
/* Cuts a stream off: closes its descriptors, tells the peer, calls done with -ECANCELED. */
void mux_detach(struct mux_stream *s);
