/*
 * The Task service as containerd sees it, over ttrpc, with stand-ins for the VM and the agent: life of a
 * container, order of events, what happens when the VM dies in each phase, output before Wait, exec.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "bundle.h"
#include "checkpoint.h"
#include "cleanup.h"
#include "container.h"
#include "containerd_events.pb-c.h"
#include "containerd_metrics.pb-c.h"
#include "containerd_task.pb-c.h"
#include "io.h"
#include "log.h"
#include "mux.h"
#include "service.h"
#include "shim_fake.h"
#include "util.h"

#define EVENTS_LOG 2048
#define SECOND_NS 1000000000ull

static const char config_json[] =
	"{\"ociVersion\":\"1.0.2\",\"root\":{\"path\":\"rootfs\"},"
	"\"process\":{\"args\":[\"/bin/true\"],\"cwd\":\"/\",\"user\":{\"uid\":0,\"gid\":0}},"
	"\"linux\":{\"namespaces\":[{\"type\":\"pid\"},{\"type\":\"mount\"},{\"type\":\"network\"}]"
	"}}";

struct answer {
	bool done;
	enum rpc_code code;
	char text[1024];
	uint32_t pid, exit_status, status;
};

struct env {
	bool ok; /* root: mounts can be cloned */
	struct loop *loop;
	struct shim shim;
	struct rpc_client *client;
	struct rpc_server *events_server;
	char dir[64];
	char log[EVENTS_LOG]; /* "create start exit:0 delete " */
	struct answer wait, start, create, kill, exec_wait, other;
};

static struct env *env;

/* ---- containerd's event service ---- */

static void on_forward(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ForwardRequest *f = (const void *)m;
	const Ctrd__Any *any = f->envelope->event;
	size_t n = strlen(env->log);

	assert_string_equal(f->envelope->namespace_, "ns");
	assert_true(f->envelope->timestamp->seconds > 0);
	assert_string_equal(rpc_call_metadata(call, "containerd-namespace-ttrpc"), "ns");
	n += (size_t)snprintf(env->log + n, EVENTS_LOG - n, "%s",
			      f->envelope->topic + strlen("/tasks/"));
	if (!strcmp(any->type_url, "containerd.events.TaskExit")) {
		Ctrd__TaskExit *e = ctrd__task_exit__unpack(NULL, any->value.len, any->value.data);

		assert_string_equal(e->container_id, "c1");
		n += (size_t)snprintf(env->log + n, EVENTS_LOG - n, ":%s:%u", e->id,
				      e->exit_status);
		ctrd__task_exit__free_unpacked(e, NULL);
	}
	snprintf(env->log + n, EVENTS_LOG - n, " ");
	rpc_reply_empty(call);
}

static const struct rpc_method events_methods[] = {
	{"Forward", &ctrd__forward_request__descriptor, &ctrd__empty__descriptor, on_forward}};
static const struct rpc_service events_service = {"containerd.services.events.ttrpc.v1.Events",
						  events_methods, 1};
static const struct rpc_service *const events_services[] = {&events_service};

/* ---- set-up ---- */

static void start_events_server(struct env *e, char *path, size_t len)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(path, len, "%s/events", e->dir);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 8), 0);
	e->events_server = rpc_server_new(e->loop, events_services, 1, NULL);
	assert_int_equal(rpc_server_listen(e->events_server, fd, NULL), 0);
}

static void make_bundle(const struct env *e)
{
	cleanup_close int fd = open(e->dir, O_RDONLY | O_DIRECTORY);

	assert_int_equal(mkdirat(fd, "rootfs", 0755), 0);
	assert_int_equal(io_write_file(fd, "config.json", config_json, strlen(config_json)), 0);
}

