/*
 * What a WRITE of the guest's means for the host's file, for both who may do it: harpoon-fs, and harpoon-vmm on a
 * descriptor that it was handed (fs_channel.h).
 */
#pragma once

#include <fcntl.h>
#include <sys/uio.h>

#include <linux/fuse.h>

/* The guest's open flags, as they are now, as flags of pwritev2(). */
static inline int fs_write_flags(const struct fuse_write_in *in)
{
	int flags = 0;

	/* Pages written back from memory mappings have their place; the flags do not apply. */
	if (in->write_flags & FUSE_WRITE_CACHE)
		return 0;
	if (in->flags & O_APPEND)
		flags |= RWF_APPEND;
	if ((in->flags & O_SYNC) == O_SYNC)
		flags |= RWF_SYNC;
	else if (in->flags & O_DSYNC)
		flags |= RWF_DSYNC;
	return flags;
}
