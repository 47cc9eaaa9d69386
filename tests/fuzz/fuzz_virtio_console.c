/*
 * Fuzz entry: virtio-console over a memory image; the input is described in virtio_image.h. The host types, and
 * reads or does not read.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "console.h"
#include "util.h"
#include "virtio_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct ends {
	int out, in;
};

static void host(struct virtio_image *image, uint8_t a, uint16_t b)
{
	const struct ends *ends = image->ctx;
	uint8_t block[4096] = {0};
	size_t len = MIN((size_t)b, sizeof(block));
	ssize_t n;

	if (a & 1)
		n = read(ends->out, block, len);
	else
		n = write(ends->in, block, len);
	(void)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_image image = {.host = host};
	struct virtio_device *dev;
	struct err err;
	struct ends ends;
	int out[2], in[2];

	if (pipe2(out, O_CLOEXEC | O_NONBLOCK) || pipe2(in, O_CLOEXEC | O_NONBLOCK))
		abort();
	ends = (struct ends){.out = out[0], .in = in[1]};
	image.ctx = &ends;
	if (virtio_console_new(&(struct virtio_console_params){.out_fd = out[1], .in_fd = in[0]},
			       &dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	close(ends.out);
	close(ends.in);
	return 0;
}
