/*
 * containerd's list of mounts for a root file system, where it has disks in it: translated for the guest. See disks.h.
 */
#pragma once

#include "disks.h"

/* Whether the list can only be mounted with a loop device or a block device: then the guest does all of it. */
bool rootdisks_wanted(const struct mounts_entry *entries, size_t nr);
/* Fills d->root, d->shares and the disks. */
int rootdisks_add(struct disks *d, const struct mounts_entry *entries, size_t nr, struct err *err);

/*
 * "{{ mount 2 }}/work" and "{{ overlay 0 3 }}" (containerd's templates) in terms of the folders "0", "1", ... that the
 * mounts before the index-th are in. New string; -EINVAL with a sentence.
 */
int rootdisks_expand(const char *text, size_t index, char **ret, struct err *err);

/* disks.c: file systems that are never written. */
bool disks_type_is_read_only(const char *type);
/* disks.c: index of the disk behind a path, opened anew if it is none yet. */
int disks_add_path(struct disks *d, int dirfd, const char *path, bool read_only, int *ret,
		   struct err *err);
