/*
 * Agent client; see agent_client.h. The ttrpc client wants a descriptor and the VM offers streams between
 * descriptors, so a socket pair joins them: one end is the client's, the other the stream's.
 */
#include "agent_client.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "mux.h"
#include "util.h"

#define AGENT_SERVICE "harpoon.agent.v1.Agent"

static const struct {
	const char *name;
	const ProtobufCMessageDescriptor *response; /* NULL = nothing to know */
} agent_methods[] = {
	[AGENT_CONFIGURE] = {"Configure", NULL},
	[AGENT_CLOCK] = {"Clock", &harpoon__agent__v1__clock_response__descriptor},
	[AGENT_NETWORK] = {"Network", NULL},
	[AGENT_CREATE_CONTAINER] = {"CreateContainer",
				    &harpoon__agent__v1__create_container_response__descriptor},
	[AGENT_LISTEN] = {"Listen", NULL},
	[AGENT_ACCEPT] = {"Accept", &harpoon__agent__v1__accept_response__descriptor},
	[AGENT_LISTENERS] = {"Listeners", &harpoon__agent__v1__listeners_response__descriptor},
	[AGENT_CONNECT] = {"Connect", NULL},
	[AGENT_EXEC] = {"Exec", NULL},
	[AGENT_START] = {"Start", &harpoon__agent__v1__start_response__descriptor},
	[AGENT_SIGNAL] = {"Signal", NULL},
	[AGENT_WAIT] = {"Wait", &harpoon__agent__v1__wait_response__descriptor},
	[AGENT_RESIZE] = {"Resize", NULL},
	[AGENT_PIDS] = {"Pids", &harpoon__agent__v1__pids_response__descriptor},
	[AGENT_WAIT_OOM] = {"WaitOom", &harpoon__agent__v1__wait_oom_response__descriptor},
	[AGENT_STATS] = {"Stats", &harpoon__agent__v1__stats_response__descriptor},
	[AGENT_UPDATE] = {"Update", NULL},
	[AGENT_FREEZE] = {"Freeze", NULL},
	[AGENT_THAW] = {"Thaw", NULL},
	[AGENT_ADOPT] = {"Adopt", &harpoon__agent__v1__start_response__descriptor},
	[AGENT_DELETE] = {"Delete", NULL},
};
static_assert(ARRAY_SIZE(agent_methods) == AGENT_METHOD_MAX, "a name for every method");

/* A call that could not be sent, waiting for the loop to say so. */
struct agent_failed {
	struct list link;
	struct loop_timer timer;
	enum rpc_code code;
	const char *why;
	rpc_done done;
	void *ctx;
};

struct agent_client {
	struct loop *loop;
	struct rpc_client *rpc;
	struct list failed;
};

int agent_client_new(struct loop *loop, struct hv_vm *vm, loop_fn on_lost, void *ctx,
		     struct agent_client **ret, struct err *err)
{
	struct agent_client *a;
	int sv[2], peer, r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return err_set(err, -errno, "socket pair for the agent");
	/* The stream owns its descriptor in both directions, also when attaching fails. */
	peer = sv[1];
	r = hv_vm_attach_stream(vm, MUX_STREAM_RPC, peer, peer, NULL, NULL, NULL, err);
	if (r) {
		close(sv[0]);
		return r;
	}
	a = xcalloc(1, sizeof(*a));
	a->loop = loop;
	list_init(&a->failed);
	a->rpc = rpc_client_new(loop, sv[0], on_lost, ctx);
	if (!a->rpc) {
		r = err_set(err, -errno, "client for the agent");
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

static void agent_fail_now(void *ctx)
{
	struct agent_failed *f = ctx;
	struct agent_failed copy = *f;

	list_remove(&f->link);
	free(f);
	copy.done(copy.ctx, NULL, copy.code, copy.why);
}

void agent_client_free(struct agent_client *a)
{
	struct agent_failed *f;

	if (!a)
		return;
	list_for_each (f, &a->failed, link) {
		loop_timer_cancel(&f->timer);
		agent_fail_now(f);
	}
	rpc_client_free(a->rpc);
	free(a);
}

void agent_client_call(struct agent_client *a, enum agent_method method,
		       const ProtobufCMessage *request, uint64_t timeout_ns, rpc_done done,
		       void *ctx)
{
	struct rpc_request req = {.service = AGENT_SERVICE,
				  .method = agent_methods[method].name,
				  .request = request,
				  .response = agent_methods[method].response,
				  .timeout_ns = timeout_ns};
	struct agent_failed *f;
	int r = rpc_client_call(a->rpc, &req, done, ctx);

	if (!r)
		return;
	f = xcalloc(1, sizeof(*f));
	f->code = r == -EMSGSIZE ? RPC_RESOURCE_EXHAUSTED : RPC_UNAVAILABLE;
	f->why = r == -EMSGSIZE ? "request is larger than 4 MiB" : "the VM is gone";
	f->done = done;
	f->ctx = ctx;
	list_append(&a->failed, &f->link);
	loop_timer_arm(a->loop, &f->timer, 0, agent_fail_now, f);
}
