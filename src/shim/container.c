/*
 * The container after its creation: start, end, delete; see container.h.
 *
 * How it ends. The agent says that init has exited; its pid namespace is dead then, so every exec ends and
 * every stream reaches end of file without further help. When all output is with its readers (or after
 * CONTAINER_DRAIN_NS) the VM is killed: its files are the host's already (disks: the agent has unmounted them before
 * it says that init has exited), there is nothing to save. Only
 * when the VM's processes are gone are TaskExit published and Wait answered, because clients look for the
 * pid right after that.
 */
#include "container.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bundle.h"
#include "cleanup.h"
#include "containerd_events.pb-c.h"
#include "hostcgroup.h"
#include "io.h"
#include "log.h"
#include "mounts.h"
#include "mux.h"
#include "resolv.h"
#include "util.h"
#include "vmreq.h"

#define CONTAINER_KILLED 137
/* How long init may take to end after SIGKILL; with disks, what is unwritten is written first. */
#define CONTAINER_KILL_NS 3000000000ull
#define CONTAINER_KILL_DISKS_NS 60000000000ull
#define CONTAINER_NEVER_S (-62135596800)
/* Poststop hooks must not hold Delete, nor the `delete` command's five seconds, for longer. */
#define CONTAINER_POSTSTOP_LIMIT_S 10

/* The VM's own report of its end comes within this time after its connections break. */
#define CONTAINER_LOST_NS 500000000ull

static void container_stop(void *ctx);
static void container_delete_begin(struct container *c);

struct container *container_new(struct shim *shim, const Ctrd__CreateTaskRequest *req)
{
	struct container *c = xcalloc(1, sizeof(*c));

	c->shim = shim;
	c->id = xstrdup(req->id);
	c->bundle = xstrdup(req->bundle);
	c->state_dir = xasprintf("%s/%s", req->bundle, BUNDLE_STATE_DIR);
	c->bundle_fd = c->state_fd = -1;
	c->clock.timer_fd = -1;
	c->next_stream = MUX_STREAM_FIRST_FREE;
	c->create_ns = util_now_ns();
	list_init(&c->execs);
	list_init(&c->held);
	list_init(&c->init.link);
	list_init(&c->init.waiters);
	return c;
}

/* Ends the VM and everything that refers to it. */
static void container_free_vm(struct container *c)
{
	struct agent_client *agent = take_ptr(&c->agent);
	struct hv_vm *vm;

	clock_unfollow(c);
	relay_stop(c->relay);
	forward_stop(c->forward);
	/* First the agent: the callbacks of its pending calls still use the rest. */
	agent_client_free(agent);
	taskio_close(&c->init.io);
	vm = take_ptr(&c->vm);
	if (vm)
		hv_vm_free(vm);
	relay_free(take_ptr(&c->relay));
	forward_free(take_ptr(&c->forward));
	network_free(take_ptr(&c->network));
}

void container_free(struct container *c)
{
	struct process *p;
	struct err err = {0};

	if (!c)
		return;
	loop_timer_cancel(&c->exit_timer);
	loop_timer_cancel(&c->stop_timer);
	loop_timer_cancel(&c->lost_timer);
	loop_timer_cancel(&c->trace_timer);
	loop_timer_cancel(&c->oom_timer);
	loop_timer_cancel(&c->kill_timer);
	hooks_cancel(c->hooks);
	container_free_vm(c);
	list_for_each (p, &c->execs, link) {
		process_done(p);
		free(p);
	}
	process_done(&c->init);
	hostcgroup_free(take_ptr(&c->cgroup));
	disks_free(take_ptr(&c->disks));
	checkpoint_forget(c);
	pause_forget(c);
	if (c->bundle_fd >= 0 && mounts_unmount_rootfs(c->bundle_fd, &err))
		log_err("shim", "%s", err.msg);
	cleanup_closep(&c->state_fd);
	cleanup_closep(&c->bundle_fd);
	oci_spec_free(c->spec);
	free(c->id);
	free(c->bundle);
	free(c->state_dir);
	free(c);
}

struct process *container_process(struct container *c, const char *exec_id)
{
	struct process *p;

	if (!*exec_id)
		return &c->init;
	list_for_each (p, &c->execs, link) {
		if (!strcmp(p->exec_id, exec_id))
			return p;
	}
	return NULL;
}

void container_publish(struct container *c, const char *topic, const char *name,
		       const ProtobufCMessage *event)
{
	publisher_publish(c->shim->events, topic, name, event);
}

