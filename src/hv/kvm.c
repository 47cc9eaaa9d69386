/*
 * The kvm backend: harpoon-vmm, our own monitor, in a jail that holds nothing, driven over one socket (vmm_control.h).
 *
 * Everything it works with is opened here and handed over: /dev/kvm, kernel, initrd, taps. Streams are its
 * own: the descriptors go to it, and bytes between container and client never pass through this process.
 *
 * A guest may have taken harpoon-vmm over. So from it come fixed-size messages only, descriptors sent along are
 * dropped by the kernel, and each message is believed only where it is due: what is not ends the VM.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "kvm_internal.h"
#include "log.h"
#include "text.h"

#define KVM_PAGE 4096u
/* Virtio devices of a machine (docs/vmm.md), and how many of them every VM of ours has:
 * vsock, file system, balloon, entropy. */
#define KVM_SLOTS 19
#define KVM_SLOTS_TAKEN 4
#define KVM_CALL_TIMEOUT_NS 5000000000ull
#define KVM_SAVE_TIMEOUT_NS 60000000000ull
/* Besides: bytes of memory a second, on whatever disk. */
#define KVM_SAVE_SPEED (16u << 20)

static int kvm_new(struct hv_vm *vm, struct err *err)
{
	struct kvm *k;

	if (vm->params.mem_bytes % KVM_PAGE)
		return err_say(err, -EINVAL, "memory must be whole pages, not %llu bytes",
			       (unsigned long long)vm->params.mem_bytes);
	if (vm->params.nr_disks + vm->params.nr_nics > KVM_SLOTS - KVM_SLOTS_TAKEN)
		return err_say(err, -ENOSPC,
			       "%zu disks and %zu network devices: harpoon-vmm has room for %d "
			       "together (key 'nics' of harpoon.conf)",
			       vm->params.nr_disks, vm->params.nr_nics,
			       KVM_SLOTS - KVM_SLOTS_TAKEN);
	k = xcalloc(1, sizeof(*k));
	k->vm = vm;
	k->sock = -1;
	list_init(&k->streams);
	vm->backend = k;
	return 0;
}

int kvm_send(struct kvm *k, struct vmm_request *req, const int *fds, size_t nr_fds)
{
	req->version = VMM_CONTROL_VERSION;
	return io_send_fds(k->sock, req, sizeof(*req), fds, nr_fds);
}

/* ---- events ---- */

static void kvm_call_answered(struct kvm *k)
{
	k->expected = 0;
	loop_timer_cancel(&k->call_timer);
}

/* Words of a VMM that a guest may have taken over. */
static void kvm_escape(const struct vmm_event *e, char *ret, size_t room)
{
	size_t used = 0;

	text_escape(e->text, strnlen(e->text, sizeof(e->text)), false, ret, room, &used);
	ret[MIN(used, room - 1)] = '\0';
}

static void kvm_on_end(struct kvm *k, const struct vmm_event *e)
{
	k->end = e->kind == VMM_EVENT_RESET ? KVM_END_RESET : KVM_END_FAILED;
	kvm_escape(e, k->end_text, sizeof(k->end_text));
}

static void kvm_on_saved(struct kvm *k, const struct vmm_event *e)
{
	char why[sizeof(k->end_text)];

	if (e->error)
		kvm_escape(e, why, sizeof(why));
	k->on_saved(k->saved_ctx, e->error ? why : NULL);
}

static bool kvm_is_due(struct kvm *k, const struct vmm_event *e)
{
	if (k->end != KVM_END_NONE)
		return false;
	switch (e->kind) {
	case VMM_EVENT_RUNNING:
		return !k->running;
	case VMM_EVENT_HELLO:
		return k->running && !k->greeted && e->len <= sizeof(e->hello);
	case VMM_EVENT_PAUSED:
	case VMM_EVENT_RESUMED:
	case VMM_EVENT_SAVED:
		return k->expected == e->kind && e->error <= 0;
	case VMM_EVENT_STREAM_DONE:
		return e->error <= 0 && kvm_find_stream(k, e->stream);
	case VMM_EVENT_RESET:
		return k->running;
	case VMM_EVENT_FAILED:
		return true;
	default:
		return false;
	}
}

