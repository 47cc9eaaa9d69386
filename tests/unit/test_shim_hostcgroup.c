/*
 * The host's cgroup: path forms, hierarchies, files of both versions in a made-up tree; and, as root where cgroups
 * are mounted, the real thing.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "hostcgroup.h"
#include "hostcgroup_find.h"
#include "io.h"

struct env {
	char dir[64];
	char mountinfo[96], membership[96];
	struct hostcgroup_host host;
	int fd; /* of dir, also the state folder */
};

static int setup(void **state)
{
	struct env *e = calloc(1, sizeof(*e));

	snprintf(e->dir, sizeof(e->dir), "/tmp/hostcgroup-XXXXXX");
	assert_non_null(mkdtemp(e->dir));
	snprintf(e->mountinfo, sizeof(e->mountinfo), "%s/mountinfo", e->dir);
	snprintf(e->membership, sizeof(e->membership), "%s/membership", e->dir);
	e->host = (struct hostcgroup_host){e->mountinfo, e->membership};
	e->fd = open(e->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(e->fd >= 0);
	*state = e;
	return 0;
}

static int teardown(void **state)
{
	struct env *e = *state;
	char cmd[128];

	close(e->fd);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", e->dir);
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c) */
	free(e);
	return 0;
}

static void put(const struct env *e, const char *name, const char *text)
{
	assert_int_equal(io_write_file(e->fd, name, text, strlen(text)), 0);
}

static void expect(const struct env *e, const char *name, const char *text)
{
	cleanup_free char *got = NULL;

	assert_int_equal(io_read_file(e->fd, name, 4096, &got, NULL), 0);
	assert_string_equal(got, text);
}

/* A folder with empty files, as a cgroup would have them. */
static void make(const struct env *e, const char *folder, const char *const *files)
{
	char path[256];

	assert_true(!mkdirat(e->fd, folder, 0755) || errno == EEXIST);
	for (; *files; files++) {
		snprintf(path, sizeof(path), "%s/%s", folder, *files);
		put(e, path, "");
	}
}

static void test_path_forms(void **state)
{
	static const struct {
		const char *given, *path;
	} ok[] = {
		{NULL, "id"},
		{"", "id"},
		{"/a/b", "/a/b"},
		{"a/b", "a/b"},
		{"system.slice:harpoon:x", "/system.slice/harpoon-x.scope"},
		{":cri:x", "/system.slice/cri-x.scope"},
		{"kubepods-burstable-pod1.slice:cri-containerd:x",
		 "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/"
		 "cri-containerd-x.scope"},
		{"-.slice:p:n", "/p-n.scope"},
		{"user.slice:p:own.slice", "/user.slice/own.slice"},
		/* Not of systemd's form: taken literally. */
		{"a:b:c", "a:b:c"},
		{"/a.slice:b:c", "/a.slice:b:c"},
	};
	static const char *const bad[] = {"-a.slice:p:n", "a--b.slice:p:n", "a-.slice:p:n"};
	struct err err = {0};

	for (size_t i = 0; i < sizeof(ok) / sizeof(*ok); i++) {
		cleanup_free char *p = hostcgroup_path(ok[i].given, "id", &err);

		assert_non_null(p);
		assert_string_equal(p, ok[i].path);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_null(hostcgroup_path(bad[i], "id", &err));
		assert_int_equal(err.code, -EINVAL);
	}
}

static void find_is(const struct env *e, const char *path, size_t nr, const char *const (*want)[3])
{
	struct hostcgroup_hierarchy v[HOSTCGROUP_HIERARCHIES_MAX] = {0};
	struct err err = {0};

	assert_int_equal(hostcgroup_find(&e->host, path, v, &err), nr);
	for (size_t i = 0; i < nr; i++) {
		assert_string_equal(v[i].controllers, want[i][0]);
		assert_string_equal(v[i].mount, want[i][1]);
		assert_string_equal(v[i].path, want[i][2]);
		hostcgroup_hierarchy_done(&v[i]);
	}
}

