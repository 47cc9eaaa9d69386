/* harpoon.conf and io.harpoon.* annotations: what is taken, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "config.h"

static int load(struct config *c, const char *text, struct err *err)
{
	return config_load_text(c, "/t/harpoon.conf", text, strlen(text), err);
}

static void test_defaults(void **state)
{
	struct config c;
	struct err err = {0};

	assert_int_equal(config_load_file(&c, "", &err), 0);
	assert_null(c.path);
	assert_int_equal(c.backend, CONFIG_BACKEND_AUTO);
	assert_int_equal(c.vcpus, 1);
	assert_int_equal(c.memory_mib, 512);
	assert_int_equal(c.kernel[0], '/');
	assert_string_equal(c.kernel_args, "");
	assert_string_equal(config_backend_name(c.backend), "auto");
	config_done(&c);
	config_done(&c); /* twice is harmless */
}

static void test_every_key(void **state)
{
	static const char text[] =
		"# comment\n"
		"[vm]\n"
		"backend = qemu\n"
		"kernel = /k\r\n"
		"initrd=/i\n"
		"kernel_args = a=b c  ; a comment\n"
		"vcpus = 4\n"
		"memory = 2G\n"
		"memory_overhead = 32MiB\n"
		"memory_max = 4G\n"
		"dax_window = 1G\n"
		"[network]\nnics = 3\n"
		"\n[programs]\n"
		"qemu = /q\nfs_server = /f\nvmm = /v\npasst = /p\ncli = /c\n"
		"[templates]\nuse = off\ndir = /t\nmax = 3\nmax_size = 1G\nmax_days = 9\n"
		"[log]\nlevel = debug\n"
		"[limits]\n"
		"ready_timeout_ms = 5\ncall_timeout_ms = 6\nconsole_log_kib = 7";
	struct config c;
	struct err err = {0};

	assert_int_equal(load(&c, text, &err), 0);
	assert_string_equal(c.path, "/t/harpoon.conf");
	assert_int_equal(c.backend, CONFIG_BACKEND_QEMU);
	assert_string_equal(c.kernel, "/k");
	assert_string_equal(c.initrd, "/i");
	assert_string_equal(c.kernel_args, "a=b c");
	assert_int_equal(c.vcpus, 4);
	assert_int_equal(c.memory_mib, 2048);
	assert_int_equal(c.memory_overhead_mib, 32);
	assert_int_equal(c.memory_max_mib, 4096);
	assert_int_equal(c.dax_window_mib, 1024);
	assert_string_equal(c.qemu, "/q");
	assert_string_equal(c.fs_server, "/f");
	assert_string_equal(c.vmm, "/v");
	assert_string_equal(c.passt, "/p");
	assert_int_equal(c.nics, 3);
	assert_string_equal(c.cli, "/c");
	assert_int_equal(c.templates, CONFIG_TEMPLATES_OFF);
	assert_string_equal(c.template_dir, "/t");
	assert_int_equal(c.templates_max, 3);
	assert_int_equal(c.templates_max_mib, 1024);
	assert_int_equal(c.templates_max_days, 9);
	assert_int_equal(c.log_level, LOG_LEVEL_DBG);
	assert_int_equal(c.ready_timeout_ms, 5);
	assert_int_equal(c.call_timeout_ms, 6);
	assert_int_equal(c.console_log_kib, 7);
	config_done(&c);
}

