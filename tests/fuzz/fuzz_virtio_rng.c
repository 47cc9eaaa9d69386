/* Fuzz entry: virtio-rng over a memory image; the input is described in virtio_image.h. */
#include <stdlib.h>

#include "rng.h"
#include "virtio_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_image image = {0};
	struct virtio_device *dev;
	struct err err;

	if (virtio_rng_new(&dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	return 0;
}
