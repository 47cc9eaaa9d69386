/*
 * virtio-rng (virtio 1.2, section 5.4): random bytes of the host's kernel. One request gives at most
 * VIRTIO_RNG_REQUEST_MAX bytes, whatever its buffers hold. Threads: the loop's.
 */
#pragma once

#include "virtio.h"

#define VIRTIO_RNG_REQUEST_MAX 4096

int virtio_rng_new(struct virtio_device **ret, struct err *err);
