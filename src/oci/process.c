/*
 * The process object: tables, resource limit names, scheduling, and the environment made unique.
 *
 * apparmorProfile and selinuxLabel name things of the host's security modules, which do not exist in the
 * guest: they are read past (docs/differences.md). user.username and commandLine are for Windows.
 */
#include <errno.h>
#include <linux/ioprio.h>
#include <linux/sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cleanup.h"
#include "spec.h"

#define OCI_CONSOLE_MAX 65535

static const struct json_field oci_console_fields[] = {
	{"width", JSON_U32, JSON_REQUIRED, AT(oci_process, console_width), .max = OCI_CONSOLE_MAX},
	{"height", JSON_U32, JSON_REQUIRED, AT(oci_process, console_height),
	 .max = OCI_CONSOLE_MAX},
	{0},
};

static const struct json_field oci_user_fields[] = {
	{"uid", JSON_U32, AT(oci_process, uid)},
	{"gid", JSON_U32, AT(oci_process, gid)},
	{"umask", JSON_U32, HAS(oci_process, has_umask), AT(oci_process, umask), .max = 0777},
	{"additionalGids", JSON_U32_ARRAY, AT(oci_process, additional_gids),
	 NR(oci_process, nr_additional_gids), .max = OCI_GIDS_MAX},
	{0},
};

static const struct json_field oci_caps_fields[] = {
	{"bounding", JSON_CUSTOM, AT(oci_caps, bounding), .read = oci_caps_read},
	{"effective", JSON_CUSTOM, AT(oci_caps, effective), .read = oci_caps_read},
	{"inheritable", JSON_CUSTOM, AT(oci_caps, inheritable), .read = oci_caps_read},
	{"permitted", JSON_CUSTOM, AT(oci_caps, permitted), .read = oci_caps_read},
	{"ambient", JSON_CUSTOM, AT(oci_caps, ambient), .read = oci_caps_read},
	{0},
};

