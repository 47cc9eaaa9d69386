/* The agent from CreateContainer to Delete, on this host or in a virtual machine (agent_harness.h). */
#include "agent_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

static void test_runs_and_reports_output(void **state)
{
	struct harness *h = harness_of(state);
	cleanup_free char *out = harness_script(h, "echo hello; echo there");

	assert_string_equal(out, "hello\nthere\n");
}

static void test_exit_codes_and_separate_stderr(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r, "echo out; echo err >&2; exit 42");
	harness_run(h, &r, &res);
	assert_int_equal(res.status, 42);
	assert_string_equal(res.out, "out\n");
	assert_string_equal(res.err, "err\n");
	harness_result_done(&res);
}

static void expect_create_error(struct harness *h, const char *arg0, enum rpc_code code,
				const char *text)
{
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r, "");
	r.args[0] = (char *)arg0;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, text);
	assert_int_equal(res.create.code, code);
	harness_result_done(&res);
}

static void test_missing_and_unusable_executables(void **state)
{
	struct harness *h = harness_of(state);

	harness_write_file(h, "bin/plain", "not executable\n");
	expect_create_error(h, "nosuch", RPC_NOT_FOUND,
			    "exec: \"nosuch\": executable file not found in $PATH");
	expect_create_error(h, "plain", RPC_NOT_FOUND,
			    "exec: \"plain\": executable file not found in $PATH");
	expect_create_error(h, "/x", RPC_NOT_FOUND,
			    "exec: \"/x\": stat /x: no such file or directory");
	expect_create_error(h, "/bin/plain", RPC_PERMISSION_DENIED,
			    "exec: \"/bin/plain\": permission denied");
	expect_create_error(h, "/tmp", RPC_PERMISSION_DENIED, "exec: \"/tmp\": is a directory");
}

static void test_bad_format_is_an_error_of_start(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;
	char path[200];

	harness_write_file(h, "bin/odd", "neither a script nor ELF\n");
	snprintf(path, sizeof(path), "%s/bin/odd", h->root);
	assert_int_equal(chmod(path, 0755), 0);
	harness_request_init(&r, "");
	r.args[0] = "/bin/odd";
	harness_run(h, &r, &res);
	assert_int_equal(res.create.code, RPC_OK);
	assert_string_equal(res.start.msg, "exec: \"/bin/odd\": exec format error");
	assert_int_equal(res.status, 255);
	harness_result_done(&res);
}

static void test_user_environment_and_cwd(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;
	uint32_t gids[] = {7, 2000};

	harness_request_init(&r, "id -u; id -g; id -G; pwd; umask; echo $HOME; echo $A");
	r.user.uid = 1000;
	r.user.gid = 1000;
	r.user.additional_gids = gids;
	r.user.n_additional_gids = 2;
	r.user.has_umask = true;
	r.user.umask = 027;
	r.process.cwd = "/work/not/there/yet";
	r.env[1] = "A=1";
	r.env[2] = "A=2";
	r.process.n_env = 3;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out,
			    "1000\n1000\n1000 7 2000\n/work/not/there/yet\n0027\n/home/user\n2\n");
	harness_result_done(&res);
}

static void test_stdin_round_trip_is_lossless(void **state)
{
	struct harness *h = harness_of(state);
	size_t len = 3u << 20;
	cleanup_free uint8_t *data = xmalloc(len);
	struct harness_request r;
	struct harness_stream *in, *out;
	struct harness_answer a;

	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 24);
	in = harness_input(h, data, len);
	out = harness_output(h);
	harness_request_init(&r, "cat");
	r.process.stdin_stream = in->id;
	r.process.stdout_stream = out->id;
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	harness_ref(h, &a, "Start", "c1", "");
	harness_answer_done(&a);
	harness_drain(h, out);
	assert_int_equal(out->data.len, len);
	assert_memory_equal(buf_head(&out->data), data, len);
	harness_ref(h, &a, "Wait", "c1", "");
	assert_int_equal(((AGENT_PB(WaitResponse) *)a.response)->exit_status, 0);
	harness_answer_done(&a);
	harness_ref(h, &a, "Delete", "c1", "");
	harness_answer_done(&a);
}

