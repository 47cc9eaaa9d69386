/*
 * Fuzz entry: virtio-net over a memory image; the input is described in virtio_image.h. A socket pair that
 * keeps messages apart is the tap; the host sends frames with any header, and reads or does not read.
 *
 * Checked beyond "no crash": frames that come out have a sound length.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_tun.h>

#include "net.h"
#include "virtio_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void host(struct virtio_image *image, uint8_t a, uint16_t b)
{
	static uint8_t frame[70000];
	int wire = *(int *)image->ctx;
	ssize_t n;

	if (a & 1) {
		n = recv(wire, frame, sizeof(frame), MSG_DONTWAIT);
		if (n >= 0 && (n < VIRTIO_NET_TAP_HDR + 14 || n > VIRTIO_NET_TAP_HDR + 65550))
			abort();
		return;
	}
	memset(frame, 0, VIRTIO_NET_TAP_HDR);
	frame[0] = a >> 1 & 1;
	frame[1] = a >> 2;
	n = send(wire, frame, b, MSG_DONTWAIT);
	(void)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_image image = {.host = host};
	struct virtio_net_params params = {.mac = {2, 0, 0, 0, 0, 1},
					   .mtu = 1500,
					   .offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6};
	struct virtio_device *dev;
	struct err err;
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		abort();
	params.tap_fd = sv[0];
	params.pin_mac = size > 12 && data[12] & 1;
	image.ctx = &sv[1];
	if (virtio_net_new(&params, &dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	close(sv[1]);
	return 0;
}