static int setup(void **state)
{
	struct env *e = env = xcalloc(1, sizeof(*e));
	char path[100];
	int sv[2];

	*state = e;
	signal(SIGPIPE, SIG_IGN);
	e->ok = !geteuid() && !unshare(CLONE_NEWNS) &&
		!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	snprintf(e->dir, sizeof(e->dir), "/tmp/harpoon-test-XXXXXX");
	if (!mkdtemp(e->dir))
		return -1;
	log_init(STDERR_FILENO, LOG_LEVEL_ERR, "test");
	e->loop = loop_new();
	fake_reset(e->loop);
	make_bundle(e);
	start_events_server(e, path, sizeof(path));
	e->shim = (struct shim){.loop = e->loop, .namespace_ = "ns", .id = "c1", .bundle_fd = -1};
	assert_int_equal(config_load_file(&e->shim.config, "", NULL), 0);
	e->shim.events = publisher_new(e->loop, path, "ns");
	e->shim.server = rpc_server_new(e->loop, service_list, service_list_len, &e->shim);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(rpc_server_add_conn(e->shim.server, sv[0], NULL), 0);
	e->client = rpc_client_new(e->loop, sv[1], NULL, NULL);
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int teardown(void **state)
{
	struct env *e = *state;

	container_free(e->shim.container);
	rpc_client_free(e->client);
	rpc_server_free(e->shim.server);
	publisher_free(e->shim.events);
	rpc_server_free(e->events_server);
	config_done(&e->shim.config);
	loop_free(e->loop);
	nftw(e->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	free(e);
	return 0;
}

/* ---- calls ---- */

/* text: "12 10000006 10000007=e1 " */
static void on_pids(struct answer *a, const Ctrd__PidsResponse *r)
{
	size_t n = 0;

	a->pid = r->n_processes ? r->processes[0]->pid : 0;
	for (size_t i = 0; i < r->n_processes; i++) {
		const Ctrd__ProcessInfo *p = r->processes[i];

		n += (size_t)snprintf(a->text + n, sizeof(a->text) - n, "%u", p->pid);
		if (p->info) {
			Ctrd__ProcessDetails *d = ctrd__process_details__unpack(
				NULL, p->info->value.len, p->info->value.data);

			assert_string_equal(p->info->type_url, "containerd.runc.v1.ProcessDetails");
			n += (size_t)snprintf(a->text + n, sizeof(a->text) - n, "=%s", d->exec_id);
			ctrd__process_details__free_unpacked(d, NULL);
		}
		n += (size_t)snprintf(a->text + n, sizeof(a->text) - n, " ");
	}
}

static void on_answer(void *ctx, const ProtobufCMessage *m, enum rpc_code code, const char *text)
{
	struct answer *a = ctx;

	a->done = true;
	a->code = code;
	snprintf(a->text, sizeof(a->text), "%s", text ? text : "");
	if (!m)
		return;
	if (m->descriptor == &ctrd__pid_response__descriptor)
		a->pid = ((const Ctrd__PidResponse *)m)->pid;
	if (m->descriptor == &ctrd__wait_response__descriptor)
		a->exit_status = ((const Ctrd__WaitResponse *)m)->exit_status;
	if (m->descriptor == &ctrd__delete_response__descriptor)
		a->exit_status = ((const Ctrd__DeleteResponse *)m)->exit_status;
	if (m->descriptor == &ctrd__connect_response__descriptor)
		a->pid = ((const Ctrd__ConnectResponse *)m)->task_pid;
	if (m->descriptor == &ctrd__pids_response__descriptor)
		on_pids(a, (const void *)m);
	if (m->descriptor == &ctrd__state_response__descriptor) {
		const Ctrd__StateResponse *s = (const void *)m;

		a->pid = s->pid;
		a->status = s->status;
		a->exit_status = s->exit_status;
		snprintf(a->text, sizeof(a->text), "%s", s->stdout);
	}
}

static void send_call(const char *method, const ProtobufCMessage *req,
		      const ProtobufCMessageDescriptor *out, struct answer *a)
{
	struct rpc_request r = {.service = "containerd.task.v2.Task",
				.method = method,
				.request = req,
				.response = out};

	*a = (struct answer){0};
	assert_int_equal(rpc_client_call(env->client, &r, on_answer, a), 0);
}

static void until(const bool *flag)
{
	uint64_t end = util_now_ns() + 20 * SECOND_NS;

	while (!*flag) {
		assert_true(util_now_ns() < end);
		loop_run_once(env->loop, 100);
	}
}

/* Until nothing happens any more for a moment. */
static void settle(void)
{
	for (int i = 0; i < 30; i++)
		loop_run_once(env->loop, 2);
}

static void ref(const char *method, char *exec_id, struct answer *a)
{
	Ctrd__ProcessRequest req = CTRD__PROCESS_REQUEST__INIT;
	const ProtobufCMessageDescriptor *out = NULL;

	if (!strcmp(method, "Start"))
		out = &ctrd__pid_response__descriptor;
	if (!strcmp(method, "Wait"))
		out = &ctrd__wait_response__descriptor;
	if (!strcmp(method, "Delete"))
		out = &ctrd__delete_response__descriptor;
	if (!strcmp(method, "State"))
		out = &ctrd__state_response__descriptor;
	if (!strcmp(method, "Connect"))
		out = &ctrd__connect_response__descriptor;
	if (!strcmp(method, "Pids"))
		out = &ctrd__pids_response__descriptor;
	req.id = "c1";
	req.exec_id = exec_id;
	send_call(method, &req.base, out, a);
}

static void call(const char *method, char *exec_id, struct answer *a)
{
	ref(method, exec_id, a);
	until(&a->done);
}

static void send_create(char *stdout_path, struct answer *a)
{
	Ctrd__CreateTaskRequest req = CTRD__CREATE_TASK_REQUEST__INIT;

	req.id = "c1";
	req.bundle = env->dir;
	req.stdout = stdout_path;
	send_call("Create", &req.base, &ctrd__pid_response__descriptor, a);
}

static void create(void)
{
	send_create("", &env->create);
	until(&env->create.done);
	assert_string_equal(env->create.text, "");
	assert_int_equal(env->create.code, RPC_OK);
}

static void create_and_start(void)
{
	create();
	call("Start", "", &env->start);
	assert_int_equal(env->start.code, RPC_OK);
}

static void kill_call(uint32_t sig, struct answer *a)
{
	Ctrd__KillRequest req = CTRD__KILL_REQUEST__INIT;

	req.id = "c1";
	req.signal = sig;
	send_call("Kill", &req.base, NULL, a);
	until(&a->done);
}

static void exec_add(char *id, struct answer *a)
{
	static char spec[] = "{\"args\":[\"ls\"],\"cwd\":\"/\",\"user\":{\"uid\":0,\"gid\":0}}";
	Ctrd__ExecRequest req = CTRD__EXEC_REQUEST__INIT;
	Ctrd__Any any = CTRD__ANY__INIT;

	any.value.data = (uint8_t *)spec;
	any.value.len = strlen(spec);
	req.id = "c1";
	req.exec_id = id;
	req.spec = &any;
	send_call("Exec", &req.base, NULL, a);
	until(&a->done);
}

static void expect_nothing_left(void)
{
	struct answer a;
	struct stat st;
	char path[100];

	assert_null(env->shim.container);
	assert_false(fake.vm_exists);
	call("State", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	assert_string_equal(a.text, "container not created: not found");
	snprintf(path, sizeof(path), "%s/rootfs", env->dir);
	assert_int_equal(stat(path, &st), 0);
}

#define NEED_ROOT() \
	do { \
		if (!env->ok) { \
			print_message("# needs root\n"); \
			skip(); \
		} \
	} while (0)

/* ---- tests ---- */

static void test_whole_life(void **state)
{
	struct answer a;
	pid_t pid;

	NEED_ROOT();
	create();
	pid = (pid_t)env->create.pid;
	assert_int_equal(kill(pid, 0), 0);
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__CREATED);
	assert_int_equal(a.pid, pid);
	call("Connect", "", &a);
	assert_int_equal(a.pid, pid);
	call("Start", "", &env->start);
	assert_int_equal(env->start.pid, pid);
	call("Start", "", &a);
	assert_int_equal(a.code, RPC_UNKNOWN);
	assert_string_equal(a.text, "cannot start a running process");
	call("Delete", "", &a);
	assert_string_equal(a.text, "cannot delete a running process");
	ref("Wait", "", &env->wait);
	settle();
	assert_false(env->wait.done);
	fake_exit("", 42);
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 42);
	/* Whoever hears of the end does not find the pid any more. */
	assert_int_equal(kill(pid, 0), -1);
	assert_int_equal(errno, ESRCH);
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__STOPPED);
	assert_int_equal(a.exit_status, 42);
	call("Pids", "", &a);
	assert_int_equal(a.pid, pid);
	kill_call(SIGTERM, &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	assert_string_equal(a.text, "process already finished: not found");
	call("Delete", "", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(a.exit_status, 42);
	call("Delete", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	settle();
	assert_string_equal(env->log, "create start exit:c1:42 delete ");
	expect_nothing_left();
}

static void test_vm_dies_while_running(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	ref("Wait", "", &env->wait);
	settle();
	fake_vm_die("guest kernel panic");
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 137);
	exec_add("e1", &a);
	assert_int_equal(a.code, RPC_UNKNOWN);
	call("Stats", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	call("Delete", "", &a);
	assert_int_equal(a.exit_status, 137);
	settle();
	assert_string_equal(env->log, "create start exit:c1:137 delete ");
	expect_nothing_left();
}

static void test_vm_dies_before_ready(void **state)
{
	struct stat st;
	char path[100];

	NEED_ROOT();
	fake.never_ready = true;
	send_create("", &env->create);
	while (!fake.vm_exists)
		loop_run_once(env->loop, 10);
	fake_vm_die("the guest kernel panicked: no init");
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_UNAVAILABLE);
	assert_non_null(strstr(env->create.text, "create c1: "));
	assert_non_null(strstr(env->create.text, "no init"));
	snprintf(path, sizeof(path), "%s/harpoon", env->dir);
	assert_int_equal(stat(path, &st), -1);
	settle();
	assert_string_equal(env->log, "");
	expect_nothing_left();
}

static void test_create_errors_are_the_agents(void **state)
{
	NEED_ROOT();
	fake.create_code = RPC_NOT_FOUND;
	fake.create_text = "exec: \"foo\": executable file not found in $PATH";
	send_create("", &env->create);
	until(&env->create.done);
	/* Not NotFound: that would mean "no such task" to clients. */
	assert_int_equal(env->create.code, RPC_UNKNOWN);
	assert_non_null(strstr(env->create.text, "executable file not found in $PATH"));
	expect_nothing_left();
}

static void test_vm_cannot_start(void **state)
{
	NEED_ROOT();
	fake.start_error = "open kernel '/x/vmlinux': No such file or directory";
	send_create("", &env->create);
	until(&env->create.done);
	assert_non_null(strstr(env->create.text, "/x/vmlinux"));
	expect_nothing_left();
}

/* The broken connection is the symptom; what the client hears is the cause. */
static void test_cause_replaces_symptom(void **state)
{
	NEED_ROOT();
	fake.share_dies = "the file server was killed by signal 31";
	send_create("", &env->create);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_UNAVAILABLE);
	assert_non_null(strstr(env->create.text, "killed by signal 31"));
	expect_nothing_left();
}

static void test_bad_bundles(void **state)
{
	cleanup_close int fd = open(env->dir, O_RDONLY | O_DIRECTORY);

	NEED_ROOT();
	assert_int_equal(io_write_file(fd, "config.json", "{", 1), 0);
	send_create("", &env->create);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_INVALID_ARGUMENT);
	assert_int_equal(unlinkat(fd, "config.json", 0), 0);
	send_create("", &env->create);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_UNKNOWN);
	assert_non_null(strstr(env->create.text, "config.json"));
	assert_int_equal(fake.nr_vms, 0);
	expect_nothing_left();
}

