/* The hv layer's pure parts: command lines, versions, text from guests, the console log, processes. */
#include <errno.h>
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
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "console.h"
#include "host_tsc.h"
#include "hv.h"
#include "io.h"
#include "kernel_args.h"
#include "procs.h"
#include "qemu_args.h"
#include "text.h"

static char *make_dir(void)
{
	char *path = strdup("/tmp/harpoon-test-hv-XXXXXX");

	assert_non_null(mkdtemp(path));
	return path;
}

static void remove_dir(char *path)
{
	static const char *const files[] = {"console.log", "console.log.old", "processes"};
	cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		unlinkat(fd, files[i], 0);
	assert_int_equal(rmdir(path), 0);
	free(path);
}

/* ---- command lines ---- */

static size_t find_arg(char **argv, const char *arg)
{
	size_t i = 0;

	for (; argv[i]; i++) {
		if (!strcmp(argv[i], arg))
			return i;
	}
	fail_msg("no argument '%s'", arg);
	return i;
}

static bool has_value(char **argv, const char *option, const char *value)
{
	for (size_t i = 0; argv[i]; i++) {
		if (!strcmp(argv[i], option) && argv[i + 1] && !strcmp(argv[i + 1], value))
			return true;
	}
	return false;
}

static void test_qemu_args_nics(void **state)
{
	const struct hv_nic nics[] = {{HV_NIC_TAP, 100}, {HV_NIC_STREAM, 101}};
	const struct qemu_args a = {.qemu = "/usr/bin/q",
				    .kernel = "/kernel",
				    .initrd = "/initrd",
				    .kernel_args = "",
				    .id = "x",
				    .nr_vcpus = 1,
				    .mem_bytes = 96u << 20,
				    .nics = nics,
				    .nr_nics = 2};
	char **argv = qemu_args_build(&a);
	cleanup_free char *tap = xasprintf("tap,id=net0,fd=%d,vhost=off", QEMU_FD_NIC);
	cleanup_free char *stream =
		xasprintf("stream,id=net1,server=off,addr.type=fd,addr.str=%d", QEMU_FD_NIC + 1);

	assert_true(has_value(argv, "-netdev", tap));
	assert_true(has_value(argv, "-netdev", stream));
	assert_true(
		has_value(argv, "-device", "virtio-net-device,netdev=net0,mac=02:68:70:6e:00:00"));
	assert_true(
		has_value(argv, "-device", "virtio-net-device,netdev=net1,mac=02:68:70:6e:00:01"));
	qemu_args_free(argv);
}

/* Descriptors behind those of network devices; a file here, so no host device. */
static void test_qemu_args_disks(void **state)
{
	cleanup_close int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	const struct hv_nic nic = {HV_NIC_TAP, 100};
	const struct hv_disk disks[] = {{fd, true}, {fd, false}};
	const struct qemu_args a = {.qemu = "/usr/bin/q",
				    .kernel = "/kernel",
				    .initrd = "/initrd",
				    .kernel_args = "",
				    .id = "x",
				    .nr_vcpus = 1,
				    .mem_bytes = 96u << 20,
				    .nics = &nic,
				    .nr_nics = 1,
				    .disks = disks,
				    .nr_disks = 2};
	char **argv = qemu_args_build(&a);
	cleanup_free char *first = xasprintf("fd=%d,set=16", QEMU_FD_NIC + 1);
	cleanup_free char *second = xasprintf("fd=%d,set=17", QEMU_FD_NIC + 2);

	assert_true(has_value(argv, "-add-fd", first));
	assert_true(has_value(argv, "-add-fd", second));
	assert_true(has_value(argv, "-blockdev",
			      "driver=file,node-name=disk0,filename=/dev/fdset/16,read-only=on,"
			      "locking=off,discard=unmap"));
	assert_true(has_value(argv, "-blockdev",
			      "driver=file,node-name=disk1,filename=/dev/fdset/17,read-only=off,"
			      "locking=off,discard=unmap"));
	assert_true(has_value(argv, "-device", "virtio-blk-device,drive=disk1,serial=harpoon-1"));
	qemu_args_free(argv);
}

