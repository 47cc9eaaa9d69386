/* Fuzz target: the kernel loader, over an ELF file of any bytes. What it maps stays inside guest memory. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel.h"
#include "util.h"

#define RAM (4u << 20)
#define MIN_ADDRESS 0x100000u
#define GUARD 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* A page that cannot be touched on either side. */
	uint8_t *map = mmap(NULL, RAM + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("kernel", MFD_CLOEXEC);
	struct guest_mem mem = {0};
	struct kernel_image k = {0};
	struct err err;

	if (map == MAP_FAILED || fd < 0 || mprotect(map + GUARD, RAM, PROT_READ | PROT_WRITE) ||
	    guest_mem_add(&mem, (gpa_t){0}, RAM, map + GUARD) ||
	    write(fd, data, size) != (ssize_t)size)
		abort();
	if (!kernel_load(fd, &mem, MIN_ADDRESS, &k, &err) &&
	    (k.start < MIN_ADDRESS || k.end > RAM || k.entry < k.start || k.entry >= k.end))
		abort();
	close(fd);
	munmap(map, RAM + 2 * GUARD);
	return 0;
}
