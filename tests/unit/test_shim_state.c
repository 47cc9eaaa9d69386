/* The whole table of states and operations, against what containerd's clients were written for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "state.h"
#include "util.h"

struct expect {
	enum rpc_code code;
	const char *text; /* NULL = allowed */
};

#define OK_ \
	{ \
		RPC_OK, NULL \
	}
#define NO_(t) \
	{ \
		RPC_UNKNOWN, t \
	}
#define GONE_ \
	{ \
		RPC_NOT_FOUND, "process already finished: not found" \
	}

static const struct expect init_expect[TASK_STATE_MAX][TASK_OP_MAX] = {
	[TASK_CREATED] = {OK_, OK_, NO_("cannot pause task in created state"),
			  NO_("cannot resume task in created state"), OK_, OK_,
			  NO_("cannot checkpoint a task in created state"), OK_},
	[TASK_RUNNING] = {NO_("cannot start a running process"), OK_, OK_,
			  NO_("cannot resume a running process"), OK_, OK_, OK_,
			  NO_("cannot delete a running process")},
	[TASK_PAUSED] = {NO_("cannot start a paused process"), OK_,
			 NO_("cannot pause a paused container"), OK_,
			 NO_("cannot exec in a paused state"), OK_, OK_,
			 NO_("cannot delete a paused process")},
	[TASK_STOPPED] = {NO_("cannot start a stopped process"), GONE_,
			  NO_("cannot pause a stopped container"),
			  NO_("cannot resume a stopped container"),
			  NO_("cannot exec in a stopped state"),
			  NO_("cannot update a stopped container"),
			  NO_("cannot checkpoint a stopped container"), OK_},
};

static void test_init_table(void **state)
{
	for (int s = 0; s < TASK_STATE_MAX; s++) {
		for (int op = 0; op < TASK_OP_MAX; op++) {
			const struct task_verdict *v =
				task_check(false, (enum task_state)s, (enum task_op)op);
			const struct expect *e = &init_expect[s][op];

			assert_int_equal(v->code, e->code);
			if (e->text)
				assert_string_equal(v->text, e->text);
		}
	}
}

static void test_exec_table(void **state)
{
	static const struct {
		enum task_state state;
		enum task_op op;
		struct expect e;
	} rows[] = {
		{TASK_CREATED, TASK_OP_START, OK_},
		{TASK_CREATED,
		 TASK_OP_KILL,
		 {RPC_FAILED_PRECONDITION, "process not created: failed precondition"}},
		{TASK_CREATED, TASK_OP_DELETE, OK_},
		{TASK_RUNNING, TASK_OP_START, NO_("cannot start a running process")},
		{TASK_RUNNING, TASK_OP_KILL, OK_},
		{TASK_RUNNING, TASK_OP_DELETE, NO_("cannot delete a running process")},
		{TASK_STOPPED, TASK_OP_START, NO_("cannot start a stopped process")},
		{TASK_STOPPED, TASK_OP_KILL, GONE_},
		{TASK_STOPPED, TASK_OP_DELETE, OK_},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct task_verdict *v = task_check(true, rows[i].state, rows[i].op);

		assert_int_equal(v->code, rows[i].e.code);
		if (rows[i].e.text)
			assert_string_equal(v->text, rows[i].e.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init_table),
		cmocka_unit_test(test_exec_table),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
