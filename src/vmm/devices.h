/* Virtio devices as the shim orders them: one table, a row per kind. Loop's thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "virtio.h"
#include "vmm_control.h"

/* How many descriptors come with a kind. */
size_t devices_nr_fds(uint32_t kind);
/* fds: those that are used are taken out (-1 left behind). Not for VMM_DEVICE_VSOCK: see
 * streams.h; nor for VMM_DEVICE_FS, whose end is the session's end. */
int devices_new(const struct vmm_request *req, int *fds, struct virtio_device **ret,
		struct err *err);
