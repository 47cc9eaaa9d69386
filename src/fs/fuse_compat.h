/*
 * The FUSE protocol as the kernel's own header has it, plus the parts that headers of Linux 6.1
 * (protocol 7.38, what Debian 12 has) do not know yet.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <linux/fuse.h>

#include "util.h"

/*
 * The extension of a creating request that holds one group of the user (protocol 7.38). Headers call
 * themselves 7.38 with all, some or none of it, so these have names of their own.
 */
#define FS_INIT_CREATE_SUPP_GROUP (1ULL << 34)
#define FS_EXT_GROUPS 32

struct fs_ext_header {
	uint32_t size; /* this structure and what belongs to it, a multiple of 8 */
	uint32_t type;
};

struct fs_ext_groups {
	uint32_t nr_groups;
	uint32_t groups[];
};

#if FUSE_KERNEL_MINOR_VERSION < 39
#define FUSE_STATX 52

struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fuse_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0[1];
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fuse_sx_time atime;
	struct fuse_sx_time btime;
	struct fuse_sx_time ctime;
	struct fuse_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};
#endif

/*
 * Ours, in fuse_open_out.open_flags: others may lock the file, too (guest/kernel/fuse_shared_locks.c). Other kernels take no
 * notice, and locks hold within the guest.
 */
#define FS_OPEN_SHARED_LOCKS (1u << 31)

static_assert(sizeof(struct fuse_in_header) == 40, "request header layout");
static_assert(sizeof(struct fuse_statx_out) == 288, "statx answer layout");

/* total_extlen: 16 bits at offset 36, part of a 32-bit padding in older headers. In 8-byte units. */
static inline size_t fuse_header_ext_len(const struct fuse_in_header *h)
{
	uint16_t units;

	memcpy(&units, (const char *)h + 36, sizeof(units));
	return (size_t)units * 8;
}
