/*
 * Paths inside a container's root, seen from outside it. The tree is hostile: a name may be a symbolic
 * link anywhere, also one that changes under our hands. Nothing here ever leaves the root or follows a
 * magic link of procfs, and every answer is a descriptor, so that nobody resolves a second time.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "err.h"

enum rootpath_kind { ROOTPATH_DIR, ROOTPATH_FILE };

/* Opens an existing path (relative or absolute, both below root_fd). A descriptor, or -errno. */
int rootpath_open(int root_fd, const char *path, int flags);

/*
 * Opens `path` as O_PATH; what is missing is created (folders 0755, a last file 0644), also behind
 * a symbolic link that points nowhere yet. A descriptor, or -errno with a sentence.
 */
int rootpath_make(int root_fd, const char *path, enum rootpath_kind kind, struct err *err);

/* Opens the folder that holds the last component, creating missing folders; *ret_name points into path. */
int rootpath_make_parent(int root_fd, const char *path, const char **ret_name, struct err *err);
