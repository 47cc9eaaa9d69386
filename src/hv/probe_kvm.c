/*
 * Does /dev/kvm run guests at native speed? See probe.h.
 *
 * A counting loop runs for PROBE_RUN_US in a throw-away VM. Hardware does some 10^9 instructions a
 * second; KVM's instruction emulator, which is what runs an ordinary guest on hosts that are
 * themselves VMs with software page tables, one or two millions. Anything between is closer to native:
 * a processor that is emulated itself does 100 to 300 millions, less when its machine is busy.
 *
 * The first runs also pay for what the host sets up on first use (nested page tables, translated code),
 * which can take all of them where the host is slow: a run with next to no instruction says nothing. So
 * there are up to PROBE_RUNS that do say something, and the first that is native decides.
 *
 * The VM lives in a child process: the loop is ended by a timer signal there, our own signal mask and
 * handlers stay as they are, and a KVM that hangs costs a killed child and a deadline, not us.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "probe.h"
#include "probe_guest.h"
#include "sys.h"

#define PROBE_KVM_PATH "/dev/kvm"
#define PROBE_RUN_US 3000
#define PROBE_DEADLINE_MS 3000
#define PROBE_RUNS 4
#define PROBE_WARM_UP_NS 500000000ull
#define PROBE_TELLING_INSN_PER_S 100000ull
#define PROBE_NATIVE_INSN_PER_S 20000000ull

/* What the child found, as it travels through the pipe. */
struct probe_result {
	int error;	      /* -errno of `step`, 0 = it ran */
	uint32_t exit_reason; /* of KVM_RUN, 0 = ended by the timer as intended */
	uint64_t insns, ns;
	char step[40];
};

static struct kvm_run *probe_run; /* the child's, for its signal handler */

static void probe_on_timer(int sig)
{
	/* Also ends a KVM_RUN that is about to begin: no wake-up is lost. */
	probe_run->immediate_exit = 1;
}

static int probe_start_timer(void)
{
	struct sigaction sa = {.sa_handler = probe_on_timer}; /* no SA_RESTART */
	struct itimerval t = {.it_interval.tv_usec = PROBE_RUN_US,
			      .it_value.tv_usec = PROBE_RUN_US};
	sigset_t none;

	sigemptyset(&none);
	if (sigaction(SIGALRM, &sa, NULL) || sigprocmask(SIG_SETMASK, &none, NULL) ||
	    setitimer(ITIMER_REAL, &t, NULL))
		return -errno;
	return 0;
}

static uint64_t probe_speed(const struct probe_result *res)
{
	return res->ns ? (uint64_t)((double)res->insns * 1e9 / (double)res->ns) : 0;
}

/* One run, until the timer ends it; the guest goes on where it was. */
static int probe_count(int vcpu_fd, struct probe_result *ret)
{
	uint64_t start, before, after;
	int r = probe_guest_count(vcpu_fd, &before);

	if (r)
		return r;
	start = util_now_ns();
	r = ioctl(vcpu_fd, KVM_RUN, 0);
	ret->ns = util_now_ns() - start;
	if (r && errno != EINTR)
		return -errno;
	if (!r)
		ret->exit_reason = probe_run->exit_reason ? probe_run->exit_reason : UINT32_MAX;
	r = probe_guest_count(vcpu_fd, &after);
	ret->insns = after - before;
	return r;
}

static int probe_count_best(int vcpu_fd, struct probe_result *ret)
{
	uint64_t end = util_now_ns() + PROBE_WARM_UP_NS;
	int r = probe_start_timer();

	for (int runs = 0; !r && runs < PROBE_RUNS;) {
		struct probe_result run = *ret;

		probe_run->immediate_exit = 0;
		r = probe_count(vcpu_fd, &run);
		if (r || run.exit_reason || probe_speed(&run) >= probe_speed(ret))
			*ret = run;
		if (run.exit_reason || probe_speed(ret) >= PROBE_NATIVE_INSN_PER_S)
			break;
		if (probe_speed(&run) >= PROBE_TELLING_INSN_PER_S || util_now_ns() > end)
			runs++;
	}
	return r;
}

static int probe_vcpu(int kvm_fd, int vm_fd, struct probe_result *ret)
{
	int vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0), r;
	uint8_t *mem = mmap(NULL, PROBE_GUEST_MEM, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {.memory_size = PROBE_GUEST_MEM,
						     .userspace_addr = (uintptr_t)mem};

	snprintf(ret->step, sizeof(ret->step), "create a vCPU");
	if (vcpu_fd < 0 || size <= 0 || mem == MAP_FAILED)
		return -errno;
	probe_run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	if (probe_run == MAP_FAILED)
		return -errno;
	snprintf(ret->step, sizeof(ret->step), "give it memory");
	if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region))
		return -errno;
	snprintf(ret->step, sizeof(ret->step), "set its registers");
	r = probe_guest_load(vm_fd, vcpu_fd, mem);
	if (r)
		return r;
	snprintf(ret->step, sizeof(ret->step), "run it");
	return probe_count_best(vcpu_fd, ret);
}

