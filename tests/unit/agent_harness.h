/*
 * Drives the agent as the shim does: ttrpc and streams. Where the agent runs is the back-end's affair:
 *
 *   agent_harness_local.c  in this process: its real code sets up containers in fresh namespaces of this
 *                          host. Needs root and cgroup v2. With HARPOON_AGENT_SPARE in the environment as a
 *                          clone's, with a process forked ahead.
 *   agent_harness_vm.c     in a virtual machine, which all tests of a program share.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent_pb.h"
#include "buf.h"
#include "loop.h"
#include "mux.h"
#include "rpc.h"

#define HARNESS_OUTPUT_MAX (8u << 20)

/* One stream's end on the shim's side. */
struct harness_stream {
	struct harness *h;
	uint32_t id;
	int fd; /* -1 = at its end */
	struct loop_watch *watch;
	struct buf data; /* output: received; input: still to send */
	bool eof;
};

struct harness {
	struct loop *loop;
	char base[64];	/* temporary folder */
	char root[96];	/* a busybox tree, the root of containers */
	char share[16]; /* its name */
	char fs[80];
	char cgroup[256]; /* the agent's; local back-end only */
	struct rpc_client *client;
	void *backend;
	struct harness_stream streams[16];
	size_t nr_streams;
};

struct harness_answer {
	bool done;
	enum rpc_code code;
	char msg[600];
	ProtobufCMessage *response; /* owned */
	const ProtobufCMessageDescriptor *type;
};

/* A process that ran to its end. */
struct harness_result {
	struct harness_answer create, start;
	uint32_t status;
	char *out, *err; /* owned */
};

/* ---- back-end ---- */

/* False when this host cannot, with the reason. */
bool harness_backend_check(const char **ret_why);
/* Whether cgroup v2 has the memory and pids controllers. */
bool harness_backend_has_limits(void);
/* Fills in loop, base and backend. */
void harness_backend_start(struct harness *h);
/* Calls the agent; the back-end's, also to free. */
struct rpc_client *harness_backend_client(struct harness *h);
void harness_backend_attach(struct harness *h, uint32_t id, int rfd, int wfd);
/* The folder or file base/fs/NAME becomes a share. */
void harness_backend_share(struct harness *h, const char *name);
/* Everything of the test is gone; frees what start made. */
void harness_backend_stop(struct harness *h);

/* ---- fixtures ---- */

/*
 * Runs the tests, the last nr_limits of them only where limits can be set; a program's main. Says that
 * all is skipped where the back-end cannot run.
 */
int harness_main(const char *name, const struct CMUnitTest *tests, size_t nr, size_t nr_limits);

/* cmocka fixtures; *state is the harness. */
int harness_setup(void **state);
int harness_teardown(void **state);
#define HARNESS_TEST(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)
static inline struct harness *harness_of(void **state)
{
	return *state;
}

void harness_begin(struct harness *h, struct harness_answer *a, const char *method,
		   const void *request, const ProtobufCMessageDescriptor *response);
void harness_finish(struct harness *h, struct harness_answer *a);
void harness_call(struct harness *h, struct harness_answer *a, const char *method,
		  const void *request, const ProtobufCMessageDescriptor *response);
void harness_answer_done(struct harness_answer *a);
/* Calls with a ProcessRef. */
void harness_ref(struct harness *h, struct harness_answer *a, const char *method, const char *id,
		 const char *exec_id);
/* One that succeeds. */
void harness_must_ref(struct harness *h, const char *method, const char *id, const char *exec_id);

struct harness_stream *harness_output(struct harness *h);
struct harness_stream *harness_input(struct harness *h, const void *data, size_t len);
void harness_drain(struct harness *h, struct harness_stream *s);
/* The stream's bytes so far, NUL-terminated, new. */
char *harness_text(struct harness_stream *s);
/* Ends all streams of the test so far, for tests with many containers. */
void harness_end_streams(struct harness *h);
void harness_run_until(struct harness *h, struct harness_stream *s, const char *text);

/* A request with args {"/bin/sh", "-c", script}; the caller fills in more. Static storage, reset here. */
struct harness_request {
	AGENT_PB(CreateContainerRequest) create;
	AGENT_PB(Process) process;
	AGENT_PB(User) user;
	AGENT_PB(Mount) mount[8], *mounts[8];
	char *args[8], *env[8];
};
void harness_request_init(struct harness_request *r, const char *script);
void harness_add_mount(struct harness_request *r, const char *dst, const char *type,
		       const char *src, uint64_t flags, const char *data);
/* Create, start, wait, drain, delete. */
void harness_run(struct harness *h, struct harness_request *r, struct harness_result *ret);
void harness_result_done(struct harness_result *r);
/* Runs `script` in a default container and expects success; its stdout, new. */
char *harness_script(struct harness *h, const char *script);

/* A new share, a folder or an empty file; its path. */
const char *harness_volume(struct harness *h, const char *name, bool is_dir);
void harness_make_tree(struct harness *h);
/*
 * A fresh copy of the tree becomes the root of containers: a guest may remember names of the old one,
 * so a test that changes the image behind its back takes a new one each time.
 */
void harness_new_root(struct harness *h);
void harness_write_file(const struct harness *h, const char *path, const char *text);
