/*
 * Create: from a bundle to a container whose init only has to be let go.
 *
 * The VM is started as early as possible and boots while the rest is done: mounts, FIFOs, hooks. What has to
 * come true before the answer is a set of bits; whoever clears the last one finishes.
 *
 *   VM starts ----------- agent ready -- Configure, CreateContainer --------+
 *   rootfs mounted, trees shared (at once)                                   +-- answer
 *   FIFOs open (as soon as the client reads) --------------------------------+
 *   prestart, createRuntime hooks (the VM's process is in the network namespace) --+
 *
 * Any failure arms one timer that takes everything back and answers with the first error.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "bundle.h"
#include "checkpoint.h"
#include "cleanup.h"
#include "container.h"
#include "containerd_events.pb-c.h"
#include "disks.h"
#include "hostcgroup.h"
#include "hostlimits.h"
#include "io.h"
#include "log.h"
#include "shares.h"
#include "util.h"
#include "vmreq.h"

#define CREATE_ENTROPY 64
/* hv itself waits a quarter of a second to see which process of a VM was the first to end. */
#define CREATE_REPORT_NS 700000000ull
#define CREATE_POSTSTOP_LIMIT_S 10

enum {
	CREATE_NEEDS_AGENT = 1 << 0, /* CreateContainer answered */
	CREATE_NEEDS_STDIO = 1 << 1,
	CREATE_NEEDS_HOOKS = 1 << 2,
};

struct create {
	struct rpc_call *call;
	const Ctrd__CreateTaskRequest *req; /* lives as long as the call */
	unsigned int needs;
	enum vmreq_mount_kind *kinds; /* one per mount of the spec */
	struct err err;		      /* code != 0: failed, being taken back */
	struct loop_timer fail_timer;
	bool taking_back;
	struct hv_checkpoint *restore; /* owned; NULL = a new container, or started already */
	struct checkpoint_note note;   /* of that */
};

static void create_free(struct container *c)
{
	struct create *cr = take_ptr(&c->create);

	loop_timer_cancel(&cr->fail_timer);
	hv_checkpoint_free(cr->restore);
	free(cr->kinds);
	free(cr);
}

/* ---- failing ---- */

static void create_failed(void *ctx, const struct err *none)
{
	struct container *c = ctx;
	struct create *cr = c->create;
	struct shim *shim = c->shim;
	struct rpc_call *call = cr->call, *delete_call = take_ptr(&c->delete_call);
	struct err err = cr->err;
	enum rpc_code code;
	int bundle_fd = fcntl(c->bundle_fd, F_DUPFD_CLOEXEC, 3);

	c->hooks = NULL;
	err_wrap(&err, "create %s", c->id);
	log_err("shim", "%s", err.msg);
	create_free(c);
	shim->container = NULL;
	container_free(c);
	if (bundle_fd >= 0) {
		bundle_state_remove(bundle_fd);
		close(bundle_fd);
	}
	/* NotFound of a missing file would read as "no such task" to clients. */
	code = rpc_code_from_errno(err.code);
	if (code == RPC_NOT_FOUND || code == RPC_PERMISSION_DENIED)
		code = RPC_UNKNOWN;
	rpc_fail(call, code, "%s", err.msg);
	if (delete_call)
		rpc_fail(delete_call, RPC_NOT_FOUND, "container not created: not found");
}

static void create_take_back(void *ctx)
{
	struct container *c = ctx;
	cleanup_free char *state = NULL;
	struct hv_vm *vm = take_ptr(&c->vm);
	struct agent_client *agent = take_ptr(&c->agent);

	/* The callbacks of what is freed here report errors, too. */
	c->create->taking_back = true;
	hooks_cancel(take_ptr(&c->hooks));
	relay_stop(c->relay);
	agent_client_free(agent);
	taskio_close(&c->init.io);
	if (vm)
		hv_vm_free(vm);
	if (!c->hooks_ran || !c->spec->hooks[OCI_HOOK_POSTSTOP].nr) {
		create_failed(c, NULL);
		return;
	}
	c->hook_lists[0] = &c->spec->hooks[OCI_HOOK_POSTSTOP];
	state = hooks_state_json(c->spec, c->id, "stopped", 0, c->bundle);
	c->hooks = hooks_start(c->shim->loop, c->hook_lists, 1, state, true,
			       CREATE_POSTSTOP_LIMIT_S, create_failed, c);
}

