/* Which of a container's limits go to the host's cgroup, and what becomes of them: on a made-up tree. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "container.h"
#include "hostcgroup.h"
#include "hostlimits.h"
#include "io.h"
#include "stats.h"

#define MIB (1024ull * 1024)

struct env {
	char dir[64], mountinfo[96], membership[96];
	int fd;
	struct hostcgroup_host host;
	struct shim shim;
	struct container c;
	struct oci_spec spec;
};

static const char *const files[] = {"cgroup.procs", "memory.max", "cpu.max",	 "cpu.weight",
				    "pids.max",	    "io.max",	  "cpuset.cpus", "io.stat"};

static void put(const struct env *e, const char *name, const char *text)
{
	assert_int_equal(io_write_file(e->fd, name, text, strlen(text)), 0);
}

static void expect(const struct env *e, const char *name, const char *text)
{
	cleanup_free char *got = NULL, *path = xasprintf("c/%s", name);

	assert_int_equal(io_read_file(e->fd, path, 4096, &got, NULL), 0);
	assert_string_equal(got, text);
	put(e, path, "");
}

static int setup(void **state)
{
	struct env *e = xcalloc(1, sizeof(*e));
	char text[256];

	snprintf(e->dir, sizeof(e->dir), "/tmp/hostlimits-XXXXXX");
	assert_non_null(mkdtemp(e->dir));
	e->fd = open(e->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(e->mountinfo, sizeof(e->mountinfo), "%s/mountinfo", e->dir);
	snprintf(e->membership, sizeof(e->membership), "%s/membership", e->dir);
	snprintf(text, sizeof(text), "2 1 0:2 / %s rw - cgroup2 c rw\n", e->dir);
	put(e, "mountinfo", text);
	put(e, "membership", "0::/\n");
	assert_int_equal(mkdirat(e->fd, "c", 0755), 0);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(text, sizeof(text), "c/%s", files[i]);
		put(e, text, "");
	}
	e->host = (struct hostcgroup_host){e->mountinfo, e->membership};
	e->shim.cgroup_host = &e->host;
	e->shim.config.memory_overhead_mib = 64;
	e->spec.cgroups_path = (char *)"/c";
	e->c.shim = &e->shim;
	e->c.spec = &e->spec;
	e->c.id = (char *)"id";
	e->c.state_fd = e->fd;
	e->c.mem_bytes = 512 * MIB;
	*state = e;
	return 0;
}

static int teardown(void **state)
{
	struct env *e = *state;
	char cmd[128];

	hostcgroup_free(e->c.cgroup);
	close(e->fd);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", e->dir);
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c) */
	free(e);
	return 0;
}

static void test_begin(void **state)
{
	struct env *e = *state;
	struct oci_cgroup_file cpus = {(char *)"cpuset.cpus", (char *)"1", false};
	struct err err = {0};

	e->spec.resources = (struct oci_resources){.memory_limit = 100 << 20,
						   .cpu_quota = 20000,
						   .cpu_period = 100000,
						   .cpu_shares = 1024,
						   .host_files = &cpus,
						   .nr_host_files = 1};
	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	assert_int_equal(hostlimits_begin(&e->c, &err), 0);
	/* The VM as it is, and its programs. */
	expect(e, "memory.max", "805306368");
	expect(e, "cpu.weight", "100");
	expect(e, "cpuset.cpus", "1");
	expect(e, "pids.max", "1024");
	/* One CPU for the VM's own work. */
	expect(e, "cpu.max", "120000 100000");
}

static void test_nothing_limited(void **state)
{
	struct env *e = *state;
	struct err err = {0};

	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	assert_int_equal(hostlimits_begin(&e->c, &err), 0);
	expect(e, "memory.max", "");
	expect(e, "cpu.max", "");
	expect(e, "cpu.weight", "");
}

static void test_update(void **state)
{
	struct env *e = *state;
	struct oci_resources r = {.memory_limit = 1024LL << 20, .cpu_period = 50000};
	struct err err = {0};

	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	assert_int_equal(hostlimits_update(&e->c, &r, &err), 0);
	/* 1024 and the overhead of 64, then 256 for the VM's programs. */
	expect(e, "memory.max", "1409286144");
	expect(e, "cpu.max", "max 50000");
	r = (struct oci_resources){.memory_limit = -1, .cpu_quota = -1};
	assert_int_equal(hostlimits_update(&e->c, &r, &err), 0);
	expect(e, "memory.max", "max");
	expect(e, "cpu.max", "max 100000");
	/* Below the VM's size: the guest's affair, the host's limit stays above what the VM holds. */
	r = (struct oci_resources){.memory_limit = 1 << 20};
	assert_int_equal(hostlimits_update(&e->c, &r, &err), 0);
	expect(e, "memory.max", "805306368");
	e->shim.cgroup_host = NULL;
}

