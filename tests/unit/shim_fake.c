/* See shim_fake.h. One VM at a time. */
#include "shim_fake.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "mux.h"
#include "network.h"
#include "util.h"

#define PB(name) Harpoon__Agent__V1__##name
#define FN(name) harpoon__agent__v1__##name

struct fake fake;

/* Only its address is used: it is a struct fake_stream. */
struct hv_stream {
	struct fake_stream s;
};

struct fake_wait {
	char exec_id[80];
	struct rpc_call *call; /* NULL = free */
	bool ended;	       /* before anybody waited */
	uint32_t status;
};

struct hv_vm {
	struct hv_callbacks cb;
	void *ctx;
	struct loop_timer ready, exit, paused, saved;
	hv_done_fn pause_done, save_done;
	void *pause_ctx, *save_ctx;
	struct hv_exit why;
	bool ending;
	struct rpc_server *agent;
	struct fake_wait waits[FAKE_WAITS_MAX];
	struct rpc_call *start_call, *signal_call, *oom_call;
};

static struct hv_vm *the_vm;

void fake_reset(struct loop *loop)
{
	fake = (struct fake){.loop = loop};
}

/* ---- the agent ---- */

static struct fake_wait *fake_wait_for(const char *exec_id)
{
	for (size_t i = 0; i < FAKE_WAITS_MAX; i++) {
		struct fake_wait *w = &the_vm->waits[i];

		if ((w->call || w->ended) && !strcmp(w->exec_id, exec_id))
			return w;
	}
	for (size_t i = 0; i < FAKE_WAITS_MAX; i++) {
		struct fake_wait *w = &the_vm->waits[i];

		if (!w->call && !w->ended) {
			snprintf(w->exec_id, sizeof(w->exec_id), "%s", exec_id);
			return w;
		}
	}
	abort();
}

static void fake_answer_wait(struct fake_wait *w)
{
	PB(WaitResponse) r = HARPOON__AGENT__V1__WAIT_RESPONSE__INIT;

	r.exit_status = w->status;
	r.oom_kills = fake.oom_kills;
	rpc_reply(take_ptr(&w->call), &r.base);
	w->ended = false;
}

void fake_exit(const char *exec_id, uint32_t status)
{
	struct fake_wait *w = fake_wait_for(exec_id);

	w->status = status;
	w->ended = true;
	if (w->call)
		fake_answer_wait(w);
}

static void fake_on_wait(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	struct fake_wait *w = fake_wait_for(((const PB(ProcessRef) *)m)->exec_id);

	/* The process was deleted and defined anew meanwhile. */
	if (w->call)
		rpc_fail(take_ptr(&w->call), RPC_NOT_FOUND, "the process was deleted");
	w->call = call;
	if (w->ended)
		fake_answer_wait(w);
}

static void fake_on_empty(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	rpc_reply_empty(call);
}

static void fake_on_create(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	PB(CreateContainerResponse) r = HARPOON__AGENT__V1__CREATE_CONTAINER_RESPONSE__INIT;

	r.pid = 5;
	if (fake.create_code)
		rpc_fail(call, fake.create_code, "%s", fake.create_text);
	else
		rpc_reply(call, &r.base);
}

void fake_answer_start(void)
{
	PB(StartResponse) r = HARPOON__AGENT__V1__START_RESPONSE__INIT;

	r.pid = 7;
	rpc_reply(take_ptr(&the_vm->start_call), &r.base);
}

static void fake_on_exec(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	if (fake.exec_code)
		rpc_fail(call, fake.exec_code, "exec: the fake agent does not want it");
	else
		rpc_reply_empty(call);
}

static void fake_on_start(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	if (fake.exec_code && *((const PB(ProcessRef) *)m)->exec_id) {
		rpc_fail(call, RPC_NOT_FOUND, "there is no such process");
		return;
	}
	the_vm->start_call = call;
	if (fake.exit_on_start)
		fake_exit("", fake.exit_on_start - 1);
	if (!fake.hold_start)
		fake_answer_start();
}

static void fake_on_signal(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	const PB(SignalRequest) *r = (const void *)m;
	cleanup_free char *exec_id = xstrdup(r->exec_id);

	fake.last_signal = r->signal;
	fake.nr_signals++;
	if (fake.signals_ignored) {
		the_vm->signal_call = call;
		return;
	}
	rpc_reply_empty(call);
	if (fake.last_signal == SIGKILL && !fake.kills_ignored)
		fake_exit(exec_id, 137);
}

