/*
 * Unit tests of linux.seccomp: the compiled filter is installed in a forked child, which makes the system calls
 * and reports what it got. x86_64 only, as the calls by number and by int 0x80 are.
 */
#include "oci_test.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SPEC cleanup(oci_test_spec_freep) struct oci_spec *
#define SECCOMP(members) "'linux':{'seccomp':{" members "}}"
/* What the child itself needs. */
#define CHILD_CALLS "{'names':['exit_group','rt_sigreturn'],'action':'SCMP_ACT_ALLOW'}"
#define ALL_ARCHS \
	"'architectures':['SCMP_ARCH_X86_64','SCMP_ARCH_X86','SCMP_ARCH_X32','SCMP_ARCH_ARM'],"

enum abi { ABI_64, ABI_32, ABI_X32 };

/* One call to make in the child. want >= 0: the errno, 0 = success; -SIGSYS: killed. */
struct call {
	enum abi abi;
	int nr;
	long a, b;
	int want;
};

#define X32_BIT 0x40000000

static long call_make(const struct call *c)
{
	long r = c->abi == ABI_X32 ? c->nr | X32_BIT : c->nr;

	if (c->abi == ABI_32)
		__asm__ volatile("int $0x80"
				 : "+a"(r)
				 : "b"(c->a), "c"(c->b)
				 : "memory", "r8", "r9", "r10", "r11");
	else
		__asm__ volatile("syscall"
				 : "+a"(r)
				 : "D"(c->a), "S"(c->b)
				 : "memory", "rcx", "r11");
	return r;
}

static void child_run(const struct oci_spec *s, const struct call *c)
{
	struct sock_fprog prog = {.len = (unsigned short)s->nr_seccomp, .filter = s->seccomp};
	long r;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, s->seccomp_flags, &prog))
		_exit(255);
	r = call_make(c);
	/* Not through libc: sanitizers hook it. */
	syscall(SYS_exit_group, r < 0 ? (int)-r : 0);
}

static int call_result(const struct oci_spec *s, const struct call *c)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		child_run(s, c);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		return -WTERMSIG(status);
	assert_true(WEXITSTATUS(status) != 255);
	return WEXITSTATUS(status);
}

static void calls_do(const char *members, const struct call *c, size_t nr)
{
	SPEC s = oci_test_parse(members);

	assert_non_null(s->seccomp);
	for (size_t i = 0; i < nr; i++) {
		int got = call_result(s, &c[i]);

		if (got != c[i].want)
			fail_msg("%s: call %zu: %d, not %d", members, i, got, c[i].want);
	}
}

#define NR_32_GETPID 20
#define NR_32_GETPPID 64

static void test_deny_list(void **state)
{
	static const struct call c[] = {
		{ABI_64, SYS_getpid, 0, 0, 0},	      {ABI_64, SYS_getppid, 0, 0, EPERM},
		{ABI_64, SYS_getuid, 0, 0, EACCES},   {ABI_64, SYS_getgid, 0, 0, -SIGSYS},
		{ABI_64, SYS_geteuid, 0, 0, -SIGSYS}, {ABI_64, 9999, 0, 0, ENOSYS},
	};

	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','flags':[],'syscalls':["
			 "{'names':['getppid'],'action':'SCMP_ACT_ERRNO'},"
			 "{'names':['no_such_call','getuid'],'action':'SCMP_ACT_ERRNO','errnoRet':"
			 "13},"
			 "{'names':['getgid'],'action':'SCMP_ACT_KILL_PROCESS'},"
			 "{'names':['geteuid'],'action':'SCMP_ACT_KILL'}]"),
		 c, ARRAY_SIZE(c));
}

/* Known to the profile or older: the default. Newer: ENOSYS, or programs would not fall back. */
static void test_allow_list(void **state)
{
	static const struct call c[] = {
		{ABI_64, SYS_getpid, 0, 0, 0},
		{ABI_64, SYS_getppid, 0, 0, EPERM},
		{ABI_64, SYS_exit_group + 1, 0, 0, ENOSYS},
		{ABI_64, 9999, 0, 0, ENOSYS},
	};

	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_ERRNO','syscalls':[" CHILD_CALLS
			 ",{'names':['getpid'],'action':'SCMP_ACT_ALLOW'}]"),
		 c, ARRAY_SIZE(c));
}

