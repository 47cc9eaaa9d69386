/*
 * TaskOOM: one event for each time the guest's kernel has killed processes of the container for want of memory,
 * whether or not the container ends with it.
 *
 * The agent's WaitOom is pending as long as the VM lives. How often it is answered is up to the guest, so the
 * events are bounded: no more than one in OOM_PAUSE_NS; what happens in between is told by the next one.
 */
#include "container.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "vmreq.h"

#define OOM_PAUSE_NS 1000000000ull

void oom_report(struct container *c, uint64_t kills)
{
	Ctrd__TaskNotice e = CTRD__TASK_NOTICE__INIT;

	if (kills <= c->oom_kills)
		return;
	c->oom_kills = kills;
	e.container_id = c->id;
	container_publish(c, "/tasks/oom", "TaskOOM", &e.base);
}

static void oom_told(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		     const char *message)
{
	struct container *c = ctx;

	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		return;
	if (code != RPC_OK) {
		log_warn("shim", "out-of-memory events are not told any more: %s", message);
		return;
	}
	if (!c->init.exit_is_public)
		oom_report(c,
			   ((const VMREQ_PB(WaitOomResponse) *)(const void *)response)->oom_kills);
	loop_timer_arm(c->shim->loop, &c->oom_timer, OOM_PAUSE_NS, oom_watch, c);
}

void oom_watch(void *ctx)
{
	struct container *c = ctx;
	VMREQ_PB(WaitOomRequest) req = HARPOON__AGENT__V1__WAIT_OOM_REQUEST__INIT;

	if (!c->agent)
		return;
	req.id = c->id;
	req.seen = c->oom_kills;
	agent_client_call(c->agent, AGENT_WAIT_OOM, &req.base, 0, oom_told, c);
}
