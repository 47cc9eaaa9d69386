/*
 * Task service: unpacks a request, finds the container and the process it names, hands over. Whatever can be
 * answered from memory is (State, Connect): they must not hang because a guest does.
 */
#include "service.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "container.h"
#include "containerd_task.pb-c.h"
#include "hostlimits.h"
#include "log.h"
#include "stats.h"
#include "util.h"
#include "vmreq.h"

#define SERVICE_SPEC_MAX (1u << 20)

/* ---- who is meant ---- */

static struct container *service_container(struct shim *s, const char *id, struct rpc_call *call)
{
	struct container *c = s->container;

	if (c && c->phase != CONTAINER_CREATING && !strcmp(c->id, id))
		return c;
	rpc_fail(call, RPC_NOT_FOUND, "container not created: not found");
	return NULL;
}

static struct process *service_process(struct shim *s, const char *id, const char *exec_id,
				       struct rpc_call *call)
{
	struct container *c = service_container(s, id, call);
	struct process *p = c ? container_process(c, exec_id) : NULL;

	if (c && !p)
		rpc_fail(call, RPC_NOT_FOUND, "process does not exist %s: not found", exec_id);
	return p;
}

/* ---- methods ---- */

static void service_create(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	create_begin(ctx, (const void *)m, call);
}

static void service_start(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);

	if (!p)
		return;
	if (process_is_exec(p))
		process_exec_start(p, call);
	else
		container_start(p->container, call);
}

static void service_delete(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct shim *s = ctx;
	struct process *p;

	/* Alone of all, Delete also reaches a container that is being created: it takes it back. */
	if (!*req->exec_id && s->container && !strcmp(s->container->id, req->id)) {
		container_delete(s->container, call);
		return;
	}
	p = service_process(s, req->id, req->exec_id, call);
	if (p)
		process_exec_delete(p, call);
}

static void service_wait(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);

	if (p)
		process_wait(p, call);
}

static void service_kill(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__KillRequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);

	if (p)
		process_kill(p, req->signal, req->all, call);
}

static Ctrd__Status service_status(const struct process *p)
{
	static const Ctrd__Status map[TASK_STATE_MAX] = {
		[TASK_CREATED] = CTRD__STATUS__CREATED,
		[TASK_RUNNING] = CTRD__STATUS__RUNNING,
		[TASK_PAUSED] = CTRD__STATUS__PAUSED,
		[TASK_STOPPED] = CTRD__STATUS__STOPPED,
	};

	if (p->state != TASK_STOPPED && p->container->init.state == TASK_PAUSED)
		return CTRD__STATUS__PAUSED;
	return map[p->state];
}

static void service_state(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);
	Ctrd__StateResponse r = CTRD__STATE_RESPONSE__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;

	if (!p)
		return;
	r.id = process_is_exec(p) ? p->exec_id : p->container->id;
	r.bundle = p->container->bundle;
	r.pid = process_public_pid(p);
	r.status = service_status(p);
	r.stdin = p->io_paths[TASKIO_IN];
	r.stdout = p->io_paths[TASKIO_OUT];
	r.stderr = p->io_paths[TASKIO_ERR];
	r.terminal = p->io_terminal;
	r.exit_status = p->exit_is_public ? p->exit_status : 0;
	container_timestamp(p->exit_is_public ? p->exited_at_ns : 0, &at);
	r.exited_at = &at;
	rpc_reply(call, &r.base);
}

static void service_pids(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);

	if (c)
		pids_request(c, call);
}

static void service_connect(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	const struct shim *s = ctx;
	Ctrd__ConnectResponse r = CTRD__CONNECT_RESPONSE__INIT;

	r.shim_pid = (uint32_t)getpid();
	if (s->container && !strcmp(s->container->id, req->id))
		r.task_pid = (uint32_t)s->container->pid;
	rpc_reply(call, &r.base);
}

static void service_shutdown(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	struct shim *s = ctx;

	/* The name goes before the answer: a new container of the same id must not find us. */
	if (!s->container)
		shim_shutdown(s);
	rpc_reply_empty(call);
}

static void service_pause(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);

	if (c)
		container_pause(c, call);
}

static void service_resume(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);

	if (c)
		container_resume(c, call);
}

static void service_exec(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ExecRequest *req = (const void *)m;
	const char *const paths[TASKIO_MAX] = {req->stdin, req->stdout, req->stderr};
	struct container *c = service_container(ctx, req->id, call);
	struct oci_process *spec = NULL;
	struct err err = {0};

	if (!c)
		return;
	if (!args_id_is_valid(req->exec_id)) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "'%.100s' is not a valid exec id",
			 req->exec_id);
	} else if (container_process(c, req->exec_id)) {
		rpc_fail(call, RPC_ALREADY_EXISTS, "id %s: already exists", req->exec_id);
	} else if (c->nr_execs >= CONTAINER_EXECS_MAX) {
		rpc_fail(call, RPC_RESOURCE_EXHAUSTED,
			 "the container has %d exec processes already", CONTAINER_EXECS_MAX);
	} else if (!process_check(&c->init, TASK_OP_EXEC, call)) {
		return;
	} else if (!req->spec || req->spec->value.len > SERVICE_SPEC_MAX) {
		rpc_fail(call, RPC_INVALID_ARGUMENT,
			 "exec %s: process spec is missing or too large", req->exec_id);
	} else if (oci_process_parse((const char *)req->spec->value.data, req->spec->value.len,
				     &spec, &err)) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "exec %s: %s", req->exec_id, err.msg);
	} else {
		process_exec_add(c, req->exec_id, paths, req->terminal, spec, call);
	}
}