static void test_qemu_args(void **state)
{
	const struct qemu_args a = {.qemu = "/usr/bin/q",
				    .kernel = "/kernel",
				    .initrd = "/initrd",
				    .ram = "/ram/ram",
				    .kernel_args = "quiet a=1,2",
				    .id = "x,fd=9",
				    .nr_vcpus = 3,
				    .mem_bytes = 96u << 20};
	char **argv = qemu_args_build(&a);
	size_t machine = find_arg(argv, "-machine") + 1;

	assert_string_equal(argv[0], "/usr/bin/q");
	assert_non_null(strstr(argv[machine], "microvm,"));
	/* Both are needed under TCG: the guest hangs without them. */
	assert_non_null(strstr(argv[machine], "pit=on"));
	assert_non_null(strstr(argv[machine], "pic=on"));
	assert_true(has_value(argv, "-sandbox",
			      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
			      "resourcecontrol=deny"));
	find_arg(argv, "-nodefaults");
	find_arg(argv, "-no-user-config");
	find_arg(argv, "-no-reboot");
	assert_true(has_value(argv, "-display", "none"));
	assert_true(has_value(argv, "-smp", "3"));
	assert_true(has_value(argv, "-m", "96M"));
	assert_true(has_value(argv, "-object",
			      "memory-backend-file,id=ram,size=96M,share=on,mem-path=/ram/ram"));
	assert_true(has_value(argv, "-append", "quiet a=1,2"));
	/* A comma in a name from outside stays part of the name. */
	assert_true(has_value(argv, "-name", "guest=x,,fd=9"));
	/* Every descriptor is used exactly once, and nothing listens. */
	for (int fd = SPAWN_FD_FIRST; fd < SPAWN_FD_FIRST + (int)QEMU_NR_FDS; fd++) {
		cleanup_free char *text = xasprintf(",fd=%d", fd);
		int seen = 0;

		for (size_t i = 0; argv[i]; i++)
			seen += !strncmp(argv[i], "socket,", 7) && strstr(argv[i], text);
		assert_int_equal(seen, 1);
	}
	for (size_t i = 0; argv[i]; i++) {
		assert_null(strstr(argv[i], "server"));
		assert_true(!strstr(argv[i], "path=") || strstr(argv[i], ",mem-path=/ram/ram"));
	}
	qemu_args_free(argv);
	qemu_args_free(NULL);
}

static void test_kernel_args(void **state)
{
	struct kernel_args a = {.nr_vcpus = 1, .extra = ""};
	cleanup_free char *native = kernel_args_build(&a);
	cleanup_free char *one = NULL;
	cleanup_free char *two = NULL;

	assert_non_null(strstr(native, "panic=-1"));
	assert_non_null(strstr(native, "reboot=t"));
	assert_int_not_equal(native[strlen(native) - 1], ' ');
	/* Real processors speculate, and have timers and counters of their own. */
	assert_null(strstr(native, "mitigations"));
	assert_null(strstr(native, "noapictimer"));
	a.tsc_khz = 2400000;
	free(native);
	native = kernel_args_build(&a);
	assert_null(strstr(native, "tsc"));
	a.emulated = true;
	a.extra = "loglevel=7 x";
	one = kernel_args_build(&a);
	assert_non_null(strstr(one, " mitigations=off"));
	assert_non_null(strstr(one, " noapictimer"));
	/* The administrator's words come last: they win. */
	assert_non_null(strstr(one, " tsc=reliable tsc_early_khz=2400000 loglevel=7 x"));
	/* Clones would wake up all the time: the PIT cannot wait for long. */
	a.template = true;
	free(one);
	one = kernel_args_build(&a);
	assert_null(strstr(one, "noapictimer"));
	a.template = false;
	a.nr_vcpus = 2;
	a.tsc_khz = 0;
	two = kernel_args_build(&a);
	assert_null(strstr(two, "noapictimer"));
	assert_null(strstr(two, "tsc"));
	assert_null(strstr(two, "mem="));
}

