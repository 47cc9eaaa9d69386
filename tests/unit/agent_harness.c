/* See agent_harness.h. */
#include "agent_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"

#define HARNESS_PATIENCE_NS (20ull * 1000000000)

static const char *const harness_applets[] = {
	"sh",	"cat",	    "echo",   "ls",	  "id",	  "sleep", "stat",   "env",
	"grep", "head",	    "mount",  "hostname", "dd",	  "stty",  "tty",    "kill",
	"ps",	"readlink", "mknod",  "wc",	  "true", "touch", "md5sum", "seq",
	"sort", "test",	    "umount", "mkdir",	  "rm"};

void harness_write_file(const struct harness *h, const char *path, const char *text)
{
	char full[512];

	snprintf(full, sizeof(full), "%s/%s", h->root, path);
	assert_int_equal(io_write_file(AT_FDCWD, full, text, strlen(text)), 0);
	assert_int_equal(chmod(full, 0644), 0);
}

void harness_make_tree(struct harness *h)
{
	static const char *const dirs[] = {"",	   "/bin", "/dev", "/proc",
					   "/sys", "/etc", "/tmp", "/root"};
	char path[512], cmd[600];

	snprintf(h->base, sizeof(h->base), "/tmp/harpoon-agent.XXXXXX");
	assert_non_null(mkdtemp(h->base));
	assert_int_equal(chmod(h->base, 0755), 0);
	snprintf(h->fs, sizeof(h->fs), "%s/fs", h->base);
	snprintf(h->root, sizeof(h->root), "%s/root", h->fs);
	assert_int_equal(mkdir(h->fs, 0755), 0);
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s%s", h->root, dirs[i]);
		assert_int_equal(mkdir(path, 0755), 0);
	}
	snprintf(cmd, sizeof(cmd), "cp /bin/busybox %s/bin/busybox", h->root);
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c): a test's fixture */
	for (size_t i = 0; i < ARRAY_SIZE(harness_applets); i++) {
		snprintf(path, sizeof(path), "%s/bin/%s", h->root, harness_applets[i]);
		assert_int_equal(symlink("busybox", path), 0);
	}
	harness_write_file(h, "etc/passwd",
			   "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n");
}

const char *harness_volume(struct harness *h, const char *name, bool is_dir)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", h->fs, name);
	if (!access(path, F_OK))
		return path;
	if (is_dir)
		assert_int_equal(mkdir(path, 0755), 0);
	else
		assert_int_equal(io_write_file(AT_FDCWD, path, "", 0), 0);
	harness_backend_share(h, name);
	return path;
}

void harness_new_root(struct harness *h)
{
	static unsigned int nr;
	char cmd[500];

	snprintf(h->share, sizeof(h->share), "root%u", ++nr);
	snprintf(h->root, sizeof(h->root), "%s/%s", h->fs, h->share);
	/* The program is shared by a hard link; everything else is small. */
	snprintf(cmd, sizeof(cmd), "cp -a %s/root %s && ln -f %s/root/bin/busybox %s/bin/busybox",
		 h->fs, h->root, h->fs, h->root);
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c) */
	harness_backend_share(h, h->share);
}

static void harness_no_limits(void **state)
{
	(void)state;
	print_message("# no memory and pids controllers in cgroup v2\n");
	skip();
}

int harness_main(const char *name, const struct CMUnitTest *tests, size_t nr, size_t nr_limits)
{
	cleanup_free struct CMUnitTest *v = xcalloc(nr, sizeof(*v));
	const char *why = "needs root and busybox-static";

	if (geteuid() != 0 || access("/bin/busybox", X_OK) != 0 || !harness_backend_check(&why)) {
		printf("1..0 # SKIP %s\n", why);
		return 0;
	}
	memcpy(v, tests, nr * sizeof(*v));
	if (nr_limits && !harness_backend_has_limits())
		for (size_t i = nr - nr_limits; i < nr; i++)
			v[i] = (struct CMUnitTest){.name = v[i].name,
						   .test_func = harness_no_limits};
	return _cmocka_run_group_tests(name, v, nr, NULL, NULL);
}

int harness_setup(void **state)
{
	struct harness *h = xcalloc(1, sizeof(*h));

	harness_backend_start(h);
	snprintf(h->share, sizeof(h->share), "root");
	h->client = harness_backend_client(h);
	assert_non_null(h->client);
	*state = h;
	return 0;
}

static void harness_end_stream(struct harness_stream *s)
{
	loop_watch_remove(s->watch);
	s->watch = NULL;
	cleanup_closep(&s->fd);
	s->eof = true;
}

void harness_end_streams(struct harness *h)
{
	for (size_t i = 0; i < h->nr_streams; i++) {
		harness_end_stream(&h->streams[i]);
		buf_done(&h->streams[i].data);
	}
	h->nr_streams = 0;
}