static void test_find_hybrid(void **state)
{
	struct env *e = *state;

	put(e, "membership",
	    "12:cpu,cpuacct:/own\n7:memory:/deep/own\n3:blkio:/\n1:name=systemd:/own\n"
	    "nonsense\n5:pids:relative\n0::/user.slice/own.scope\n");
	put(e, "mountinfo",
	    "1 0 0:1 / / rw - ext4 /dev/a rw\n"
	    "2 1 0:2 / /c/cpu\\040set rw,relatime shared:1 - cgroup cgroup rw,cpuacct,cpu\n"
	    "3 1 0:3 /deep /c/memory rw - cgroup cgroup rw,memory\n"
	    "4 1 0:3 /deep /elsewhere/memory rw - cgroup cgroup rw,memory\n"
	    "5 1 0:4 / /c/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
	    "6 1 0:5 / /c/unified rw - cgroup2 cgroup2 rw\n"
	    "7 broken\n8 1 0:6 / /c/x rw - cgroup\n");
	/* No blkio: it is not mounted. */
	find_is(e, "/a//b/./c", 4,
		(const char *const[][3]){{"cpu,cpuacct", "/c/cpu set", "a/b/c"},
					 {"memory", "/c/memory", "a/b/c"},
					 {"name=systemd", "/c/systemd", "a/b/c"},
					 {"", "/c/unified", "a/b/c"}});
	/* Below our own place; version 2 beside it. */
	find_is(e, "x", 4,
		(const char *const[][3]){{"cpu,cpuacct", "/c/cpu set", "own/x"},
					 {"memory", "/c/memory", "own/x"},
					 {"name=systemd", "/c/systemd", "own/x"},
					 {"", "/c/unified", "user.slice/x"}});
}

static void test_no_cgroups(void **state)
{
	struct env *e = *state;
	struct hostcgroup *g = (void *)e;
	struct err err = {0};
	size_t nr = 7;

	put(e, "mountinfo", "1 0 0:1 / / rw - ext4 /dev/a rw\n");
	assert_int_equal(hostcgroup_new(&e->host, "/a", "id", e->fd, &g, &err), 0);
	assert_null(g);
	assert_null(hostcgroup_fds(g, &nr));
	assert_int_equal(nr, 0);
	assert_int_equal(hostcgroup_limit(g, &(struct hostcgroup_limits){.nr_pids = 1}, &err), 0);
	hostcgroup_free(g);
	assert_int_equal(hostcgroup_cleanup_state(e->fd, &err), 0);
	e->host.mountinfo = "/nonexistent";
	assert_int_equal(hostcgroup_new(&e->host, "/a", "id", e->fd, &g, &err), -ENOENT);
}

static void test_bad_paths(void **state)
{
	struct env *e = *state;
	static const char *const bad[] = {"/", "/../x", "a/..", ".", "/a\nb"};
	char longest[400];
	struct hostcgroup *g;
	struct err err = {0};

	put(e, "mountinfo", "");
	put(e, "membership", "");
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(hostcgroup_new(&e->host, bad[i], "id", e->fd, &g, &err), -EINVAL);
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_int_equal(hostcgroup_new(&e->host, longest, "id", e->fd, &g, &err), -EINVAL);
}

static void set_mount(const struct env *e, const char *const *lines, const char *membership)
{
	char text[1024] = "";

	for (; *lines; lines += 2)
		snprintf(text + strlen(text), sizeof(text) - strlen(text),
			 "2 1 0:2 / %s/%s rw - %s\n", e->dir, lines[0], lines[1]);
	put(e, "mountinfo", text);
	put(e, "membership", membership);
}

static const struct oci_cgroup_file io_files[] = {
	{"io.max", "8:0 rbps=1000", false}, {"io.max", "8:0 wiops=max", false},
	{"io.weight", "10000", true},	    {"io.weight", "8:0 1", true},
	{"cpuset.cpus", "0-1", false},
};

