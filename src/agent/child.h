/*
 * What runs between fork and exec, and how it talks to the agent: messages over plan->sync_fd
 * (SOCK_SEQPACKET, close-on-exec).
 *
 *   agent -> child   CHILD_GO     ids are mapped and limits written: build
 *   child -> agent   report READY (with the terminal's master), or FAILED
 *   agent -> child   CHILD_START  run the program
 *   child -> agent   end of file: the program runs; or a report FAILED
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "plan.h"
#include "util.h"

enum child_order { CHILD_GO = 'g', CHILD_START = 's' };
enum child_report_kind { CHILD_READY = 1, CHILD_FAILED = 2, CHILD_PID = 3 };

struct child_report {
	int32_t kind;
	int32_t value; /* FAILED: negative errno. PID: of an exec's process, as the agent sees it */
	char msg[ERR_MSG_MAX];
};

/* Exit status of a child that never became the program. */
#define CHILD_EXIT_SETUP 255

/* The container's first process; it is already in its new namespaces and its cgroup. */
HARPOON_NORETURN void child_run_container(const struct plan *plan);
/* An exec: joins the container, forks the process as the agent's child, reports its pid and ends. */
HARPOON_NORETURN void child_run_exec(const struct plan *plan);
