/*
 * A network device's other side when it is not a tap but a connected socket that carries frames, a length of 32
 * bits in network order before each (as passt speaks it). Stands between the two: the device gets one end of a
 * socket pair that behaves like a tap without offloads, one message a frame with a zero header before it.
 *
 * Loop's thread. A side that takes nothing stops the other; at most one frame each way waits here. A stream that
 * ends or breaks the framing ends the traffic, not the VM.
 */
#pragma once

#include "err.h"
#include "loop.h"

struct netstream;

/* stream: taken over, also on failure. *ret_fd: the device's end, owned by the caller. */
int netstream_new(struct loop *loop, int stream, struct netstream **ret, int *ret_fd,
		  struct err *err);
/* Accepts NULL. */
void netstream_free(struct netstream *n);
