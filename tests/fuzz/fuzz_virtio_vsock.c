/*
 * Fuzz entry: virtio-vsock over a memory image; the input is described in virtio_image.h. The host connects,
 * accepts, writes, reads, hangs up and resets while the guest does as it likes.
 *
 * Checked beyond "no crash": each stream's owner is told of its end exactly once.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util.h"
#include "virtio_image.h"
#include "vsock.h"

#define LOADED_PORT 0x40u
#define ENDS_MAX 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct end {
	int fd; /* ours; -1 = free */
	bool open;
	struct vsock_stream *stream;
};

static struct end ends[ENDS_MAX];

static void on_done(void *ctx, int err)
{
	struct end *e = ctx;

	if (!e->open)
		abort();
	e->open = false;
	e->stream = NULL;
}

/* A socket pair's other end goes to the device; -1 when there is no room. */
static int new_end(struct end **ret)
{
	int sv[2];

	for (unsigned int i = 0; i < ENDS_MAX; i++) {
		if (ends[i].fd >= 0 || ends[i].open)
			continue;
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
			abort();
		ends[i] = (struct end){.fd = sv[0], .open = true};
		*ret = &ends[i];
		return sv[1];
	}
	return -1;
}

static int on_connect(void *ctx, uint32_t host_port, uint32_t guest_port, struct vsock_accept *ret)
{
	struct end *e;
	int fd;

	if (host_port % 4 == 3)
		return -ECONNREFUSED;
	fd = new_end(&e);
	if (fd < 0)
		return -EMFILE;
	*ret = (struct vsock_accept){.rfd = fd, .wfd = fd, .done = on_done, .ctx = e};
	return 0;
}

static void host_connects(struct virtio_image *image, uint16_t b)
{
	struct end *e;
	int fd = new_end(&e);

	/* Some take up what load_changed() left. */
	if (fd >= 0 && vsock_connect(image->dev, b % 16 | (b & 0x8000 ? LOADED_PORT : 0),
				     b / 16 % 16, fd, fd, on_done, e, &e->stream)) {
		e->open = false;
		close(e->fd);
		e->fd = -1;
	}
}

/* As if the machine had been saved, its file changed, and this were the one made of it. */
static void load_changed(struct virtio_image *image, uint16_t b)
{
	uint8_t *state = NULL;
	size_t len = 0;
	struct err err;

	if (image->dev->ops->save(image->dev, &state, &len, &err))
		abort();
	/* The port of the host is the second number of the first stream. */
	if (len > 8) {
		state[4] |= LOADED_PORT;
		state[b / 8 % len] ^= (uint8_t)(b >> 5);
		(void)image->dev->ops->load(image->dev, state, len, &err);
	}
	free(state);
}

static void host(struct virtio_image *image, uint8_t a, uint16_t b)
{
	static uint8_t block[64 << 10];
	struct end *e = &ends[b % ENDS_MAX];
	ssize_t n = 0;

	switch (a % 8) {
	case 0:
	case 1:
		host_connects(image, b);
		break;
	case 2:
		n = e->fd < 0 ? 0 : send(e->fd, block, b, MSG_DONTWAIT);
		break;
	case 3:
		n = e->fd < 0 ? 0 : recv(e->fd, block, sizeof(block), MSG_DONTWAIT);
		break;
	case 4:
		if (e->fd >= 0)
			shutdown(e->fd, b & 0x100 ? SHUT_WR : SHUT_RD);
		break;
	case 5:
		if (e->fd >= 0)
			close(e->fd);
		e->fd = -1;
		break;
	case 6:
		if (e->stream)
			vsock_detach(e->stream);
		break;
	default:
		if (b % 8 == 1)
			load_changed(image, b);
		break;
	}
	(void)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct vsock_params params = {.guest_cid = 3, .on_connect = on_connect};
	struct virtio_image image = {.host = host};
	struct virtio_device *dev;
	struct err err;

	for (unsigned int i = 0; i < ENDS_MAX; i++)
		ends[i] = (struct end){.fd = -1};
	if (vsock_new(&params, &dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	for (unsigned int i = 0; i < ENDS_MAX; i++) {
		if (ends[i].open)
			abort();
		if (ends[i].fd >= 0)
			close(ends[i].fd);
	}
	return 0;
}
