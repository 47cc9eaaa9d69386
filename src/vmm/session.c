/*
 * Requests of the shim; see session.h and vmm_control.h.
 *
 * The shim is trusted with what it asks for, not with being without mistakes: lengths, numbers of
 * descriptors, strings and the order are checked, and a request that is wrong ends the VM with a sentence.
 * Requests about streams may meet a stream that has just ended; they are no mistake.
 */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cleanup.h"
#include "confine.h"
#include "dev/balloon.h"
#include "dev/virtiofs.h"
#include "dev/virtiofs_window.h"
#include "devices.h"
#include "io.h"
#include "log.h"
#include "machine.h"
#include "netstream.h"
#include "outbox.h"
#include "streams.h"

/* Files that the guest has open; a file without a descriptor here works, too. */
#define SESSION_FS_FILES_MAX 12000

#define SESSION_NETSTREAMS_MAX 8

/*
 * Linux reports free pages some two seconds after it has begun to, and again after each round that left some.
 * A machine saved before would have every clone do it, and touch all that the kernel knows of its memory.
 */
#define SESSION_SETTLE_STEP_NS 500000000ull
#define SESSION_SETTLE_QUIET 5 /* steps */
#define SESSION_SETTLE_MAX 40

enum session_state { SESSION_EMPTY, SESSION_BUILDING, SESSION_RUNNING, SESSION_OVER };

struct session {
	struct loop *loop; /* borrowed */
	int sock;	   /* owned */
	struct loop_watch *watch;
	bool confined;
	enum session_state state;
	/* Owned; where the machine goes once the vCPUs stand still, -1 = nowhere. */
	int state_fd, memory_fd;
	uint64_t save_used_bytes;
	struct virtio_device *balloon; /* the machine's; NULL = none */
	struct loop_timer settle;      /* before a save */
	uint64_t settle_reported;
	unsigned int settle_quiet, settle_steps;
	struct machine *machine; /* owned */
	struct outbox outbox;
	struct streams streams;
	unsigned int nr_netstreams;
	struct netstream *netstreams[SESSION_NETSTREAMS_MAX]; /* owned */
};

static void session_tell(struct session *s, enum vmm_event_kind kind, int error, const char *text)
{
	struct vmm_event e = {.kind = kind, .error = error};

	snprintf(e.text, sizeof(e.text), "%.*s", (int)sizeof(e.text) - 1, text);
	outbox_send(&s->outbox, &e);
}

/* The loop ends after this round, and the program with it. */
static void session_over(struct session *s)
{
	s->state = SESSION_OVER;
	outbox_drain(&s->outbox);
	loop_stop(s->loop);
}

static void session_on_paused(void *ctx)
{
	struct session *s = ctx;
	cleanup_close int state_fd = take_fd(&s->state_fd);
	cleanup_close int memory_fd = take_fd(&s->memory_fd);
	struct err err = {0};
	int r;

	if (state_fd < 0) {
		session_tell(s, VMM_EVENT_PAUSED, 0, "");
		return;
	}
	r = machine_save(s->machine, state_fd, memory_fd, s->save_used_bytes, &err);
	session_tell(s, VMM_EVENT_SAVED, r, err.msg);
}

static void session_on_end(void *ctx, const struct vcpus_end *end)
{
	struct session *s = ctx;

	session_tell(s, end->kind == VCPUS_END_RESET ? VMM_EVENT_RESET : VMM_EVENT_FAILED, 0,
		     end->text);
	session_over(s);
}

static void session_on_hello(void *ctx, const void *data, size_t len)
{
	struct session *s = ctx;
	struct vmm_event e = {.kind = VMM_EVENT_HELLO};

	e.len = (uint32_t)MIN(len, sizeof(e.hello));
	memcpy(e.hello, data, e.len);
	outbox_send(&s->outbox, &e);
}

static void session_on_stream_done(void *ctx, uint32_t id, int error)
{
	struct session *s = ctx;
	struct vmm_event e = {.kind = VMM_EVENT_STREAM_DONE, .stream = id, .error = error};

	outbox_send(&s->outbox, &e);
}

static int session_machine(struct session *s, const struct vmm_request *req, int *fds,
			   struct err *err)
{
	static const struct machine_callbacks cb = {.on_paused = session_on_paused,
						    .on_end = session_on_end};
	struct machine_config c = {
		.kvm_fd = take_fd(&fds[0]),
		.kernel_fd = take_fd(&fds[1]),
		.initrd_fd = take_fd(&fds[2]),
		.console_fd = take_fd(&fds[3]),
		.cmdline = req->machine.cmdline,
		.mem_bytes = req->machine.mem_bytes,
		.nr_vcpus = req->machine.nr_vcpus,
	};
	int r = machine_new(s->loop, &c, &cb, s, &s->machine, err);