uint64_t container_call_timeout_ns(const struct container *c)
{
	return c->shim->config.call_timeout_ms * 1000000ull;
}

void container_timestamp(int64_t ns, Ctrd__Timestamp *ret)
{
	/* "Never", as Go has it and containerd's clients ask for it: the first second of the year 1. */
	ret->seconds = ns ? ns / 1000000000 : CONTAINER_NEVER_S;
	ret->nanos = (int32_t)(ns % 1000000000);
}

/* ---- the end ---- */

void container_kill_vm(struct container *c)
{
	c->vm_killed = true;
	if (c->vm)
		hv_vm_kill(c->vm);
}

void container_give_up_vm(struct container *c, const char *why)
{
	struct err err = {0};

	if (c->phase >= CONTAINER_STOPPED || c->vm_killed)
		return;
	if (c->phase == CONTAINER_CREATING) {
		err_say(&err, -ENOTCONN, "%s", why);
		create_fail(c, &err);
		return;
	}
	log_err("shim", "%s: its VM is ended", why);
	snprintf(c->why, sizeof(c->why), "%s", why);
	if (c->vm)
		hv_vm_kill(c->vm);
}

static void container_lost_timeout(void *ctx)
{
	container_give_up_vm(ctx, "the connection to the agent was lost");
}

void container_on_agent_lost(void *ctx)
{
	struct container *c = ctx;

	/* Mostly because the VM is dying: then its own report, with the reason, is about to come. */
	loop_timer_arm(c->shim->loop, &c->lost_timer, CONTAINER_LOST_NS, container_lost_timeout, c);
}

static uint64_t container_kill_ns(const struct container *c)
{
	return disks_are_writable(c->disks) ? CONTAINER_KILL_DISKS_NS : CONTAINER_KILL_NS;
}

static void container_kill_timeout(void *ctx)
{
	struct container *c = ctx;

	if (c->phase != CONTAINER_LIVE || c->init.has_exited)
		return;
	log_warn("shim", "killed, and not ended after %u s: ending the VM",
		 (unsigned int)(container_kill_ns(c) / 1000000000u));
	container_kill_vm(c);
}

void container_expect_end(struct container *c)
{
	if (!c->kill_timer.loop)
		loop_timer_arm(c->shim->loop, &c->kill_timer, container_kill_ns(c),
			       container_kill_timeout, c);
}

static void container_exit_timeout(void *ctx)
{
	log_warn("shim", "output is not read: ending the VM with some of it undelivered");
	container_kill_vm(ctx);
}

void container_check_quiet(void *ctx)
{
	struct container *c = ctx;
	struct process *p;

	if (c->phase != CONTAINER_EXITING || !taskio_is_drained(&c->init.io))
		return;
	list_for_each (p, &c->execs, link) {
		if (p->start_call || p->state == TASK_RUNNING || !taskio_is_drained(&p->io))
			return;
	}
	container_kill_vm(c);
}

void container_init_exited(struct container *c)
{
	if (c->phase != CONTAINER_LIVE)
		return;
	c->phase = CONTAINER_EXITING;
	timeline_end(&c->times, TIMELINE_RUN);
	timeline_begin(&c->times, TIMELINE_END);
	loop_timer_arm(c->shim->loop, &c->exit_timer, CONTAINER_DRAIN_NS, container_exit_timeout,
		       c);
	container_check_quiet(c);
}

void container_on_vm_exit(void *ctx, const struct hv_exit *why)
{
	struct container *c = ctx;
	struct err err = {0};

	if (!c->why[0])
		snprintf(c->why, sizeof(c->why), "%s", why->text);
	if (c->phase == CONTAINER_CREATING) {
		err_say(&err, -ENOTCONN, "the VM ended before its agent was ready: %s", c->why);
		create_fail(c, &err);
		return;
	}
	if (!c->vm_killed)
		log_warn("shim", "the VM ended by itself: %s", c->why);
	loop_timer_arm(c->shim->loop, &c->stop_timer, 0, container_stop, c);
}

