/*
 * Virtual machines for real: QEMU in its jail with harpoon-fs beside it, driven through hv.h. Most guests
 * are a few instructions written by the test, so that every way to end can be had in a fraction of a
 * second; the last test boots the real guest.
 *
 * Needs root and QEMU, else everything is skipped. HARPOON_CONFIG names the build tree's harpoon.conf.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "hv.h"
#include "io.h"
#include "mux.h"
#include "rpc.h"
#include "spawn.h"
#include "sys.h"
#include "util.h"

#define DEADLINE_NS (120 * 1000000000ull)

/* ---- a guest kernel of twenty instructions ---- */

#define GUEST_BASE 0x100000u
#define GUEST_TEXT_MAX 256

struct tiny_guest {
	Elf32_Ehdr eh;
	Elf32_Phdr ph[2];
	struct {
		Elf32_Nhdr nh;
		char name[4];
		uint32_t entry;
	} note; /* PVH: where 32-bit protected mode begins */
	uint8_t code[32];
	uint64_t no_idt;
	char text[GUEST_TEXT_MAX];
};

enum tiny_end { TINY_RESET, TINY_HANG };

#define GUEST_AT(field) (GUEST_BASE + (uint32_t)offsetof(struct tiny_guest, field))

/* Prints `text` on the serial port, then resets by triple fault or halts for good. */
static void write_tiny_guest(int dirfd, const char *text, enum tiny_end end)
{
	static const uint8_t print[] = {
		0xbe, 0,    0,	  0,	0,    /* mov $text, %esi */
		0x66, 0xba, 0xf8, 0x03,	      /* mov $0x3f8, %dx */
		0xac, 0x84, 0xc0, 0x74, 0x03, /* 1: lodsb; test %al, %al; jz 2f */
		0xee, 0xeb, 0xf8,	      /* out %al, %dx; jmp 1b; 2: */
	};
	static const uint8_t hang[] = {0xf4, 0xeb, 0xfd};		     /* 3: hlt; jmp 3b */
	static const uint8_t reset[] = {0x0f, 0x01, 0x1d, 0, 0, 0, 0, 0xcc}; /* lidt; int3 */
	struct tiny_guest g = {
		.eh = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB,
				   EV_CURRENT},
		       .e_type = ET_EXEC,
		       .e_machine = EM_386,
		       .e_version = EV_CURRENT,
		       .e_entry = GUEST_AT(code),
		       .e_phoff = offsetof(struct tiny_guest, ph),
		       .e_ehsize = sizeof(Elf32_Ehdr),
		       .e_phentsize = sizeof(Elf32_Phdr),
		       .e_phnum = 2},
		.ph = {{.p_type = PT_LOAD,
			.p_vaddr = GUEST_BASE,
			.p_paddr = GUEST_BASE,
			.p_filesz = sizeof(g),
			.p_memsz = sizeof(g),
			.p_flags = PF_R | PF_W | PF_X,
			.p_align = 4096},
		       {.p_type = PT_NOTE,
			.p_offset = offsetof(struct tiny_guest, note),
			.p_vaddr = GUEST_AT(note),
			.p_paddr = GUEST_AT(note),
			.p_filesz = sizeof(g.note),
			.p_memsz = sizeof(g.note),
			.p_align = 4}},
		.note = {.nh = {.n_namesz = 4, .n_descsz = 4, .n_type = 18}, /* PHYS32_ENTRY */
			 .name = "Xen",
			 .entry = GUEST_AT(code)},
	};
	uint32_t text_at = GUEST_AT(text), idt_at = GUEST_AT(no_idt);
	uint8_t *p = g.code + sizeof(print);

	memcpy(g.code, print, sizeof(print));
	memcpy(g.code + 1, &text_at, sizeof(text_at));
	if (end == TINY_HANG) {
		memcpy(p, hang, sizeof(hang));
	} else {
		memcpy(p, reset, sizeof(reset));
		memcpy(p + 3, &idt_at, sizeof(idt_at));
	}
	snprintf(g.text, sizeof(g.text), "%s", text);
	assert_int_equal(io_write_file(dirfd, "kernel", &g, sizeof(g)), 0);
	assert_int_equal(io_write_file(dirfd, "initrd", "x", 1), 0);
	assert_int_equal(fchmodat(dirfd, "kernel", 0644, 0), 0);
	assert_int_equal(fchmodat(dirfd, "initrd", 0644, 0), 0);
}

