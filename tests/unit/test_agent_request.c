/* Checks of requests, maps of ids, /etc/passwd: the agent's pure parts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lookup.h"
#include "memory.h"
#include "request.h"
#include "spawn.h"

struct fixture {
	AGENT_PB(CreateContainerRequest) create;
	AGENT_PB(Process) process;
	AGENT_PB(User) user;
	char *args[2], *env[2];
};

static void fixture_init(struct fixture *f)
{
	*f = (struct fixture){.args = {"/bin/true"}};
	harpoon__agent__v1__create_container_request__init(&f->create);
	harpoon__agent__v1__process__init(&f->process);
	harpoon__agent__v1__user__init(&f->user);
	f->process.args = f->args;
	f->process.n_args = 1;
	f->process.env = f->env;
	f->process.cwd = "/";
	f->process.user = &f->user;
	f->create.id = "c1";
	f->create.root_share = "root";
	f->create.process = &f->process;
}

static void expect(struct fixture *f, int code, const char *text)
{
	struct err err = {0};

	assert_int_equal(request_check_create(&f->create, &err), code);
	if (!strstr(err.msg, text))
		fail_msg("wanted '%s', got '%s'", text, err.msg);
}

static void test_ids(void **state)
{
	static const char *const good[] = {"a", "A-b_c.d", "0123", "abc..d"};
	static const char *const bad[] = {"",	  ".",	  "..",	 "-a",	     "a/b",
					  "../x", "a\nb", "a b", "\xc3\xa4", "a\x01"};
	char longest[REQUEST_ID_MAX + 2];

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(request_id_is_valid(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(request_id_is_valid(bad[i]));
	memset(longest, 'a', sizeof(longest));
	longest[REQUEST_ID_MAX + 1] = '\0';
	assert_false(request_id_is_valid(longest));
	longest[REQUEST_ID_MAX] = '\0';
	assert_true(request_id_is_valid(longest));
}

static void test_process_rules(void **state)
{
	struct fixture f;
	uint8_t bpf[12] = {0};

	fixture_init(&f);
	expect(&f, 0, "");
	f.create.process = NULL;
	expect(&f, -EINVAL, "no process");
	fixture_init(&f);
	f.process.n_args = 0;
	expect(&f, -EINVAL, "args is empty");
	fixture_init(&f);
	f.args[0] = "";
	expect(&f, -EINVAL, "args is empty");
	fixture_init(&f);
	f.process.cwd = "tmp";
	expect(&f, -EINVAL, "not absolute");
	fixture_init(&f);
	f.env[0] = "novalue";
	f.process.n_env = 1;
	expect(&f, -EINVAL, "invalid environment variable 'novalue'");
	f.env[0] = "=x";
	expect(&f, -EINVAL, "invalid environment variable");
	fixture_init(&f);
	f.process.seccomp_bpf.data = bpf;
	f.process.seccomp_bpf.len = sizeof(bpf);
	expect(&f, -EINVAL, "seccomp program of 12 bytes");
	fixture_init(&f);
	f.process.seccomp_flags = 8;
	expect(&f, -EINVAL, "seccomp flags");
	fixture_init(&f);
	f.user.uid = UINT32_MAX;
	expect(&f, -EINVAL, "user");
	fixture_init(&f);
	f.user.has_umask = true;
	f.user.umask = 01000;
	expect(&f, -EINVAL, "umask");
}

static void test_stream_rules(void **state)
{
	struct fixture f;

	fixture_init(&f);
	f.process.stdout_stream = 1;
	expect(&f, -EINVAL, "stdout stream 1 is reserved");
	f.process.stdout_stream = 16;
	f.process.stderr_stream = 16;
	expect(&f, -EINVAL, "must differ");
	f.process.stderr_stream = 17;
	expect(&f, 0, "");
	f.process.terminal = true;
	expect(&f, -EINVAL, "no stderr stream");
}

static void test_namespace_and_mapping_rules(void **state)
{
	AGENT_PB(IdMapping) map = HARPOON__AGENT__V1__ID_MAPPING__INIT, *maps[] = {&map};
	struct fixture f;

	fixture_init(&f);
	f.create.namespaces = 0x40;
	expect(&f, -EINVAL, "namespaces 0x40");
	f.create.namespaces = 0x10000000;
	expect(&f, -EINVAL, "need each other");
	f.create.uid_mappings = f.create.gid_mappings = maps;
	f.create.n_uid_mappings = f.create.n_gid_mappings = 1;
	expect(&f, -EINVAL, "out of range");
	map.size = 10;
	expect(&f, 0, "");
	map.host_id = UINT32_MAX - 5;
	expect(&f, -EINVAL, "out of range");
}

static void test_device_rules(void **state)
{
	AGENT_PB(Device) dev = HARPOON__AGENT__V1__DEVICE__INIT, *devices[] = {&dev};
	struct fixture f;

	fixture_init(&f);
	f.create.devices = devices;
	f.create.n_devices = 1;
	dev.path = "etc/dev";
	dev.mode = 0020666;
	expect(&f, -EINVAL, "not an absolute path");
	dev.path = "//";
	expect(&f, -EINVAL, "not an absolute path");
	dev.path = "/opt/dev";
	expect(&f, 0, "");
	dev.path = "/dev/x";
	expect(&f, 0, "");
	dev.mode = 0100666;
	expect(&f, -EINVAL, "is no device");
	dev.mode = 0020666;
	dev.major = 0x1000;
	expect(&f, -EINVAL, "number");
}

static void test_disk_rules(void **state)
{
	struct fixture f;
	AGENT_PB(Disk) disk = HARPOON__AGENT__V1__DISK__INIT, *disks[REQUEST_DISKS_MAX + 1];
	AGENT_PB(RootMount) mount = HARPOON__AGENT__V1__ROOT_MOUNT__INIT, *mounts[1] = {&mount};
	char *folder[1] = {"0/a"}, longest[REQUEST_PATH_MAX + 2];

	for (size_t i = 0; i < ARRAY_SIZE(disks); i++)
		disks[i] = &disk;
	memset(longest, 'x', sizeof(longest));
	longest[sizeof(longest) - 1] = '\0';
	fixture_init(&f);
	f.create.disks = disks;
	f.create.n_disks = 1;
	disk.serial = "harpoon-0";
	disk.access = 7;
	expect(&f, 0, "");
	disk.access = 8;
	expect(&f, -EINVAL, "access 8");
	disk.access = 0;
	disk.serial = "";
	expect(&f, -EINVAL, "serial number");
	disk.serial = "a/b";
	expect(&f, -EINVAL, "serial number");
	disk.serial = "012345678901234567890";
	expect(&f, -EINVAL, "serial number");
	disk.serial = "harpoon-0";
	f.create.n_disks = ARRAY_SIZE(disks);
	expect(&f, -EINVAL, "17 disks");
	f.create.n_disks = 1;
	/* A list of mounts is in the place of the share */
	f.create.root_share = "";
	expect(&f, -EINVAL, "share name");
	f.create.root_mounts = mounts;
	f.create.n_root_mounts = 1;
	mount.folders = folder;
	mount.n_folders = 1;
	expect(&f, 0, "");
	folder[0] = longest;
	expect(&f, -EINVAL, "folder is longer");
	mount.n_folders = 0;
	mount.data = longest;
	expect(&f, -EINVAL, "data is longer");
	mount.data = "";
	mount.target = longest;
	expect(&f, -EINVAL, "target is longer");
	f.create.n_root_mounts = REQUEST_ROOT_MOUNTS_MAX + 1;
	expect(&f, -EINVAL, "257 mounts");
}

