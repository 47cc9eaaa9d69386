/*
 * Stats: the container's cgroup in the guest as containerd's metrics message for cgroup v2
 * (io.containerd.cgroups.v2.Metrics). Disks are the host's: what the VM's processes did to them, by the host's
 * cgroup. Only where the host does not count does the guest's word about its own disks serve.
 */
#pragma once

#include "agent.pb-c.h"
#include "containerd_metrics.pb-c.h"
#include "hostcgroup.h"
#include "rpc.h"

#define STATS_DISKS_MAX 64

struct container;

/* Asks the agent; answers the call later, within containerd's two seconds. Of a paused one: what was kept. */
void stats_request(struct container *c, struct rpc_call *call);
/* The packed metrics message, to be freed. */
uint8_t *stats_pack(const Harpoon__Agent__V1__StatsResponse *r, const struct hostcgroup *host,
		    size_t *ret_len);

/* The message and its parts in one place; stats_fill() links them. All parts are always present: clients
 * read through them without looking. */
struct stats {
	Ctrd__Metrics metrics;
	Ctrd__PidsStat pids;
	Ctrd__CPUStat cpu;
	Ctrd__MemoryStat memory;
	Ctrd__IOStat io;
	Ctrd__MemoryEvents events;
	Ctrd__IOEntry disk[STATS_DISKS_MAX], *disks[STATS_DISKS_MAX];
};

/*
 * From the text of the cgroup's files. What is missing or not a number stays 0; "max" is the largest. host:
 * NULL = none.
 */
void stats_fill(struct stats *s, const Harpoon__Agent__V1__StatsResponse *r,
		const struct hostcgroup *host);
