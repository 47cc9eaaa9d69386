/*
 * Mounts as descriptors: a new file system or a clone of a tree is made detached, gets its attributes,
 * and is then attached on a target that was opened once. No path is resolved twice, and nothing is
 * ever visible with the wrong attributes.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"

/* MOUNT_ATTR_* for the MS_* bits that are attributes of a mount. */
uint64_t mountfs_attr_from_ms(uint64_t ms_flags);

struct mountfs_new {
	const char *type;
	const char *source; /* "" = none */
	const char *data;   /* comma-separated options, "" = none */
	uint64_t ms_flags;
};
/* A new file system, detached. A descriptor, or -errno with the kernel's own words where it has some. */
int mountfs_new(const struct mountfs_new *m, struct err *err);
/*
 * Makes one ahead, all but its mount, whose number tells its place among the others; mountfs_new() takes it, once, for
 * who asks for exactly this. m is borrowed for good.
 */
int mountfs_keep(const struct mountfs_new *m, struct err *err);

/* A detached clone of the tree at dirfd/path (path "" = dirfd itself). A descriptor, or -errno. */
int mountfs_clone(int dirfd, const char *path, bool recursive);

int mountfs_set_attr(int mount_fd, uint64_t set, uint64_t clear, bool recursive);
/* propagation: MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, with MS_REC. */
int mountfs_propagate(int mount_fd, uint64_t propagation);

/* Attaches a detached mount on top of what target_fd (O_PATH) names. */
int mountfs_attach(int mount_fd, int target_fd);