static bool create_is_symptom(const struct err *err)
{
	return err->code == -EPIPE || err->code == -ECONNRESET;
}

/*
 * The first error counts. A broken connection is only the sign of a VM that is dying: its own report, which
 * says why, gets a moment to come and replaces it.
 */
void create_fail(struct container *c, const struct err *err)
{
	struct create *cr = c->create;
	uint64_t wait_ns = create_is_symptom(err) && c->vm ? CREATE_REPORT_NS : 0;

	if (cr->taking_back || (cr->err.code && !create_is_symptom(&cr->err)))
		return;
	cr->err = *err;
	loop_timer_arm(c->shim->loop, &cr->fail_timer, wait_ns, create_take_back, c);
}

static void create_fail_code(struct container *c, enum rpc_code code, const char *message)
{
	struct err err = {0};

	if (code == RPC_DEADLINE_EXCEEDED)
		message = "the agent in the VM did not answer in time";
	else if (code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		message = "the VM ended";
	err_say(&err, code == RPC_CANCELED ? -EPIPE : rpc_code_to_errno(code), "%s", message);
	create_fail(c, &err);
}

/* ---- success ---- */

static void create_publish(struct container *c)
{
	const Ctrd__CreateTaskRequest *req = c->create->req;
	Ctrd__TaskCreate e = CTRD__TASK_CREATE__INIT;
	Ctrd__TaskIO io = CTRD__TASK_IO__INIT;

	io.stdin = req->stdin;
	io.stdout = req->stdout;
	io.stderr = req->stderr;
	io.terminal = req->terminal;
	e.container_id = c->id;
	e.bundle = c->bundle;
	e.n_rootfs = req->n_rootfs;
	e.rootfs = req->rootfs;
	e.io = &io;
	e.checkpoint = req->checkpoint;
	e.pid = (uint32_t)c->pid;
	container_publish(c, "/tasks/create", "TaskCreate", &e.base);
}

static void create_init_waited(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			       const char *message)
{
	struct container *c = ctx;
	const VMREQ_PB(WaitResponse) *w = (const void *)response;

	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED)
		return;
	if (code != RPC_OK) {
		log_err("shim", "wait for the first process: %s", message);
		container_give_up_vm(c, "the agent lost the container's first process");
		return;
	}
	oom_report(c, w->oom_kills);
	process_set_exited(&c->init, w->exit_status);
	/* Not before the answer of a Start under way, whose event must come first. */
	if (!c->init.start_call)
		container_init_exited(c);
}

/* What nobody waits for. */
static void create_afterwards(void *ctx)
{
	struct container *c = ctx;

	trace_boot(c);
	timeline_write(&c->times, c->state_fd);
	if (!c->vm)
		return;
	hv_vm_build_template(c->vm);
	clock_follow(c);
}

static void create_finish(struct container *c)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	Ctrd__PidResponse r = CTRD__PID_RESPONSE__INIT;
	struct bundle_task task = {.pid = c->pid};
	struct rpc_call *call = c->create->call;
	struct err err = {0};
	int w;

	w = bundle_task_write(c->state_fd, &task);
	if (w)
		err_set(&err, w, "write the container's state");
	else
		taskio_attach(&c->init.io, c->vm, container_check_quiet, c, &err);
	if (err.code) {
		create_fail(c, &err);
		return;
	}
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_WAIT, &ref.base, 0, create_init_waited, c);
	oom_watch(c);
	create_publish(c);
	c->phase = CONTAINER_LIVE;
	c->created_ns = util_now_ns();
	create_free(c);
	r.pid = (uint32_t)c->pid;
	rpc_reply(call, &r.base);
	timeline_end(&c->times, TIMELINE_CREATE);
	loop_timer_arm(c->shim->loop, &c->trace_timer, 0, create_afterwards, c);
}

static void create_has(struct container *c, unsigned int what)
{
	if (c->create->err.code)
		return;
	c->create->needs &= ~what;
	if (!c->create->needs)
		create_finish(c);
}

/* ---- the agent ---- */

