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
#include <fcntl.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "hv_internal.h"
#include "io.h"
#include "kernel_args.h"
#include "kernel_image.h"
#include "log.h"
#include "text.h"
#include "vmm_control.h"

#define KVM_PATH "/dev/kvm"
#define KVM_PAGE 4096u
#define KVM_GUEST_CID 3
/* What the agent mounts, as on every backend. */
#define KVM_FS_TAG "harpoon"
/* The virtio 1.x header, and everything the device offers to the guest. */
#define KVM_TAP_HEADER 12
#define KVM_TAP_OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
#define KVM_CALL_TIMEOUT_NS 5000000000ull
#define KVM_SAVE_TIMEOUT_NS 60000000000ull
/* Streams, and files that harpoon-fs lets it read and write directly. */
#define KVM_FILES_MAX 16384
/* The loop, the vCPUs, a worker for each queue that may block. */
#define KVM_THREADS_MAX(nr_vcpus) ((nr_vcpus) + 1 + 16)
/* Requests that may be on their way: a thousand; it reads them as they come. */
#define KVM_SOCKET_BUFFER (4 << 20)

enum kvm_end { KVM_END_NONE, KVM_END_RESET, KVM_END_FAILED };

struct kvm {
	struct hv_vm *vm;
	int sock; /* owned */
	struct loop_watch *watch;
	struct list streams; /* of struct kvm_stream */
	bool running, greeted;
	enum vmm_event_kind expected; /* the answer to a pause, resume or save; 0 = none */
	hv_saved_fn on_saved;
	void *saved_ctx;
	uint64_t saved_bytes;
	struct loop_timer call_timer;
	/* A callback further up may have had the VM freed: > 0 keeps this struct. */
	unsigned int depth;
	bool freed;
	enum kvm_end end;
	char end_text[VMM_EVENT_TEXT_MAX * 4];
};

struct kvm_stream {
	struct hv_stream base;
	struct list link;
	struct kvm *kvm;
	uint32_t id;
	bool detached; /* its owner is gone; the VMM has still to say that it is over */
	bool is_over;  /* the VMM has said so, while nobody could be told */
	int error;
	hv_stream_done_fn done;
	void *ctx;
};

static int kvm_new(struct hv_vm *vm, struct err *err)
{
	struct kvm *k;

	if (vm->params.mem_bytes % KVM_PAGE)
		return err_say(err, -EINVAL, "memory must be whole pages, not %llu bytes",
			       (unsigned long long)vm->params.mem_bytes);
	k = xcalloc(1, sizeof(*k));
	k->vm = vm;
	k->sock = -1;
	list_init(&k->streams);
	vm->backend = k;
	return 0;
}

/* ---- streams ---- */

static void kvm_stream_over(struct kvm_stream *s, int error)
{
	hv_stream_done_fn done = s->detached ? NULL : s->done;
	void *ctx = s->ctx;

	list_remove(&s->link);
	free(s);
	if (done)
		done(ctx, error);
}

static void kvm_end_streams(struct kvm *k, int error)
{
	/* A callback may end others. */
	while (!list_is_empty(&k->streams)) {
		struct kvm_stream *s = list_entry(k->streams.next, struct kvm_stream, link);

		kvm_stream_over(s, s->is_over ? s->error : error);
	}
}

static struct kvm_stream *kvm_find_stream(struct kvm *k, uint32_t id)
{
	struct kvm_stream *s;

	list_for_each (s, &k->streams, link) {
		if (s->id == id)
			return s;
	}
	return NULL;
}

static int kvm_send(struct kvm *k, struct vmm_request *req, const int *fds, size_t nr_fds)
{
	req->version = VMM_CONTROL_VERSION;
	return io_send_fds(k->sock, req, sizeof(*req), fds, nr_fds);
}

static int kvm_attach(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
		      void *ctx, struct hv_stream **ret)
{
	struct kvm *k = vm->backend;
	struct vmm_request req = {.op = VMM_OP_ATTACH, .stream.id = id};
	cleanup_close int r_end = rfd;
	cleanup_close int w_end = wfd == rfd ? -1 : wfd;
	struct kvm_stream *s;
	int fds[2], r;
	size_t nr = 0;

	if (rfd >= 0) {
		req.stream.flags |= VMM_STREAM_READS;
		fds[nr++] = r_end;
	}
	if (wfd >= 0)
		req.stream.flags |= VMM_STREAM_WRITES;
	if (wfd >= 0 && wfd == rfd)
		req.stream.flags |= VMM_STREAM_ONE;
	else if (wfd >= 0)
		fds[nr++] = w_end;
	if (kvm_find_stream(k, id))
		return -EEXIST;
	r = kvm_send(k, &req, fds, nr);
	if (r)
		return r;
	s = xcalloc(1, sizeof(*s));
	*s = (struct kvm_stream){.base.ops = vm->ops, .kvm = k, .id = id, .done = done, .ctx = ctx};
	list_append(&k->streams, &s->link);
	*ret = &s->base;
	return 0;
}

