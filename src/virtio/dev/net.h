/*
 * virtio-net (virtio 1.2, section 5.1) on a tap: one pair of queues and the control queue, mergeable
 * receive buffers, checksum and segmentation offload both ways.
 *
 * The tap: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, header size VIRTIO_NET_TAP_HDR (TUNSETVNETHDRSZ),
 * TUNSETOFFLOAD with exactly params.offloads. A guest that accepts less than was offered has the tap
 * told so here (the one ioctl of the loop's thread: TUNSETOFFLOAD). A device may be made before its
 * tap is known: its link is down until virtio_net_set_tap(), what it sends meanwhile is thrown away.
 *
 * A burst is not dropped while the guest has buffers: the tap is read only when the last frame found
 * room, so the queue that overflows, if one does, is the tap's.
 *
 * Threads: the loop's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define VIRTIO_NET_TAP_HDR 12

struct virtio_net_params {
	int tap_fd; /* taken over, also on failure; made non-blocking; -1 = later */
	uint8_t mac[6];
	uint16_t mtu;	   /* what the guest is told; 0 = nothing */
	uint32_t offloads; /* TUN_F_* that the tap is set to, now or later */
	bool pin_mac;	   /* frames from other source addresses are dropped, the address stays */
};

struct virtio_net_counts {
	uint64_t rx_frames,
		rx_dropped; /* to the guest; dropped: it had not agreed to such frames */
	uint64_t tx_frames, tx_dropped; /* from the guest; dropped: no tap, wrong, or not taken */
};

int virtio_net_new(const struct virtio_net_params *params, struct virtio_device **ret,
		   struct err *err);
/*
 * Replaces the tap (taken over, also on failure; -1 = unplugged): the link goes up or down and the
 * guest is told.
 */
int virtio_net_set_tap(struct virtio_device *dev, int tap_fd, struct err *err);
void virtio_net_get_counts(struct virtio_device *dev, struct virtio_net_counts *ret);
