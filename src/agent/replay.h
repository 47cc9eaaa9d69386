/*
 * Changes that others make in shared trees, told to those in the guest who watch (inotify); see fs_events.h.
 * A process of its own, because a read of the events waits in the kernel.
 */
#pragma once

#include "plan.h"

/* Starts it, once; nothing happens where the file server has no events. */
void replay_start(const struct agent_params *params);
