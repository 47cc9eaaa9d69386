/*
 * Fuzz entry: virtio-balloon over a memory image; the input is described in virtio_image.h. The host
 * changes its target meanwhile.
 */
#include <stdlib.h>

#include "balloon.h"
#include "virtio_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void host(struct virtio_image *image, uint8_t a, uint16_t b)
{
	virtio_balloon_set_target(image->dev, (uint32_t)a << 16 | b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_image image = {.host = host};
	struct virtio_device *dev;
	struct err err;

	if (virtio_balloon_new(&(struct virtio_balloon_params){0}, &dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	return 0;
}
