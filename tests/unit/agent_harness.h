/*
 * Runs the agent without a virtual machine: its real code sets up containers in fresh namespaces of this
 * host, and a small shim (mux and rpc client in the same loop) drives it. Needs root and cgroup v2.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent.h"
#include "agent_pb.h"
#include "buf.h"
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
	char base[64]; /* temporary folder */
	char root[96]; /* the share "root": a busybox tree */
	char fs[80];
	char cgroup[256];
	struct agent_params params;
	struct transport *transport;
	struct agent *agent;
	struct mux *mux;
	struct rpc_client *client;
	struct harness_stream streams[16];
	size_t nr_streams;
	size_t nr_fds; /* open before set-up */
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

/* cmocka fixtures; *state is the harness, NULL when this host cannot (call harness_of() first). */
int harness_setup(void **state);
int harness_teardown(void **state);
/* Skips the test where the host lacks something. */
struct harness *harness_of(void **state);

void harness_begin(struct harness *h, struct harness_answer *a, const char *method,
		   const void *request, const ProtobufCMessageDescriptor *response);
void harness_finish(struct harness *h, struct harness_answer *a);
void harness_call(struct harness *h, struct harness_answer *a, const char *method,
		  const void *request, const ProtobufCMessageDescriptor *response);
void harness_answer_done(struct harness_answer *a);
/* Calls with a ProcessRef. */
void harness_ref(struct harness *h, struct harness_answer *a, const char *method, const char *id,
		 const char *exec_id);

struct harness_stream *harness_output(struct harness *h);
struct harness_stream *harness_input(struct harness *h, const void *data, size_t len);
void harness_drain(struct harness *h, struct harness_stream *s);
/* The stream's bytes so far, NUL-terminated, new. */
char *harness_text(struct harness_stream *s);
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

void harness_write_file(const struct harness *h, const char *path, const char *text);
