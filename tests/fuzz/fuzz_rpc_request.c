/*
 * Fuzz entry: a ttrpc server is sent these bytes. First byte: how many bytes at a time. One method
 * answers at once, one when the connection is gone, one with an error that quotes the request.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "loop.h"
#include "rpc.h"

#define ROUNDS_AFTER 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz {
	struct loop *loop;
	struct rpc_server *server;
	struct rpc_call *held[RPC_CALLS_MAX];
	size_t nr_held;
};

static void handle_now(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	rpc_call_metadata(call, "containerd-namespace-ttrpc");
	rpc_reply(call, request);
}

static void handle_later(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	struct fuzz *f = ctx;

	f->held[f->nr_held++] = call;
}

static void handle_fail(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const Harpoon__Agent__V1__ExecRequest *r = (const Harpoon__Agent__V1__ExecRequest *)request;

	rpc_fail(call, RPC_NOT_FOUND, "no %s in %s", r->exec_id, r->id);
}

#define TYPE &harpoon__agent__v1__create_container_request__descriptor
static const struct rpc_method methods[] = {
	{.name = "Now", .in = TYPE, .out = TYPE, .fn = handle_now},
	{.name = "Later", .in = TYPE, .out = TYPE, .fn = handle_later},
	{.name = "Fail",
	 .in = &harpoon__agent__v1__exec_request__descriptor,
	 .out = TYPE,
	 .fn = handle_fail},
};
static const struct rpc_service service = {
	.name = "S", .methods = methods, .nr_methods = ARRAY_SIZE(methods)};
static const struct rpc_service *const services[] = {&service};

static bool drain(int fd)
{
	char buf[65536];
	ssize_t n;

	do
		n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
	while (n > 0);
	return n < 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz f = {.loop = loop_new()};
	bool open = true;
	size_t step;
	int sv[2];

	if (!size || !f.loop || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv)) {
		loop_free(f.loop);
		return 0;
	}
	f.server = rpc_server_new(f.loop, services, 1, &f);
	rpc_server_add_conn(f.server, sv[0], NULL);
	step = (size_t)data[0] * 64 + 1;
	data++;
	size--;
	while (size && open) {
		ssize_t n = send(sv[1], data, MIN(step, size), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0) {
			data += n;
			size -= (size_t)n;
		}
		loop_run_once(f.loop, 0);
		open = drain(sv[1]);
	}
	close(sv[1]);
	for (int i = 0; i < ROUNDS_AFTER; i++)
		loop_run_once(f.loop, 0);
	for (size_t i = 0; i < f.nr_held; i++)
		rpc_reply_empty(f.held[i]);
	rpc_server_free(f.server);
	loop_free(f.loop);
	return 0;
}
