/*
 * What a forked child needs to become a container's process. Built by the agent before the fork, only
 * read by the child; everything in it is borrowed from the agent's memory, of which the child has a copy.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent_pb.h"

/* Where things are in the guest. Parameters, so that tests run the same code on any Linux. */
struct agent_params {
	const char
		*fs_dir; /* exported trees, one folder or file each; roots are attached here too */
	const char *cgroup_dir; /* a cgroup v2 folder that is the agent's */
	const char *proc_dir;	/* a procfs */
	const char *dev_dir;	/* the guest's devices */
	const char *
		channel; /* device node of the way to the host, which no container may open; or NULL */
	const char *sock_dir; /* sockets of the agent that containers mount */
	const char *
		disk_dir; /* made when it is needed: where disks are mounted; NULL = there are none */
	bool is_guest_init; /* PID 1 of a guest: may power off, set clock and hostname */
};

/* One range of a user namespace's id map. */
struct id_range {
	uint32_t inside, outside, size;
};

struct id_map {
	struct id_range *v; /* owned by the container */
	size_t nr;
};

struct disks;

struct plan {
	const struct agent_params *params;
	/* NULL for an exec. */
	const AGENT_PB(CreateContainerRequest) * create;
	const AGENT_PB(Process) * process;
	const char *id;
	const struct disks *disks;	  /* of the container */
	const struct id_map *uids, *gids; /* empty without a user namespace */
	uint32_t namespaces;		  /* CLONE_NEW*: to make, or (exec) to join */
	int join_pidfd;			  /* exec: the container's init, else -1 */
	int cgroup_fd;			  /* the container's cgroup folder */
	int sync_fd;			  /* SOCK_SEQPACKET to the agent */
	int stdio[3];			  /* -1: /dev/null, or the terminal */
};
