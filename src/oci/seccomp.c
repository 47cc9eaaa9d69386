/*
 * linux.seccomp to a BPF program for the guest. The guest has the host's architecture, so libseccomp here
 * knows the guest's system calls; what the host's kernel can do does not matter, the filter is only exported.
 *
 * As runc: names unknown here are left out (a profile lists calls of newer kernels), rules equal to the default
 * action too; several conditions on one argument are alternatives; without `flags` the default is SPEC_ALLOW.
 * Calls numbered above all that the profile knows fail with ENOSYS and not with the default action: programs
 * probe for new calls and fall back on ENOSYS only.
 *
 * SCMP_ACT_NOTIFY is refused: the listener is a process of the host, the filter runs in the guest.
 *
 * libseccomp makes one program per architecture and they are joined here: asked for all at once it takes several
 * times as long. It is not asked for a balanced tree either, which takes as long again: since 5.11 the kernel
 * remembers the calls that are always allowed and runs the filter only for the others. x32 costs nothing: the
 * guest's kernel is built without it, so a profile that lists it gets ENOSYS for all its calls.
 *
 * Time: libseccomp's grows with the cube of the number of conditions on arguments, so their total is bounded. The
 * usual profiles have about ten.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf_common.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "spec.h"

#define OCI_SECCOMP_ENTRIES_MAX 1024
#define OCI_SECCOMP_NAMES_MAX 2048
#define OCI_SECCOMP_NAME_MAX 128
#define OCI_SECCOMP_ARGS_MAX 32
#define OCI_SECCOMP_RULES_MAX 4096
#define OCI_SECCOMP_CONDITIONS_MAX 512
#define OCI_SECCOMP_API 6 /* libseccomp: do not ask this kernel what it can do */
#define OCI_SECCOMP_ERRNO_MAX 4095
#define OCI_SYSCALL_ARGS 6

#define OCI_ACTION_NONE UINT32_MAX
#define OCI_ACTION_ERRNO SCMP_ACT_ERRNO(0)
#define OCI_ACTION_TRACE SCMP_ACT_TRACE(0)

/* The architectures whose system calls can come up in the guest; the first is its own. */
static const struct oci_arch {
	const char *word;
	uint32_t token, audit;
	uint32_t x32_bit; /* in the number: a call of x32 */
} oci_archs[] = {
#if defined(__x86_64__)
	{"SCMP_ARCH_X86_64", SCMP_ARCH_X86_64, AUDIT_ARCH_X86_64, 1u << 30},
	{"SCMP_ARCH_X86", SCMP_ARCH_X86, AUDIT_ARCH_I386, 0},
#elif defined(__aarch64__)
	{"SCMP_ARCH_AARCH64", SCMP_ARCH_AARCH64, AUDIT_ARCH_AARCH64, 0},
	{"SCMP_ARCH_ARM", SCMP_ARCH_ARM, AUDIT_ARCH_ARM, 0},
#else
#error "no system call architecture for this guest"
#endif
};

#define OCI_ARCH_X32 (1u << ARRAY_SIZE(oci_archs))

/* Known, and without meaning in this guest. */
static const char *const oci_foreign_archs[] = {
	"SCMP_ARCH_X86",     "SCMP_ARCH_X86_64",   "SCMP_ARCH_X32",	    "SCMP_ARCH_ARM",
	"SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS",	   "SCMP_ARCH_MIPS64",	    "SCMP_ARCH_MIPS64N32",
	"SCMP_ARCH_MIPSEL",  "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC",
	"SCMP_ARCH_PPC64",   "SCMP_ARCH_PPC64LE",  "SCMP_ARCH_S390",	    "SCMP_ARCH_S390X",
	"SCMP_ARCH_PARISC",  "SCMP_ARCH_PARISC64", "SCMP_ARCH_RISCV64",	    "SCMP_ARCH_LOONGARCH64",
	"SCMP_ARCH_M68K",    "SCMP_ARCH_SH",	   "SCMP_ARCH_SHEB",
};

static const struct json_word oci_action_words[] = {
	{"SCMP_ACT_KILL", SCMP_ACT_KILL_THREAD},
	{"SCMP_ACT_KILL_THREAD", SCMP_ACT_KILL_THREAD},
	{"SCMP_ACT_KILL_PROCESS", SCMP_ACT_KILL_PROCESS},
	{"SCMP_ACT_TRAP", SCMP_ACT_TRAP},
	{"SCMP_ACT_ERRNO", OCI_ACTION_ERRNO},
	{"SCMP_ACT_TRACE", OCI_ACTION_TRACE},
	{"SCMP_ACT_ALLOW", SCMP_ACT_ALLOW},
	{"SCMP_ACT_LOG", SCMP_ACT_LOG},
	{"SCMP_ACT_NOTIFY", SCMP_ACT_NOTIFY},
	{"", OCI_ACTION_NONE},
	{0},
};