static void service_resize(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ResizeRequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);

	if (p)
		process_resize(p, req->width, req->height, call);
}

static void service_close_io(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__CloseIORequest *req = (const void *)m;
	struct process *p = service_process(ctx, req->id, req->exec_id, call);

	if (!p)
		return;
	if (req->stdin)
		taskio_close_stdin(&p->io);
	rpc_reply_empty(call);
}

static void service_stats(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__ProcessRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);

	if (c)
		stats_request(c, call);
}

static void service_updated(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			    const char *message)
{
	if (code == RPC_OK)
		rpc_reply_empty(ctx);
	else
		process_fail_call(ctx, code, message);
}

/* What the VM needs for these limits, as far as it can have that; 0 = they say nothing. */
static uint64_t service_mem_bytes(const struct container *c, const struct oci_resources *res)
{
	uint64_t max = hv_mem_max(&c->shim->config, c->mem_bytes), want;

	if (res->memory_limit <= 0)
		return 0;
	want = vmreq_mem_bytes(res, &c->shim->config);
	if (want > max)
		log_warn("shim",
			 "the memory limit of %" PRId64
			 " MiB is more than the VM of '%s' will have: "
			 "%" PRIu64 " MiB (key 'memory_max' of harpoon.conf)",
			 res->memory_limit >> 20, c->id, max >> 20);
	return MIN(want, max);
}

static void service_update(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__UpdateRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);
	struct oci_resources *res = NULL;
	struct err err = {0};
	VMREQ_PB(UpdateRequest) * out;
	uint64_t mem_bytes;

	if (!c || !process_check(&c->init, TASK_OP_UPDATE, call))
		return;
	if (!req->resources || !c->agent) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "update: no resources given");
		return;
	}
	if (oci_resources_parse((const char *)req->resources->value.data, req->resources->value.len,
				&res, &err)) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "update: %s", err.msg);
		return;
	}
	/* Also what was asked for before: the agent may have failed to add it. */
	mem_bytes = service_mem_bytes(c, res);
	c->mem_bytes = MAX(c->mem_bytes, mem_bytes);
	hv_vm_gave_memory(c->vm, c->mem_bytes);
	if (hostlimits_update(c, res, &err)) {
		oci_resources_free(res);
		rpc_fail_err(call, &err);
		return;
	}
	out = vmreq_update_new(c->id, res, mem_bytes);
	oci_resources_free(res);
	if (c->init.state != TASK_PAUSED)
		agent_client_call(c->agent, AGENT_UPDATE, &out->base, container_call_timeout_ns(c),
				  service_updated, call);
	else if (container_hold(c, AGENT_UPDATE, &out->base))
		rpc_reply_empty(call);
	else
		rpc_fail(call, RPC_RESOURCE_EXHAUSTED,
			 "the container is paused, and too many requests wait for its end");
	vmreq_update_free(out);
}

static void service_checkpoint(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const Ctrd__CheckpointRequest *req = (const void *)m;
	struct container *c = service_container(ctx, req->id, call);

	if (c)
		container_checkpoint(c, req, call);
}

#define SERVICE(method, in_type, out_type, handler) \
	{ \
		.name = (method), .in = &ctrd__##in_type##__descriptor, \
		.out = &ctrd__##out_type##__descriptor, .fn = (handler) \
	}

static const struct rpc_method service_methods[] = {
	SERVICE("State", process_request, state_response, service_state),
	SERVICE("Create", create_task_request, pid_response, service_create),
	SERVICE("Start", process_request, pid_response, service_start),
	SERVICE("Delete", process_request, delete_response, service_delete),
	SERVICE("Pids", process_request, pids_response, service_pids),
	SERVICE("Pause", process_request, empty, service_pause),
	SERVICE("Resume", process_request, empty, service_resume),
	SERVICE("Checkpoint", checkpoint_request, empty, service_checkpoint),
	SERVICE("Kill", kill_request, empty, service_kill),
	SERVICE("Exec", exec_request, empty, service_exec),
	SERVICE("ResizePty", resize_request, empty, service_resize),
	SERVICE("CloseIO", close_iorequest, empty, service_close_io),
	SERVICE("Update", update_request, empty, service_update),
	SERVICE("Wait", process_request, wait_response, service_wait),
	SERVICE("Stats", process_request, stats_response, service_stats),
	SERVICE("Connect", process_request, connect_response, service_connect),
	SERVICE("Shutdown", shutdown_request, empty, service_shutdown),
};

static const struct rpc_service service_v2 = {"containerd.task.v2.Task", service_methods,
					      ARRAY_SIZE(service_methods)};
static const struct rpc_service service_v3 = {"containerd.task.v3.Task", service_methods,
					      ARRAY_SIZE(service_methods)};

const struct rpc_service *const service_list[] = {&service_v2, &service_v3};
const size_t service_list_len = ARRAY_SIZE(service_list);
