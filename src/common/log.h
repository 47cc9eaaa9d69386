/*
 * Logging: one logfmt line per event to one descriptor (containerd's FIFO, or stderr). The level is
 * tested before anything is formatted, errno is kept, and bytes that could forge a line (control
 * characters, quotes) are escaped. Libraries log at debug only; they return errors instead.
 */
#pragma once

#include <stdbool.h>

#include "util.h"

enum log_level { LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DBG, LOG_LEVEL_MAX };

/*
 * fd: where lines go, borrowed; a non-blocking fd that is full loses the line (counted and reported
 * by the next one). id: the sandbox or container in every line, may be NULL; copied.
 */
void log_init(int fd, enum log_level level, const char *id);
bool log_enabled(enum log_level level);
/* Parses "error", "warn", "info", "debug". Returns 0 or -EINVAL. */
int log_level_parse(const char *text, enum log_level *ret);

void log_write(enum log_level level, const char *comp, const char *fmt, ...) HARPOON_PRINTF(3, 4);

#define log_at(level, comp, ...) \
	do { \
		if (log_enabled(level)) \
			log_write(level, comp, __VA_ARGS__); \
	} while (0)
#define log_err(comp, ...) log_at(LOG_LEVEL_ERR, comp, __VA_ARGS__)
#define log_warn(comp, ...) log_at(LOG_LEVEL_WARN, comp, __VA_ARGS__)
#define log_info(comp, ...) log_at(LOG_LEVEL_INFO, comp, __VA_ARGS__)
#define log_dbg(comp, ...) log_at(LOG_LEVEL_DBG, comp, __VA_ARGS__)