static const struct json_word oci_operator_words[] = {
	{"SCMP_CMP_NE", SCMP_CMP_NE},
	{"SCMP_CMP_LT", SCMP_CMP_LT},
	{"SCMP_CMP_LE", SCMP_CMP_LE},
	{"SCMP_CMP_EQ", SCMP_CMP_EQ},
	{"SCMP_CMP_GE", SCMP_CMP_GE},
	{"SCMP_CMP_GT", SCMP_CMP_GT},
	{"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ},
	{0},
};

/* WAIT_KILLABLE_RECV is about notifications. TSYNC is no choice for a process of one thread. */
static const struct json_word oci_flag_words[] = {
	{"SECCOMP_FILTER_FLAG_TSYNC", 0},
	{"SECCOMP_FILTER_FLAG_LOG", SECCOMP_FILTER_FLAG_LOG},
	{"SECCOMP_FILTER_FLAG_SPEC_ALLOW", SECCOMP_FILTER_FLAG_SPEC_ALLOW},
	{"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", UINT32_MAX},
	{0},
};

struct oci_seccomp_arg {
	uint32_t index, op;
	uint64_t value, value_two;
};

struct oci_seccomp_action {
	uint32_t
		action; /* SCMP_ACT_*, of ERRNO and TRACE without the number until it is resolved */
	bool has_errno_ret;
	uint32_t errno_ret;
};

struct oci_seccomp_entry {
	struct oci_strv names;
	struct oci_seccomp_action action;
	struct oci_seccomp_arg *args;
	size_t nr_args;
};

struct oci_seccomp_raw {
	struct oci_seccomp_action default_action;
	uint32_t archs; /* bits: places in oci_archs, OCI_ARCH_X32 */
	bool has_flags;
	uint32_t flags;
	struct oci_seccomp_entry *entries;
	size_t nr_entries;
};

static int oci_arch_add(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	const char *s = json_borrow_string(ctx, v, OCI_STRING_MAX);
	uint32_t *archs = arg;

	if (!s)
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(oci_archs); i++) {
		if (!strcmp(oci_archs[i].word, s)) {
			*archs |= 1u << i;
			return 0;
		}
	}
	if (!strcmp(s, "SCMP_ARCH_X32"))
		*archs |= OCI_ARCH_X32;
	for (size_t i = 0; i < ARRAY_SIZE(oci_foreign_archs); i++)
		if (!strcmp(oci_foreign_archs[i], s))
			return 0;
	return json_fail(ctx, -EINVAL, "unknown value '%.64s'", s);
}

static int oci_archs_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			  void *obj)
{
	return json_each(ctx, v, 64, oci_arch_add, (char *)obj + f->off);
}

static int oci_flag_add(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	uint32_t *flags = arg;
	uint64_t flag;
	int r = json_find_word(ctx, v, oci_flag_words, &flag);

	if (r < 0)
		return r;
	if (flag == UINT32_MAX)
		return json_fail(
			ctx, -EOPNOTSUPP,
			"not supported: a flag for notifications, which cannot leave the VM");
	*flags |= (uint32_t)flag;
	return 0;
}

static int oci_flags_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			  void *obj)
{
	return json_each(ctx, v, 64, oci_flag_add, (char *)obj + f->off);
}

static const struct json_field oci_arg_fields[] = {
	{"index", JSON_U32, JSON_REQUIRED, AT(oci_seccomp_arg, index), .max = OCI_SYSCALL_ARGS - 1},
	{"value", JSON_U64, JSON_REQUIRED, AT(oci_seccomp_arg, value)},
	{"valueTwo", JSON_U64, AT(oci_seccomp_arg, value_two)},
	{"op", JSON_WORD, JSON_REQUIRED, AT(oci_seccomp_arg, op), .words = oci_operator_words},
	{0},
};

