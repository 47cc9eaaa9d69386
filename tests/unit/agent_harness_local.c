/*
 * The agent in this process: a mux on both ends of a socket pair, the agent's code on one, the test on the
 * other, all in one loop. After each test nothing may be left: no process, cgroup or descriptor.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "agent_harness.h"
#include "cleanup.h"
#include "io.h"

struct local {
	char cgroup[256];
	struct agent_params params;
	struct transport *transport;
	struct agent *agent;
	struct mux *mux;
	size_t nr_fds; /* open before set-up */
};

static size_t local_count_fds(void)
{
	cleanup_dir DIR *d = opendir("/proc/self/fd");
	size_t nr = 0;

	while (readdir(d))
		nr++;
	return nr;
}

/* The cgroup v2 mount of this host, or false. */
static bool local_find_cgroup(char *ret, size_t room)
{
	cleanup_file FILE *f = fopen("/proc/self/mounts", "re");
	char dir[200], type[64];

	while (f && fscanf(f, "%*s %199s %63s %*[^\n]", dir, type) == 2)
		if (!strcmp(type, "cgroup2")) {
			snprintf(ret, room, "%s/harpoon-test-%d", dir, getpid());
			return true;
		}
	return false;
}

static void local_on_broken(void *ctx)
{
}

static const struct mux_callbacks local_mux_callbacks;

bool harness_backend_check(const char **ret_why)
{
	char dir[256];

	*ret_why = "needs a cgroup v2 folder that can be written";
	return local_find_cgroup(dir, sizeof(dir)) && !mkdir(dir, 0755) && !rmdir(dir);
}

bool harness_backend_has_limits(void)
{
	char dir[256], path[300];
	cleanup_free char *text = NULL;

	if (!local_find_cgroup(dir, sizeof(dir)))
		return false;
	*strrchr(dir, '/') = '\0';
	snprintf(path, sizeof(path), "%s/cgroup.controllers", dir);
	if (io_read_file(AT_FDCWD, path, 4096, &text, NULL))
		return false;
	return strstr(text, "memory") && strstr(text, "pids");
}

static void local_on_restart(void *ctx)
{
	struct harness *h = ctx;
	struct local *l = h->backend;

	agent_restart(l->agent);
}

void harness_backend_start(struct harness *h)
{
	struct local *l = xcalloc(1, sizeof(*l));
	struct err err = {0};
	int channel[2];

	l->nr_fds = local_count_fds();
	assert_true(local_find_cgroup(l->cgroup, sizeof(l->cgroup)));
	assert_int_equal(mkdir(l->cgroup, 0755), 0);
	snprintf(h->cgroup, sizeof(h->cgroup), "%s", l->cgroup);
	harness_make_tree(h);
	h->backend = l;
	h->loop = loop_new();
	assert_non_null(h->loop);
	l->params = (struct agent_params){
		.fs_dir = h->fs, .cgroup_dir = l->cgroup, .proc_dir = "/proc", .dev_dir = "/dev"};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
	l->transport = transport_mux_new(h->loop, channel[0], local_on_broken, local_on_restart, h);
	assert_non_null(l->transport);
	l->mux = mux_new(h->loop, channel[1], &local_mux_callbacks, h);
	assert_non_null(l->mux);
	assert_int_equal(agent_new(h->loop, &l->params, l->transport, &l->agent, &err), 0);
	if (getenv("HARPOON_AGENT_SPARE") &&
	    (agent_prepare(l->agent, &err) || agent_preload(l->agent, &err)))
		fail_msg("%s", err.msg);
}

struct rpc_client *harness_backend_client(struct harness *h)
{
	struct local *l = h->backend;
	struct err err = {0};
	int server[2], client[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, server), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, client), 0);
	assert_int_equal(l->transport->ops->attach(l->transport, MUX_STREAM_RPC, server[0],
						   server[0], NULL, NULL, NULL),
			 0);
	assert_int_equal(agent_serve(l->agent, server[1], &err), 0);
	harness_backend_attach(h, MUX_STREAM_RPC, client[0], client[0]);
	return rpc_client_new(h->loop, client[1], NULL, NULL);
}

void harness_backend_attach(struct harness *h, uint32_t id, int rfd, int wfd)
{
	struct local *l = h->backend;

	assert_int_equal(mux_attach(l->mux, id, rfd, wfd, NULL, NULL, NULL), 0);
}

void harness_backend_share(struct harness *h, const char *name)
{
	/* It is below params.fs_dir already. */
}

void harness_backend_stop(struct harness *h)
{
	struct local *l = h->backend;
	char cmd[200];
	bool clean;

	agent_free(l->agent);
	l->transport->ops->free(l->transport);
	rpc_client_free(h->client);
	mux_free(l->mux);
	loop_free(h->loop);
	snprintf(cmd, sizeof(cmd), "rm -rf --one-file-system %s", h->base);
	assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c) */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
	assert_int_equal(rmdir(l->cgroup), 0);
	clean = local_count_fds() == l->nr_fds;
	free(l);
	assert_true(clean);
}