static void test_default_errno(void **state)
{
	static const struct call number[] = {{ABI_64, SYS_getppid, 0, 0, EACCES},
					     {ABI_64, 9999, 0, 0, ENOSYS}};
	static const struct call nosys[] = {{ABI_64, SYS_getppid, 0, 0, ENOSYS}};
	static const struct call kill[] = {{ABI_64, SYS_getppid, 0, 0, -SIGSYS},
					   {ABI_64, 9999, 0, 0, ENOSYS}};

	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_ERRNO','defaultErrnoRet':13,'syscalls':"
			 "[" CHILD_CALLS "]"),
		 number, ARRAY_SIZE(number));
	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_ERRNO','defaultErrnoRet':38,'syscalls':"
			 "[" CHILD_CALLS "]"),
		 nosys, ARRAY_SIZE(nosys));
	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_KILL_PROCESS','syscalls':[" CHILD_CALLS "]"),
		 kill, ARRAY_SIZE(kill));
}

static void test_architectures(void **state)
{
	static const struct call all[] = {
		{ABI_64, SYS_getpid, 0, 0, 0},	 {ABI_64, SYS_getppid, 0, 0, EPERM},
		{ABI_32, NR_32_GETPID, 0, 0, 0}, {ABI_32, NR_32_GETPPID, 0, 0, EPERM},
		{ABI_32, 9999, 0, 0, ENOSYS},	 {ABI_X32, SYS_getpid, 0, 0, ENOSYS},
	};
	static const struct call native[] = {
		{ABI_64, SYS_getpid, 0, 0, 0},
		{ABI_32, NR_32_GETPID, 0, 0, -SIGSYS},
		{ABI_X32, SYS_getpid, 0, 0, -SIGSYS},
	};

	calls_do(SECCOMP(ALL_ARCHS "'defaultAction':'SCMP_ACT_ERRNO','syscalls':[" CHILD_CALLS
				   ",{'names':['getpid'],'action':'SCMP_ACT_ALLOW'}]"),
		 all, ARRAY_SIZE(all));
	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_ERRNO','syscalls':[" CHILD_CALLS
			 ",{'names':['getpid'],'action':'SCMP_ACT_ALLOW'}]"),
		 native, ARRAY_SIZE(native));
}

/* personality(0xffffffff) only asks, personality(0) is what everyone has. */
static void test_arguments(void **state)
{
	static const struct {
		const char *args;
		struct call c[3];
	} t[] = {
		{"{'index':0,'value':0,'op':'SCMP_CMP_EQ'}",
		 {{ABI_64, SYS_personality, 0, 0, EACCES},
		  {ABI_64, SYS_personality, 0xffffffff, 0, 0}}},
		{"{'index':0,'value':0,'op':'SCMP_CMP_NE'}",
		 {{ABI_64, SYS_personality, 0, 0, 0},
		  {ABI_64, SYS_personality, 0xffffffff, 0, EACCES}}},
		{"{'index':0,'value':16,'op':'SCMP_CMP_GE'}",
		 {{ABI_64, SYS_personality, 0, 0, 0},
		  {ABI_64, SYS_personality, 0xffffffff, 0, EACCES}}},
		{"{'index':0,'value':0,'op':'SCMP_CMP_GT'}",
		 {{ABI_64, SYS_personality, 0, 0, 0},
		  {ABI_64, SYS_personality, 0xffffffff, 0, EACCES}}},
		{"{'index':0,'value':1,'op':'SCMP_CMP_LT'}",
		 {{ABI_64, SYS_personality, 0, 0, EACCES},
		  {ABI_64, SYS_personality, 0xffffffff, 0, 0}}},
		{"{'index':0,'value':0,'op':'SCMP_CMP_LE'}",
		 {{ABI_64, SYS_personality, 0, 0, EACCES},
		  {ABI_64, SYS_personality, 0xffffffff, 0, 0}}},
		/* value is the mask, valueTwo what must remain */
		{"{'index':0,'value':240,'valueTwo':240,'op':'SCMP_CMP_MASKED_EQ'}",
		 {{ABI_64, SYS_personality, 0, 0, 0},
		  {ABI_64, SYS_personality, 0xffffffff, 0, EACCES}}},
		/* of two arguments both must fit */
		{"{'index':0,'value':0,'op':'SCMP_CMP_EQ'},{'index':1,'value':1,'op':'SCMP_CMP_EQ'"
		 "}",
		 {{ABI_64, SYS_personality, 0, 1, EACCES}, {ABI_64, SYS_personality, 0, 2, 0}}},
		/* of one argument twice, either */
		{"{'index':0,'value':0,'op':'SCMP_CMP_EQ'},{'index':0,'value':4294967295,'op':'"
		 "SCMP_CMP_EQ'}",
		 {{ABI_64, SYS_personality, 0, 0, EACCES},
		  {ABI_64, SYS_personality, 0xffffffff, 0, EACCES}}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		cleanup_free char *m =
			xasprintf(SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','syscalls':[{'names':['"
					  "personality'],"
					  "'action':'SCMP_ACT_ERRNO','errnoRet':13,'args':[%s]}]"),
				  t[i].args);

		calls_do(m, t[i].c, 2);
	}
}

