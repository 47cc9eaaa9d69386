/*
 * What of linux.resources the host keeps for a container's VM as a whole: see hostlimits.c for which number goes
 * where. Thread: the loop's. Without cgroups on the host all of it is nothing.
 */
#pragma once

#include "container.h"

/* The cgroup of linux.cgroupsPath. Before hv_vm_new(). */
int hostlimits_make_cgroup(struct container *c, struct err *err);
/* All of the spec's. Between hv_vm_new() and hv_vm_start(). */
int hostlimits_begin(struct container *c, struct err *err);
int hostlimits_update(struct container *c, const struct oci_resources *r, struct err *err);
