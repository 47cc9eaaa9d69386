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

/* /dev and console messages. A failure is logged and met again later. */
void guest_boot(void);
/* The channel to the host: the virtio-serial port. */
int guest_open_channel(struct err *err);
/* Clock, entropy, hostname. Does nothing of that when the agent is not a guest's init. */
int guest_configure(const struct agent_params *params, const AGENT_PB(ConfigureRequest) * r,
		    struct err *err);
/*
 * Moves the wall clock, if the agent is a guest's init, and tells what it says then. gradual: not in one step; it runs
 * 500 ppm slower or faster until that is done (adjtime(3)).
 */
int guest_adjust_clock(const struct agent_params *params, int64_t by_ns, bool gradual,
		       int64_t *ret_now_ns, struct err *err);
/* driver: its folder in sysfs; file: "bind" or "unbind"; name: the device's on its bus. Negative errno on failure. */
int guest_tell_driver(const char *driver, const char *file, const char *name);
/* Mounts, cgroups, loopback: after the greeting, and by CreateContainer at the latest. Idempotent. */
int guest_prepare(const struct agent_params *params, struct err *err);
/*
 * The exported trees. Not before the host's first call: a virtual machine saved after the greeting must
 * not have talked to a file server that its clones will not have. Idempotent.
 */
int guest_mount_shared(const struct agent_params *params, struct err *err);
/* memory_grow(), and what containers may have together grows, too. Nothing when the agent is not a guest's init. */
int guest_grow(const struct agent_params *params, uint64_t bytes, struct err *err);
/* Writes everything back and restarts, which ends the virtual machine. Does not return. */
void guest_shutdown(void);
/* Nanoseconds since the kernel started. */
uint64_t guest_now_ns(void);
