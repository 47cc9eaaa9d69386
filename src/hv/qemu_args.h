/* QEMU's command line. Nothing is opened or started; disks are asked whether they are block devices. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hv.h"
#include "spawn.h"

/* Descriptors that QEMU inherits, in the order of struct spawn_params.fds. */
enum qemu_fd {
	QEMU_FD_QMP = SPAWN_FD_FIRST,
	QEMU_FD_CONSOLE,
	QEMU_FD_AGENT,
	QEMU_FD_FS,
	QEMU_FD_END,
	QEMU_FD_NIC = QEMU_FD_END, /* and the following: network devices, then disks */
};
#define QEMU_NR_FDS (QEMU_FD_END - SPAWN_FD_FIRST)

/* Names that the agent looks for. */
#define QEMU_AGENT_PORT "harpoon.agent"
#define QEMU_FS_TAG "harpoon"

struct qemu_args {
	const char *qemu;	     /* program, as seen in the jail */
	const char *kernel, *initrd; /* as seen in the jail */
	const char *ram;	     /* file that is guest memory, as seen in the jail */
	const char *kernel_args;
	const char *id; /* for `ps` */
	bool incoming;	/* waits for another machine's state instead of booting */
	uint32_t nr_vcpus;
	uint64_t mem_bytes; /* a multiple of QEMU_MEM_ALIGN */
	const struct hv_nic *nics;
	size_t nr_nics;
	const struct hv_disk *disks;
	size_t nr_disks;
};
/* Places for virtio devices of a microvm without ACPI, and how many of them every VM of ours takes. */
#define QEMU_TRANSPORTS 8
#define QEMU_TRANSPORTS_TAKEN 3
#define QEMU_MEM_ALIGN (1u << 20)

/* NULL-terminated; qemu_args_free(). */
char **qemu_args_build(const struct qemu_args *a);
void qemu_args_free(char **argv);

/* Versions: what a QEMU can do for us. */
#define QEMU_MIN_MAJOR 7
#define QEMU_MIN_MINOR 2
/* vhost-user-fs can be saved and restored from here on. */
#define QEMU_TEMPLATES_MAJOR 8
#define QEMU_TEMPLATES_MINOR 2
/* "QEMU emulator version 10.0.2 (Debian ...)". 0 or -EINVAL. */
int qemu_version_parse(const char *text, int *ret_major, int *ret_minor);
bool qemu_version_runs(int major, int minor);
bool qemu_version_has_templates(int major, int minor);
/* One sentence: what this version can do. */
void qemu_version_describe(int major, int minor, char *out, size_t len);