static void fake_on_stats(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	PB(StatsResponse) r = HARPOON__AGENT__V1__STATS_RESPONSE__INIT;
	PB(CgroupFile) f = HARPOON__AGENT__V1__CGROUP_FILE__INIT;
	PB(CgroupFile) * files[] = {&f};

	f.name = "memory.current";
	f.value = "4096\n";
	r.files = files;
	r.n_files = 1;
	r.mem_total = 1 << 20;
	rpc_reply(call, &r.base);
}

static void fake_on_pids(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	PB(PidsResponse) r = HARPOON__AGENT__V1__PIDS_RESPONSE__INIT;
	/* init, a child of it, the first exec, and what no kernel would say */
	uint32_t pids[] = {5, 6, 7, 0, 4000000000u};

	if (fake.pids_code) {
		rpc_fail(call, fake.pids_code, "no pids");
		return;
	}
	r.pids = pids;
	r.n_pids = ARRAY_SIZE(pids);
	rpc_reply(call, &r.base);
}

void fake_oom(uint64_t kills)
{
	PB(WaitOomResponse) r = HARPOON__AGENT__V1__WAIT_OOM_RESPONSE__INIT;

	r.oom_kills = kills;
	rpc_reply(take_ptr(&the_vm->oom_call), &r.base);
}

static void fake_on_wait_oom(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	the_vm->oom_call = call;
}

static void fake_on_update(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	fake.nr_updates++;
	fake.memory_bytes = ((const Harpoon__Agent__V1__UpdateRequest *)m)->memory_bytes;
	rpc_reply_empty(call);
}

static void fake_on_freeze(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	fake.frozen = true;
	rpc_reply_empty(call);
}

static void fake_on_thaw(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	fake.frozen = false;
	rpc_reply_empty(call);
}

/* Sets the clock at once, as far as it goes, and may take its time to say so. */
static void fake_on_configure(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	if (fake.slow_configures) {
		fake.slow_configures--;
		usleep(30000);
	}
	rpc_reply_empty(call);
}

static void fake_on_clock(struct rpc_call *call, const ProtobufCMessage *m, void *ctx)
{
	PB(ClockResponse) r = HARPOON__AGENT__V1__CLOCK_RESPONSE__INIT;
	const PB(ClockRequest) *q = (const void *)m;
	struct timespec now;

	fake.clock_ahead_ns += q->adjust_ns;
	if (q->adjust_ns)
		fake.clock_gradual = q->gradual;
	clock_gettime(CLOCK_REALTIME, &now);
	r.realtime_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + fake.clock_ahead_ns;
	rpc_reply(call, &r.base);
}

static const struct rpc_method fake_methods[] = {
	{"Configure", &FN(configure_request__descriptor), &FN(empty__descriptor),
	 fake_on_configure},
	{"Clock", &FN(clock_request__descriptor), &FN(clock_response__descriptor), fake_on_clock},
	{"CreateContainer", &FN(create_container_request__descriptor),
	 &FN(create_container_response__descriptor), fake_on_create},
	{"Exec", &FN(exec_request__descriptor), &FN(empty__descriptor), fake_on_exec},
	{"Start", &FN(process_ref__descriptor), &FN(start_response__descriptor), fake_on_start},
	{"Signal", &FN(signal_request__descriptor), &FN(empty__descriptor), fake_on_signal},
	{"Wait", &FN(process_ref__descriptor), &FN(wait_response__descriptor), fake_on_wait},
	{"Resize", &FN(resize_request__descriptor), &FN(empty__descriptor), fake_on_empty},
	{"Pids", &FN(process_ref__descriptor), &FN(pids_response__descriptor), fake_on_pids},
	{"WaitOom", &FN(wait_oom_request__descriptor), &FN(wait_oom_response__descriptor),
	 fake_on_wait_oom},
	{"Stats", &FN(process_ref__descriptor), &FN(stats_response__descriptor), fake_on_stats},
	{"Update", &FN(update_request__descriptor), &FN(empty__descriptor), fake_on_update},
	{"Delete", &FN(process_ref__descriptor), &FN(empty__descriptor), fake_on_empty},
	{"Freeze", &FN(process_ref__descriptor), &FN(empty__descriptor), fake_on_freeze},
	{"Thaw", &FN(process_ref__descriptor), &FN(empty__descriptor), fake_on_thaw},
};
static const struct rpc_service fake_service = {"harpoon.agent.v1.Agent", fake_methods,
						ARRAY_SIZE(fake_methods)};
