/*
 * One stream over a connected socket of its own (vsock): joins it to a pair of local descriptors, with the
 * rules that mux.h has for a stream of a multiplexed channel.
 *
 * What is read from rfd goes out of the socket, what comes in goes to wfd; directions end separately, by
 * shutdown() of the socket. A reader that stalls stops its own direction only, and at most
 * BRIDGE_BUFFER bytes of it wait in memory.
 *
 * Everything on the loop's thread; done is called from the loop or from inside bridge_detach(), and may call
 * anything. The process ignores SIGPIPE.
 */
#pragma once

#include "loop.h"

#define BRIDGE_BUFFER (64 * 1024)

struct bridge;

/*
 * All directions are over and all descriptors closed. err 0, or -errno why it was cut short: -EPIPE the
 * peer takes no more of what rfd had, or wfd has no reader; -ECONNRESET the peer cut it off;
 * -ECANCELED bridge_detach(); others as read and write gave them.
 */
typedef void (*bridge_done_fn)(void *ctx, int err);

/* sock, rfd and wfd are owned from here on and made non-blocking. rfd, wfd: -1 = that direction is over
 * from the start; rfd == wfd is allowed. done is never called from inside. Never NULL. */
struct bridge *bridge_new(struct loop *loop, int sock, int rfd, int wfd, bridge_done_fn done,
			  void *ctx);
/* Closes everything and calls done with -ECANCELED. */
void bridge_detach(struct bridge *b);
