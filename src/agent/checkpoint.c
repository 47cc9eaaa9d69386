/*
 * A container in a machine that is saved as it runs, and goes on in another one; see state.h.
 *
 *   Freeze   its processes stand still, what they wrote is on the host, caches are dropped
 *            -- the channel is held (mux.h), the machine is saved --
 *   Thaw     and they go on: in the same machine, or
 *   restart  the channel has another end. What clients of the old one had is over: its calls, and its execs, which
 *            nobody can wait for. The container itself keeps its streams.
 *   Adopt    the container gets the name it has there
 *   Thaw     when it is started there
 *
 * Threads: the loop's. Freezing blocks it for as long as the slowest process needs to get out of the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "relay.h"
#include "state.h"

#define CHECKPOINT_FREEZE_MS 5000

/* A process in an uninterruptible system call stops when that is over. */
static int checkpoint_wait_frozen(const struct container *c, struct err *err)
{
	cleanup_close int fd = openat(c->cgroup_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	struct pollfd pfd = {.fd = fd, .events = POLLPRI};
	char text[256];

	if (fd < 0)
		return err_set(err, -errno, "open cgroup.events");
	for (;;) {
		ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
		int r;

		if (n < 0)
			return err_set(err, -errno, "read cgroup.events");
		text[n] = '\0';
		if (strstr(text, "frozen 1"))
			return 0;
		r = poll(&pfd, 1, CHECKPOINT_FREEZE_MS);
		if (!r)
			return err_say(err, -ETIMEDOUT,
				       "a process of the container does not stop: it waits in the "
				       "kernel");
		if (r < 0 && errno != EINTR)
			return err_set(err, -errno, "wait for the container's processes to stop");
	}
}

/* Pages that are on the host anyway make no sense in a saved machine. */
static void checkpoint_drop_caches(const struct agent_params *params)
{
	cleanup_close int fd = -1;

	if (!params->is_guest_init)
		return;
	sync();
	fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || io_write_full(fd, "3", 1))
		log_warn("checkpoint", "drop caches: %s", strerror(errno));
}

int container_freeze(struct container *c, struct err *err)
{
	struct err ignored = {0};

	if (c->init.state != PROCESS_RUNNING || c->init.is_reaped || c->delete_call)
		return err_say(err, -EBUSY, "container '%s' is not running", c->id);
	if (cgroup_write(c->cgroup_fd, "cgroup.freeze", "1", err))
		return err->code;
	if (checkpoint_wait_frozen(c, err)) {
		container_thaw(c, &ignored);
		return err->code;
	}
	checkpoint_drop_caches(c->agent->params);
	return 0;
}

int container_thaw(struct container *c, struct err *err)
{
	return cgroup_write(c->cgroup_fd, "cgroup.freeze", "0", err);
}

struct container *container_adopt(struct agent *a, const char *id, struct err *err)
{
	struct container *c;

	if (a->nr_containers != 1) {
		err_say(err, -EINVAL, "the saved machine has %zu containers, not one",
			a->nr_containers);
		return NULL;
	}
	c = list_entry(a->containers.next, struct container, link);
	if (!process_is_alive(&c->init) || c->init.state != PROCESS_RUNNING) {
		err_say(err, -ESRCH, "the saved machine's container has ended");
		return NULL;
	}
	memset(c->id, 0, sizeof(c->id));
	memcpy(c->id, id, strnlen(id, REQUEST_ID_MAX));
	return c;
}

/* Whoever started it is gone. Even what is frozen dies of SIGKILL. */
static void checkpoint_drop_exec(struct process *p)
{
	const struct transport *t = p->container->agent->transport;

	for (int i = 0; i < 3; i++)
		if (p->streams[i])
			t->ops->detach(p->streams[i]);
	p->is_orphan = true;
	if (process_is_alive(p))
		sys_pidfd_send_signal(p->pidfd, SIGKILL);
	else
		container_free_exec(p);
}

void agent_restart(struct agent *a)
{
	struct container *c;
	struct process *p;

	list_for_each (c, &a->containers, link) {
		oom_done(c);
		list_for_each (p, &c->execs, link)
			checkpoint_drop_exec(p);
	}
	relay_restart(a->relay);
}
