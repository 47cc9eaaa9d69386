/* From config.json to what the agent is told, the size of the VM, and statistics back. */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include <cmocka.h>

#include "cleanup.h"
#include "stats.h"
#include "util.h"
#include "vmreq.h"

static const char spec_json[] =
	"{\"ociVersion\":\"1.0.2\",\"hostname\":\"h\",\"root\":{\"path\":\"rootfs\",\"readonly\":"
	"true},"
	"\"process\":{\"args\":[\"sh\",\"-c\",\"x\"],\"env\":[\"A=b\"],\"cwd\":\"/w\","
	"\"user\":{\"uid\":5,\"gid\":6,\"additionalGids\":[7,8]},\"noNewPrivileges\":true,"
	"\"rlimits\":[{\"type\":\"RLIMIT_NOFILE\",\"soft\":10,\"hard\":20}],\"oomScoreAdj\":-5},"
	"\"mounts\":["
	"{\"destination\":\"/proc\",\"type\":\"proc\",\"source\":\"proc\"},"
	"{\"destination\":\"/etc/hosts\",\"type\":\"bind\",\"source\":\"/x/hosts\","
	"\"options\":[\"rbind\",\"ro\"]},"
	"{\"destination\":\"/hostsys\",\"type\":\"bind\",\"source\":\"/"
	"sys\",\"options\":[\"rbind\"]},"
	"{\"destination\":\"/tmp\",\"type\":\"tmpfs\",\"source\":\"tmpfs\","
	"\"options\":[\"nosuid\",\"size=64k\"]}],"
	"\"annotations\":{%s},"
	"\"linux\":{\"namespaces\":[{\"type\":\"pid\",\"path\":\"/proc/1/ns/pid\"},"
	"{\"type\":\"network\"},{\"type\":\"mount\"},{\"type\":\"ipc\"},{\"type\":\"uts\"}],"
	"\"resources\":{%s},"
	"\"maskedPaths\":[\"/proc/kcore\"],\"readonlyPaths\":[\"/proc/sys\"],"
	"\"sysctl\":{\"net.ipv4.ip_forward\":\"1\"}}}";

static struct oci_spec *parse(const char *annotations, const char *resources)
{
	cleanup_free char *json = xasprintf(spec_json, annotations, resources);
	struct oci_spec *spec = NULL;
	struct err e = {0};

	if (oci_spec_parse(json, strlen(json), &spec, &e))
		fail_msg("%s", e.msg);
	return spec;
}

static void size_of(const char *annotations, const char *resources, int expect,
		    struct vmreq_size *ret)
{
	struct oci_spec *spec = parse(annotations, resources);
	struct config config;
	struct err e = {0};

	assert_int_equal(config_load_file(&config, "", &e), 0);
	config.vcpus = 2;
	config.memory_mib = 300;
	config.memory_overhead_mib = 50;
	assert_int_equal(vmreq_size(spec, &config, ret, &e), expect);
	config_done(&config);
	oci_spec_free(spec);
}

static void test_size(void **state)
{
	struct vmreq_size s;

	size_of("", "", 0, &s);
	assert_int_equal(s.nr_vcpus, 2);
	assert_int_equal(s.mem_bytes, 300ull << 20);
	/* 1.5 CPUs need two; a limit gets the overhead on top, rounded up to MiB. */
	size_of("", "\"memory\":{\"limit\":104857601},\"cpu\":{\"quota\":350000,\"period\":100000}",
		0, &s);
	assert_int_equal(s.nr_vcpus, 4);
	assert_int_equal(s.mem_bytes, 151ull << 20);
	size_of("", "\"memory\":{\"limit\":1048576}", 0, &s);
	assert_int_equal(s.mem_bytes, (uint64_t)CONFIG_MEM_MIN_MIB << 20);
	/* Annotations win, also when they say what the configuration says. */
	size_of("\"io.harpoon.vcpus\":\"2\",\"io.harpoon.memory\":\"1G\"",
		"\"memory\":{\"limit\":104857600},\"cpu\":{\"quota\":350000,\"period\":100000}", 0,
		&s);
	assert_int_equal(s.nr_vcpus, 2);
	assert_int_equal(s.mem_bytes, 1024ull << 20);
	size_of("\"io.harpoon.kernel\":\"/x\"", "", -EINVAL, &s);
}

