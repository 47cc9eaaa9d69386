/* Virtio devices by kind; see devices.h. */
#include "devices.h"

#include <errno.h>
#include <string.h>

#include "cleanup.h"
#include "dev/balloon.h"
#include "dev/blk.h"
#include "dev/net.h"
#include "dev/rng.h"
#include "util.h"

typedef int (*devices_new_fn)(const struct vmm_request *req, int *fds, struct virtio_device **ret,
			      struct err *err);

static int devices_new_rng(const struct vmm_request *req, int *fds, struct virtio_device **ret,
			   struct err *err)
{
	return virtio_rng_new(ret, err);
}

static int devices_new_balloon(const struct vmm_request *req, int *fds, struct virtio_device **ret,
			       struct err *err)
{
	return virtio_balloon_new(&(struct virtio_balloon_params){.shared_memory = false}, ret,
				  err);
}

static int devices_new_blk(const struct vmm_request *req, int *fds, struct virtio_device **ret,
			   struct err *err)
{
	return virtio_blk_new(
		&(struct virtio_blk_params){
			.fd = take_fd(&fds[0]),
			.read_only = req->device.flags & VMM_BLK_READ_ONLY,
			.serial = req->device.tag,
		},
		ret, err);
}

static int devices_new_net(const struct vmm_request *req, int *fds, struct virtio_device **ret,
			   struct err *err)
{
	struct virtio_net_params p = {.offloads = req->device.offloads};

	memcpy(p.mac, req->device.mac, sizeof(p.mac));
	p.tap_fd = take_fd(&fds[0]);
	return virtio_net_new(&p, ret, err);
}

static const struct {
	size_t nr_fds;
	devices_new_fn fn;
} devices_table[VMM_DEVICE_MAX] = {
	[VMM_DEVICE_VSOCK] = {0, NULL}, /* see streams.h */
	[VMM_DEVICE_FS] = {1, NULL},	/* see session.c */
	[VMM_DEVICE_RNG] = {0, devices_new_rng},
	[VMM_DEVICE_BALLOON] = {0, devices_new_balloon},
	[VMM_DEVICE_BLK] = {1, devices_new_blk},
	[VMM_DEVICE_NET] = {1, devices_new_net},
};

size_t devices_nr_fds(uint32_t kind)
{
	return kind < VMM_DEVICE_MAX ? devices_table[kind].nr_fds : 0;
}

int devices_new(const struct vmm_request *req, int *fds, struct virtio_device **ret,
		struct err *err)
{
	uint32_t kind = req->device.kind;

	if (kind >= VMM_DEVICE_MAX || !devices_table[kind].fn)
		return err_say(err, -ENOTSUP, "harpoon-vmm has no device of kind %u", kind);
	return devices_table[kind].fn(req, fds, ret, err);
}
