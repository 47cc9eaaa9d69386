/* A look at a kernel image before a VM is started with it, for an error that names the file. */
#pragma once

#include "err.h"

/*
 * -ENOEXEC: not an ELF file (an uncompressed vmlinux), or one that was cut short. Whether the kernel fits the
 * machine is for the VMM to say.
 */
int kernel_image_check(const char *path, struct err *err);