static void test_delete_of_created(void **state)
{
	struct answer a;

	NEED_ROOT();
	create();
	call("Delete", "", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(a.exit_status, 137);
	settle();
	assert_string_equal(env->log, "create exit:c1:137 delete ");
	expect_nothing_left();
}

static void test_kill_of_created(void **state)
{
	struct answer a;

	NEED_ROOT();
	create();
	ref("Wait", "", &env->wait);
	kill_call(SIGKILL, &a);
	assert_int_equal(a.code, RPC_OK);
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 137);
	settle();
	assert_string_equal(env->log, "create exit:c1:137 ");
}

static void test_delete_while_creating(void **state)
{
	struct answer a;

	NEED_ROOT();
	fake.never_ready = true;
	send_create("", &env->create);
	while (!fake.vm_exists)
		loop_run_once(env->loop, 10);
	call("Delete", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_CANCELED);
	expect_nothing_left();
}

/* A process that is over before Start is answered: start is still told before exit. */
static void test_exit_before_start_is_answered(void **state)
{
	NEED_ROOT();
	fake.exit_on_start = 1 + 3;
	fake.hold_start = true;
	create();
	ref("Wait", "", &env->wait);
	ref("Start", "", &env->start);
	settle();
	assert_false(env->start.done);
	assert_false(env->wait.done);
	fake_answer_start();
	until(&env->start.done);
	assert_int_equal(env->start.code, RPC_OK);
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 3);
	settle();
	assert_string_equal(env->log, "create start exit:c1:3 ");
}