static void create_clock_set(void *ctx)
{
	struct container *c = ctx;

	timeline_end(&c->times, TIMELINE_CLOCK);
	if (c->phase == CONTAINER_CREATING)
		create_has(c, CREATE_NEEDS_AGENT);
}

static void create_agent_created(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
				 const char *message)
{
	struct container *c = ctx;

	if (code != RPC_OK) {
		create_fail_code(c, code, message);
		return;
	}
	process_set_guest_pid(
		&c->init, ((const VMREQ_PB(CreateContainerResponse) *)(const void *)response)->pid);
	timeline_end(&c->times, TIMELINE_CONTAINER);
	timeline_begin(&c->times, TIMELINE_CLOCK);
	/* Configure, a guest's first call, took too long to set the clock well; nothing runs yet. */
	clock_set(c, create_clock_set);
}

static void create_agent_configured(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
				    const char *message)
{
	struct container *c = ctx;

	timeline_end(&c->times, TIMELINE_CONFIGURE);
	timeline_begin(&c->times, TIMELINE_CONTAINER);
	if (code != RPC_OK)
		create_fail_code(c, code, message);
}

/* What goes on here is frozen until Start. */
static void create_agent_adopted(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
				 const char *message)
{
	struct container *c = ctx;

	if (code != RPC_OK) {
		create_fail_code(c, code, message);
		return;
	}
	process_set_guest_pid(&c->init,
			      ((const VMREQ_PB(StartResponse) *)(const void *)response)->pid);
	c->is_frozen = true;
	timeline_end(&c->times, TIMELINE_CONTAINER);
	timeline_begin(&c->times, TIMELINE_CLOCK);
	clock_set(c, create_clock_set);
}

static void create_call_agent(struct container *c)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	VMREQ_PB(CreateContainerRequest) * req;

	if (c->ready.is_restored) {
		ref.id = c->id;
		agent_client_call(c->agent, AGENT_ADOPT, &ref.base, container_call_timeout_ns(c),
				  create_agent_adopted, c);
		return;
	}
	req = vmreq_create_new(c->id, c->bundle, c->spec, c->create->kinds, &c->init.io);
	disks_describe(c->disks, req);
	agent_client_call(c->agent, AGENT_CREATE_CONTAINER, &req->base,
			  container_call_timeout_ns(c), create_agent_created, c);
	vmreq_create_free(req);
}

static int create_configure(struct container *c, struct err *err)
{
	VMREQ_PB(ConfigureRequest) req = HARPOON__AGENT__V1__CONFIGURE_REQUEST__INIT;
	char hostname[HOST_NAME_MAX + 1] = "harpoon";
	uint8_t entropy[CREATE_ENTROPY];
	struct timespec now;

	if (getrandom(entropy, sizeof(entropy), 0) != sizeof(entropy))
		return err_set(err, -EIO, "random bytes for the guest");
	clock_gettime(CLOCK_REALTIME, &now);
	req.realtime_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	req.entropy.data = entropy;
	req.entropy.len = sizeof(entropy);
	/* A container without a name of its own has the host's, as with runc. */
	if (gethostname(hostname, sizeof(hostname)))
		log_warn("shim", "the host has no name: %s", strerror(errno));
	hostname[sizeof(hostname) - 1] = '\0';
	req.hostname = c->spec->hostname ? c->spec->hostname : hostname;
	agent_client_call(c->agent, AGENT_CONFIGURE, &req.base, container_call_timeout_ns(c),
			  create_agent_configured, c);
	explicit_bzero(entropy, sizeof(entropy));
	return 0;
}

static void create_on_ready(void *ctx, const struct hv_ready *ready)
{
	struct container *c = ctx;
	struct err err = {0};

	if (c->phase != CONTAINER_CREATING || c->create->err.code)
		return;
	c->ready = *ready;
	timeline_set(&c->times, TIMELINE_VMM, ready->host_spawn_ns, ready->host_kernel_ns);
	timeline_set(&c->times, TIMELINE_GUEST, ready->host_kernel_ns, ready->host_ready_ns);
	timeline_begin(&c->times, TIMELINE_CONFIGURE);
	/* A clone that failed was replaced. */
	c->pid = hv_vm_pid(c->vm);
	if (agent_client_new(c->shim->loop, c->vm, container_on_agent_lost, c, &c->agent, &err) ||
	    create_configure(c, &err)) {
		create_fail(c, &err);
		return;
	}
	/* The agent takes requests of one connection in order: no need to wait for the first answer. */
	relay_start(c->relay, c->vm, c->agent, &c->next_stream);
	create_call_agent(c);
}

