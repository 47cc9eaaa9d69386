/*
 * Device filters; see devfilter.h. The program is written instruction by instruction:
 *
 *   r2 = type, r3 = access not decided yet, r4 = major, r5 = minor      of the device that is being used
 *   for each rule, the last one first: does the device match?
 *     allowing: take its kinds of access off r3; nothing left: r0 = 1, exit
 *     denying:  any of them in r3: r0 = 0, exit
 *   r0 = 0, exit
 */
#include "devfilter.h"

#include <assert.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "util.h"

#define DEVFILTER_ACCESS_ALL (BPF_DEVCG_ACC_MKNOD | BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE)
#define DEVFILTER_HEAD_INSNS 6
#define DEVFILTER_RULE_INSNS 8
#define DEVFILTER_TAIL_INSNS 2

static_assert(DEVFILTER_MKNOD == BPF_DEVCG_ACC_MKNOD && DEVFILTER_READ == BPF_DEVCG_ACC_READ &&
		      DEVFILTER_WRITE == BPF_DEVCG_ACC_WRITE,
	      "rules are passed on as they are");

/* After all others, as in runc: the OCI runtime spec's default devices, terminals, and any mknod. */
static const struct devfilter_rule devfilter_defaults[] = {
	{S_IFCHR, DEVFILTER_ANY, DEVFILTER_ANY, BPF_DEVCG_ACC_MKNOD, true},
	{S_IFBLK, DEVFILTER_ANY, DEVFILTER_ANY, BPF_DEVCG_ACC_MKNOD, true},
	{S_IFCHR, 1, 3, DEVFILTER_ACCESS_ALL, true},		   /* null */
	{S_IFCHR, 1, 5, DEVFILTER_ACCESS_ALL, true},		   /* zero */
	{S_IFCHR, 1, 7, DEVFILTER_ACCESS_ALL, true},		   /* full */
	{S_IFCHR, 1, 8, DEVFILTER_ACCESS_ALL, true},		   /* random */
	{S_IFCHR, 1, 9, DEVFILTER_ACCESS_ALL, true},		   /* urandom */
	{S_IFCHR, 5, 0, DEVFILTER_ACCESS_ALL, true},		   /* tty */
	{S_IFCHR, 5, 2, DEVFILTER_ACCESS_ALL, true},		   /* ptmx */
	{S_IFCHR, 136, DEVFILTER_ANY, DEVFILTER_ACCESS_ALL, true}, /* pts */
};

struct devfilter_program {
	struct bpf_insn *insns; /* owned, room for all rules */
	size_t nr;
};

static void devfilter_emit(struct devfilter_program *p, uint8_t code, uint8_t dst, uint8_t src,
			   int16_t off, int32_t imm)
{
	p->insns[p->nr++] = (struct bpf_insn){
		.code = code, .dst_reg = dst, .src_reg = src, .off = off, .imm = imm};
}

static void devfilter_emit_load(struct devfilter_program *p, uint8_t dst, size_t off)
{
	devfilter_emit(p, BPF_LDX | BPF_MEM | BPF_W, dst, BPF_REG_1, (int16_t)off, 0);
}

static void devfilter_emit_head(struct devfilter_program *p)
{
	devfilter_emit_load(p, BPF_REG_2, offsetof(struct bpf_cgroup_dev_ctx, access_type));
	devfilter_emit(p, BPF_ALU | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_2, 0, 0);
	devfilter_emit(p, BPF_ALU | BPF_RSH | BPF_K, BPF_REG_3, 0, 0, 16);
	devfilter_emit(p, BPF_ALU | BPF_AND | BPF_K, BPF_REG_2, 0, 0, 0xffff);
	devfilter_emit_load(p, BPF_REG_4, offsetof(struct bpf_cgroup_dev_ctx, major));
	devfilter_emit_load(p, BPF_REG_5, offsetof(struct bpf_cgroup_dev_ctx, minor));
}

