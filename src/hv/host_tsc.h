/*
 * The frequency of the host's time stamp counter, which an emulated guest sees as its own. The guest
 * cannot find it out by itself on a busy host: it would compare it with an emulated timer that jitters.
 */
#pragma once

#include <stdint.h>

struct host_tsc {
	uint64_t tsc;
	uint64_t ns;
};

/* First of two readings; cheap. */
void host_tsc_start(struct host_tsc *ret);
/*
 * Second reading, at least HOST_TSC_SPAN_NS after the first: sleeps for what is missing. Good to about 20
 * parts in a million. 0 = the host's kernel itself does not keep time by it, so neither should a guest.
 */
uint32_t host_tsc_khz(const struct host_tsc *start);
#define HOST_TSC_SPAN_NS 3000000ull
