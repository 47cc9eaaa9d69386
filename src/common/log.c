/* One line per event; see log.h. Not thread-safe by locks: each line is a single write(). */
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048

static struct {
	int fd;
	enum log_level level;
	char id[80];
	atomic_uint nr_lost;
} logger = {.fd = STDERR_FILENO, .level = LOG_LEVEL_INFO};

static const char *const log_names[] = {"error", "warn", "info", "debug"};
static_assert(ARRAY_SIZE(log_names) == LOG_LEVEL_MAX, "a name for every level");

void log_init(int fd, enum log_level level, const char *id)
{
	logger.fd = fd;
	logger.level = level;
	snprintf(logger.id, sizeof(logger.id), "%s", id ? id : "");
}

bool log_enabled(enum log_level level)
{
	return level <= logger.level;
}

int log_level_parse(const char *text, enum log_level *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(log_names); i++) {
		if (!strcmp(text, log_names[i])) {
			*ret = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

/* Appends `text` with everything that could end the quoted value or the line made visible. */
static size_t log_escape(char *out, size_t room, const char *text)
{
	size_t n = 0;

	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (n + 5 > room)
			break;
		if (c == '"' || c == '\\') {
			out[n++] = '\\';
			out[n++] = (char)c;
		} else if (c < 0x20 || c == 0x7f) {
			n += (size_t)snprintf(out + n, room - n, "\\x%02x", c);
		} else {
			out[n++] = (char)c;
		}
	}
	return n;
}

void log_write(enum log_level level, const char *comp, const char *fmt, ...)
{
	int saved = errno;
	char text[LOG_LINE_MAX / 2], line[LOG_LINE_MAX];
	unsigned int lost = atomic_exchange(&logger.nr_lost, 0);
	struct timespec ts;
	struct util_date d;
	va_list ap;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &ts);
	d = util_date_of((uint64_t)ts.tv_sec);
	n = (size_t)snprintf(line, sizeof(line),
			     "time=\"%04u-%02u-%02uT%02u:%02u:%02u.%03ldZ\" level=%s comp=%s",
			     d.year, d.month, d.day, d.hour, d.minute, d.second,
			     ts.tv_nsec / 1000000, log_names[level], comp);
	if (logger.id[0])
		n += (size_t)snprintf(line + n, sizeof(line) - n, " id=%s", logger.id);
	if (lost)
		n += (size_t)snprintf(line + n, sizeof(line) - n, " lost_lines=%u", lost);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	n += (size_t)snprintf(line + n, sizeof(line) - n, " msg=\"");
	n += log_escape(line + n, sizeof(line) - n - 2, text);
	line[n++] = '"';
	line[n++] = '\n';
	if (write(logger.fd, line, n) != (ssize_t)n)
		atomic_fetch_add(&logger.nr_lost, lost + 1);
	errno = saved;
}
