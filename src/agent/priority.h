/* Scheduling policy and I/O priority of a process, set by itself while it may: negative niceness takes CAP_SYS_NICE. */
#pragma once

#include "agent_pb.h"
#include "err.h"

int priority_apply(const AGENT_PB(Process) * p, struct err *err);