/* Jumps to `end` when reg differs from imm; 32-bit compare, since majors are unsigned 32-bit. */
static void devfilter_emit_unless(struct devfilter_program *p, uint8_t reg, uint32_t imm,
				  size_t end)
{
	devfilter_emit(p, BPF_JMP32 | BPF_JNE | BPF_K, reg, 0, (int16_t)(end - p->nr - 1),
		       (int32_t)imm);
}

static void devfilter_emit_verdict(struct devfilter_program *p, bool allow)
{
	devfilter_emit(p, BPF_ALU | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, allow);
	devfilter_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static void devfilter_emit_rule(struct devfilter_program *p, const struct devfilter_rule *r)
{
	bool all = r->access == DEVFILTER_ACCESS_ALL;
	size_t end = p->nr + (r->kind != 0) + (r->major != DEVFILTER_ANY) +
		     (r->minor != DEVFILTER_ANY) + 2 +
		     (all	 ? 0
		      : r->allow ? 2
				 : 3);

	if (r->kind)
		devfilter_emit_unless(p, BPF_REG_2,
				      S_ISBLK(r->kind) ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR,
				      end);
	if (r->major != DEVFILTER_ANY)
		devfilter_emit_unless(p, BPF_REG_4, r->major, end);
	if (r->minor != DEVFILTER_ANY)
		devfilter_emit_unless(p, BPF_REG_5, r->minor, end);
	if (!all && r->allow) {
		devfilter_emit(p, BPF_ALU | BPF_AND | BPF_K, BPF_REG_3, 0, 0, (int32_t)~r->access);
		devfilter_emit_unless(p, BPF_REG_3, 0, end);
	} else if (!all) {
		devfilter_emit(p, BPF_ALU | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_3, 0, 0);
		devfilter_emit(p, BPF_ALU | BPF_AND | BPF_K, BPF_REG_1, 0, 0, (int32_t)r->access);
		devfilter_emit(p, BPF_JMP32 | BPF_JEQ | BPF_K, BPF_REG_1, 0,
			       (int16_t)(end - p->nr - 1), 0);
	}
	devfilter_emit_verdict(p, r->allow);
}

static bool devfilter_decides_all(const struct devfilter_rule *r)
{
	return !r->kind && r->major == DEVFILTER_ANY && r->minor == DEVFILTER_ANY &&
	       r->access == DEVFILTER_ACCESS_ALL;
}

static void devfilter_build(struct devfilter_program *p, const struct devfilter_rule *rules,
			    size_t nr, const struct devfilter_device *denied)
{
	devfilter_emit_head(p);
	if (denied && denied->kind)
		devfilter_emit_rule(p, &(struct devfilter_rule){denied->kind, denied->major,
								denied->minor, DEVFILTER_ACCESS_ALL,
								false});
	for (size_t i = ARRAY_SIZE(devfilter_defaults); i > 0; i--)
		devfilter_emit_rule(p, &devfilter_defaults[i - 1]);
	for (size_t i = nr; i > 0; i--) {
		devfilter_emit_rule(p, &rules[i - 1]);
		/* Nothing comes past it, and the kernel refuses instructions that nothing reaches. */
		if (devfilter_decides_all(&rules[i - 1]))
			return;
	}
	devfilter_emit_verdict(p, false);
}

static int devfilter_bpf(int cmd, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static int devfilter_load(const struct devfilter_program *p)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	attr.insns = (uint64_t)(uintptr_t)p->insns;
	attr.insn_cnt = (uint32_t)p->nr;
	attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
	return devfilter_bpf(BPF_PROG_LOAD, &attr);
}

static int devfilter_attach_program(int cgroup_fd, int prog_fd, struct err *err)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.target_fd = (uint32_t)cgroup_fd;
	attr.attach_bpf_fd = (uint32_t)prog_fd;
	attr.attach_type = BPF_CGROUP_DEVICE;
	attr.attach_flags = BPF_F_ALLOW_OVERRIDE;
	if (devfilter_bpf(BPF_PROG_ATTACH, &attr))
		return err_set(err, -errno, "attach the device filter");
	return 0;
}