/* ---- one VM ---- */

struct fixture {
	struct loop *loop;
	struct config config;
	char dir[64];
	int dirfd;
	struct hv_vm *vm;
	int readies, exits;
	struct hv_ready ready;
	struct hv_exit why;
};

static void set_path(char **field, const char *dir, const char *name)
{
	free(*field);
	*field = dir ? xasprintf("%s/%s", dir, name) : xstrdup(name);
}

static void on_ready(void *ctx, const struct hv_ready *ready)
{
	struct fixture *f = ctx;

	f->readies++;
	f->ready = *ready;
}

static void on_exit_seen(void *ctx, const struct hv_exit *why)
{
	struct fixture *f = ctx;

	f->exits++;
	f->why = *why;
}

static int new_vm(struct fixture *f, struct err *err)
{
	static const struct hv_callbacks cb = {on_ready, on_exit_seen};
	const struct hv_params p = {.config = &f->config,
				    .id = "test",
				    .state_dir_fd = f->dirfd,
				    .state_dir = f->dir,
				    .netns_fd = -1,
				    .nr_vcpus = 1,
				    .mem_bytes = 128u << 20};

	return hv_vm_new(f->loop, &p, &cb, f, &f->vm, err);
}

static int setup(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct err err = {0};

	if (config_load(&f->config, &err)) {
		print_message("# %s\n", err.msg);
		free(f);
		return -1;
	}
	f->config.backend = CONFIG_BACKEND_QEMU;
	snprintf(f->dir, sizeof(f->dir), "/tmp/harpoon-test-vm-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	f->dirfd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	f->loop = loop_new();
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	static const char *const files[] = {"kernel",	   "initrd",	      "processes",
					    "console.log", "console.log.old", "slow-fs"};
	struct fixture *f = *state;

	hv_vm_free(f->vm);
	loop_free(f->loop);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		unlinkat(f->dirfd, files[i], 0);
	close(f->dirfd);
	if (rmdir(f->dir))
		return -1;
	config_done(&f->config);
	free(f);
	/* Nothing of a VM outlives hv_vm_free(): neither running nor as a zombie. */
	return waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD ? 0 : -1;
}

static void need_host(const struct fixture *f)
{
	if (geteuid() || access(f->config.qemu, X_OK) || access(f->config.fs_server, X_OK)) {
		print_message("# needs root, '%s' and '%s'\n", f->config.qemu, f->config.fs_server);
		skip();
	}
}

static void start_tiny(struct fixture *f, const char *text, enum tiny_end end)
{
	struct err err = {0};

	need_host(f);
	write_tiny_guest(f->dirfd, text, end);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	if (new_vm(f, &err) || hv_vm_start(f->vm, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(f->exits, 0);
}

static void run_until_exit(struct fixture *f)
{
	uint64_t start = util_now_ns();

	while (!f->exits && util_now_ns() - start < DEADLINE_NS)
		assert_int_equal(loop_run_once(f->loop, 1000), 0);
	assert_int_equal(f->exits, 1);
	print_message("# %s\n", f->why.text);
}

/* Until the guest has printed something: QEMU runs it. */
static void run_until_console(struct fixture *f, const char *text)
{
	uint64_t start = util_now_ns();

	while (util_now_ns() - start < DEADLINE_NS) {
		cleanup_free char *log = NULL;

		assert_int_equal(loop_run_once(f->loop, 100), 0);
		assert_int_equal(f->exits, 0);
		if (!io_read_file(f->dirfd, "console.log", 1 << 20, &log, NULL) &&
		    strstr(log, text))
			return;
	}
	fail_msg("the guest printed nothing");
}

static char *proc_file(pid_t pid, const char *name)
{
	cleanup_free char *path = xasprintf("/proc/%d/%s", (int)pid, name);
	char *text = NULL;

	assert_int_equal(io_read_file(AT_FDCWD, path, 1 << 20, &text, NULL), 0);
	return text;
}

static pid_t find_pid(struct fixture *f, const char *role)
{
	cleanup_free char *text = NULL;
	const char *p;

	assert_int_equal(io_read_file(f->dirfd, "processes", 4096, &text, NULL), 0);
	p = strstr(text, role);
	assert_non_null(p);
	return (pid_t)strtol(p + strlen(role) + 1, NULL, 10);
}

/* ---- the ways to end ---- */

static void test_panic(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "hi\r\n[0.1] Kernel panic - not syncing: no \x1b[1mroot\r\nmore\r\n",
		   TINY_RESET);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_PANIC);
	assert_non_null(strstr(f->why.text, "Kernel panic - not syncing: no \\x1b[1mroot"));
	assert_int_equal(f->readies, 0);
}

static void test_restart(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "[1.0] reboot: Restarting system\r\n", TINY_RESET);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_POWEROFF);
}

