/*
 * The tables; see state.h. Texts and codes are those of containerd's own runc shim: Docker, CRI and the
 * client library decide by them (a Kill of something finished must be NotFound, and so on). An entry that is
 * not named is allowed.
 */
#include "state.h"

#include <assert.h>

#include "util.h"

#define TASK_NO(what) \
	{ \
		RPC_UNKNOWN, what \
	}
#define TASK_FINISHED \
	{ \
		RPC_NOT_FOUND, "process already finished: not found" \
	}

static const struct task_verdict task_init_table[][TASK_OP_MAX] = {
	[TASK_CREATED] =
		{
			[TASK_OP_PAUSE] = TASK_NO("cannot pause task in created state"),
			[TASK_OP_RESUME] = TASK_NO("cannot resume task in created state"),
			[TASK_OP_CHECKPOINT] = TASK_NO("cannot checkpoint a task in created state"),
		},
	[TASK_RUNNING] =
		{
			[TASK_OP_START] = TASK_NO("cannot start a running process"),
			[TASK_OP_RESUME] = TASK_NO("cannot resume a running process"),
			[TASK_OP_DELETE] = TASK_NO("cannot delete a running process"),
		},
	[TASK_PAUSED] =
		{
			[TASK_OP_START] = TASK_NO("cannot start a paused process"),
			[TASK_OP_PAUSE] = TASK_NO("cannot pause a paused container"),
			[TASK_OP_EXEC] = TASK_NO("cannot exec in a paused state"),
			[TASK_OP_DELETE] = TASK_NO("cannot delete a paused process"),
		},
	[TASK_STOPPED] =
		{
			[TASK_OP_START] = TASK_NO("cannot start a stopped process"),
			[TASK_OP_KILL] = TASK_FINISHED,
			[TASK_OP_PAUSE] = TASK_NO("cannot pause a stopped container"),
			[TASK_OP_RESUME] = TASK_NO("cannot resume a stopped container"),
			[TASK_OP_EXEC] = TASK_NO("cannot exec in a stopped state"),
			[TASK_OP_UPDATE] = TASK_NO("cannot update a stopped container"),
			[TASK_OP_CHECKPOINT] = TASK_NO("cannot checkpoint a stopped container"),
		},
};
static_assert(ARRAY_SIZE(task_init_table) == TASK_STATE_MAX, "a row for every state");

/* An exec process is never paused by itself. */
static const struct task_verdict task_exec_table[][TASK_OP_MAX] = {
	[TASK_CREATED] =
		{
			[TASK_OP_KILL] = {RPC_FAILED_PRECONDITION,
					  "process not created: failed precondition"},
		},
	[TASK_RUNNING] =
		{
			[TASK_OP_START] = TASK_NO("cannot start a running process"),
			[TASK_OP_DELETE] = TASK_NO("cannot delete a running process"),
		},
	[TASK_PAUSED] = {{RPC_OK, NULL}},
	[TASK_STOPPED] =
		{
			[TASK_OP_START] = TASK_NO("cannot start a stopped process"),
			[TASK_OP_KILL] = TASK_FINISHED,
		},
};
static_assert(ARRAY_SIZE(task_exec_table) == TASK_STATE_MAX, "a row for every state");

const struct task_verdict *task_check(bool is_exec, enum task_state state, enum task_op op)
{
	assert(state < TASK_STATE_MAX && op < TASK_OP_MAX);
	return is_exec ? &task_exec_table[state][op] : &task_init_table[state][op];
}