static void test_spec_rules(void **state)
{
	AGENT_PB(DeviceRule)
	rule = HARPOON__AGENT__V1__DEVICE_RULE__INIT, *rules[] = {&rule};
	AGENT_PB(TimeOffset)
	offset = HARPOON__AGENT__V1__TIME_OFFSET__INIT, *offsets[] = {&offset};
	AGENT_PB(Hook) hook = HARPOON__AGENT__V1__HOOK__INIT, *hooks[] = {&hook};
	AGENT_PB(Scheduler) sched = HARPOON__AGENT__V1__SCHEDULER__INIT;
	struct fixture f;

	fixture_init(&f);
	f.create.device_rules = rules;
	f.create.n_device_rules = 1;
	expect(&f, -EINVAL, "device rule 0");
	rule = (AGENT_PB(DeviceRule)){rule.base, true, 'c', -1, 5, 7};
	expect(&f, 0, "");
	rule.access = 8;
	expect(&f, -EINVAL, "access 8");
	rule.access = 1;
	rule.major = -2;
	expect(&f, -EINVAL, "number -2:5");
	f.create.n_device_rules = 0;
	f.create.time_offsets = offsets;
	f.create.n_time_offsets = 1;
	expect(&f, -EINVAL, "without a time namespace");
	f.create.namespaces |= 0x80;
	expect(&f, 0, "");
	offset.nanosecs = 1000000000;
	expect(&f, -EINVAL, "time offset");
	f.create.n_time_offsets = 0;
	f.create.start_hooks = hooks;
	f.create.n_start_hooks = 1;
	hook.path = "x";
	expect(&f, -EINVAL, "not an absolute path");
	hook.path = "/x";
	expect(&f, 0, "");
	f.process.scheduler = &sched;
	expect(&f, 0, "");
	sched.nice = 20;
	expect(&f, -EINVAL, "nice 20");
	sched.nice = 0;
	f.process.has_io_priority = true;
	f.process.io_priority = 0x10000;
	expect(&f, -EINVAL, "I/O priority");
}

