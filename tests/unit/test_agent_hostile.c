/*
 * Images that try to lead the agent out of the container's root, and requests that help them. Whatever
 * happens, two canaries stay as they are: one beside the root in the shared folder, one on this host.
 */
#include "agent_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"

#define CANARY "untouched\n"

enum shape {
	SHAPE_LINK_OUT,
	SHAPE_LINK_IN,
	SHAPE_DANGLING,
	SHAPE_FIFO,
	SHAPE_FILE,
	SHAPE_DIR,
	SHAPE_MAX
};

static const char *const shape_names[] = {"link out", "link in", "dangling", "fifo", "file", "dir"};

/* A path of the image, below the root. */
static const char *image_path(const struct harness *h, const char *path)
{
	static char full[512];

	snprintf(full, sizeof(full), "%s/%s", h->root, path);
	return full;
}

static const char *canary_path(const struct harness *h)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/canary", h->base);
	return path;
}

static void canary_set(const struct harness *h)
{
	char path[600];

	assert_int_equal(io_write_file(AT_FDCWD, canary_path(h), CANARY, strlen(CANARY)), 0);
	snprintf(path, sizeof(path), "%s/victim", h->base);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "%s/victim/null", h->base);
	assert_int_equal(io_write_file(AT_FDCWD, path, CANARY, strlen(CANARY)), 0);
}

static void canary_check(const struct harness *h, const char *what)
{
	static const char *const files[] = {"canary", "victim/null"};
	char path[600], cmd[700];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		cleanup_free char *text = NULL;

		snprintf(path, sizeof(path), "%s/%s", h->base, files[i]);
		assert_int_equal(io_read_file(AT_FDCWD, path, 100, &text, NULL), 0);
		if (strcmp(text, CANARY) != 0)
			fail_msg("%s changed %s", what, files[i]);
	}
	/* Nothing was made in the folder a link pointed to, and nothing is mounted there. */
	snprintf(cmd, sizeof(cmd),
		 "test \"$(ls -A %s/victim)\" = null && ! grep -q %s /proc/mounts", h->base,
		 h->base);
	if (system(cmd)) /* NOLINT(cert-env33-c): a test's own command */
		fail_msg("%s left something outside of the root", what);
}

/* Replaces a path of the image by something of that shape. */
static void image_shape(const struct harness *h, const char *path, enum shape shape)
{
	char target[600], cmd[700];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", image_path(h, path));
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c) */
	switch (shape) {
	case SHAPE_LINK_OUT:
		/* Absolute and climbing at once: right on the host, wrong inside the root. */
		snprintf(target, sizeof(target), "/../../../../../../..%s/victim", h->base);
		assert_int_equal(symlink(target, image_path(h, path)), 0);
		break;
	case SHAPE_LINK_IN:
		assert_int_equal(symlink("/etc", image_path(h, path)), 0);
		break;
	case SHAPE_DANGLING:
		assert_int_equal(symlink("/no/such/place", image_path(h, path)), 0);
		break;
	case SHAPE_FIFO:
		assert_int_equal(mkfifo(image_path(h, path), 0644), 0);
		break;
	case SHAPE_FILE:
		harness_write_file(h, path, "file\n");
		break;
	case SHAPE_DIR:
	case SHAPE_MAX:
		assert_int_equal(mkdir(image_path(h, path), 0755), 0);
		break;
	}
}

/* Every place the set-up touches, in every shape: it may work or fail, never hang or leave the root. */
static void test_matrix_of_shapes(void **state)
{
	struct harness *h = harness_of(state);
	static const char *const places[] = {"dev",	 "proc",	"sys",	    "etc/passwd",
					     "dev/pts",	 "dev/console", "dev/null", "masked",
					     "readonly", "data",	"work"};
	char *masked[] = {"/masked", "/proc/kcore"}, *readonly[] = {"/readonly"};

	harness_volume(h, "vol", true);
	canary_set(h);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		for (int shape = 0; shape < SHAPE_MAX; shape++) {
			struct harness_request r;
			struct harness_result res;
			char what[100];

			harness_new_root(h);
			image_shape(h, places[i], (enum shape)shape);
			harness_request_init(&r,
					     "echo x >/dev/null; cat /masked 2>/dev/null; exit 0");
			harness_add_mount(&r, "/sys", "sysfs", "sysfs", 1, "");
			harness_add_mount(&r, "/data", "bind", "share:vol", 4096, "");
			r.create.masked_paths = masked;
			r.create.n_masked_paths = 2;
			r.create.readonly_paths = readonly;
			r.create.n_readonly_paths = 1;
			r.process.cwd = "/work";
			r.process.terminal = true;
			harness_run(h, &r, &res);
			snprintf(what, sizeof(what), "/%s as %s", places[i], shape_names[shape]);
			canary_check(h, what);
			/* The runtime's own places must be real folders, or there is no container. */
			if (i < 3 && shape != SHAPE_DIR && res.create.code == RPC_OK)
				fail_msg("%s was accepted", what);
			if (shape == SHAPE_DIR && i != 3 && i != 6 && res.create.code != RPC_OK)
				fail_msg("%s: %s", what, res.create.msg);
			harness_end_streams(h);
			harness_result_done(&res);
		}
}

