/*
 * The guest's wall clock: it is a clone of a machine that was saved some time ago, or was paused.
 *
 * The agent is told the time, and sets its clock at some moment between our sending and its answer: the error is at
 * most what the exchange took. When that was quick, it is good. When it was not (a fresh guest's first calls are slow,
 * and so is everything on a busy host) the agent is asked for its time a few times. The quickest of these exchanges
 * tells best how far it is off, and by that much it is set right, in one step of its kernel, however long this last
 * message is under way.
 *
 * What the agent answers is a hostile number. It comes back to it as a difference, and is used for nothing else.
 *
 * Thread: the loop's.
 */
#include <time.h>

#include "container.h"
#include "util.h"
#include "vmreq.h"

#define CLOCK_GOOD_NS 10000000ull /* an exchange this quick: an error of less than that */
#define CLOCK_SMALL_NS 500000	  /* not worth a call */
#define CLOCK_SAMPLES 12

static void clock_tell(struct container *c);
static void clock_ask(struct container *c);

static int64_t clock_now_real(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void clock_done(struct container *c)
{
	loop_fn done = c->clock.done;

	if (c->clock.again) {
		clock_tell(c);
		return;
	}
	c->clock.done = NULL;
	c->clock.busy = false;
	if (done)
		done(c);
}

/* The VM has gone; others say so. */
static bool clock_is_lost(struct container *c, enum rpc_code code)
{
	if (code != RPC_CANCELED && code != RPC_UNAVAILABLE)
		return false;
	c->clock.busy = false;
	c->clock.done = NULL;
	return true;
}

static void clock_adjusted(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			   const char *message)
{
	if (!clock_is_lost(ctx, code))
		clock_done(ctx);
}

static void clock_adjust(struct container *c)
{
	VMREQ_PB(ClockRequest) req = HARPOON__AGENT__V1__CLOCK_REQUEST__INIT;
	int64_t ahead = c->clock.best_ahead_ns;

	/* Paused and resumed since: what was found out is void. */
	if (c->clock.again || (ahead > -CLOCK_SMALL_NS && ahead < CLOCK_SMALL_NS)) {
		clock_done(c);
		return;
	}
	req.adjust_ns = -ahead;
	agent_client_call(c->agent, AGENT_CLOCK, &req.base, container_call_timeout_ns(c),
			  clock_adjusted, c);
}

static void clock_asked(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			const char *message)
{
	struct container *c = ctx;
	uint64_t took_ns = util_now_ns() - c->clock.sent_ns;
	int64_t guest_ns, ahead;

	if (clock_is_lost(c, code))
		return;
	if (code != RPC_OK) {
		clock_done(c);
		return;
	}
	guest_ns = ((const VMREQ_PB(ClockResponse) *)(const void *)response)->realtime_ns;
	if (took_ns < c->clock.best_ns &&
	    !__builtin_sub_overflow(guest_ns, c->clock.sent_real_ns + (int64_t)took_ns / 2,
				    &ahead) &&
	    ahead != INT64_MIN) {
		c->clock.best_ns = took_ns;
		c->clock.best_ahead_ns = ahead;
	}
	if (++c->clock.samples < CLOCK_SAMPLES && c->clock.best_ns > CLOCK_GOOD_NS)
		clock_ask(c);
	else
		clock_adjust(c);
}

static void clock_ask(struct container *c)
{
	VMREQ_PB(ClockRequest) req = HARPOON__AGENT__V1__CLOCK_REQUEST__INIT;

	c->clock.sent_ns = util_now_ns();
	c->clock.sent_real_ns = clock_now_real();
	agent_client_call(c->agent, AGENT_CLOCK, &req.base, container_call_timeout_ns(c),
			  clock_asked, c);
}

static void clock_told(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		       const char *message)
{
	struct container *c = ctx;

	if (clock_is_lost(c, code))
		return;
	if (code != RPC_OK || util_now_ns() - c->clock.sent_ns <= CLOCK_GOOD_NS)
		clock_done(c);
	else
		clock_ask(c);
}

static void clock_tell(struct container *c)
{
	VMREQ_PB(ConfigureRequest) req = HARPOON__AGENT__V1__CONFIGURE_REQUEST__INIT;

	c->clock.again = false;
	c->clock.samples = 0;
	c->clock.best_ns = UINT64_MAX;
	c->clock.best_ahead_ns = 0;
	c->clock.sent_ns = util_now_ns();
	req.realtime_ns = clock_now_real();
	agent_client_call(c->agent, AGENT_CONFIGURE, &req.base, container_call_timeout_ns(c),
			  clock_told, c);
}

void clock_set(struct container *c, loop_fn done)
{
	/* Paused and resumed while it was being told: once more, and the same to say afterwards. */
	if (c->clock.busy) {
		c->clock.again = true;
		return;
	}
	c->clock.busy = true;
	c->clock.done = done;
	clock_tell(c);
}
