/* Probes: whatever the host is, an answer in words, in bounded time, and nothing left behind. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "probe.h"
#include "util.h"

static int count_fds(void)
{
	int nr = 0;

	for (int fd = 0; fd < 256; fd++)
		nr += fcntl(fd, F_GETFD) >= 0;
	return nr;
}

static void test_kvm(void **state)
{
	struct probe_kvm kvm;
	int fds = count_fds();
	uint64_t start = util_now_ns();

	probe_kvm(&kvm);
	/* A few ms on an idle host; the deadlines inside add up to 6 s. */
	assert_true(util_now_ns() - start < 7000000000ull);
	print_message("# %s\n", kvm.text);
	assert_int_not_equal(kvm.text[0], '\0');
	assert_int_equal(count_fds(), fds);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child left */
	if (kvm.state == PROBE_KVM_MISSING)
		assert_int_equal(kvm.insn_per_s, 0);
	if (access("/dev/kvm", R_OK | W_OK))
		assert_int_equal(kvm.state, PROBE_KVM_MISSING);
	/* Emulated and native are two orders of magnitude apart: the verdict is the same every time. */
	if (kvm.state == PROBE_KVM_SLOW)
		assert_in_range(kvm.insn_per_s, 1000, 100000000);
	for (int i = 0; i < 3; i++) {
		struct probe_kvm again;

		probe_kvm(&again);
		assert_int_equal(again.state, kvm.state);
	}
}

/* The caller's signals are not touched, whatever they are. */
static void test_kvm_with_blocked_signals(void **state)
{
	struct probe_kvm kvm, blocked;
	sigset_t all, old, now;

	probe_kvm(&kvm);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	probe_kvm(&blocked);
	sigprocmask(SIG_SETMASK, &old, &now);
	assert_int_equal(blocked.state, kvm.state);
	assert_true(sigismember(&now, SIGALRM));
}

static void test_qemu(void **state)
{
	struct probe_qemu q;

	probe_qemu("/nonexistent/qemu", &q);
	assert_false(q.found);
	assert_non_null(strstr(q.text, "/nonexistent/qemu"));
	probe_qemu("/bin/true", &q);
	assert_false(q.found);
	assert_non_null(strstr(q.text, "is no QEMU"));
	if (access("/usr/bin/qemu-system-x86_64", X_OK)) {
		print_message("# QEMU is not installed\n");
		skip();
	}
	probe_qemu("/usr/bin/qemu-system-x86_64", &q);
	assert_true(q.found);
	assert_true(q.major >= 2);
	assert_non_null(strstr(q.text, "QEMU "));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kvm),
		cmocka_unit_test(test_kvm_with_blocked_signals),
		cmocka_unit_test(test_qemu),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
