/*
 * Event loop: one thread, one epoll. Everything in the shim and the agent runs in it. All functions
 * are called from the loop's thread; callbacks may add and remove anything, themselves included.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "list.h"

struct loop;
struct loop_watch;

/* events: EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP as epoll reports them. */
typedef void (*loop_watch_fn)(void *ctx, uint32_t events);
typedef void (*loop_fn)(void *ctx);

/* NULL only when the kernel refuses an epoll descriptor (errno set). */
struct loop *loop_new(void);
void loop_free(struct loop *loop);

/* Runs until loop_stop(). Returns 0, or -errno when epoll itself fails. */
int loop_run(struct loop *loop);
/* One round: waits at most timeout_ms (-1 = for ever) and dispatches. For tests. */
int loop_run_once(struct loop *loop, int timeout_ms);
void loop_stop(struct loop *loop);

/*
 * Watches fd (borrowed, must outlive the watch; not closed here). events 0 = watch nothing yet.
 * NULL when epoll does not take the descriptor (regular files: errno EPERM).
 */
struct loop_watch *loop_watch_add(struct loop *loop, int fd, uint32_t events, loop_watch_fn fn,
				  void *ctx);
void loop_watch_set(struct loop_watch *w, uint32_t events);
/* Accepts NULL. The callback is never called afterwards, not even for an event already fetched. */
void loop_watch_remove(struct loop_watch *w);

/* A timer is embedded in its owner; zero it before first use. */
struct loop_timer {
	struct list link;
	struct loop *loop; /* NULL = not armed */
	uint64_t at_ns;
	loop_fn fn;
	void *ctx;
};
/* (Re-)arms t to fire once, delay_ns from now. */
void loop_timer_arm(struct loop *loop, struct loop_timer *t, uint64_t delay_ns, loop_fn fn,
		    void *ctx);
void loop_timer_cancel(struct loop_timer *t);
