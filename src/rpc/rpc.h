/*
 * ttrpc in C: containerd's light RPC over any stream socket. Unary calls only (what the Task API and
 * our agent need); frames, limits and error codes as in containerd/ttrpc PROTOCOL.md.
 *
 * Threads: everything on the loop's thread. Messages are protobuf-c messages.
 *
 * Errors travel as a gRPC code and one sentence. rpc_code_from_errno() maps a negative errno.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "loop.h"

/* Largest payload of one frame (ttrpc channel.go messageLengthMax). */
#define RPC_MESSAGE_MAX (4u << 20)
#define RPC_HEADER_LEN 10
/*
 * Limits of a server: connections; calls not yet answered on one connection, bytes of their requests,
 * and calls not yet answered in all (those of closed connections included); bytes queued for a peer that
 * does not read (a client's too). Over these, connections are closed and calls get RESOURCE_EXHAUSTED.
 */
#define RPC_CONNS_MAX 512
#define RPC_CALLS_MAX 1024
#define RPC_CALL_BYTES_MAX ((size_t)32 << 20)
#define RPC_SERVER_CALLS_MAX 16384
#define RPC_OUT_MAX ((size_t)16 << 20)

/* gRPC status codes (google.rpc.Code). */
enum rpc_code {
	RPC_OK = 0,
	RPC_CANCELED = 1,
	RPC_UNKNOWN = 2,
	RPC_INVALID_ARGUMENT = 3,
	RPC_DEADLINE_EXCEEDED = 4,
	RPC_NOT_FOUND = 5,
	RPC_ALREADY_EXISTS = 6,
	RPC_PERMISSION_DENIED = 7,
	RPC_RESOURCE_EXHAUSTED = 8,
	RPC_FAILED_PRECONDITION = 9,
	RPC_ABORTED = 10,
	RPC_OUT_OF_RANGE = 11,
	RPC_UNIMPLEMENTED = 12,
	RPC_INTERNAL = 13,
	RPC_UNAVAILABLE = 14,
	RPC_DATA_LOSS = 15,
	RPC_UNAUTHENTICATED = 16,
};

enum rpc_code rpc_code_from_errno(int err);
/* The nearest negative errno for a code from a peer (unknown codes: -EIO; RPC_OK: 0). */
int rpc_code_to_errno(uint32_t code);

/* ---- frames (pure; also what the fuzz targets drive) ---- */

enum rpc_frame_type { RPC_FRAME_REQUEST = 1, RPC_FRAME_RESPONSE = 2, RPC_FRAME_DATA = 3 };

struct rpc_frame_header {
	uint32_t len; /* payload bytes, header not counted */
	uint32_t stream;
	uint8_t type;
	uint8_t flags;
};
void rpc_frame_header_decode(const uint8_t in[RPC_HEADER_LEN], struct rpc_frame_header *ret);
void rpc_frame_header_encode(const struct rpc_frame_header *h, uint8_t out[RPC_HEADER_LEN]);

/* ---- server ---- */

struct rpc_server;
struct rpc_call;

/*
 * A method: `request` is already unpacked with `in` and lives until the call is answered. The handler
 * answers exactly once, now or later, with rpc_reply() or rpc_fail(). A call whose connection is gone is
 * still answered by its handler; the answer then goes nowhere.
 */
typedef void (*rpc_handler)(struct rpc_call *call, const ProtobufCMessage *request, void *ctx);

struct rpc_method {
	const char *name;
	const ProtobufCMessageDescriptor *in;
	const ProtobufCMessageDescriptor *out; /* checked by rpc_reply (assert) */
	rpc_handler fn;
};

struct rpc_service {
	const char *name; /* "containerd.task.v2.Task" */
	const struct rpc_method *methods;
	size_t nr_methods;
};

/* services: static storage. Unknown ones are answered Unimplemented. */
struct rpc_server *rpc_server_new(struct loop *loop, const struct rpc_service *const *services,
				  size_t nr_services, void *ctx);
/* Closes every connection. Calls not yet answered stay valid for their handlers and answer nobody. */
void rpc_server_free(struct rpc_server *s);
/* Accepts on a listening unix socket (owned from here on); peers of another uid than ours are refused. */
int rpc_server_listen(struct rpc_server *s, int listen_fd, struct err *err);
/* Serves one connected stream socket (owned from here on, also on failure). */
int rpc_server_add_conn(struct rpc_server *s, int fd, struct err *err);
/* How many peers are connected. */
unsigned int rpc_server_nr_conns(const struct rpc_server *s);
/* Calls fn once every queued answer has been written (or its connection died). */
void rpc_server_flush(struct rpc_server *s, loop_fn fn, void *ctx);

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *response);
/* An empty message as answer (google.protobuf.Empty). */
void rpc_reply_empty(struct rpc_call *call);
void rpc_fail(struct rpc_call *call, enum rpc_code code, const char *fmt, ...) HARPOON_PRINTF(3, 4);
/* rpc_fail() with the code that fits err->code and the text of err. */
void rpc_fail_err(struct rpc_call *call, const struct err *err);
/* Time the client gave, absolute CLOCK_MONOTONIC ns; 0 = none. */
uint64_t rpc_call_deadline_ns(const struct rpc_call *call);
/* Value of a metadata key (case does not matter), NULL when absent. Valid until answered. */
const char *rpc_call_metadata(const struct rpc_call *call, const char *key);

/* ---- client ---- */

struct rpc_client;

/*
 * The answer: response unpacked (NULL on error, owned by the library, valid during the callback), or
 * code and message. A broken connection answers every pending call with RPC_UNAVAILABLE ("ttrpc: closed").
 */
typedef void (*rpc_done)(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			 const char *message);

struct rpc_request {
	const char *service;
	const char *method;
	const ProtobufCMessage *request;
	const ProtobufCMessageDescriptor *response; /* what to unpack; NULL = ignore the payload */
	uint64_t timeout_ns;			    /* 0 = none; over: RPC_DEADLINE_EXCEEDED */
	const char *namespace_; /* metadata containerd-namespace-ttrpc, NULL = none */
};

/* fd: connected stream socket, owned from here on, also on failure (NULL, errno set). on_closed (may be
 * NULL) is called once when the connection ends, after all pending calls were answered; not for
 * rpc_client_free(). Callbacks may call anything here, rpc_client_free() included. */
struct rpc_client *rpc_client_new(struct loop *loop, int fd, loop_fn on_closed, void *ctx);
/* Answers pending calls with RPC_CANCELED (their callbacks run), closes. Accepts NULL. */
void rpc_client_free(struct rpc_client *c);
/* 0 = sent or queued, done will be called exactly once, never from inside this function;
 * -EMSGSIZE / -EPIPE: not sent, done is not called. A message handed to done is cut to 1 KiB and valid
 * UTF-8 whatever the peer sent; it may still hold control characters. */
int rpc_client_call(struct rpc_client *c, const struct rpc_request *req, rpc_done done, void *ctx);