int harness_teardown(void **state)
{
	struct harness *h = *state;

	harness_end_streams(h);
	harness_backend_stop(h);
	free(h);
	return 0;
}

/* ---- calls ---- */

static void harness_on_answer(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct harness_answer *a = ctx;

	a->done = true;
	a->code = code;
	snprintf(a->msg, sizeof(a->msg), "%s", message ? message : "");
	if (response && a->type) {
		size_t len = protobuf_c_message_get_packed_size(response);
		cleanup_free uint8_t *data = xmalloc(len);

		protobuf_c_message_pack(response, data);
		a->response = protobuf_c_message_unpack(a->type, NULL, len, data);
	}
}

void harness_begin(struct harness *h, struct harness_answer *a, const char *method,
		   const void *request, const ProtobufCMessageDescriptor *response)
{
	struct rpc_request req = {.service = "harpoon.agent.v1.Agent",
				  .method = method,
				  .request = request,
				  .response = response};

	*a = (struct harness_answer){.type = response};
	assert_int_equal(rpc_client_call(h->client, &req, harness_on_answer, a), 0);
}

void harness_finish(struct harness *h, struct harness_answer *a)
{
	uint64_t end = util_now_ns() + HARNESS_PATIENCE_NS;

	while (!a->done) {
		assert_int_equal(loop_run_once(h->loop, 1000), 0);
		if (util_now_ns() > end)
			fail_msg("no answer in time");
	}
}

void harness_call(struct harness *h, struct harness_answer *a, const char *method,
		  const void *request, const ProtobufCMessageDescriptor *response)
{
	harness_begin(h, a, method, request, response);
	harness_finish(h, a);
}

void harness_answer_done(struct harness_answer *a)
{
	if (a->response)
		protobuf_c_message_free_unpacked(a->response, NULL);
	a->response = NULL;
}

void harness_ref(struct harness *h, struct harness_answer *a, const char *method, const char *id,
		 const char *exec_id)
{
	AGENT_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	const ProtobufCMessageDescriptor *type = &harpoon__agent__v1__empty__descriptor;

	if (!strcmp(method, "Wait"))
		type = &harpoon__agent__v1__wait_response__descriptor;
	if (!strcmp(method, "Start"))
		type = &harpoon__agent__v1__start_response__descriptor;
	if (!strcmp(method, "Pids"))
		type = &harpoon__agent__v1__pids_response__descriptor;
	if (!strcmp(method, "Stats"))
		type = &harpoon__agent__v1__stats_response__descriptor;
	ref.id = (char *)id;
	ref.exec_id = (char *)exec_id;
	harness_call(h, a, method, &ref, type);
}

/* ---- streams ---- */

static void harness_on_output(void *ctx, uint32_t events)
{
	struct harness_stream *s = ctx;
	uint8_t chunk[65536];
	ssize_t n = read(s->fd, chunk, sizeof(chunk));

	if (n > 0)
		assert_int_equal(buf_append(&s->data, chunk, (size_t)n), 0);
	else if (!n || errno != EAGAIN)
		harness_end_stream(s);
}

static void harness_on_input(void *ctx, uint32_t events)
{
	struct harness_stream *s = ctx;
	ssize_t n = s->data.len ? write(s->fd, buf_head(&s->data), s->data.len) : 0;

	if (n > 0)
		buf_consume(&s->data, (size_t)n);
	if (!s->data.len || (n < 0 && errno != EAGAIN))
		harness_end_stream(s);
}

static struct harness_stream *harness_add_stream(struct harness *h, bool is_input)
{
	/* Numbers are not used again: a shared guest may still be ending an earlier test's. */
	static uint32_t next_id = MUX_STREAM_FIRST_FREE;
	struct harness_stream *s = &h->streams[h->nr_streams++];
	int fds[2];

	assert_true(h->nr_streams <= ARRAY_SIZE(h->streams));
	assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	*s = (struct harness_stream){.h = h, .id = next_id++, .fd = fds[is_input ? 1 : 0]};
	buf_init(&s->data, HARNESS_OUTPUT_MAX);
	harness_backend_attach(h, s->id, is_input ? fds[0] : -1, is_input ? -1 : fds[1]);
	s->watch = loop_watch_add(h->loop, s->fd, is_input ? EPOLLOUT : EPOLLIN,
				  is_input ? harness_on_input : harness_on_output, s);
	assert_non_null(s->watch);
	return s;
}

struct harness_stream *harness_output(struct harness *h)
{
	return harness_add_stream(h, false);
}

struct harness_stream *harness_input(struct harness *h, const void *data, size_t len)
{
	struct harness_stream *s = harness_add_stream(h, true);

	assert_int_equal(buf_append(&s->data, data, len), 0);
	return s;
}

void harness_drain(struct harness *h, struct harness_stream *s)
{
	uint64_t end = util_now_ns() + HARNESS_PATIENCE_NS;

	while (!s->eof) {
		assert_int_equal(loop_run_once(h->loop, 1000), 0);
		if (util_now_ns() > end)
			fail_msg("stream %u has no end", s->id);
	}
}

