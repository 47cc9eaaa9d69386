/*
 * What the OCI spec's rarer fields become: device rules, time namespace, scheduler and I/O priority, tmpfs with the
 * image's content, recursive mount attributes, startContainer hooks, cgroup files that may be missing.
 */
#include "agent_sys.h"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent_harness.h"
#include "cleanup.h"
#include "util.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#define MS(name) (uint64_t)(name)

static void expect_output(struct harness *h, struct harness_request *r, const char *text)
{
	struct harness_result res;

	harness_run(h, r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.start.msg, "");
	assert_string_equal(res.out, text);
	harness_result_done(&res);
}

#define RULE(allow, type, major, minor, access) \
	{ \
		PROTOBUF_C_MESSAGE_INIT(&harpoon__agent__v1__device_rule__descriptor), allow, \
			type, major, minor, access \
	}

/* The last rule decides, for each kind of access by itself; the defaults come after all. */
static void test_device_rules(void **state)
{
	AGENT_PB(DeviceRule)
	all[] = {
		RULE(false, 'a', -1, -1, 7), RULE(true, 'c', 10, -1, 2),
		RULE(true, 'c', 10, 229, 4), RULE(true, 'c', 1, 4, 2),
		RULE(false, 'c', 1, 4, 2),   RULE(false, 'c', 1, 3, 7),
	};
	AGENT_PB(DeviceRule) * rules[ARRAY_SIZE(all)];
	struct harness *h = harness_of(state);
	struct harness_request r;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		rules[i] = &all[i];
	harness_request_init(
		&r, "cd /dev; mknod k c 10 229; mknod p c 1 4; mknod f c 10 200; mknod u c 10 250\n"
		    "t() { (eval \": $1\") 2>/dev/null && echo yes || echo no; }\n"
		    "t '<k'; t '>k'; t '<>k'; t '<p'; t '<f'; t '>f'; t '<u'; t '>/dev/null'");
	r.create.device_rules = rules;
	r.create.n_device_rules = ARRAY_SIZE(all);
	/*
	 * FUSE: read by the second rule, write by the third. 1:4: given and taken back (there is no driver either).
	 * tun: read alone. 10:250: no driver. /dev/null: by the defaults, whatever the last rule says.
	 */
	expect_output(h, &r, "yes\nyes\nyes\nno\nyes\nno\nno\nyes\n");
	/* Everything. */
	all[0] = (AGENT_PB(DeviceRule))RULE(true, 'a', -1, -1, 7);
	r.create.n_device_rules = 1;
	expect_output(h, &r, "yes\nyes\nyes\nno\nyes\nyes\nno\nyes\n");
}

static void test_time_namespace(void **state)
{
	AGENT_PB(TimeOffset)
	boot = HARPOON__AGENT__V1__TIME_OFFSET__INIT, *offsets[] = {&boot};
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct timespec now;
	struct harness_result res;
	cleanup_free char *plain = harness_script(h, "cut -d. -f1 /proc/uptime");
	double seen;

	clock_gettime(CLOCK_BOOTTIME, &now);
	boot.clock = CLOCK_BOOTTIME;
	boot.secs = 1000000;
	boot.nanosecs = 5;
	harness_request_init(
		&r, "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets | tr -s ' '; "
		    "for n in time time_for_children; do readlink /proc/self/ns/$n; done | uniq | "
		    "wc -l");
	r.create.namespaces |= CLONE_NEWTIME;
	r.create.time_offsets = offsets;
	r.create.n_time_offsets = 1;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	seen = strtod(res.out, NULL);
	assert_true(seen >= strtod(plain, NULL) + 999999 && seen < strtod(plain, NULL) + 1000100);
	assert_non_null(strstr(res.out, "\nboottime 1000000 5\n1\n"));
	harness_result_done(&res);
	/* Too far back: the kernel says no, and so do we. */
	boot.secs = -(now.tv_sec + 1000000);
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.create.msg, "clocks of the time namespace"));
	harness_result_done(&res);
}

static void test_time_namespace_in_user_namespace(void **state)
{
	AGENT_PB(TimeOffset)
	offset = HARPOON__AGENT__V1__TIME_OFFSET__INIT, *offsets[] = {&offset};
	AGENT_PB(IdMapping) map = HARPOON__AGENT__V1__ID_MAPPING__INIT, *maps[] = {&map};
	struct harness *h = harness_of(state);
	struct harness_request r;

	map.host_id = 0;
	map.size = 65536;
	offset.clock = CLOCK_MONOTONIC;
	offset.secs = 7;
	harness_request_init(&r, "tr -s ' ' </proc/self/timens_offsets");
	r.create.namespaces |= CLONE_NEWTIME | CLONE_NEWUSER;
	r.create.uid_mappings = r.create.gid_mappings = maps;
	r.create.n_uid_mappings = r.create.n_gid_mappings = 1;
	r.create.time_offsets = offsets;
	r.create.n_time_offsets = 1;
	expect_output(h, &r, "monotonic 7 0\nboottime 0 0\n");
}

