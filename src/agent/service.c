/*
 * The methods of harpoon.agent.v1.Agent: check the request, find what it names, act or say why not. A
 * handler either answers or hands the call to the object that will.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "cleanup.h"
#include "console.h"
#include "guest.h"
#include "log.h"
#include "network.h"
#include "relay.h"
#include "replay.h"
#include "state.h"

/* What Stats sends, as far as the kernel has it. */
static const char *const service_stat_files[] = {
	"cpu.stat",	 "memory.current",	"memory.peak",	   "memory.max",   "memory.stat",
	"memory.events", "memory.swap.current", "memory.swap.max", "pids.current", "pids.max",
	"io.stat",	 "cpu.pressure",	"memory.pressure", "io.pressure",
};

static struct process *service_find(struct agent *a, const char *id, const char *exec_id,
				    struct err *err)
{
	struct container *c;

	if (request_check_ref(id, exec_id, err))
		return NULL;
	c = container_find(a, id, err);
	return c ? container_find_process(c, exec_id, err) : NULL;
}

static void service_configure(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ConfigureRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_configure(r, &err) || guest_configure(a->params, r, &err)) {
		rpc_fail_err(call, &err);
		return;
	}
	rpc_reply_empty(call);
	/* Ahead of its use, while the answer travels; CreateContainer says so if it cannot. */
	if (guest_mount_shared(a->params, &err))
		log_warn("service", "%s", err.msg);
}

