/*
 * Disks of a container's VM: block devices it was given (linux.devices, bind mounts of device nodes), and images or
 * devices that hold a file system, for its root or for a mount. They are opened here, given to the VM as virtio-blk,
 * and mounted by nobody but the guest: the host's kernel never parses what is in them.
 *
 * What the VM gets is a descriptor with the rights the container has, and no more: O_RDONLY where it may only read.
 * A disk that may be written belongs to one VM at a time, because two caches of it would not agree: block devices are
 * opened exclusively (which also fails while the host has them mounted), image files are locked (flock).
 *
 * Thread: the loop's.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"
#include "hv.h"
#include "mounts.h"
#include "oci.h"
#include "vmreq.h"

struct disk {
	int fd; /* owned, until disks_close() */
	bool read_only;
	char *name; /* for messages: where it was found */
	dev_t host_dev, dev;
	ino_t ino;	 /* with dev: which file it is; with host_dev: which device */
	uint32_t access; /* DISKS_ACCESS_*, of the container's processes */
	uint32_t mode, uid, gid;
};

/* As in proto/agent.proto, DeviceRule. */
#define DISKS_ACCESS_MKNOD 1u
#define DISKS_ACCESS_READ 2u
#define DISKS_ACCESS_WRITE 4u

/* One entry of containerd's list, to be mounted in the guest. */
struct disks_root_mount {
	char *type, *source, *target, *data; /* as in proto/agent.proto, RootMount */
	char **folders;
	size_t nr_folders;
	uint64_t flags;
};

struct disks_share {
	char *name, *path;
	bool read_only;
};

struct disks {
	struct disk v[HV_DISKS_MAX];
	size_t nr;
	int *of_mount, *of_device;     /* one per mount and device of the spec: index, -1 = none */
	struct disks_root_mount *root; /* NULL: the root file system is made on the host */
	size_t nr_root;
	/* Folders of the host that the root's mounts name, to be shared. */
	struct disks_share *shares;
	size_t nr_shares;
};

/*
 * Opens all that is needed. root: containerd's mounts, borrowed for the call. dirfd: the bundle, where relative sources
 * begin. *ret is to be freed.
 */
int disks_new(const struct oci_spec *spec, int dirfd, const struct mounts_entry *root,
	      size_t nr_root, struct disks **ret, struct err *err);
void disks_free(struct disks *d);
/* The VM has them. */
void disks_close(struct disks *d);

static inline bool disks_make_root(const struct disks *d)
{
	return d->nr_root > 0;
}
/* Whether something of them may be unwritten when the container's processes have ended. */
bool disks_are_writable(const struct disks *d);
/* For the VM's parameters; valid until disks_free(). */
void disks_params(const struct disks *d, struct hv_disk ret[HV_DISKS_MAX]);
/* Adds disks, and who is one, to what the agent is told. */
void disks_describe(const struct disks *d, VMREQ_PB(CreateContainerRequest) * r);

/* Whether a rule allows something of just this block device. */
bool disks_are_named(const struct oci_resources *res, uint32_t major, uint32_t minor);
/* What the rules of the device cgroup let a container do with a block device: DISKS_ACCESS_*. */
uint32_t disks_access(const struct oci_resources *res, uint32_t major, uint32_t minor);
