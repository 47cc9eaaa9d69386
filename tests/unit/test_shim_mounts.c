/* Mount options, overlay options that are too long, and (as root) mounts in a namespace of the test's own. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "io.h"
#include "mounts.h"
#include "util.h"

static void test_options(void **state)
{
	char *words[] = {"workdir=/w", "ro", "upperdir=/u", "nosuid", "lowerdir=/a:/b",
			 "rbind",      "rw", "rprivate",    "loop"};
	struct mounts_options o;
	struct err e = {0};

	assert_int_equal(mounts_options_parse(words, ARRAY_SIZE(words), &o, &e), 0);
	assert_int_equal(o.flags, MS_NOSUID | MS_BIND | MS_REC);
	assert_int_equal(o.propagation, MS_PRIVATE | MS_REC);
	assert_true(o.loop);
	assert_string_equal(o.data, "workdir=/w,upperdir=/u,lowerdir=/a:/b");
	mounts_options_done(&o);
	assert_int_equal(mounts_options_parse(NULL, 0, &o, &e), 0);
	assert_string_equal(o.data, "");
	mounts_options_done(&o);
}

static void test_options_bounded(void **state)
{
	cleanup_free char *big = xmalloc(70000);
	char *words[] = {big};
	struct mounts_options o;
	struct err e = {0};

	memset(big, 'x', 69999);
	big[69999] = '\0';
	assert_int_equal(mounts_options_parse(words, 1, &o, &e), -E2BIG);
}

static void test_shorten_overlay(void **state)
{
	cleanup_free char *dir = NULL, *data = NULL;
	struct err e = {0};

	assert_int_equal(mounts_shorten_overlay("workdir=/s/9/work,upperdir=/s/9/fs,"
						"lowerdir=/s/12/fs:/s/1/fs:/s/120/fs,index=off",
						4095, &dir, &data, &e),
			 0);
	assert_string_equal(dir, "/s/");
	assert_string_equal(data, "workdir=/s/9/work,upperdir=/s/9/fs,"
				  "lowerdir=12/fs:1/fs:120/fs,index=off");
}

static void test_shorten_overlay_cannot(void **state)
{
	static const char *const bad[] = {
		"lowerdir=/a/b:/c/d",	  /* nothing in common but the root */
		"upperdir=/a,workdir=/b", /* no lower layers */
		"lowerdir=a/b:a/c",	  /* relative already */
		"lowerdir=/a/b", /* itself the folder of nothing: one layer shortens to a name */
	};
	char *dir = NULL, *data = NULL;
	struct err e = {0};

	for (size_t i = 0; i < 3; i++)
		assert_int_equal(mounts_shorten_overlay(bad[i], 4095, &dir, &data, &e),
				 -ENAMETOOLONG);
	assert_int_equal(mounts_shorten_overlay(bad[3], 9, &dir, &data, &e), -ENAMETOOLONG);
	assert_null(dir);
	assert_null(data);
}

/* ---- with mounts ---- */

struct env {
	char dir[64];
	int bundle;
};

