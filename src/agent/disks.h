/*
 * Disks of a container: virtio-blk devices, found by their serial numbers; what is mounted of them before the
 * container's first process is forked, and unmounted, written out, when its last one is gone. What is in them is hostile;
 * the kernel that parses it is the container's own.
 *
 * Mounted by the agent and not by the child, because a user namespace may not mount disks. The agent waits for the disk
 * meanwhile; its VM has no other work.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent_pb.h"
#include "err.h"
#include "request.h"

struct agent_params;

struct disk {
	char serial[REQUEST_SERIAL_MAX + 1];
	char node[16]; /* in the guest's /dev */
	uint32_t major, minor;
	uint32_t access; /* DEVFILTER_* */
};

struct disks {
	struct disk v[REQUEST_DISKS_MAX];
	size_t nr;
	const char *dev_dir;
	char *dir;     /* owned: the container's folder of mounts; NULL = none */
	char *root;    /* owned: where its root file system is; NULL = it is a share */
	char **mounts; /* owned: what was mounted, in order */
	size_t nr_mounts;
};

/* On failure, too, disks_done() takes back what was done. */
int disks_prepare(struct disks *d, const struct agent_params *params,
		  const AGENT_PB(CreateContainerRequest) * r, struct err *err);
/* Writes everything out and unmounts. Idempotent. */
void disks_release(struct disks *d);
void disks_done(struct disks *d);

/* A machine about to be saved: the driver lets go of every disk, because its clones have other ones. */
int disks_park(struct err *err);

const struct disk *disks_find(const struct disks *d, const char *serial);
/* "disk:SERIAL" -> the disk; NULL = it does not begin so, or there is none such. */
const struct disk *disks_of_source(const struct disks *d, const char *source);
#define DISKS_SOURCE_PREFIX "disk:"
/* Where the index-th mount of the request is, one whose source is a disk and not its node. Caller frees. */
char *disks_volume_path(const struct disks *d, size_t index);
