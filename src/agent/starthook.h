/*
 * startContainer hooks: programs of the container's own root file system, run in it by its first process, right
 * before that becomes the container's program; with its user, capabilities and seccomp filter, as runc does.
 */
#pragma once

#include "agent_pb.h"
#include "err.h"

/* Makes what needs more rights or system calls than the process will have. *ret_state_fd: -1 without hooks. */
int starthook_prepare(const AGENT_PB(CreateContainerRequest) * c, int *ret_state_fd,
		      struct err *err);
/* Runs all, one after another; the first that fails ends the start. */
int starthook_run(const AGENT_PB(CreateContainerRequest) * c, int state_fd, struct err *err);