/* ---- the bundle and the spec ---- */

static int create_read_spec(struct container *c, struct err *err)
{
	cleanup_free char *json = NULL;
	size_t len;
	int r = io_read_file(c->bundle_fd, "config.json", OCI_CONFIG_MAX, &json, &len);

	if (r)
		return err_set(err, r, "read config.json of the bundle");
	r = oci_spec_parse(json, len, &c->spec, err);
	return r ? r : vmreq_check(c->spec, err);
}

static int create_open_bundle(struct container *c, struct err *err)
{
	int r;

	c->bundle_fd = bundle_open(c->bundle, err);
	if (c->bundle_fd < 0)
		return c->bundle_fd;
	c->state_fd = bundle_state_make(c->bundle_fd, err);
	if (c->state_fd < 0)
		return c->state_fd;
	r = bundle_shim_write(c->state_fd);
	return r ? err_set(err, r, "write to the bundle's state folder") : 0;
}

static int create_open_checkpoint(struct container *c, struct err *err)
{
	const Ctrd__CreateTaskRequest *req = c->create->req;
	struct checkpoint_note *note = &c->create->note;
	int r = checkpoint_open(req->checkpoint, &c->create->restore, note, err);

	if (r)
		return r;
	if (note->terminal != (req->terminal ? 1u : 0u))
		return err_say(err, -EINVAL, "the container in the checkpoint has %s terminal",
			       note->terminal ? "a" : "no");
	c->oom_kills = note->oom_kills;
	return 0;
}

static int create_check_request(const Ctrd__CreateTaskRequest *req, struct err *err)
{
	if (*req->parent_checkpoint)
		return err_say(err, -EOPNOTSUPP,
			       "a checkpoint of a VM is whole: it has no parent (not supported)");
	if (req->options && *req->options->type_url)
		log_dbg("shim", "options of type '%s' have nothing for a VM: ignored",
			req->options->type_url);
	return 0;
}

/* ---- the VM ---- */

static int create_start_vm(struct container *c, struct err *err)
{
	static const struct hv_callbacks callbacks = {.on_ready = create_on_ready,
						      .on_exit = container_on_vm_exit};
	struct vmreq_size size;
	struct hv_params params;
	struct hv_disk disks[HV_DISKS_MAX];
	int r = vmreq_size(c->spec, &c->shim->config, &size, err);

	if (!r)
		r = network_new(c->spec, &c->shim->config, &c->network, err);
	if (!r)
		r = hostlimits_make_cgroup(c, err);
	if (r)
		return r;
	params = (struct hv_params){.config = &c->shim->config,
				    .id = c->id,
				    .state_dir_fd = c->state_fd,
				    .state_dir = c->state_dir,
				    .netns_fd = network_netns(c->network),
				    .nr_vcpus = size.nr_vcpus,
				    .mem_bytes = size.mem_bytes,
				    .restore = c->create->restore};
	params.cgroup_fds = hostcgroup_fds(c->cgroup, &params.nr_cgroup_fds);
	c->mem_bytes = MAX(size.mem_bytes, c->create->note.mem_bytes);
	params.nics = network_nics(c->network, &params.nr_nics);
	params.net_helper = network_helper(c->network);
	disks_params(c->disks, disks);
	params.disks = disks;
	params.nr_disks = c->disks->nr;
	r = hv_vm_new(c->shim->loop, &params, &callbacks, c, &c->vm, err);
	if (!r) {
		hv_vm_gave_memory(c->vm, c->mem_bytes);
		r = hostlimits_begin(c, err);
	}
	if (!r)
		r = hv_vm_start(c->vm, err);
	network_vm_started(c->network);
	disks_close(c->disks);
	hv_checkpoint_free(take_ptr(&c->create->restore));
	if (!r)
		c->pid = hv_vm_pid(c->vm);
	return r;
}

/* ---- streams and hooks ---- */