/* In the child; it exits right after, so nothing is closed. */
static int probe_vm(struct probe_result *ret)
{
	int kvm_fd = open(PROBE_KVM_PATH, O_RDWR | O_CLOEXEC), vm_fd, version;

	snprintf(ret->step, sizeof(ret->step), "open it");
	if (kvm_fd < 0)
		return -errno;
	snprintf(ret->step, sizeof(ret->step), "ask for API version %d", KVM_API_VERSION);
	version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return version < 0 ? -errno : -EPROTO;
	snprintf(ret->step, sizeof(ret->step), "create a VM");
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (vm_fd < 0)
		return -errno;
	return probe_vcpu(kvm_fd, vm_fd, ret);
}

static HARPOON_NORETURN void probe_child(int fd)
{
	struct probe_result result = {0};

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	result.error = probe_vm(&result);
	io_write_full(fd, &result, sizeof(result));
	_exit(0);
}

/* 0 with *ret filled, or -errno when there is no answer. */
static int probe_in_child(struct probe_result *ret)
{
	cleanup_close int read_end = -1;
	cleanup_close int write_end = -1;
	cleanup_close int pidfd = -1;
	struct pollfd pfd;
	siginfo_t info;
	int ends[2];
	pid_t pid;
	bool whole;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	read_end = ends[0];
	write_end = ends[1];
	pid = sys_clone_pidfd(0, &pidfd);
	if (pid < 0)
		return -errno;
	if (!pid)
		probe_child(write_end);
	close(take_fd(&write_end));
	pfd = (struct pollfd){.fd = read_end, .events = POLLIN};
	while (poll(&pfd, 1, PROBE_DEADLINE_MS) < 0 && errno == EINTR)
		;
	/* A pipe write of this size is whole or not there. */
	whole = (pfd.revents & POLLIN) && io_read_full(read_end, ret, sizeof(*ret)) == sizeof(*ret);
	sys_pidfd_send_signal(pidfd, SIGKILL);
	/* A child stuck in the kernel is left behind rather than waited for. */
	pfd = (struct pollfd){.fd = pidfd, .events = POLLIN};
	while (poll(&pfd, 1, PROBE_DEADLINE_MS) < 0 && errno == EINTR)
		;
	if (pfd.revents)
		waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
	return whole ? 0 : -ETIMEDOUT;
}

static void probe_judge(const struct probe_result *res, struct probe_kvm *ret)
{
	uint64_t mega;

	ret->insn_per_s = probe_speed(res);
	mega = ret->insn_per_s / 1000000;
	if (ret->insn_per_s >= PROBE_NATIVE_INSN_PER_S) {
		ret->state = PROBE_KVM_NATIVE;
		snprintf(ret->text, sizeof(ret->text),
			 "KVM runs guests at native speed (%llu million instructions/s)",
			 (unsigned long long)mega);
		return;
	}
	ret->state = PROBE_KVM_SLOW;
	snprintf(ret->text, sizeof(ret->text),
		 "KVM emulates guest instructions (%llu.%llu million/s): this host is a VM without "
		 "hardware nesting; QEMU's own emulator is faster",
		 (unsigned long long)mega, (unsigned long long)(ret->insn_per_s / 100000 % 10));
}

void probe_kvm(struct probe_kvm *ret)
{
	struct probe_result res = {0};
	int r = probe_in_child(&res);

	*ret = (struct probe_kvm){.state = PROBE_KVM_MISSING};
	res.step[sizeof(res.step) - 1] = '\0';
	if (r) {
		snprintf(ret->text, sizeof(ret->text), "%s: the probe guest gave no answer: %s",
			 PROBE_KVM_PATH, strerror(-r));
	} else if (res.error == -ENOENT) {
		snprintf(
			ret->text, sizeof(ret->text),
			"no %s: the kvm module is not loaded, or virtualization is off in firmware",
			PROBE_KVM_PATH);
	} else if (res.error) {
		snprintf(ret->text, sizeof(ret->text), "%s is there, but does not work: %s: %s",
			 PROBE_KVM_PATH, res.step, strerror(-res.error));
	} else if (res.exit_reason) {
		snprintf(ret->text, sizeof(ret->text),
			 "%s cannot run 64-bit code: the probe guest stopped for reason %u",
			 PROBE_KVM_PATH, res.exit_reason);
	} else {
		probe_judge(&res, ret);
	}
}