static void test_silent_reset(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "", TINY_RESET);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_PANIC);
	assert_non_null(strstr(f->why.text, "reset itself"));
}

static void test_never_ready(void **state)
{
	struct fixture *f = *state;

	f->config.ready_timeout_ms = 3000;
	start_tiny(f, "last words\n", TINY_HANG);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_FAILED);
	assert_non_null(strstr(f->why.text, "not ready after 3000 ms"));
}

static void test_kill(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	pid_t vmm, fs;

	start_tiny(f, "up\n", TINY_HANG);
	vmm = hv_vm_pid(f->vm);
	fs = find_pid(f, "fs");
	assert_int_equal(find_pid(f, "qemu"), vmm);
	hv_vm_kill(f->vm);
	assert_int_equal(f->exits, 0); /* never from inside the call */
	hv_vm_kill(f->vm);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_KILLED);
	assert_int_equal(kill(vmm, 0), -1);
	assert_int_equal(kill(fs, 0), -1);
	assert_int_equal(hv_vm_pause(f->vm, NULL, NULL, &err), -ESHUTDOWN);
	assert_int_equal(hv_cleanup_state(f->dirfd, &err), 0);
	assert_int_equal(loop_run_once(f->loop, 50), 0);
	assert_int_equal(f->exits, 1);
}

static void test_killed_from_outside(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "up\n", TINY_HANG);
	run_until_console(f, "up");
	kill(hv_vm_pid(f->vm), SIGKILL);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_KILLED);
	assert_non_null(strstr(f->why.text, "signal 9"));
}

static void test_vmm_told_to_end(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "up\n", TINY_HANG);
	run_until_console(f, "up");
	kill(hv_vm_pid(f->vm), SIGTERM);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_KILLED);
	assert_non_null(strstr(f->why.text, "host-signal"));
}

static void test_vmm_fails(void **state)
{
	struct fixture *f = *state;

	set_path(&f->config.qemu, NULL, "/usr/bin/false");
	start_tiny(f, "up\n", TINY_HANG);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_FAILED);
	assert_non_null(strstr(f->why.text, "QEMU exited with code 1"));
}

static void test_fs_server_dies(void **state)
{
	struct fixture *f = *state;

	start_tiny(f, "up\n", TINY_HANG);
	run_until_console(f, "up");
	kill(find_pid(f, "fs"), SIGKILL);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_FAILED);
	assert_non_null(strstr(f->why.text, "the file server was killed by signal 9"));
}

static void test_free_while_running(void **state)
{
	struct fixture *f = *state;
	pid_t vmm, fs;

	start_tiny(f, "up\n", TINY_HANG);
	vmm = hv_vm_pid(f->vm);
	fs = find_pid(f, "fs");
	hv_vm_free(f->vm);
	f->vm = NULL;
	assert_int_equal(kill(vmm, 0), -1);
	assert_int_equal(kill(fs, 0), -1);
	assert_int_equal(f->exits, 0);
}

static void free_in_callback(void *ctx, const struct hv_exit *why)
{
	struct fixture *f = ctx;

	f->exits++;
	hv_vm_free(f->vm);
	f->vm = NULL;
}

