/*
 * The process that is forked ahead of its container: who becomes it, who does not, and that nothing is left of it. That
 * such a container is like any other show the agent's other tests, which run once more with it (meson.build).
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent_harness.h"
#include "agent_sys.h"
#include "cleanup.h"
#include "io.h"
#include "util.h"

static pid_t spare_pid(const struct harness *h)
{
	cleanup_free char *path = xasprintf("%s/+spare/cgroup.procs", h->cgroup);
	cleanup_free char *text = NULL;

	assert_int_equal(io_read_file(AT_FDCWD, path, 4096, &text, NULL), 0);
	return (pid_t)strtol(text, NULL, 10);
}

static bool has_cgroup(const struct harness *h, const char *name)
{
	cleanup_free char *path = xasprintf("%s/%s", h->cgroup, name);

	return !access(path, F_OK);
}

/* Its first process as the agent sees it. */
static pid_t create(struct harness *h, struct harness_request *r)
{
	struct harness_answer a;
	pid_t pid;

	harness_call(h, &a, "CreateContainer", &r->create,
		     &harpoon__agent__v1__create_container_response__descriptor);
	assert_string_equal(a.msg, "");
	pid = (pid_t)((AGENT_PB(CreateContainerResponse) *)a.response)->pid;
	harness_answer_done(&a);
	return pid;
}

static void remove_container(struct harness *h, const char *id)
{
	harness_must_ref(h, "Delete", id, "");
}

/* After one that failed: nothing is in the way of the next, which is forked. */
static void expect_next_to_run(struct harness *h)
{
	cleanup_free char *out = NULL;

	assert_false(has_cgroup(h, "+spare"));
	out = harness_script(h, "echo again");
	assert_string_equal(out, "again\n");
}

static void test_first_container_takes_it(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request first, second;
	pid_t spare = spare_pid(h), pid;

	harness_request_init(&first, "true");
	assert_int_equal(create(h, &first), spare);
	harness_request_init(&second, "true");
	second.create.id = "c2";
	pid = create(h, &second);
	assert_int_not_equal(pid, spare);
	assert_true(has_cgroup(h, "+spare"));
	assert_false(has_cgroup(h, "c1"));
	assert_true(has_cgroup(h, "c2"));
	remove_container(h, "c1");
	assert_false(has_cgroup(h, "+spare"));
	remove_container(h, "c2");
	/* The same id again, now forked. */
	harness_request_init(&first, "true");
	create(h, &first);
	assert_true(has_cgroup(h, "c1"));
	remove_container(h, "c1");
}

static void test_without_a_name_it_has_the_guests(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;
	char name[65] = "", line[70];

	assert_int_equal(gethostname(name, sizeof(name) - 1), 0);
	snprintf(line, sizeof(line), "%s\n", name);
	harness_request_init(&r, "hostname");
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, line);
	harness_result_done(&res);
}

static void expect_forked(struct harness *h, struct harness_request *r)
{
	pid_t spare = spare_pid(h);

	assert_int_not_equal(create(h, r), spare);
	assert_true(has_cgroup(h, "c1"));
	assert_false(has_cgroup(h, "+spare"));
	assert_int_not_equal(kill(spare, 0), 0);
	remove_container(h, "c1");
}

static void test_other_namespaces_are_forked(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;

	harness_request_init(&r, "true");
	r.create.namespaces &= ~(uint32_t)CLONE_NEWIPC;
	expect_forked(h, &r);
}

static void test_ids_of_its_own_are_forked(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(IdMapping) map = HARPOON__AGENT__V1__ID_MAPPING__INIT, *maps[] = {&map};
	struct harness_request r;

	map.host_id = 0;
	map.size = 1000;
	harness_request_init(&r, "true");
	r.create.namespaces |= CLONE_NEWUSER;
	r.create.uid_mappings = r.create.gid_mappings = maps;
	r.create.n_uid_mappings = r.create.n_gid_mappings = 1;
	expect_forked(h, &r);
}

static void test_long_request_is_forked(void **state)
{
	struct harness *h = harness_of(state);
	cleanup_free char *value = xmalloc(70000);
	struct harness_request r;

	snprintf(value, 70000, "LONG=%0*d", 69994, 0);
	harness_request_init(&r, "true");
	r.env[r.process.n_env++] = value;
	expect_forked(h, &r);
}

/* The longest that still fits arrives whole. */
static void test_large_request_arrives(void **state)
{
	struct harness *h = harness_of(state);
	cleanup_free char *value = xmalloc(60000);
	struct harness_request r;
	struct harness_result res;

	snprintf(value, 60000, "LONG=%0*d", 59994, 0);
	harness_request_init(&r, "echo ${#LONG}");
	r.env[r.process.n_env++] = value;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "59994\n");
	harness_result_done(&res);
}

static void test_failure_names_its_reason(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r, "true");
	r.create.root_share = "nowhere";
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.create.msg, "nowhere"));
	harness_result_done(&res);
	expect_next_to_run(h);
}

/* Before the process is told: its cgroup is taken already. */
static void test_failure_before_it_is_told(void **state)
{
	AGENT_PB(CgroupFile) file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;
	pid_t spare = spare_pid(h);

	file.name = "cgroup.max.depth";
	file.value = "nonsense";
	harness_request_init(&r, "true");
	r.create.cgroup = files;
	r.create.n_cgroup = 1;
	harness_run(h, &r, &res);
	assert_non_null(strstr(res.create.msg, "nonsense"));
	harness_result_done(&res);
	assert_false(has_cgroup(h, "+spare"));
	assert_int_not_equal(kill(spare, 0), 0);
}

static void test_death_is_noticed(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;
	pid_t spare = spare_pid(h);

	assert_int_equal(kill(spare, SIGKILL), 0);
	harness_request_init(&r, "true");
	harness_run(h, &r, &res);
	assert_int_not_equal(res.create.code, RPC_OK);
	harness_result_done(&res);
	expect_next_to_run(h);
}

/* What the harness looks for afterwards: processes, cgroups, descriptors. */
static void test_unused_it_leaves_nothing(void **state)
{
	assert_true(spare_pid(harness_of(state)) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		HARNESS_TEST(test_first_container_takes_it),
		HARNESS_TEST(test_without_a_name_it_has_the_guests),
		HARNESS_TEST(test_other_namespaces_are_forked),
		HARNESS_TEST(test_ids_of_its_own_are_forked),
		HARNESS_TEST(test_long_request_is_forked),
		HARNESS_TEST(test_large_request_arrives),
		HARNESS_TEST(test_failure_names_its_reason),
		HARNESS_TEST(test_failure_before_it_is_told),
		HARNESS_TEST(test_death_is_noticed),
		HARNESS_TEST(test_unused_it_leaves_nothing),
	};

	setenv("HARPOON_AGENT_SPARE", "1", 1);
	return harness_main("agent_spare", tests, ARRAY_SIZE(tests), 0);
}