static const struct rpc_service *const fake_services[] = {&fake_service};

/* ---- streams ---- */

struct fake_stream *fake_find_stream(uint32_t id)
{
	for (size_t i = 0; i < FAKE_STREAMS_MAX; i++) {
		if (fake.streams[i].live && fake.streams[i].id == id)
			return &fake.streams[i];
	}
	return NULL;
}

static void fake_stream_over(struct fake_stream *s, int err)
{
	s->live = false;
	cleanup_closep(&s->rfd);
	cleanup_closep(&s->wfd);
	if (s->done)
		s->done(s->ctx, err);
}

void fake_output(uint32_t id, const char *data)
{
	struct fake_stream *s = fake_find_stream(id);

	if (!s)
		return;
	if (data && write(s->wfd, data, strlen(data)) < 0)
		abort();
	if (!data)
		fake_stream_over(s, 0);
}

int hv_vm_attach_stream(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
			void *ctx, struct hv_stream **ret, struct err *err)
{
	if (id == MUX_STREAM_RPC)
		return rpc_server_add_conn(vm->agent, rfd, err);
	for (size_t i = 0; i < FAKE_STREAMS_MAX; i++) {
		struct fake_stream *s = &fake.streams[i];

		if (s->live)
			continue;
		*s = (struct fake_stream){id, rfd, wfd, done, ctx, true};
		*ret = (struct hv_stream *)s;
		return 0;
	}
	return -ENOSPC;
}

void hv_stream_detach(struct hv_stream *s)
{
	fake_stream_over((struct fake_stream *)s, -ECANCELED);
}

/* ---- the VM ---- */

static void fake_end_process(void)
{
	if (!fake.pid)
		return;
	kill(fake.pid, SIGKILL);
	waitpid(fake.pid, NULL, 0);
	fake.pid = 0;
}

static void fake_on_exit(void *ctx)
{
	struct hv_vm *vm = ctx;

	fake_end_process();
	for (size_t i = 0; i < FAKE_STREAMS_MAX; i++) {
		if (fake.streams[i].live)
			fake_stream_over(&fake.streams[i], -EPIPE);
	}
	vm->cb.on_exit(vm->ctx, &vm->why);
}

static void fake_end(enum hv_exit_kind kind, const char *why)
{
	if (the_vm->ending)
		return;
	the_vm->ending = true;
	the_vm->why.kind = kind;
	snprintf(the_vm->why.text, sizeof(the_vm->why.text), "%s", why);
	loop_timer_arm(fake.loop, &the_vm->exit, 0, fake_on_exit, the_vm);
}

void fake_vm_die(const char *why)
{
	fake_end(HV_EXIT_PANIC, why);
}

void hv_vm_kill(struct hv_vm *vm)
{
	fake_end(HV_EXIT_KILLED, "killed on request");
}

int hv_vm_new(struct loop *loop, const struct hv_params *params, const struct hv_callbacks *cb,
	      void *ctx, struct hv_vm **ret, struct err *err)
{
	struct hv_vm *vm = xcalloc(1, sizeof(*vm));

	vm->cb = *cb;
	vm->ctx = ctx;
	vm->agent = rpc_server_new(loop, fake_services, 1, NULL);
	the_vm = *ret = vm;
	fake.vm_exists = true;
	fake.nr_vms++;
	return 0;
}

void hv_vm_free(struct hv_vm *vm)
{
	loop_timer_cancel(&vm->ready);
	loop_timer_cancel(&vm->exit);
	loop_timer_cancel(&vm->paused);
	loop_timer_cancel(&vm->saved);
	fake_end_process();
	for (size_t i = 0; i < FAKE_STREAMS_MAX; i++) {
		if (fake.streams[i].live)
			fake_stream_over(&fake.streams[i], -ECANCELED);
	}
	/* Every call must be answered once, also by an agent that is gone. */
	for (size_t i = 0; i < FAKE_WAITS_MAX; i++) {
		if (vm->waits[i].call)
			fake_answer_wait(&vm->waits[i]);
	}
	if (vm->start_call)
		fake_answer_start();
	if (vm->oom_call)
		fake_oom(0);
	if (vm->signal_call)
		rpc_reply_empty(vm->signal_call);
	rpc_server_free(vm->agent);
	free(vm);
	the_vm = NULL;
	fake.vm_exists = false;
}