static void test_disks_in_stats(void **state)
{
	Harpoon__Agent__V1__StatsResponse r = HARPOON__AGENT__V1__STATS_RESPONSE__INIT;
	Harpoon__Agent__V1__CgroupFile file = HARPOON__AGENT__V1__CGROUP_FILE__INIT,
				       *list[] = {&file};
	struct env *e = *state;
	struct err err = {0};
	struct stats s;

	file.name = (char *)"io.stat";
	file.value = (char *)"253:0 rbytes=9 wbytes=8 rios=7 wios=6\n253:1\nx\n";
	r.files = list;
	r.n_files = 1;
	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	/* The host counts nothing yet: the guest's word. */
	stats_fill(&s, &r, e->c.cgroup);
	assert_int_equal(s.io.n_usage, 1);
	assert_int_equal(s.io.usage[0]->major, 253);
	assert_int_equal(s.io.usage[0]->wios, 6);
	put(e, "c/io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0 wbytes=5\n");
	stats_fill(&s, &r, e->c.cgroup);
	assert_int_equal(s.io.n_usage, 3);
	assert_int_equal(s.io.usage[2]->major, 253);
	assert_int_equal(s.io.usage[2]->rbytes, 9);
	assert_int_equal(s.io.usage[0]->minor, 16);
	assert_int_equal(s.io.usage[0]->rbytes, 1);
	assert_int_equal(s.io.usage[0]->wbytes, 2);
	assert_int_equal(s.io.usage[0]->rios, 3);
	assert_int_equal(s.io.usage[1]->wbytes, 5);
	assert_int_equal(s.io.usage[1]->rbytes, 0);
	/* A disk of either side with one number: nothing counts twice, and nothing is lost. */
	put(e, "c/io.stat", "253:0 rbytes=10 wbytes=0 rios=1 wios=1\n");
	stats_fill(&s, &r, e->c.cgroup);
	assert_int_equal(s.io.n_usage, 1);
	assert_int_equal(s.io.usage[0]->rbytes, 10);
	assert_int_equal(s.io.usage[0]->wbytes, 8);
	assert_int_equal(s.io.usage[0]->rios, 7);
	assert_int_equal(s.io.usage[0]->wios, 6);
}

static void test_disks_of_version_1(void **state)
{
	struct env *e = *state;
	struct hostcgroup_io v[4];
	struct err err = {0};
	char text[256];

	snprintf(text, sizeof(text), "2 1 0:2 / %s rw - cgroup c rw,blkio\n", e->dir);
	put(e, "mountinfo", text);
	put(e, "membership", "5:blkio:/\n");
	put(e, "c/blkio.throttle.io_serviced", "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n");
	put(e, "c/blkio.throttle.io_service_bytes",
	    "8:0 Read 30\n8:0 Write 40\n8:0 Sync 70\n252:1 Read 5\nTotal 75\n");
	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	assert_int_equal(hostcgroup_read_io(e->c.cgroup, v, 4), 2);
	assert_int_equal(v[0].reads, 3);
	assert_int_equal(v[0].writes, 4);
	assert_int_equal(v[0].read_bytes, 30);
	assert_int_equal(v[0].write_bytes, 40);
	assert_int_equal(v[1].major, 252);
	assert_int_equal(v[1].read_bytes, 5);
	assert_int_equal(hostcgroup_read_io(e->c.cgroup, v, 1), 1);
	assert_int_equal(hostcgroup_read_io(NULL, v, 1), 0);
}

static void test_without_cgroups(void **state)
{
	struct env *e = *state;
	struct err err = {0};

	e->shim.cgroup_host = NULL;
	e->spec.resources.memory_limit = 1 << 30;
	assert_int_equal(hostlimits_make_cgroup(&e->c, &err), 0);
	assert_null(e->c.cgroup);
	assert_int_equal(hostlimits_begin(&e->c, &err), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(begin),	      TEST(nothing_limited),	TEST(update),
		TEST(disks_in_stats), TEST(disks_of_version_1), TEST(without_cgroups),
	};

	return cmocka_run_group_tests_name("shim_hostlimits", tests, NULL, NULL);
}