static void test_trace_without_tracer(void **state)
{
	static const struct call c[] = {{ABI_64, SYS_getppid, 0, 0, ENOSYS},
					{ABI_64, SYS_getpid, 0, 0, 0}};

	calls_do(SECCOMP("'defaultAction':'SCMP_ACT_LOG','flags':['SECCOMP_FILTER_FLAG_LOG'],'"
			 "syscalls':["
			 "{'names':['getppid'],'action':'SCMP_ACT_TRACE','errnoRet':7}]"),
		 c, ARRAY_SIZE(c));
}

static void test_flags(void **state)
{
	SPEC none = oci_test_parse(SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','flags':[]"));
	SPEC absent = oci_test_parse(SECCOMP("'defaultAction':'SCMP_ACT_ALLOW'"));
	SPEC both = oci_test_parse(
		SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','flags':['SECCOMP_FILTER_FLAG_LOG',"
			"'SECCOMP_FILTER_FLAG_SPEC_ALLOW','SECCOMP_FILTER_FLAG_TSYNC']"));

	assert_int_equal(none->seccomp_flags, 0);
	assert_int_equal(absent->seccomp_flags, SECCOMP_FILTER_FLAG_SPEC_ALLOW);
	assert_int_equal(both->seccomp_flags,
			 SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW);
}

static void test_empty_is_no_filter(void **state)
{
	SPEC empty = oci_test_parse(SECCOMP(""));
	SPEC go = oci_test_parse(SECCOMP("'defaultAction':''"));

	assert_null(empty->seccomp);
	assert_null(go->seccomp);
	assert_int_equal(go->nr_seccomp, 0);
}

#define RULE(members) SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','syscalls':[{" members "}]")
#define ARG(members) RULE("'names':['read'],'action':'SCMP_ACT_ERRNO','args':[{" members "}]")

