/*
 * Exec processes: added, started, deleted; see process.h.
 *
 * Start: open the FIFOs, attach the streams, tell the agent about the process (Exec), let it run (Start), ask for its
 * end (Wait): all three in one go, as the agent takes the requests of a connection in order and each answer waited for
 * would cost a way into the guest and back. Where Exec fails Start fails after it, and Exec's answer is the reason.
 * A Start that fails leaves the process in "created", publishes nothing, and releases those who wait.
 */
#include <errno.h>
#include <string.h>

#include "cleanup.h"
#include "container.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "process.h"
#include "util.h"
#include "vmreq.h"

/* What the answer of Wait knows of the process, which may be deleted or started anew by then. */
struct exec_wait {
	struct process *process; /* NULL = nobody is interested any more */
};

static void exec_forget_wait(struct process *p)
{
	if (p->wait)
		p->wait->process = NULL;
	p->wait = NULL;
}

static void exec_free(struct process *p)
{
	exec_forget_wait(p);
	p->container->nr_execs--;
	process_done(p);
	free(p);
}

void process_exec_add(struct container *c, const char *exec_id, const char *const paths[TASKIO_MAX],
		      bool terminal, struct oci_process *spec, struct rpc_call *call)
{
	Ctrd__TaskExecAdded e = CTRD__TASK_EXEC_ADDED__INIT;
	struct process *p = xcalloc(1, sizeof(*p));
	struct err err = {0};

	p->container = c;
	c->nr_execs++;
	if (process_init(p, c, exec_id, paths, terminal, &err)) {
		oci_process_free(spec);
		exec_free(p);
		rpc_fail_err(call, &err);
		return;
	}
	p->spec = spec;
	list_append(&c->execs, &p->link);
	e.container_id = c->id;
	e.exec_id = p->exec_id;
	container_publish(c, "/tasks/exec-added", "TaskExecAdded", &e.base);
	rpc_reply_empty(call);
}

static void exec_ignore(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			const char *message)
{
}

/* Tells the agent to forget the process; nobody waits for the answer. */
static void exec_forget(struct process *p)
{
	struct container *c = p->container;
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;

	if (!c->agent)
		return;
	ref.id = c->id;
	ref.exec_id = p->exec_id;
	agent_client_call(c->agent, AGENT_DELETE, &ref.base, container_call_timeout_ns(c),
			  exec_ignore, NULL);
}

/* ---- start ---- */

static void exec_start_failed(struct process *p, enum rpc_code code, const char *message)
{
	struct rpc_call *call = take_ptr(&p->start_call);

	exec_forget_wait(p);
	p->has_exited = false;
	p->exit_status = 0;
	p->exited_at_ns = 0;
	taskio_close(&p->io);
	exec_forget(p);
	/* A missing program is no missing process. */
	if (code == RPC_NOT_FOUND || code == RPC_PERMISSION_DENIED)
		code = RPC_UNKNOWN;
	process_fail_call(call, code, message);
	process_release_waiters(p);
}

static void exec_exited(struct process *p)
{
	process_publish_exit(p);
	container_check_quiet(p->container);
}

static void exec_waited(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			const char *message)
{
	cleanup_free struct exec_wait *wait = ctx;
	struct process *p = wait->process;
	const VMREQ_PB(WaitResponse) *w = (const void *)response;

	if (!p)
		return;
	p->wait = NULL;
	/* The VM is gone: process_exec_vm_gone() follows. */
	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		return;
	if (code == RPC_OK) {
		process_set_exited(p, w->exit_status);
		/* The event of its start must come first. */
		if (!p->start_call)
			exec_exited(p);
	} else if (!p->start_call) {
		log_err("shim", "wait for exec %s: %s", p->exec_id, message);
		container_give_up_vm(p->container, "the agent lost an exec process");
	}
}

static void exec_started(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			 const char *message)
{
	struct process *p = ctx;
	struct container *c = p->container;
	struct err why = p->start_err;
	Ctrd__TaskExecStarted e = CTRD__TASK_EXEC_STARTED__INIT;
	Ctrd__PidResponse r = CTRD__PID_RESPONSE__INIT;
	struct rpc_call *call;

	if (code != RPC_OK) {
		/* What the agent said to Exec comes before what it says to Start. */
		if (why.code && code != RPC_CANCELED && code != RPC_UNAVAILABLE)
			exec_start_failed(p, (enum rpc_code)why.code, why.msg);
		else
			exec_start_failed(p, code, message);
		return;
	}
	call = take_ptr(&p->start_call);
	p->state = TASK_RUNNING;
	process_set_guest_pid(p, ((const VMREQ_PB(StartResponse) *)(const void *)response)->pid);
	e.container_id = c->id;
	e.exec_id = p->exec_id;
	e.pid = process_public_pid(p);
	container_publish(c, "/tasks/exec-started", "TaskExecStarted", &e.base);
	r.pid = process_public_pid(p);
	rpc_reply(call, &r.base);
	if (p->has_exited)
		exec_exited(p);
	else if (!p->wait)
		container_give_up_vm(c, "the agent lost an exec process");
}