static void kvm_detach(struct hv_stream *base)
{
	struct kvm_stream *s = container_of(base, struct kvm_stream, base);
	struct vmm_request req = {.op = VMM_OP_DETACH, .stream.id = s->id};
	hv_stream_done_fn done = s->done;

	s->detached = true;
	/* A VMM that is gone has closed everything. */
	kvm_send(s->kvm, &req, NULL, 0);
	if (done)
		done(s->ctx, -ECANCELED);
}

/* ---- events ---- */

static void kvm_call_answered(struct kvm *k)
{
	k->expected = 0;
	loop_timer_cancel(&k->call_timer);
}

static void kvm_on_end(struct kvm *k, const struct vmm_event *e)
{
	size_t used = 0;

	k->end = e->kind == VMM_EVENT_RESET ? KVM_END_RESET : KVM_END_FAILED;
	text_escape(e->text, strnlen(e->text, sizeof(e->text)), false, k->end_text,
		    sizeof(k->end_text), &used);
	k->end_text[MIN(used, sizeof(k->end_text) - 1)] = '\0';
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
	case VMM_EVENT_SAVED_MEMORY:
		return k->expected == e->kind;
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
		k->vm->ready.host_kernel_ns = util_now_ns();
		/* A clone's agent has greeted before it was saved. */
		k->greeted = k->vm->tmpl;
		hv_clone_runs(k->vm);
		break;
	case VMM_EVENT_HELLO:
		k->greeted = true;
		if (k->vm->params.birth == HV_BIRTH_TEMPLATE)
			hv_record(k->vm, e->hello, e->len);
		hv_greeted(k->vm, e->hello, e->len);
		break;
	case VMM_EVENT_SAVED:
		kvm_call_answered(k);
		k->on_saved(k->saved_ctx, NULL);
		break;
	case VMM_EVENT_STREAM_DONE:
		kvm_stream_over(kvm_find_stream(k, e->stream), e->error);
		break;
	case VMM_EVENT_RESET:
	case VMM_EVENT_FAILED:
		kvm_on_end(k, e);
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

/* ---- start ---- */

/* What goes to harpoon-vmm with the first request. */
enum { KVM_FD_KVM, KVM_FD_KERNEL, KVM_FD_INITRD, KVM_FD_CONSOLE, KVM_NR_FDS };

struct kvm_fds {
	int fds[KVM_NR_FDS];
};

static void kvm_fds_done(struct kvm_fds *f)
{
	for (size_t i = 0; i < KVM_NR_FDS; i++)
		cleanup_closep(&f->fds[i]);
}

static int kvm_open_file(const char *key, const char *path, int *ret, struct err *err)
{
	struct stat st;

	*ret = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (*ret < 0 || fstat(*ret, &st))
		return err_set(err, -errno,
			       "%s '%s' (key '%s' of harpoon.conf; `harpoon check` says more)", key,
			       path, key);
	if (!S_ISREG(st.st_mode))
		return err_say(err, -EINVAL, "%s '%s' is not a file", key, path);
	return 0;
}

static int kvm_open_files(const struct config *c, struct kvm_fds *f, struct err *err)
{
	int r = kernel_image_check(c->kernel, err);

	if (!r)
		r = kvm_open_file("kernel", c->kernel, &f->fds[KVM_FD_KERNEL], err);
	if (!r)
		r = kvm_open_file("initrd", c->initrd, &f->fds[KVM_FD_INITRD], err);
	if (r)
		return r;
	f->fds[KVM_FD_KVM] = open(KVM_PATH, O_RDWR | O_CLOEXEC);
	if (f->fds[KVM_FD_KVM] < 0)
		return err_set(err, -errno, "open '%s'", KVM_PATH);
	return 0;
}

/* The program; ours is static, so that its root can be empty. */
static int kvm_spawn(struct hv_vm *vm, int sock, struct err *err)
{
	const char *path = vm->params.config->vmm;
	cleanup_close int exe = open(path, O_PATH | O_CLOEXEC);
	char name[] = "harpoon-vmm";
	char *argv[] = {name, NULL};

	if (exe < 0)
		return err_set(err, -errno, "harpoon-vmm '%s' (key 'vmm' of harpoon.conf)", path);
	return child_start(
		&vm->vmm,
		&(struct spawn_params){
			.path = path,
			.exe_fd = exe,
			.by_fd = true,
			.argv = argv,
			.fds = &sock,
			.nr_fds = 1,
			.jail =
				&(struct spawn_jail){
					.netns_fd = vm->params.netns_fd,
					/* It writes to files and devices it was given, of any size. */
					.file_size_max = UINT64_MAX,
					.nr_files_max = KVM_FILES_MAX,
					.nr_threads_max = KVM_THREADS_MAX(vm->params.nr_vcpus),
				},
		},
		err);
}

static int kvm_send_machine(struct hv_vm *vm, const struct kvm_fds *f, struct err *err)
{
	struct vmm_request req = {
		.op = VMM_OP_MACHINE,
		.machine = {.mem_bytes = vm->params.mem_bytes, .nr_vcpus = vm->params.nr_vcpus},
	};
	cleanup_free char *cmdline = kernel_args_build(&(struct kernel_args){
		.nr_vcpus = vm->params.nr_vcpus, .extra = vm->params.config->kernel_args});
	int r;

	if (snprintf(req.machine.cmdline, sizeof(req.machine.cmdline), "%s", cmdline) >=
	    (int)sizeof(req.machine.cmdline))
		return err_say(err, -E2BIG,
			       "the kernel's command line has %zu bytes, %zu are possible (key "
			       "'kernel_args' of harpoon.conf)",
			       strlen(cmdline), sizeof(req.machine.cmdline) - 1);
	r = kvm_send(vm->backend, &req, f->fds, KVM_NR_FDS);
	return r ? err_set(err, r, "send the machine to harpoon-vmm") : 0;
}

static int kvm_send_device(struct kvm *k, struct vmm_request *req, int fd, struct err *err)
{
	int r;

	req->op = VMM_OP_DEVICE;
	r = kvm_send(k, req, &fd, fd >= 0);
	return r ? err_set(err, r, "send a device to harpoon-vmm") : 0;
}

/* What harpoon-vmm's device carries; the tap hands frames over in this form. */
static int kvm_prepare_tap(int fd, uint32_t offloads, struct err *err)
{
	int header = KVM_TAP_HEADER;

	if (ioctl(fd, TUNSETVNETHDRSZ, &header) ||
	    ioctl(fd, TUNSETOFFLOAD, (unsigned long)offloads))
		return err_set(err, -errno, "set up a tap for the VM");
	return 0;
}

static int kvm_send_nic(struct kvm *k, const struct hv_nic *nic, size_t index, struct err *err)
{
	struct vmm_request req = {.device = {.kind = VMM_DEVICE_NET, .offloads = KVM_TAP_OFFLOADS}};
	unsigned int mac[6];
	char text[32];
	int r;

	if (nic->kind == HV_NIC_STREAM) {
		req.device.flags = VMM_NET_STREAM;
		req.device.offloads = 0;
	}
	snprintf(text, sizeof(text), HV_NIC_MAC, (unsigned int)index);
	/* NOLINTNEXTLINE(cert-err34-c): the text is our own constant, two digits each */
	if (sscanf(text, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
		   &mac[5]) != 6)
		return err_say(err, -EINVAL, "'%s' is no hardware address", text);
	for (size_t i = 0; i < ARRAY_SIZE(mac); i++)
		req.device.mac[i] = (uint8_t)mac[i];
	r = nic->kind == HV_NIC_TAP ? kvm_prepare_tap(nic->fd, KVM_TAP_OFFLOADS, err) : 0;
	return r ? r : kvm_send_device(k, &req, nic->fd, err);
}

static int kvm_send_devices(struct hv_vm *vm, int fs_fd, struct err *err)
{
	struct vmm_request vsock = {.device = {.kind = VMM_DEVICE_VSOCK, .cid = KVM_GUEST_CID}};
	struct vmm_request fs = {.device = {.kind = VMM_DEVICE_FS, .tag = KVM_FS_TAG}};
	struct vmm_request balloon = {.device.kind = VMM_DEVICE_BALLOON};
	struct kvm *k = vm->backend;
	int r = kvm_send_device(k, &vsock, -1, err);

	if (!r)
		r = kvm_send_device(k, &fs, fs_fd, err);
	/* Entropy comes from the processor and the agent: no rng device. */
	if (!r)
		r = kvm_send_device(k, &balloon, -1, err);
	for (size_t i = 0; i < vm->params.nr_nics && !r; i++)
		r = kvm_send_nic(k, &vm->params.nics[i], i, err);
	return r;
}

/* The control socket, ours in k->sock. */
static int kvm_connect(struct kvm *k, int *ret_theirs, struct err *err)
{
	const int size = KVM_SOCKET_BUFFER;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socketpair");
	k->sock = pair[0];
	*ret_theirs = pair[1];
	if (setsockopt(k->sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    io_set_nonblock(k->sock, true))
		return err_set(err, -errno, "set up the control socket");
	k->watch = loop_watch_add(k->vm->loop, k->sock, EPOLLIN, kvm_on_socket, k);
	return k->watch ? 0 : err_set(err, -errno, "watch the control socket");
}

static int kvm_open_console(struct hv_vm *vm, int *ret_theirs, struct err *err)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socketpair");
	*ret_theirs = pair[1];
	return console_new(vm->loop, pair[0], vm->params.state_dir_fd,
			   (size_t)vm->params.config->console_log_kib * 1024, &vm->console, err);
}

static int kvm_send_start(struct hv_vm *vm)
{
	struct vmm_request start = {.op = VMM_OP_START};
	struct vmm_request restore = {.op = VMM_OP_RESTORE};

	if (vm->tmpl)
		return kvm_send(vm->backend, &restore,
				(const int[]){vm->tmpl->state_fd, vm->tmpl->memory_fd}, 2);
	if (vm->params.birth == HV_BIRTH_TEMPLATE)
		start.start.flags = VMM_START_SAVEABLE;
	return kvm_send(vm->backend, &start, NULL, 0);
}

static int kvm_start(struct hv_vm *vm, int fs_fd, struct err *err)
{
	cleanup(kvm_fds_done) struct kvm_fds f = {{-1, -1, -1, -1}};
	cleanup_close int theirs = -1;
	struct kvm *k = vm->backend;
	int r = kvm_open_files(vm->params.config, &f, err);

	if (!r)
		r = kvm_open_console(vm, &f.fds[KVM_FD_CONSOLE], err);
	if (!r)
		r = kvm_connect(k, &theirs, err);
	if (!r)
		r = kvm_spawn(vm, theirs, err);
	if (!r)
		r = kvm_send_machine(vm, &f, err);
	if (!r)
		r = kvm_send_devices(vm, fs_fd, err);
	if (r)
		return r;
	r = kvm_send_start(vm);
	if (r)
		return err_set(err, r, "start the guest");
	hv_channel_opened(vm);
	return 0;
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
	return 0;
}

static int kvm_save(struct hv_vm *vm, int state_fd, hv_saved_fn done, void *ctx, struct err *err)
{
	struct vmm_request req = {.op = VMM_OP_SAVE};
	struct kvm *k = vm->backend;
	int r = k->expected || !k->running ? -EAGAIN : kvm_send(k, &req, &state_fd, 1);

	if (r)
		return err_set(err, r, "save the guest");
	k->on_saved = done;
	k->saved_ctx = ctx;
	k->expected = VMM_EVENT_SAVED;
	loop_timer_arm(vm->loop, &k->call_timer, KVM_SAVE_TIMEOUT_NS, kvm_on_call_timeout, k);
	return 0;
}

/* Waits for it: whoever makes a template does nothing else. */
static int kvm_save_memory(struct hv_vm *vm, int memory_fd, uint64_t *ret_bytes, struct err *err)
{
	struct vmm_request req = {.op = VMM_OP_SAVE_MEMORY};
	struct kvm *k = vm->backend;
	struct pollfd pfd = {.fd = k->sock, .events = POLLIN};
	struct vmm_event e;
	int r = kvm_send(k, &req, &memory_fd, 1);

	if (r)
		return err_set(err, r, "save the guest's memory");
	do
		r = poll(&pfd, 1, (int)(KVM_SAVE_TIMEOUT_NS / 1000000));
	while (r < 0 && errno == EINTR);
	if (r <= 0)
		return err_say(err, -ETIMEDOUT, "harpoon-vmm does not save the guest's memory");
	r = kvm_receive(k, &e);
	if (r > 0 && e.kind == VMM_EVENT_FAILED)
		kvm_on_end(k, &e);
	if (r <= 0 || e.kind != VMM_EVENT_SAVED_MEMORY)
		return err_say(err, -EPROTO, "harpoon-vmm does not save the guest's memory: %.200s",
			       k->end_text);
	*ret_bytes = e.value;
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
	.save_memory = kvm_save_memory,
	.tsc_khz = kvm_tsc_khz,
	.attach = kvm_attach,
	.detach = kvm_detach,
	.explain_exit = kvm_explain_exit,
	.free = kvm_free,
};