static void test_isolation_that_a_container_sees(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_request_init(
		&r, "echo $$; hostname; grep ^0: /proc/self/cgroup; ls /dev | grep -v core; "
		    "cat /proc/self/oom_score_adj; echo /proc/self/fd/*; "
		    "stat -c '%F %t:%T' /dev/null /dev/urandom; readlink /dev/ptmx");
	r.create.hostname = "inner";
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out,
			    "1\ninner\n0::/\n"
			    "fd\nfull\nnull\nptmx\npts\nrandom\nstderr\nstdin\nstdout\ntty\n"
			    "urandom\nzero\n0\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 "
			    "/proc/self/fd/3\n"
			    "character special file 1:3\ncharacter special file 1:9\npts/ptmx\n");
	harness_result_done(&res);
}

static void test_masked_readonly_and_sysctl(void **state)
{
	struct harness *h = harness_of(state);
	char *masked[] = {"/proc/timer_list", "/proc/irq", "/proc/no-such-thing", "/etc/secret"};
	char *readonly[] = {"/proc/sys", "/etc"};
	AGENT_PB(Sysctl) sysctl = HARPOON__AGENT__V1__SYSCTL__INIT, *sysctls[] = {&sysctl};
	struct harness_request r;
	struct harness_result res;

	harness_write_file(h, "etc/secret", "secret");
	sysctl.key = "kernel.msgmax";
	sysctl.value = "12345";
	harness_request_init(&r, "cat /proc/timer_list /etc/secret | wc -c; ls /proc/irq | wc -l; "
				 "touch /proc/irq/x 2>/dev/null || echo ro; "
				 "echo 1 2>/dev/null >/proc/sys/kernel/msgmax || echo ro; "
				 "touch /etc/x 2>/dev/null || echo ro; touch /tmp/x && echo rw; "
				 "cat /proc/sys/kernel/msgmax");
	r.create.masked_paths = masked;
	r.create.n_masked_paths = 4;
	r.create.readonly_paths = readonly;
	r.create.n_readonly_paths = 2;
	r.create.sysctls = sysctls;
	r.create.n_sysctls = 1;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "0\n0\nro\nro\nro\nrw\n12345\n");
	harness_result_done(&res);
}

static void test_readonly_root_and_volumes(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_volume(h, "vol", true);
	harness_volume(h, "one-file", false);
	harness_request_init(&r, "touch /x 2>/dev/null || echo ro; touch /data/deep/y && echo rw; "
				 "touch /data-ro/z 2>/dev/null || echo ro; echo new >/etc/conf; "
				 "cat /etc/conf; touch /t/x && echo tmpfs");
	r.create.root_readonly = true;
	harness_add_mount(&r, "/data/deep", "bind", "share:vol", 4096 | 16384, "");
	harness_add_mount(&r, "/data-ro", "bind", "share:vol", 4096 | 1, "");
	harness_add_mount(&r, "/etc/conf", "bind", "share:one-file", 4096, "");
	harness_add_mount(&r, "/t", "tmpfs", "tmpfs", 2 | 4 | 8, "size=1m");
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "ro\nrw\nro\nnew\ntmpfs\n");
	harness_result_done(&res);
}

static void test_capabilities_nnp_and_rlimits(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(Capabilities) caps = HARPOON__AGENT__V1__CAPABILITIES__INIT;
	AGENT_PB(Rlimit) limit = HARPOON__AGENT__V1__RLIMIT__INIT, *limits[] = {&limit};
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r, "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; ulimit -n");
	caps.bounding = 0x401;
	caps.permitted = caps.effective = caps.inheritable = caps.ambient = 0x400;
	limit.resource = 7;
	limit.soft = 99;
	limit.hard = 100;
	r.process.capabilities = &caps;
	r.process.no_new_privileges = true;
	r.process.rlimits = limits;
	r.process.n_rlimits = 1;
	r.user.uid = 1000;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out,
			    "CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\n"
			    "CapEff:\t0000000000000400\nCapBnd:\t0000000000000401\n"
			    "CapAmb:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t0\n99\n");
	harness_result_done(&res);
}

/* The filter forbids mkdir, and capset must still have worked after it was loaded. */
static void test_seccomp_without_no_new_privs(void **state)
{
	struct harness *h = harness_of(state);
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	AGENT_PB(Capabilities) caps = HARPOON__AGENT__V1__CAPABILITIES__INIT;
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r,
			     "grep -E '^(CapPrm|NoNew|Seccomp:)' /proc/self/status; mkdir /tmp/d");
	r.process.capabilities = &caps;
	r.process.seccomp_bpf.data = (uint8_t *)filter;
	r.process.seccomp_bpf.len = sizeof(filter);
	harness_run(h, &r, &res);
	assert_string_equal(res.start.msg, "");
	assert_string_equal(res.out, "CapPrm:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n");
	assert_string_equal(res.err,
			    "mkdir: can't create directory '/tmp/d': Function not implemented\n");
	assert_int_equal(res.status, 1);
	harness_result_done(&res);
}