static int setup(void **state)
{
	struct env *v = xcalloc(1, sizeof(*v));

	*state = v;
	v->bundle = -1;
	if (geteuid() || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return 0;
	snprintf(v->dir, sizeof(v->dir), "/tmp/harpoon-test-XXXXXX");
	if (!mkdtemp(v->dir) || mount("t", v->dir, "tmpfs", 0, NULL))
		return -1;
	v->bundle = open(v->dir, O_RDONLY | O_DIRECTORY);
	mkdirat(v->bundle, "rootfs", 0755);
	mkdirat(v->bundle, "up", 0755);
	mkdirat(v->bundle, "work", 0755);
	return 0;
}

static int teardown(void **state)
{
	struct env *v = *state;

	if (v->bundle >= 0) {
		close(v->bundle);
		umount2(v->dir, MNT_DETACH);
		rmdir(v->dir);
	}
	free(v);
	return 0;
}

#define NEED_ROOT(v) \
	do { \
		if ((v)->bundle < 0) { \
			print_message("# needs root\n"); \
			skip(); \
		} \
	} while (0)

static void test_bind_read_only_and_unmount(void **state)
{
	struct env *v = *state;
	char up[80];
	char *words[] = {"rbind", "ro"};
	struct mounts_entry m = {
		.type = "bind", .source = up, .target = "", .options = words, .nr_options = 2};
	struct err e = {0};

	NEED_ROOT(v);
	snprintf(up, sizeof(up), "%s/up", v->dir);
	assert_int_equal(io_write_file(v->bundle, "up/f", "x", 1), 0);
	assert_int_equal(mounts_mount_rootfs(v->bundle, &m, 1, &e), 0);
	assert_int_equal(faccessat(v->bundle, "rootfs/f", F_OK, 0), 0);
	assert_int_equal(io_write_file(v->bundle, "rootfs/g", "x", 1), -EROFS);
	assert_int_equal(mounts_unmount_rootfs(v->bundle, &e), 0);
	assert_int_equal(faccessat(v->bundle, "rootfs/f", F_OK, 0), -1);
	assert_int_equal(mounts_unmount_rootfs(v->bundle, &e), 0);
}

/* 90 layers whose names alone are longer than a page. */
static void test_overlay_with_long_options(void **state)
{
	struct env *v = *state;
	cleanup_free char *lower = xcalloc(1, 16384);
	char *words[3], name[128];
	struct mounts_entry m = {
		.type = "overlay", .source = "overlay", .target = "", .options = words};
	struct err e = {0};
	char *end = lower + sprintf(lower, "lowerdir=");

	NEED_ROOT(v);
	for (int i = 0; i < 90; i++) {
		snprintf(name, sizeof(name), "layer-with-a-long-name-of-its-own-%03d", i);
		assert_int_equal(mkdirat(v->bundle, name, 0755), 0);
		end += sprintf(end, "%s%s/%s", i ? ":" : "", v->dir, name);
	}
	assert_true(strlen(lower) > 4096);
	assert_int_equal(
		io_write_file(v->bundle, "layer-with-a-long-name-of-its-own-089/f", "x", 1), 0);
	words[0] = xasprintf("workdir=%s/work", v->dir);
	words[1] = xasprintf("upperdir=%s/up", v->dir);
	words[2] = lower;
	m.nr_options = 3;
	assert_int_equal(mounts_mount_rootfs(v->bundle, &m, 1, &e), 0);
	assert_int_equal(faccessat(v->bundle, "rootfs/f", F_OK, 0), 0);
	assert_int_equal(mounts_unmount_rootfs(v->bundle, &e), 0);
	free(words[0]);
	free(words[1]);
}

/* The second of two fails: the first is taken back. */
static void test_failure_leaves_nothing(void **state)
{
	struct env *v = *state;
	char up[80];
	char *words[] = {"rbind"};
	struct mounts_entry m[2] = {
		{.type = "bind", .source = up, .target = "", .options = words, .nr_options = 1},
		{.type = "bind", .source = "/nonexistent", .target = "", .options = words, 1}};
	struct err e = {0};
	struct stat before, after;

	NEED_ROOT(v);
	snprintf(up, sizeof(up), "%s/up", v->dir);
	assert_int_equal(fstatat(v->bundle, "rootfs", &before, 0), 0);
	assert_int_equal(mounts_mount_rootfs(v->bundle, m, 2, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "/nonexistent"));
	assert_int_equal(fstatat(v->bundle, "rootfs", &after, 0), 0);
	assert_int_equal(before.st_ino, after.st_ino);
}

static void test_unsupported_is_named(void **state)
{
	struct env *v = *state;
	char image[80];
	char *words[] = {"ro", "loop"};
	struct mounts_entry m = {
		.type = "erofs", .source = image, .target = "", .options = words, .nr_options = 2};
	struct err e = {0};

	NEED_ROOT(v);
	snprintf(image, sizeof(image), "%s/layer.erofs", v->dir);
	assert_int_equal(io_write_file(v->bundle, "layer.erofs", "x", 1), 0);
	assert_int_equal(mounts_mount_rootfs(v->bundle, &m, 1, &e), -EOPNOTSUPP);
	assert_non_null(strstr(e.msg, "layer.erofs"));
	m.type = "format/mkdir/overlay";
	assert_int_equal(mounts_mount_rootfs(v->bundle, &m, 1, &e), -EOPNOTSUPP);
}

/* The bundle's rootfs is a symbolic link: nothing is mounted where it leads. */
static void test_rootfs_is_a_link(void **state)
{
	struct env *v = *state;
	char *words[] = {"rbind"};
	struct mounts_entry m = {
		.type = "bind", .source = "/", .target = "", .options = words, .nr_options = 1};
	struct err e = {0};

	NEED_ROOT(v);
	assert_int_equal(unlinkat(v->bundle, "rootfs", AT_REMOVEDIR), 0);
	assert_int_equal(symlinkat("up", v->bundle, "rootfs"), 0);
	assert_int_equal(mounts_mount_rootfs(v->bundle, &m, 1, &e), -ELOOP);
}

static void test_clone_tree(void **state)
{
	struct env *v = *state;
	struct err e = {0};
	int fd;

	NEED_ROOT(v);
	assert_int_equal(io_write_file(v->bundle, "up/f", "x", 1), 0);
	fd = mounts_clone_tree(v->bundle, "up", true, &e);
	assert_true(fd >= 0);
	assert_int_equal(faccessat(fd, "f", F_OK, 0), 0);
	close(fd);
	/* A single file. */
	fd = mounts_clone_tree(v->bundle, "up/f", false, &e);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(mounts_clone_tree(v->bundle, "none", true, &e), -ENOENT);
	assert_int_equal(mounts_clone_tree(AT_FDCWD, "/proc/self", true, &e), -EXDEV);
	assert_int_equal(mounts_clone_tree(AT_FDCWD, "/dev/null", false, &e), -EOPNOTSUPP);
	/* Not through a link either. */
	assert_int_equal(symlinkat("/proc/self", v->bundle, "link"), 0);
	assert_int_equal(mounts_clone_tree(v->bundle, "link", true, &e), -EXDEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_options_bounded),
		cmocka_unit_test(test_shorten_overlay),
		cmocka_unit_test(test_shorten_overlay_cannot),
		cmocka_unit_test_setup_teardown(test_bind_read_only_and_unmount, setup, teardown),
		cmocka_unit_test_setup_teardown(test_overlay_with_long_options, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failure_leaves_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unsupported_is_named, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rootfs_is_a_link, setup, teardown),
		cmocka_unit_test_setup_teardown(test_clone_tree, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