static void test_create_request(void **state)
{
	static const enum vmreq_mount_kind kinds[] = {VMREQ_MOUNT_PLAIN, VMREQ_MOUNT_SHARE,
						      VMREQ_MOUNT_OWN, VMREQ_MOUNT_PLAIN};
	struct oci_spec *spec = parse("", "");
	struct taskio io = {.s = {{.id = 16}, {.id = 17}, {.id = 0}}};
	VMREQ_PB(CreateContainerRequest) *r = vmreq_create_new("c1", "/bundle", spec, kinds, &io);
	VMREQ_PB(Process) *p = r->process;

	assert_string_equal(r->id, "c1");
	assert_string_equal(r->root_share, "rootfs");
	assert_true(r->root_readonly);
	assert_string_equal(r->hostname, "h");
	assert_int_equal(p->n_args, 3);
	assert_string_equal(p->args[2], "x");
	assert_string_equal(p->cwd, "/w");
	assert_int_equal(p->user->uid, 5);
	assert_int_equal(p->user->n_additional_gids, 2);
	assert_int_equal(p->rlimits[0]->hard, 20);
	assert_int_equal(p->oom_score_adj, -5);
	assert_true(p->no_new_privileges);
	/* Absent capabilities are none, which has to be said. */
	assert_non_null(p->capabilities);
	assert_int_equal(p->capabilities->bounding, 0);
	assert_int_equal(p->stdin_stream, 16);
	assert_int_equal(p->stdout_stream, 17);
	assert_int_equal(p->stderr_stream, 0);
	assert_int_equal(r->n_mounts, 4);
	assert_string_equal(r->mounts[0]->type, "proc");
	assert_string_equal(r->mounts[1]->source, "share:m1");
	assert_true(r->mounts[1]->flags & MS_RDONLY);
	assert_string_equal(r->mounts[2]->type, "sysfs");
	assert_false(r->mounts[2]->flags & MS_BIND);
	assert_string_equal(r->mounts[3]->data, "size=64k");
	/* The VM is the network; another container's pid namespace becomes an own one. */
	assert_true(r->namespaces & CLONE_NEWPID);
	assert_true(r->namespaces & CLONE_NEWIPC);
	assert_false(r->namespaces & CLONE_NEWNET);
	assert_string_equal(r->masked_paths[0], "/proc/kcore");
	assert_string_equal(r->sysctls[0]->value, "1");
	assert_true(vmreq_mount_is_read_only(&spec->mounts[1]));
	assert_false(vmreq_mount_is_read_only(&spec->mounts[2]));
	vmreq_create_free(r);
	oci_spec_free(spec);
}

static void test_check(void **state)
{
	struct oci_spec *spec = parse("", "");
	struct oci_hook hook = {.path = "/x"};
	struct oci_namespace user = {CLONE_NEWUSER, "/proc/1/ns/user"};
	struct oci_namespace *old = spec->namespaces;
	size_t nr = spec->nr_namespaces;
	struct err e = {0};

	assert_int_equal(vmreq_check(spec, &e), 0);
	spec->hooks[OCI_HOOK_CREATE_CONTAINER] = (struct oci_hooks){&hook, 1};
	assert_int_equal(vmreq_check(spec, &e), -EOPNOTSUPP);
	spec->hooks[OCI_HOOK_CREATE_CONTAINER] = (struct oci_hooks){NULL, 0};
	spec->namespaces = &user;
	spec->nr_namespaces = 1;
	assert_int_equal(vmreq_check(spec, &e), -EOPNOTSUPP);
	assert_non_null(strstr(e.msg, "/proc/1/ns/user"));
	spec->namespaces = old;
	spec->nr_namespaces = nr;
	spec->has_process = false;
	assert_int_equal(vmreq_check(spec, &e), -EINVAL);
	oci_spec_free(spec);
}

static void test_stats(void **state)
{
	VMREQ_PB(StatsResponse) r = HARPOON__AGENT__V1__STATS_RESPONSE__INIT;
	static char *const texts[][2] = {
		{"pids.current", "3\n"},
		{"pids.max", "max\n"},
		{"cpu.stat", "usage_usec 100\nuser_usec 60\nsystem_usec 40\n"},
		{"memory.current", "4096\n"},
		{"memory.max", "max\n"},
		{"memory.stat",
		 "anon 1\ninactive_anon 2\nfile 3\nnonsense\nslab 18446744073709551615\n"},
		{"memory.events", "low 0\noom_kill 2"},
	};
	VMREQ_PB(CgroupFile) files[ARRAY_SIZE(texts)], *list[ARRAY_SIZE(texts)];
	struct stats s;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		files[i] = (VMREQ_PB(CgroupFile))HARPOON__AGENT__V1__CGROUP_FILE__INIT;
		files[i].name = texts[i][0];
		files[i].value = texts[i][1];
		list[i] = &files[i];
	}
	r.n_files = ARRAY_SIZE(texts);
	r.files = list;
	r.mem_total = 1 << 30;
	stats_fill(&s, &r, NULL);
	assert_int_equal(s.metrics.pids->current, 3);
	assert_int_equal(s.metrics.pids->limit, 0);
	assert_int_equal(s.metrics.cpu->usage_usec, 100);
	assert_int_equal(s.metrics.cpu->system_usec, 40);
	assert_int_equal(s.metrics.memory->usage, 4096);
	assert_int_equal(s.metrics.memory->usage_limit, 1 << 30);
	assert_int_equal(s.metrics.memory->anon, 1);
	assert_int_equal(s.metrics.memory->inactive_anon, 2);
	assert_true(s.metrics.memory->slab == UINT64_MAX);
	assert_int_equal(s.metrics.memory_events->oom_kill, 2);
	assert_non_null(s.metrics.io);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_create_request),
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_stats),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