static const struct json_field oci_entry_fields[] = {
	{"names", JSON_STRINGS, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_seccomp_entry, names),
	 .max = OCI_SECCOMP_NAMES_MAX, .longest = OCI_SECCOMP_NAME_MAX},
	{"action", JSON_WORD, JSON_REQUIRED, AT(oci_seccomp_entry, action.action),
	 .words = oci_action_words},
	{"errnoRet", JSON_U32, HAS(oci_seccomp_entry, action.has_errno_ret),
	 AT(oci_seccomp_entry, action.errno_ret), .max = OCI_SECCOMP_ERRNO_MAX},
	{"args", JSON_ARRAY, AT(oci_seccomp_entry, args), NR(oci_seccomp_entry, nr_args),
	 .elem_len = sizeof(struct oci_seccomp_arg), .max = OCI_SECCOMP_ARGS_MAX,
	 .fields = oci_arg_fields},
	{0},
};

static int oci_action_resolve(struct json_ctx *ctx, struct oci_seccomp_action *a)
{
	bool takes_errno = a->action == OCI_ACTION_ERRNO || a->action == OCI_ACTION_TRACE;

	if (a->action == OCI_ACTION_NONE)
		return json_fail(ctx, -EINVAL, "no action");
	if (a->action == SCMP_ACT_NOTIFY)
		return json_fail(
			ctx, -EOPNOTSUPP,
			"not supported: SCMP_ACT_NOTIFY, whose listener is outside the VM");
	if (a->has_errno_ret && !takes_errno)
		return json_fail(ctx, -EINVAL, "an errno for an action that takes none");
	if (takes_errno)
		a->action |= a->has_errno_ret ? a->errno_ret : EPERM;
	return 0;
}

static int oci_entry_check(struct json_ctx *ctx, void *entry)
{
	return oci_action_resolve(ctx, &((struct oci_seccomp_entry *)entry)->action);
}

static const struct json_field oci_seccomp_fields[] = {
	{"defaultAction", JSON_WORD, AT(oci_seccomp_raw, default_action.action),
	 .words = oci_action_words},
	{"defaultErrnoRet", JSON_U32, HAS(oci_seccomp_raw, default_action.has_errno_ret),
	 AT(oci_seccomp_raw, default_action.errno_ret), .max = OCI_SECCOMP_ERRNO_MAX},
	{"architectures", JSON_CUSTOM, AT(oci_seccomp_raw, archs), .read = oci_archs_read},
	{"flags", JSON_CUSTOM, HAS(oci_seccomp_raw, has_flags), AT(oci_seccomp_raw, flags),
	 .read = oci_flags_read},
	{"syscalls", JSON_ARRAY, AT(oci_seccomp_raw, entries), NR(oci_seccomp_raw, nr_entries),
	 .elem_len = sizeof(struct oci_seccomp_entry), .max = OCI_SECCOMP_ENTRIES_MAX,
	 .fields = oci_entry_fields, .post = oci_entry_check},
	{0},
};

static void oci_filter_freep(scmp_filter_ctx *f)
{
	if (*f)
		seccomp_release(*f);
}

static void oci_seccomp_raw_done(struct oci_seccomp_raw *raw)
{
	json_fields_done(oci_seccomp_fields, raw);
}

static bool oci_args_repeat(const struct oci_seccomp_entry *e)
{
	unsigned int seen = 0;

	for (size_t i = 0; i < e->nr_args; i++) {
		if (seen & (1u << e->args[i].index))
			return true;
		seen |= 1u << e->args[i].index;
	}
	return false;
}

static int oci_rule_add(scmp_filter_ctx f, const struct oci_seccomp_entry *e, int nr)
{
	struct scmp_arg_cmp cmp[OCI_SECCOMP_ARGS_MAX];
	int r = 0;

	for (size_t i = 0; i < e->nr_args; i++)
		cmp[i] = (struct scmp_arg_cmp){
			.arg = e->args[i].index,
			.op = (enum scmp_compare)e->args[i].op,
			.datum_a = e->args[i].value,
			.datum_b = e->args[i].value_two,
		};
	if (!oci_args_repeat(e))
		return seccomp_rule_add_array(f, e->action.action, nr, (unsigned int)e->nr_args,
					      cmp);
	for (size_t i = 0; i < e->nr_args && r >= 0; i++)
		r = seccomp_rule_add_array(f, e->action.action, nr, 1, &cmp[i]);
	return r;
}