	if (!r)
		s->state = SESSION_BUILDING;
	return r;
}

static void session_on_fs_lost(void *ctx, const char *why)
{
	struct session *s = ctx;

	if (s->state == SESSION_OVER)
		return;
	session_tell(s, VMM_EVENT_FAILED, 0, why);
	session_over(s);
}

/* A quarter of the descriptors that this process may have is for streams and devices; the window needs its own. */
static uint32_t session_fs_files_max(uint64_t window_bytes)
{
	uint64_t slots = window_bytes / VIRTIOFS_WINDOW_SLOT, max = SESSION_FS_FILES_MAX;
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit))
		max = MIN(max, (uint64_t)limit.rlim_cur / 4 * 3);
	return (uint32_t)(max - MIN(slots, max / 2));
}

static int session_new_fs(struct session *s, const struct vmm_request *req, int *fds,
			  struct virtio_device **ret, struct err *err)
{
	const struct virtiofs_params params = {
		.tag = req->device.tag,
		.sock = take_fd(&fds[0]),
		.max_files = session_fs_files_max(req->device.window_bytes),
		.window_bytes = req->device.window_bytes,
		.on_lost = session_on_fs_lost,
		.ctx = s};

	return virtiofs_new(&params, ret, err);
}

/* A stream is turned into what the device takes for a tap. */
static int session_new_net(struct session *s, const struct vmm_request *req, int *fds,
			   struct virtio_device **ret, struct err *err)
{
	int r;

	if (req->device.flags & VMM_NET_STREAM) {
		if (s->nr_netstreams == ARRAY_SIZE(s->netstreams))
			return err_say(err, -ENOSPC, "too many network streams");
		r = netstream_new(s->loop, take_fd(&fds[0]), &s->netstreams[s->nr_netstreams],
				  &fds[0], err);
		if (r)
			return r;
		s->nr_netstreams++;
	}
	return devices_new(req, fds, ret, err);
}

static int session_new_device(struct session *s, const struct vmm_request *req, int *fds,
			      struct virtio_device **ret, struct err *err)
{
	switch (req->device.kind) {
	case VMM_DEVICE_VSOCK:
		return streams_new_device(&s->streams, req->device.cid, ret, err);
	case VMM_DEVICE_FS:
		return session_new_fs(s, req, fds, ret, err);
	case VMM_DEVICE_NET:
		return session_new_net(s, req, fds, ret, err);
	default:
		return devices_new(req, fds, ret, err);
	}
}

static int session_device(struct session *s, const struct vmm_request *req, int *fds,
			  struct err *err)
{
	struct virtio_device *dev = NULL;
	int r = session_new_device(s, req, fds, &dev, err);

	if (!r)
		r = machine_add_device(s->machine, dev, err);
	if (!r && req->device.kind == VMM_DEVICE_BALLOON)
		s->balloon = dev;
	return r;
}

/* On each thread but the loop's. There is nobody to report to, and nothing to go on with. */
static void session_init_thread(void *ctx, enum machine_thread kind, const char *name)
{
	struct session *s = ctx;
	struct err err;

	prctl(PR_SET_NAME, name, 0, 0, 0);
	if (!s->confined)
		return;
	if (confine_thread(kind == MACHINE_THREAD_VCPU ? CONFINE_VCPU : CONFINE_WORKER, &err)) {
		log_err("vmm", "thread %s: %s", name, err.msg);
		_exit(1);
	}
}

/* The machine and all its threads are there; from here on nothing of ours needs more than serving takes. */
static int session_run(struct session *s, struct err *err)
{
	int r = s->confined ? confine_thread(CONFINE_LOOP, err) : 0;

	if (r)
		return r;
	s->state = SESSION_RUNNING;
	session_tell(s, VMM_EVENT_RUNNING, 0, "");
	machine_run(s->machine);
	return 0;
}

static int session_start(struct session *s, const struct vmm_request *req, int *fds,
			 struct err *err)
{
	const struct machine_env env = {.thread_init = session_init_thread, .ctx = s};
	int r = machine_start(s->machine, &env, err);

	return r ? r : session_run(s, err);
}

static int session_restore(struct session *s, const struct vmm_request *req, int *fds,
			   struct err *err)
{
	const struct machine_env env = {.thread_init = session_init_thread, .ctx = s};
	bool in_use = req->flags & VMM_RESTORE_IN_USE;
	int r = machine_restore(s->machine, fds[0], fds[1], in_use, &env, err);

	if (r)
		return r;
	r = streams_resume(&s->streams, in_use);
	if (r)
		return err_set(err, r, "ask the restored agent to greet");
	/* No copy of them stays with a guest. */
	cleanup_closep(&fds[0]);
	cleanup_closep(&fds[1]);
	return session_run(s, err);
}

