/*
 * The device cgroup of version 2: a BPF program that decides which device nodes a container's processes may
 * make and open. Rules are the spec's (linux.resources.devices): for each kind of access the last one that matches
 * decides, and without one the answer is no. After the container's own come runc's: the default devices, and
 * making nodes, which is free because using them is not.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

/* S_IFCHR or S_IFBLK, and a number. */
struct devfilter_device {
	uint32_t kind, major, minor;
};

#define DEVFILTER_ANY UINT32_MAX
/* Kinds of access. */
#define DEVFILTER_MKNOD 1u
#define DEVFILTER_READ 2u
#define DEVFILTER_WRITE 4u

struct devfilter_rule {
	uint32_t kind;	       /* S_IFCHR, S_IFBLK, 0 = both */
	uint32_t major, minor; /* DEVFILTER_ANY = all */
	uint32_t access;       /* some of DEVFILTER_* */
	bool allow;
};

/*
 * Attaches to the cgroup folder: the given rules, in order, and the default ones; nothing of `denied`
 * (kind 0 = none), whatever is given. Holds for folders below until they get a filter of their own.
 */
int devfilter_attach(int cgroup_fd, const struct devfilter_rule *given, size_t nr,
		     const struct devfilter_device *denied, struct err *err);
/*
 * For a folder below one that has the default filter: attaches the given rules as above, if they say anything
 * that the default ones do not.
 */
int devfilter_attach_below(int cgroup_fd, const struct devfilter_rule *given, size_t nr,
			   const struct devfilter_device *denied, struct err *err);
/*
 * Loads ahead of time what the function above loads for the rules that containerd gives to every container: the
 * kernel checks a program for long. Any other set of rules is loaded when it is needed.
 */
int devfilter_preload(const struct devfilter_device *denied, struct err *err);
void devfilter_unload(void);
