/*
 * The guest itself, as opposed to its containers: what PID 1 of a virtual machine does once. Split by
 * time: guest_boot() is all that readiness needs; the rest is done when first needed, or afterwards.
 */
#pragma once

#include <stdint.h>

#include "agent_pb.h"
#include "err.h"
#include "plan.h"

extern const struct agent_params guest_params;

/* Mounts and console messages. Failures of single mounts are logged and met again later. */
void guest_boot(void);
/* The channel to the host: the virtio-serial port. */
int guest_open_channel(struct err *err);
/* Clock, entropy, hostname. Does nothing of that when the agent is not a guest's init. */
int guest_configure(const struct agent_params *params, const AGENT_PB(ConfigureRequest) * r,
		    struct err *err);
/* Shared folder and cgroups. Idempotent; called ahead of the first container and by CreateContainer. */
int guest_prepare_containers(const struct agent_params *params, struct err *err);
/* Writes everything back and restarts, which ends the virtual machine. Does not return. */
void guest_shutdown(void);
/* Nanoseconds since the kernel started. */
uint64_t guest_now_ns(void);
