/*
 * Mounts on the host: the root file system that containerd describes, and the trees that are shared with the
 * guest. Nothing here knows of the VM.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define MOUNTS_MAX 256

/* One entry of CreateTaskRequest.rootfs; everything borrowed. */
struct mounts_entry {
	const char *type, *source, *target;
	char *const *options;
	size_t nr_options;
};

/* What the words of an option list come to. */
struct mounts_options {
	uint64_t flags;	      /* MS_* */
	uint64_t propagation; /* MS_SHARED | MS_REC, ... */
	bool loop;	      /* an image file that needs a loop device */
	char *data;	      /* owned: the rest, comma-joined, "" = none */
};
int mounts_options_parse(char *const *options, size_t nr, struct mounts_options *ret,
			 struct err *err);
void mounts_options_done(struct mounts_options *o);

/*
 * Overlay options may not fit the page that mount(2) takes. Rewrites `data` with the folder that all lower
 * layers share taken out: *ret_dir (to be the working directory during the mount) and *ret_data are new.
 * -ENAMETOOLONG when even that is too long.
 */
int mounts_shorten_overlay(const char *data, size_t max, char **ret_dir, char **ret_data,
			   struct err *err);

/*
 * Mounts the entries in order on <bundle>/rootfs (which must be a plain folder there). On failure
 * everything is unmounted again. Changes the working directory during the call (one thread only).
 */
int mounts_mount_rootfs(int bundle_fd, const struct mounts_entry *entries, size_t nr,
			struct err *err);
/* Unmounts whatever is mounted on <bundle>/rootfs, lazily when it is busy. Nothing mounted: success. */
int mounts_unmount_rootfs(int bundle_fd, struct err *err);

/*
 * A private handle on a tree or a single file of the host: a detached copy of the mount, with everything
 * mounted below it when recursive. The answer is a descriptor. Refuses what means nothing in a VM: device
 * nodes, and trees of the host's kernel (proc, sysfs, cgroup: -EXDEV, so that the caller may offer the
 * guest's own instead).
 */
int mounts_clone_tree(int dirfd, const char *path, bool recursive, struct err *err);
