/* Decoding within limits, and texts that may travel. Shared by server and client. */
#pragma once

#include <stdarg.h>

#include "rpc.h"

/*
 * What one message may take in memory. A few wire bytes can ask for many (empty strings in a repeated
 * field: 2 bytes each on the wire, about 40 here), so the wire limit alone does not bound it.
 */
#define RPC_UNPACK_MAX (4 * (size_t)RPC_MESSAGE_MAX)
/* Longest error text sent or handed to a caller, NUL included. */
#define RPC_TEXT_MAX 1024

/* NULL: malformed, or over RPC_UNPACK_MAX. Freed with protobuf_c_message_free_unpacked(m, NULL). */
ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *type, size_t len,
			     const uint8_t *data);
/*
 * Formats into text, cut to its size. Bytes that are not valid UTF-8 become '?': a protobuf string with
 * such bytes makes the Go side refuse the whole message, and with it the error.
 */
void rpc_format_text(char text[RPC_TEXT_MAX], const char *fmt, va_list ap) HARPOON_PRINTF(2, 0);