static void test_free_in_callback(void **state)
{
	static const struct hv_callbacks cb = {on_ready, free_in_callback};
	struct fixture *f = *state;
	struct hv_params p = {.config = &f->config,
			      .id = "test",
			      .state_dir_fd = f->dirfd,
			      .state_dir = f->dir,
			      .netns_fd = -1,
			      .nr_vcpus = 2,
			      .mem_bytes = 64u << 20};
	struct err err = {0};

	need_host(f);
	write_tiny_guest(f->dirfd, "x\n", TINY_RESET);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	assert_int_equal(hv_vm_new(f->loop, &p, &cb, f, &f->vm, &err), 0);
	assert_int_equal(hv_vm_start(f->vm, &err), 0);
	for (int i = 0; i < 600 && !f->exits; i++)
		assert_int_equal(loop_run_once(f->loop, 200), 0);
	assert_int_equal(f->exits, 1);
	assert_null(f->vm);
}

static void on_paused(void *ctx, const char *error)
{
	assert_null(error);
	++*(int *)ctx;
}

static void test_pause(void **state)
{
	struct fixture *f = *state;
	int r = -EAGAIN, paused = 0;
	struct err err = {0};

	start_tiny(f, "up\n", TINY_HANG);
	for (int i = 0; i < 600 && r == -EAGAIN; i++) {
		assert_int_equal(loop_run_once(f->loop, 100), 0);
		r = hv_vm_pause(f->vm, on_paused, &paused, &err);
	}
	assert_int_equal(r, 0);
	/* QEMU has not even read it yet. */
	assert_int_equal(paused, 0);
	assert_int_equal(hv_vm_pause(f->vm, on_paused, &paused, &err), -EBUSY);
	for (int i = 0; i < 600 && !paused; i++)
		assert_int_equal(loop_run_once(f->loop, 100), 0);
	assert_int_equal(paused, 1);
	assert_int_equal(hv_vm_resume(f->vm, &err), 0);
	/* It is answered; a refusal would end the VM. */
	for (int i = 0; i < 10; i++)
		assert_int_equal(loop_run_once(f->loop, 100), 0);
	assert_int_equal(f->exits, 0);
	assert_int_equal(paused, 1);
}

static void on_not_paused(void *ctx, const char *error)
{
	assert_non_null(error);
	++*(int *)ctx;
}

/* Whoever waits for the guest to stand still hears of its end instead. */
static void test_dies_while_being_paused(void **state)
{
	struct fixture *f = *state;
	int r = -EAGAIN, told = 0;
	struct err err = {0};

	start_tiny(f, "up\n", TINY_HANG);
	for (int i = 0; i < 600 && r == -EAGAIN; i++) {
		assert_int_equal(loop_run_once(f->loop, 100), 0);
		r = hv_vm_pause(f->vm, on_not_paused, &told, &err);
	}
	hv_vm_kill(f->vm);
	run_until_exit(f);
	assert_int_equal(told, 1);
}

/* ---- starts that fail ---- */