static void test_user_namespace(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(IdMapping) map = HARPOON__AGENT__V1__ID_MAPPING__INIT, *maps[] = {&map};
	struct harness_request r;
	struct harness_result res;
	char path[200];

	map.container_id = 0;
	map.host_id = 100000;
	map.size = 65536;
	harness_request_init(&r,
			     "id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; "
			     "echo x >/dev/null && echo ok; echo y >/dev/stdout; stat -c %u /tmp");
	r.create.namespaces |= CLONE_NEWUSER;
	r.create.uid_mappings = r.create.gid_mappings = maps;
	r.create.n_uid_mappings = r.create.n_gid_mappings = 1;
	snprintf(path, sizeof(path), "%s/tmp", h->root);
	assert_int_equal(chown(path, 100000, 100000), 0);
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "0\n         0     100000      65536\n1:3\nok\ny\n0\n");
	harness_result_done(&res);
}

static uint32_t wait_status(struct harness *h, const char *id, const char *exec_id)
{
	struct harness_answer a;
	uint32_t status;

	harness_ref(h, &a, "Wait", id, exec_id);
	assert_int_equal(a.code, RPC_OK);
	status = ((AGENT_PB(WaitResponse) *)a.response)->exit_status;
	assert_true(((AGENT_PB(WaitResponse) *)a.response)->exited_at_ns > 0);
	harness_answer_done(&a);
	return status;
}

static void must_signal(struct harness *h, const char *id, const char *exec_id, uint32_t sig,
			bool all)
{
	AGENT_PB(SignalRequest) s = HARPOON__AGENT__V1__SIGNAL_REQUEST__INIT;
	struct harness_answer a;

	s.id = (char *)id;
	s.exec_id = (char *)exec_id;
	s.signal = sig;
	s.all = all;
	harness_call(h, &a, "Signal", &s, NULL);
	assert_string_equal(a.msg, "");
}

static void start_script(struct harness *h, struct harness_request *r)
{
	struct harness_answer a;

	harness_call(h, &a, "CreateContainer", &r->create, NULL);
	assert_string_equal(a.msg, "");
	harness_must_ref(h, "Start", r->create.id, "");
}

static void exec_begin(struct harness *h, const char *exec_id, const char *script,
		       struct harness_stream *out, bool terminal)
{
	AGENT_PB(ExecRequest) e = HARPOON__AGENT__V1__EXEC_REQUEST__INIT;
	struct harness_request r;
	struct harness_answer a;

	harness_request_init(&r, script);
	r.process.stdout_stream = out ? out->id : 0;
	r.process.terminal = terminal;
	r.process.console_width = 81;
	r.process.console_height = 25;
	e.id = "c1";
	e.exec_id = (char *)exec_id;
	e.process = &r.process;
	harness_call(h, &a, "Exec", &e, NULL);
	assert_string_equal(a.msg, "");
}

static void test_signals(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	struct harness_answer a;
	struct harness_request r;

	harness_request_init(
		&r, "trap 'echo term; exit 9' TERM; echo up; while :; do sleep 0.05; done");
	r.process.stdout_stream = out->id;
	start_script(h, &r);
	harness_run_until(h, out, "up\n");
	must_signal(h, "c1", "", SIGTERM, false);
	assert_int_equal(wait_status(h, "c1", ""), 9);
	harness_drain(h, out);
	harness_ref(h, &a, "Start", "c1", "");
	assert_int_not_equal(a.code, RPC_OK);
	harness_must_ref(h, "Delete", "c1", "");
	harness_ref(h, &a, "Delete", "c1", "");
	assert_int_equal(a.code, RPC_NOT_FOUND);
}

static void test_kill_created_and_running(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_answer a;
	struct harness_request r;

	harness_request_init(&r, "sleep 1000");
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	must_signal(h, "c1", "", SIGKILL, true);
	assert_int_equal(wait_status(h, "c1", ""), 137);
	harness_must_ref(h, "Delete", "c1", "");
	start_script(h, &r);
	must_signal(h, "c1", "", SIGKILL, false);
	assert_int_equal(wait_status(h, "c1", ""), 137);
	harness_must_ref(h, "Delete", "c1", "");
}