/* Has the guest given back what it does not use? */
static void session_on_settle(void *ctx)
{
	struct session *s = ctx;
	struct virtio_balloon_counts counts = {0};

	if (s->balloon)
		virtio_balloon_get_counts(s->balloon, &counts);
	s->settle_quiet = counts.reported == s->settle_reported ? s->settle_quiet + 1 : 0;
	s->settle_reported = counts.reported;
	if (!s->balloon || s->settle_quiet == SESSION_SETTLE_QUIET ||
	    ++s->settle_steps == SESSION_SETTLE_MAX)
		machine_pause(s->machine);
	else
		loop_timer_arm(s->loop, &s->settle, SESSION_SETTLE_STEP_NS, session_on_settle, s);
}

static int session_save(struct session *s, const struct vmm_request *req, int *fds, struct err *err)
{
	if (s->state_fd >= 0)
		return err_say(err, -EPROTO, "the machine is being saved already");
	s->state_fd = take_fd(&fds[0]);
	s->memory_fd = take_fd(&fds[1]);
	streams_set_paused(&s->streams, true);
	s->save_used_bytes = req->save.used_bytes;
	if (req->save.flags & VMM_SAVE_SETTLED)
		session_on_settle(s);
	else
		machine_pause(s->machine);
	return 0;
}

static int session_pause(struct session *s, const struct vmm_request *req, int *fds,
			 struct err *err)
{
	streams_set_paused(&s->streams, true);
	machine_pause(s->machine);
	return 0;
}

static int session_resume(struct session *s, const struct vmm_request *req, int *fds,
			  struct err *err)
{
	if (s->state_fd >= 0)
		return err_say(err, -EPROTO, "the machine is being saved");
	streams_set_paused(&s->streams, false);
	machine_run(s->machine);
	session_tell(s, VMM_EVENT_RESUMED, 0, "");
	return 0;
}

static int session_attach(struct session *s, const struct vmm_request *req, int *fds,
			  struct err *err)
{
	uint32_t flags = req->stream.flags;
	bool reads = flags & VMM_STREAM_READS, writes = flags & VMM_STREAM_WRITES;
	int rfd = -1, wfd = -1;

	if (reads)
		rfd = take_fd(&fds[0]);
	if (writes)
		wfd = flags & VMM_STREAM_ONE ? rfd : take_fd(&fds[reads]);
	streams_attach(&s->streams, req->stream.id, rfd, wfd);
	return 0;
}

static int session_detach(struct session *s, const struct vmm_request *req, int *fds,
			  struct err *err)
{
	streams_detach(&s->streams, req->stream.id);
	return 0;
}

typedef int (*session_fn)(struct session *s, const struct vmm_request *req, int *fds,
			  struct err *err);

static const struct {
	const char *name;
	enum session_state when;
	session_fn fn;
} session_ops[VMM_OP_MAX] = {
	[VMM_OP_MACHINE] = {"MACHINE", SESSION_EMPTY, session_machine},
	[VMM_OP_DEVICE] = {"DEVICE", SESSION_BUILDING, session_device},
	[VMM_OP_START] = {"START", SESSION_BUILDING, session_start},
	[VMM_OP_RESTORE] = {"RESTORE", SESSION_BUILDING, session_restore},
	[VMM_OP_SAVE] = {"SAVE", SESSION_RUNNING, session_save},
	[VMM_OP_PAUSE] = {"PAUSE", SESSION_RUNNING, session_pause},
	[VMM_OP_RESUME] = {"RESUME", SESSION_RUNNING, session_resume},
	[VMM_OP_ATTACH] = {"ATTACH", SESSION_RUNNING, session_attach},
	[VMM_OP_DETACH] = {"DETACH", SESSION_RUNNING, session_detach},
};

static size_t session_count_fds(const struct vmm_request *req)
{
	uint32_t flags = req->stream.flags;

	switch (req->op) {
	case VMM_OP_MACHINE:
		return 4;
	case VMM_OP_DEVICE:
		return devices_nr_fds(req->device.kind);
	case VMM_OP_RESTORE:
	case VMM_OP_SAVE:
		return 2;
	case VMM_OP_ATTACH:
		if (flags & VMM_STREAM_ONE)
			return 1;
		return !!(flags & VMM_STREAM_READS) + !!(flags & VMM_STREAM_WRITES);
	default:
		return 0;
	}
}

/* Everything that can be wrong with a request by itself. */
static int session_check(const struct session *s, const struct vmm_request *req, size_t nr_fds,
			 struct err *err)
{
	const uint32_t both = VMM_STREAM_READS | VMM_STREAM_WRITES;