int hv_vm_share(struct hv_vm *vm, const char *name, int dirfd, uint32_t flags, struct err *err)
{
	close(dirfd);
	fake.nr_shares++;
	if (!fake.share_dies)
		return 0;
	fake_vm_die(fake.share_dies);
	return err_set(err, -EPIPE, "share '%s': the file server does not answer", name);
}

static void fake_on_ready(void *ctx)
{
	struct hv_vm *vm = ctx;
	struct hv_ready ready = {.agent_version = 1};

	vm->cb.on_ready(vm->ctx, &ready);
}

int hv_vm_start(struct hv_vm *vm, struct err *err)
{
	if (fake.start_error)
		return err_say(err, -ENOENT, "%s", fake.start_error);
	fake.pid = fork();
	if (!fake.pid) {
		pause();
		_exit(0);
	}
	if (!fake.never_ready)
		loop_timer_arm(fake.loop, &vm->ready, 1000000, fake_on_ready, vm);
	return 0;
}

static void fake_on_paused(void *ctx)
{
	struct hv_vm *vm = ctx;
	hv_done_fn done = vm->pause_done;

	vm->pause_done = NULL;
	fake.paused = true;
	done(vm->pause_ctx, NULL);
}

int hv_vm_pause(struct hv_vm *vm, hv_done_fn done, void *ctx, struct err *err)
{
	vm->pause_done = done;
	vm->pause_ctx = ctx;
	loop_timer_arm(fake.loop, &vm->paused, 50000000, fake_on_paused, vm);
	return 0;
}

static void fake_on_saved(void *ctx)
{
	struct hv_vm *vm = ctx;
	hv_done_fn done = vm->save_done;

	vm->save_done = NULL;
	fake.paused = !fake.save_error;
	done(vm->save_ctx, fake.save_error);
}

void hv_vm_gave_memory(struct hv_vm *vm, uint64_t bytes)
{
	fake.memory_given = bytes;
}

int hv_vm_checkpoint(struct hv_vm *vm, int dir_fd, const char *note, hv_done_fn done, void *ctx,
		     struct err *err)
{
	snprintf(fake.note, sizeof(fake.note), "%s", note);
	vm->save_done = done;
	vm->save_ctx = ctx;
	loop_timer_arm(fake.loop, &vm->saved, 1000000, fake_on_saved, vm);
	return 0;
}

int hv_checkpoint_open(int dir_fd, struct hv_checkpoint **ret, struct err *err)
{
	return err_say(err, -EPROTO, "its manifest is damaged, or is none");
}

void hv_checkpoint_free(struct hv_checkpoint *c)
{
}

const char *hv_checkpoint_note(const struct hv_checkpoint *c)
{
	return fake.note;
}

int hv_vm_resume(struct hv_vm *vm, struct err *err)
{
	fake.paused = false;
	return 0;
}

pid_t hv_vm_pid(const struct hv_vm *vm)
{
	return fake.pid;
}

const char *hv_vm_backend(const struct hv_vm *vm)
{
	return "fake";
}

int hv_vm_footprint(const struct hv_vm *vm, struct hv_footprint *ret, struct err *err)
{
	return -ENOTSUP;
}

void hv_vm_build_template(struct hv_vm *vm)
{
}

int hv_choose_backend(const struct config *config, struct hv_choice *ret, struct err *err)
{
	snprintf(ret->why, sizeof(ret->why), "it is a \"test\"");
	return 0;
}

int hv_cleanup_state(int state_dir_fd, struct err *err)
{
	return 0;
}

/* ---- the network: namespaces take root, which these tests do without ---- */

struct network {
	char unused;
};

int network_new(const struct oci_spec *spec, const struct config *config, struct network **ret,
		struct err *err)
{
	*ret = xcalloc(1, sizeof(**ret));
	return 0;
}

void network_free(struct network *n)
{
	free(n);
}

int network_netns(const struct network *n)
{
	return -1;
}

const struct hv_nic *network_nics(const struct network *n, size_t *ret_nr)
{
	*ret_nr = 0;
	return NULL;
}

enum network_mode network_mode(const struct network *n)
{
	return NETWORK_OWN;
}

const struct hv_helper *network_helper(const struct network *n)
{
	return NULL;
}

void network_vm_started(struct network *n)
{
}

int network_connect(struct network *n, int state_fd, VMREQ_PB(NetworkRequest) * *ret,
		    struct err *err)
{
	*ret = NULL;
	return 0;
}

void network_clean_up(int state_fd)
{
}
