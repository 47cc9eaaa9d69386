/*
 * System call filters of harpoon-vmm, one per kind of thread; see confine.h. Each row has its reason; what
 * no row allows kills the process: it means that somebody else's code runs in it.
 *
 * Nothing here opens, names, connects or executes anything, makes memory executable, or starts a
 * process or thread. Descriptors come by recvmsg() from the shim only.
 *
 * The program is a list of comparisons. The kernel remembers which calls pass whatever their arguments
 * are, so only the few rows with a condition are walked again.
 */
#include "confine.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

/* Sanitizers make calls of their own; their builds only report what is missing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFINE_OTHERWISE SECCOMP_RET_LOG
#else
#define CONFINE_OTHERWISE SECCOMP_RET_KILL_PROCESS
#endif

#if defined(__x86_64__)
#define CONFINE_ARCH AUDIT_ARCH_X86_64
#define CONFINE_X32_BIT 0x40000000u
#else
#error "no architecture"
#endif

#define ON_LOOP (1u << CONFINE_LOOP)
#define ON_VCPU (1u << CONFINE_VCPU)
#define ON_WORKER (1u << CONFINE_WORKER)
#define ON_ALL (ON_LOOP | ON_VCPU | ON_WORKER)

enum confine_when { ALWAYS, ARG_IS, ARG_LACKS };

struct confine_call {
	unsigned int on; /* kinds of threads */
	unsigned int nr;
	enum confine_when when;
	unsigned int arg; /* whose low 32 bits ... */
	uint32_t value;	  /* ... are this, or have none of these bits */
	const char *why;
};

static const struct confine_call confine_calls[] = {
	/* What each kind does all day comes first. */
	{ON_VCPU, SYS_ioctl, ARG_IS, 1, KVM_RUN, "the guest runs"},
	{ON_VCPU, SYS_ioctl, ARG_IS, 1, KVM_KVMCLOCK_CTRL, "it was paused: spare its watchdogs"},
	{ON_LOOP | ON_WORKER, SYS_epoll_wait, .why = "kicks, streams, the shim"},
	{ON_LOOP | ON_WORKER, SYS_epoll_pwait, .why = "the same, as newer C libraries call it"},
	{ON_LOOP, SYS_epoll_ctl, .why = "streams come and go"},
	{ON_ALL, SYS_read, .why = "eventfds; streams"},
	{ON_ALL, SYS_write, .why = "eventfds, interrupts; streams; console and log lines"},
	{ON_LOOP | ON_WORKER, SYS_readv, .why = "frames, streams into guest memory"},
	{ON_LOOP | ON_WORKER, SYS_writev, .why = "and out of it"},
	{ON_LOOP, SYS_recvmsg, .why = "requests of the shim, with descriptors"},
	{ON_LOOP, SYS_sendmsg, .why = "streams that are sockets"},
	{ON_LOOP, SYS_recvfrom, .why = "streams that are sockets"},
	{ON_LOOP, SYS_sendto, .why = "answers to the shim"},
	{ON_LOOP, SYS_shutdown, .why = "one direction of a stream ends"},
	{ON_LOOP | ON_WORKER, SYS_close, .why = "a stream has ended; a file is released"},
	{ON_LOOP, SYS_fcntl, ARG_IS, 1, F_GETFL, "streams do not block"},
	{ON_LOOP, SYS_fcntl, ARG_IS, 1, F_SETFL, "streams do not block"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, TCGETS, "is this stream a terminal?"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, TUNSETOFFLOAD, "what the guest's driver can take"},
	{ON_WORKER, SYS_preadv, .why = "block and file reads"},
	{ON_WORKER, SYS_pwritev, .why = "block and file writes"},
	{ON_WORKER, SYS_preadv2, .why = "the same with flags"},
	{ON_WORKER, SYS_pwritev2, .why = "the same with flags"},
	{ON_WORKER, SYS_pread64, .why = "block and file reads"},
	{ON_WORKER, SYS_pwrite64, .why = "block and file writes"},
	{ON_WORKER, SYS_fsync, .why = "flush"},
	{ON_WORKER, SYS_fdatasync, .why = "flush"},
	{ON_WORKER, SYS_fallocate, .why = "discard, write zeroes on a file"},
	{ON_WORKER, SYS_ioctl, ARG_IS, 1, BLKDISCARD, "discard on a block device"},
	{ON_WORKER, SYS_ioctl, ARG_IS, 1, BLKZEROOUT, "write zeroes on a block device"},
	{ON_WORKER, SYS_recvmsg, .why = "answers of harpoon-fs, with descriptors"},
	{ON_WORKER, SYS_sendmsg, .why = "requests to harpoon-fs"},
	{ON_LOOP, SYS_poll, .why = "wait for harpoon-fs, when the VM is saved"},
	{ON_LOOP, SYS_ppoll, .why = "the same, as newer C libraries call it"},
	{ON_ALL, SYS_getrandom, .why = "entropy for the guest; heap"},
	/* A machine is saved. */
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_MP_STATE, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_REGS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_SREGS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_XCRS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_DEBUGREGS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_LAPIC, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_XSAVE, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_XSAVE2, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_MSRS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_VCPU_EVENTS, "the state of a vCPU"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_CHECK_EXTENSION, "how large is it"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_CLOCK, "the state of the machine"},
	{ON_LOOP, SYS_ioctl, ARG_IS, 1, KVM_GET_IRQCHIP, "the state of the machine"},
	{ON_LOOP, SYS_ftruncate, .why = "the file its memory goes to"},
	{ON_LOOP, SYS_pwrite64, .why = "its memory"},
	/* Threads among themselves. */
	{ON_ALL, SYS_futex, .why = "locks"},
	{ON_ALL, SYS_tgkill, ARG_IS, 0, 0, "kick a vCPU; abort(): this very process only"},
	{ON_ALL, SYS_gettid, .why = "abort()"},
	{ON_ALL, SYS_getpid, .why = "abort()"},
	{ON_ALL, SYS_rt_sigprocmask, .why = "abort(); a thread ends"},
	{ON_ALL, SYS_rt_sigaction, .why = "abort()"},
	{ON_ALL, SYS_rt_sigreturn, .why = "the end of a signal's handler"},
	{ON_ALL, SYS_restart_syscall, .why = "after a stop"},
	{ON_ALL, SYS_sched_yield, .why = "a lock that is about to be free"},
	/* Memory. */
	{ON_ALL, SYS_mmap, ARG_LACKS, 2, PROT_EXEC, "heap; never executable"},
	{ON_ALL, SYS_mprotect, ARG_LACKS, 2, PROT_EXEC, "heap; never executable"},
	{ON_ALL, SYS_munmap, .why = "heap; a thread's stack"},
	{ON_ALL, SYS_mremap, .why = "heap"},
	{ON_ALL, SYS_brk, .why = "heap"},
	{ON_ALL, SYS_madvise, .why = "the balloon gives memory back; heap; a thread ends"},
	/* The rest. */
	{ON_ALL, SYS_clock_gettime, .why = "time, where the vDSO lacks it"},
	{ON_ALL, SYS_clock_nanosleep, .why = "back off"},
	{ON_ALL, SYS_fstat, .why = "what kind of descriptor is a stream; modes and sizes of files"},
	{ON_LOOP, SYS_newfstatat, .why = "the same, as the C library calls it"},
	{ON_ALL, SYS_exit, .why = "a thread ends"},
	{ON_ALL, SYS_exit_group, .why = "the end"},
};

