/*
 * Fuzz entry: frames that a ttrpc client gets from its server (for the shim: from inside a guest). First
 * byte: how many bytes at a time. Calls are waiting on streams 1, 3, 5 and 7, each for another message.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "loop.h"
#include "rpc.h"

#define ROUNDS_AFTER 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void on_answer(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		      const char *message)
{
	int *n = ctx;

	/* What every caller relies on: told once, a text always, a known code. */
	if (++*n != 1 || !message || code > RPC_UNAUTHENTICATED || (code && response))
		abort();
}

static void on_closed(void *ctx)
{
	*(bool *)ctx = true;
}

static void header_round_trip(const uint8_t *data)
{
	struct rpc_frame_header h;
	uint8_t back[RPC_HEADER_LEN];

	rpc_frame_header_decode(data, &h);
	rpc_frame_header_encode(&h, back);
	if (memcmp(data, back, sizeof(back)) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const ProtobufCMessageDescriptor *const types[] = {
		&harpoon__agent__v1__wait_response__descriptor,
		&harpoon__agent__v1__stats_response__descriptor,
		&harpoon__agent__v1__pids_response__descriptor,
		NULL,
	};
	int sv[2], answered[ARRAY_SIZE(types)] = {0};
	Harpoon__Agent__V1__Empty empty = HARPOON__AGENT__V1__EMPTY__INIT;
	struct loop *loop = loop_new();
	struct rpc_client *client;
	bool closed = false;
	size_t step;

	if (!size || !loop || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv)) {
		loop_free(loop);
		return 0;
	}
	client = rpc_client_new(loop, sv[0], on_closed, &closed);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct rpc_request req = {.service = "S",
					  .method = "M",
					  .request = &empty.base,
					  .response = types[i]};

		rpc_client_call(client, &req, on_answer, &answered[i]);
	}
	step = (size_t)data[0] * 64 + 1;
	data++;
	size--;
	if (size >= RPC_HEADER_LEN)
		header_round_trip(data);
	while (size && !closed) {
		ssize_t n = send(sv[1], data, MIN(step, size), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0) {
			data += n;
			size -= (size_t)n;
		}
		loop_run_once(loop, 0);
	}
	close(sv[1]);
	for (int i = 0; i < ROUNDS_AFTER; i++)
		loop_run_once(loop, 0);
	rpc_client_free(client);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (answered[i] != 1)
			abort();
	loop_free(loop);
	return 0;
}
