/* Forking a plan's child into its namespaces and cgroup. The agent's side of child.h. */
#pragma once

#include <sys/types.h>

#include "err.h"
#include "plan.h"

struct child_report;

struct spawned {
	pid_t pid;
	int pidfd; /* owned by the caller */
};

/*
 * Forks into a cgroup and into all of `namespaces` that a fork can make: the cgroup namespace comes later, by unshare, as
 * its root is the cgroup of that moment; the time namespace, too, whose clocks are set before anybody is in it.
 * ret->pid is 0 in the child.
 */
int spawn_clone(uint32_t namespaces, int cgroup_fd, struct spawned *ret, struct err *err);
/* Waits for the first report of `who`, whose end of the socket the caller has closed; a FAILED one is the error. */
int spawn_await(int sync_fd, const char *who, struct child_report *ret, struct err *err);
int spawn_container(const struct plan *plan, struct spawned *ret, struct err *err);
/* sync_fd: the agent's end, on which the pid arrives; *child_fd: the child's end, closed here. */
int spawn_exec(const struct plan *plan, int sync_fd, int *child_fd, struct spawned *ret,
	       struct err *err);
/* Before CHILD_GO: what only the agent may write for the child. */
int spawn_configure(const struct plan *plan, pid_t pid, struct err *err);
/* The id in the guest of an id of the container. */
uint32_t spawn_map_id(const struct id_map *map, uint32_t id);
