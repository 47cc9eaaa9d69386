/* The agent object: its server, its reaper, its end. See agent.h and state.h. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "cleanup.h"
#include "log.h"
#include "relay.h"
#include "state.h"

static const struct rpc_service *const agent_services[] = {&agent_service};

static void agent_reap(struct agent *a)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct process *p = container_find_pid(a, pid);
		struct container *c = p ? p->container : NULL;

		if (!p)
			continue;
		process_reaped(p, status);
		container_on_reaped(c, p);
	}
}

static void agent_on_signal(void *ctx, uint32_t events)
{
	struct agent *a = ctx;
	struct signalfd_siginfo info;

	/* One event may stand for many children. */
	while (read(a->signal_fd, &info, sizeof(info)) == sizeof(info))
		;
	agent_reap(a);
}

static int agent_watch_children(struct agent *a, struct err *err)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &mask, NULL))
		return err_set(err, -errno, "block SIGCHLD");
	a->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	if (a->signal_fd < 0)
		return err_set(err, -errno, "make a signalfd");
	a->signal_watch = loop_watch_add(a->loop, a->signal_fd, EPOLLIN, agent_on_signal, a);
	return a->signal_watch ? 0 : err_set(err, -errno, "watch the signalfd");
}

int agent_new(struct loop *loop, const struct agent_params *params, struct transport *transport,
	      struct agent **ret, struct err *err)
{
	struct agent *a = xcalloc(1, sizeof(*a));

	*a = (struct agent){
		.loop = loop,
		.params = params,
		.transport = transport,
		.spare = SPARE_INIT,
		.signal_fd = -1,
	};
	list_init(&a->containers);
	if (agent_watch_children(a, err)) {
		agent_free(a);
		return err->code;
	}
	a->relay = relay_new(loop, transport, params);
	a->server = rpc_server_new(loop, agent_services, ARRAY_SIZE(agent_services), a);
	*ret = a;
	return 0;
}

int agent_serve(struct agent *a, int fd, struct err *err)
{
	return rpc_server_add_conn(a->server, fd, err);
}

/* Number of a device node, kind 0 when there is none. */
static struct devfilter_device agent_device(const char *path)
{
	struct stat st;

	if (!path || stat(path, &st) || !(S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)))
		return (struct devfilter_device){0};
	return (struct devfilter_device){st.st_mode & S_IFMT, major(st.st_rdev), minor(st.st_rdev)};
}

int agent_prepare(struct agent *a, struct err *err)
{
	cleanup_close int fd = -1;

	if (a->is_prepared)
		return 0;
	a->channel = agent_device(a->params->channel);
	if (cgroup_enable_controllers(a->params->cgroup_dir, err))
		return err->code;
	fd = open(a->params->cgroup_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "open '%s'", a->params->cgroup_dir);
	if (devfilter_attach(fd, NULL, 0, &a->channel, err))
		return err->code;
	a->is_prepared = true;
	return 0;
}

int agent_preload(struct agent *a, struct err *err)
{
	if (devfilter_preload(&a->channel, err))
		return err->code;
	return spare_make(&a->spare, a->params, err);
}

/* Synchronous: nothing of the container runs when this returns. */
static void agent_kill_container(struct agent *a, struct container *c)
{
	struct process *p;
	int status;

	if (c->cgroup_fd >= 0)
		cgroup_signal(c->cgroup_fd, SIGKILL);
	list_for_each (p, &c->execs, link)
		if (process_is_alive(p) && waitpid(p->pid, &status, 0) == p->pid)
			process_reaped(p, status);
	if (process_is_alive(&c->init) && waitpid(c->init.pid, &status, 0) == c->init.pid)
		process_reaped(&c->init, status);
	container_destroy(c);
}

void agent_free(struct agent *a)
{
	struct container *c;

	if (!a)
		return;
	list_for_each (c, &a->containers, link)
		agent_kill_container(a, c);
	spare_drop(&a->spare, a->params);
	devfilter_unload();
	rpc_server_free(a->server);
	relay_free(a->relay);
	loop_watch_remove(a->signal_watch);
	cleanup_closep(&a->signal_fd);
	free(a);
}
