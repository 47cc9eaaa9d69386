/*
 * Translation: from the OCI spec (src/oci) to the messages of the agent (proto/agent.proto), and to the size
 * of the VM. Pure: no system calls, no state.
 *
 * Messages are built from single allocations, so protobuf-c's own free_unpacked() releases them.
 */
#pragma once

#include <stdint.h>

#include "agent.pb-c.h"
#include "config.h"
#include "err.h"
#include "oci.h"
#include "taskio.h"

#define VMREQ_PB(name) Harpoon__Agent__V1__##name
#define VMREQ_SHARE_ROOT "rootfs"

struct vmreq_size {
	uint32_t nr_vcpus;
	uint64_t mem_bytes;
};

/*
 * Annotations decide, then the container's own limits, then the configuration. Applies the annotations to
 * *config (the backend may be among them).
 */
int vmreq_size(const struct oci_spec *spec, struct config *config, struct vmreq_size *ret,
	       struct err *err);

/* Refuses what a VM of its own cannot honour (hooks inside the container, foreign user namespaces). */
int vmreq_check(const struct oci_spec *spec, struct err *err);

/* What stands behind a mount of the spec, in the order of the spec. */
enum vmreq_mount_kind {
	VMREQ_MOUNT_PLAIN,  /* as the spec says: the guest mounts it */
	VMREQ_MOUNT_SHARE,  /* a tree of the host, exported as vmreq_share_name() */
	VMREQ_MOUNT_SOCKET, /* a unix socket: the agent listens in its place, as vmreq_socket_id() */
	VMREQ_MOUNT_DISK,   /* a disk of the VM: see disks.h, which completes the request */
	VMREQ_MOUNT_OWN,    /* a kernel tree of the host was asked for: the guest gives its own */
};

#define VMREQ_SHARE_NAME_LEN 24
void vmreq_share_name(size_t mount_index, char ret[VMREQ_SHARE_NAME_LEN]);

uint32_t vmreq_socket_id(size_t mount_index);

/* File system type of the guest's own tree for a host path such as /proc or /sys; NULL = there is none. */
const char *vmreq_own_type(const char *source);
/* The export must refuse writes: the mount is read-only whatever the guest does. */
bool vmreq_mount_is_read_only(const struct oci_mount *m);

/* kinds: one per mount of the spec; bundle: its path, for hooks. Caller: vmreq_create_free(). */
VMREQ_PB(CreateContainerRequest) *
	vmreq_create_new(const char *id, const char *bundle, const struct oci_spec *spec,
			 const enum vmreq_mount_kind *kinds, const struct taskio *io);
void vmreq_create_free(VMREQ_PB(CreateContainerRequest) * r);

/* process: of the Exec request; spec: of the container (its seccomp profile applies to every process). */
VMREQ_PB(ExecRequest) * vmreq_exec_new(const char *id, const char *exec_id,
				       const struct oci_process *process,
				       const struct oci_spec *spec, const struct taskio *io);
void vmreq_exec_free(VMREQ_PB(ExecRequest) * r);

void vmreq_network_free(VMREQ_PB(NetworkRequest) * r);

/* Memory of a VM whose container has these limits. */
uint64_t vmreq_mem_bytes(const struct oci_resources *r, const struct config *config);

/* mem_bytes: what the VM is to have at least, 0 = what it has. */
VMREQ_PB(UpdateRequest) *
	vmreq_update_new(const char *id, const struct oci_resources *resources, uint64_t mem_bytes);
void vmreq_update_free(VMREQ_PB(UpdateRequest) * r);