static void expect_error(struct harness *h, struct harness_request *r, enum rpc_code code,
			 const char *text)
{
	struct harness_result res;

	if (!strncmp(r->create.root_share, "root", 4) && !strchr(r->create.root_share, '/'))
		r->create.root_share = "root";
	harness_run(h, r, &res);
	if (res.create.code != code || !strstr(res.create.msg, text))
		fail_msg("wanted code %d and '%s', got %d and '%s'", (int)code, text,
			 (int)res.create.code, res.create.msg);
	harness_end_streams(h);
	harness_result_done(&res);
}

/* Either there is no such descriptor, or it is a magic link: never a container. */
static void expect_cwd_error(struct harness *h, struct harness_request *r)
{
	struct harness_result res;

	harness_run(h, r, &res);
	assert_int_not_equal(res.create.code, RPC_OK);
	assert_non_null(strstr(res.create.msg, "working directory"));
	harness_end_streams(h);
	harness_result_done(&res);
}

/* CVE-2024-21626: a working directory through a descriptor that leaked. */
static void test_cwd_through_descriptors(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	char cwd[64];

	for (int fd = 0; fd < 30; fd++) {
		snprintf(cwd, sizeof(cwd), "/proc/self/fd/%d", fd);
		harness_request_init(&r, "pwd");
		r.process.cwd = cwd;
		expect_cwd_error(h, &r);
	}
}

static void test_mount_targets_stay_inside(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_volume(h, "vol", true);
	canary_set(h);
	harness_new_root(h);
	assert_int_equal(symlink("../../../../../../../../../../etc", image_path(h, "up")), 0);
	assert_int_equal(symlink("/up/../../new", image_path(h, "far")), 0);
	harness_request_init(&r, "ls -d /etc/v /new/w /x && touch /etc/v/a /new/w/b && ls /x");
	harness_add_mount(&r, "/up/v", "bind", "share:vol", 4096, "");
	harness_add_mount(&r, "/far/w", "bind", "share:vol", 4096, "");
	harness_add_mount(&r, "/../../x", "bind", "share:vol", 4096, "");
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "/etc/v\n/new/w\n/x\na\nb\n");
	canary_check(h, "mount targets");
	harness_result_done(&res);
}

static void test_hostile_passwd(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	uint64_t start = util_now_ns();

	harness_request_init(&r, "true");
	harness_new_root(h);
	image_shape(h, "etc/passwd", SHAPE_FIFO);
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "not a regular file");
	harness_new_root(h);
	image_shape(h, "etc/passwd", SHAPE_FILE);
	assert_int_equal(truncate(image_path(h, "etc/passwd"), 1 << 30), 0);
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "larger than 1048576 bytes");
	harness_new_root(h);
	unlink(image_path(h, "etc/passwd"));
	assert_int_equal(symlink("/proc/version", image_path(h, "etc/passwd")), 0);
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "not a regular file");
	/* Nobody looks when HOME is given. */
	harness_new_root(h);
	image_shape(h, "etc/passwd", SHAPE_FIFO);
	r.env[1] = "HOME=/here";
	r.process.n_env = 2;
	expect_error(h, &r, RPC_OK, "");
	assert_true(util_now_ns() - start < UINT64_C(10000000000));
}

static void test_shares_stay_in_the_shared_folder(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;

	harness_request_init(&r, "true");
	r.create.root_share = "..";
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "not one path component");
	r.create.root_share = "root/../..";
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "not one path component");
	r.create.root_share = "no-such-share";
	expect_error(h, &r, RPC_NOT_FOUND, "share 'no-such-share'");
	harness_request_init(&r, "true");
	harness_add_mount(&r, "/data", "bind", "share:../../etc", 4096, "");
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "not one path component");
}

static void test_sysctls_stay_in_proc_sys(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(Sysctl) sysctl = HARPOON__AGENT__V1__SYSCTL__INIT, *sysctls[] = {&sysctl};
	static const char *const keys[] = {"../self/oom_score_adj", "/kernel/x", "kernel..x", "",
					   "."};
	struct harness_request r;

	harness_request_init(&r, "true");
	r.create.sysctls = sysctls;
	r.create.n_sysctls = 1;
	sysctl.value = "1";
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		sysctl.key = (char *)keys[i];
		expect_error(h, &r, RPC_INVALID_ARGUMENT, "not a valid key");
	}
	sysctl.key = "no.such.key";
	expect_error(h, &r, RPC_NOT_FOUND, "sysctl 'no.such.key'");
}

/* A file system nobody has, options nobody knows: the error names both. */
static void test_errors_of_mounts_name_the_cause(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;

	harness_request_init(&r, "true");
	harness_add_mount(&r, "/m", "nosuchfs", "none", 0, "");
	expect_error(h, &r, rpc_code_from_errno(-ENODEV),
		     "mount '/m' (nosuchfs): nosuchfs file system");
	harness_request_init(&r, "true");
	harness_add_mount(&r, "/m", "tmpfs", "tmpfs", 0, "nosuchoption=1");
	expect_error(h, &r, RPC_INVALID_ARGUMENT, "nosuchoption");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		HARNESS_TEST(test_matrix_of_shapes),
		HARNESS_TEST(test_cwd_through_descriptors),
		HARNESS_TEST(test_mount_targets_stay_inside),
		HARNESS_TEST(test_hostile_passwd),
		HARNESS_TEST(test_shares_stay_in_the_shared_folder),
		HARNESS_TEST(test_sysctls_stay_in_proc_sys),
		HARNESS_TEST(test_errors_of_mounts_name_the_cause),
	};

	return harness_main("agent_hostile", tests, ARRAY_SIZE(tests), 0);
}