/* The guest is told of a part of its memory by the address where that ends. */
static void test_kernel_args_memory(void **state)
{
	static const struct {
		uint64_t mib, machine_mib;
		const char *arg;
	} cases[] = {
		{512, 8192, " mem=512M"},   {3072, 8192, " mem=3072M"}, {3073, 8192, " mem=4097M"},
		{4096, 8192, " mem=5120M"}, {512, 512, NULL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cleanup_free char *line = kernel_args_build(
			&(struct kernel_args){.extra = "",
					      .mem_bytes = cases[i].mib << 20,
					      .machine_bytes = cases[i].machine_mib << 20});
		const char *found = strstr(line, " mem=");

		if (cases[i].arg)
			assert_string_equal(found, cases[i].arg);
		else
			assert_null(found);
	}
}

static void test_host_tsc(void **state)
{
	struct host_tsc start;
	uint64_t began = util_now_ns();
	uint32_t first, second;

	host_tsc_start(&start);
	first = host_tsc_khz(&start);
	assert_true(util_now_ns() - began >= HOST_TSC_SPAN_NS || !first);
	if (!first) {
		print_message("# this host does not keep time by its TSC\n");
		skip();
	}
	host_tsc_start(&start);
	second = host_tsc_khz(&start);
	/* Two measurements on a machine under any load agree to one part in a thousand. */
	assert_in_range(second, first - first / 1000, first + first / 1000);
}

static void test_qemu_versions(void **state)
{
	int major = 0, minor = 0;
	char text[200];

	assert_int_equal(qemu_version_parse("QEMU emulator version 7.2.13 (Debian 1:7.2+dfsg-7)",
					    &major, &minor),
			 0);
	assert_int_equal(major, 7);
	assert_int_equal(minor, 2);
	assert_true(qemu_version_runs(7, 2));
	assert_false(qemu_version_has_templates(7, 2));
	qemu_version_describe(7, 2, text, sizeof(text));
	assert_non_null(strstr(text, "runs containers"));
	assert_non_null(strstr(text, "templates are unavailable: that needs 8.2"));

	assert_false(qemu_version_runs(7, 1));
	qemu_version_describe(6, 9, text, sizeof(text));
	assert_non_null(strstr(text, "too old: 7.2 is needed"));
	assert_false(qemu_version_has_templates(8, 1));
	assert_true(qemu_version_has_templates(8, 2));
	assert_true(qemu_version_has_templates(10, 0));
	qemu_version_describe(10, 0, text, sizeof(text));
	assert_string_equal(text, "QEMU 10.0");

	assert_int_equal(qemu_version_parse("ls (GNU coreutils) 9.1", &major, &minor), -EINVAL);
	assert_int_equal(qemu_version_parse("QEMU emulator version x", &major, &minor), -EINVAL);
	assert_int_equal(qemu_version_parse("", &major, &minor), -EINVAL);
	assert_int_equal(major, 7);
}

/* ---- text ---- */

static void test_escape(void **state)
{
	char out[64];
	size_t used = 0;

	text_escape("a\x1b[2J\tb\r\n\x80\0z", 12, true, out, sizeof(out), &used);
	assert_int_equal(used, strlen("a\\x1b[2J\tb\n\\x80\\x00z"));
	assert_memory_equal(out, "a\\x1b[2J\tb\n\\x80\\x00z", used);
	used = 0;
	text_escape("\t\n", 2, false, out, sizeof(out), &used);
	assert_memory_equal(out, "\\x09\\x0a", 8);
	/* Never more than the room, and an escape is whole or not there. */
	used = 0;
	text_escape("ab\x01", 3, true, out, 5, &used);
	assert_int_equal(used, 2);
}

struct lines {
	int nr;
	char last[TEXT_LINE_MAX + 1];
};

static void count_line(void *ctx, const char *line)
{
	struct lines *l = ctx;

	l->nr++;
	assert_true(strlen(line) < TEXT_LINE_MAX);
	snprintf(l->last, sizeof(l->last), "%s", line);
}

static void test_lines(void **state)
{
	struct text_lines t = {0};
	struct lines got = {0};
	char longer[1000];

	text_lines_feed(&t, "one\r\n\n\ntw", 9, count_line, &got);
	assert_int_equal(got.nr, 1);
	text_lines_feed(&t, "o\nthree", 7, count_line, &got);
	assert_int_equal(got.nr, 2);
	assert_string_equal(got.last, "two");
	text_lines_flush(&t, count_line, &got);
	text_lines_flush(&t, count_line, &got);
	assert_int_equal(got.nr, 3);
	assert_string_equal(got.last, "three");
	/* Bytes that all grow fourfold, without an end of line. */
	memset(longer, 1, sizeof(longer));
	for (int i = 0; i < 10; i++)
		text_lines_feed(&t, longer, sizeof(longer), count_line, &got);
	assert_int_equal(got.nr, 3);
	text_lines_feed(&t, "\nx\n", 3, count_line, &got);
	assert_int_equal(got.nr, 5);
	assert_string_equal(got.last, "x");
}

/* ---- console ---- */

static off_t file_size(const char *dir, const char *name)
{
	cleanup_free char *path = xasprintf("%s/%s", dir, name);
	cleanup_free char *text = NULL;
	size_t len = 0;

	if (io_read_file(AT_FDCWD, path, 1 << 20, &text, &len))
		return -1;
	return (off_t)len;
}

static void test_console(void **state)
{
	cleanup_free char *text = NULL;
	char *dir = make_dir();
	cleanup_close int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct loop *loop = loop_new();
	struct console *c = NULL;
	struct err err = {0};
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(console_new(loop, pair[0], dirfd, 8192, &c, &err), 0);
	assert_string_equal(console_last_words(c), "");
	assert_int_equal(io_write_full(pair[1], "boot \x1b[31m\r\nKernel panic - x\r\nend", 33), 0);
	loop_run_once(loop, 1000);
	assert_true(console_saw_panic(c));
	assert_string_equal(console_last_words(c), "Kernel panic - x");
	assert_false(console_saw_restart(c));
	assert_int_equal(io_write_full(pair[1], "\n[1.0] reboot: Restarting system", 32), 0);
	close(pair[1]);
	console_drain(c);
	assert_true(console_saw_restart(c));
	assert_int_equal(io_read_file(dirfd, "console.log", 8192, &text, NULL), 0);
	assert_string_equal(text, "boot \\x1b[31m\nKernel panic - x\nend\n"
				  "[1.0] reboot: Restarting system");
	console_free(c);
	loop_free(loop);
	remove_dir(dir);
}

/* However much a guest says, the two files together stay within the limit, newest last. */
static void test_console_bounded(void **state)
{
	cleanup_free char *text = NULL;
	char *dir = make_dir();
	cleanup_close int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct loop *loop = loop_new();
	struct console *c = NULL;
	struct err err = {0};
	char line[64];
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(console_new(loop, pair[0], dirfd, 8192, &c, &err), 0);
	for (int i = 0; i < 5000; i++) {
		int n = snprintf(line, sizeof(line), "line %d\n", i);

		assert_int_equal(io_write_full(pair[1], line, (size_t)n), 0);
		if (i % 50 == 0)
			console_drain(c);
	}
	console_drain(c);
	assert_in_range(file_size(dir, "console.log"), 1, 4096);
	assert_in_range(file_size(dir, "console.log.old"), 1, 4096);
	assert_int_equal(io_read_file(dirfd, "console.log", 8192, &text, NULL), 0);
	assert_non_null(strstr(text, "line 4999\n"));
	close(pair[1]);
	console_free(c);
	loop_free(loop);
	remove_dir(dir);
}

/* ---- processes ---- */

static void test_procs_parse(void **state)
{
	static const char *const bad[] = {
		"qemu\n",
		"qemu 12\n",
		"qemu 12 34",
		" 12 34\n",
		"qemu 1 34\n",
		"qemu 0 34\n",
		"qemu -5 34\n",
		"qemu 99999999999 3\n",
		"qemu 12 34 56\n",
		"qemu 12 34\n\n",
		"sixteencharacters 12 34\n",
		"qemu 12 99999999999999999999999\n",
		"a\nb 12 34\n",
	};
	struct procs_entry e[PROCS_MAX];
	char many[256] = "";
	size_t nr = 99;

	assert_int_equal(procs_parse("", e, &nr), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(procs_parse("qemu 12 34\nfs 56 78\n", e, &nr), 0);
	assert_int_equal(nr, 2);
	assert_string_equal(e[1].role, "fs");
	assert_int_equal(e[1].pid, 56);
	assert_int_equal(e[1].start_time, 78);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(procs_parse(bad[i], e, &nr), -EINVAL);
	for (size_t i = 0; i <= PROCS_MAX; i++)
		memcpy(many + i * 6, "x 2 3\n", 7);
	assert_int_equal(procs_parse(many, e, &nr), -EINVAL);
	assert_int_equal(nr, 2);
}

static pid_t start_sleeper(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		for (;;)
			pause();
	}
	return pid;
}

static void test_cleanup_state(void **state)
{
	struct procs_entry e[2] = {{.role = "qemu"}, {.role = "fs"}};
	char *dir = make_dir();
	cleanup_close int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct err err = {0};
	uint64_t pss = 0;
	int status;

	assert_int_equal(hv_cleanup_state(dirfd, &err), 0); /* nothing there */
	e[0].pid = start_sleeper();
	e[1].pid = start_sleeper();
	assert_int_equal(procs_start_time(e[0].pid, &e[0].start_time), 0);
	assert_int_equal(procs_start_time(e[1].pid, &e[1].start_time), 0);
	assert_int_equal(procs_pss(e[0].pid, &pss), 0);
	assert_in_range(pss, 4096, 1u << 30);
	/* The second one is somebody else by now: same pid, another start. It must live. */
	e[1].start_time += 1;
	assert_int_equal(procs_save(dirfd, e, 2, &err), 0);
	assert_int_equal(hv_cleanup_state(dirfd, &err), 0);
	assert_int_equal(faccessat(dirfd, PROCS_FILE, F_OK, 0), -1);
	assert_int_equal(waitpid(e[0].pid, &status, 0), e[0].pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(waitpid(e[1].pid, &status, WNOHANG), 0);
	kill(e[1].pid, SIGKILL);
	waitpid(e[1].pid, &status, 0);
	/* Gone by itself in the meantime. */
	assert_int_equal(procs_save(dirfd, e, 2, &err), 0);
	assert_int_equal(hv_cleanup_state(dirfd, &err), 0);
	assert_int_equal(procs_start_time(e[0].pid, &pss), -ESRCH);
	/* A damaged file kills nobody. */
	assert_int_equal(io_write_file(dirfd, PROCS_FILE, "qemu 1 1\n", 9), 0);
	assert_int_equal(hv_cleanup_state(dirfd, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "damaged"));
	remove_dir(dir);
}

/* ---- choosing ---- */

static void test_choice(void **state)
{
	struct config c;
	struct hv_choice choice;
	struct err err = {0};

	assert_int_equal(config_load_file(&c, "", &err), 0);
	free(c.vmm);
	c.vmm = strdup("/nonexistent/harpoon-vmm");
	assert_int_equal(hv_choose_backend(&c, &choice, &err), 0);
	assert_int_equal(choice.backend, CONFIG_BACKEND_QEMU);
	assert_non_null(strstr(choice.why, "harpoon-vmm"));
	c.backend = CONFIG_BACKEND_KVM;
	assert_int_equal(hv_choose_backend(&c, &choice, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "harpoon-vmm is not installed"));
	assert_non_null(strstr(err.msg, "/nonexistent/harpoon-vmm"));
	c.backend = CONFIG_BACKEND_QEMU;
	assert_int_equal(hv_choose_backend(&c, &choice, &err), 0);
	config_done(&c);
}

static void test_bad_params(void **state)
{
	const struct hv_callbacks cb = {0};
	struct loop *loop = loop_new();
	struct hv_vm *vm = NULL;
	struct err err = {0};
	struct config c;
	struct hv_params p = {
		.config = &c, .id = "t", .netns_fd = -1, .nr_vcpus = 0, .mem_bytes = 128u << 20};

	assert_int_equal(config_load_file(&c, "", &err), 0);
	c.backend = CONFIG_BACKEND_QEMU;
	assert_int_equal(hv_vm_new(loop, &p, &cb, NULL, &vm, &err), -EINVAL);
	p.nr_vcpus = 33;
	assert_int_equal(hv_vm_new(loop, &p, &cb, NULL, &vm, &err), -EINVAL);
	p.nr_vcpus = 1;
	p.mem_bytes = 1;
	assert_int_equal(hv_vm_new(loop, &p, &cb, NULL, &vm, &err), -EINVAL);
	p.mem_bytes = (128u << 20) + 4096;
	assert_int_equal(hv_vm_new(loop, &p, &cb, NULL, &vm, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "whole MiB"));
	p.mem_bytes = 128u << 20;
	assert_int_equal(hv_vm_new(loop, &p, &cb, NULL, &vm, &err), 0);
	assert_int_equal(hv_vm_share(vm, "a/b", -1, 0, &err), -EINVAL);
	assert_int_equal(hv_vm_share(vm, "..", -1, 0, &err), -EINVAL);
	assert_int_equal(hv_vm_share(vm, "", -1, 0, &err), -EINVAL);
	assert_int_equal(hv_vm_share(vm, "ok", -1, 0x80, &err), -EINVAL);
	assert_int_equal(hv_vm_pause(vm, NULL, NULL, &err), -ESHUTDOWN);
	assert_int_equal(hv_vm_attach_stream(vm, 16, -1, -1, NULL, NULL, NULL, &err), -ESHUTDOWN);
	assert_int_equal(hv_vm_pid(vm), 0);
	hv_vm_free(vm);
	hv_vm_free(NULL);
	config_done(&c);
	loop_free(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qemu_args),
		cmocka_unit_test(test_qemu_args_nics),
		cmocka_unit_test(test_qemu_args_disks),
		cmocka_unit_test(test_kernel_args),
		cmocka_unit_test(test_kernel_args_memory),
		cmocka_unit_test(test_host_tsc),
		cmocka_unit_test(test_qemu_versions),
		cmocka_unit_test(test_escape),
		cmocka_unit_test(test_lines),
		cmocka_unit_test(test_console),
		cmocka_unit_test(test_console_bounded),
		cmocka_unit_test(test_procs_parse),
		cmocka_unit_test(test_cleanup_state),
		cmocka_unit_test(test_choice),
		cmocka_unit_test(test_bad_params),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
