/*
 * What may be done with a process in which state, and the error that clients know when it may not: one
 * const table for a container's first process, one for exec processes.
 */
#pragma once

#include <stdbool.h>

#include "rpc.h"

enum task_state { TASK_CREATED, TASK_RUNNING, TASK_PAUSED, TASK_STOPPED, TASK_STATE_MAX };

enum task_op {
	TASK_OP_START,
	TASK_OP_KILL,
	TASK_OP_PAUSE,
	TASK_OP_RESUME,
	TASK_OP_EXEC,
	TASK_OP_UPDATE,
	TASK_OP_CHECKPOINT,
	TASK_OP_DELETE,
	TASK_OP_MAX
};

/* code RPC_OK: allowed. */
struct task_verdict {
	enum rpc_code code;
	const char *text;
};

/* is_exec: the process is not the container's first one. */
const struct task_verdict *task_check(bool is_exec, enum task_state state, enum task_op op);
