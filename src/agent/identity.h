/*
 * Who a process is: limits, user and groups, capabilities, no_new_privs, seccomp. Runs in the forked
 * child. Two steps, because the filter comes last: identity_apply() does everything that a filter could
 * forbid, identity_seal() only what must follow it.
 */
#pragma once

#include "agent_pb.h"
#include "err.h"

int identity_set_rlimits(const AGENT_PB(Process) * p, struct err *err);
int identity_apply(const AGENT_PB(Process) * p, struct err *err);
/* Loads the filter and drops what was kept for loading it. Nothing but execve may follow. */
int identity_seal(const AGENT_PB(Process) * p, struct err *err);
