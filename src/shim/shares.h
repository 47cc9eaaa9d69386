/*
 * What a container sees of the host's file systems: its root and the sources of its mounts, as trees that harpoon-fs
 * exports, disks, or sockets that are relayed.
 *
 * Thread: the loop's. Errors are -errno with words in `err`; what was done until then container_free() undoes.
 */
#pragma once

#include "containerd_task.pb-c.h"
#include "vmreq.h"

struct container;
struct err;

/* Sets c->disks: those of the root, of mounts and of devices, opened. Before the VM starts. */
int shares_open_disks(struct container *c, const Ctrd__CreateTaskRequest *req, struct err *err);
/* Hands all the rest to the VM that has been started. kinds: one for each mount of the spec, to be set; zeroed. */
int shares_export(struct container *c, const Ctrd__CreateTaskRequest *req,
		  enum vmreq_mount_kind *kinds, struct err *err);
