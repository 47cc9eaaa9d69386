/*
 * Errors of the control path: a negative errno plus one sentence. Caller-owned, no heap, so it works
 * when memory is gone. Functions that fill one return the same negative errno; `err` may be NULL.
 * Data paths return -errno only.
 */
#pragma once

#include <stdarg.h>

#include "util.h"

#define ERR_MSG_MAX 512

struct err {
	int code; /* negative errno, 0 = none */
	char msg[ERR_MSG_MAX];
};

/*
 * Sets *err to `code` (negative errno) and the formatted text. err_set() appends ": <strerror>" so
 * write what was attempted ("open '%s'"); err_say() takes the sentence as it is. Both return `code`.
 */
int err_set(struct err *err, int code, const char *fmt, ...) HARPOON_PRINTF(3, 4);
int err_say(struct err *err, int code, const char *fmt, ...) HARPOON_PRINTF(3, 4);

/* Puts "<text>: " before the message on the way up. Returns err->code. At most twice per error. */
int err_wrap(struct err *err, const char *fmt, ...) HARPOON_PRINTF(2, 3);
