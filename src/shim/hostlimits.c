/*
 * Limits of the host's cgroup; see hostlimits.h.
 *
 *   memory      the VM's memory plus what its processes take themselves (HOSTLIMITS_VMM_*), only where the
 *               container has a limit of its own. Inside, the guest keeps the container's limit exactly; this
 *               one bounds what a guest can make its VMM and file server take. It never goes below the VM's
 *               size: what the guest has touched cannot be taken away by a limit, only killed for.
 *   CPU shares  as given
 *   CPU quota   as given and one CPU more, for the VM's own work. The guest keeps the exact one. With the same on the host
 *               the two would multiply: a guest cannot see that its virtual CPU does not run, takes that time for
 *               the container's, and gives it a fifth of the fifth that is left
 *   pids        room for the threads of a VM; the container's own limit counts inside the guest
 *   cpuset, io  as given: CPUs, nodes and disks are the host's
 */
#include "hostlimits.h"

#include <string.h>

#include "hostcgroup.h"
#include "util.h"

#define HOSTLIMITS_MIB (1024ull * 1024)
/* Device emulation, file server, sockets. */
#define HOSTLIMITS_VMM_BYTES (256 * HOSTLIMITS_MIB)
/* QEMU's emulator keeps up to 1 GiB of translated code. */
#define HOSTLIMITS_EMULATOR_BYTES (1024 * HOSTLIMITS_MIB)
#define HOSTLIMITS_PIDS 1024
#define HOSTLIMITS_PERIOD_DEFAULT 100000

int hostlimits_make_cgroup(struct container *c, struct err *err)
{
	if (!c->shim->cgroup_host)
		return 0;
	return hostcgroup_new(c->shim->cgroup_host, c->spec->cgroups_path, c->id, c->state_fd,
			      &c->cgroup, err);
}

static uint64_t hostlimits_memory(const struct container *c, int64_t limit)
{
	uint64_t guest = c->mem_bytes, overhead = HOSTLIMITS_VMM_BYTES;

	if (limit <= 0)
		return limit < 0 ? UINT64_MAX : 0;
	if (strcmp(hv_vm_backend(c->vm), "qemu") == 0)
		overhead += HOSTLIMITS_EMULATOR_BYTES;
	guest = MAX(guest, (uint64_t)limit + c->shim->config.memory_overhead_mib * HOSTLIMITS_MIB);
	return guest + overhead;
}

/* A period alone is that of no limit. */
static void hostlimits_set_quota(struct hostcgroup_limits *l, const struct oci_resources *r)
{
	uint64_t period = r->cpu_period ? r->cpu_period : HOSTLIMITS_PERIOD_DEFAULT;

	if (!r->cpu_quota && !r->cpu_period)
		return;
	l->cpu_period = period;
	l->cpu_quota = r->cpu_quota > 0 ? r->cpu_quota + (int64_t)period : -1;
}

static int hostlimits_set(struct container *c, const struct oci_resources *r, uint64_t nr_pids,
			  struct err *err)
{
	struct hostcgroup_limits l = {
		.mem_bytes = hostlimits_memory(c, r->memory_limit),
		.cpu_shares = r->cpu_shares,
		.nr_pids = nr_pids,
		.files = r->host_files,
		.nr_files = r->nr_host_files,
	};

	hostlimits_set_quota(&l, r);
	return hostcgroup_limit(c->cgroup, &l, err);
}

int hostlimits_begin(struct container *c, struct err *err)
{
	return hostlimits_set(c, &c->spec->resources, HOSTLIMITS_PIDS, err);
}

int hostlimits_update(struct container *c, const struct oci_resources *r, struct err *err)
{
	return hostlimits_set(c, r, 0, err);
}
