/*
 * For tests whose fixture has a loop: runs it until cond holds, and fails the test when that is not within TIMEOUT_NS,
 * which the test defines.
 */
#pragma once

#include "loop.h"
#include "util.h"

#define RUN_UNTIL(f, cond) \
	do { \
		uint64_t run_end = util_now_ns() + TIMEOUT_NS; \
		while (!(cond)) { \
			assert_true(util_now_ns() < run_end); \
			assert_int_equal(loop_run_once((f)->loop, 50), 0); \
		} \
	} while (0)
