/* Allocation that cannot fail, and the clock. */
#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void util_oom(void)
{
	static const char msg[] = "harpoon: out of memory\n";
	ssize_t n = write(STDERR_FILENO, msg, sizeof(msg) - 1);

	(void)n;
	abort();
}

void *xmalloc(size_t len)
{
	void *p = malloc(len ? len : 1);

	if (!p)
		util_oom();
	return p;
}

void *xcalloc(size_t nr, size_t len)
{
	void *p = calloc(nr ? nr : 1, len ? len : 1);

	if (!p)
		util_oom();
	return p;
}

void *xrealloc(void *ptr, size_t len)
{
	void *p = realloc(ptr, len ? len : 1);

	if (!p)
		util_oom();
	return p;
}

char *xstrndup(const char *s, size_t len)
{
	size_t n = strnlen(s, len);
	char *p = xmalloc(n + 1);

	memcpy(p, s, n);
	p[n] = '\0';
	return p;
}

char *xstrdup(const char *s)
{
	return xstrndup(s, strlen(s));
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *p = NULL;

	va_start(ap, fmt);
	if (vasprintf(&p, fmt, ap) < 0)
		util_oom();
	va_end(ap);
	return p;
}

uint64_t util_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct util_date util_date_of(uint64_t seconds_since_1970)
{
	/* Years that begin in March have their leap day at the end, months of 153 days in five. */
	const uint64_t days = seconds_since_1970 / 86400 + 719468; /* since 1 March of year 0 */
	const unsigned int second = (unsigned int)(seconds_since_1970 % 86400);
	const unsigned int era_day = (unsigned int)(days % 146097); /* of 400 years */
	const unsigned int era_year =
		(era_day - era_day / 1460 + era_day / 36524 - era_day / 146096) / 365;
	const unsigned int year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
	const unsigned int month = (5 * year_day + 2) / 153; /* 0 = March */
	const unsigned int year = (unsigned int)(days / 146097) * 400 + era_year;

	return (struct util_date){
		.year = year + (month >= 10),
		.month = month < 10 ? month + 3 : month - 9,
		.day = year_day - (153 * month + 2) / 5 + 1,
		.hour = second / 3600,
		.minute = second / 60 % 60,
		.second = second % 60,
	};
}
