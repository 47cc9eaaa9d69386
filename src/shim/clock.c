/*
 * The guest's wall clock: it is a clone of a machine that was saved some time ago, or was paused.
 *
 * The agent is told the time, and sets its clock at some moment between our sending and its answer. So what it
 * is told is our time plus half of what the last exchange took, and the error is at most half of what this one
 * takes. The first exchange with a fresh guest is slow; the next ones are not, so it is told again until the
 * error is small enough or nothing can be done about it (a very busy host).
 *
 * Thread: the loop's.
 */
#include <time.h>

#include "container.h"
#include "util.h"
#include "vmreq.h"

#define CLOCK_GOOD_NS 10000000ull /* an exchange this quick: an error of half of it */
#define CLOCK_TRIES 5

static void clock_tell(struct container *c);

static void clock_done(struct container *c)
{
	loop_fn done = c->clock.done;

	c->clock.done = NULL;
	c->clock.busy = false;
	if (done)
		done(c);
}

static void clock_told(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		       const char *message)
{
	struct container *c = ctx;

	/* The VM has gone; others say so. */
	if (code == RPC_CANCELED || code == RPC_UNAVAILABLE) {
		c->clock.busy = false;
		c->clock.done = NULL;
		return;
	}
	c->clock.rtt_ns = util_now_ns() - c->clock.sent_ns;
	if (code == RPC_OK && c->clock.rtt_ns > CLOCK_GOOD_NS && ++c->clock.tries < CLOCK_TRIES)
		clock_tell(c);
	else
		clock_done(c);
}

static void clock_tell(struct container *c)
{
	VMREQ_PB(ConfigureRequest) req = HARPOON__AGENT__V1__CONFIGURE_REQUEST__INIT;
	struct timespec now;

	c->clock.sent_ns = util_now_ns();
	clock_gettime(CLOCK_REALTIME, &now);
	req.realtime_ns =
		(int64_t)now.tv_sec * 1000000000 + now.tv_nsec + (int64_t)c->clock.rtt_ns / 2;
	agent_client_call(c->agent, AGENT_CONFIGURE, &req.base, container_call_timeout_ns(c),
			  clock_told, c);
}

void clock_set(struct container *c, loop_fn done)
{
	c->clock.tries = 0;
	c->clock.rtt_ns = 0;
	/* Paused and resumed while it was being told: more tries, and the same to say afterwards. */
	if (c->clock.busy)
		return;
	c->clock.busy = true;
	c->clock.done = done;
	clock_tell(c);
}