static void service_clock(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	AGENT_PB(ClockResponse) response = HARPOON__AGENT__V1__CLOCK_RESPONSE__INIT;
	const AGENT_PB(ClockRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (guest_adjust_clock(a->params, r->adjust_ns, r->gradual, &response.realtime_ns, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply(call, &response.base);
}

/* Trees that others may change, too; the root file system is the container's alone. */
static bool service_has_volumes(const AGENT_PB(CreateContainerRequest) * r)
{
	for (size_t i = 0; i < r->n_mounts; i++) {
		if (!strncmp(r->mounts[i]->source, "share:", 6))
			return true;
	}
	return false;
}

static void service_create(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(CreateContainerRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_create(r, &err) || guest_prepare(a->params, &err) ||
	    agent_prepare(a, &err) || guest_mount_shared(a->params, &err) ||
	    container_create(a, r, call, &err))
		rpc_fail_err(call, &err);
	else if (service_has_volumes(r))
		replay_start(a->params);
}

static void service_network(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(NetworkRequest) *r = (const void *)request;
	struct err err = {0};

	if (request_check_network(r, &err) || network_set_up(r, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_listen(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ListenRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_listen(r, &err) || guest_prepare(a->params, &err) ||
	    relay_listen(a->relay, r, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_accept(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(AcceptRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_accept(r, &err) || relay_accept(a->relay, r->stream, call, &err))
		rpc_fail_err(call, &err);
}

static void service_listeners(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ListenersRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_listeners(r, &err) || relay_listeners(a->relay, r, call, &err))
		rpc_fail_err(call, &err);
}

static void service_connect(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ConnectRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct err err = {0};

	if (request_check_connect(r, &err) || relay_connect(a->relay, r, call, &err))
		rpc_fail_err(call, &err);
}

static void service_exec(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ExecRequest) *r = (const void *)request;
	struct container *c = NULL;
	struct err err = {0};

	if (!request_check_exec(r, &err))
		c = container_find(ctx, r->id, &err);
	if (!c || container_add_exec(c, r, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_start(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, r->exec_id, &err);

	if (!p || container_start(p->container, p, call, &err))
		rpc_fail_err(call, &err);
}

static int service_send_signal(struct process *p, const AGENT_PB(SignalRequest) * r,
			       struct err *err)
{
	int e;

	if (r->all) {
		e = cgroup_signal(p->container->cgroup_fd, (int)r->signal);
		return e ? err_set(err, e, "signal container '%s'", r->id) : 0;
	}
	if (!p->pid)
		return err_say(err, -EBUSY, "process '%s' was not started", p->id);
	if (p->is_reaped)
		return err_say(err, -ENOENT, "process already finished");
	if (sys_pidfd_send_signal(p->pidfd, (int)r->signal))
		return err_set(err, errno == ESRCH ? -ENOENT : -errno, "send signal %u", r->signal);
	return 0;
}

static void service_signal(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(SignalRequest) *r = (const void *)request;
	struct process *p = NULL;
	struct err err = {0};

	if (!request_check_signal(r, &err))
		p = service_find(ctx, r->id, r->exec_id, &err);
	if (!p || service_send_signal(p, r, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_wait(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, r->exec_id, &err);

	if (!p || process_wait(p, call, &err))
		rpc_fail_err(call, &err);
}

static void service_wait_oom(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(WaitOomRequest) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, "", &err);

	if (!p || oom_wait(p->container, r->seen, call, &err))
		rpc_fail_err(call, &err);
}

/* Without a terminal, or after its end, there is nothing to resize and nobody to tell. */
static void service_resize(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ResizeRequest) *r = (const void *)request;
	struct process *p = NULL;
	struct err err = {0};

	if (!request_check_resize(r, &err))
		p = service_find(ctx, r->id, r->exec_id, &err);
	if (p && p->master_fd >= 0 && console_resize(p->master_fd, r->width, r->height))
		err_set(&err, -errno, "resize the terminal");
	if (err.code)
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_pids(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	AGENT_PB(PidsResponse) response = HARPOON__AGENT__V1__PIDS_RESPONSE__INIT;
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	cleanup_free uint32_t *pids = NULL;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, "", &err);
	int e;

	if (!p) {
		rpc_fail_err(call, &err);
		return;
	}
	e = cgroup_pids(p->container->cgroup_fd, &pids, &response.n_pids);
	if (e) {
		rpc_fail(call, rpc_code_from_errno(e), "pids of '%s': %s", r->id, strerror(-e));
		return;
	}
	response.pids = pids;
	rpc_reply(call, &response.base);
}

static void service_stats(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	AGENT_PB(CgroupFile) files[ARRAY_SIZE(service_stat_files)];
	AGENT_PB(CgroupFile) * list[ARRAY_SIZE(service_stat_files)];
	AGENT_PB(StatsResponse) response = HARPOON__AGENT__V1__STATS_RESPONSE__INIT;
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, "", &err);
	struct sysinfo info;

	if (!p) {
		rpc_fail_err(call, &err);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(service_stat_files); i++) {
		AGENT_PB(CgroupFile) *f = &files[response.n_files];
		char *text;

		if (cgroup_read(p->container->cgroup_fd, service_stat_files[i], &text))
			continue;
		harpoon__agent__v1__cgroup_file__init(f);
		f->name = (char *)service_stat_files[i];
		f->value = text;
		list[response.n_files++] = f;
	}
	response.files = list;
	if (!sysinfo(&info))
		response.mem_total = (uint64_t)info.totalram * info.mem_unit;
	rpc_reply(call, &response.base);
	for (size_t i = 0; i < response.n_files; i++)
		free(files[i].value);
}

static void service_update(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(UpdateRequest) *r = (const void *)request;
	struct agent *a = ctx;
	struct process *p = NULL;
	struct err err = {0};

	if (!request_check_update(r, &err))
		p = service_find(a, r->id, "", &err);
	if (p && r->check_memory &&
	    cgroup_check_memory(p->container->cgroup_fd, r->cgroup, r->n_cgroup, &err))
		p = NULL;
	if (p && r->memory_bytes && guest_grow(a->params, r->memory_bytes, &err))
		p = NULL;
	if (!p || cgroup_write_files(p->container->cgroup_fd, r->cgroup, r->n_cgroup, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_freeze(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, "", &err);

	if (!p || container_freeze(p->container, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_thaw(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, "", &err);

	if (!p || container_thaw(p->container, &err))
		rpc_fail_err(call, &err);
	else
		rpc_reply_empty(call);
}

static void service_adopt(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	AGENT_PB(StartResponse) response = HARPOON__AGENT__V1__START_RESPONSE__INIT;
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct container *c = NULL;
	struct err err = {0};

	if (!request_check_ref(r->id, "", &err))
		c = container_adopt(ctx, r->id, &err);
	if (!c) {
		rpc_fail_err(call, &err);
		return;
	}
	response.pid = (uint32_t)c->init.pid;
	rpc_reply(call, &response.base);
}

static void service_delete(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	const AGENT_PB(ProcessRef) *r = (const void *)request;
	struct err err = {0};
	struct process *p = service_find(ctx, r->id, r->exec_id, &err);

	if (!p || container_delete(p->container, p, call, &err))
		rpc_fail_err(call, &err);
}

static void service_shutdown_now(void *ctx)
{
	guest_shutdown();
}

static void service_shutdown(struct rpc_call *call, const ProtobufCMessage *request, void *ctx)
{
	struct agent *a = ctx;

	if (!a->params->is_guest_init) {
		rpc_fail(call, RPC_FAILED_PRECONDITION, "this agent is not a guest's init");
		return;
	}
	rpc_reply_empty(call);
	rpc_server_flush(a->server, service_shutdown_now, a);
}

/* Named after the messages' generated descriptors. */
#define SERVICE_TYPE(message) (&harpoon__agent__v1__##message##__descriptor)

static const struct rpc_method service_methods[] = {
	{"Configure", SERVICE_TYPE(configure_request), SERVICE_TYPE(empty), service_configure},
	{"Clock", SERVICE_TYPE(clock_request), SERVICE_TYPE(clock_response), service_clock},
	{"Network", SERVICE_TYPE(network_request), SERVICE_TYPE(empty), service_network},
	{"Listen", SERVICE_TYPE(listen_request), SERVICE_TYPE(empty), service_listen},
	{"Accept", SERVICE_TYPE(accept_request), SERVICE_TYPE(accept_response), service_accept},
	{"Listeners", SERVICE_TYPE(listeners_request), SERVICE_TYPE(listeners_response),
	 service_listeners},
	{"Connect", SERVICE_TYPE(connect_request), SERVICE_TYPE(empty), service_connect},
	{"CreateContainer", SERVICE_TYPE(create_container_request),
	 SERVICE_TYPE(create_container_response), service_create},
	{"Exec", SERVICE_TYPE(exec_request), SERVICE_TYPE(empty), service_exec},
	{"Start", SERVICE_TYPE(process_ref), SERVICE_TYPE(start_response), service_start},
	{"Signal", SERVICE_TYPE(signal_request), SERVICE_TYPE(empty), service_signal},
	{"Wait", SERVICE_TYPE(process_ref), SERVICE_TYPE(wait_response), service_wait},
	{"Resize", SERVICE_TYPE(resize_request), SERVICE_TYPE(empty), service_resize},
	{"WaitOom", SERVICE_TYPE(wait_oom_request), SERVICE_TYPE(wait_oom_response),
	 service_wait_oom},
	{"Pids", SERVICE_TYPE(process_ref), SERVICE_TYPE(pids_response), service_pids},
	{"Stats", SERVICE_TYPE(process_ref), SERVICE_TYPE(stats_response), service_stats},
	{"Update", SERVICE_TYPE(update_request), SERVICE_TYPE(empty), service_update},
	{"Freeze", SERVICE_TYPE(process_ref), SERVICE_TYPE(empty), service_freeze},
	{"Thaw", SERVICE_TYPE(process_ref), SERVICE_TYPE(empty), service_thaw},
	{"Adopt", SERVICE_TYPE(process_ref), SERVICE_TYPE(start_response), service_adopt},
	{"Delete", SERVICE_TYPE(process_ref), SERVICE_TYPE(empty), service_delete},
	{"Shutdown", SERVICE_TYPE(empty), SERVICE_TYPE(empty), service_shutdown},
};

const struct rpc_service agent_service = {
	.name = "harpoon.agent.v1.Agent",
	.methods = service_methods,
	.nr_methods = ARRAY_SIZE(service_methods),
};