/* Deleting a running container ends it, children, sub-cgroups and all. */
static void test_delete_ends_everything(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	struct harness_request r;

	harness_request_init(&r, "mkdir -p /cg/a/b; echo 0 >/cg/a/b/cgroup.procs; "
				 "sleep 1000 & sleep 1000 & echo up; wait");
	harness_add_mount(&r, "/cg", "cgroup", "cgroup", 0, "");
	/* Without its own pid namespace nothing but the cgroup holds it together. */
	r.create.namespaces &= ~(uint32_t)CLONE_NEWPID;
	r.process.stdout_stream = out->id;
	start_script(h, &r);
	harness_run_until(h, out, "up\n");
	harness_must_ref(h, "Delete", "c1", "");
	harness_drain(h, out);
}

/* The stream stays until the last writer is gone, the exit is reported at once. */
static void test_background_child_keeps_stdout(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	struct harness_request r;

	harness_request_init(&r, "sleep 1000");
	start_script(h, &r);
	exec_begin(h, "e1", "(echo later; sleep 1000) & exit 3", out, false);
	harness_must_ref(h, "Start", "c1", "e1");
	assert_int_equal(wait_status(h, "c1", "e1"), 3);
	harness_run_until(h, out, "later\n");
	assert_false(out->eof);
	harness_must_ref(h, "Delete", "c1", "e1");
	harness_drain(h, out);
	harness_must_ref(h, "Delete", "c1", "");
}

static void test_exec_joins_the_container(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	struct harness_answer a;
	struct harness_request r;
	cleanup_free char *text = NULL;

	harness_request_init(&r, "touch /tmp/marker; sleep 1000; true");
	r.create.hostname = "inner";
	start_script(h, &r);
	exec_begin(h, "e1",
		   "until test -e /tmp/marker; do sleep 0.01; done; hostname; grep ^0: "
		   "/proc/self/cgroup; "
		   "ps | grep -c '[s]leep 1000'; echo /proc/self/fd/*; exit 5",
		   out, false);
	harness_must_ref(h, "Start", "c1", "e1");
	assert_int_equal(wait_status(h, "c1", "e1"), 5);
	harness_drain(h, out);
	text = harness_text(out);
	assert_string_equal(text, "inner\n0::/\n2\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 "
				  "/proc/self/fd/3\n");
	exec_begin(h, "e2", "", NULL, false);
	harness_ref(h, &a, "Start", "c1", "e1");
	assert_int_not_equal(a.code, RPC_OK);
	harness_must_ref(h, "Start", "c1", "e2");
	assert_int_equal(wait_status(h, "c1", "e2"), 0);
	harness_must_ref(h, "Delete", "c1", "e1");
	harness_must_ref(h, "Delete", "c1", "");
}

/* Several times: the report races with the end of the process that sent it. */
static void test_exec_of_missing_file(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(ExecRequest) e = HARPOON__AGENT__V1__EXEC_REQUEST__INIT;
	struct harness_answer a;
	struct harness_request r;

	harness_request_init(&r, "sleep 1000");
	start_script(h, &r);
	r.args[0] = "nosuch";
	e.id = "c1";
	e.exec_id = "e1";
	e.process = &r.process;
	for (int i = 0; i < 20; i++) {
		harness_call(h, &a, "Exec", &e, NULL);
		assert_int_equal(a.code, RPC_OK);
		harness_ref(h, &a, "Start", "c1", "e1");
		assert_int_equal(a.code, RPC_NOT_FOUND);
		assert_string_equal(a.msg, "exec: \"nosuch\": executable file not found in $PATH");
		harness_must_ref(h, "Delete", "c1", "e1");
	}
	harness_must_ref(h, "Delete", "c1", "");
}

