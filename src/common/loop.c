/*
 * epoll loop; see loop.h.
 *
 * A watch removed inside a callback may still have an event in the array just fetched. It is marked
 * dead, skipped, and freed after the round. Timers are a list sorted by time: there are few.
 * loop_timer_arm(.., 0, ..) is the way to defer work to the next round.
 */
#include "loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define LOOP_EVENTS_MAX 64

struct loop {
	int epfd;
	bool stop;
	bool dispatching;
	struct list watches;
	struct list dead;
	struct list timers;
};

struct loop_watch {
	struct list link; /* in loop.watches, or loop.dead */
	struct loop *loop;
	int fd;
	uint32_t events;
	bool dead;
	loop_watch_fn fn;
	void *ctx;
};

struct loop *loop_new(void)
{
	struct loop *l = xcalloc(1, sizeof(*l));

	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epfd < 0) {
		free(l);
		return NULL;
	}
	list_init(&l->watches);
	list_init(&l->dead);
	list_init(&l->timers);
	return l;
}

static void loop_reap(struct loop *l)
{
	struct loop_watch *w;

	list_for_each (w, &l->dead, link) {
		list_remove(&w->link);
		free(w);
	}
}

void loop_free(struct loop *l)
{
	struct loop_watch *w;
	struct loop_timer *t;

	if (!l)
		return;
	list_for_each (w, &l->watches, link)
		loop_watch_remove(w);
	list_for_each (t, &l->timers, link)
		loop_timer_cancel(t);
	loop_reap(l);
	close(l->epfd);
	free(l);
}

struct loop_watch *loop_watch_add(struct loop *l, int fd, uint32_t events, loop_watch_fn fn,
				  void *ctx)
{
	struct loop_watch *w = xcalloc(1, sizeof(*w));
	struct epoll_event ev = {.events = events, .data.ptr = w};

	*w = (struct loop_watch){.loop = l, .fd = fd, .events = events, .fn = fn, .ctx = ctx};
	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev)) {
		free(w);
		return NULL;
	}
	list_append(&l->watches, &w->link);
	return w;
}

void loop_watch_set(struct loop_watch *w, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = w};

	if (w->events == events)
		return;
	w->events = events;
	epoll_ctl(w->loop->epfd, EPOLL_CTL_MOD, w->fd, &ev);
}

void loop_watch_remove(struct loop_watch *w)
{
	if (!w || w->dead)
		return;
	epoll_ctl(w->loop->epfd, EPOLL_CTL_DEL, w->fd, NULL);
	w->dead = true;
	list_remove(&w->link);
	list_append(&w->loop->dead, &w->link);
	if (!w->loop->dispatching)
		loop_reap(w->loop);
}

void loop_timer_arm(struct loop *l, struct loop_timer *t, uint64_t delay_ns, loop_fn fn, void *ctx)
{
	struct loop_timer *pos;
	struct list *before = &l->timers;

	loop_timer_cancel(t);
	*t = (struct loop_timer){
		.loop = l, .at_ns = util_now_ns() + delay_ns, .fn = fn, .ctx = ctx};
	list_for_each (pos, &l->timers, link) {
		if (pos->at_ns > t->at_ns) {
			before = &pos->link;
			break;
		}
	}
	list_append(before, &t->link);
}

void loop_timer_cancel(struct loop_timer *t)
{
	if (!t->loop)
		return;
	list_remove(&t->link);
	t->loop = NULL;
}

/* Milliseconds until the first timer, rounded up so that it is due when epoll returns; -1 = none. */
static int loop_wait_ms(const struct loop *l)
{
	const struct loop_timer *t;
	uint64_t now;

	if (list_is_empty(&l->timers))
		return -1;
	t = list_entry(l->timers.next, struct loop_timer, link);
	now = util_now_ns();
	if (t->at_ns <= now)
		return 0;
	return (int)MIN((t->at_ns - now + 999999) / 1000000, (uint64_t)INT32_MAX);
}

static void loop_run_timers(struct loop *l)
{
	uint64_t now = util_now_ns();

	/* Only those due now: a timer armed by a callback with delay 0 waits for the next round. */
	while (!list_is_empty(&l->timers)) {
		struct loop_timer *t = list_entry(l->timers.next, struct loop_timer, link);

		if (t->at_ns > now)
			break;
		loop_timer_cancel(t);
		t->fn(t->ctx);
	}
}

int loop_run_once(struct loop *l, int timeout_ms)
{
	struct epoll_event ev[LOOP_EVENTS_MAX];
	int wait_ms = loop_wait_ms(l);
	int n;

	if (timeout_ms >= 0 && (wait_ms < 0 || wait_ms > timeout_ms))
		wait_ms = timeout_ms;
	n = epoll_wait(l->epfd, ev, LOOP_EVENTS_MAX, wait_ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	l->dispatching = true;
	for (int i = 0; i < n; i++) {
		struct loop_watch *w = ev[i].data.ptr;

		if (!w->dead)
			w->fn(w->ctx, ev[i].events);
	}
	loop_run_timers(l);
	l->dispatching = false;
	loop_reap(l);
	return 0;
}

int loop_run(struct loop *l)
{
	l->stop = false;
	while (!l->stop) {
		int r = loop_run_once(l, -1);

		if (r)
			return r;
	}
	return 0;
}

void loop_stop(struct loop *l)
{
	l->stop = true;
}
