/*
 * Kills for want of memory: the kernel makes memory.events of a cgroup readable "urgently" (poll's POLLPRI) whenever
 * a number in it changes. One waiter per container, as there is one shim.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent_pb.h"
#include "cgroup.h"
#include "cleanup.h"
#include "state.h"
#include "util.h"

static void oom_answer(struct container *c, uint64_t kills)
{
	AGENT_PB(WaitOomResponse) response = HARPOON__AGENT__V1__WAIT_OOM_RESPONSE__INIT;
	struct rpc_call *call = take_ptr(&c->oom_call);

	response.oom_kills = kills;
	if (call)
		rpc_reply(call, &response.base);
}

static void oom_close(struct container *c)
{
	loop_watch_remove(c->oom_watch);
	c->oom_watch = NULL;
	cleanup_closep(&c->oom_fd);
}

/* Answers if there is something to tell. */
static bool oom_check(struct container *c)
{
	uint64_t kills = cgroup_oom_kills(c->cgroup_fd);

	if (kills <= c->oom_seen)
		return false;
	oom_close(c);
	oom_answer(c, kills);
	return true;
}

static void oom_on_change(void *ctx, uint32_t events)
{
	struct container *c = ctx;
	char byte;

	/* Reading is what tells the kernel that the news was taken. */
	if (pread(c->oom_fd, &byte, 1, 0) < 0)
		oom_close(c);
	else
		oom_check(c);
}

int oom_wait(struct container *c, uint64_t seen, struct rpc_call *call, struct err *err)
{
	char byte;

	if (c->oom_call)
		oom_answer(c, c->oom_seen);
	oom_close(c);
	c->oom_fd = openat(c->cgroup_fd, "memory.events", O_RDONLY | O_CLOEXEC);
	if (c->oom_fd < 0 || pread(c->oom_fd, &byte, 1, 0) < 0) {
		int e = -errno;

		oom_close(c);
		return err_set(err, e, "memory.events of '%s'", c->id);
	}
	c->oom_watch = loop_watch_add(c->agent->loop, c->oom_fd, EPOLLPRI, oom_on_change, c);
	if (!c->oom_watch) {
		oom_close(c);
		return err_set(err, -errno, "watch memory.events of '%s'", c->id);
	}
	c->oom_call = call;
	c->oom_seen = seen;
	oom_check(c);
	return 0;
}

void oom_done(struct container *c)
{
	oom_close(c);
	if (c->oom_call)
		oom_answer(c, c->oom_seen);
}
