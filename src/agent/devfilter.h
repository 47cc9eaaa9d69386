/*
 * The device cgroup of version 2: a BPF program that decides which device nodes a container's processes may
 * open. Making nodes is free, as in runc's default; what counts is using them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "err.h"

/* S_IFCHR or S_IFBLK, and a number. */
struct devfilter_device {
	uint32_t kind, major, minor;
};

/*
 * Attaches to the cgroup folder: the devices every container has, and those given; nothing of `denied`
 * (kind 0 = none), whatever is given. Holds for folders below until they get a filter of their own.
 */
int devfilter_attach(int cgroup_fd, const struct devfilter_device *devices, size_t nr,
		     const struct devfilter_device *denied, struct err *err);
