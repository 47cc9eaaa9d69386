/* What mux.c (the channel) and mux_stream.c (the streams on it) share. */
#pragma once

#include "buf.h"
#include "mux.h"
#include "mux_frame.h"

#define MUX_BUCKETS 256
/* Numbers the peer attached and gave up before we attached them: remembered, oldest forgotten. */
#define MUX_GONE_MAX 1024
/* Streams add to the output while it is at most LOW, up to HIGH; control frames always, up to MAX. */
#define MUX_OUT_LOW (32 * 1024)
#define MUX_OUT_HIGH (128 * 1024)
#define MUX_OUT_MAX (1024 * 1024)
#define MUX_IN_LEN (64 * 1024)
/* Buffers of a channel that was busy are given back after this long. */
#define MUX_TRIM_NS 5000000000ull

struct mux {
	struct loop *loop;
	struct mux_callbacks cb;
	void *ctx;
	int fd; /* owned */
	struct loop_watch *watch;
	struct loop_timer kick;
	struct loop_timer trim;
	struct buf out;
	size_t in_len;
	uint8_t *in; /* MUX_IN_LEN bytes, or NULL while nothing comes */
	struct list table[MUX_BUCKETS];
	struct list attached; /* streams with an owner, descriptors open */
	struct list ready;    /* streams that may have something to read, and credit: round robin */
	struct list finished; /* streams whose owner is to be told */
	struct list gone;     /* see MUX_GONE_MAX, oldest first */
	uint32_t nr_gone;
	uint32_t nr_local;   /* in the table, attached here at some time */
	uint32_t nr_pending; /* in the table, the peer's only */
	bool hello_got;
	bool holds; /* only hold_len bytes of the output may still go */
	bool held;  /* the peer has sent its last byte */
	size_t hold_len;
	bool out_dead; /* the peer takes nothing any more; what it sent before is still read */
	bool told;
	bool freed;
	unsigned int depth; /* > 0: a caller further up still uses the mux */
	int err;	    /* the channel is over */
};

enum { MUX_R, MUX_W };

/*
 * One stream, or what is known of a number that has no owner here: attached by the peer only, or
 * detached here while the peer may still be sending. In the table until both sides have said that
 * they send no more; after that it may live on outside to empty its buffer into wfd.
 */
struct mux_stream {
	struct list link;  /* mux.attached, .finished or .gone */
	struct list hash;  /* mux.table */
	struct list ready; /* mux.ready */
	struct mux *mux;
	uint32_t id;
	int fd[2];   /* owned; -1 = that direction is over here */
	bool shared; /* rfd == wfd: one watch, in watch[MUX_R] */
	struct loop_watch *watch[2];
	uint32_t want[2];
	bool hup[2];	/* hung up, and neither readable nor writable: nothing to wait for */
	bool nopoll[2]; /* epoll refuses it: regular file, /dev/null; always ready */

	bool attached; /* has an owner */
	bool local;    /* we have sent OPEN */
	bool peer_open;
	bool in_table;
	bool gone;
	bool tx_ended; /* FIN or RESET sent */
	bool rx_ended; /* FIN or RESET received */
	bool rx_reset;
	bool stop_sent;
	bool stop_got;
	bool tx_more; /* the last read was full: read again without asking epoll */

	uint32_t tx_credit;  /* what we may send */
	uint32_t rx_credit;  /* what the peer may send */
	uint32_t rx_unacked; /* taken by wfd, not yet granted again */
	struct buf rx;

	int err;
	mux_stream_done_fn done;
	void *ctx;
};

/* mux.c */
void mux_enter(struct mux *m);
void mux_leave(struct mux *m);
/* Runs pump, flush and callbacks in the next round: for calls that come from outside the loop. */
void mux_kick(struct mux *m);
void mux_send(struct mux *m, uint32_t id, enum mux_type type, const void *payload, size_t len);
int mux_violation(struct mux *m, uint32_t id, const char *what);

/* mux_stream.c */
/* One frame from the peer for a stream. 0 or -EPROTO. */
int mux_stream_frame(struct mux *m, const struct mux_frame *f, const uint8_t *payload);
/* The peer is another one: streams with an owner are opened anew, all else of them is forgotten. */
void mux_stream_restart_all(struct mux *m);
/* Reads one frame's worth from a stream taken off mux.ready into the output. */
void mux_stream_pump(struct mux_stream *s);
/* Closes the stream's descriptors and has its owner told. */
void mux_stream_cut(struct mux_stream *s, int err);
/* Tells the owner; frees the stream unless its number must stay known. */
void mux_stream_finish(struct mux_stream *s);
void mux_stream_free(struct mux_stream *s);
