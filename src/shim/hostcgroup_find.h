/* The hierarchies of cgroups on this host, and the container's folder in each: for hostcgroup*.c alone. */
#pragma once

#include <stdbool.h>

#include "hostcgroup.h"

struct hostcgroup_hierarchy {
	bool is_v2;
	char *controllers; /* v1: "cpu,cpuacct", "name=systemd"; v2: "" */
	char *mount;	   /* mount point */
	char *path;	   /* of the container's cgroup below it, no slash at either end */
	int fd;		   /* the container's folder, -1 = not made */
	int procs_fd;	   /* its cgroup.procs */
};

struct hostcgroup {
	struct hostcgroup_hierarchy v[HOSTCGROUP_HIERARCHIES_MAX];
	size_t nr;
	int fds[HOSTCGROUP_HIERARCHIES_MAX]; /* borrowed from v */
};

/* Fills v with what is mounted here, and the container's path in it. Owned strings. Number, or -errno. */
int hostcgroup_find(const struct hostcgroup_host *host, const char *path,
		    struct hostcgroup_hierarchy v[HOSTCGROUP_HIERARCHIES_MAX], struct err *err);
void hostcgroup_hierarchy_done(struct hostcgroup_hierarchy *h);
bool hostcgroup_has_controller(const struct hostcgroup_hierarchy *h, const char *controller);