static void test_vm_dies_during_start(void **state)
{
	NEED_ROOT();
	fake.hold_start = true;
	create();
	ref("Start", "", &env->start);
	settle();
	fake_vm_die("killed by signal 9");
	until(&env->start.done);
	assert_int_equal(env->start.code, RPC_UNAVAILABLE);
	settle();
	assert_string_equal(env->log, "create exit:c1:137 ");
}

/* An agent that does not answer: SIGKILL still ends the container, in two seconds. */
static void test_kill_without_the_agent(void **state)
{
	struct answer a;
	uint64_t begin;

	NEED_ROOT();
	create_and_start();
	fake.signals_ignored = true;
	ref("Wait", "", &env->wait);
	begin = util_now_ns();
	kill_call(SIGKILL, &a);
	assert_int_equal(a.code, RPC_OK);
	until(&env->wait.done);
	assert_true(util_now_ns() - begin < 2 * SECOND_NS);
	assert_int_equal(env->wait.exit_status, 137);
}

/* A guest so full of processes that SIGKILL takes for ever. */
static void test_kill_that_does_not_end_it(void **state)
{
	struct answer a;
	uint64_t begin;

	NEED_ROOT();
	create_and_start();
	fake.kills_ignored = true;
	ref("Wait", "", &env->wait);
	begin = util_now_ns();
	kill_call(SIGKILL, &a);
	assert_int_equal(a.code, RPC_OK);
	until(&env->wait.done);
	assert_true(util_now_ns() - begin > 2 * SECOND_NS);
	assert_true(util_now_ns() - begin < 8 * SECOND_NS);
	assert_int_equal(env->wait.exit_status, 137);
}

static void test_pause_holds_signals(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	call("Pause", "", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_true(fake.paused);
	call("Pause", "", &a);
	assert_string_equal(a.text, "cannot pause a paused container");
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__PAUSED);
	kill_call(SIGTERM, &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(fake.nr_signals, 0);
	call("Resume", "", &a);
	settle();
	assert_int_equal(fake.last_signal, SIGTERM);
	call("Pause", "", &a);
	ref("Wait", "", &env->wait);
	kill_call(SIGKILL, &a);
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 137);
	settle();
	assert_string_equal(env->log, "create start paused resumed paused exit:c1:137 ");
}

/* The guest took long to take the time that it was told: it is asked, and set right by the difference. */
static void test_clock_of_a_slow_guest(void **state)
{
	struct answer a;

	NEED_ROOT();
	fake.slow_configures = 2;
	fake.clock_ahead_ns = -41000000;
	create_and_start();
	assert_in_range(fake.clock_ahead_ns + 10000000, 0, 20000000);
	/* One that is quick is believed. */
	fake.clock_ahead_ns = 41000000;
	call("Pause", "", &a);
	call("Resume", "", &a);
	settle();
	assert_int_equal(fake.clock_ahead_ns, 41000000);
}

/* Little is made good gradually, much at once; a paused guest is left alone. */
static void test_clock_is_looked_after(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	assert_true(env->shim.container->clock.timer_fd >= 0);
	fake.clock_ahead_ns = 41000000;
	clock_look(env->shim.container);
	settle();
	assert_in_range(fake.clock_ahead_ns + 10000000, 0, 20000000);
	assert_true(fake.clock_gradual);
	fake.clock_ahead_ns = -3600000000000;
	clock_look(env->shim.container);
	settle();
	assert_in_range(fake.clock_ahead_ns + 10000000, 0, 20000000);
	assert_false(fake.clock_gradual);
	call("Pause", "", &a);
	fake.clock_ahead_ns = 41000000;
	clock_look(env->shim.container);
	settle();
	assert_int_equal(fake.clock_ahead_ns, 41000000);
}

/* Not answered before every processor of the VM stands still. */
static void test_pause_waits(void **state)
{
	struct answer a, again, state_of;

	NEED_ROOT();
	create_and_start();
	ref("Pause", "", &a);
	call("State", "", &state_of);
	assert_int_equal(state_of.status, CTRD__STATUS__RUNNING);
	call("Pause", "", &again);
	assert_int_equal(again.code, RPC_UNKNOWN);
	assert_false(a.done);
	assert_false(fake.paused);
	until(&a.done);
	assert_int_equal(a.code, RPC_OK);
	assert_true(fake.paused);
	settle();
	assert_string_equal(env->log, "create start paused ");
	call("Resume", "", &a);
	/* And the VM may die on the way. */
	ref("Pause", "", &a);
	fake_vm_die("the VM broke");
	until(&a.done);
	assert_int_equal(a.code, RPC_UNKNOWN);
}

