/*
 * Network namespaces, entered for a moment by the calling thread to open things that then belong to them: a
 * netlink socket, a tap.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "err.h"

struct netns_id {
	dev_t dev;
	ino_t ino;
};

/* A descriptor of the namespace at `path`; -EINVAL with a sentence when it is something else. */
int netns_open(const char *path, struct err *err);
/* A descriptor of a new one, its loopback interface up. */
int netns_make(struct err *err);
int netns_identify(int fd, struct netns_id *ret);
/* Whether it is the one that this process is in. */
bool netns_is_own(int fd);

/* Runs fn inside. There is no way back that fails: the process ends then. */
typedef int (*netns_fn)(void *ctx, struct err *err);
int netns_run_in(int fd, netns_fn fn, void *ctx, struct err *err);