static void expect_start_error(struct fixture *f, int code, const char *text)
{
	struct err err = {0};
	int r;

	assert_int_equal(new_vm(f, &err), 0);
	r = hv_vm_start(f->vm, &err);
	print_message("# %s\n", err.msg);
	assert_int_equal(r, code);
	assert_non_null(strstr(err.msg, text));
	/* Nothing is left, and nothing more happens. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(loop_run_once(f->loop, 20), 0);
	assert_int_equal(f->exits, 0);
	hv_vm_free(f->vm);
	f->vm = NULL;
}

static void test_missing_files(void **state)
{
	struct fixture *f = *state;
	cleanup_free char *qemu = xstrdup(f->config.qemu);
	cleanup_free char *fs = xstrdup(f->config.fs_server);

	need_host(f);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	expect_start_error(f, -ENOENT, "kernel '");
	write_tiny_guest(f->dirfd, "x", TINY_HANG);
	unlinkat(f->dirfd, "initrd", 0);
	expect_start_error(f, -ENOENT, "initrd '");
	write_tiny_guest(f->dirfd, "x", TINY_HANG);
	assert_int_equal(fchmodat(f->dirfd, "kernel", 0600, 0), 0);
	expect_start_error(f, -EACCES, "not readable by everyone");
	assert_int_equal(fchmodat(f->dirfd, "kernel", 0644, 0), 0);
	set_path(&f->config.qemu, f->dir, "no-qemu");
	expect_start_error(f, -ENOENT, "no-qemu");
	set_path(&f->config.qemu, NULL, qemu);
	set_path(&f->config.fs_server, f->dir, "no-fs");
	expect_start_error(f, -ENOENT, "no-fs");
	set_path(&f->config.fs_server, NULL, fs);
}

static void test_bad_share(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	int r;

	need_host(f);
	write_tiny_guest(f->dirfd, "x", TINY_HANG);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	assert_int_equal(new_vm(f, &err), 0);
	assert_int_equal(hv_vm_share(f->vm, "a", open("/", O_PATH | O_CLOEXEC), 0, &err), 0);
	assert_int_equal(hv_vm_share(f->vm, "a", open("/", O_PATH | O_CLOEXEC), 0, &err), 0);
	r = hv_vm_start(f->vm, &err);
	print_message("# %s\n", err.msg);
	assert_int_equal(r, -EEXIST);
	assert_non_null(strstr(err.msg, "share 'a'"));
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* A file server that never says a word: QEMU waits for it, and the ready timeout ends both. */
static void test_mute_fs_server(void **state)
{
	static const char script[] = "#!/bin/sh\nexec sleep 1000\n";
	struct fixture *f = *state;

	assert_int_equal(io_write_file(f->dirfd, "slow-fs", script, sizeof(script) - 1), 0);
	assert_int_equal(fchmodat(f->dirfd, "slow-fs", 0755, 0), 0);
	set_path(&f->config.fs_server, f->dir, "slow-fs");
	f->config.ready_timeout_ms = 1500;
	start_tiny(f, "x", TINY_HANG);
	run_until_exit(f);
	assert_int_equal(f->why.kind, HV_EXIT_FAILED);
	assert_non_null(strstr(f->why.text, "not ready"));
}

/* ---- the jail ---- */

static void expect_line(const char *text, const char *line)
{
	if (!strstr(text, line))
		fail_msg("no '%s' in:\n%s", line, text);
}

static void expect_other_namespace(pid_t pid, const char *name)
{
	cleanup_free char *theirs = xasprintf("/proc/%d/ns/%s", (int)pid, name);
	cleanup_free char *ours = xasprintf("/proc/self/ns/%s", name);
	struct stat a, b;

	assert_int_equal(stat(theirs, &a), 0);
	assert_int_equal(stat(ours, &b), 0);
	assert_int_not_equal(a.st_ino, b.st_ino);
}

static void test_jail(void **state)
{
	static const char *const ns[] = {"mnt", "pid", "ipc", "uts", "net", "cgroup"};
	static const char *const lines[] = {
		"\nCapInh:\t0000000000000000\n",
		"\nCapPrm:\t0000000000000000\n",
		"\nCapEff:\t0000000000000000\n",
		"\nCapBnd:\t0000000000000000\n",
		"\nCapAmb:\t0000000000000000\n",
		"\nNoNewPrivs:\t1\n",
		"\nSeccomp:\t2\n",
		"\nGroups:\t \n",
	};
	struct fixture *f = *state;
	cleanup_free char *status = NULL;
	cleanup_free char *mounts = NULL;
	cleanup_free char *uid_line = NULL;
	cleanup_free char *environ_text = NULL;
	cleanup_free char *fs_status = NULL;
	unsigned int uid;
	pid_t pid;

	start_tiny(f, "up\n", TINY_HANG);
	run_until_console(f, "up");
	pid = hv_vm_pid(f->vm);
	for (size_t i = 0; i < ARRAY_SIZE(ns); i++)
		expect_other_namespace(pid, ns[i]);
	status = proc_file(pid, "status");
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		expect_line(status, lines[i]);
	uid = SPAWN_UID_BASE + (unsigned int)pid;
	uid_line = xasprintf("\nUid:\t%u\t%u\t%u\t%u\n", uid, uid, uid, uid);
	expect_line(status, uid_line);
	/* Of the host's tree: what QEMU needs, read-only, and not one mount more; and guest memory. */
	mounts = proc_file(pid, "mountinfo");
	for (char *save = NULL, *l = strtok_r(mounts, "\n", &save); l;
	     l = strtok_r(NULL, "\n", &save)) {
		char at[128], flags[128];

		assert_int_equal(sscanf(l, "%*s %*s %*s %*s %127s %127s", at, flags), 2);
		if (!strcmp(at, "/ram")) {
			assert_int_equal(strncmp(flags, "rw,nosuid,nodev,noexec", 22), 0);
			continue;
		}
		assert_int_equal(strncmp(flags, "ro,nosuid,nodev", 15), 0);
		assert_true(!strcmp(at, "/") || !strcmp(at, "/usr") || !strcmp(at, "/kernel") ||
			    !strcmp(at, "/initrd") || !strcmp(at, "/lib") ||
			    !strcmp(at, "/lib64") || !strcmp(at, "/etc/ld.so.cache"));
	}
	environ_text = proc_file(pid, "environ");
	assert_string_equal(environ_text, "");
	fs_status = proc_file(find_pid(f, "fs"), "status");
	expect_line(fs_status, "\nNoNewPrivs:\t1\n");
}

static void test_footprint(void **state)
{
	struct fixture *f = *state;
	struct hv_footprint mem;
	struct err err = {0};

	start_tiny(f, "up\n", TINY_HANG);
	run_until_console(f, "up");
	assert_int_equal(hv_vm_footprint(f->vm, &mem, &err), 0);
	print_message("# %llu KiB\n", (unsigned long long)mem.pss_bytes >> 10);
	assert_in_range(mem.vmm_pss_bytes, 1 << 20, 200 << 20);
	assert_int_equal(mem.pss_bytes, mem.vmm_pss_bytes + mem.fs_pss_bytes);
}

static int make_netns(void)
{
	int pipefd[2], status, fd;
	char path[64], c = 0;
	pid_t pid;

	assert_int_equal(pipe2(pipefd, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		if (unshare(CLONE_NEWNET))
			_exit(1);
		io_write_full(pipefd[1], &c, 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(pipefd[0], &c, 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	close(pipefd[0]);
	close(pipefd[1]);
	assert_true(fd >= 0);
	return fd;
}

/* The VM's process is in the container's network namespace: /proc/PID/ns/net works for outsiders. */
static void test_netns(void **state)
{
	static const struct hv_callbacks cb = {on_ready, on_exit_seen};
	struct fixture *f = *state;
	cleanup_free char *path = NULL;
	cleanup_close int netns = -1;
	struct hv_params p = {.config = &f->config,
			      .id = "test",
			      .state_dir_fd = f->dirfd,
			      .state_dir = f->dir,
			      .nr_vcpus = 1,
			      .mem_bytes = 64u << 20};
	struct stat want, got;
	struct err err = {0};

	need_host(f);
	netns = make_netns();
	p.netns_fd = netns;
	write_tiny_guest(f->dirfd, "x\n", TINY_HANG);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	assert_int_equal(hv_vm_new(f->loop, &p, &cb, f, &f->vm, &err), 0);
	assert_int_equal(hv_vm_start(f->vm, &err), 0);
	path = xasprintf("/proc/%d/ns/net", (int)hv_vm_pid(f->vm));
	assert_int_equal(fstat(netns, &want), 0);
	assert_int_equal(stat(path, &got), 0);
	assert_int_equal(got.st_ino, want.st_ino);
}

/* ---- death of the parent ---- */

static void wait_gone(pid_t pid)
{
	cleanup_close int pidfd = sys_pidfd_open(pid);
	struct pollfd pfd = {.fd = pidfd, .events = POLLIN};

	if (pidfd >= 0)
		assert_int_equal(poll(&pfd, 1, 30000), 1);
}

static void test_parent_killed(void **state)
{
	struct fixture *f = *state;
	int pipefd[2], status;
	pid_t parent, pids[2];
	struct err err = {0};

	need_host(f);
	write_tiny_guest(f->dirfd, "up\n", TINY_HANG);
	set_path(&f->config.kernel, f->dir, "kernel");
	set_path(&f->config.initrd, f->dir, "initrd");
	assert_int_equal(pipe2(pipefd, O_CLOEXEC), 0);
	parent = fork();
	if (!parent) {
		/* A loop is not shared across fork: the child takes its own. */
		f->loop = loop_new();
		if (new_vm(f, &err) || hv_vm_start(f->vm, &err))
			_exit(1);
		pids[0] = find_pid(f, "qemu");
		pids[1] = find_pid(f, "fs");
		io_write_full(pipefd[1], pids, sizeof(pids));
		loop_run(f->loop);
		_exit(1);
	}
	assert_int_equal(read(pipefd[0], pids, sizeof(pids)), sizeof(pids));
	assert_int_equal(kill(pids[0], 0), 0);
	assert_int_equal(kill(pids[1], 0), 0);
	kill(parent, SIGKILL);
	assert_int_equal(waitpid(parent, &status, 0), parent);
	wait_gone(pids[0]);
	wait_gone(pids[1]);
	/* What `delete` does afterwards. */
	assert_int_equal(hv_cleanup_state(f->dirfd, &err), 0);
	assert_int_equal(faccessat(f->dirfd, "processes", F_OK, 0), -1);
	close(pipefd[0]);
	close(pipefd[1]);
}

/* ---- spawn ---- */

/* The first child of a process, as soon as it has one. */
static pid_t await_child(pid_t parent)
{
	char path[64];
	int pid = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)parent, (int)parent);
	for (unsigned int tries = 0; tries < 10000 && !pid; tries++) {
		FILE *f = fopen(path, "re");

		assert_non_null(f);
		if (fscanf(f, "%d", &pid) != 1) /* NOLINT(cert-err34-c) */
			usleep(1000);
		fclose(f);
	}
	assert_true(pid > 0);
	return pid;
}

/* Between clone and go: what it was to wait for is full, so the parent is killed there. */
static void test_parent_killed_before_the_go(void **state)
{
	static const char page[4096];
	char name[] = "x";
	char *argv[] = {name, NULL};
	int full[2], pidfd, status;
	pid_t parent, child;

	(void)state;
	assert_int_equal(pipe2(full, O_CLOEXEC | O_NONBLOCK), 0);
	while (write(full[1], page, sizeof(page)) > 0)
		;
	assert_int_equal(fcntl(full[1], F_SETFL, 0), 0);
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	parent = fork();
	if (!parent) {
		struct spawn_params p = {.path = "/bin/true",
					 .argv = argv,
					 .output_fd = 2,
					 .cgroup_fds = &full[1],
					 .nr_cgroup_fds = 1};
		struct spawn_child c;
		struct err err = {0};

		spawn(&p, &c, &err);
		_exit(1);
	}
	child = await_child(parent);
	pidfd = sys_pidfd_open(child);
	assert_true(pidfd >= 0);
	kill(parent, SIGKILL);
	assert_int_equal(waitpid(parent, &status, 0), parent);
	assert_int_equal(poll(&(struct pollfd){.fd = pidfd, .events = POLLIN}, 1, 20000), 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(WEXITSTATUS(status), 127);
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
	close(pidfd);
	close(full[0]);
	close(full[1]);
}

static void test_spawn_errors(void **state)
{
	struct fixture *f = *state;
	char name[] = "x";
	char *argv[] = {name, NULL};
	const struct spawn_bind bad[] = {{SPAWN_BIND_DIR, "/nonexistent-folder", "usr"}};
	const struct spawn_jail jail = {.netns_fd = -1,
					.binds = bad,
					.nr_binds = 1,
					.nr_files_max = 128,
					.nr_threads_max = 8};
	struct spawn_params p = {.path = "/nonexistent/program", .argv = argv, .output_fd = 2};
	struct spawn_child child;
	struct err err = {0};

	need_host(f);
	assert_int_equal(spawn(&p, &child, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "start '/nonexistent/program': execute"));
	p.jail = &jail;
	assert_int_equal(spawn(&p, &child, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/nonexistent-folder"));
}

/* ---- the real guest ---- */

static void on_shutdown_answer(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			       const char *message)
{
	*(int *)ctx = (int)code;
}

static void on_stream_done(void *ctx, int err)
{
	++*(int *)ctx;
}

/* A call to the agent over stream 1; then the guest ends by itself, and the stream with it. */
static void end_by_agent(struct fixture *f)
{
	Harpoon__Agent__V1__Empty empty = HARPOON__AGENT__V1__EMPTY__INIT;
	const struct rpc_request req = {
		.service = "harpoon.agent.v1.Agent",
		.method = "Shutdown",
		.request = &empty.base,
		.response = &harpoon__agent__v1__empty__descriptor,
	};
	struct rpc_client *client;
	struct err err = {0};
	int pair[2], code = -1, ended = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(hv_vm_attach_stream(f->vm, MUX_STREAM_RPC, pair[1], pair[1],
					     on_stream_done, &ended, NULL, &err),
			 0);
	client = rpc_client_new(f->loop, pair[0], NULL, NULL);
	assert_int_equal(rpc_client_call(client, &req, on_shutdown_answer, &code), 0);
	run_until_exit(f);
	/* The guest may be gone before its answer is on the way: then the end of the stream is one. */
	assert_true(code == RPC_OK || code == RPC_UNAVAILABLE);
	assert_int_equal(ended, 1);
	assert_int_equal(f->why.kind, HV_EXIT_POWEROFF);
	rpc_client_free(client);
}

static void test_real_guest(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	uint64_t start = util_now_ns();

	need_host(f);
	if (access(f->config.kernel, R_OK) || access(f->config.initrd, R_OK)) {
		print_message("# no guest: '%s' or '%s' is not built\n", f->config.kernel,
			      f->config.initrd);
		skip();
	}
	f->config.ready_timeout_ms = 100000;
	if (new_vm(f, &err) || hv_vm_start(f->vm, &err))
		fail_msg("%s", err.msg);
	while (!f->readies && !f->exits && util_now_ns() - start < DEADLINE_NS)
		assert_int_equal(loop_run_once(f->loop, 1000), 0);
	if (f->exits)
		fail_msg("%s", f->why.text);
	assert_int_equal(f->readies, 1);
	print_message("# ready after %llu ms\n",
		      (unsigned long long)(f->ready.host_ready_ns - f->ready.host_start_ns) /
			      1000000);
	assert_true(f->ready.host_start_ns < f->ready.host_spawn_ns);
	assert_true(f->ready.host_spawn_ns < f->ready.host_ready_ns);
	assert_true(f->ready.guest_init_ns <= f->ready.guest_ready_ns);
	/* A share while the guest runs takes effect at once. */
	assert_int_equal(hv_vm_share(f->vm, "late", open("/usr", O_PATH | O_CLOEXEC),
				     HV_SHARE_READ_ONLY, &err),
			 0);
	assert_int_equal(hv_vm_share(f->vm, "late", open("/usr", O_PATH | O_CLOEXEC), 0, &err),
			 -EEXIST);
	end_by_agent(f);
}

#define VM_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		VM_TEST(test_panic),
		VM_TEST(test_restart),
		VM_TEST(test_silent_reset),
		VM_TEST(test_never_ready),
		VM_TEST(test_kill),
		VM_TEST(test_killed_from_outside),
		VM_TEST(test_vmm_told_to_end),
		VM_TEST(test_vmm_fails),
		VM_TEST(test_fs_server_dies),
		VM_TEST(test_free_while_running),
		VM_TEST(test_free_in_callback),
		VM_TEST(test_pause),
		VM_TEST(test_dies_while_being_paused),
		VM_TEST(test_missing_files),
		VM_TEST(test_bad_share),
		VM_TEST(test_mute_fs_server),
		VM_TEST(test_jail),
		VM_TEST(test_footprint),
		VM_TEST(test_netns),
		VM_TEST(test_parent_killed),
		cmocka_unit_test(test_parent_killed_before_the_go),
		VM_TEST(test_spawn_errors),
		VM_TEST(test_real_guest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