/* The VM's processes are gone. Everything that waited for them hears of it, in the order clients need. */
static void container_stop(void *ctx)
{
	struct container *c = ctx;
	struct bundle_task task = {.pid = c->pid};
	struct rpc_call *start;
	struct process *p;

	loop_timer_cancel(&c->exit_timer);
	loop_timer_cancel(&c->lost_timer);
	loop_timer_cancel(&c->oom_timer);
	loop_timer_cancel(&c->kill_timer);
	c->phase = CONTAINER_STOPPED;
	hooks_cancel(take_ptr(&c->hooks));
	container_free_vm(c);
	list_for_each (p, &c->execs, link)
		process_exec_vm_gone(p);
	start = take_ptr(&c->init.start_call);
	if (start)
		rpc_fail(start, RPC_UNAVAILABLE, "the container's VM is gone: %s", c->why);
	process_set_exited(&c->init, CONTAINER_KILLED);
	task.exited = true;
	task.exit_status = c->init.exit_status;
	task.exited_at_ns = c->init.exited_at_ns;
	bundle_task_write(c->state_fd, &task);
	process_publish_exit(&c->init);
	timeline_end(&c->times, TIMELINE_END);
	timeline_write(&c->times, c->state_fd);
	timeline_keep(&c->times, c->id);
	checkpoint_forget(c);
	pause_forget(c);
	if (c->delete_call)
		container_delete_begin(c);
}

/* ---- start ---- */

static void container_poststart_done(void *ctx, const struct err *err)
{
	struct container *c = ctx;
	struct rpc_call *call = take_ptr(&c->init.start_call);
	Ctrd__PidResponse r = CTRD__PID_RESPONSE__INIT;

	c->hooks = NULL;
	r.pid = (uint32_t)c->pid;
	timeline_end(&c->times, TIMELINE_START);
	timeline_write(&c->times, c->state_fd);
	if (call)
		rpc_reply(call, &r.base);
	if (c->init.has_exited)
		container_init_exited(c);
}

static void container_poststart(struct container *c)
{
	cleanup_free char *state = NULL;
	struct err none = {0};

	if (!c->spec->hooks[OCI_HOOK_POSTSTART].nr) {
		container_poststart_done(c, &none);
		return;
	}
	c->hook_lists[0] = &c->spec->hooks[OCI_HOOK_POSTSTART];
	state = hooks_state_json(c->spec, c->id, "running", c->pid, c->bundle);
	c->hooks = hooks_start(c->shim->loop, c->hook_lists, 1, state, true, HOOKS_DEFAULT_LIMIT_S,
			       container_poststart_done, c);
}

static void container_started(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct container *c = ctx;
	Ctrd__TaskStart e = CTRD__TASK_START__INIT;

	if (code != RPC_OK) {
		struct rpc_call *call = take_ptr(&c->init.start_call);

		if (code == RPC_NOT_FOUND || code == RPC_PERMISSION_DENIED)
			code = RPC_UNKNOWN;
		process_fail_call(call, code, message);
		if (c->init.has_exited)
			container_init_exited(c);
		return;
	}
	timeline_end(&c->times, TIMELINE_EXEC);
	timeline_begin(&c->times, TIMELINE_RUN);
	c->init.state = TASK_RUNNING;
	e.container_id = c->id;
	e.pid = (uint32_t)c->pid;
	container_publish(c, "/tasks/start", "TaskStart", &e.base);
	container_poststart(c);
}

static void container_start_process(struct container *c)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;

	timeline_begin(&c->times, TIMELINE_EXEC);
	ref.id = c->id;
	/* One that was restored has its program, and stands still. */
	agent_client_call(c->agent, c->is_frozen ? AGENT_THAW : AGENT_START, &ref.base,
			  container_call_timeout_ns(c), container_started, c);
	c->is_frozen = false;
}

static void container_network_set_up(void *ctx, const ProtobufCMessage *response,
				     enum rpc_code code, const char *message)
{
	struct container *c = ctx;

	timeline_end(&c->times, TIMELINE_NETWORK);
	if (code != RPC_OK)
		container_started(c, response, code, message);
	else
		container_start_process(c);
}

/*
 * Name servers on the namespace's loopback interface (docker's embedded one): the guest has another loopback. The
 * file is one of the host, given by the spec's author; clients write it before Start.
 */
static void container_relay_name_servers(struct container *c)
{
	struct rtnl_ip servers[RESOLV_SERVERS_MAX];
	cleanup_free char *text = NULL;
	struct err err = {0};
	size_t nr;

	for (size_t i = 0; i < c->spec->nr_mounts && !text; i++) {
		const struct oci_mount *m = &c->spec->mounts[i];

		if (m->bind && !strcmp(m->destination, "/etc/resolv.conf") &&
		    io_read_file(c->bundle_fd, m->source, RESOLV_FILE_MAX, &text, NULL))
			return;
	}
	nr = text ? resolv_find_loopback(text, servers) : 0;
	for (size_t i = 0; i < nr; i++)
		if (relay_add_name_server(c->relay, network_netns(c->network), &servers[i], &err))
			log_warn("relay", "%s", err.msg);
	relay_start(c->relay, c->vm, c->agent, &c->next_stream);
}

