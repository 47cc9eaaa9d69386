/* See spare.h. */
#include "spare.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "child.h"
#include "cleanup.h"
#include "io.h"
#include "log.h"

static int spare_start(struct spare *s, const struct agent_params *params, struct err *err)
{
	static const char who[] = "the spare process";
	struct child_report report = {0};
	cleanup_close int child_fd = -1;
	int sync[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync))
		return err_set(err, -errno, "make a socket pair");
	s->sync_fd = sync[0];
	child_fd = sync[1];
	if (spawn_clone(CHILD_SPARE_NAMESPACES, s->cgroup_fd, &s->proc, err))
		return err->code;
	if (!s->proc.pid)
		child_run_spare(params, child_fd);
	cleanup_closep(&child_fd);
	if (spawn_await(s->sync_fd, who, &report, err))
		return err->code;
	return report.kind == CHILD_READY ? 0 : err_say(err, -EPROTO, "%s sent nonsense", who);
}

int spare_make(struct spare *s, const struct agent_params *params, struct err *err)
{
	if (cgroup_create(params->cgroup_dir, SPARE_CGROUP, &s->cgroup_fd, err))
		return err->code;
	if (spare_start(s, params, err))
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
	if (!plan->create->hostname[0] && gethostname(told->hostname, sizeof(told->hostname)))
		return -errno;
	if (!plan->create->domainname[0] &&
	    getdomainname(told->domainname, sizeof(told->domainname)))
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
	int e = spare_tell(s, plan);

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
