/*
 * Fuzz entry: virtio-blk over a memory image; the input is described in virtio_image.h. The disk is a file of
 * 64 KiB in memory; checked beyond "no crash": its size never changes.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blk.h"
#include "virtio_image.h"

#define DISK (64 << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_image image = {0};
	struct virtio_blk_params params = {.serial = "fuzz"};
	struct virtio_device *dev;
	struct err err;
	int fd = memfd_create("disk", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, DISK))
		abort();
	params.fd = dup(fd);
	params.read_only = size > 12 && data[12] & 1;
	if (virtio_blk_new(&params, &dev, &err))
		abort();
	virtio_image_run(&image, dev, data, size);
	if (lseek(fd, 0, SEEK_END) != DISK)
		abort();
	close(fd);
	return 0;
}
