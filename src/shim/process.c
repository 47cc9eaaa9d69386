/*
 * Processes; see process.h.
 *
 * The pid that the outside hears of is the VM's: it is the process on the host that ends with the container
 * and holds its network namespace. An exec has no process on the host; see PROCESS_GUEST_PIDS.
 */
#include "process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "container.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "util.h"
#include "vmreq.h"

/* A SIGKILL that the agent has not confirmed after this long ends the VM instead. */
#define PROCESS_KILL_LIMIT_NS 1500000000ull

#define PROCESS_SIGNAL_MAX 64

struct process_waiter {
	struct list link;
	struct rpc_call *call;
};

int process_init(struct process *p, struct container *c, const char *exec_id,
		 const char *const paths[TASKIO_MAX], bool terminal, struct err *err)
{
	const struct taskio_params params = {.paths = paths,
					     .terminal = terminal,
					     .id = *exec_id ? exec_id : c->id,
					     .namespace_ = c->shim->namespace_};

	*p = (struct process){.container = c, .io_terminal = terminal};
	list_init(&p->link);
	list_init(&p->waiters);
	p->exec_id = xstrdup(exec_id);
	for (size_t i = 0; i < TASKIO_MAX; i++)
		p->io_paths[i] = xstrdup(paths[i]);
	return taskio_init(&p->io, c->shim->loop, &params, err);
}

void process_done(struct process *p)
{
	list_remove(&p->link);
	loop_timer_cancel(&p->delete_timer);
	process_release_waiters(p);
	taskio_done(&p->io);
	oci_process_free(p->spec);
	for (size_t i = 0; i < TASKIO_MAX; i++)
		free(p->io_paths[i]);
	free(p->exec_id);
	p->spec = NULL;
	p->exec_id = NULL;
}

bool process_check(struct process *p, enum task_op op, struct rpc_call *call)
{
	const struct task_verdict *v = task_check(process_is_exec(p), p->state, op);

	/* Ended, though its exit is not published yet: nothing can be sent to it. */
	if (op == TASK_OP_KILL && p->has_exited)
		v = task_check(process_is_exec(p), TASK_STOPPED, op);
	if (v->code == RPC_OK)
		return true;
	rpc_fail(call, v->code, "%s", v->text);
	return false;
}

uint32_t process_public_pid(const struct process *p)
{
	if (!process_is_exec(p))
		return (uint32_t)p->container->pid;
	return p->guest_pid ? PROCESS_GUEST_PIDS + p->guest_pid : 0;
}

void process_set_guest_pid(struct process *p, uint32_t pid)
{
	p->guest_pid = pid <= PROCESS_GUEST_PID_MAX ? pid : 0;
}

void process_fail_call(struct rpc_call *call, enum rpc_code code, const char *message)
{
	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		rpc_fail(call, RPC_UNAVAILABLE, "the container's VM is gone");
	else if (code == RPC_DEADLINE_EXCEEDED)
		rpc_fail(call, code, "the agent in the container's VM did not answer in time");
	else
		rpc_fail(call, code, "%s", message);
}

/* ---- waiting and exiting ---- */

void process_reply_wait(const struct process *p, struct rpc_call *call)
{
	Ctrd__WaitResponse r = CTRD__WAIT_RESPONSE__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;

	container_timestamp(p->exited_at_ns, &at);
	r.exit_status = p->exit_status;
	r.exited_at = &at;
	rpc_reply(call, &r.base);
}

void process_wait(struct process *p, struct rpc_call *call)
{
	struct process_waiter *w;

	if (p->exit_is_public) {
		process_reply_wait(p, call);
		return;
	}
	w = xcalloc(1, sizeof(*w));
	w->call = call;
	list_append(&p->waiters, &w->link);
}

void process_release_waiters(struct process *p)
{
	struct process_waiter *w;

	list_for_each (w, &p->waiters, link) {
		list_remove(&w->link);
		process_reply_wait(p, w->call);
		free(w);
	}
}