static void test_v1_files(void **state)
{
	static const char *const cpu[] = {"cgroup.procs", "cpu.shares", "cpu.cfs_period_us",
					  "cpu.cfs_quota_us", NULL};
	static const char *const memory[] = {"cgroup.procs", "memory.limit_in_bytes", NULL};
	static const char *const cpuset[] = {"cgroup.procs", "cpuset.cpus", "cpuset.mems", NULL};
	static const char *const blkio[] = {"cgroup.procs",
					    "blkio.throttle.read_bps_device",
					    "blkio.throttle.write_bps_device",
					    "blkio.throttle.write_iops_device",
					    "blkio.bfq.weight",
					    "blkio.weight_device",
					    NULL};
	static const char *const none[] = {NULL};
	struct env *e = *state;
	struct hostcgroup *g;
	struct err err = {0};
	size_t nr;

	set_mount(e,
		  (const char *const[]){"cpu", "cgroup c rw,cpu", "memory", "cgroup c rw,memory",
					"cpuset", "cgroup c rw,cpuset", "blkio",
					"cgroup c rw,blkio", NULL},
		  "4:cpu:/\n3:memory:/\n2:cpuset:/\n1:blkio:/\n");
	make(e, "cpu", none);
	make(e, "cpu/c", cpu);
	make(e, "memory", none);
	make(e, "memory/c", memory);
	make(e, "cpuset", cpuset);
	make(e, "cpuset/c", cpuset);
	make(e, "blkio", none);
	make(e, "blkio/c", blkio);
	put(e, "cpuset/cpuset.cpus", "0-3\n");
	put(e, "cpuset/cpuset.mems", "0\n");
	assert_int_equal(hostcgroup_new(&e->host, "/c", "id", e->fd, &g, &err), 0);
	hostcgroup_fds(g, &nr);
	assert_int_equal(nr, 4);
	expect(e, "cpuset/c/cpuset.cpus", "0-3");
	expect(e, "cpuset/c/cpuset.mems", "0");
	assert_int_equal(
		hostcgroup_limit(g,
				 &(struct hostcgroup_limits){
					 .mem_bytes = 1 << 20,
					 .cpu_shares = 512,
					 .cpu_quota = 50000,
					 .nr_pids = 10, /* not mounted: the guest's affair */
					 .files = io_files,
					 .nr_files = 5,
				 },
				 &err),
		0);
	expect(e, "memory/c/memory.limit_in_bytes", "1048576");
	expect(e, "cpu/c/cpu.shares", "512");
	expect(e, "cpu/c/cpu.cfs_period_us", "100000");
	expect(e, "cpu/c/cpu.cfs_quota_us", "50000");
	expect(e, "blkio/c/blkio.throttle.read_bps_device", "8:0 1000");
	expect(e, "blkio/c/blkio.throttle.write_iops_device", "8:0 0");
	expect(e, "blkio/c/blkio.bfq.weight", "1000");
	expect(e, "blkio/c/blkio.weight_device", "8:0 10");
	/* A shorter list in a plain file leaves the tail of the longer one. */
	expect(e, "cpuset/c/cpuset.cpus", "0-1");
	assert_int_equal(hostcgroup_limit(g,
					  &(struct hostcgroup_limits){.mem_bytes = UINT64_MAX,
								      .cpu_quota = -1,
								      .cpu_period = 200000},
					  &err),
			 0);
	expect(e, "memory/c/memory.limit_in_bytes", "-148576");
	expect(e, "cpu/c/cpu.cfs_period_us", "200000");
	expect(e, "cpu/c/cpu.cfs_quota_us", "-1000");
	/* A limit that only the host can keep, and it cannot. */
	assert_int_equal(hostcgroup_limit(g,
					  &(struct hostcgroup_limits){
						  .files = &(struct oci_cgroup_file){"io.latency",
										     "x", false},
						  .nr_files = 1},
					  &err),
			 -EOPNOTSUPP);
	assert_non_null(strstr(err.msg, "io.latency"));
	hostcgroup_free(g);
}

static void test_v2_files(void **state)
{
	static const char *const top[] = {"cgroup.subtree_control", NULL};
	static const char *const leaf[] = {"cgroup.procs", "memory.max",  "cpu.max",
					   "cpu.weight",   "pids.max",	  "io.max",
					   "io.weight",	   "cpuset.cpus", NULL};
	struct env *e = *state;
	struct hostcgroup *g;
	struct err err = {0};

	set_mount(e, (const char *const[]){"v2", "cgroup2 c rw,nsdelegate", NULL}, "0::/a.scope\n");
	make(e, "v2", top);
	make(e, "v2/id", leaf);
	assert_int_equal(hostcgroup_new(&e->host, NULL, "id", e->fd, &g, &err), 0);
	expect(e, "v2/cgroup.subtree_control", "+pidsry");
	assert_int_equal(hostcgroup_limit(g,
					  &(struct hostcgroup_limits){
						  .mem_bytes = 4096,
						  .cpu_shares = 1024,
						  .cpu_quota = 1000,
						  .cpu_period = 20000,
						  .nr_pids = 99,
						  .files = io_files,
						  .nr_files = 1,
					  },
					  &err),
			 0);
	expect(e, "v2/id/memory.max", "4096");
	expect(e, "v2/id/cpu.weight", "100");
	expect(e, "v2/id/cpu.max", "1000 20000");
	expect(e, "v2/id/pids.max", "99");
	expect(e, "v2/id/io.max", "8:0 rbps=1000");
	hostcgroup_free(g);
}

