/* sched_setattr(2) and ioprio_set(2), which neither C library has; see priority.h. */
#include "priority.h"

#include <errno.h>
#include <linux/sched/types.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PRIORITY_WHO_PROCESS 1 /* include/linux/ioprio.h: IOPRIO_WHO_PROCESS */

static int priority_set_scheduler(const AGENT_PB(Scheduler) * s, struct err *err)
{
	struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = s->policy,
		.sched_flags = s->flags,
		.sched_nice = s->nice,
		.sched_priority = s->priority,
		.sched_runtime = s->runtime_ns,
		.sched_deadline = s->deadline_ns,
		.sched_period = s->period_ns,
	};

	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		return err_set(err, -errno, "scheduler: policy %u, nice %d, priority %u", s->policy,
			       s->nice, s->priority);
	return 0;
}

int priority_apply(const AGENT_PB(Process) * p, struct err *err)
{
	if (p->scheduler && priority_set_scheduler(p->scheduler, err))
		return err->code;
	if (p->has_io_priority && syscall(SYS_ioprio_set, PRIORITY_WHO_PROCESS, 0, p->io_priority))
		return err_set(err, -errno, "I/O priority 0x%x", p->io_priority);
	return 0;
}
