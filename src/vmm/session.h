/*
 * What the shim asks for, and the machine that comes of it: the state of harpoon-vmm. Loop's thread.
 *
 *   (nothing) --MACHINE--> building --DEVICE...--> building --START--> running <--> paused --> over
 */
#pragma once

#include <stdbool.h>

#include "err.h"
#include "loop.h"
#include "vmm_control.h"

struct session;

/* sock: taken over; made non-blocking. confined: threads get system call filters (tests may not). */
int session_new(struct loop *loop, int sock, bool confined, struct session **ret, struct err *err);
void session_free(struct session *s);

/* One request as it came; fds are taken over. Public for the fuzzer: everything else calls it by way of the
 * socket. 0, or negative errno with a sentence: the session is over. */
int session_handle(struct session *s, const void *data, size_t len, int *fds, size_t nr_fds,
		   struct err *err);