/* Start is answered after this. */
static void exec_prepared(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			  const char *message)
{
	struct process *p = ctx;

	if (code == RPC_OK)
		return;
	err_say(&p->start_err, (int)code, "%s", message ? message : "");
}

static void exec_drained(void *ctx);

/* Exec, Start and Wait. */
static void exec_send(struct process *p)
{
	struct container *c = p->container;
	VMREQ_PB(ExecRequest) *req = vmreq_exec_new(c->id, p->exec_id, p->spec, c->spec, &p->io);
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	uint64_t limit = container_call_timeout_ns(c);

	p->start_err = (struct err){0};
	exec_forget_wait(p);
	p->wait = xcalloc(1, sizeof(*p->wait));
	p->wait->process = p;
	ref.id = c->id;
	ref.exec_id = p->exec_id;
	agent_client_call(c->agent, AGENT_EXEC, &req->base, limit, exec_prepared, p);
	agent_client_call(c->agent, AGENT_START, &ref.base, limit, exec_started, p);
	agent_client_call(c->agent, AGENT_WAIT, &ref.base, 0, exec_waited, p->wait);
	vmreq_exec_free(req);
}

static void exec_opened(void *ctx, const struct err *err)
{
	struct process *p = ctx;
	struct container *c = p->container;
	struct err failed = *err;

	if (!failed.code && c->phase != CONTAINER_LIVE) {
		exec_start_failed(p, RPC_FAILED_PRECONDITION, "the container has ended");
		return;
	}
	if (!failed.code)
		taskio_attach(&p->io, c->vm, exec_drained, p, &failed);
	if (failed.code)
		exec_start_failed(p, rpc_code_from_errno(failed.code), failed.msg);
	else
		exec_send(p);
}

void process_exec_start(struct process *p, struct rpc_call *call)
{
	struct container *c = p->container;

	if (p->start_call) {
		rpc_fail(call, RPC_UNKNOWN, "cannot start a running process");
		return;
	}
	if (!process_check(p, TASK_OP_START, call))
		return;
	if (c->phase != CONTAINER_LIVE || c->init.has_exited) {
		rpc_fail(call, RPC_FAILED_PRECONDITION,
			 "container %s init process is not running: failed precondition", c->id);
		return;
	}
	if (c->init.state == TASK_PAUSED) {
		rpc_fail(call, RPC_UNKNOWN, "cannot exec in a paused state");
		return;
	}
	p->start_call = call;
	taskio_number(&p->io, &c->next_stream);
	taskio_open(&p->io, exec_opened, p);
}

/* ---- delete ---- */

static void exec_delete_finish(void *ctx)
{
	struct process *p = ctx;
	Ctrd__DeleteResponse r = CTRD__DELETE_RESPONSE__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;

	exec_forget(p);
	process_release_waiters(p);
	container_timestamp(p->exited_at_ns, &at);
	r.pid = process_public_pid(p);
	r.exit_status = p->exit_status;
	r.exited_at = &at;
	rpc_reply(p->delete_call, &r.base);
	exec_free(p);
}

static void exec_drained(void *ctx)
{
	struct process *p = ctx;

	if (p->delete_call)
		loop_timer_arm(p->container->shim->loop, &p->delete_timer, 0, exec_delete_finish,
			       p);
	container_check_quiet(p->container);
}

void process_exec_delete(struct process *p, struct rpc_call *call)
{
	if (p->start_call || p->delete_call) {
		rpc_fail(call, RPC_UNKNOWN, "cannot delete a running process");
		return;
	}
	if (!process_check(p, TASK_OP_DELETE, call))
		return;
	p->delete_call = call;
	/* A background child may hold the output for ever: what has not come by then is cut off. */
	if (taskio_is_drained(&p->io))
		exec_delete_finish(p);
	else
		loop_timer_arm(p->container->shim->loop, &p->delete_timer, CONTAINER_DRAIN_NS,
			       exec_delete_finish, p);
}

void process_exec_vm_gone(struct process *p)
{
	if (p->start_call)
		exec_start_failed(p, RPC_UNAVAILABLE, NULL);
	taskio_close(&p->io);
	if (p->state == TASK_RUNNING) {
		process_set_exited(p, 137);
		process_publish_exit(p);
	}
	if (p->delete_call)
		exec_delete_finish(p);
}