/* 0, or -EPROTO. The VM may be gone afterwards; k is not. */
static int kvm_handle(struct kvm *k, const struct vmm_event *e)
{
	if (!kvm_is_due(k, e)) {
		log_dbg("hv", "harpoon-vmm sent event %u where none such is due", e->kind);
		return -EPROTO;
	}
	switch (e->kind) {
	case VMM_EVENT_RUNNING:
		k->running = true;
		/* A clone's agent greets once more, when it runs again. */
		k->vm->ready.host_kernel_ns = util_now_ns();
		break;
	case VMM_EVENT_HELLO:
		k->greeted = true;
		if (k->vm->params.birth == HV_BIRTH_TEMPLATE)
			hv_record(k->vm, e->hello, e->len);
		hv_greeted(k->vm, e->hello, e->len);
		break;
	case VMM_EVENT_SAVED:
		kvm_call_answered(k);
		kvm_on_saved(k, e);
		break;
	case VMM_EVENT_STREAM_DONE:
		kvm_stream_over(kvm_find_stream(k, e->stream), e->error);
		break;
	case VMM_EVENT_RESET:
	case VMM_EVENT_FAILED:
		kvm_on_end(k, e);
		break;
	case VMM_EVENT_PAUSED:
		kvm_call_answered(k);
		hv_paused(k->vm, NULL);
		break;
	default:
		kvm_call_answered(k);
	}
	return 0;
}

/* 1 = *ret is an event, 0 = none now, -EPIPE, -EPROTO. Descriptors that come along are not taken. */
static int kvm_receive(struct kvm *k, struct vmm_event *ret)
{
	/* One byte more than an event, to tell a message that is too long. */
	char message[sizeof(*ret) + 1];
	ssize_t n;

	do
		n = recv(k->sock, message, sizeof(message), MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0)
		return -EPIPE;
	if (n != sizeof(*ret))
		return -EPROTO;
	memcpy(ret, message, sizeof(*ret));
	return 1;
}

/* The socket is at its end, or what came is none of ours. */
static void kvm_socket_over(struct kvm *k, int error)
{
	loop_watch_remove(k->watch);
	k->watch = NULL;
	kvm_call_answered(k);
	if (error == -EPROTO)
		hv_end(k->vm, HV_EXIT_FAILED, "harpoon-vmm does not keep to its own protocol");
	kvm_end_streams(k, -ECONNRESET);
	if (!k->freed)
		hv_channel_ended(k->vm, -EPIPE);
}

static void kvm_leave(struct kvm *k)
{
	if (!--k->depth && k->freed)
		free(k);
}

/* One event a round: others get their turn however much it babbles, and a callback may free the VM. */
static void kvm_on_socket(void *ctx, uint32_t events)
{
	struct kvm *k = ctx;
	struct vmm_event e;
	int r = kvm_receive(k, &e);

	k->depth++;
	if (r > 0)
		r = kvm_handle(k, &e);
	if (r < 0 && !k->freed)
		kvm_socket_over(k, r);
	kvm_leave(k);
}

static int kvm_start(struct hv_vm *vm, int fs_fd, struct err *err)
{
	return kvm_launch(vm, fs_fd, kvm_on_socket, err);
}

/* ---- pause, end ---- */

static void kvm_on_call_timeout(void *ctx)
{
	struct kvm *k = ctx;

	hv_end(k->vm, HV_EXIT_FAILED, "harpoon-vmm does not stop or continue the guest");
}

static int kvm_call(struct hv_vm *vm, enum vmm_op op, enum vmm_event_kind answer, struct err *err)
{
	struct vmm_request req = {.op = op};
	struct kvm *k = vm->backend;
	int r = k->expected || !k->running ? -EAGAIN : kvm_send(k, &req, NULL, 0);

	if (r)
		return err_set(err, r, "stop or continue the guest");
	k->expected = answer;
	loop_timer_arm(vm->loop, &k->call_timer, KVM_CALL_TIMEOUT_NS, kvm_on_call_timeout, k);
	return 0;
}

static int kvm_pause(struct hv_vm *vm, struct err *err)
{
	return kvm_call(vm, VMM_OP_PAUSE, VMM_EVENT_PAUSED, err);
}

static int kvm_resume(struct hv_vm *vm, struct err *err)
{
	return kvm_call(vm, VMM_OP_RESUME, VMM_EVENT_RESUMED, err);
}

/* ---- templates ---- */

