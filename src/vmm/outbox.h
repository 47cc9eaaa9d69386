/*
 * Events on their way to the shim: sent at once, or when the socket has room. Loop's thread.
 *
 * Bounded by what the shim asks for (a stream's end, a pause) and a few more. A shim that does not read
 * is waited for without blocking anything.
 */
#pragma once

#include "list.h"
#include "loop.h"
#include "vmm_control.h"

struct outbox {
	int sock;		  /* borrowed */
	struct loop_watch *watch; /* borrowed; gets EPOLLOUT while something waits */
	struct list waiting;
};

void outbox_init(struct outbox *o, int sock, struct loop_watch *watch);
void outbox_send(struct outbox *o, const struct vmm_event *event);
/* The socket has room. */
void outbox_flush(struct outbox *o);
/* Everything must get out, whatever time it takes: the program ends. */
void outbox_drain(struct outbox *o);
void outbox_done(struct outbox *o);
