/*
 * Limits of the host's cgroup; see hostlimits.h.
 *
 *   memory      the VM's memory plus what its processes take themselves (HOSTLIMITS_VMM_*), only where the
 *               container has a limit of its own. Inside, the guest keeps the container's limit exactly; this
 *               one bounds what a guest can make its VMM and file server take. It never goes below the VM's
 *               size: what the guest has touched cannot be taken away by a limit, only killed for.
 *   CPU shares  as given
 *   CPU quota   as given, but only once the guest is up: booting it is our work, not the container's, and a
 *               tenth of a CPU would make it ten times longer
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

int hostlimits_set_boot(struct container *c, struct err *err)
{
	const struct oci_resources *r = &c->spec->resources;

	return hostcgroup_limit(c->cgroup,
				&(struct hostcgroup_limits){
					.mem_bytes = hostlimits_memory(c, r->memory_limit),
					.cpu_shares = r->cpu_shares,
					.nr_pids = HOSTLIMITS_PIDS,
					.files = r->host_files,
					.nr_files = r->nr_host_files,
				},
				err);
}

static struct hostcgroup_limits hostlimits_quota(const struct oci_resources *r)
{
	/* A period alone is that of no limit. */
	return (struct hostcgroup_limits){
		.cpu_quota = r->cpu_quota    ? r->cpu_quota
			     : r->cpu_period ? -1
					     : 0,
		.cpu_period = r->cpu_period,
	};
}

int hostlimits_set_running(struct container *c, struct err *err)
{
	struct hostcgroup_limits l = hostlimits_quota(&c->spec->resources);

	return hostcgroup_limit(c->cgroup, &l, err);
}

int hostlimits_update(struct container *c, const struct oci_resources *r, struct err *err)
{
	struct hostcgroup_limits l = hostlimits_quota(r);

	l.mem_bytes = hostlimits_memory(c, r->memory_limit);
	l.cpu_shares = r->cpu_shares;
	l.files = r->host_files;
	l.nr_files = r->nr_host_files;
	return hostcgroup_limit(c->cgroup, &l, err);
}
