/*
 * The kvm backend against a harpoon-vmm that lies (evil_vmm.c): whatever it says, the VM ends with a sentence
 * or goes on, every stream is answered for, and nothing of it stays.
 *
 * Needs root (the jail) and /dev/kvm (opened, not used), else everything is skipped.
 */
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "config.h"
#include "hv.h"
#include "io.h"
#include "util.h"

#define LIMIT_NS (60 * 1000000000ull)
#define NOT_YET 12345

struct fixture {
	struct loop *loop;
	struct config config;
	char dir[64];
	int dirfd;
	struct hv_vm *vm;
	int readies, exits;
	int stream_error;
	struct hv_exit why;
	int saves;
	char save_error[512];
};

static void on_ready(void *ctx, const struct hv_ready *ready)
{
	((struct fixture *)ctx)->readies++;
}

static void on_exit_of_vm(void *ctx, const struct hv_exit *why)
{
	struct fixture *f = ctx;

	f->exits++;
	f->why = *why;
}

static void on_stream_done(void *ctx, int error)
{
	struct fixture *f = ctx;

	assert_int_equal(f->stream_error, NOT_YET);
	/* A stream ends before its VM does. */
	assert_int_equal(f->exits, 0);
	f->stream_error = error;
}

static void write_kernel(int dirfd)
{
	struct {
		Elf64_Ehdr head;
		Elf64_Phdr segment;
	} k = {
		.head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			 .e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_phoff = sizeof(Elf64_Ehdr),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 1},
		.segment = {.p_type = PT_LOAD, .p_filesz = 64, .p_memsz = 64},
	};

	assert_int_equal(io_write_file(dirfd, "kernel", &k, sizeof(k)), 0);
	assert_int_equal(io_write_file(dirfd, "initrd", "x", 1), 0);
}

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct err err = {0};

	*state = f;
	if (geteuid() || access("/dev/kvm", R_OK | W_OK))
		return 0;
	if (config_load(&f->config, &err))
		fail_msg("%s", err.msg);
	f->config.backend = CONFIG_BACKEND_KVM;
	snprintf(f->dir, sizeof(f->dir), "/tmp/test-hv-kvm-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->dirfd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	write_kernel(f->dirfd);
	free(f->config.vmm);
	free(f->config.kernel);
	free(f->config.initrd);
	f->config.vmm = xstrdup(EVIL_VMM);
	f->config.kernel = xasprintf("%s/kernel", f->dir);
	f->config.initrd = xasprintf("%s/initrd", f->dir);
	f->loop = loop_new();
	f->stream_error = NOT_YET;
	return 0;
}

static int tear_down(void **state)
{
	static const char *const files[] = {"kernel", "initrd", "processes", "console.log",
					    "console.log.old"};
	struct fixture *f = *state;

	if (f->loop) {
		hv_vm_free(f->vm);
		for (size_t i = 0; i < ARRAY_SIZE(files); i++)
			unlinkat(f->dirfd, files[i], 0);
		close(f->dirfd);
		rmdir(f->dir);
		loop_free(f->loop);
		config_done(&f->config);
	}
	free(f);
	return 0;
}

static struct fixture *begin_as(void **state, const char *how, enum hv_birth birth)
{
	static const struct hv_callbacks cb = {.on_ready = on_ready, .on_exit = on_exit_of_vm};
	struct fixture *f = *state;
	struct hv_params params = {.birth = birth,
				   .config = &f->config,
				   .id = "evil",
				   .state_dir = f->dir,
				   .netns_fd = -1,
				   .nr_vcpus = 1,
				   .mem_bytes = 64u << 20};
	struct err err = {0};

	if (!f->loop) {
		print_message("# needs root and /dev/kvm\n");
		skip();
	}
	params.state_dir_fd = f->dirfd;
	free(f->config.kernel_args);
	f->config.kernel_args = xasprintf("evil=%s", how);
	f->readies = f->exits = 0;
	f->stream_error = NOT_YET;
	if (hv_vm_new(f->loop, &params, &cb, f, &f->vm, &err) || hv_vm_start(f->vm, &err))
		fail_msg("%s: %s", how, err.msg);
	return f;
}

static struct fixture *begin(void **state, const char *how)
{
	return begin_as(state, how, HV_BIRTH_AUTO);
}

static void run_until(struct fixture *f, const int *what)
{
	uint64_t deadline = util_now_ns() + LIMIT_NS;

	while (!*what) {
		assert_true(util_now_ns() < deadline);
		assert_int_equal(loop_run_once(f->loop, 100), 0);
	}
}

static void end(struct fixture *f)
{
	hv_vm_free(f->vm);
	f->vm = NULL;
}

static void assert_ends(void **state, const char *how, const char *text)
{
	struct fixture *f = begin(state, how);

	run_until(f, &f->exits);
	assert_int_equal(f->exits, 1);
	assert_int_equal(f->why.kind, HV_EXIT_FAILED);
	if (!strstr(f->why.text, text))
		fail_msg("%s: '%s' does not say '%s'", how, f->why.text, text);
	for (const char *p = f->why.text; *p; p++)
		assert_true(*p >= ' ' && *p <= '~');
	end(f);
}

static void test_wrong_events(void **state)
{
	static const char *const hows[] = {
		"short",	 "long",	"kind-0",	"kind-99",
		"hello-early",	 "reset-early", "hello-twice",	"paused",
		"running-twice", "hello-huge",	"done-unknown", "saved",
	};

	for (size_t i = 0; i < ARRAY_SIZE(hows); i++)
		assert_ends(state, hows[i], "does not keep to its own protocol");
}

