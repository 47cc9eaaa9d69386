/*
 * One virtual machine: its processes, its shares, its streams, and the order in which things end. See
 * hv.h for the contract, hv_internal.h for what a backend adds.
 *
 * Life: HV_NEW -> hv_vm_start -> HV_RUNNING -> the first cause of an end (hv_end) -> HV_ENDING: every
 * process is killed -> all are reaped and the agent's channel is read to its end -> HV_ENDED, on_exit.
 *
 * Who ends first? The file server ends by itself when the VMM's socket closes, and pidfds do not tell
 * which of two processes was first. So when the server ends in good order, or the agent's channel closes,
 * the VMM gets HV_GRACE_NS to follow, and its own explanation wins. A server killed by a signal is a cause
 * by itself.
 *
 * Thread: the loop's. on_ready and on_exit come from the loop and may free the VM.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "agent_hello.h"
#include "cleanup.h"
#include "fs_control.h"
#include "hv_internal.h"
#include "log.h"
#include "mux.h"

#define HV_MS 1000000ull
/* QEMU closes its sockets well before it is gone: unmapping guest memory on a busy host takes time. */
#define HV_GRACE_NS (5000 * HV_MS)
/* A clone takes a tenth of a second. On a host so busy that it takes this long a boot takes longer still. */
#define HV_CLONE_TIMEOUT_NS (20000 * HV_MS)

static_assert(HV_SHARE_NAME_MAX == FS_CONTROL_NAME_MAX, "names fit both ways");
static_assert(HV_SHARE_READ_ONLY == FS_CONTROL_READ_ONLY, "flags are passed on as they are");
static_assert(HV_SHARE_EXCLUSIVE == FS_CONTROL_EXCLUSIVE, "flags are passed on as they are");
static_assert(HV_SHARE_DEVICES == FS_CONTROL_ALLOW_DEVICES, "flags are passed on as they are");

void hv_paused(struct hv_vm *vm, const char *error)
{
	hv_done_fn done = vm->pause_done;

	vm->pause_done = NULL;
	if (done)
		done(vm->pause_ctx, error);
}

static void hv_on_final(void *ctx)
{
	struct hv_vm *vm = ctx;

	vm->state = HV_ENDED;
	log_dbg("hv", "VM ended: %s", vm->why.text);
	hv_paused(vm, "the VM ended");
	hv_checkpoint_end(vm, "the VM ended");
	vm->cb.on_exit(vm->ctx, &vm->why);
	/* The VM may be gone now. */
}

/* Is everything over? Then on_exit, in a round of its own. */
static void hv_check_final(struct hv_vm *vm)
{
	if (vm->state != HV_ENDING || child_is_running(&vm->vmm) ||
	    child_is_running(&vm->fs.child) || child_is_running(&vm->net_helper) ||
	    (vm->channel_open && !vm->channel_over))
		return;
	if (!vm->exit_timer.loop)
		loop_timer_arm(vm->loop, &vm->exit_timer, 0, hv_on_final, vm);
}

void hv_end(struct hv_vm *vm, enum hv_exit_kind kind, const char *fmt, ...)
{
	va_list ap;

	if (vm->state != HV_RUNNING)
		return;
	vm->why.kind = kind;
	va_start(ap, fmt);
	vsnprintf(vm->why.text, sizeof(vm->why.text), fmt, ap);
	va_end(ap);
	loop_timer_cancel(&vm->ready_timer);
	loop_timer_cancel(&vm->grace_timer);
	if (hv_clone_falls_back(vm, kind, vm->why.text))
		return;
	vm->state = HV_ENDING;
	hv_clone_settle(vm);
	child_kill(&vm->vmm);
	child_kill(&vm->fs.child);
	child_kill(&vm->net_helper);
	hv_check_final(vm);
}

static void hv_on_net_helper_exit(void *ctx)
{
	struct hv_vm *vm = ctx;
	char how[200];

	/* It follows the VMM, whose end may not be known yet; then nobody misses it. */
	if (vm->state == HV_RUNNING) {
		child_describe_exit(&vm->net_helper, how, sizeof(how));
		log_info("hv", "the user-mode network %s", how);
	}
	hv_check_final(vm);
}

/* QEMU's complaint about a file server that is not one says little: name the program. */
static void hv_blame_fs(const struct hv_vm *vm, struct hv_exit *why)
{
	size_t len = strlen(why->text);
	char how[100];

	if (why->kind != HV_EXIT_FAILED || child_is_running(&vm->fs.child))
		return;
	child_describe_exit(&vm->fs.child, how, sizeof(how));
	snprintf(why->text + len, sizeof(why->text) - len, "; the file server '%.60s' %s",
		 vm->fs.binary, how);
}

