/* State on disk (what `delete` depends on) and the hooks it and Create run. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bundle.h"
#include "cleanup.h"
#include "hooks.h"
#include "io.h"
#include "log.h"
#include "util.h"

struct env {
	char dir[64];
	int fd;
	struct loop *loop;
	bool done;
	struct err err;
};

static int setup(void **state)
{
	struct env *e = xcalloc(1, sizeof(*e));

	*state = e;
	log_init(STDERR_FILENO, LOG_LEVEL_ERR, NULL);
	snprintf(e->dir, sizeof(e->dir), "/tmp/harpoon-test-XXXXXX");
	if (!mkdtemp(e->dir))
		return -1;
	e->fd = bundle_open(e->dir, NULL);
	e->loop = loop_new();
	return e->fd < 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int teardown(void **state)
{
	struct env *e = *state;

	close(e->fd);
	loop_free(e->loop);
	nftw(e->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	free(e);
	return 0;
}

/* ---- bundle ---- */

static void test_task_file(void **state)
{
	struct env *e = *state;
	struct bundle_task t = {.pid = 77}, back;
	struct err err = {0};
	cleanup_close int fd = bundle_state_make(e->fd, &err);

	assert_true(fd >= 0);
	bundle_task_read(fd, &back);
	assert_int_equal(back.pid, 0);
	assert_int_equal(bundle_task_write(fd, &t), 0);
	bundle_task_read(fd, &back);
	assert_int_equal(back.pid, 77);
	assert_false(back.exited);
	t.exited = t.deleted = true;
	t.exit_status = 42;
	t.exited_at_ns = 1234567890123456789;
	assert_int_equal(bundle_task_write(fd, &t), 0);
	bundle_task_read(fd, &back);
	assert_true(back.exited && back.deleted);
	assert_int_equal(back.exit_status, 42);
	assert_true(back.exited_at_ns == t.exited_at_ns);
}

/* Empty, cut off, nonsense: nothing is known, nothing breaks. */
static void test_task_file_torn(void **state)
{
	static const char *const texts[] = {"",	      "pi",	    "pid",     "pid x\nexited",
					    "\n\n\n", "exited 1\n", "\xff\xfe"};
	struct env *e = *state;
	struct bundle_task back;
	cleanup_close int fd = bundle_state_make(e->fd, NULL);

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		assert_int_equal(io_write_file(fd, "task", texts[i], strlen(texts[i])), 0);
		bundle_task_read(fd, &back);
		assert_int_equal(back.pid, 0);
		assert_false(back.exited);
	}
}

static void test_shim_file_and_pid_reuse(void **state)
{
	struct env *e = *state;
	cleanup_close int fd = bundle_state_make(e->fd, NULL);
	cleanup_close int pidfd = -1;
	char text[64];
	int n;

	assert_int_equal(bundle_shim_open(fd), -ENOENT);
	assert_int_equal(bundle_shim_write(fd), 0);
	pidfd = bundle_shim_open(fd);
	assert_true(pidfd >= 0);
	/* The same pid with another start time is somebody else. */
	n = snprintf(text, sizeof(text), "%d 1\n", (int)getpid());
	assert_int_equal(io_write_file(fd, "shim", text, (size_t)n), 0);
	assert_int_equal(bundle_shim_open(fd), -ESRCH);
	assert_int_equal(io_write_file(fd, "shim", "1 1\n", 4), 0);
	assert_int_equal(bundle_shim_open(fd), -ENOENT);
}

static void test_state_folder_is_ours(void **state)
{
	struct env *e = *state;
	struct err err = {0};
	int fd;

	assert_int_equal(bundle_state_open(e->fd), -ENOENT);
	assert_int_equal(symlinkat("/tmp", e->fd, BUNDLE_STATE_DIR), 0);
	assert_true(bundle_state_make(e->fd, &err) < 0);
	assert_int_equal(unlinkat(e->fd, BUNDLE_STATE_DIR, 0), 0);
	assert_int_equal(mkdirat(e->fd, BUNDLE_STATE_DIR, 0700), 0);
	assert_int_equal(fchmodat(e->fd, BUNDLE_STATE_DIR, 0777, 0), 0);
	assert_int_equal(bundle_state_make(e->fd, &err), -EPERM);
	assert_int_equal(fchmodat(e->fd, BUNDLE_STATE_DIR, 0700, 0), 0);
	fd = bundle_state_make(e->fd, &err);
	assert_true(fd >= 0);
	/* Removed with all in it; twice; a link in it is not followed. */
	assert_int_equal(io_write_file(fd, "f", "x", 1), 0);
	assert_int_equal(mkdirat(fd, "d", 0700), 0);
	assert_int_equal(symlinkat(e->dir, fd, "d/link"), 0);
	close(fd);
	assert_int_equal(bundle_state_remove(e->fd), 0);
	assert_int_equal(bundle_state_remove(e->fd), 0);
	assert_int_equal(access(e->dir, F_OK), 0);
	assert_int_equal(bundle_state_open(e->fd), -ENOENT);
	assert_int_equal(bundle_open("relative", &err), -EINVAL);
}