#define CONFINE_ROW_MAX 5
#define CONFINE_PROGRAM_MAX (ARRAY_SIZE(confine_calls) * CONFINE_ROW_MAX + 8)

struct confine_program {
	struct sock_filter code[CONFINE_PROGRAM_MAX];
	unsigned short len;
};

static void confine_emit(struct confine_program *p, uint16_t op, uint8_t jt, uint8_t jf, uint32_t k)
{
	p->code[p->len++] = (struct sock_filter)BPF_JUMP(op, k, jt, jf);
}

static void confine_load(struct confine_program *p, size_t offset)
{
	confine_emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void confine_return(struct confine_program *p, uint32_t action)
{
	confine_emit(p, BPF_RET | BPF_K, 0, 0, action);
}

/* The accumulator holds the call's number before and after. */
static void confine_emit_call(struct confine_program *p, const struct confine_call *c)
{
	uint32_t value = c->value;

	if (c->when == ALWAYS) {
		confine_emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, c->nr);
		confine_return(p, SECCOMP_RET_ALLOW);
		return;
	}
	/* The kernel takes these arguments as 32 bits wide; the machine is little-endian. */
	confine_emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 4, c->nr);
	confine_load(p, offsetof(struct seccomp_data, args) + c->arg * sizeof(uint64_t));
	if (c->nr == SYS_tgkill)
		value = (uint32_t)getpid();
	if (c->when == ARG_IS)
		confine_emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value);
	else
		confine_emit(p, BPF_JMP | BPF_JSET | BPF_K, 1, 0, value);
	confine_return(p, SECCOMP_RET_ALLOW);
	confine_load(p, offsetof(struct seccomp_data, nr));
}

static void confine_compile(struct confine_program *p, enum confine_kind kind)
{
	confine_load(p, offsetof(struct seccomp_data, arch));
	confine_emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, CONFINE_ARCH);
	confine_return(p, SECCOMP_RET_KILL_PROCESS);
	confine_load(p, offsetof(struct seccomp_data, nr));
	confine_emit(p, BPF_JMP | BPF_JSET | BPF_K, 0, 1, CONFINE_X32_BIT);
	confine_return(p, SECCOMP_RET_KILL_PROCESS);
	for (size_t i = 0; i < ARRAY_SIZE(confine_calls); i++) {
		if (confine_calls[i].on & 1u << kind)
			confine_emit_call(p, &confine_calls[i]);
	}
	confine_return(p, CONFINE_OTHERWISE);
}

int confine_thread(enum confine_kind kind, struct err *err)
{
	struct confine_program p = {0};
	struct sock_fprog prog = {.filter = p.code};

	confine_compile(&p, kind);
	prog.len = p.len;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog))
		return err_set(err, -errno, "load the system call filter");
	return 0;
}
