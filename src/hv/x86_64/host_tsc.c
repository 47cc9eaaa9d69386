/* The host's time stamp counter, x86-64; see host_tsc.h. */
#include "host_tsc.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

#define TSC_CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define TSC_TRIES 5

static uint64_t tsc_clock_ns(void)
{
	struct timespec ts;

	/* Not slewed by NTP: the short span must not be taken while the clock is being corrected. */
	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Both clocks at once: of a few tries the one that was interrupted least. */
void host_tsc_start(struct host_tsc *ret)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TSC_TRIES; i++) {
		uint64_t before = __rdtsc(), ns = tsc_clock_ns(), after = __rdtsc();

		if (after - before < best) {
			best = after - before;
			*ret = (struct host_tsc){.tsc = before + (after - before) / 2, .ns = ns};
		}
	}
}

/* Does the host's kernel trust the counter? Under a hypervisor its clock is made of it, too. */
static bool tsc_is_trusted(void)
{
	static const char *const good[] = {"tsc\n", "kvm-clock\n", "hyperv_clocksource_tsc_page\n"};
	cleanup_free char *name = NULL;

	if (io_read_file(AT_FDCWD, TSC_CLOCKSOURCE, 64, &name, NULL))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		if (!strcmp(name, good[i]))
			return true;
	}
	return false;
}

uint32_t host_tsc_khz(const struct host_tsc *start)
{
	struct host_tsc end;
	uint64_t passed;
	double khz;

	if (!tsc_is_trusted())
		return 0;
	passed = tsc_clock_ns() - start->ns;
	if (passed < HOST_TSC_SPAN_NS) {
		struct timespec rest = {.tv_nsec = (long)(HOST_TSC_SPAN_NS - passed)};

		nanosleep(&rest, NULL);
	}
	host_tsc_start(&end);
	if (end.tsc <= start->tsc || end.ns <= start->ns)
		return 0;
	khz = (double)(end.tsc - start->tsc) * 1e6 / (double)(end.ns - start->ns);
	/* Outside of what processors have: the counter stopped or jumped meanwhile. */
	return khz > 1e5 && khz < 1e7 ? (uint32_t)(khz + 0.5) : 0;
}