/* The one that was loaded ahead of time, for whoever needs just this one. */
static struct {
	struct devfilter_program p;
	int fd;
} devfilter_ready = {.fd = -1};

static bool devfilter_is_ready(const struct devfilter_program *p)
{
	return devfilter_ready.fd >= 0 && devfilter_ready.p.nr == p->nr &&
	       !memcmp(devfilter_ready.p.insns, p->insns, p->nr * sizeof(*p->insns));
}

/* Owned by the caller. */
static struct bpf_insn *devfilter_room(size_t nr)
{
	size_t rules = ARRAY_SIZE(devfilter_defaults) + nr + 1;

	return xcalloc(DEVFILTER_HEAD_INSNS + rules * DEVFILTER_RULE_INSNS + DEVFILTER_TAIL_INSNS,
		       sizeof(struct bpf_insn));
}

int devfilter_attach(int cgroup_fd, const struct devfilter_rule *given, size_t nr,
		     const struct devfilter_device *denied, struct err *err)
{
	cleanup_free struct bpf_insn *insns = devfilter_room(nr);
	struct devfilter_program p = {.insns = insns};
	cleanup_close int prog_fd = -1;

	devfilter_build(&p, given, nr, denied);
	if (devfilter_is_ready(&p))
		return devfilter_attach_program(cgroup_fd, devfilter_ready.fd, err);
	prog_fd = devfilter_load(&p);
	if (prog_fd < 0)
		return err_set(err, -errno, "load the device filter (%zu instructions)", p.nr);
	return devfilter_attach_program(cgroup_fd, prog_fd, err);
}

/* The default rules come last, so they decide first: is there nothing left for this one to allow? */
static bool devfilter_is_default(const struct devfilter_rule *r)
{
	for (size_t i = 0; i < ARRAY_SIZE(devfilter_defaults); i++) {
		const struct devfilter_rule *d = &devfilter_defaults[i];

		if (r->kind == d->kind && (r->major == d->major || d->major == DEVFILTER_ANY) &&
		    (r->minor == d->minor || d->minor == DEVFILTER_ANY) &&
		    !(r->access & ~d->access))
			return true;
	}
	return false;
}

int devfilter_attach_below(int cgroup_fd, const struct devfilter_rule *given, size_t nr,
			   const struct devfilter_device *denied, struct err *err)
{
	cleanup_free struct devfilter_rule *rules = xcalloc(nr, sizeof(*rules));
	bool allows = false;
	size_t left = 0;

	for (size_t i = 0; i < nr; i++) {
		if (given[i].allow && devfilter_is_default(&given[i]))
			continue;
		rules[left++] = given[i];
		allows |= given[i].allow;
	}
	/* What nothing allows is denied already. */
	return allows ? devfilter_attach(cgroup_fd, rules, left, denied, err) : 0;
}

int devfilter_preload(const struct devfilter_device *denied, struct err *err)
{
	/* oci.WithDefaultSpec and WithDefaultUnixDevices, without what is default here, too. */
	static const struct devfilter_rule containerd[] = {
		{0, DEVFILTER_ANY, DEVFILTER_ANY, DEVFILTER_ACCESS_ALL, false},
		{S_IFCHR, 5, 1, DEVFILTER_ACCESS_ALL, true}, /* console */
	};
	struct devfilter_program p = {.insns = devfilter_room(ARRAY_SIZE(containerd))};

	devfilter_build(&p, containerd, ARRAY_SIZE(containerd), denied);
	devfilter_ready.p = p;
	devfilter_ready.fd = devfilter_load(&p);
	return devfilter_ready.fd < 0 ? err_set(err, -errno, "load a device filter") : 0;
}

void devfilter_unload(void)
{
	cleanup_closep(&devfilter_ready.fd);
	free(devfilter_ready.p.insns);
	devfilter_ready.p = (struct devfilter_program){0};
}