static void checkpoint_call(bool exit, const char *sub, struct answer *a)
{
	Ctrd__CheckpointRequest req = CTRD__CHECKPOINT_REQUEST__INIT;
	Ctrd__CheckpointOptions o = CTRD__CHECKPOINT_OPTIONS__INIT;
	char type[] = "containerd.runc.v1.CheckpointOptions";
	Ctrd__Any any = CTRD__ANY__INIT;
	uint8_t packed[16];
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", env->dir, sub);
	o.exit = exit;
	any.type_url = type;
	any.value.data = packed;
	any.value.len = ctrd__checkpoint_options__pack(&o, packed);
	req.id = "c1";
	req.path = path;
	req.options = &any;
	send_call("Checkpoint", &req.base, NULL, a);
	until(&a->done);
}

static void test_checkpoint(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	call("Checkpoint", "", &a);
	assert_int_equal(a.code, RPC_INVALID_ARGUMENT);
	assert_string_equal(a.text, "'' is not an absolute path");
	checkpoint_call(false, "no/such", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	checkpoint_call(false, "one", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_string_equal(fake.note,
			    "streams 0 0 0 next 16 terminal 0 oom_kills 0 mem_bytes 536870912\n");
	assert_false(fake.paused);
	assert_false(fake.frozen);
	/* Paused before, it is paused after, and Resume wakes up what was frozen. */
	call("Pause", "", &a);
	checkpoint_call(false, "two", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_true(fake.paused && fake.frozen);
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__PAUSED);
	call("Resume", "", &a);
	settle();
	assert_false(fake.paused || fake.frozen);
	/* And it ends, if that was asked for. */
	ref("Wait", "", &env->wait);
	checkpoint_call(true, "three", &a);
	assert_int_equal(a.code, RPC_OK);
	until(&env->wait.done);
	assert_int_equal(env->wait.exit_status, 137);
}

static void test_checkpoint_fails(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	fake.save_error = "the file 'f' is open and has no name any more";
	checkpoint_call(true, "one", &a);
	assert_int_equal(a.code, RPC_UNKNOWN);
	assert_non_null(strstr(a.text, "checkpoint c1: the file 'f' is open"));
	assert_false(fake.paused || fake.frozen);
	call("Pause", "", &a);
	checkpoint_call(false, "two", &a);
	assert_int_equal(a.code, RPC_UNKNOWN);
	assert_true(fake.paused);
	assert_false(fake.frozen);
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__PAUSED);
	call("Resume", "", &a);
	assert_int_equal(a.code, RPC_OK);
}

static void test_create_from_no_checkpoint(void **state)
{
	Ctrd__CreateTaskRequest req = CTRD__CREATE_TASK_REQUEST__INIT;
	struct answer a;

	NEED_ROOT();
	req.id = "c1";
	req.bundle = env->dir;
	req.checkpoint = "/no/such";
	send_call("Create", &req.base, &ctrd__pid_response__descriptor, &a);
	until(&a.done);
	assert_int_equal(a.code, RPC_UNKNOWN);
	assert_non_null(strstr(a.text, "open the checkpoint '/no/such'"));
	req.checkpoint = env->dir;
	send_call("Create", &req.base, &ctrd__pid_response__descriptor, &a);
	until(&a.done);
	assert_non_null(strstr(a.text, "its manifest is damaged"));
	req.parent_checkpoint = env->dir;
	send_call("Create", &req.base, &ctrd__pid_response__descriptor, &a);
	until(&a.done);
	assert_non_null(strstr(a.text, "it has no parent"));
}

static void test_checkpoint_notes(void **state)
{
	static const char *const bad[] = {
		"",
		"streams 0 16 0 next 17 terminal 0 oom_kills 0 mem_bytes 0",
		"streams 0 16 0 next 16 terminal 0 oom_kills 0 mem_bytes 0\n",
		"streams 0 1 0 next 17 terminal 0 oom_kills 0 mem_bytes 0\n",
		"streams 0 16 0 next 3 terminal 0 oom_kills 0 mem_bytes 0\n",
		"streams 0 16 0 next 17 terminal 2 oom_kills 0 mem_bytes 0\n",
		"streams 0 16 0 next 17 terminal 0 oom_kills 0 mem_bytes 0\n ",
		"streams 0 16 0 next 17 terminal 0 oom_kills 0 mem_bytes 99999999999999\n",
		"streams 0 16 0 next 17 terminal 0 oom_kills 0\n",
		"streams 0 4294967312 0 next 17 terminal 0 oom_kills 0 mem_bytes 0\n",
	};
	struct checkpoint_note n;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(checkpoint_note_parse(bad[i], &n), -EPROTO);
	assert_int_equal(
		checkpoint_note_parse(
			"streams 16 17 0 next 40 terminal 1 oom_kills 7 mem_bytes 1073741824\n",
			&n),
		0);
	assert_int_equal(n.streams[1], 17);
	assert_int_equal(n.oom_kills, 7);
	assert_int_equal(n.mem_bytes, 1u << 30);
}

static void update_call(const char *json, struct answer *a)
{
	Ctrd__UpdateRequest req = CTRD__UPDATE_REQUEST__INIT;
	Ctrd__Any any = CTRD__ANY__INIT;

	any.value.data = (uint8_t *)(uintptr_t)json;
	any.value.len = strlen(json);
	req.id = "c1";
	req.resources = &any;
	send_call("Update", &req.base, NULL, a);
	until(&a->done);
}

/* The agent is told what the limit needs, and never more than there can be; the VM's size is the largest of these. */
static void test_update_grows_the_vm(void **state)
{
	static const struct {
		const char *json;
		uint64_t mib; /* that the agent is asked for */
	} cases[] = {
		{"{\"memory\":{\"limit\":104857600}}", 100 + 64},
		{"{\"memory\":{\"limit\":1073741824}}", 1024 + 64},
		{"{\"memory\":{\"limit\":1073741824}}", 1024 + 64},
		{"{\"memory\":{\"limit\":-1}}", 0},
		{"{\"pids\":{\"limit\":10}}", 0},
		{"{\"memory\":{\"limit\":1099511627776}}", 4096},
		{"{\"memory\":{\"limit\":1073741824}}", 1024 + 64},
	};
	struct answer a;

	NEED_ROOT();
	create_and_start();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		update_call(cases[i].json, &a);
		assert_int_equal(a.code, RPC_OK);
		assert_int_equal(fake.memory_bytes, cases[i].mib << 20);
	}
	assert_int_equal(env->shim.container->mem_bytes, 4096ull << 20);
	assert_int_equal(fake.memory_given, 4096ull << 20);
}

