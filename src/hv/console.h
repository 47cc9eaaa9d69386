/*
 * The guest's console: every byte comes from the guest kernel and whoever writes to it. Kept in
 * <state_dir>/console.log, escaped, bounded: when the file reaches half of the limit it becomes
 * console.log.old and a new one begins, so the newest half is always there.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "loop.h"
#include "text.h"

struct console;

/* fd: stream the guest's bytes come from, owned from here on, also on failure. state_dir_fd: borrowed. */
int console_new(struct loop *loop, int fd, int state_dir_fd, size_t limit, struct console **ret,
		struct err *err);
void console_free(struct console *c);
/* Takes what is left to read right now (the writer is gone). */
void console_drain(struct console *c);
/* The line the kernel died with, else the last line, else "". Escaped; borrowed until the next read. */
const char *console_last_words(const struct console *c);
/* The kernel said "Kernel panic". */
bool console_saw_panic(const struct console *c);
/* The kernel said that it restarts because it was told to. */
bool console_saw_restart(const struct console *c);
/* CLOCK_MONOTONIC of the first byte that was read, 0 = none yet. */
uint64_t console_first_ns(const struct console *c);
