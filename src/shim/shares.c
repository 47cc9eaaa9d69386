/*
 * What a container sees of the host's file systems, see shares.h.
 *
 * Thread: the loop's.
 */
#include "shares.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "container.h"
#include "disks.h"
#include "mounts.h"
#include "relay.h"
#include "util.h"

static int shares_rootfs_entries(const Ctrd__CreateTaskRequest *req, struct mounts_entry **ret,
				 struct err *err)
{
	struct mounts_entry *entries;

	if (req->n_rootfs > MOUNTS_MAX)
		return err_say(err, -E2BIG, "root file system: %zu mounts, at most %d",
			       req->n_rootfs, MOUNTS_MAX);
	*ret = entries = xcalloc(req->n_rootfs, sizeof(*entries));
	for (size_t i = 0; i < req->n_rootfs; i++) {
		const Ctrd__Mount *m = req->rootfs[i];

		entries[i] = (struct mounts_entry){.type = m->type,
						   .source = m->source,
						   .target = m->target,
						   .options = m->options,
						   .nr_options = m->n_options};
	}
	return 0;
}

int shares_open_disks(struct container *c, const Ctrd__CreateTaskRequest *req, struct err *err)
{
	cleanup_free struct mounts_entry *entries = NULL;
	int r = shares_rootfs_entries(req, &entries, err);

	return r ? r : disks_new(c->spec, c->bundle_fd, entries, req->n_rootfs, &c->disks, err);
}

static int shares_mount_rootfs(struct container *c, const Ctrd__CreateTaskRequest *req,
			       struct err *err)
{
	cleanup_free struct mounts_entry *entries = NULL;
	int r = shares_rootfs_entries(req, &entries, err);

	return r ? r : mounts_mount_rootfs(c->bundle_fd, entries, req->n_rootfs, err);
}

static int shares_export_tree(struct container *c, const char *name, const char *path,
			      bool recursive, uint32_t flags, struct err *err)
{
	int fd = mounts_clone_tree(c->bundle_fd, path, recursive, err);

	/* hv_vm_share owns the descriptor, also when it fails. */
	return fd < 0 ? fd : hv_vm_share(c->vm, name, fd, flags, err);
}

/* A read-only root is the agent's affair: it has to make mount points in it first. */
static int shares_export_root(struct container *c, const Ctrd__CreateTaskRequest *req,
			      struct err *err)
{
	uint32_t flags = HV_SHARE_DEVICES;

	/* What we mounted ourselves nobody else changes. A folder given by path others may look after. */
	if (req->n_rootfs)
		flags |= HV_SHARE_EXCLUSIVE;
	return shares_export_tree(c, VMREQ_SHARE_ROOT, c->spec->root_path, true, flags, err);
}

/* The guest makes the root of disks, and of folders that go with them. */
static int shares_export_layers(struct container *c, struct err *err)
{
	int r = 0;

	for (size_t i = 0; i < c->disks->nr_shares && !r; i++) {
		const struct disks_share *s = &c->disks->shares[i];

		r = shares_export_tree(c, s->name, s->path, true,
				       s->read_only ? HV_SHARE_READ_ONLY : 0, err);
	}
	return r;
}

/* A unix socket cannot be shared as a file: what listens at it is on the host. */
static int shares_relay_socket(struct container *c, size_t i, enum vmreq_mount_kind *ret,
			       struct err *err)
{
	cleanup_close int fd = openat(c->bundle_fd, c->spec->mounts[i].source, O_PATH | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || !S_ISSOCK(st.st_mode))
		return 0;
	*ret = VMREQ_MOUNT_SOCKET;
	return relay_add_socket(c->relay, vmreq_socket_id(i), take_fd(&fd), err);
}

static int shares_export_mount(struct container *c, size_t i, enum vmreq_mount_kind *ret,
			       struct err *err)
{
	const struct oci_mount *m = &c->spec->mounts[i];
	char name[VMREQ_SHARE_NAME_LEN];
	int r;

	if (c->disks->of_mount[i] >= 0) {
		*ret = VMREQ_MOUNT_DISK;
		return 0;
	}
	if (!m->bind)
		return 0;
	r = shares_relay_socket(c, i, ret, err);
	if (r || *ret == VMREQ_MOUNT_SOCKET)
		return r;
	vmreq_share_name(i, name);
	r = shares_export_tree(c, name, m->source, m->flags & MS_REC,
			       vmreq_mount_is_read_only(m) ? HV_SHARE_READ_ONLY : 0, err);
	*ret = VMREQ_MOUNT_SHARE;
	if (r == -EXDEV && vmreq_own_type(m->source)) {
		*ret = VMREQ_MOUNT_OWN;
		return 0;
	}
	if (r == -EXDEV)
		err->code = -EOPNOTSUPP;
	return r ? err_wrap(err, "mount '%.200s'", m->destination) : 0;
}

int shares_export(struct container *c, const Ctrd__CreateTaskRequest *req,
		  enum vmreq_mount_kind *kinds, struct err *err)
{
	int r = 0;

	if (disks_make_root(c->disks)) {
		r = shares_export_layers(c, err);
	} else {
		r = shares_mount_rootfs(c, req, err);
		if (!r)
			r = shares_export_root(c, req, err);
	}
	if (r)
		return r;
	c->relay = relay_new(c->shim->loop, c->spec);
	for (size_t i = 0; i < c->spec->nr_mounts && !r; i++)
		r = shares_export_mount(c, i, &kinds[i], err);
	return r;
}
