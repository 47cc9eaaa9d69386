/*
 * The folder <bundle>/harpoon: what has to survive the shim so that `delete` can clean up from disk alone.
 *
 *   shim       pid and start time of the shim that serves the container
 *   task       pid of the VM; how the container ended, once it has
 *   processes  the VM's processes (written by src/hv)
 *   cgroup     the folders of the host's cgroup (hostcgroup.c)
 *   vm.json    what people may want to know: backend, boot time, memory
 *
 * Every file is replaced as a whole, and every reader takes a missing, empty or torn one as "nothing there".
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

#define BUNDLE_STATE_DIR "harpoon"

struct bundle_task {
	pid_t pid;
	bool exited;
	bool deleted; /* nothing is left to be done but removing files */
	uint32_t exit_status;
	int64_t exited_at_ns; /* CLOCK_REALTIME */
};

/* Descriptor of the bundle folder, not through a symbolic link at its end. */
int bundle_open(const char *path, struct err *err);
/* Makes (or finds) the state folder: ours, 0700, no link. Descriptor. */
int bundle_state_make(int bundle_fd, struct err *err);
/* Descriptor, or -errno. */
int bundle_state_open(int bundle_fd);
/* Removes the state folder and all in it. Nothing there: success. */
int bundle_state_remove(int bundle_fd);

int bundle_task_write(int state_fd, const struct bundle_task *task);
/* *ret is all zero when there is no usable file. */
void bundle_task_read(int state_fd, struct bundle_task *ret);

/* Notes the calling process as the shim. */
int bundle_shim_write(int state_fd);
/* A pidfd of the noted shim; -ESRCH when it is gone, -ENOENT when none was noted. */
int bundle_shim_open(int state_fd);
