/* See spare.h. */
#include "spare.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "child.h"
#include "cleanup.h"
#include "io.h"
#include "log.h"

#define SPARE_TIMEOUT_S 10

static int spare_fork(struct spare *s, const struct agent_params *params, int child_fd,
		      struct err *err)
{
	struct clone_args args = {
		/* As in spawn_container(): the cgroup namespace comes by unshare. */
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP |
			 (CHILD_SPARE_NAMESPACES & ~(uint64_t)CLONE_NEWCGROUP),
		.pidfd = (uint64_t)(uintptr_t)&s->proc.pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)s->cgroup_fd,
	};
	pid_t pid = sys_clone3(&args);

	if (pid < 0)
		return err_set(err, -errno, "fork a spare process");
	if (!pid)
		child_run_spare(params, child_fd);
	s->proc.pid = pid;
	return 0;
}

static int spare_await(const struct spare *s, struct err *err)
{
	struct timeval patience = {.tv_sec = SPARE_TIMEOUT_S};
	struct child_report report = {0};

	if (setsockopt(s->sync_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		return err_set(err, -errno, "set a timeout");
	if (io_read_full(s->sync_fd, &report, sizeof(report)) != sizeof(report))
		return err_say(err, -EIO, "the spare process died");
	report.msg[sizeof(report.msg) - 1] = '\0';
	if (report.kind == CHILD_FAILED && report.value < 0)
		return err_say(err, report.value, "spare process: %s", report.msg);
	return report.kind == CHILD_READY
		       ? 0
		       : err_say(err, -EPROTO, "the spare process sent nonsense");
}

int spare_make(struct spare *s, const struct agent_params *params, struct err *err)
{
	cleanup_close int child_fd = -1;
	int sync[2];

	if (cgroup_create(params->cgroup_dir, SPARE_CGROUP, &s->cgroup_fd, err))
		return err->code;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync)) {
		err_set(err, -errno, "make a socket pair");
	} else {
		s->sync_fd = sync[0];
		child_fd = sync[1];
		if (!spare_fork(s, params, child_fd, err)) {
			/* Or its death would not be seen. */
			cleanup_closep(&child_fd);
			spare_await(s, err);
		}
	}
	if (err->code)
		spare_drop(s, params);
	return err->code;
}

bool spare_fits(const struct spare *s, uint32_t namespaces,
		const AGENT_PB(CreateContainerRequest) * r)
{
	/* Disks are mounted by the agent, after the spare got its own copy of all mounts. */
	return s->proc.pid && (namespaces & ~(uint32_t)CLONE_NEWTIME) == CHILD_SPARE_NAMESPACES &&
	       !r->n_uid_mappings && !r->n_gid_mappings && !r->n_disks && !r->n_root_mounts &&
	       harpoon__agent__v1__create_container_request__get_packed_size(r) <= CHILD_PLAN_MAX;
}

static int spare_tell(const struct spare *s, const struct plan *plan)
{
	size_t len = harpoon__agent__v1__create_container_request__get_packed_size(plan->create);
	cleanup_free struct child_plan *told = xcalloc(1, sizeof(*told) + len);
	int fds[ARRAY_SIZE(plan->stdio)];
	size_t nr_fds = 0;

	told->namespaces = plan->namespaces;
	memcpy(told->id, plan->id, strnlen(plan->id, REQUEST_ID_MAX));
	if (!plan->create->hostname[0] && gethostname(told->hostname, CHILD_NAME_MAX))
		return -errno;
	if (!plan->create->domainname[0] && getdomainname(told->domainname, CHILD_NAME_MAX))
		return -errno;
	for (size_t i = 0; i < ARRAY_SIZE(plan->stdio); i++) {
		if (plan->stdio[i] < 0)
			continue;
		told->stdio |= 1u << i;
		fds[nr_fds++] = plan->stdio[i];
	}
	harpoon__agent__v1__create_container_request__pack(plan->create, (uint8_t *)(told + 1));
	return io_send_fds(s->sync_fd, told, sizeof(*told) + len, fds, nr_fds);
}

int spare_take(struct spare *s, const struct plan *plan, struct spawned *ret, int *ret_sync_fd,
	       struct err *err)
{
	struct timeval forever = {0};
	int e = spare_tell(s, plan);

	if (!e && setsockopt(s->sync_fd, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof(forever)))
		e = -errno;
	if (e) {
		spare_drop(s, plan->params);
		return err_set(err, e, "tell the spare process what it is");
	}
	*ret = s->proc;
	*ret_sync_fd = take_fd(&s->sync_fd);
	*s = (struct spare)SPARE_INIT;
	return 0;
}

void spare_drop(struct spare *s, const struct agent_params *params)
{
	bool had_cgroup = s->proc.pid || s->cgroup_fd >= 0;
	siginfo_t info;

	/* By descriptor: should it be dead, the reaper may have met it already. */
	if (s->proc.pid) {
		sys_pidfd_send_signal(s->proc.pidfd, SIGKILL);
		waitid(P_PIDFD, (id_t)s->proc.pidfd, &info, WEXITED);
	}
	cleanup_closep(&s->proc.pidfd);
	cleanup_closep(&s->sync_fd);
	cleanup_closep(&s->cgroup_fd);
	if (had_cgroup && cgroup_remove(params->cgroup_dir, SPARE_CGROUP))
		log_warn("spare", "its cgroup cannot be removed");
	*s = (struct spare)SPARE_INIT;
}
