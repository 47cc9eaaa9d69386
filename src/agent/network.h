/*
 * The container's network inside the guest. The VM is born with a few network devices that carry nothing; the
 * host says which of them are which interface of the container's namespace, and with what on them.
 *
 * Devices are known by the hardware address they are born with (hv.h, HV_NIC_MAC: the last byte counts them).
 * Those without a use are taken away from their driver, so that nobody in the guest sees them.
 */
#pragma once

#include "agent_pb.h"
#include "err.h"

/* The request was checked. Not idempotent for the same device: its first hardware address is gone then. */
int network_set_up(const AGENT_PB(NetworkRequest) * r, struct err *err);
/*
 * Takes all devices away from their driver, in a guest that will be saved: most clones use none, and taking
 * one away is dear. network_set_up() gives back those that are used.
 */
int network_park(struct err *err);