static void test_inhabited(void **state)
{
	static const char *const leaf[] = {"cgroup.procs", NULL};
	struct env *e = *state;
	struct hostcgroup *g;
	struct err err = {0};

	set_mount(e, (const char *const[]){"v2", "cgroup2 c rw", NULL}, "0::/\n");
	make(e, "v2", leaf);
	make(e, "v2/c", leaf);
	put(e, "v2/c/cgroup.procs", "12\n");
	assert_int_equal(hostcgroup_new(&e->host, "/c", "id", e->fd, &g, &err), -EBUSY);
	assert_null(g);
	assert_non_null(strstr(err.msg, "another container"));
	/* Its processes are not ours to end, and a plain folder is no cgroup at all. */
	assert_int_equal(hostcgroup_cleanup_state(e->fd, &err), 0);
	expect(e, "v2/c/cgroup.procs", "12\n");
}

/* ---- the real host ---- */

static bool has_real_cgroups(void)
{
	struct hostcgroup_hierarchy v[HOSTCGROUP_HIERARCHIES_MAX] = {0};
	int nr = geteuid() ? 0 : hostcgroup_find(&hostcgroup_real, "/", v, NULL);
	bool ok = nr > 0;

	for (int i = 0; i < nr; i++) {
		ok = ok && !access(v[i].mount, W_OK);
		hostcgroup_hierarchy_done(&v[i]);
	}
	return ok;
}

static pid_t start_sleeper(void)
{
	pid_t pid = fork();

	if (!pid) {
		for (;;)
			pause();
	}
	return pid;
}

static void test_real(void **state)
{
	struct env *e = *state;
	char id[32], path[64], text[16];
	cleanup_free char *where = NULL;
	struct err err = {0};
	struct hostcgroup *g;
	const int *fds;
	pid_t pid;
	size_t nr;

	if (!has_real_cgroups())
		skip();
	snprintf(id, sizeof(id), "/harpoon-test/unit%d", (int)getpid());
	assert_int_equal(hostcgroup_new(&hostcgroup_real, id, "id", e->fd, &g, &err), 0);
	assert_non_null(g);
	fds = hostcgroup_fds(g, &nr);
	assert_true(nr > 0);
	pid = start_sleeper();
	snprintf(text, sizeof(text), "%d", (int)pid);
	for (size_t i = 0; i < nr; i++)
		assert_int_equal(write(fds[i], text, strlen(text)), strlen(text));
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	assert_int_equal(io_read_file(AT_FDCWD, path, 65536, &where, NULL), 0);
	for (char *save = NULL, *line = strtok_r(where, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save))
		assert_non_null(strstr(line, id));
	/* Somebody else's now. */
	struct hostcgroup *other;

	assert_int_equal(hostcgroup_new(&hostcgroup_real, id, "id", e->fd, &other, &err), -EBUSY);
	/* As `delete` finds it after a crash. The failed attempt has left its own note; put the right one back. */
	hostcgroup_cleanup_state(e->fd, &err);
	assert_int_equal(kill(pid, 0), 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	hostcgroup_free(g);
	assert_int_equal(hostcgroup_new(&hostcgroup_real, id, "id", e->fd, &g, &err), 0);
	pid = start_sleeper();
	snprintf(text, sizeof(text), "%d", (int)pid);
	fds = hostcgroup_fds(g, &nr);
	for (size_t i = 0; i < nr; i++)
		assert_int_equal(write(fds[i], text, strlen(text)), strlen(text));
	signal(SIGCHLD, SIG_IGN); /* reaped at once */
	assert_int_equal(hostcgroup_cleanup_state(e->fd, &err), 0);
	signal(SIGCHLD, SIG_DFL);
	assert_int_equal(kill(pid, 0), -1);
	assert_int_equal(hostcgroup_cleanup_state(e->fd, &err), 0);
	hostcgroup_free(g);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(path_forms), TEST(find_hybrid), TEST(no_cgroups), TEST(bad_paths),
		TEST(v1_files),	  TEST(v2_files),    TEST(inhabited),  TEST(real),
	};

	return cmocka_run_group_tests_name("shim_hostcgroup", tests, NULL, NULL);
}
