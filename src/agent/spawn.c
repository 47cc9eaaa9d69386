/* Forks of containers and execs; see spawn.h. */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "agent_sys.h"
#include "buf.h"
#include "child.h"
#include "cleanup.h"
#include "io.h"

#define SPAWN_MAP_LINE_MAX 40
#define SPAWN_TIMEOUT_S 10

int spawn_clone(uint32_t namespaces, int cgroup_fd, struct spawned *ret, struct err *err)
{
	int pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP |
			 (namespaces & ~(uint64_t)(CLONE_NEWCGROUP | CLONE_NEWTIME)),
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup_fd,
	};
	pid_t pid = sys_clone3(&args);

	if (pid < 0)
		return err_set(err, -errno, "fork into namespaces 0x%x", namespaces);
	*ret = (struct spawned){pid, pidfd};
	return 0;
}

int spawn_container(const struct plan *plan, struct spawned *ret, struct err *err)
{
	if (spawn_clone(plan->namespaces, plan->cgroup_fd, ret, err))
		return err->code;
	if (!ret->pid)
		child_run_container(plan);
	return 0;
}

int spawn_await(int sync_fd, const char *who, struct child_report *ret, struct err *err)
{
	struct timeval patience = {.tv_sec = SPAWN_TIMEOUT_S};

	if (setsockopt(sync_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		return err_set(err, -errno, "set a timeout");
	if (io_read_full(sync_fd, ret, sizeof(*ret)) != sizeof(*ret))
		return err_say(err, -EIO, "%s died", who);
	ret->msg[sizeof(ret->msg) - 1] = '\0';
	if (ret->kind == CHILD_FAILED)
		return err_say(err, ret->value < 0 ? ret->value : -EPROTO, "%s", ret->msg);
	return 0;
}

static int spawn_read_pid(int sync_fd, pid_t *ret, struct err *err)
{
	static const char who[] = "the helper that joins the container";
	struct child_report report = {0};

	if (spawn_await(sync_fd, who, &report, err))
		return err->code;
	if (report.kind != CHILD_PID || report.value <= 0)
		return err_say(err, -EIO, "%s sent nonsense", who);
	*ret = report.value;
	return 0;
}

/*
 * Waits for the helper that joins and forks, which takes well below a millisecond: until its answer is
 * here, the pid of the process would be unknown to the reaper.
 */
int spawn_exec(const struct plan *plan, int sync_fd, int *child_fd, struct spawned *ret,
	       struct err *err)
{
	pid_t helper = fork();

	if (helper < 0)
		return err_set(err, -errno, "fork");
	if (!helper)
		child_run_exec(plan);
	cleanup_closep(child_fd);
	if (spawn_read_pid(sync_fd, &ret->pid, err)) {
		kill(helper, SIGKILL);
		waitpid(helper, NULL, 0);
		return err->code;
	}
	waitpid(helper, NULL, 0);
	ret->pidfd = sys_pidfd_open(ret->pid);
	if (ret->pidfd < 0) {
		err_set(err, -errno, "open a pidfd");
		kill(ret->pid, SIGKILL);
		return err->code;
	}
	return 0;
}

static int spawn_write_proc(const struct plan *plan, pid_t pid, const char *name, const void *data,
			    size_t len, struct err *err)
{
	cleanup_close int fd = -1;
	char path[256];
	int e;

	snprintf(path, sizeof(path), "%s/%d/%s", plan->params->proc_dir, pid, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "open '%s'", path);
	e = io_write_full(fd, data, len);
	return e ? err_set(err, e, "write '%s'", path) : 0;
}

/* The kernel takes the whole map in one write. */
static int spawn_write_map(const struct plan *plan, pid_t pid, const char *name,
			   const struct id_map *map, struct err *err)
{
	cleanup(buf_done) struct buf b;

	buf_init(&b, map->nr * SPAWN_MAP_LINE_MAX);
	for (size_t i = 0; i < map->nr; i++) {
		char line[SPAWN_MAP_LINE_MAX];
		int len = snprintf(line, sizeof(line), "%u %u %u\n", map->v[i].inside,
				   map->v[i].outside, map->v[i].size);

		if (buf_append(&b, line, (size_t)len))
			return err_say(err, -E2BIG, "%zu id mappings", map->nr);
	}
	return spawn_write_proc(plan, pid, name, buf_head(&b), b.len, err);
}

int spawn_configure(const struct plan *plan, pid_t pid, struct err *err)
{
	const AGENT_PB(Process) *p = plan->process;
	char score[16];
	int len;

	/*
	 * Always written, and by us: the agent's own -1000 is inherited otherwise, and as the lower
	 * bound for what a container's process may set itself.
	 */
	len = snprintf(score, sizeof(score), "%d", p->has_oom_score_adj ? p->oom_score_adj : 0);
	if (spawn_write_proc(plan, pid, "oom_score_adj", score, (size_t)len, err))
		return err->code;
	if (!plan->create || !plan->uids->nr)
		return 0;
	if (spawn_write_map(plan, pid, "uid_map", plan->uids, err))
		return err->code;
	return spawn_write_map(plan, pid, "gid_map", plan->gids, err);
}

uint32_t spawn_map_id(const struct id_map *map, uint32_t id)
{
	for (size_t i = 0; i < map->nr; i++)
		if (id >= map->v[i].inside && id - map->v[i].inside < map->v[i].size)
			return map->v[i].outside + (id - map->v[i].inside);
	return id;
}
