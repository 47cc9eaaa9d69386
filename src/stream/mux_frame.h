/*
 * Frames of the stream multiplexer: an 8 byte header, then up to MUX_PAYLOAD_MAX bytes. Little endian.
 *
 *   0  u32  stream number; 0 only for HELLO and what is about the channel itself
 *   4  u8   type
 *   5  u8   reserved, 0
 *   6  u16  length of the payload
 *
 * docs/protocols.md says what each type means. Pure functions, no state.
 */
#pragma once

#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "mux.h"
#include "util.h"

#define MUX_HEADER_LEN 8
#define MUX_PAYLOAD_MAX 32768

enum mux_type {
	MUX_HELLO = 1,	 /* greeting, once per side */
	MUX_OPEN,	 /* u32 credit: the sender has attached this number */
	MUX_WINDOW_MORE, /* u32 more credit, never 0 */
	MUX_DATA,
	MUX_FIN,   /* no more DATA from the sender, everything was sent */
	MUX_RESET, /* no more DATA from the sender, cut short */
	MUX_STOP,  /* the sender takes no more DATA */
	/* Of the channel, for a guest that is saved with streams open: see mux_hold(). */
	MUX_HOLD,    /* send nothing after the answer */
	MUX_HELD,    /* the answer */
	MUX_GO,	     /* go on as before */
	MUX_RESTART, /* I am another one: open what you have anew, and greet */
	MUX_TYPE_MAX
};

struct mux_frame {
	uint32_t stream;
	uint8_t type;
	uint16_t len;
};

static inline void mux_put_u32(uint8_t *out, uint32_t v)
{
	v = htole32(v);
	memcpy(out, &v, sizeof(v));
}

static inline uint32_t mux_get_u32(const uint8_t *in)
{
	uint32_t v;

	memcpy(&v, in, sizeof(v));
	return le32toh(v);
}

static inline void mux_frame_encode(const struct mux_frame *f, uint8_t out[MUX_HEADER_LEN])
{
	uint16_t len = htole16(f->len);

	mux_put_u32(out, f->stream);
	out[4] = f->type;
	out[5] = 0;
	memcpy(out + 6, &len, sizeof(len));
}

/* 0, or -EPROTO for a header no honest peer sends. */
static inline int mux_frame_decode(const uint8_t in[MUX_HEADER_LEN], struct mux_frame *ret)
{
	static const struct {
		uint16_t min, max;
	} lens[MUX_TYPE_MAX] = {
		[MUX_HELLO] = {0, MUX_HELLO_MAX},
		[MUX_OPEN] = {4, 4},
		[MUX_WINDOW_MORE] = {4, 4},
		[MUX_DATA] = {1, MUX_PAYLOAD_MAX},
	};
	struct mux_frame f = {.stream = mux_get_u32(in), .type = in[4]};

	memcpy(&f.len, in + 6, sizeof(f.len));
	f.len = le16toh(f.len);
	if (f.type < MUX_HELLO || f.type >= MUX_TYPE_MAX || in[5])
		return -EPROTO;
	if (f.len < lens[f.type].min || f.len > lens[f.type].max)
		return -EPROTO;
	if ((f.stream == 0) != (f.type == MUX_HELLO || f.type >= MUX_HOLD))
		return -EPROTO;
	*ret = f;
	return 0;
}
