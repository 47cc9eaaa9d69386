/*
 * Guest memory as QEMU needs it: a file with a name, on a tmpfs that exists nowhere but in the jail of
 * its QEMU. Nothing of it can be left behind: the file is gone with the last process that has it open.
 */
#pragma once

#include <stdint.h>

#include "err.h"

/* Where the tmpfs goes in the jail, and the file there. */
#define GUEST_RAM_DIR "ram"
#define GUEST_RAM_FILE "ram"

struct guest_ram {
	int mount_fd; /* owned: detached, until the jail has it */
	int fd;	      /* owned: the file, read and write */
	uint64_t bytes;
};

/* All holes. On failure *ret needs no guest_ram_done(), which is harmless all the same. */
int guest_ram_init(struct guest_ram *ret, uint64_t bytes, struct err *err);
void guest_ram_done(struct guest_ram *ram);