static void hv_on_vmm_exit(void *ctx)
{
	struct hv_vm *vm = ctx;
	struct hv_exit why = {0};

	if (vm->state == HV_RUNNING) {
		if (vm->console)
			console_drain(vm->console);
		vm->ops->explain_exit(vm, &why);
		/* What cannot be restored the file server knows best. */
		if (vm->is_ready || !fs_server_complains(&vm->fs, why.text, sizeof(why.text)))
			hv_blame_fs(vm, &why);
		hv_end(vm, why.kind, "%s", why.text);
	}
	hv_check_final(vm);
}

static void hv_on_fs_alone(void *ctx)
{
	struct hv_vm *vm = ctx;
	char how[200];

	child_describe_exit(&vm->fs.child, how, sizeof(how));
	hv_end(vm, HV_EXIT_FAILED, "the file server %s", how);
}

static void hv_on_fs_exit(void *ctx)
{
	struct hv_vm *vm = ctx;

	if (vm->state == HV_RUNNING && !vm->falling_back && child_is_running(&vm->vmm)) {
		uint64_t grace_ns = vm->fs.child.status > 128 ? 0 : HV_GRACE_NS;

		loop_timer_arm(vm->loop, &vm->grace_timer, grace_ns, hv_on_fs_alone, vm);
	}
	hv_check_final(vm);
}

static void hv_on_ready_timeout(void *ctx)
{
	struct hv_vm *vm = ctx;
	const char *line = vm->console ? console_last_words(vm->console) : "";

	hv_end(vm, HV_EXIT_FAILED, "the agent was not ready after %u ms; last console line: %s",
	       vm->params.config->ready_timeout_ms, *line ? line : "(none)");
}

static void hv_on_channel_alone(void *ctx)
{
	hv_end(ctx, HV_EXIT_FAILED, "the VMM closed the channel to the agent");
}

/* The agent's greeting. The guest is hostile: nothing in it is believed beyond being a number. */
void hv_greeted(struct hv_vm *vm, const void *data, size_t len)
{
	struct agent_hello hello;

	if (vm->state != HV_RUNNING)
		return;
	if (len != sizeof(hello)) {
		hv_end(vm, HV_EXIT_FAILED, "the agent's greeting has %zu bytes, not %zu", len,
		       sizeof(hello));
		return;
	}
	memcpy(&hello, data, sizeof(hello));
	if (hello.magic != AGENT_HELLO_MAGIC || hello.version != AGENT_PROTOCOL_VERSION) {
		hv_end(vm, HV_EXIT_FAILED,
		       "the agent speaks protocol %u, we speak %u: the initrd is of another "
		       "version of harpoon",
		       hello.version, AGENT_PROTOCOL_VERSION);
		return;
	}
	vm->ready.host_ready_ns = util_now_ns();
	/* Where the VMM does not tell when the guest began, its first sign of life does. */
	if (!vm->ready.host_kernel_ns)
		vm->ready.host_kernel_ns = console_first_ns(vm->console);
	vm->ready.guest_init_ns = hello.guest_init_ns;
	vm->ready.guest_ready_ns = hello.guest_ready_ns;
	vm->ready.agent_version = hello.version;
	vm->is_ready = true;
	vm->ready.is_restored = vm->is_restored;
	vm->ready.is_clone = vm->tmpl && !vm->is_restored;
	loop_timer_cancel(&vm->ready_timer);
	hv_clone_settle(vm);
	vm->cb.on_ready(vm->ctx, &vm->ready);
	/* The VM may be gone now. */
}

void hv_channel_opened(struct hv_vm *vm)
{
	vm->channel_open = true;
}

void hv_channel_ended(struct hv_vm *vm, int err)
{
	vm->channel_over = true;
	if (err == -EPROTO)
		hv_end(vm, HV_EXIT_FAILED, "the guest broke the protocol of its channel");
	else if (vm->state == HV_RUNNING && !vm->falling_back && child_is_running(&vm->vmm))
		loop_timer_arm(vm->loop, &vm->grace_timer, HV_GRACE_NS, hv_on_channel_alone, vm);
	hv_check_final(vm);
}