static void create_stdio_done(struct container *c)
{
	timeline_end(&c->times, TIMELINE_STDIO);
	create_has(c, CREATE_NEEDS_STDIO);
}

static void create_stdio_opened(void *ctx, const struct err *err)
{
	if (err->code)
		create_fail(ctx, err);
	else
		create_stdio_done(ctx);
}

static void create_hooks_done(void *ctx, const struct err *err)
{
	struct container *c = ctx;

	c->hooks = NULL;
	timeline_end(&c->times, TIMELINE_HOOKS);
	if (err->code)
		create_fail(c, err);
	else
		create_has(c, CREATE_NEEDS_HOOKS);
}

static void create_start_hooks(struct container *c)
{
	cleanup_free char *state = NULL;

	c->hook_lists[0] = &c->spec->hooks[OCI_HOOK_PRESTART];
	c->hook_lists[1] = &c->spec->hooks[OCI_HOOK_CREATE_RUNTIME];
	c->hooks_ran = true;
	if (!c->hook_lists[0]->nr && !c->hook_lists[1]->nr) {
		c->create->needs &= ~CREATE_NEEDS_HOOKS;
		return;
	}
	timeline_begin(&c->times, TIMELINE_HOOKS);
	state = hooks_state_json(c->spec, c->id, "creating", c->pid, c->bundle);
	c->hooks = hooks_start(c->shim->loop, c->hook_lists, 2, state, false, HOOKS_DEFAULT_LIMIT_S,
			       create_hooks_done, c);
}

static int create_run(struct container *c, struct err *err)
{
	const Ctrd__CreateTaskRequest *req = c->create->req;
	const char *const paths[TASKIO_MAX] = {req->stdin, req->stdout, req->stderr};
	int r = process_init(&c->init, c, "", paths, req->terminal, err);

	if (!r)
		r = create_check_request(req, err);
	timeline_begin(&c->times, TIMELINE_SPEC);
	if (!r)
		r = create_open_bundle(c, err);
	if (!r)
		r = create_read_spec(c, err);
	if (!r && *req->checkpoint)
		r = create_open_checkpoint(c, err);
	timeline_end(&c->times, TIMELINE_SPEC);
	timeline_begin(&c->times, TIMELINE_PROCESSES);
	if (!r)
		r = shares_open_disks(c, req, err);
	if (!r)
		r = create_start_vm(c, err);
	timeline_end(&c->times, TIMELINE_PROCESSES);
	timeline_begin(&c->times, TIMELINE_MOUNTS);
	c->create->kinds = r ? NULL : xcalloc(c->spec->nr_mounts, sizeof(*c->create->kinds));
	if (!r)
		r = shares_export(c, req, c->create->kinds, err);
	timeline_end(&c->times, TIMELINE_MOUNTS);
	if (r)
		return r;
	timeline_begin(&c->times, TIMELINE_STDIO);
	if (*req->checkpoint)
		taskio_renumber(&c->init.io, c->create->note.streams);
	else
		taskio_number(&c->init.io, &c->next_stream);
	c->next_stream = MAX(c->next_stream, c->create->note.next_stream);
	taskio_open(&c->init.io, create_stdio_opened, c);
	create_start_hooks(c);
	return 0;
}

void create_begin(struct shim *shim, const Ctrd__CreateTaskRequest *req, struct rpc_call *call)
{
	struct container *c;
	struct err err = {0};

	if (!args_id_is_valid(req->id)) {
		rpc_fail(call, RPC_INVALID_ARGUMENT, "'%.100s' is not a valid container id",
			 req->id);
		return;
	}
	if (shim->container) {
		rpc_fail(call, RPC_ALREADY_EXISTS, "container %s: already exists",
			 shim->container->id);
		return;
	}
	if (shim->stopping) {
		rpc_fail(call, RPC_UNAVAILABLE, "the shim is ending");
		return;
	}
	c = container_new(shim, req);
	shim->container = c;
	timeline_begin(&c->times, TIMELINE_CREATE);
	c->create = xcalloc(1, sizeof(*c->create));
	*c->create = (struct create){.call = call,
				     .req = req,
				     .needs = CREATE_NEEDS_AGENT | CREATE_NEEDS_STDIO |
					      CREATE_NEEDS_HOOKS};
	if (create_run(c, &err))
		create_fail(c, &err);
}