/* An exec is in the container's time namespace, too, and has a priority of its own. */
static void test_exec_in_time_namespace(void **state)
{
	AGENT_PB(TimeOffset)
	offset = HARPOON__AGENT__V1__TIME_OFFSET__INIT, *offsets[] = {&offset};
	AGENT_PB(Scheduler) sched = HARPOON__AGENT__V1__SCHEDULER__INIT;
	AGENT_PB(ExecRequest) e = HARPOON__AGENT__V1__EXEC_REQUEST__INIT;
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	struct harness_request r;
	struct harness_answer a;

	offset.clock = CLOCK_BOOTTIME;
	offset.secs = 1000;
	harness_request_init(&r, "while :; do sleep 0.05; done");
	r.create.namespaces |= CLONE_NEWTIME;
	r.create.time_offsets = offsets;
	r.create.n_time_offsets = 1;
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	harness_answer_done(&a);
	harness_must_ref(h, "Start", "c1", "");
	harness_request_init(&r, "grep boot /proc/self/timens_offsets | tr -s ' '; "
				 "read -r l </proc/$$/stat; set -- ${l##*) }; echo ${17}");
	r.process.stdout_stream = out->id;
	r.process.scheduler = &sched;
	sched.nice = 4;
	e.id = "c1";
	e.exec_id = "e1";
	e.process = &r.process;
	harness_call(h, &a, "Exec", &e, NULL);
	assert_string_equal(a.msg, "");
	harness_answer_done(&a);
	harness_must_ref(h, "Start", "c1", "e1");
	harness_run_until(h, out, "boottime 1000 0\n4\n");
	harness_must_ref(h, "Delete", "c1", "e1");
	harness_must_ref(h, "Delete", "c1", "");
}

static void test_priorities(void **state)
{
	AGENT_PB(Scheduler) sched = HARPOON__AGENT__V1__SCHEDULER__INIT;
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	/* stat: policy is field 41, nice 19. */
	harness_request_init(&r,
			     "read -r l </proc/$$/stat; set -- ${l##*) }; echo ${39} ${39} ${17}; "
			     "ionice -p $$");
	r.process.scheduler = &sched;
	sched.policy = SCHED_BATCH;
	sched.nice = -3;
	r.process.has_io_priority = true;
	r.process.io_priority = 2 << 13 | 6;
	expect_output(h, &r, "3 3 -3\nbest-effort: prio 6\n");
	sched.policy = SCHED_FIFO;
	sched.nice = 0;
	sched.priority = 100 - 1;
	sched.flags = 0x8000;
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.create.msg, "scheduler: policy 1"));
	harness_result_done(&res);
}

static void test_tmpfs_of_the_image(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	char script[600];

	harness_new_root(h);
	snprintf(script, sizeof(script),
		 "mkdir -p %s/data/sub && cd %s/data && echo text >file && "
		 "chown 3:4 file && chmod 4711 file && ln -s ../x link && mkfifo pipe && "
		 "echo deep >sub/deep && chmod 750 sub && touch -d @1000 sub && chmod 1750 .",
		 h->root, h->root);
	assert_int_equal(system(script), 0); /* NOLINT(cert-env33-c) */
	harness_request_init(&r, "cd /data; cat file sub/deep; stat -c '%n %a %u:%g' . file sub; "
				 "readlink link; test -p pipe && echo pipe; stat -c %Y sub; "
				 "touch new 2>/dev/null && echo rw || echo ro; "
				 "stat -f -c %T /data");
	harness_add_mount(&r, "/data", "tmpfs", "tmpfs", MS(MS_RDONLY), "size=1m");
	r.mount[r.create.n_mounts - 1].copy_up = true;
	expect_output(h, &r,
		      "text\ndeep\n. 1750 0:0\nfile 4711 3:4\nsub 750 0:0\n../x\npipe\n1000\nro\n"
		      "tmpfs\n");
	/* Without it: empty, but with the folder's mode; a mode given wins. */
	harness_request_init(&r,
			     "ls /data | wc -l; stat -c %a /data /new; touch /data/x && echo rw");
	harness_add_mount(&r, "/data", "tmpfs", "tmpfs", 0, "");
	harness_add_mount(&r, "/new", "tmpfs", "tmpfs", 0, "mode=711");
	expect_output(h, &r, "0\n1750\n711\nrw\n");
}

static void test_recursive_attributes(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	AGENT_PB(Mount) * m;

	harness_request_init(&r,
			     "grep -E ' /(a|a/b|c|c/b) ' /proc/self/mountinfo | cut -d' ' -f5,6");
	harness_volume(h, "va", true);
	harness_add_mount(&r, "/a", "bind", "share:va", MS(MS_BIND) | MS(MS_REC), "");
	m = &r.mount[r.create.n_mounts - 1];
	m->recursive_attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME;
	m->recursive_attr_clear = MOUNT_ATTR__ATIME;
	harness_add_mount(&r, "/c", "bind", "share:va", MS(MS_BIND) | MS(MS_REC) | MS(MS_NOSUID),
			  "");
	m = &r.mount[r.create.n_mounts - 1];
	m->recursive_attr_clear = MOUNT_ATTR_NOSUID;
	m->recursive_attr_set = MOUNT_ATTR_NODEV;
	expect_output(h, &r, "/a ro,noatime\n/c rw,nodev,relatime\n");
}

