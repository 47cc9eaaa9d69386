/*
 * The host's cgroup of one container: linux.cgroupsPath, in every hierarchy there is. It holds the processes
 * of the VM and nothing else (the shim stays outside, as runc's does), so what the host accounts and limits
 * is the container as the host sees it.
 *
 * Hosts: cgroup v1, v2, or both (hybrid): every hierarchy of /proc/self/cgroup that is mounted takes part,
 * with the files its version has. Forms of the path, as runc reads them:
 *
 *   /a/b              below the mount point of each hierarchy
 *   a/b               below the cgroup that the shim itself is in (v2: beside it, where a cgroup with
 *                     processes cannot have controllers for others)
 *   slice:prefix:name systemd's: /a.slice/a-b.slice/prefix-name.scope. The folder is made here; systemd is not
 *                     asked
 *   none              the container's id, relative
 *
 * Which limits: what only the host can keep (CPUs, memory nodes, disks) must take effect, or creation fails.
 * What the guest keeps too (memory, CPU time, processes) is a second line here, and is left out, with a word in
 * the log, where the host lacks the controller.
 *
 * The folders are written to <bundle>/harpoon/cgroup before they are made, so that `delete` finds them. Those
 * above the last component stay when the container goes; other containers share them.
 *
 * Spec: runtime-spec config-linux.md, "Cgroups"; kernel: cgroup-v1/, cgroup-v2.rst.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "oci.h"

#define HOSTCGROUP_HIERARCHIES_MAX 16

struct hostcgroup;

/* Where the host's cgroups are described; tests bring their own. */
struct hostcgroup_host {
	const char *mountinfo;	/* a file like /proc/self/mountinfo */
	const char *membership; /* a file like /proc/self/cgroup */
};
extern const struct hostcgroup_host hostcgroup_real;

struct hostcgroup_limits {
	uint64_t
		mem_bytes; /* of all the VM's processes together; 0 = leave as it is, UINT64_MAX = none */
	uint64_t cpu_shares; /* 2..262144, 0 = leave as it is */
	int64_t cpu_quota;   /* us in each period; < 0 = none; 0 = leave as it is */
	uint64_t cpu_period; /* us, 0 = the default */
	uint64_t nr_pids;    /* 0 = leave as it is */
	/* cpuset.*, io.*: struct oci_resources. Borrowed. */
	const struct oci_cgroup_file *files;
	size_t nr_files;
};

/* -EBUSY when the cgroup has processes already. *ret is NULL on a host without cgroups: not an error. */
int hostcgroup_new(const struct hostcgroup_host *host, const char *cgroups_path, const char *id,
		   int state_fd, struct hostcgroup **ret, struct err *err);
/* cgroup.procs of each hierarchy, open for writing as long as the object lives. Accepts NULL: none. */
const int *hostcgroup_fds(const struct hostcgroup *g, size_t *ret_nr);
/* Sets what is given. Accepts NULL. */
int hostcgroup_limit(const struct hostcgroup *g, const struct hostcgroup_limits *l,
		     struct err *err);
/* What the VM's processes moved to and from one disk. */
struct hostcgroup_io {
	uint32_t major, minor;
	uint64_t read_bytes, write_bytes, reads, writes;
};

/* Fills v with one entry for each disk, as far as there is room. Number; 0 also when the host does not count. */
size_t hostcgroup_read_io(const struct hostcgroup *g, struct hostcgroup_io *v, size_t max);
/*
 * Adds the disks of another io.stat (cgroup v2), whoever wrote it, to the nr there are, and returns how many there are
 * then. What both have under one number counts once: the larger figures.
 */
size_t hostcgroup_add_io(const char *text, struct hostcgroup_io *v, size_t nr, size_t max);

/* Removes the folders, once every process is gone, and frees. Accepts NULL. What stays is logged. */
void hostcgroup_free(struct hostcgroup *g);

/* From disk: ends what is still in the noted cgroups, and removes them. No note: nothing to do. */
int hostcgroup_cleanup_state(int state_fd, struct err *err);

/* "slice:prefix:name" to a path; other forms are copied. Caller frees. For tests. */
char *hostcgroup_path(const char *cgroups_path, const char *id, struct err *err);