/* Without a pid namespace the agent itself has to see to the order. */
static void check_exit_order(struct harness *h, uint32_t namespaces)
{
	AGENT_PB(ProcessRef) init = HARPOON__AGENT__V1__PROCESS_REF__INIT, exec = init;
	struct harness_answer init_wait, exec_wait;
	struct harness_request r;

	harness_request_init(&r, "sleep 1000");
	r.create.namespaces = namespaces;
	start_script(h, &r);
	exec_begin(h, "e1", "sleep 1000", NULL, false);
	harness_must_ref(h, "Start", "c1", "e1");
	init.id = exec.id = "c1";
	exec.exec_id = "e1";
	harness_begin(h, &init_wait, "Wait", &init, &harpoon__agent__v1__wait_response__descriptor);
	harness_begin(h, &exec_wait, "Wait", &exec, &harpoon__agent__v1__wait_response__descriptor);
	must_signal(h, "c1", "", SIGKILL, false);
	while (!init_wait.done) {
		bool exec_done = exec_wait.done;

		assert_int_equal(loop_run_once(h->loop, 1000), 0);
		assert_false(init_wait.done && !exec_done && !exec_wait.done);
	}
	assert_true(exec_wait.done);
	harness_answer_done(&init_wait);
	harness_answer_done(&exec_wait);
	harness_must_ref(h, "Delete", "c1", "");
}

static void test_execs_exit_before_init(void **state)
{
	struct harness *h = harness_of(state);

	check_exit_order(h, CLONE_NEWNS | CLONE_NEWPID);
	check_exit_order(h, CLONE_NEWNS);
}

static void test_terminal(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_result res;

	harness_request_init(&r, "tty; stty size; test -c /dev/console && echo console; "
				 "echo x >/dev/tty; exit 4");
	r.process.terminal = true;
	r.process.console_width = 100;
	r.process.console_height = 30;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "/dev/pts/0\r\n30 100\r\nconsole\r\nx\r\n");
	assert_int_equal(res.status, 4);
	harness_result_done(&res);
}

static void test_terminal_of_exec_and_resize(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	AGENT_PB(ResizeRequest) size = HARPOON__AGENT__V1__RESIZE_REQUEST__INIT;
	struct harness_answer a;
	struct harness_request r;

	harness_request_init(&r, "sleep 1000");
	start_script(h, &r);
	exec_begin(h, "e1", "stty size; until stty size | grep '40 120'; do sleep 0.02; done", out,
		   true);
	harness_must_ref(h, "Start", "c1", "e1");
	harness_run_until(h, out, "25 81\r\n");
	size.id = "c1";
	size.exec_id = "e1";
	size.width = 120;
	size.height = 40;
	harness_call(h, &a, "Resize", &size, NULL);
	assert_int_equal(a.code, RPC_OK);
	harness_run_until(h, out, "40 120\r\n");
	assert_int_equal(wait_status(h, "c1", "e1"), 0);
	harness_drain(h, out);
	harness_must_ref(h, "Delete", "c1", "");
}

static void test_pids_and_stats(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_stream *out = harness_output(h);
	AGENT_PB(StatsResponse) * stats;
	struct harness_answer a;
	struct harness_request r;
	bool has_cpu = false;

	harness_request_init(&r, "sleep 1000 & echo up; wait");
	r.process.stdout_stream = out->id;
	start_script(h, &r);
	harness_run_until(h, out, "up\n");
	harness_ref(h, &a, "Pids", "c1", "");
	assert_int_equal(((AGENT_PB(PidsResponse) *)a.response)->n_pids, 2);
	harness_answer_done(&a);
	harness_ref(h, &a, "Stats", "c1", "");
	stats = (AGENT_PB(StatsResponse) *)a.response;
	assert_true(stats->mem_total > 0);
	for (size_t i = 0; i < stats->n_files; i++)
		has_cpu |= !strcmp(stats->files[i]->name, "cpu.stat") &&
			   strstr(stats->files[i]->value, "usage_usec");
	assert_true(has_cpu);
	harness_answer_done(&a);
	harness_must_ref(h, "Delete", "c1", "");
}

static void test_cgroup_file_errors_are_clear(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(CgroupFile) file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	struct harness_request r;
	struct harness_answer a;

	harness_request_init(&r, "");
	file.name = "nosuch.max";
	file.value = "1";
	r.create.cgroup = files;
	r.create.n_cgroup = 1;
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg,
			    "cgroup file 'nosuch.max' does not exist: the guest's kernel lacks "
			    "the controller 'nosuch' or this knob of it");
	file.name = "cgroup.procs";
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_int_equal(a.code, RPC_INVALID_ARGUMENT);
}