static int oci_entry_add(struct json_ctx *ctx, scmp_filter_ctx f, const struct oci_seccomp_entry *e)
{
	for (size_t i = 0; i < e->names.nr; i++) {
		int nr = seccomp_syscall_resolve_name(e->names.v[i]), r;

		if (nr == __NR_SCMP_ERROR) {
			log_dbg("oci", "%s: unknown system call '%s' ignored", ctx->path,
				e->names.v[i]);
			continue;
		}
		r = oci_rule_add(f, e, nr);
		if (r < 0)
			return json_fail(ctx, r == -ENOMEM ? r : -EINVAL,
					 "no filter can be made of the rule for '%s': %s",
					 e->names.v[i], strerror(-r));
	}
	return 0;
}

static int oci_entries_check(struct json_ctx *ctx, const struct oci_seccomp_raw *raw)
{
	size_t nr_rules = 0, nr_conditions = 0, old = json_enter(ctx, "syscalls");

	for (size_t i = 0; i < raw->nr_entries; i++) {
		const struct oci_seccomp_entry *e = &raw->entries[i];

		nr_rules += e->names.nr;
		nr_conditions += e->names.nr * e->nr_args;
	}
	if (nr_rules > OCI_SECCOMP_RULES_MAX)
		return json_fail(ctx, -E2BIG, "%zu rules, more than %u", nr_rules,
				 OCI_SECCOMP_RULES_MAX);
	if (nr_conditions > OCI_SECCOMP_CONDITIONS_MAX)
		return json_fail(ctx, -E2BIG, "%zu conditions on arguments, more than %u",
				 nr_conditions, OCI_SECCOMP_CONDITIONS_MAX);
	json_leave(ctx, old);
	return 0;
}

static int oci_entries_add(struct json_ctx *ctx, scmp_filter_ctx f,
			   const struct oci_seccomp_raw *raw)
{
	size_t top = json_enter(ctx, "syscalls");

	for (size_t i = 0; i < raw->nr_entries; i++) {
		const struct oci_seccomp_entry *e = &raw->entries[i];
		size_t old = json_enter_index(ctx, i);
		int r = 0;

		/* libseccomp refuses a rule that changes nothing. */
		if (e->action.action != raw->default_action.action)
			r = oci_entry_add(ctx, f, e);
		if (r < 0)
			return r;
		json_leave(ctx, old);
	}
	json_leave(ctx, top);
	return 0;
}

/* The largest number among the profile's calls, 0 = it has none on this architecture. */
static uint32_t oci_last_syscall(const struct oci_seccomp_raw *raw, uint32_t token)
{
	int last = 0;

	for (size_t i = 0; i < raw->nr_entries; i++) {
		for (size_t k = 0; k < raw->entries[i].names.nr; k++) {
			int nr = seccomp_syscall_resolve_name_arch(token,
								   raw->entries[i].names.v[k]);

			last = MAX(last, nr);
		}
	}
	return (uint32_t)last;
}

/* The call after which all are newer than the profile, UINT32_MAX = none is. */
static uint32_t oci_newest_syscall(const struct oci_seccomp_raw *raw, const struct oci_arch *a)
{
	uint32_t action = raw->default_action.action, last;

	/* What goes on to the kernel anyway gets the right answer there. */
	if (action == SCMP_ACT_ALLOW || action == SCMP_ACT_LOG ||
	    action == SCMP_ACT_ERRNO(ENOSYS) ||
	    (action & SECCOMP_RET_ACTION_FULL) == OCI_ACTION_TRACE)
		return UINT32_MAX;
	last = oci_last_syscall(raw, a->token);
	return last ? last : UINT32_MAX;
}

struct oci_program {
	struct sock_filter *v;
	size_t nr;
};

static void oci_program_done(struct oci_program *p)
{
	free(p->v);
}

#define OCI_HEAD_LEN 7

/*
 * What stands before an architecture's program of `nr` instructions: the way past it for the others, ENOSYS for x32
 * and newer calls. The last one is no dead end for others: its program starts by killing foreign ones.
 */
static void oci_head_make(const struct oci_seccomp_raw *raw, const struct oci_arch *a, size_t nr,
			  bool is_last, struct sock_filter *ret)
{
	uint32_t past = (uint32_t)(OCI_HEAD_LEN - 3 + (is_last ? 0 : nr));
	uint8_t x32 = raw->archs & OCI_ARCH_X32 ? 1 : 2;
	struct sock_filter head[OCI_HEAD_LEN] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, a->audit, 1, 0),
		BPF_STMT(BPF_JMP | BPF_JA, past),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, a->x32_bit, x32, 0),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, oci_newest_syscall(raw, a), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
	};

	memcpy(ret, head, sizeof(head));
}

