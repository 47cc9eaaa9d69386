/* Command line, socket path and its making, SHA-256. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "address.h"
#include "args.h"
#include "cleanup.h"
#include "sha256.h"

#define ARGV(...) \
	(int)(sizeof((char *[]){"shim", __VA_ARGS__}) / sizeof(char *)), (char *[]) \
	{ \
		"shim", __VA_ARGS__, NULL \
	}

/* The exact words of containerd 1.6 for start and delete. */
static void test_args_of_containerd(void **state)
{
	struct args a;
	struct err e = {0};

	assert_int_equal(args_parse(ARGV("-namespace", "default", "-address",
					 "/run/containerd/containerd.sock", "-publish-binary",
					 "/usr/bin/containerd", "-id", "c1", "start"),
				    &a, &e),
			 0);
	assert_int_equal(a.action, ARGS_START);
	assert_string_equal(a.namespace_, "default");
	assert_string_equal(a.address, "/run/containerd/containerd.sock");
	assert_string_equal(a.id, "c1");
	assert_string_equal(a.bundle, "");
	assert_false(a.debug);
	assert_int_equal(args_parse(ARGV("-namespace", "k8s.io", "-address", "/a", "-id", "c1",
					 "-bundle", "/b", "-debug", "delete"),
				    &a, &e),
			 0);
	assert_int_equal(a.action, ARGS_DELETE);
	assert_string_equal(a.bundle, "/b");
	assert_true(a.debug);
}

static void test_args_go_forms(void **state)
{
	struct args a;
	struct err e = {0};

	assert_int_equal(
		args_parse(ARGV("--namespace=n", "--id=x", "-debug=false", "--", "start"), &a, &e),
		0);
	assert_string_equal(a.namespace_, "n");
	assert_false(a.debug);
	assert_int_equal(args_parse(ARGV("-v"), &a, &e), 0);
	assert_int_equal(a.action, ARGS_VERSION);
	assert_int_equal(args_parse(ARGV("-info"), &a, &e), 0);
	assert_int_equal(a.action, ARGS_INFO);
}

static void test_args_refused(void **state)
{
	struct args a;
	struct err e = {0};

	assert_int_equal(args_parse(ARGV("-nonsense", "start"), &a, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "-nonsense"));
	assert_int_equal(args_parse(ARGV("-id"), &a, &e), -EINVAL);
	assert_int_equal(args_parse(ARGV("-id", "c", "start"), &a, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "namespace cannot be empty"));
	assert_int_equal(args_parse(ARGV("-namespace", "n", "-id", "../x", "start"), &a, &e),
			 -EINVAL);
	assert_int_equal(args_parse(ARGV("-namespace", "n", "-id", "x", "stop"), &a, &e), -EINVAL);
	assert_int_equal(args_parse(ARGV("-debug=maybe", "start"), &a, &e), -EINVAL);
	assert_int_equal(args_parse(1, (char *[]){"shim", NULL}, &a, &e), -EINVAL);
}

static void test_args_identifiers(void **state)
{
	char longest[ARGS_ID_MAX + 2];

	memset(longest, 'a', sizeof(longest));
	longest[ARGS_ID_MAX + 1] = '\0';
	assert_false(args_id_is_valid(longest));
	longest[ARGS_ID_MAX] = '\0';
	assert_true(args_id_is_valid(longest));
	assert_true(args_id_is_valid("a-b_c.d"));
	for (size_t i = 0; i < 9; i++) {
		static const char *const bad[] = {"",	  ".",	"..",	"a/b",	   "-a",
						  "a--b", "a.", "a\nb", "\xc3\xa4"};

		assert_false(args_id_is_valid(bad[i]));
	}
}

/* FIPS 180-4 examples, and lengths around the padding's edges against known sums. */
/* With the default address: exactly what Go shims and `ctr shim` compute. */
static void test_address_is_the_go_convention(void **state)
{
	char path[ADDRESS_PATH_MAX + 1], hex[SHA256_HEX_LEN + 1], expect[200];
	static const char text[] = "/run/containerd/containerd.sock/default/c1";

	address_path("/run/containerd/containerd.sock", "default", "c1", path);
	sha256_hex(text, strlen(text), hex);
	snprintf(expect, sizeof(expect), "/run/containerd/s/%s", hex);
	assert_string_equal(path, expect);
}

static void test_address_falls_back_when_too_long(void **state)
{
	char path[ADDRESS_PATH_MAX + 1], address[80];

	/* 39 + "/s/" + 64 = 106 still fits. */
	memset(address, 'x', sizeof(address));
	address[0] = '/';
	memcpy(address + 39, "/c.sock", 8);
	address_path(address, "n", "i", path);
	assert_int_equal(strlen(path), ADDRESS_PATH_MAX);
	assert_memory_equal(path, address, 39);
	address[39] = 'x';
	memcpy(address + 40, "/c.sock", 8);
	address_path(address, "n", "i", path);
	assert_memory_equal(path, ADDRESS_FALLBACK_DIR "/", strlen(ADDRESS_FALLBACK_DIR) + 1);
	address_path("", "n", "i", path);
	assert_memory_equal(path, ADDRESS_FALLBACK_DIR "/", strlen(ADDRESS_FALLBACK_DIR) + 1);
	address_path("relative/c.sock", "n", "i", path);
	assert_memory_equal(path, ADDRESS_FALLBACK_DIR "/", strlen(ADDRESS_FALLBACK_DIR) + 1);
}

static void test_address_listen(void **state)
{
	char dir[] = "/tmp/harpoon-test-XXXXXX", path[100], sub[100];
	struct err e = {0};
	struct stat st;
	bool in_use;
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(sub, sizeof(sub), "%s/s", dir);
	snprintf(path, sizeof(path), "%s/s/x", dir);
	fd = address_listen(path, &in_use, &e);
	assert_true(fd >= 0);
	assert_int_equal(stat(sub, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* Somebody serves: not replaced. */
	assert_int_equal(address_listen(path, &in_use, &e), -EADDRINUSE);
	assert_true(in_use);
	close(fd);
	/* Nobody does: replaced. */
	fd = address_listen(path, &in_use, &e);
	assert_true(fd >= 0);
	assert_false(in_use);
	close(fd);
	unlink(path);
	/* A folder in which others could plant sockets is refused. */
	assert_int_equal(chmod(sub, 0777), 0);
	assert_int_equal(address_listen(path, &in_use, &e), -EPERM);
	rmdir(sub);
	assert_int_equal(symlink("/tmp", sub), 0);
	assert_int_equal(address_listen(path, &in_use, &e), -EPERM);
	unlink(sub);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_args_of_containerd),
		cmocka_unit_test(test_args_go_forms),
		cmocka_unit_test(test_args_refused),
		cmocka_unit_test(test_args_identifiers),
		cmocka_unit_test(test_address_is_the_go_convention),
		cmocka_unit_test(test_address_falls_back_when_too_long),
		cmocka_unit_test(test_address_listen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