/* Not earlier: some clients give the container its interfaces only when Create was answered. */
static void container_start_network(struct container *c)
{
	VMREQ_PB(NetworkRequest) *r = NULL;
	struct err err = {0};

	if (network_connect(c->network, c->state_fd, &r, &err)) {
		rpc_fail_err(take_ptr(&c->init.start_call), &err);
		return;
	}
	container_relay_name_servers(c);
	if (network_mode(c->network) == NETWORK_HOST && !c->forward)
		c->forward = forward_new(c->shim->loop, c->vm, c->agent, &c->next_stream);
	/* A clone's devices are out of sight until they are used. */
	if (r && (r->n_interfaces || !c->ready.is_clone)) {
		timeline_begin(&c->times, TIMELINE_NETWORK);
		agent_client_call(c->agent, AGENT_NETWORK, &r->base, container_call_timeout_ns(c),
				  container_network_set_up, c);
	} else {
		container_start_process(c);
	}
	vmreq_network_free(r);
}

void container_start(struct container *c, struct rpc_call *call)
{

	if (c->init.start_call) {
		rpc_fail(call, RPC_UNKNOWN, "cannot start a running process");
		return;
	}
	if (!process_check(&c->init, TASK_OP_START, call))
		return;
	if (c->init.has_exited || !c->agent) {
		rpc_fail(call, RPC_UNKNOWN, "cannot start a stopped process");
		return;
	}
	timeline_begin(&c->times, TIMELINE_START);
	c->init.start_call = call;
	container_start_network(c);
}

/* ---- delete ---- */

static void container_delete_finish(void *ctx, const struct err *none)
{
	struct container *c = ctx;
	struct shim *shim = c->shim;
	struct rpc_call *call = take_ptr(&c->delete_call);
	struct bundle_task task = {.pid = c->pid, .exited = true, .deleted = true};
	Ctrd__TaskDelete e = CTRD__TASK_DELETE__INIT;
	Ctrd__DeleteResponse r = CTRD__DELETE_RESPONSE__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;

	c->hooks = NULL;
	container_timestamp(c->init.exited_at_ns, &at);
	r.pid = e.pid = (uint32_t)c->pid;
	r.exit_status = e.exit_status = task.exit_status = c->init.exit_status;
	r.exited_at = e.exited_at = &at;
	task.exited_at_ns = c->init.exited_at_ns;
	e.container_id = c->id;
	bundle_task_write(c->state_fd, &task);
	container_publish(c, "/tasks/delete", "TaskDelete", &e.base);
	shim->container = NULL;
	container_free(c);
	rpc_reply(call, &r.base);
}

static void container_delete_begin(struct container *c)
{
	cleanup_free char *state = NULL;
	struct err err = {0};

	c->phase = CONTAINER_DELETING;
	if (mounts_unmount_rootfs(c->bundle_fd, &err)) {
		c->phase = CONTAINER_STOPPED;
		rpc_fail_err(take_ptr(&c->delete_call), &err);
		return;
	}
	if (!c->hooks_ran || !c->spec->hooks[OCI_HOOK_POSTSTOP].nr) {
		container_delete_finish(c, &err);
		return;
	}
	c->hook_lists[0] = &c->spec->hooks[OCI_HOOK_POSTSTOP];
	state = hooks_state_json(c->spec, c->id, "stopped", 0, c->bundle);
	c->hooks = hooks_start(c->shim->loop, c->hook_lists, 1, state, true,
			       CONTAINER_POSTSTOP_LIMIT_S, container_delete_finish, c);
}

void container_delete(struct container *c, struct rpc_call *call)
{
	struct err err = {0};

	if (c->delete_call) {
		rpc_fail(call, RPC_FAILED_PRECONDITION, "the container is being deleted already");
		return;
	}
	if (c->phase != CONTAINER_CREATING &&
	    (c->init.start_call || !process_check(&c->init, TASK_OP_DELETE, call))) {
		if (c->init.start_call)
			rpc_fail(call, RPC_UNKNOWN, "cannot delete a running process");
		return;
	}
	c->delete_call = call;
	if (c->phase == CONTAINER_CREATING) {
		err_say(&err, -ECANCELED, "deleted while it was being created");
		create_fail(c, &err);
	} else if (c->phase == CONTAINER_STOPPED) {
		container_delete_begin(c);
	} else {
		container_kill_vm(c);
	}
}