static void test_refused(void **state)
{
	static const struct {
		const char *text, *message;
	} cases[] = {
		{"[vm]\nvcpu = 1\n", ":2: key 'vcpu' is not known in section [vm]"},
		{"vcpus = 1\n", ":1: key 'vcpus' is not known in section []"},
		{"[log]\nvcpus = 1\n", ":2: key 'vcpus' is not known in section [log]"},
		{"[vm]\n\n\nvcpus = 0\n", ":4: key 'vcpus' must be a number from 1 to 32, not '0'"},
		{"[vm]\nvcpus = 33\n", ":2: key 'vcpus' must be"},
		{"[vm]\nvcpus = -1\n", ":2: key 'vcpus' must be"},
		{"[vm]\nvcpus = 1M\n", ":2: key 'vcpus' must be"},
		{"[vm]\nvcpus =\n", ":2: key 'vcpus' must be"},
		{"[vm]\nvcpus = 99999999999999999999\n", ":2: key 'vcpus' must be"},
		{"[vm]\nmemory = 63\n",
		 ":2: key 'memory' must be a number from 64 to 1048576 (MiB"},
		{"[vm]\nmemory = 4294967295G\n", ":2: key 'memory' must be"},
		{"[vm]\nmemory = 1T\n", ":2: key 'memory' must be"},
		{"[vm]\nkernel = vmlinux\n",
		 ":2: key 'kernel' must be an absolute path, not 'vmlinux'"},
		{"[vm]\nkernel =\n", ":2: key 'kernel' must be an absolute path"},
		{"[vm]\nkernel = /a\x1b[2J\n", ":2: key 'kernel' holds control characters"},
		{"[vm]\nbackend = xen\n", ":2: key 'backend' must be auto, kvm or qemu, not 'xen'"},
		{"[log]\nlevel = loud\n", ":2: key 'level' must be error, warn, info or debug"},
		{"[vm]\nvcpus = 1\nvcpus = 2\n", ":3: key 'vcpus' is given twice"},
		{"[vm]\nvcpus = 1\n 2\n", ":3: key 'vcpus' is given twice"},
		{"[vm]\nnonsense\n", ":2: neither a [section]"},
		{"[vm\n", ":1: neither a [section]"},
		/* The first error wins, whatever follows. */
		{"[vm]\nnonsense\nvcpu = 1\nvcpus = 1\n", ":2: neither a [section]"},
		{"[vm]\nvcpu = 1\nnonsense\n", ":2: key 'vcpu'"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct config c = {.vcpus = 77};
		struct err err = {0};

		print_message("# case %zu\n", i);
		assert_int_equal(load(&c, cases[i].text, &err), -EINVAL);
		assert_int_equal(err.code, -EINVAL);
		assert_int_equal(strncmp(err.msg, "/t/harpoon.conf:", 16), 0);
		if (!strstr(err.msg, cases[i].message))
			fail_msg("'%s' does not hold '%s'", err.msg, cases[i].message);
		assert_null(c.kernel); /* empty */
		config_done(&c);
	}
}

static void test_long_line_and_nul(void **state)
{
	char text[512] = "[vm]\nkernel_args = ";
	struct config c;
	struct err err = {0};

	memset(text + strlen(text), 'x', 300);
	assert_int_equal(load(&c, text, &err), -EINVAL);
	assert_non_null(strstr(err.msg, ":2: line is longer than"));
	assert_int_equal(config_load_text(&c, "p", "[vm]\nvcpus = 1\0", 16, &err), -EINVAL);
	assert_string_equal(err.msg, "p:2: line holds a NUL byte");
}

static void test_files(void **state)
{
	char path[] = "/tmp/harpoon-test-config-XXXXXX";
	int fd = mkstemp(path);
	struct config c;
	struct err err = {0};

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "[vm]\nvcpus = 3\n", 15), 15);
	close(fd);
	setenv("HARPOON_CONFIG", path, 1);
	assert_int_equal(config_load(&c, &err), 0);
	assert_int_equal(c.vcpus, 3);
	config_done(&c);
	unlink(path);
	/* Named by the environment, it has to exist. */
	assert_int_equal(config_load(&c, &err), -ENOENT);
	assert_non_null(strstr(err.msg, path));
	unsetenv("HARPOON_CONFIG");
	assert_int_equal(config_load_file(&c, "/dev/zero", &err), -EFBIG);
}

/* What config_format() prints is read back to the same. */
static void test_format(void **state)
{
	struct config c;
	struct err err = {0};
	cleanup_free char *once = NULL;
	cleanup_free char *twice = NULL;

	assert_int_equal(load(&c, "[vm]\nmemory = 1G\nkernel_args = x y\n", &err), 0);
	once = config_format(&c);
	config_done(&c);
	assert_non_null(strstr(once, "\nmemory = 1024\n"));
	assert_non_null(strstr(once, "\n[limits]\n"));
	assert_int_equal(load(&c, once, &err), 0);
	twice = config_format(&c);
	config_done(&c);
	assert_string_equal(once, twice);
}

static void test_annotations(void **state)
{
	struct config c;
	struct err err = {0};

	assert_int_equal(config_load_file(&c, "", &err), 0);
	assert_int_equal(config_apply_annotation(&c, "io.kubernetes.pod", "x", &err), 0);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.vcpus", "2", &err), 0);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.memory", "1G", &err), 0);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.backend", "qemu", &err), 0);
	assert_int_equal(c.vcpus, 2);
	assert_int_equal(c.memory_mib, 1024);
	assert_int_equal(c.backend, CONFIG_BACKEND_QEMU);

	assert_int_equal(config_apply_annotation(&c, "io.harpoon.vcpus", "many", &err), -EINVAL);
	assert_non_null(strstr(err.msg, "io.harpoon.vcpus"));
	assert_non_null(strstr(err.msg, "'many'"));
	assert_int_equal(c.vcpus, 2);
	/* Host paths, programs and kernel arguments are never a container's to choose. */
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.kernel", "/x", &err), -EINVAL);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.kernel_args", "x", &err), -EINVAL);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.qemu", "/x", &err), -EINVAL);
	assert_int_equal(config_apply_annotation(&c, "io.harpoon.", "", &err), -EINVAL);
	config_done(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),    cmocka_unit_test(test_every_key),
		cmocka_unit_test(test_refused),	    cmocka_unit_test(test_long_line_and_nul),
		cmocka_unit_test(test_files),	    cmocka_unit_test(test_format),
		cmocka_unit_test(test_annotations),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
