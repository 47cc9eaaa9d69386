/*
 * harpoon-init: PID 1 of the guest. Boots, greets the host, serves it. One thread, one loop.
 *
 * It must not end: the kernel panics when PID 1 exits, which is also how the guest ends when the channel
 * to the host is gone (the host is dead then, or has dropped us).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "agent_hello.h"
#include "cleanup.h"
#include "disks.h"
#include "guest.h"
#include "log.h"
#include "mux.h"
#include "network.h"

/* On the kernel's command line; it becomes PID 1's environment. */
#define INIT_TEMPLATE "harpoon_template"

struct init {
	struct loop *loop;
	struct transport *transport;
	struct agent *agent;
	struct loop_timer later;
	uint64_t init_ns;
};

static void init_on_broken(void *ctx)
{
	log_err("init", "the host is gone, ending");
	guest_shutdown();
}

static int init_serve(struct init *in, struct err *err);
static int init_greet(struct init *in, struct err *err);

/* This machine was saved, and goes on with another host's process. */
static void init_on_restart(void *ctx)
{
	struct init *in = ctx;
	struct err err = {0};

	agent_restart(in->agent);
	if (init_serve(in, &err) || init_greet(in, &err)) {
		log_err("init", "%s", err.msg);
		guest_shutdown();
	}
}

/* Work that the first container needs, done while the host prepares its first call. */
static void init_prepare(void *ctx)
{
	struct init *in = ctx;
	struct err err = {0};

	if (guest_prepare(&guest_params, &err) || agent_prepare(in->agent, &err))
		log_warn("init", "%s", err.msg);
}

/*
 * This machine will be saved as soon as it has greeted, and others go on from there. All that is the same for
 * every container is done before: then no clone has to. Nothing that is secret or random may be.
 */
static int init_prepare_template(struct init *in, struct err *err)
{
	/* Last, with all mounts there: a process forked ahead has its own copy of them. */
	if (guest_prepare(&guest_params, err) || agent_prepare(in->agent, err) ||
	    network_park(err) || disks_park(err) || guest_mount_shared(&guest_params, err))
		return err->code;
	return agent_preload(in->agent, err);
}

/* A port where the host made one, else vsock. */
static int init_open_transport(struct init *in, struct err *err)
{
	int fd = guest_open_channel(err);

	if (fd == -ENOENT)
		return transport_vsock_new(in->loop, init_on_restart, in, &in->transport, err);
	if (fd < 0)
		return fd;
	in->transport = transport_mux_new(in->loop, fd, init_on_broken, init_on_restart, in);
	return in->transport ? 0 : err_set(err, -EIO, "start the channel to the host");
}

static int init_serve(struct init *in, struct err *err)
{
	int pair[2], e;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return err_set(err, -errno, "make a socket pair");
	e = in->transport->ops->attach(in->transport, MUX_STREAM_RPC, pair[0], pair[0], NULL, NULL,
				       NULL);
	if (e) {
		close(pair[1]);
		return err_set(err, e, "attach stream %d", MUX_STREAM_RPC);
	}
	return agent_serve(in->agent, pair[1], err);
}

static int init_connect(struct init *in, struct err *err)
{
	if (init_open_transport(in, err) ||
	    agent_new(in->loop, &guest_params, in->transport, &in->agent, err))
		return err->code;
	return init_serve(in, err);
}

static int init_greet(struct init *in, struct err *err)
{
	/* The guest's architectures are little-endian, as the format is. */
	struct agent_hello hello = {.magic = AGENT_HELLO_MAGIC,
				    .version = AGENT_PROTOCOL_VERSION,
				    .guest_init_ns = in->init_ns,
				    .guest_ready_ns = guest_now_ns()};
	int e = in->transport->ops->send_hello(in->transport, &hello, sizeof(hello));

	return e ? err_set(err, e, "greet the host") : 0;
}

int main(void)
{
	struct init in = {.init_ns = guest_now_ns()};
	struct err err = {0};

	signal(SIGPIPE, SIG_IGN);
	guest_boot();
	in.loop = loop_new();
	if (!in.loop) {
		log_err("init", "event loop: %s", strerror(errno));
		guest_shutdown();
	}
	if (init_connect(&in, &err) ||
	    (getenv(INIT_TEMPLATE) && init_prepare_template(&in, &err)) || init_greet(&in, &err)) {
		log_err("init", "%s", err.msg);
		guest_shutdown();
	}
	loop_timer_arm(in.loop, &in.later, 0, init_prepare, &in);
	log_err("init", "event loop ended: error %d", -loop_run(in.loop));
	guest_shutdown();
	return 1;
}