static const struct json_word oci_rlimit_words[] = {
	{"RLIMIT_AS", RLIMIT_AS},
	{"RLIMIT_CORE", RLIMIT_CORE},
	{"RLIMIT_CPU", RLIMIT_CPU},
	{"RLIMIT_DATA", RLIMIT_DATA},
	{"RLIMIT_FSIZE", RLIMIT_FSIZE},
	{"RLIMIT_LOCKS", RLIMIT_LOCKS},
	{"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},
	{"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
	{"RLIMIT_NICE", RLIMIT_NICE},
	{"RLIMIT_NOFILE", RLIMIT_NOFILE},
	{"RLIMIT_NPROC", RLIMIT_NPROC},
	{"RLIMIT_RSS", RLIMIT_RSS},
	{"RLIMIT_RTPRIO", RLIMIT_RTPRIO},
	{"RLIMIT_RTTIME", RLIMIT_RTTIME},
	{"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
	{"RLIMIT_STACK", RLIMIT_STACK},
	{0},
};

static const struct json_field oci_rlimit_fields[] = {
	{"type", JSON_WORD, JSON_REQUIRED, AT(oci_rlimit, resource), .words = oci_rlimit_words},
	{"soft", JSON_U64, JSON_REQUIRED, AT(oci_rlimit, soft)},
	{"hard", JSON_U64, JSON_REQUIRED, AT(oci_rlimit, hard)},
	{0},
};

static int oci_rlimit_check(struct json_ctx *ctx, void *rlimit)
{
	struct oci_rlimit *l = rlimit;

	if (l->soft > l->hard)
		return json_fail(ctx, -EINVAL, "soft limit above the hard limit");
	return 0;
}

static const struct json_word oci_policy_words[] = {
	{"SCHED_OTHER", SCHED_NORMAL},
	{"SCHED_FIFO", SCHED_FIFO},
	{"SCHED_RR", SCHED_RR},
	{"SCHED_BATCH", SCHED_BATCH},
	{"SCHED_IDLE", SCHED_IDLE},
	{"SCHED_DEADLINE", SCHED_DEADLINE},
	{0},
};

static const struct json_word oci_sched_flag_words[] = {
	{"SCHED_FLAG_RESET_ON_FORK", SCHED_FLAG_RESET_ON_FORK},
	{"SCHED_FLAG_RECLAIM", SCHED_FLAG_RECLAIM},
	{"SCHED_FLAG_DL_OVERRUN", SCHED_FLAG_DL_OVERRUN},
	{"SCHED_FLAG_KEEP_POLICY", SCHED_FLAG_KEEP_POLICY},
	{"SCHED_FLAG_KEEP_PARAMS", SCHED_FLAG_KEEP_PARAMS},
	{"SCHED_FLAG_UTIL_CLAMP_MIN", SCHED_FLAG_UTIL_CLAMP_MIN},
	{"SCHED_FLAG_UTIL_CLAMP_MAX", SCHED_FLAG_UTIL_CLAMP_MAX},
	{0},
};

static int oci_sched_flag_add(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	uint64_t flag, *flags = arg;
	int r = json_find_word(ctx, v, oci_sched_flag_words, &flag);

	if (r < 0)
		return r;
	*flags |= flag;
	return 0;
}

static int oci_sched_flags_read(struct json_ctx *ctx, const struct json_field *f,
				struct json_object *v, void *obj)
{
	return json_each(ctx, v, ARRAY_SIZE(oci_sched_flag_words), oci_sched_flag_add,
			 (char *)obj + f->off);
}

static const struct json_field oci_scheduler_fields[] = {
	{"policy", JSON_WORD, JSON_REQUIRED, AT(oci_scheduler, policy), .words = oci_policy_words},
	{"nice", JSON_I32, AT(oci_scheduler, nice), .min = -20, .max = 19},
	{"priority", JSON_I32, AT(oci_scheduler, priority), .max = 99},
	{"flags", JSON_CUSTOM, AT(oci_scheduler, flags), .read = oci_sched_flags_read},
	{"runtime", JSON_U64, AT(oci_scheduler, runtime_ns)},
	{"deadline", JSON_U64, AT(oci_scheduler, deadline_ns)},
	{"period", JSON_U64, AT(oci_scheduler, period_ns)},
	{0},
};

static int oci_scheduler_check(struct json_ctx *ctx, void *scheduler)
{
	struct oci_scheduler *s = scheduler;

	if (s->priority < 0)
		return json_fail(ctx, -ERANGE, "priority below 0");
	if (s->priority && s->policy != SCHED_FIFO && s->policy != SCHED_RR)
		return json_fail(ctx, -EINVAL, "priority is for SCHED_FIFO and SCHED_RR only");
	if ((s->runtime_ns || s->deadline_ns || s->period_ns) && s->policy != SCHED_DEADLINE)
		return json_fail(ctx, -EINVAL,
				 "runtime, deadline and period are for SCHED_DEADLINE only");
	return 0;
}

static const struct json_word oci_io_class_words[] = {
	{"IOPRIO_CLASS_RT", IOPRIO_CLASS_RT},
	{"IOPRIO_CLASS_BE", IOPRIO_CLASS_BE},
	{"IOPRIO_CLASS_IDLE", IOPRIO_CLASS_IDLE},
	{0},
};

static const struct json_field oci_io_priority_fields[] = {
	{"class", JSON_WORD, JSON_REQUIRED, AT(oci_io_priority, class),
	 .words = oci_io_class_words},
	{"priority", JSON_U32, JSON_REQUIRED, AT(oci_io_priority, priority), .max = 7},
	{0},
};

const struct json_field oci_process_fields[] = {
	{"terminal", JSON_BOOL, AT(oci_process, terminal)},
	{"consoleSize", JSON_OBJECT, .fields = oci_console_fields},
	{"user", JSON_OBJECT, .fields = oci_user_fields},
	{"args", JSON_STRINGS, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_process, args),
	 .max = OCI_ARGS_MAX, .longest = OCI_ARG_MAX},
	{"env", JSON_STRINGS, AT(oci_process, env), .max = OCI_ARGS_MAX, .longest = OCI_ARG_MAX},
	{"cwd", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY | JSON_ABSOLUTE, AT(oci_process, cwd),
	 .max = OCI_STRING_MAX},
	{"capabilities", JSON_OBJECT, HAS(oci_process, has_caps), AT(oci_process, caps),
	 .fields = oci_caps_fields, .post = oci_caps_check},
	{"rlimits", JSON_ARRAY, AT(oci_process, rlimits), NR(oci_process, nr_rlimits),
	 .elem_len = sizeof(struct oci_rlimit), .max = RLIM_NLIMITS, .fields = oci_rlimit_fields,
	 .post = oci_rlimit_check},
	{"noNewPrivileges", JSON_BOOL, AT(oci_process, no_new_privileges)},
	{"oomScoreAdj", JSON_I32, HAS(oci_process, has_oom_score_adj),
	 AT(oci_process, oom_score_adj), .min = -1000, .max = 1000},
	{"scheduler", JSON_OBJECT, HAS(oci_process, has_scheduler), AT(oci_process, scheduler),
	 .fields = oci_scheduler_fields, .post = oci_scheduler_check},
	{"ioPriority", JSON_OBJECT, HAS(oci_process, has_io_priority), AT(oci_process, io_priority),
	 .fields = oci_io_priority_fields},
	{"execCPUAffinity", JSON_UNSUPPORTED,
	 .reason = "CPU numbers of the host mean nothing inside the VM"},
	{0},
};

/* One variable, with its place: qsort() is not stable. */
struct oci_var {
	const char *s;
	size_t name_len, i;
};

static int oci_var_compare(const void *a, const void *b)
{
	const struct oci_var *x = a, *y = b;
	int c = memcmp(x->s, y->s, MIN(x->name_len, y->name_len));

	if (c)
		return c;
	if (x->name_len != y->name_len)
		return x->name_len < y->name_len ? -1 : 1;
	return x->i < y->i ? -1 : 1;
}

static bool oci_var_is_same(const struct oci_var *x, const struct oci_var *y)
{
	return x->name_len == y->name_len && !memcmp(x->s, y->s, x->name_len);
}

/* The last value of a name, at the place of the first, as setenv(3) would leave it; then closes the gaps. */
static void oci_env_drop(struct oci_strv *env, const struct oci_var *sorted)
{
	size_t nr = 0;

	for (size_t i = env->nr; i > 1; i--) {
		const struct oci_var *one = &sorted[i - 2], *later = &sorted[i - 1];

		if (!oci_var_is_same(one, later))
			continue;
		free(env->v[one->i]);
		env->v[one->i] = env->v[later->i];
		env->v[later->i] = NULL;
	}
	for (size_t i = 0; i < env->nr; i++)
		if (env->v[i])
			env->v[nr++] = env->v[i];
	env->v[nr] = NULL;
	env->nr = nr;
}

static int oci_env_unique(struct json_ctx *ctx, struct oci_strv *env)
{
	cleanup_free struct oci_var *vars = calloc(env->nr + 1, sizeof(*vars));

	if (!vars)
		return json_fail(ctx, -ENOMEM, "out of memory");
	for (size_t i = 0; i < env->nr; i++)
		vars[i] = (struct oci_var){
			.s = env->v[i],
			.name_len = strcspn(env->v[i], "="),
			.i = i,
		};
	qsort(vars, env->nr, sizeof(*vars), oci_var_compare);
	oci_env_drop(env, vars);
	return 0;
}

static int oci_env_check(struct json_ctx *ctx, const struct oci_strv *env)
{
	for (size_t i = 0; i < env->nr; i++) {
		size_t len = strcspn(env->v[i], "="), old = json_enter_index(ctx, i);

		if (!len || !env->v[i][len])
			return json_fail(ctx, -EINVAL, "not of the form NAME=value: '%.64s'",
					 env->v[i]);
		json_leave(ctx, old);
	}
	return 0;
}

static int oci_rlimits_check(struct json_ctx *ctx, const struct oci_process *p)
{
	uint32_t seen = 0;

	for (size_t i = 0; i < p->nr_rlimits; i++) {
		size_t old = json_enter_index(ctx, i);

		if (seen & (1u << p->rlimits[i].resource))
			return json_fail(ctx, -EINVAL, "the same type as an earlier one");
		seen |= 1u << p->rlimits[i].resource;
		json_leave(ctx, old);
	}
	return 0;
}

int oci_process_check(struct json_ctx *ctx, void *process)
{
	struct oci_process *p = process;
	size_t old = json_enter(ctx, "env");
	int r = oci_env_check(ctx, &p->env);

	if (r >= 0 && p->env.nr)
		r = oci_env_unique(ctx, &p->env);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	json_enter(ctx, "rlimits");
	r = oci_rlimits_check(ctx, p);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	return 0;
}
