/*
 * The root file system of a container, built in the child's own mount namespace. The image is hostile;
 * see rootpath.h for how its paths are treated. Order of calls:
 *
 *   rootfs_prepare -> rootfs_open -> rootfs_mount_all -> rootfs_make_dev -> rootfs_hide -> rootfs_set_sysctls ->
 *   rootfs_enter -> rootfs_close
 */
#pragma once

#include "err.h"
#include "plan.h"

struct rootfs {
	const struct plan *plan; /* borrowed */
	int root_fd;		 /* the container's root, all paths start here */
	int dev_fd;	   /* the tmpfs that is its /dev; -1 when the request brings its own */
	bool dev_readonly; /* to be made so when the devices exist */
	int share_fd;	   /* exported trees */
	int proc_fd;	   /* the guest's procfs, checked */
	int null_fd;	   /* the guest's /dev/null, checked, O_PATH */
};

#define ROOTFS_INIT \
	{ \
		.root_fd = -1, .dev_fd = -1, .share_fd = -1, .proc_fd = -1, .null_fd = -1 \
	}

/* Opens `params->proc_dir` and makes sure that it is one. */
int rootfs_open_proc(const struct agent_params *params, struct err *err);

/* What needs no plan. */
int rootfs_prepare(struct rootfs *r, const struct agent_params *params, struct err *err);
/* File systems that most containers ask for, for rootfs_mount_all() of this process. */
void rootfs_make_ahead(void);
int rootfs_open(struct rootfs *r, const struct plan *plan, struct err *err);
int rootfs_mount_all(struct rootfs *r, struct err *err);
/* rootdev.c: device nodes and links on the fresh /dev. */
int rootfs_make_dev(struct rootfs *r, struct err *err);
/* Binds the terminal's slave on /dev/console. */
int rootfs_bind_console(struct rootfs *r, int slave_fd, struct err *err);
/* roothide.c: masked and read-only paths. */
int rootfs_hide(struct rootfs *r, struct err *err);
int rootfs_set_sysctls(struct rootfs *r, struct err *err);
/* pivot_root; afterwards the guest's own tree is gone from this namespace. */
int rootfs_enter(struct rootfs *r, struct err *err);
void rootfs_close(struct rootfs *r);