void hv_explain_reset(const struct hv_vm *vm, struct hv_exit *ret)
{
	const char *line = console_last_words(vm->console);

	if (!console_saw_panic(vm->console) && console_saw_restart(vm->console)) {
		ret->kind = HV_EXIT_POWEROFF;
		snprintf(ret->text, sizeof(ret->text), "the guest ended by itself");
		return;
	}
	ret->kind = HV_EXIT_PANIC;
	snprintf(ret->text, sizeof(ret->text), "the guest crashed: %s",
		 *line ? line : "it reset itself and its console is empty");
}

static int hv_check_params(const struct hv_params *p, struct err *err)
{
	uint64_t max = (uint64_t)CONFIG_MEM_MAX_MIB << 20, min = (uint64_t)CONFIG_MEM_MIN_MIB << 20;

	if (!p->nr_vcpus || p->nr_vcpus > CONFIG_VCPUS_MAX)
		return err_say(err, -EINVAL, "a VM has 1 to %d vCPUs, not %u", CONFIG_VCPUS_MAX,
			       p->nr_vcpus);
	if (p->mem_bytes < min || p->mem_bytes > max)
		return err_say(err, -EINVAL, "a VM has %d to %d MiB of memory, not %llu",
			       CONFIG_MEM_MIN_MIB, CONFIG_MEM_MAX_MIB,
			       (unsigned long long)(p->mem_bytes >> 20));
	if (p->nr_nics > HV_NICS_MAX)
		return err_say(err, -EINVAL, "a VM has at most %d network devices, not %zu",
			       HV_NICS_MAX, p->nr_nics);
	if (p->nr_disks > HV_DISKS_MAX)
		return err_say(err, -EINVAL, "a VM has at most %d disks, not %zu", HV_DISKS_MAX,
			       p->nr_disks);
	return 0;
}

void hv_init_processes(struct hv_vm *vm)
{
	child_init(&vm->vmm, vm->loop, vm->ops->name, hv_on_vmm_exit, vm);
	fs_server_init(&vm->fs, vm->loop, hv_on_fs_exit, vm);
	vm->vmm.cgroup_fds = vm->fs.child.cgroup_fds = vm->params.cgroup_fds;
	vm->vmm.nr_cgroup_fds = vm->fs.child.nr_cgroup_fds = vm->params.nr_cgroup_fds;
}

void hv_drop_processes(struct hv_vm *vm)
{
	loop_timer_cancel(&vm->grace_timer);
	/* Both are signalled before the first is waited for. */
	child_kill(&vm->vmm);
	child_kill(&vm->fs.child);
	child_done(&vm->vmm);
	fs_server_done(&vm->fs);
	vm->ops->free(vm);
	console_free(take_ptr(&vm->console));
	vm->channel_open = vm->channel_over = false;
}

const struct hv_ops *hv_ops_of(enum config_backend backend)
{
	return backend == CONFIG_BACKEND_KVM ? &hv_kvm_ops : &hv_qemu_ops;
}

static void hv_vm_freep(struct hv_vm **vm)
{
	hv_vm_free(*vm);
}

int hv_vm_new(struct loop *loop, const struct hv_params *params, const struct hv_callbacks *cb,
	      void *ctx, struct hv_vm **ret, struct err *err)
{
	cleanup(hv_vm_freep) struct hv_vm *vm = NULL;
	struct hv_choice choice;
	int r = hv_check_params(params, err);

	if (!r)
		r = hv_choose_backend(params->config, &choice, err);
	if (r)
		return r;
	log_info("hv", "backend %s: %s", config_backend_name(choice.backend), choice.why);
	vm = xcalloc(1, sizeof(*vm));
	vm->ops = hv_ops_of(choice.backend);
	vm->loop = loop;
	vm->cb = *cb;
	vm->ctx = ctx;
	vm->params = *params;
	vm->id = xstrdup(params->id);
	vm->params.id = vm->id;
	list_init(&vm->shares);
	for (size_t i = 0; i < HV_DISKS_MAX; i++)
		vm->disks[i].fd = -1;
	for (size_t i = 0; i < HV_NICS_MAX; i++)
		vm->nics[i].fd = -1;
	hv_init_processes(vm);
	child_init(&vm->net_helper, loop, "net", hv_on_net_helper_exit, vm);
	vm->net_helper.cgroup_fds = params->cgroup_fds;
	vm->net_helper.nr_cgroup_fds = params->nr_cgroup_fds;
	r = vm->ops->new (vm, err);
	if (r)
		return r;
	*ret = take_ptr(&vm);
	return 0;
}

static void hv_share_free(struct hv_share *s)
{
	list_remove(&s->link);
	cleanup_closep(&s->fd);
	free(s);
}