char *harness_text(struct harness_stream *s)
{
	return xstrndup(s->data.len ? (const char *)buf_head(&s->data) : "", s->data.len);
}

void harness_run_until(struct harness *h, struct harness_stream *s, const char *text)
{
	uint64_t end = util_now_ns() + HARNESS_PATIENCE_NS;

	for (;;) {
		cleanup_free char *have = harness_text(s);

		if (strstr(have, text))
			return;
		if (s->eof || util_now_ns() > end)
			fail_msg("stream %u: '%s' never came, have '%s'", s->id, text, have);
		assert_int_equal(loop_run_once(h->loop, 1000), 0);
	}
}

/* ---- containers ---- */

void harness_add_mount(struct harness_request *r, const char *dst, const char *type,
		       const char *src, uint64_t flags, const char *data)
{
	AGENT_PB(Mount) *m = &r->mount[r->create.n_mounts];

	assert_true(r->create.n_mounts < ARRAY_SIZE(r->mount));
	harpoon__agent__v1__mount__init(m);
	m->destination = (char *)dst;
	m->type = (char *)type;
	m->source = (char *)src;
	m->flags = flags;
	m->data = (char *)data;
	r->mounts[r->create.n_mounts++] = m;
}

void harness_request_init(struct harness_request *r, const char *script)
{
	*r = (struct harness_request){0};
	harpoon__agent__v1__create_container_request__init(&r->create);
	harpoon__agent__v1__process__init(&r->process);
	harpoon__agent__v1__user__init(&r->user);
	r->args[0] = "/bin/sh";
	r->args[1] = "-c";
	r->args[2] = (char *)script;
	r->env[0] = "PATH=/usr/bin:/bin";
	r->process.args = r->args;
	r->process.n_args = 3;
	r->process.env = r->env;
	r->process.n_env = 1;
	r->process.cwd = "/";
	r->process.user = &r->user;
	r->create.id = "c1";
	r->create.root_share = "root";
	r->create.process = &r->process;
	r->create.mounts = r->mounts;
	r->create.namespaces =
		CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
	harness_add_mount(r, "/proc", "proc", "proc", 0, "");
	harness_add_mount(r, "/dev", "tmpfs", "tmpfs", 2 /* nosuid */, "mode=755,size=65536k");
	harness_add_mount(r, "/dev/pts", "devpts", "devpts", 2 | 8,
			  "newinstance,ptmxmode=0666,mode=0620,gid=5");
}

void harness_run(struct harness *h, struct harness_request *r, struct harness_result *ret)
{
	struct harness_stream *out = harness_output(h), *err = harness_output(h);
	struct harness_answer a;

	*ret = (struct harness_result){0};
	if (!strcmp(r->create.root_share, "root"))
		r->create.root_share = h->share;
	r->process.stdout_stream = out->id;
	r->process.stderr_stream = r->process.terminal ? 0 : err->id;
	harness_call(h, &ret->create, "CreateContainer", &r->create,
		     &harpoon__agent__v1__create_container_response__descriptor);
	if (ret->create.code != RPC_OK)
		return;
	harness_ref(h, &ret->start, "Start", r->create.id, "");
	harness_ref(h, &a, "Wait", r->create.id, "");
	assert_int_equal(a.code, RPC_OK);
	ret->status = ((AGENT_PB(WaitResponse) *)a.response)->exit_status;
	harness_answer_done(&a);
	harness_drain(h, out);
	if (!r->process.terminal)
		harness_drain(h, err);
	ret->out = harness_text(out);
	ret->err = harness_text(err);
	harness_ref(h, &a, "Delete", r->create.id, "");
	assert_int_equal(a.code, RPC_OK);
	harness_answer_done(&a);
}

void harness_result_done(struct harness_result *r)
{
	harness_answer_done(&r->create);
	harness_answer_done(&r->start);
	free(r->out);
	free(r->err);
}

void harness_must_ref(struct harness *h, const char *method, const char *id, const char *exec_id)
{
	struct harness_answer a;

	harness_ref(h, &a, method, id, exec_id);
	assert_string_equal(a.msg, "");
	assert_int_equal(a.code, RPC_OK);
	harness_answer_done(&a);
}

char *harness_script(struct harness *h, const char *script)
{
	struct harness_request r;
	struct harness_result res;
	char *out;

	harness_request_init(&r, script);
	harness_run(h, &r, &res);
	if (res.create.code != RPC_OK || res.start.code != RPC_OK || res.status)
		fail_msg("%s: create '%s', start '%s', status %u, stderr '%s'", script,
			 res.create.msg, res.start.msg, res.status, res.err ? res.err : "");
	out = take_ptr(&res.out);
	harness_result_done(&res);
	return out;
}
