/*
 * Pause and Resume; see container.h.
 *
 * Pausing stops the whole VM, so the agent cannot be asked anything then. Two things make that invisible to
 * clients: the statistics of the moment before are kept (nothing changes them while nothing runs), and
 * signals and limits that arrive meanwhile are held and sent on Resume, in order. A frozen process of a runc
 * container sees its signals at the same moment.
 */
#include <errno.h>
#include <string.h>

#include "cleanup.h"
#include "container.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "stats.h"
#include "util.h"
#include "vmreq.h"

#define PAUSE_HELD_MAX 256
/* A guest that does not answer is paused all the same. */
#define PAUSE_STATS_LIMIT_NS 500000000ull

struct pause_held {
	struct list link;
	enum agent_method method;
	const ProtobufCMessageDescriptor *type;
	size_t len;
	uint8_t data[]; /* the packed request */
};

bool container_hold(struct container *c, enum agent_method method, const ProtobufCMessage *request)
{
	size_t len = protobuf_c_message_get_packed_size(request);
	struct pause_held *h;

	if (c->nr_held >= PAUSE_HELD_MAX)
		return false;
	h = xmalloc(sizeof(*h) + len);
	*h = (struct pause_held){.method = method, .type = request->descriptor, .len = len};
	protobuf_c_message_pack(request, h->data);
	list_append(&c->held, &h->link);
	c->nr_held++;
	return true;
}

static void pause_drop(struct container *c, struct pause_held *h)
{
	list_remove(&h->link);
	free(h);
	c->nr_held--;
}

void pause_forget(struct container *c)
{
	struct pause_held *h;

	list_for_each (h, &c->held, link)
		pause_drop(c, h);
	free(take_ptr(&c->metrics));
}

static void pause_held_sent(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			    const char *message)
{
	if (code != RPC_OK)
		log_warn("shim", "request held during pause: %s", message ? message : "not sent");
}

static void pause_send_held(struct container *c)
{
	struct pause_held *h;

	list_for_each (h, &c->held, link) {
		ProtobufCMessage *m = protobuf_c_message_unpack(h->type, NULL, h->len, h->data);

		if (m)
			agent_client_call(c->agent, h->method, m, container_call_timeout_ns(c),
					  pause_held_sent, NULL);
		protobuf_c_message_free_unpacked(m, NULL);
		pause_drop(c, h);
	}
}

static void pause_publish(struct container *c, const char *topic, const char *name)
{
	Ctrd__TaskNotice e = CTRD__TASK_NOTICE__INIT;

	e.container_id = c->id;
	container_publish(c, topic, name, &e.base);
}

static void pause_failed(struct container *c, enum rpc_code code, const char *message)
{
	struct rpc_call *call = take_ptr(&c->pause_call);

	pause_forget(c);
	if (call)
		rpc_fail(call, code, "%s", message);
}

static bool pause_is_too_late(const struct container *c)
{
	return c->phase != CONTAINER_LIVE || c->init.has_exited;
}

/* Not earlier is it answered: nothing of the container runs any more. */
static void pause_stopped(void *ctx, const char *error)
{
	struct container *c = ctx;

	if (error || pause_is_too_late(c)) {
		pause_failed(c, RPC_UNKNOWN, error ? error : "cannot pause a stopped container");
		return;
	}
	c->init.state = TASK_PAUSED;
	pause_publish(c, "/tasks/paused", "TaskPaused");
	rpc_reply_empty(take_ptr(&c->pause_call));
}

static void pause_now(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		      const char *message)
{
	struct container *c = ctx;
	struct err err = {0};

	if (pause_is_too_late(c) || code == RPC_UNAVAILABLE || code == RPC_CANCELED) {
		pause_failed(c, RPC_UNKNOWN, "cannot pause a stopped container");
		return;
	}
	if (code == RPC_OK)
		c->metrics = stats_pack((const void *)response, c->cgroup, &c->metrics_len);
	if (hv_vm_pause(c->vm, pause_stopped, c, &err))
		pause_failed(c, rpc_code_from_errno(err.code), err.msg);
}

void container_pause(struct container *c, struct rpc_call *call)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;

	if (!process_check(&c->init, TASK_OP_PAUSE, call))
		return;
	if (c->phase != CONTAINER_LIVE || c->init.has_exited) {
		rpc_fail(call, RPC_UNKNOWN, "cannot pause a stopped container");
		return;
	}
	if (c->pause_call) {
		rpc_fail(call, RPC_UNKNOWN, "cannot pause a paused container");
		return;
	}
	if (c->checkpoint) {
		rpc_fail(call, RPC_UNKNOWN, "cannot pause a container that is being checkpointed");
		return;
	}
	c->pause_call = call;
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_STATS, &ref.base, PAUSE_STATS_LIMIT_NS, pause_now, c);
}

static void pause_thaw(struct container *c)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;

	c->is_frozen = false;
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_THAW, &ref.base, container_call_timeout_ns(c),
			  pause_held_sent, NULL);
}

int container_thaw(struct container *c, struct err *err)
{
	int r = hv_vm_resume(c->vm, err);

	if (r)
		return r;
	c->init.state = TASK_RUNNING;
	/* It stood still with the VM. */
	clock_set(c, NULL);
	/* A checkpoint was made meanwhile. */
	if (c->is_frozen)
		pause_thaw(c);
	pause_send_held(c);
	pause_forget(c);
	return 0;
}

void container_resume(struct container *c, struct rpc_call *call)
{
	struct err err = {0};

	if (!process_check(&c->init, TASK_OP_RESUME, call))
		return;
	if (c->checkpoint) {
		rpc_fail(call, RPC_UNKNOWN, "cannot resume a container that is being checkpointed");
		return;
	}
	if (container_thaw(c, &err)) {
		rpc_fail_err(call, &err);
		return;
	}
	pause_publish(c, "/tasks/resumed", "TaskResumed");
	rpc_reply_empty(call);
}