void hv_share_free_all(struct hv_vm *vm)
{
	struct hv_share *s;

	list_for_each (s, &vm->shares, link)
		hv_share_free(s);
}

void hv_vm_free(struct hv_vm *vm)
{
	if (!vm)
		return;
	loop_timer_cancel(&vm->ready_timer);
	loop_timer_cancel(&vm->exit_timer);
	hv_checkpoint_drop(vm);
	child_kill(&vm->net_helper);
	hv_drop_processes(vm);
	child_done(&vm->net_helper);
	hv_clone_settle(vm);
	hv_share_free_all(vm);
	free(vm->shape);
	free(vm->id);
	free(vm);
}

static int hv_check_share_name(const char *name, struct err *err)
{
	size_t len = strnlen(name, HV_SHARE_NAME_MAX);

	if (!len || len == HV_SHARE_NAME_MAX || strchr(name, '/') || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		return err_say(err, -EINVAL, "'%.80s' is no name for a share", name);
	return 0;
}

int hv_vm_share(struct hv_vm *vm, const char *name, int dirfd, uint32_t flags, struct err *err)
{
	cleanup_close int fd = dirfd;
	struct hv_share *s;
	int r = hv_check_share_name(name, err);

	if (r)
		return r;
	if (flags & ~(HV_SHARE_READ_ONLY | HV_SHARE_EXCLUSIVE | HV_SHARE_DEVICES))
		return err_say(err, -EINVAL, "share '%s': unknown flags 0x%x", name, flags);
	if (vm->state == HV_RUNNING && !vm->falling_back)
		r = fs_server_export(&vm->fs, name, fd, flags, err);
	else if (vm->state > HV_RUNNING)
		return err_say(err, -ESHUTDOWN, "share '%s': the VM has ended", name);
	/* A clone may have to be started once more. */
	if (r || (vm->state == HV_RUNNING && !vm->tmpl && !vm->falling_back))
		return r;
	s = xcalloc(1, sizeof(*s));
	snprintf(s->name, sizeof(s->name), "%s", name);
	s->fd = take_fd(&fd);
	s->flags = flags;
	list_append(&vm->shares, &s->link);
	return 0;
}

static int hv_save_processes(const struct hv_vm *vm, struct err *err)
{
	const struct child *children[] = {&vm->vmm, &vm->fs.child, &vm->net_helper};
	struct procs_entry entries[ARRAY_SIZE(children)];
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(children); i++) {
		int r;

		if (!children[i]->pid)
			continue;
		r = procs_start_time(children[i]->pid, &entries[nr].start_time);
		if (r)
			return err_set(err, r, "start time of pid %d", (int)children[i]->pid);
		snprintf(entries[nr].role, sizeof(entries[nr].role), "%s", children[i]->role);
		entries[nr++].pid = children[i]->pid;
	}
	return procs_save(vm->params.state_dir_fd, entries, nr, err);
}

static int hv_start_net_helper(struct hv_vm *vm, struct err *err)
{
	const struct hv_helper *h = vm->params.net_helper;

	static_assert(HV_HELPER_FD == SPAWN_FD_FIRST, "the one descriptor is the first");
	/* A clone that is started again, cold, keeps it. */
	if (!h || vm->net_helper.pid)
		return 0;
	return child_start(&vm->net_helper,
			   &(struct spawn_params){
				   .path = h->path,
				   .argv = h->argv,
				   .fds = &h->fd,
				   .nr_fds = 1,
			   },
			   err);
}

/* Both processes, with a socket pair between them that nobody else keeps. */
static int hv_start_processes(struct hv_vm *vm, struct err *err)
{
	cleanup_close int fs_end = -1;
	cleanup_close int vmm_end = -1;
	enum fs_server_channel channel = vm->ops->fs_channel;
	int type = channel == FS_SERVER_VMM ? SOCK_SEQPACKET : SOCK_STREAM, pair[2], r;

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socketpair");
	fs_end = pair[0];
	vmm_end = pair[1];
	r = fs_server_start(&vm->fs, vm->params.config->fs_server, channel, fs_end, err);
	if (!r)
		r = hv_start_net_helper(vm, err);
	if (!r)
		r = hv_save_processes(vm, err);
	if (!r)
		r = vm->ops->start(vm, vmm_end, err);
	vm->ready.host_spawn_ns = util_now_ns();
	return r ? r : hv_save_processes(vm, err);
}