	if (req->version != VMM_CONTROL_VERSION)
		return err_say(err, -EPROTO,
			       "the shim speaks version %u of the control protocol, harpoon-vmm "
			       "version %u: install both from one build",
			       req->version, VMM_CONTROL_VERSION);
	if (!req->op || req->op >= VMM_OP_MAX)
		return err_say(err, -EPROTO, "there is no request %u", req->op);
	if (s->state != session_ops[req->op].when)
		return err_say(err, -EPROTO, "request %s does not belong here",
			       session_ops[req->op].name);
	if (nr_fds != session_count_fds(req))
		return err_say(err, -EPROTO, "request %s came with %zu descriptors",
			       session_ops[req->op].name, nr_fds);
	if (req->op == VMM_OP_MACHINE && !memchr(req->machine.cmdline, 0, VMM_CMDLINE_MAX))
		return err_say(err, -EPROTO, "the command line has no end");
	if (req->op == VMM_OP_DEVICE && !memchr(req->device.tag, 0, sizeof(req->device.tag)))
		return err_say(err, -EPROTO, "a device's tag has no end");
	if (req->op == VMM_OP_ATTACH &&
	    ((req->stream.flags & ~(both | VMM_STREAM_ONE)) ||
	     ((req->stream.flags & VMM_STREAM_ONE) && (req->stream.flags & both) != both)))
		return err_say(err, -EPROTO, "a stream has unknown flags");
	return 0;
}

int session_handle(struct session *s, const void *data, size_t len, int *fds, size_t nr_fds,
		   struct err *err)
{
	struct vmm_request req = {0};
	int r;

	if (len == sizeof(req)) {
		memcpy(&req, data, sizeof(req));
		r = session_check(s, &req, nr_fds, err);
	} else {
		r = err_say(err, -EPROTO, "a request has %zu bytes, not %zu", len, sizeof(req));
	}
	if (!r)
		r = session_ops[req.op].fn(s, &req, fds, err);
	for (size_t i = 0; i < nr_fds; i++)
		cleanup_closep(&fds[i]);
	return r;
}

/* 1 = go on, 0 = nothing more now, negative = it is over. */
static int session_receive(struct session *s, struct err *err)
{
	/* One byte more than a request, to tell a message that is too long. */
	char message[sizeof(struct vmm_request) + 1];
	int fds[VMM_REQUEST_FDS_MAX];
	size_t nr_fds = VMM_REQUEST_FDS_MAX;
	ssize_t n = io_recv_fds(s->sock, message, sizeof(message), fds, &nr_fds);
	int r;

	if (n == -EAGAIN)
		return 0;
	if (n == -EMSGSIZE)
		return err_say(err, -EPROTO, "a request came with too many descriptors");
	if (n <= 0)
		return err_say(err, -EPIPE, "the shim is gone");
	r = session_handle(s, message, (size_t)n, fds, nr_fds, err);
	return r ? r : 1;
}

static void session_on_socket(void *ctx, uint32_t events)
{
	struct session *s = ctx;
	struct err err = {0};
	int r = 1;

	if (events & EPOLLOUT)
		outbox_flush(&s->outbox);
	while (r > 0 && s->state != SESSION_OVER)
		r = session_receive(s, &err);
	if (r >= 0)
		return;
	if (r != -EPIPE)
		session_tell(s, VMM_EVENT_FAILED, r, err.msg);
	session_over(s);
}

static void session_freep(struct session **s)
{
	session_free(*s);
}

int session_new(struct loop *loop, int sock, bool confined, struct session **ret, struct err *err)
{
	static const struct streams_callbacks cb = {.on_hello = session_on_hello,
						    .on_done = session_on_stream_done};
	cleanup(session_freep) struct session *s = xcalloc(1, sizeof(*s));
	int r = io_set_nonblock(sock, true);

	*s = (struct session){
		.loop = loop, .sock = sock, .state_fd = -1, .memory_fd = -1, .confined = confined};
	outbox_init(&s->outbox, sock, NULL);
	if (!r)
		r = streams_init(&s->streams, loop, &cb, s);
	if (r)
		return err_set(err, r, "prepare the control socket");
	s->watch = loop_watch_add(loop, sock, EPOLLIN, session_on_socket, s);
	if (!s->watch)
		return err_set(err, -errno, "watch the control socket");
	s->outbox.watch = s->watch;
	*ret = take_ptr(&s);
	return 0;
}

void session_free(struct session *s)
{
	if (!s)
		return;
	loop_watch_remove(s->watch);
	loop_timer_cancel(&s->settle);
	/* Ends streams; what they still say goes nowhere. */
	machine_free(s->machine);
	streams_done(&s->streams);
	for (unsigned int i = 0; i < s->nr_netstreams; i++)
		netstream_free(s->netstreams[i]);
	outbox_done(&s->outbox);
	cleanup_closep(&s->state_fd);
	cleanup_closep(&s->memory_fd);
	cleanup_closep(&s->sock);
	free(s);
}
