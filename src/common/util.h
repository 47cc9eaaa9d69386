/*
 * Small macros and allocation helpers shared by everything. Nothing here knows of harpoon's upper
 * layers, and nothing depends on a particular C library.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define HARPOON_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))
#define HARPOON_NORETURN __attribute__((noreturn))

/*
 * Allocation that ends the process when memory is gone. Only for sizes bounded by our own constants:
 * a size that came from a peer is compared with a named maximum first and allocated by calloc().
 */
void *xmalloc(size_t len);
void *xcalloc(size_t nr, size_t len);
void *xrealloc(void *ptr, size_t len);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t len);
char *xasprintf(const char *fmt, ...) HARPOON_PRINTF(1, 2);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t util_now_ns(void);

/* Date and time of day in UTC, years 1970 to 9999. */
struct util_date {
	unsigned int year, month, day; /* month and day from 1 */
	unsigned int hour, minute, second;
};
/* gmtime() without the files that the C library opens for it: a jailed process may open none. */
struct util_date util_date_of(uint64_t seconds_since_1970);