#define HOOK_ARGS(...) \
	(char *[]) \
	{ \
		__VA_ARGS__ \
	}

static void test_start_hooks(void **state)
{
	AGENT_PB(Hook)
	one = HARPOON__AGENT__V1__HOOK__INIT, two = HARPOON__AGENT__V1__HOOK__INIT,
	*hooks[] = {&one, &two};
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	one.path = "/bin/sh";
	one.args = HOOK_ARGS("sh", "-c", "cat >/w/state; echo $X $$ $(id -u) >/w/one");
	one.n_args = 3;
	one.env = HOOK_ARGS("X=y", "PATH=/bin");
	one.n_env = 2;
	two.path = "/bin/true";
	harness_request_init(&r, "cat /w/state /w/one; echo $$");
	r.create.start_hooks = hooks;
	r.create.n_start_hooks = 2;
	r.create.hook_state = "{\"status\":\"created\"}\n";
	r.user.uid = 5;
	chmod(h->root, 0755);
	harness_add_mount(&r, "/w", "tmpfs", "tmpfs", 0, "mode=1777");
	expect_output(h, &r, "{\"status\":\"created\"}\ny 2 5\n1\n");

	two.path = "/bin/sh";
	two.args = HOOK_ARGS("sh", "-c", "echo why >&2; exit 3");
	two.n_args = 3;
	harness_run(h, &r, &res);
	assert_string_equal(res.start.msg,
			    "startContainer hook '/bin/sh': ended with status 3: why");
	harness_result_done(&res);
	two.args = HOOK_ARGS("sh", "-c", "kill -9 $$");
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.start.msg, "was killed by signal 9"));
	harness_result_done(&res);
	two.args = HOOK_ARGS("sh", "-c", "sleep 60");
	two.timeout_s = 1;
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.start.msg, "did not end within 1 s"));
	harness_result_done(&res);
	two.path = "/bin/missing";
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.start.msg, "status 127: No such file"));
	harness_result_done(&res);
}

static void test_device_elsewhere(void **state)
{
	AGENT_PB(Device) dev = HARPOON__AGENT__V1__DEVICE__INIT, *devices[] = {&dev};
	struct harness *h = harness_of(state);
	struct harness_request r;

	harness_request_init(&r, "stat -c '%a %t:%T' /opt/x/null; echo x >/opt/x/null && echo ok");
	harness_add_mount(&r, "/opt", "tmpfs", "tmpfs", 0, "");
	dev.path = "/opt/x/null";
	dev.mode = S_IFCHR | 0622;
	dev.major = 1;
	dev.minor = 3;
	r.create.devices = devices;
	r.create.n_devices = 1;
	expect_output(h, &r, "622 1:3\nok\n");
}

static void test_optional_cgroup_file(void **state)
{
	AGENT_PB(CgroupFile)
	file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	file.name = "hugetlb.3MB.max";
	file.value = "0";
	file.optional = true;
	harness_request_init(&r, "echo ok");
	r.create.cgroup = files;
	r.create.n_cgroup = 1;
	expect_output(h, &r, "ok\n");
	file.optional = false;
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.create.msg, "hugetlb.3MB.max"));
	harness_result_done(&res);
}

static void test_memory_check_before_update(void **state)
{
	AGENT_PB(UpdateRequest) req = HARPOON__AGENT__V1__UPDATE_REQUEST__INIT;
	AGENT_PB(CgroupFile)
	file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_answer a;

	harness_request_init(&r, "sleep 100");
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	harness_ref(h, &a, "Start", "c1", "");
	harness_answer_done(&a);
	req.id = "c1";
	req.cgroup = files;
	req.n_cgroup = 1;
	req.check_memory = true;
	file.name = "memory.max";
	file.value = "4096";
	harness_call(h, &a, "Update", &req, NULL);
	assert_non_null(strstr(a.msg, "checkBeforeUpdate"));
	harness_answer_done(&a);
	file.value = "max";
	harness_call(h, &a, "Update", &req, NULL);
	assert_string_equal(a.msg, "");
	harness_answer_done(&a);
	harness_ref(h, &a, "Delete", "c1", "");
	assert_string_equal(a.msg, "");
	harness_answer_done(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		HARNESS_TEST(test_device_rules),
		HARNESS_TEST(test_time_namespace),
		HARNESS_TEST(test_time_namespace_in_user_namespace),
		HARNESS_TEST(test_exec_in_time_namespace),
		HARNESS_TEST(test_priorities),
		HARNESS_TEST(test_tmpfs_of_the_image),
		HARNESS_TEST(test_recursive_attributes),
		HARNESS_TEST(test_start_hooks),
		HARNESS_TEST(test_device_elsewhere),
		HARNESS_TEST(test_optional_cgroup_file),
		/* The last needs controllers. */
		HARNESS_TEST(test_memory_check_before_update),
	};

	return harness_main("agent_spec", tests, ARRAY_SIZE(tests), 1);
}