void process_set_exited(struct process *p, uint32_t status)
{
	struct timespec now;

	if (p->has_exited)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	p->has_exited = true;
	p->exit_status = status;
	p->exited_at_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void process_publish_exit(struct process *p)
{
	struct container *c = p->container;
	Ctrd__TaskExit e = CTRD__TASK_EXIT__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;

	if (p->exit_is_public)
		return;
	p->exit_is_public = true;
	p->state = TASK_STOPPED;
	container_timestamp(p->exited_at_ns, &at);
	e.container_id = c->id;
	e.id = process_is_exec(p) ? p->exec_id : c->id;
	e.pid = process_public_pid(p);
	e.exit_status = p->exit_status;
	e.exited_at = &at;
	container_publish(c, "/tasks/exit", "TaskExit", &e.base);
	process_release_waiters(p);
}

/* ---- signals and terminal ---- */

struct process_kill {
	struct container *container;
	struct rpc_call *call;
	bool is_final; /* SIGKILL to init: must work, whatever the guest does */
};

static void process_kill_done(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct process_kill *k = ctx;

	if (code == RPC_NOT_FOUND) {
		rpc_fail(k->call, code, "process already finished: not found");
	} else if (code == RPC_OK) {
		if (k->is_final)
			container_expect_end(k->container);
		rpc_reply_empty(k->call);
	} else if (k->is_final) {
		container_kill_vm(k->container);
		rpc_reply_empty(k->call);
	} else {
		process_fail_call(k->call, code, message);
	}
	free(k);
}

static void process_fill_signal(const struct process *p, uint32_t sig, bool all,
				VMREQ_PB(SignalRequest) * ret)
{
	ret->id = p->container->id;
	ret->exec_id = p->exec_id;
	ret->signal = sig;
	ret->all = all;
}

static void process_send_signal(struct process *p, uint32_t sig, bool all, struct rpc_call *call)
{
	struct container *c = p->container;
	VMREQ_PB(SignalRequest) req = HARPOON__AGENT__V1__SIGNAL_REQUEST__INIT;
	struct process_kill *k;
	uint64_t limit = container_call_timeout_ns(c);

	if (!c->agent) {
		rpc_fail(call, RPC_NOT_FOUND, "process already finished: not found");
		return;
	}
	k = xcalloc(1, sizeof(*k));
	k->container = c;
	k->call = call;
	k->is_final = sig == SIGKILL && !process_is_exec(p);
	if (k->is_final)
		limit = MIN(limit, PROCESS_KILL_LIMIT_NS);
	process_fill_signal(p, sig, all, &req);
	agent_client_call(c->agent, AGENT_SIGNAL, &req.base, limit, process_kill_done, k);
}

/* While paused the guest hears nothing: SIGKILL of init resumes it, anything else waits for Resume. */
static bool process_hold_signal(struct process *p, uint32_t sig, bool all, struct rpc_call *call)
{
	struct container *c = p->container;
	VMREQ_PB(SignalRequest) req = HARPOON__AGENT__V1__SIGNAL_REQUEST__INIT;
	struct err err = {0};

	if (c->init.state != TASK_PAUSED)
		return false;
	process_fill_signal(p, sig, all, &req);
	if (sig == SIGKILL && !process_is_exec(p)) {
		if (!container_thaw(c, &err))
			return false;
		log_warn("shim", "resume to kill: %s", err.msg);
		container_kill_vm(c);
		rpc_reply_empty(call);
	} else if (!container_hold(c, AGENT_SIGNAL, &req.base)) {
		rpc_fail(call, RPC_RESOURCE_EXHAUSTED,
			 "the container is paused, and too many requests wait for its end");
	} else {
		rpc_reply_empty(call);
	}
	return true;
}

void process_kill(struct process *p, uint32_t sig, bool all, struct rpc_call *call)
{
	/* "All that is left of it" is nothing, and that is no error: clients tidy up with it. */
	if (all && !process_is_exec(p) && p->has_exited) {
		rpc_reply_empty(call);
		return;
	}
	if (!process_check(p, TASK_OP_KILL, call))
		return;
	if (!sig) {
		/* Only asks whether there is a process: the state said so. */
		rpc_reply_empty(call);
		return;
	}
	if (sig > PROCESS_SIGNAL_MAX) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "%u is not a signal", sig);
		return;
	}
	if (process_hold_signal(p, sig, all, call))
		return;
	if (!process_is_exec(p) && p->state == TASK_CREATED && sig == SIGKILL) {
		/* Nothing of the user's runs yet, so there is nothing to wait for. */
		process_set_exited(p, 128 + SIGKILL);
		container_kill_vm(p->container);
		rpc_reply_empty(call);
		return;
	}
	process_send_signal(p, sig, all, call);
}

static void process_resize_done(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
				const char *message)
{
	if (code == RPC_OK)
		rpc_reply_empty(ctx);
	else
		process_fail_call(ctx, code, message);
}

void process_resize(struct process *p, uint32_t width, uint32_t height, struct rpc_call *call)
{
	struct container *c = p->container;
	VMREQ_PB(ResizeRequest) req = HARPOON__AGENT__V1__RESIZE_REQUEST__INIT;

	if (process_is_exec(p) && p->state == TASK_STOPPED) {
		rpc_fail(call, RPC_UNKNOWN, "cannot resize a stopped container");
		return;
	}
	/* Clients resize right after Start, or before; without a terminal it means nothing. */
	if (!p->io_terminal || p->has_exited || !c->agent ||
	    (process_is_exec(p) && p->state == TASK_CREATED)) {
		if (p->spec) {
			p->spec->console_width = width;
			p->spec->console_height = height;
		}
		rpc_reply_empty(call);
		return;
	}
	req.id = c->id;
	req.exec_id = p->exec_id;
	req.width = width;
	req.height = height;
	if (c->init.state == TASK_PAUSED) {
		container_hold(c, AGENT_RESIZE, &req.base);
		rpc_reply_empty(call);
		return;
	}
	agent_client_call(c->agent, AGENT_RESIZE, &req.base, container_call_timeout_ns(c),
			  process_resize_done, call);
}