static void test_wrong_greeting(void **state)
{
	assert_ends(state, "hello-short", "greeting has 3 bytes");
}

static void test_escapes(void **state)
{
	assert_ends(state, "failed", "\\x1b");
}

static void test_exits(void **state)
{
	assert_ends(state, "exit", "exited with code 3");
}

static void test_closes(void **state)
{
	assert_ends(state, "close", "closed the channel");
}

static void test_does_not_get_ready(void **state)
{
	struct fixture *f = *state;

	f->config.ready_timeout_ms = 300;
	assert_ends(state, "silent", "not ready after 300 ms");
}

static unsigned int count_fds(void)
{
	cleanup_dir DIR *dir = opendir("/proc/self/fd");
	unsigned int nr = 0;

	while (readdir(dir))
		nr++;
	return nr;
}

/* Descriptors from it are not taken. */
static void test_sends_descriptors(void **state)
{
	struct fixture *f = begin(state, "fd");
	unsigned int before;

	run_until(f, &f->exits);
	end(f);
	before = count_fds();
	for (int i = 0; i < 3; i++) {
		f = begin(state, "fd");
		run_until(f, &f->exits);
		end(f);
		assert_int_equal(count_fds(), before);
	}
}

static struct fixture *attach(void **state, const char *how, int *ret_other)
{
	struct fixture *f = begin(state, how);
	struct err err = {0};
	int ends[2];

	run_until(f, &f->readies);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(hv_vm_attach_stream(f->vm, 16, -1, ends[1], on_stream_done, f, NULL, &err),
			 0);
	*ret_other = ends[0];
	return f;
}

static void test_streams(void **state)
{
	struct fixture *f;
	int other;

	f = attach(state, "stream-positive", &other);
	run_until(f, &f->exits);
	assert_int_equal(f->stream_error, -ECONNRESET);
	assert_non_null(strstr(f->why.text, "protocol"));
	close(other);
	end(f);

	f = attach(state, "stream-twice", &other);
	run_until(f, &f->exits);
	assert_int_equal(f->stream_error, -EPIPE);
	assert_non_null(strstr(f->why.text, "protocol"));
	close(other);
	end(f);

	f = attach(state, "stream-lost", &other);
	run_until(f, &f->exits);
	assert_int_equal(f->stream_error, -ECONNRESET);
	close(other);
	end(f);

	/* Freed while it is open. */
	f = attach(state, "stream-kept", &other);
	end(f);
	assert_int_equal(f->stream_error, -ECANCELED);
	close(other);
}

static void test_does_not_pause(void **state)
{
	struct fixture *f = begin(state, "no-pause");
	struct err err = {0};

	run_until(f, &f->readies);
	assert_int_equal(hv_vm_pause(f->vm, NULL, NULL, &err), 0);
	assert_int_equal(hv_vm_resume(f->vm, &err), -EAGAIN);
	run_until(f, &f->exits);
	assert_non_null(strstr(f->why.text, "does not stop or continue"));
	end(f);
}

static void on_saved(void *ctx, const char *error)
{
	struct fixture *f = ctx;

	f->saves++;
	snprintf(f->save_error, sizeof(f->save_error), "%s", error ? error : "");
}

static int open_folder(const struct fixture *f)
{
	int fd;

	assert_int_equal(mkdirat(f->dirfd, "checkpoint", 0700), 0);
	fd = openat(f->dirfd, "checkpoint", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

/* A checkpoint of a VM whose VMM does not save it: the reason comes back, nothing stays, the VM goes on. */
static void check_save_fails(void **state, const char *how, const char *text)
{
	struct fixture *f = begin(state, how);
	struct err err = {0};
	int fd;

	run_until(f, &f->readies);
	fd = open_folder(f);
	assert_int_equal(hv_vm_checkpoint(f->vm, fd, "note", on_saved, f, &err), 0);
	assert_int_equal(hv_vm_checkpoint(f->vm, fd, "note", on_saved, f, &err), -EBUSY);
	run_until(f, &f->saves);
	if (!strstr(f->save_error, text))
		fail_msg("%s: '%s' does not say '%s'", how, f->save_error, text);
	for (const char *p = f->save_error; *p; p++)
		assert_true(*p >= ' ' && *p <= '~');
	assert_int_equal(f->exits, 0);
	close(fd);
	/* Empty. */
	assert_int_equal(unlinkat(f->dirfd, "checkpoint", AT_REMOVEDIR), 0);
	f->saves = 0;
	end(f);
}

static void test_does_not_save(void **state)
{
	struct fixture *f;
	struct err err = {0};
	int fd;

	check_save_fails(state, "save-fails", "\\x1b");
	check_save_fails(state, "save-nothing", "memory");

	/* One that breaks the rules ends with its VM, and leaves nothing either. */
	f = begin(state, "save-positive");
	run_until(f, &f->readies);
	fd = open_folder(f);
	assert_int_equal(hv_vm_checkpoint(f->vm, fd, "note", on_saved, f, &err), 0);
	run_until(f, &f->exits);
	assert_non_null(strstr(f->why.text, "protocol"));
	end(f);
	close(fd);
	assert_int_equal(unlinkat(f->dirfd, "checkpoint", AT_REMOVEDIR), 0);
}

/* Guest and VMM have to know: one prepares all that clones should find, the other keeps what saving takes. */
static void test_template_is_told(void **state)
{
	struct fixture *f = begin_as(state, "template", HV_BIRTH_TEMPLATE);

	run_until(f, &f->readies);
	end(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_wrong_events, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_wrong_greeting, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_escapes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_exits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_closes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_does_not_get_ready, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_sends_descriptors, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_streams, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_does_not_pause, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_does_not_save, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_template_is_told, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