/* The program itself: what it makes of a machine is its own matter. */
static int kvm_describe(const struct hv_params *p, FILE *f, struct err *err)
{
	struct stat st;
	size_t nr_taps = 0;

	if (stat(p->config->vmm, &st))
		return err_set(err, -errno, "harpoon-vmm '%s'", p->config->vmm);
	for (size_t i = 0; i < p->nr_nics; i++)
		nr_taps += p->nics[i].kind == HV_NIC_TAP;
	fprintf(f, "vmm ino=%ju size=%jd mtime=%jd.%09ld ctime=%jd.%09ld\n", (uintmax_t)st.st_ino,
		(intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
		(intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
	fprintf(f, "control %u\nkernel_args %s\ntaps %zu\nstreams %zu\n", VMM_CONTROL_VERSION,
		p->config->kernel_args, nr_taps, p->nr_nics - nr_taps);
	if (p->nr_disks)
		fprintf(f, "disks %zu\n", p->nr_disks);
	if (p->config->dax_window_mib)
		fprintf(f, "dax_window %u\n", p->config->dax_window_mib);
	return 0;
}

static int kvm_save(struct hv_vm *vm, int state_fd, int memory_fd, hv_saved_fn done, void *ctx,
		    struct err *err)
{
	struct vmm_request req = {.op = VMM_OP_SAVE, .save.used_bytes = hv_used_bytes(vm)};
	struct kvm *k = vm->backend;
	uint64_t limit = KVM_SAVE_TIMEOUT_NS + req.save.used_bytes / KVM_SAVE_SPEED * 1000000000;
	int r = -EAGAIN;

	if (vm->params.birth == HV_BIRTH_TEMPLATE)
		req.save.flags = VMM_SAVE_SETTLED;
	if (!k->expected && k->running)
		r = kvm_send(k, &req, (const int[]){state_fd, memory_fd}, 2);
	if (r)
		return err_set(err, r, "save the guest");
	k->on_saved = done;
	k->saved_ctx = ctx;
	k->expected = VMM_EVENT_SAVED;
	loop_timer_arm(vm->loop, &k->call_timer, limit, kvm_on_call_timeout, k);
	return 0;
}

static uint32_t kvm_tsc_khz(const struct hv_vm *vm)
{
	return 0;
}

/* Its last words, without a callback: a stream's end is noted, for the socket's end to tell. */
static void kvm_drain(struct kvm *k)
{
	struct vmm_event e;

	while (k->watch && kvm_receive(k, &e) > 0) {
		if (!kvm_is_due(k, &e))
			continue;
		if (e.kind == VMM_EVENT_RUNNING)
			k->running = true;
		else if (e.kind == VMM_EVENT_RESET || e.kind == VMM_EVENT_FAILED)
			kvm_on_end(k, &e);
		else if (e.kind == VMM_EVENT_STREAM_DONE) {
			struct kvm_stream *s = kvm_find_stream(k, e.stream);

			s->is_over = true;
			s->error = e.error;
		}
	}
}

static void kvm_explain_exit(struct hv_vm *vm, struct hv_exit *ret)
{
	struct kvm *k = vm->backend;
	char how[100];

	kvm_drain(k);
	if (k->end == KVM_END_RESET) {
		hv_explain_reset(vm, ret);
		return;
	}
	ret->kind = HV_EXIT_FAILED;
	if (k->end == KVM_END_FAILED) {
		snprintf(ret->text, sizeof(ret->text), "harpoon-vmm: %.220s", k->end_text);
		return;
	}
	child_describe_exit(&vm->vmm, how, sizeof(how));
	if (vm->vmm.status == 128 + SIGKILL || vm->vmm.status == 128 + SIGTERM)
		ret->kind = HV_EXIT_KILLED;
	snprintf(ret->text, sizeof(ret->text), "harpoon-vmm %s", how);
}

static void kvm_free(struct hv_vm *vm)
{
	struct kvm *k = vm->backend;

	if (!k)
		return;
	vm->backend = NULL;
	k->freed = true;
	k->depth++;
	loop_watch_remove(k->watch);
	k->watch = NULL;
	loop_timer_cancel(&k->call_timer);
	kvm_end_streams(k, -ECANCELED);
	cleanup_closep(&k->sock);
	kvm_leave(k);
}

const struct hv_ops hv_kvm_ops = {
	.name = "kvm",
	.fs_channel = FS_SERVER_VMM,
	.new = kvm_new,
	.start = kvm_start,
	.pause = kvm_pause,
	.resume = kvm_resume,
	.describe = kvm_describe,
	.save = kvm_save,
	.tsc_khz = kvm_tsc_khz,
	.attach = kvm_attach,
	.detach = kvm_detach,
	.explain_exit = kvm_explain_exit,
	.free = kvm_free,
};
