/*
 * What runs between fork and exec, and how it talks to the agent: messages over plan->sync_fd
 * (SOCK_SEQPACKET, close-on-exec).
 *
 *   agent -> child   CHILD_GO     ids are mapped and limits written: build
 *   child -> agent   report READY (with the terminal's master), or FAILED
 *   agent -> child   CHILD_START  run the program
 *   child -> agent   end of file: the program runs; or a report FAILED
 *
 * A spare (spare.h) is ahead of that: it reports READY or FAILED once, then waits for a struct child_plan with the
 * packed request behind it and the descriptors of the streams beside it.
 */
#pragma once

#include <sched.h>
#include <stdint.h>

#include "err.h"
#include "plan.h"
#include "request.h"
#include "util.h"

enum child_order { CHILD_GO = 'g', CHILD_START = 's' };
enum child_report_kind { CHILD_READY = 1, CHILD_FAILED = 2, CHILD_PID = 3 };

struct child_report {
	int32_t kind;
	int32_t value; /* FAILED: negative errno. PID: of an exec's process, as the agent sees it */
	char msg[ERR_MSG_MAX];
};

/* The namespaces of a spare; the time namespace comes later in any case. */
#define CHILD_SPARE_NAMESPACES \
	((uint32_t)(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP))
/* One message holds it all; a longer request has its child forked. */
#define CHILD_PLAN_MAX (64u << 10)
#define CHILD_NAME_MAX 64 /* the kernel's __NEW_UTS_LEN */

struct child_plan {
	uint32_t namespaces;
	uint32_t stdio; /* bit i: a descriptor for stdio[i] is beside it */
	char id[REQUEST_ID_MAX + 1];
	/* The guest's, which may have got them after the spare was made. */
	char hostname[CHILD_NAME_MAX + 1], domainname[CHILD_NAME_MAX + 1];
};

/* Exit status of a child that never became the program. */
#define CHILD_EXIT_SETUP 255

/* The container's first process; it is already in its new namespaces and its cgroup. */
HARPOON_NORETURN void child_run_container(const struct plan *plan);
/* The same of a container that is not known yet. */
HARPOON_NORETURN void child_run_spare(const struct agent_params *params, int sync_fd);
/* An exec: joins the container, forks the process as the agent's child, reports its pid and ends. */
HARPOON_NORETURN void child_run_exec(const struct plan *plan);
