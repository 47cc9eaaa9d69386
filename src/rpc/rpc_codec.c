/*
 * ttrpc: frame headers, bounded unpacking, error codes, error texts. Pure; no state.
 *
 * Frame header (big endian): u32 payload length, u32 stream, u8 type, u8 flags.
 */
#include "rpc_codec.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void rpc_frame_header_decode(const uint8_t in[RPC_HEADER_LEN], struct rpc_frame_header *ret)
{
	uint32_t len, stream;

	memcpy(&len, in, sizeof(len));
	memcpy(&stream, in + 4, sizeof(stream));
	*ret = (struct rpc_frame_header){
		.len = be32toh(len), .stream = be32toh(stream), .type = in[8], .flags = in[9]};
}

void rpc_frame_header_encode(const struct rpc_frame_header *h, uint8_t out[RPC_HEADER_LEN])
{
	uint32_t len = htobe32(h->len), stream = htobe32(h->stream);

	memcpy(out, &len, sizeof(len));
	memcpy(out + 4, &stream, sizeof(stream));
	out[8] = h->type;
	out[9] = h->flags;
}

/* ---- unpacking ---- */

/* Counted for each allocation beside its size: what the allocator itself needs. */
#define RPC_ALLOC_OVERHEAD 16

static void *rpc_budget_alloc(void *ctx, size_t size)
{
	size_t *left = ctx;

	if (size > *left || *left - size < RPC_ALLOC_OVERHEAD)
		return NULL;
	*left -= size + RPC_ALLOC_OVERHEAD;
	return malloc(size);
}

static void rpc_budget_free(void *ctx, void *p)
{
	(void)ctx;
	free(p);
}

ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *type, size_t len,
			     const uint8_t *data)
{
	size_t left = RPC_UNPACK_MAX;
	ProtobufCAllocator budget = {
		.alloc = rpc_budget_alloc, .free = rpc_budget_free, .allocator_data = &left};

	return protobuf_c_message_unpack(type, &budget, len, data);
}

/* ---- texts ---- */

/* Length of the UTF-8 character at s, 0 when it is none. Shortest forms only, no surrogates. */
static size_t rpc_utf8_len(const unsigned char *s)
{
	uint32_t min, c;
	size_t len;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	min = len == 2 ? 0x80 : len == 3 ? 0x800 : 0x10000;
	c = s[0] & (0xff >> (len + 1));
	for (size_t i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < min || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return len;
}

void rpc_format_text(char text[RPC_TEXT_MAX], const char *fmt, va_list ap)
{
	vsnprintf(text, RPC_TEXT_MAX, fmt, ap);
	for (char *s = text; *s;) {
		size_t len = rpc_utf8_len((unsigned char *)s);

		if (!len)
			*s = '?';
		s += MAX(len, (size_t)1);
	}
}

/* ---- codes ---- */

/* In both directions the first row that fits decides. */
static const struct {
	int err;
	enum rpc_code code;
} rpc_errors[] = {
	{0, RPC_OK},
	{ECANCELED, RPC_CANCELED},
	{EIO, RPC_UNKNOWN},
	{EINVAL, RPC_INVALID_ARGUMENT},
	{ENAMETOOLONG, RPC_INVALID_ARGUMENT},
	{ETIMEDOUT, RPC_DEADLINE_EXCEEDED},
	{ENOENT, RPC_NOT_FOUND},
	{ESRCH, RPC_NOT_FOUND},
	{EEXIST, RPC_ALREADY_EXISTS},
	{EACCES, RPC_PERMISSION_DENIED},
	{EPERM, RPC_PERMISSION_DENIED},
	{ENOSPC, RPC_RESOURCE_EXHAUSTED},
	{ENOMEM, RPC_RESOURCE_EXHAUSTED},
	{ENOBUFS, RPC_RESOURCE_EXHAUSTED},
	{EMFILE, RPC_RESOURCE_EXHAUSTED},
	{ENFILE, RPC_RESOURCE_EXHAUSTED},
	{EDQUOT, RPC_RESOURCE_EXHAUSTED},
	{EMSGSIZE, RPC_RESOURCE_EXHAUSTED},
	{EBUSY, RPC_FAILED_PRECONDITION},
	{ECONNABORTED, RPC_ABORTED},
	{ERANGE, RPC_OUT_OF_RANGE},
	{ENOSYS, RPC_UNIMPLEMENTED},
	{EOPNOTSUPP, RPC_UNIMPLEMENTED},
	{EPROTO, RPC_INTERNAL},
	{EPIPE, RPC_UNAVAILABLE},
	{EAGAIN, RPC_UNAVAILABLE},
	{ECONNREFUSED, RPC_UNAVAILABLE},
	{ECONNRESET, RPC_UNAVAILABLE},
	{ENOTCONN, RPC_UNAVAILABLE},
	{EBADMSG, RPC_DATA_LOSS},
	{EKEYREJECTED, RPC_UNAUTHENTICATED},
};

enum rpc_code rpc_code_from_errno(int err)
{
	for (size_t i = 0; i < ARRAY_SIZE(rpc_errors); i++)
		if (rpc_errors[i].err == -err)
			return rpc_errors[i].code;
	return RPC_UNKNOWN;
}

int rpc_code_to_errno(uint32_t code)
{
	for (size_t i = 0; i < ARRAY_SIZE(rpc_errors); i++)
		if (rpc_errors[i].code == code)
			return -rpc_errors[i].err;
	return -EIO;
}
