/*
 * The steps that take a child's view and rights away. Called in the child between clone and exec:
 * plain system calls only. Each returns 0 or -errno and leaves the name of the failed step in *step.
 */
#pragma once

#include "spawn.h"

/* Namespaces that a jailed child is born with; the network one only when none is to be joined. */
uint64_t jail_clone_flags(const struct spawn_jail *jail);

/* Mounts, host name, network namespace, limits. host_pid: the child's pid as its parent sees it. */
int jail_enter(const struct spawn_jail *jail, const char **step);
/* User ids, capabilities, no_new_privs. After this nothing privileged is possible. */
int jail_drop_rights(pid_t host_pid, const char **step);