/* libseccomp writes its program to a descriptor only. ret_nr: how many instructions fd then holds. */
static int oci_filter_export(struct json_ctx *ctx, scmp_filter_ctx f, int fd, size_t *ret_nr)
{
	struct stat st;
	int r = seccomp_export_bpf(f, fd);

	if (r < 0)
		return json_fail(ctx, r, "compiling the filter: %s", strerror(-r));
	if (fstat(fd, &st) < 0)
		return json_fail(ctx, -errno, "fstat: %s", strerror(errno));
	*ret_nr = (size_t)st.st_size / sizeof(struct sock_filter);
	return 0;
}

static int oci_program_append(struct json_ctx *ctx, const struct oci_seccomp_raw *raw,
			      const struct oci_arch *a, bool is_last, scmp_filter_ctx f,
			      struct oci_program *p)
{
	cleanup_close int fd = memfd_create("harpoon-seccomp", MFD_CLOEXEC);
	size_t at = p->nr + OCI_HEAD_LEN, nr = 0, len;
	int r;

	if (fd < 0)
		return json_fail(ctx, -errno, "memfd_create: %s", strerror(errno));
	r = oci_filter_export(ctx, f, fd, &nr);
	if (r < 0)
		return r;
	if (at + nr > BPF_MAXINSNS)
		return json_fail(ctx, -E2BIG, "the filter has %zu instructions, more than %u",
				 at + nr, BPF_MAXINSNS);
	p->v = xrealloc(p->v, (at + nr) * sizeof(*p->v));
	len = nr * sizeof(*p->v);
	if (pread(fd, p->v + at, len, 0) != (ssize_t)len)
		return json_fail(ctx, -EIO, "reading the compiled filter back");
	oci_head_make(raw, a, nr, is_last, p->v + p->nr);
	p->nr = at + nr;
	return 0;
}

static int oci_arch_compile(struct json_ctx *ctx, const struct oci_seccomp_raw *raw,
			    const struct oci_arch *a, bool is_last, struct oci_program *p)
{
	cleanup(oci_filter_freep) scmp_filter_ctx f = seccomp_init(raw->default_action.action);
	int r = 0;

	if (!f)
		return json_fail(ctx, -ENOMEM, "no filter can be made of this default action");
	if (a != oci_archs)
		r = seccomp_arch_add(f, a->token);
	if (a != oci_archs && r >= 0)
		r = seccomp_arch_remove(f, SCMP_ARCH_NATIVE);
	if (r < 0)
		return json_fail(ctx, r, "libseccomp and %s: %s", a->word, strerror(-r));
	r = oci_entries_add(ctx, f, raw);
	return r < 0 ? r : oci_program_append(ctx, raw, a, is_last, f, p);
}

static int oci_filter_make(struct json_ctx *ctx, const struct oci_seccomp_raw *raw,
			   struct oci_spec *s)
{
	cleanup(oci_program_done) struct oci_program p = {0};
	uint32_t archs = (raw->archs | 1) & (OCI_ARCH_X32 - 1);
	int r = oci_entries_check(ctx, raw);

	if (r < 0)
		return r;
	seccomp_api_set(OCI_SECCOMP_API);
	for (size_t i = 0; i < ARRAY_SIZE(oci_archs); i++) {
		if (archs & (1u << i))
			r = oci_arch_compile(ctx, raw, &oci_archs[i], !(archs >> (i + 1)), &p);
		if (r < 0)
			return r;
	}
	s->seccomp = take_ptr(&p.v);
	s->nr_seccomp = p.nr;
	return 0;
}

int oci_seccomp_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		     void *obj)
{
	cleanup(oci_seccomp_raw_done) struct oci_seccomp_raw raw = {
		.default_action.action = OCI_ACTION_NONE,
	};
	struct oci_spec *s = obj;
	size_t old;
	int r = json_read_fields(ctx, oci_seccomp_fields, v, &raw);

	if (r < 0)
		return r;
	/* An empty object is Go's way to say "no filter". */
	if (raw.default_action.action == OCI_ACTION_NONE && !raw.nr_entries)
		return 0;
	old = json_enter(ctx, "defaultAction");
	r = oci_action_resolve(ctx, &raw.default_action);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	s->seccomp_flags = raw.has_flags ? raw.flags : SECCOMP_FILTER_FLAG_SPEC_ALLOW;
	return oci_filter_make(ctx, &raw, s);
}

void oci_seccomp_done(const struct json_field *f, void *obj)
{
	free(((struct oci_spec *)obj)->seccomp);
}