/* ---- hooks ---- */

static void on_done(void *ctx, const struct err *err)
{
	struct env *e = ctx;

	e->done = true;
	e->err = *err;
}

static void run_hooks(struct env *e, const struct oci_hooks *a, const struct oci_hooks *b,
		      const char *state, bool keep_going)
{
	const struct oci_hooks *lists[] = {a, b};

	e->done = false;
	hooks_start(e->loop, lists, b ? 2 : 1, state, keep_going, 5, on_done, e);
	while (!e->done)
		loop_run_once(e->loop, 100);
}

#define SH(script) \
	{ \
		.path = "/bin/sh", .args = {.v = (char *[]){"hook", "-c", script, NULL}, .nr = 3 } \
	}

/* State on stdin, argv and environment exactly as given, in order, first list first. */
static void test_hooks_run_in_order(void **state)
{
	struct env *e = *state;
	cleanup_free char *script =
		xasprintf("cat >> %s/out; echo \"$0 $A\" >> %s/out", e->dir, e->dir);
	cleanup_free char *text = NULL;
	struct oci_hook one = SH(script), two = SH(script);
	struct oci_hooks a = {&one, 1}, b = {&two, 1};

	one.env = (struct oci_strv){(char *[]){"A=1", NULL}, 1};
	two.env = (struct oci_strv){(char *[]){"A=2", NULL}, 1};
	run_hooks(e, &a, &b, "{}", false);
	assert_int_equal(e->err.code, 0);
	assert_int_equal(io_read_file(e->fd, "out", 1000, &text, NULL), 0);
	assert_string_equal(text, "{}hook 1\n{}hook 2\n");
}

static void test_hook_failures(void **state)
{
	struct env *e = *state;
	cleanup_free char *touch = xasprintf("echo x > %s/second", e->dir);
	struct oci_hook fail[2] = {SH("echo oh no >&2; exit 3"), SH(touch)};
	struct oci_hook missing = {.path = "/nonexistent/hook"};
	struct oci_hook slow = SH("sleep 100 & sleep 100");
	struct oci_hooks list = {fail, 2}, none = {&missing, 1}, stuck = {&slow, 1};

	run_hooks(e, &list, NULL, "{}", false);
	assert_non_null(strstr(e->err.msg, "status 3: oh no"));
	assert_int_equal(faccessat(e->fd, "second", F_OK, 0), -1);
	log_init(open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_LEVEL_ERR, NULL);
	run_hooks(e, &list, NULL, "{}", true);
	log_init(STDERR_FILENO, LOG_LEVEL_ERR, NULL);
	assert_int_equal(e->err.code, 0);
	assert_int_equal(faccessat(e->fd, "second", F_OK, 0), 0);
	run_hooks(e, &none, NULL, "{}", false);
	assert_non_null(strstr(e->err.msg, "/nonexistent/hook"));
	assert_non_null(strstr(e->err.msg, "No such file"));
	slow.timeout_s = 1;
	run_hooks(e, &stuck, NULL, "{}", false);
	assert_int_equal(e->err.code, -ETIMEDOUT);
}

/* A background process that holds the hook's output is not waited for. */
static void test_hook_with_background_child(void **state)
{
	struct env *e = *state;
	cleanup_free char *script = xasprintf("sleep 30 & echo $! > %s/pid", e->dir);
	cleanup_free char *text = NULL;
	struct oci_hook hook = SH(script);
	struct oci_hooks list = {&hook, 1};
	uint64_t begin = util_now_ns();

	run_hooks(e, &list, NULL, "{}", false);
	assert_int_equal(e->err.code, 0);
	assert_true(util_now_ns() - begin < 10000000000ull);
	assert_int_equal(io_read_file(e->fd, "pid", 100, &text, NULL), 0);
	kill((pid_t)strtol(text, NULL, 10), SIGKILL);
}

static void test_hook_state_json(void **state)
{
	struct oci_annotation a[] = {{"k\"1", "v\n"}, {"k2", ""}};
	struct oci_spec spec = {.version = "1.1.0", .annotations = a, .nr_annotations = 2};
	cleanup_free char *with = hooks_state_json(&spec, "c1", "creating", 7, "/b");
	cleanup_free char *without = NULL;

	assert_string_equal(with, "{\"ociVersion\":\"1.1.0\",\"id\":\"c1\",\"status\":\"creating\","
				  "\"pid\":7,\"bundle\":\"/b\",\"annotations\":"
				  "{\"k\\\"1\":\"v\\u000a\",\"k2\":\"\"}}");
	spec.nr_annotations = 0;
	without = hooks_state_json(&spec, "c1", "stopped", 0, "/b");
	assert_string_equal(without,
			    "{\"ociVersion\":\"1.1.0\",\"id\":\"c1\",\"status\":\"stopped\","
			    "\"bundle\":\"/b\"}");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_task_file),
		T(test_task_file_torn),
		T(test_shim_file_and_pid_reuse),
		T(test_state_folder_is_ours),
		T(test_hooks_run_in_order),
		T(test_hook_failures),
		T(test_hook_with_background_child),
		cmocka_unit_test(test_hook_state_json),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