static void test_errors(void **state)
{
	static const struct {
		const char *members;
		int code;
		const char *msg;
	} t[] = {
		{SECCOMP("'defaultAction':'ALLOW'"), -EINVAL,
		 "linux.seccomp.defaultAction: unknown value 'ALLOW'"},
		{SECCOMP("'syscalls':[{'names':['read'],'action':'SCMP_ACT_ALLOW'}]"), -EINVAL,
		 "linux.seccomp.defaultAction: no action"},
		{SECCOMP("'defaultAction':'SCMP_ACT_NOTIFY'"), -EOPNOTSUPP,
		 "linux.seccomp.defaultAction: not supported: SCMP_ACT_NOTIFY, whose listener is "
		 "outside the VM"},
		{SECCOMP("'defaultAction':'SCMP_ACT_ALLOW','defaultErrnoRet':1"), -EINVAL,
		 "linux.seccomp.defaultAction: an errno for an action that takes none"},
		{SECCOMP("'defaultAction':'SCMP_ACT_ERRNO','defaultErrnoRet':4096"), -ERANGE,
		 "linux.seccomp.defaultErrnoRet: not between 0 and 4095"},
		{SECCOMP("'architectures':['SCMP_ARCH_VAX']"), -EINVAL,
		 "linux.seccomp.architectures[0]: unknown value 'SCMP_ARCH_VAX'"},
		{SECCOMP("'flags':['X']"), -EINVAL, "linux.seccomp.flags[0]: unknown value 'X'"},
		{SECCOMP("'flags':['SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV']"), -EOPNOTSUPP,
		 "linux.seccomp.flags[0]: not supported: a flag for notifications, which cannot "
		 "leave the VM"},
		{RULE("'names':['read'],'action':'SCMP_ACT_NOTIFY'"), -EOPNOTSUPP,
		 "linux.seccomp.syscalls[0]: not supported: SCMP_ACT_NOTIFY, whose listener is "
		 "outside the VM"},
		{RULE("'names':['read']"), -EINVAL, "linux.seccomp.syscalls[0].action: missing"},
		{RULE("'names':[],'action':'SCMP_ACT_KILL'"), -EINVAL,
		 "linux.seccomp.syscalls[0].names: empty"},
		{RULE("'action':'SCMP_ACT_KILL'"), -EINVAL,
		 "linux.seccomp.syscalls[0].names: missing"},
		{RULE("'names':['read'],'action':'SCMP_ACT_KILL','errnoRet':1"), -EINVAL,
		 "linux.seccomp.syscalls[0]: an errno for an action that takes none"},
		{ARG("'value':0,'op':'SCMP_CMP_EQ'"), -EINVAL,
		 "linux.seccomp.syscalls[0].args[0].index: missing"},
		{ARG("'index':6,'value':0,'op':'SCMP_CMP_EQ'"), -ERANGE,
		 "linux.seccomp.syscalls[0].args[0].index: not between 0 and 5"},
		{ARG("'index':0,'value':-1,'op':'SCMP_CMP_EQ'"), -ERANGE,
		 "linux.seccomp.syscalls[0].args[0].value: not between 0 and 18446744073709551615"},
		{ARG("'index':0,'value':0,'op':'=='"), -EINVAL,
		 "linux.seccomp.syscalls[0].args[0].op: unknown value '=='"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++)
		oci_test_fails(t[i].members, t[i].code, t[i].msg);
}

static char *rules_make(size_t nr)
{
	char *rules = xstrdup("");

	for (size_t i = 0; i < nr; i++) {
		char *more = xasprintf("%s%s{'names':['read'],'action':'SCMP_ACT_ERRNO','args':["
				       "{'index':0,'value':%zu,'op':'SCMP_CMP_EQ'},"
				       "{'index':1,'value':%zu,'op':'SCMP_CMP_GT'}]}",
				       rules, i ? "," : "", i << 32, i * 7);

		free(rules);
		rules = more;
	}
	return rules;
}

#define LIST(list) SECCOMP(ALL_ARCHS "'defaultAction':'SCMP_ACT_ALLOW','syscalls':[%s]"), list

/* libseccomp's time explodes with the number of conditions: 1024 rules of 3 took minutes. */
static void test_cost_is_bounded(void **state)
{
	cleanup_free char *most = rules_make(256);
	cleanup_free char *more = rules_make(257);
	cleanup_free char *ok = xasprintf(LIST(most));
	cleanup_free char *bad = xasprintf(LIST(more));
	SPEC s = oci_test_parse(ok);

	assert_true(s->nr_seccomp > 1024);
	oci_test_fails(bad, -E2BIG,
		       "linux.seccomp.syscalls: 514 conditions on arguments, more than 512");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_deny_list),     cmocka_unit_test(test_allow_list),
		cmocka_unit_test(test_default_errno), cmocka_unit_test(test_architectures),
		cmocka_unit_test(test_arguments),     cmocka_unit_test(test_trace_without_tracer),
		cmocka_unit_test(test_flags),	      cmocka_unit_test(test_empty_is_no_filter),
		cmocka_unit_test(test_errors),	      cmocka_unit_test(test_cost_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