static void test_ids_in_use_and_unknown(void **state)
{
	struct harness *h = harness_of(state);
	struct harness_request r;
	struct harness_answer a;

	harness_request_init(&r, "sleep 1000");
	start_script(h, &r);
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_int_equal(a.code, RPC_ALREADY_EXISTS);
	harness_ref(h, &a, "Wait", "c2", "");
	assert_int_equal(a.code, RPC_NOT_FOUND);
	harness_ref(h, &a, "Start", "c1", "e9");
	assert_int_equal(a.code, RPC_NOT_FOUND);
	harness_ref(h, &a, "Wait", "../c1", "");
	assert_int_equal(a.code, RPC_INVALID_ARGUMENT);
	/* The teardown ends what still runs. */
}

static void test_memory_limit_and_update(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(CgroupFile) file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	AGENT_PB(UpdateRequest) update = HARPOON__AGENT__V1__UPDATE_REQUEST__INIT;
	struct harness_request r;
	struct harness_answer a;

	harness_request_init(&r, "cat /cg/memory.max; until grep 16777216 /cg/memory.max; do sleep "
				 "0.02; done; exec dd if=/dev/zero of=/dev/null bs=48M count=1");
	harness_add_mount(&r, "/cg", "cgroup", "cgroup", 1, "");
	file.name = "memory.max";
	file.value = "33554432";
	r.create.cgroup = files;
	r.create.n_cgroup = 1;
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	harness_must_ref(h, "Start", "c1", "");
	file.value = "16777216";
	update.id = "c1";
	update.cgroup = files;
	update.n_cgroup = 1;
	harness_call(h, &a, "Update", &update, NULL);
	assert_string_equal(a.msg, "");
	harness_ref(h, &a, "Wait", "c1", "");
	assert_int_equal(((AGENT_PB(WaitResponse) *)a.response)->exit_status, 137);
	assert_true(((AGENT_PB(WaitResponse) *)a.response)->oom_killed);
	harness_answer_done(&a);
	harness_must_ref(h, "Delete", "c1", "");
}

/* Whatever the container does with pids and memory, the agent answers. */
static void test_agent_outlives_a_fork_bomb(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(CgroupFile) file = HARPOON__AGENT__V1__CGROUP_FILE__INIT, *files[] = {&file};
	struct harness_stream *out = harness_output(h);
	struct harness_request r;
	struct harness_answer a;
	uint64_t start;

	harness_request_init(&r, "echo up; while :; do sleep 1000 & done 2>/dev/null");
	file.name = "pids.max";
	file.value = "200";
	r.create.cgroup = files;
	r.create.n_cgroup = 1;
	r.process.stdout_stream = out->id;
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	harness_must_ref(h, "Start", "c1", "");
	harness_run_until(h, out, "up\n");
	start = util_now_ns();
	harness_ref(h, &a, "Pids", "c1", "");
	assert_true(((AGENT_PB(PidsResponse) *)a.response)->n_pids <= 200);
	harness_answer_done(&a);
	must_signal(h, "c1", "", SIGKILL, true);
	assert_int_equal(wait_status(h, "c1", ""), 137);
	harness_must_ref(h, "Delete", "c1", "");
	assert_true(util_now_ns() - start < UINT64_C(10000000000));
}

/* In a guest the clock starts in 1970; here it is right anyway. */
static void test_configure_sets_the_clock(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(ConfigureRequest) c = HARPOON__AGENT__V1__CONFIGURE_REQUEST__INIT;
	uint8_t entropy[32] = {1, 2, 3};
	struct harness_request r;
	struct harness_answer a;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	c.realtime_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	c.entropy.data = entropy;
	c.entropy.len = sizeof(entropy);
	c.hostname = "guest";
	harness_call(h, &a, "Configure", &c, NULL);
	assert_string_equal(a.msg, "");
	harness_request_init(&r, "exit 0");
	start_script(h, &r);
	harness_ref(h, &a, "Wait", "c1", "");
	assert_in_range(((AGENT_PB(WaitResponse) *)a.response)->exited_at_ns, c.realtime_ns,
			c.realtime_ns + INT64_C(30000000000));
	harness_answer_done(&a);
	harness_must_ref(h, "Delete", "c1", "");
}