static void test_home_in_passwd(void **state)
{
	char text[] = "root:x:0:0:root:/root:/bin/sh\nbroken\n:::::\nx:x:12a:0::/no:\n"
		      "u:x:12:0::/home/u:/bin/sh:extra\nshort:x:13:0\nnoshell:x:14:0::/h14\n";
	char copy[sizeof(text)];
	static const struct {
		uint32_t uid;
		const char *home;
	} want[] = {{0, "/root"}, {12, "/home/u"}, {13, NULL}, {14, "/h14"}, {99, NULL}};

	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		const char *home;

		memcpy(copy, text, sizeof(text));
		home = lookup_home(copy, want[i].uid);
		if (want[i].home)
			assert_string_equal(home, want[i].home);
		else
			assert_null(home);
	}
}

static void test_map_of_ids(void **state)
{
	struct id_range ranges[] = {{0, 1000, 1}, {1, 100000, 65535}};
	struct id_map map = {ranges, 2}, none = {0};

	assert_int_equal(spawn_map_id(&map, 0), 1000);
	assert_int_equal(spawn_map_id(&map, 1), 100000);
	assert_int_equal(spawn_map_id(&map, 65535), 165534);
	assert_int_equal(spawn_map_id(&none, 42), 42);
}

static void test_sum_of_memory(void **state)
{
	static const char iomem[] = "00000000-00000fff : Reserved\n"
				    "00001000-0009fbff : System RAM\n"
				    "0009fc00-000fffff : Reserved\n"
				    "00100000-23ffffff : System RAM\n"
				    "  01000000-01dfffff : Kernel code\n"
				    "  02000000-02ffffff : System RAM\n"
				    "28000000-2fffffff : System RAM\n"
				    "feb00000-feb001ff : System RAM of another kind\n"
				    "100000000-107ffffff : System RAM";

	assert_int_equal(memory_sum(iomem), (576ull + 128 + 128) << 20);
	assert_int_equal(memory_sum(""), 0);
	assert_int_equal(memory_sum("\n-\n12 : System RAM\n"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_process_rules),
		cmocka_unit_test(test_stream_rules),
		cmocka_unit_test(test_namespace_and_mapping_rules),
		cmocka_unit_test(test_device_rules),
		cmocka_unit_test(test_disk_rules),
		cmocka_unit_test(test_spec_rules),
		cmocka_unit_test(test_home_in_passwd),
		cmocka_unit_test(test_map_of_ids),
		cmocka_unit_test(test_sum_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