/* A paused guest hears nothing: what it would be asked is kept, what it is told is held. */
static void test_paused_answers_all_the_same(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	call("Start", "e1", &a);
	exec_add("e2", &a);
	call("Pause", "", &a);
	assert_int_equal(a.code, RPC_OK);
	call("State", "e1", &a);
	assert_int_equal(a.status, CTRD__STATUS__PAUSED);
	call("State", "e2", &a);
	assert_int_equal(a.status, CTRD__STATUS__PAUSED);
	call("Stats", "", &a);
	assert_int_equal(a.code, RPC_OK);
	update_call("{\"pids\":{\"limit\":10}}", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(fake.nr_updates, 0);
	call("Pids", "", &a);
	assert_non_null(strstr(a.text, " 10000007=e1 "));
	assert_null(strstr(a.text, "10000006"));
	call("Start", "e2", &a);
	assert_string_equal(a.text, "cannot exec in a paused state");
	call("Resume", "", &a);
	assert_int_equal(a.code, RPC_OK);
	settle();
	assert_int_equal(fake.nr_updates, 1);
}

/* SIGKILL of an exec does not wake the container up. */
static void test_exec_killed_while_paused(void **state)
{
	Ctrd__KillRequest req = CTRD__KILL_REQUEST__INIT;
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	call("Start", "e1", &a);
	ref("Wait", "e1", &env->exec_wait);
	call("Pause", "", &a);
	req.id = "c1";
	req.exec_id = "e1";
	req.signal = SIGKILL;
	send_call("Kill", &req.base, NULL, &a);
	until(&a.done);
	assert_int_equal(a.code, RPC_OK);
	settle();
	assert_true(fake.paused);
	assert_false(env->exec_wait.done);
	call("Resume", "", &a);
	until(&env->exec_wait.done);
	assert_int_equal(env->exec_wait.exit_status, 137);
	call("State", "", &a);
	assert_int_equal(a.status, CTRD__STATUS__RUNNING);
}

/* containerd, after a restart, ends a container whose Pids is empty or an error. */
static void test_pids(void **state)
{
	char expect[100];
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	call("Start", "e1", &a);
	call("Pids", "", &a);
	snprintf(expect, sizeof(expect), "%u 10000006 10000007=e1 ", env->create.pid);
	assert_string_equal(a.text, expect);
	fake.pids_code = RPC_INTERNAL;
	call("Pids", "", &a);
	assert_int_equal(a.code, RPC_OK);
	snprintf(expect, sizeof(expect), "%u 10000007=e1 ", env->create.pid);
	assert_string_equal(a.text, expect);
	ref("Wait", "", &env->wait);
	fake_vm_die("panic");
	until(&env->wait.done);
	call("Pids", "", &a);
	snprintf(expect, sizeof(expect), "%u ", env->create.pid);
	assert_string_equal(a.text, expect);
}

static void test_signal_zero_only_asks(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	kill_call(0, &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(fake.nr_signals, 0);
	ref("Wait", "", &env->wait);
	fake_exit("", 0);
	until(&env->wait.done);
	kill_call(0, &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
}

/* Killed processes that are not init: an event each time, whatever the guest makes of the numbers. */
static void test_oom_of_a_child(void **state)
{
	NEED_ROOT();
	create_and_start();
	settle();
	fake_oom(1);
	settle();
	assert_string_equal(env->log, "create start oom ");
	ref("Wait", "", &env->wait);
	fake_exit("", 137);
	until(&env->wait.done);
	settle();
	assert_string_equal(env->log, "create start oom exit:c1:137 ");
}

static void test_oom_told_with_the_exit(void **state)
{
	NEED_ROOT();
	create_and_start();
	ref("Wait", "", &env->wait);
	fake.oom_kills = 3;
	fake_exit("", 137);
	until(&env->wait.done);
	settle();
	assert_string_equal(env->log, "create start oom exit:c1:137 ");
}

static void test_exec_ends_before_init(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	assert_int_equal(a.code, RPC_OK);
	exec_add("e1", &a);
	assert_int_equal(a.code, RPC_ALREADY_EXISTS);
	exec_add("../e", &a);
	assert_int_equal(a.code, RPC_INVALID_ARGUMENT);
	call("State", "e1", &a);
	assert_int_equal(a.status, CTRD__STATUS__CREATED);
	assert_int_equal(a.pid, 0);
	call("State", "e2", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	call("Start", "e1", &a);
	assert_int_equal(a.code, RPC_OK);
	/* The fake agent says 7: no process of the host has that number. */
	assert_int_equal(a.pid, PROCESS_GUEST_PIDS + 7);
	ref("Wait", "e1", &env->exec_wait);
	ref("Wait", "", &env->wait);
	settle();
	/* init first, in the guest's telling; outside the exec still comes first. */
	fake_exit("", 0);
	settle();
	assert_false(env->wait.done);
	exec_add("e9", &a);
	call("Start", "e9", &a);
	assert_int_equal(a.code, RPC_FAILED_PRECONDITION);
	fake_exit("e1", 137);
	until(&env->wait.done);
	until(&env->exec_wait.done);
	assert_int_equal(env->exec_wait.exit_status, 137);
	call("Delete", "e1", &a);
	assert_int_equal(a.code, RPC_OK);
	call("Delete", "e1", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	settle();
	assert_string_equal(env->log, "create start exec-added exec-started exec-added "
				      "exit:e1:137 exit:c1:0 ");
}

/* Exec, Start and Wait go to the agent together: the answer is Exec's, and another try is possible. */
static void test_exec_refused_by_the_agent(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	ref("Wait", "e1", &env->exec_wait);
	fake.exec_code = RPC_FAILED_PRECONDITION;
	call("Start", "e1", &a);
	assert_int_equal(a.code, RPC_FAILED_PRECONDITION);
	assert_string_equal(a.text, "exec: the fake agent does not want it");
	until(&env->exec_wait.done);
	assert_int_equal(env->exec_wait.exit_status, 0);
	call("State", "e1", &a);
	assert_int_equal(a.status, CTRD__STATUS__CREATED);
	fake.exec_code = RPC_OK;
	call("Start", "e1", &a);
	assert_int_equal(a.code, RPC_OK);
	ref("Wait", "e1", &env->exec_wait);
	fake_exit("e1", 3);
	until(&env->exec_wait.done);
	assert_int_equal(env->exec_wait.exit_status, 3);
	exec_add("e2", &a);
	fake.exec_code = RPC_NOT_FOUND;
	call("Start", "e2", &a);
	assert_int_equal(a.code, RPC_UNKNOWN);
	/* Deleted with the agent's Wait still under way: its answer finds nobody. */
	call("Delete", "e2", &a);
	assert_int_equal(a.code, RPC_OK);
	settle();
	assert_string_equal(env->log, "create start exec-added exec-started exit:e1:3 exec-added ");
}

static void test_exec_ends_before_start_is_answered(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	ref("Wait", "e1", &env->exec_wait);
	fake.hold_start = true;
	ref("Start", "e1", &env->start);
	settle();
	fake_exit("e1", 4);
	settle();
	assert_false(env->exec_wait.done);
	fake_answer_start();
	until(&env->exec_wait.done);
	assert_int_equal(env->start.code, RPC_OK);
	assert_int_equal(env->exec_wait.exit_status, 4);
	settle();
	assert_string_equal(env->log, "create start exec-added exec-started exit:e1:4 ");
}

static void test_vm_dies_with_exec_running(void **state)
{
	struct answer a;

	NEED_ROOT();
	create_and_start();
	exec_add("e1", &a);
	call("Start", "e1", &a);
	ref("Wait", "e1", &env->exec_wait);
	ref("Wait", "", &env->wait);
	settle();
	fake_vm_die("panic");
	until(&env->exec_wait.done);
	until(&env->wait.done);
	assert_int_equal(env->exec_wait.exit_status, 137);
	call("Delete", "e1", &a);
	assert_int_equal(a.code, RPC_OK);
	call("Delete", "", &a);
	settle();
	assert_string_equal(env->log,
			    "create start exec-added exec-started exit:e1:137 exit:c1:137 delete ");
	expect_nothing_left();
}

/* Wait and TaskExit come when the output is with its reader; the reader then sees end of file. */
static void test_output_before_wait(void **state)
{
	char path[100], data[64];
	int rd;

	NEED_ROOT();
	snprintf(path, sizeof(path), "%s/out", env->dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	/* The client comes late: Create waits for it. */
	send_create(path, &env->create);
	settle();
	assert_false(env->create.done);
	rd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_OK);
	call("Start", "", &env->start);
	call("State", "", &env->other);
	assert_string_equal(env->other.text, path);
	ref("Wait", "", &env->wait);
	fake_output(MUX_STREAM_FIRST_FREE, "hello ");
	fake_exit("", 0);
	settle();
	assert_false(env->wait.done);
	assert_int_equal(read(rd, data, sizeof(data)), 6);
	/* Nothing to read, and no end of file yet. */
	assert_int_equal(read(rd, data, sizeof(data)), -1);
	assert_int_equal(errno, EAGAIN);
	fake_output(MUX_STREAM_FIRST_FREE, "world");
	fake_output(MUX_STREAM_FIRST_FREE, NULL);
	until(&env->wait.done);
	assert_int_equal(read(rd, data, sizeof(data)), 5);
	assert_int_equal(read(rd, data, sizeof(data)), 0);
	close(rd);
}

/* file:// appends, making folders; everything is in the file when Wait is answered. */
static void test_output_to_a_file(void **state)
{
	char uri[120], *path = uri + strlen("file://");
	cleanup_free char *text = NULL;

	NEED_ROOT();
	snprintf(uri, sizeof(uri), "file://%s/sub/log", env->dir);
	send_create(uri, &env->create);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_OK);
	call("Start", "", &env->start);
	ref("Wait", "", &env->wait);
	fake_output(MUX_STREAM_FIRST_FREE, "one\n");
	fake_output(MUX_STREAM_FIRST_FREE, "two\n");
	fake_output(MUX_STREAM_FIRST_FREE, NULL);
	fake_exit("", 0);
	until(&env->wait.done);
	assert_int_equal(io_read_file(AT_FDCWD, path, 100, &text, NULL), 0);
	assert_string_equal(text, "one\ntwo\n");
}

/* binary://: arguments decoded, environment and descriptors as loggers expect them, ready before Create is
 * answered, at its end when Delete is. */
static void test_output_to_a_program(void **state)
{
	char uri[200], path[100];
	cleanup_close int fd = open(env->dir, O_RDONLY | O_DIRECTORY);
	cleanup_free char *script = xasprintf("#!/bin/sh\nexec 5>&-\n"
					      "echo \"$# $* $CONTAINER_ID $CONTAINER_NAMESPACE\" "
					      "> %s/got\ncat <&3 >> %s/got\n",
					      env->dir, env->dir);
	cleanup_free char *text = NULL;
	struct answer a;

	NEED_ROOT();
	assert_int_equal(io_write_file(fd, "logger", script, strlen(script)), 0);
	assert_int_equal(fchmodat(fd, "logger", 0700, 0), 0);
	snprintf(uri, sizeof(uri), "binary://%s/logger?a%%20b=c+d&flag", env->dir);
	send_create(uri, &env->create);
	until(&env->create.done);
	assert_string_equal(env->create.text, "");
	call("Start", "", &env->start);
	ref("Wait", "", &env->wait);
	fake_output(MUX_STREAM_FIRST_FREE, "out\n");
	fake_output(MUX_STREAM_FIRST_FREE, NULL);
	fake_exit("", 0);
	until(&env->wait.done);
	call("Delete", "", &a);
	assert_int_equal(a.code, RPC_OK);
	snprintf(path, sizeof(path), "%s/got", env->dir);
	assert_int_equal(io_read_file(AT_FDCWD, path, 1000, &text, NULL), 0);
	assert_string_equal(text, "3 a b c d flag c1 ns\nout\n");
}

static void test_output_elsewhere_is_refused(void **state)
{
	static char *const uris[][2] = {{"http://x", "unknown STDIO scheme http"},
					{"relative", "not an absolute path"},
					{"binary:///nonexistent/x", "/nonexistent/x"},
					{"file:///dev/null", "not a regular file"}};

	NEED_ROOT();
	for (size_t i = 0; i < ARRAY_SIZE(uris); i++) {
		send_create(uris[i][0], &env->create);
		until(&env->create.done);
		assert_int_not_equal(env->create.code, RPC_OK);
		assert_non_null(strstr(env->create.text, uris[i][1]));
		expect_nothing_left();
	}
}

static void test_stdout_must_be_a_fifo(void **state)
{
	char path[100];
	cleanup_close int fd = open(env->dir, O_RDONLY | O_DIRECTORY);
	cleanup_free char *text = NULL;

	NEED_ROOT();
	assert_int_equal(io_write_file(fd, "passwd", "root", 4), 0);
	snprintf(path, sizeof(path), "%s/passwd", env->dir);
	send_create(path, &env->create);
	until(&env->create.done);
	assert_int_equal(env->create.code, RPC_INVALID_ARGUMENT);
	assert_int_equal(io_read_file(fd, "passwd", 100, &text, NULL), 0);
	assert_string_equal(text, "root");
	expect_nothing_left();
}

static void test_no_container(void **state)
{
	struct answer a;

	call("Connect", "", &a);
	assert_int_equal(a.code, RPC_OK);
	assert_int_equal(a.pid, 0);
	call("Pids", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	call("Wait", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
	call("Checkpoint", "", &a);
	assert_int_equal(a.code, RPC_NOT_FOUND);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_whole_life),
		T(test_vm_dies_while_running),
		T(test_vm_dies_before_ready),
		T(test_create_errors_are_the_agents),
		T(test_vm_cannot_start),
		T(test_cause_replaces_symptom),
		T(test_bad_bundles),
		T(test_delete_of_created),
		T(test_kill_of_created),
		T(test_delete_while_creating),
		T(test_exit_before_start_is_answered),
		T(test_vm_dies_during_start),
		T(test_kill_without_the_agent),
		T(test_kill_that_does_not_end_it),
		T(test_pause_holds_signals),
		T(test_clock_of_a_slow_guest),
		T(test_clock_is_looked_after),
		T(test_pause_waits),
		T(test_checkpoint),
		T(test_checkpoint_fails),
		T(test_create_from_no_checkpoint),
		T(test_checkpoint_notes),
		T(test_update_grows_the_vm),
		T(test_paused_answers_all_the_same),
		T(test_exec_killed_while_paused),
		T(test_pids),
		T(test_signal_zero_only_asks),
		T(test_oom_of_a_child),
		T(test_oom_told_with_the_exit),
		T(test_exec_ends_before_init),
		T(test_exec_refused_by_the_agent),
		T(test_exec_ends_before_start_is_answered),
		T(test_vm_dies_with_exec_running),
		T(test_output_before_wait),
		T(test_output_to_a_file),
		T(test_output_to_a_program),
		T(test_output_elsewhere_is_refused),
		T(test_stdout_must_be_a_fifo),
		T(test_no_container),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
