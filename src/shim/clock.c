/*
 * The guest's wall clock: it is a clone of a machine that was saved some time ago, or was paused.
 *
 * The agent is told the time, and sets its clock at some moment between our sending and its answer: the error is at
 * most what the exchange took. When that was quick, it is good. When it was not (a fresh guest's first calls are slow,
 * and so is everything on a busy host) the agent is asked for its time a few times. The quickest of these exchanges
 * tells best how far it is off, and by that much it is set right, in one step of its kernel, however long this last
 * message is under way.
 *
 * A container that runs for long is looked after every ten minutes: crystals differ, and the host's clock is corrected
 * by others. When the host's clock is set, or the host has slept, the timer says so at once (timerfd_create(2),
 * TFD_TIMER_CANCEL_ON_SET).
 *
 * What the agent answers is a hostile number. It comes back to it as a difference, and is used for nothing else.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "container.h"
#include "log.h"
#include "util.h"
#include "vmreq.h"

#define CLOCK_GOOD_NS 10000000ull /* an exchange this quick: an error of less than that */
#define CLOCK_SMALL_NS 500000	  /* not worth a call */
#define CLOCK_SAMPLES 12
#define CLOCK_LOOK_S 600	  /* a crystal that is off by 20 ppm makes 12 ms of them */
#define CLOCK_SLEW_NS 100000000ll /* at most; the guest's kernel takes 200 s for it */

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
	req.gradual = c->clock.gradual && ahead > -CLOCK_SLEW_NS && ahead < CLOCK_SLEW_NS;
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

static void clock_begin(struct container *c, bool gradual)
{
	c->clock.again = false;
	c->clock.gradual = gradual;
	c->clock.samples = 0;
	c->clock.best_ns = UINT64_MAX;
	c->clock.best_ahead_ns = 0;
}

static void clock_tell(struct container *c)
{
	VMREQ_PB(ConfigureRequest) req = HARPOON__AGENT__V1__CONFIGURE_REQUEST__INIT;

	clock_begin(c, false);
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

/* ---- for as long as it runs ---- */

void clock_look(struct container *c)
{
	/* Paused, or in between: it is set when it goes on. */
	if (!c->agent || c->phase != CONTAINER_LIVE || c->init.has_exited ||
	    c->init.state == TASK_PAUSED || c->is_frozen || c->checkpoint)
		return;
	if (c->clock.busy) {
		c->clock.again = true;
		return;
	}
	c->clock.busy = true;
	c->clock.done = NULL;
	clock_begin(c, true);
	clock_ask(c);
}

static int clock_arm(int fd)
{
	struct itimerspec at = {0};

	clock_gettime(CLOCK_REALTIME, &at.it_value);
	at.it_value.tv_sec += CLOCK_LOOK_S;
	return timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &at, NULL) ? -errno
											   : 0;
}

static void clock_on_timer(void *ctx, uint32_t events)
{
	struct container *c = ctx;
	uint64_t expirations;

	/* ECANCELED is the host's clock being set. */
	if (read(c->clock.timer_fd, &expirations, sizeof(expirations)) < 0 && errno == EAGAIN)
		return;
	if (clock_arm(c->clock.timer_fd)) {
		log_warn("shim", "%s: its clock is not looked after any more: %s", c->id,
			 strerror(errno));
		clock_unfollow(c);
	}
	clock_look(c);
}

void clock_follow(struct container *c)
{
	c->clock.timer_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (c->clock.timer_fd >= 0 && !clock_arm(c->clock.timer_fd))
		c->clock.watch = loop_watch_add(c->shim->loop, c->clock.timer_fd, EPOLLIN,
						clock_on_timer, c);
	if (!c->clock.watch)
		log_warn("shim", "%s: its clock is not looked after: %s", c->id, strerror(errno));
}

void clock_unfollow(struct container *c)
{
	loop_watch_remove(c->clock.watch);
	c->clock.watch = NULL;
	cleanup_closep(&c->clock.timer_fd);
}