/* Any node can be made, only the default ones and those of the request's rules can be opened. */
static void test_device_filter(void **state)
{
	struct harness *h = harness_of(state);
	AGENT_PB(Device) dev = HARPOON__AGENT__V1__DEVICE__INIT, *devices[] = {&dev};
	AGENT_PB(DeviceRule)
	rule = HARPOON__AGENT__V1__DEVICE_RULE__INIT, *rules[] = {&rule};
	struct harness_request r;
	struct harness_result res;
	const char *script =
		"mknod /dev/k c 1 11 && mknod /dev/z c 1 5 && head -c 3 /dev/z | wc -c; "
		"(: </dev/k) 2>/dev/null && echo open || echo closed";

	harness_request_init(&r, script);
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "3\nclosed\n");
	harness_result_done(&res);
	harness_request_init(&r, "(: </dev/sub/msg) && echo open || echo closed; "
				 "stat -c '%a %u %t:%T' /dev/sub/msg");
	dev.path = "/dev/sub/msg";
	dev.mode = S_IFCHR | 0640;
	dev.uid = 7;
	dev.major = 1;
	dev.minor = 11;
	r.create.devices = devices;
	r.create.n_devices = 1;
	rule = (AGENT_PB(DeviceRule)){rule.base, true, 'c', 1, 11, 7};
	r.create.device_rules = rules;
	r.create.n_device_rules = 1;
	harness_run(h, &r, &res);
	assert_string_equal(res.create.msg, "");
	assert_string_equal(res.out, "open\n640 7 1:b\n");
	harness_result_done(&res);
}

/*
 * A container that waits for its start must not hold another's pipe ends: it is forked while the first
 * one's stdin is open, and that one must still see its end.
 */
static void test_waiting_child_holds_no_foreign_pipes(void **state)
{
	struct harness *h = harness_of(state);
	size_t len = 1u << 20;
	cleanup_free uint8_t *data = calloc(1, len);
	struct harness_stream *in, *out = harness_output(h);
	struct harness_request r;
	struct harness_answer a;

	in = harness_input(h, data, len);
	harness_request_init(&r, "echo up; until test -e /tmp/go; do sleep 0.02; done; wc -c");
	r.process.stdin_stream = in->id;
	r.process.stdout_stream = out->id;
	start_script(h, &r);
	harness_run_until(h, out, "up\n");
	harness_request_init(&r, "true");
	r.create.id = "c2";
	harness_call(h, &a, "CreateContainer", &r.create, NULL);
	assert_string_equal(a.msg, "");
	exec_begin(h, "go", "touch /tmp/go", NULL, false);
	harness_must_ref(h, "Start", "c1", "go");
	harness_run_until(h, out, "1048576\n");
	harness_must_ref(h, "Delete", "c2", "");
	harness_must_ref(h, "Delete", "c1", "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		HARNESS_TEST(test_runs_and_reports_output),
		HARNESS_TEST(test_exit_codes_and_separate_stderr),
		HARNESS_TEST(test_missing_and_unusable_executables),
		HARNESS_TEST(test_bad_format_is_an_error_of_start),
		HARNESS_TEST(test_user_environment_and_cwd),
		HARNESS_TEST(test_stdin_round_trip_is_lossless),
		HARNESS_TEST(test_isolation_that_a_container_sees),
		HARNESS_TEST(test_masked_readonly_and_sysctl),
		HARNESS_TEST(test_readonly_root_and_volumes),
		HARNESS_TEST(test_capabilities_nnp_and_rlimits),
		HARNESS_TEST(test_seccomp_without_no_new_privs),
		HARNESS_TEST(test_user_namespace),
		HARNESS_TEST(test_signals),
		HARNESS_TEST(test_kill_created_and_running),
		HARNESS_TEST(test_delete_ends_everything),
		HARNESS_TEST(test_background_child_keeps_stdout),
		HARNESS_TEST(test_exec_joins_the_container),
		HARNESS_TEST(test_exec_of_missing_file),
		HARNESS_TEST(test_execs_exit_before_init),
		HARNESS_TEST(test_terminal),
		HARNESS_TEST(test_terminal_of_exec_and_resize),
		HARNESS_TEST(test_pids_and_stats),
		HARNESS_TEST(test_cgroup_file_errors_are_clear),
		HARNESS_TEST(test_ids_in_use_and_unknown),
		HARNESS_TEST(test_configure_sets_the_clock),
		HARNESS_TEST(test_device_filter),
		HARNESS_TEST(test_waiting_child_holds_no_foreign_pipes),
		/* The last two need controllers. */
		HARNESS_TEST(test_memory_limit_and_update),
		HARNESS_TEST(test_agent_outlives_a_fork_bomb),
	};

	return harness_main("agent", tests, ARRAY_SIZE(tests), 2);
}