static int hv_export_shares(struct hv_vm *vm, struct err *err)
{
	struct hv_share *s;

	list_for_each (s, &vm->shares, link) {
		int r = fs_server_export(&vm->fs, s->name, s->fd, s->flags, err);

		if (r)
			return r;
	}
	if (!vm->tmpl)
		hv_share_free_all(vm);
	return 0;
}

/* The file server answers while QEMU starts. */
int hv_start_all(struct hv_vm *vm, struct err *err)
{
	int r = hv_start_processes(vm, err);

	if (!r)
		r = hv_export_shares(vm, err);
	if (r)
		return r;
	vm->state = HV_RUNNING;
	loop_timer_arm(vm->loop, &vm->ready_timer,
		       vm->tmpl ? HV_CLONE_TIMEOUT_NS : vm->params.config->ready_timeout_ms * HV_MS,
		       hv_on_ready_timeout, vm);
	return 0;
}

int hv_vm_start(struct hv_vm *vm, struct err *err)
{
	int r;

	if (vm->state != HV_NEW)
		return err_say(err, -EALREADY, "VM '%s' was started before", vm->id);
	vm->ready.host_start_ns = util_now_ns();
	r = hv_clone_look_up(vm, err);
	if (!r)
		r = hv_start_all(vm, err);
	if (r && vm->tmpl && !vm->is_restored)
		r = hv_clone_start_failed(vm, r, err);
	vm->params.nics = NULL; /* the caller's, until now */
	vm->params.net_helper = NULL;
	vm->params.disks = NULL;
	vm->params.nr_disks = 0;
	vm->params.restore = NULL;
	if (r) {
		/* Nothing runs on after a failed start; no callback either. */
		vm->state = HV_ENDED;
		child_done(&vm->vmm);
		child_done(&vm->net_helper);
		fs_server_done(&vm->fs);
	}
	return r;
}

void hv_vm_kill(struct hv_vm *vm)
{
	hv_end(vm, HV_EXIT_KILLED, "killed on request");
}

static int hv_check_running(const struct hv_vm *vm, const char *what, struct err *err)
{
	if (vm->state == HV_RUNNING)
		return 0;
	return err_say(err, -ESHUTDOWN, "%s: VM '%s' does not run", what, vm->id);
}

int hv_vm_pause(struct hv_vm *vm, hv_done_fn done, void *ctx, struct err *err)
{
	int r = hv_check_running(vm, "pause", err);

	if (!r && vm->pause_done)
		r = err_say(err, -EBUSY, "VM '%s' is being paused already", vm->id);
	if (!r)
		r = vm->ops->pause(vm, err);
	if (r)
		return r;
	vm->pause_done = done;
	vm->pause_ctx = ctx;
	return 0;
}

int hv_vm_resume(struct hv_vm *vm, struct err *err)
{
	int r = hv_check_running(vm, "resume", err);

	if (!r)
		r = vm->ops->resume(vm, err);
	/* After a checkpoint: the agent takes no notice of a word that it was not told to wait for. */
	if (!r && vm->mux)
		mux_go(vm->mux);
	return r;
}

int hv_vm_attach_stream(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
			void *ctx, struct hv_stream **ret, struct err *err)
{
	struct hv_stream *s;
	int r;

	if (!vm->channel_open || vm->channel_over) {
		if (rfd >= 0)
			close(rfd);
		if (wfd >= 0 && wfd != rfd)
			close(wfd);
		return err_say(err, -ESHUTDOWN, "stream %u: VM '%s' does not run", id, vm->id);
	}
	r = vm->ops->attach(vm, id, rfd, wfd, done, ctx, &s);
	if (r)
		return err_set(err, r, "attach stream %u", id);
	if (ret)
		*ret = s;
	return 0;
}

void hv_stream_detach(struct hv_stream *s)
{
	s->ops->detach(s);
}

pid_t hv_vm_pid(const struct hv_vm *vm)
{
	return vm->vmm.pid;
}

const char *hv_vm_backend(const struct hv_vm *vm)
{
	return vm->ops->name;
}

int hv_vm_footprint(const struct hv_vm *vm, struct hv_footprint *ret, struct err *err)
{
	struct hv_footprint f = {0};
	int r = hv_check_running(vm, "memory", err);

	if (r)
		return r;
	r = procs_pss(vm->vmm.pid, &f.vmm_pss_bytes);
	if (!r)
		r = procs_pss(vm->fs.child.pid, &f.fs_pss_bytes);
	if (r)
		return err_set(err, r, "read the memory of VM '%s' from /proc", vm->id);
	f.pss_bytes = f.vmm_pss_bytes + f.fs_pss_bytes;
	*ret = f;
	return 0;
}
