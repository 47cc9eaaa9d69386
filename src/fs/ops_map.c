/*
 * Files that the guest sees in the window of its virtio-fs device instead of copying them (DAX): which ones, and their
 * descriptors for a channel whose peer maps them.
 *
 * Only what the guest cannot change anyway is mapped, so the files of read-only exports: a write through a mapping meets a
 * full disk, or a set-user-id bit, where nobody can be told.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include "fs_internal.h"

/* A slot of the window (2 MiB) and a request for each are too much for less. */
#define FS_MAP_MIN (1u << 20)

#ifndef EROFS_SUPER_MAGIC_V1
#define EROFS_SUPER_MAGIC_V1 0xe0f5e1e2
#endif
#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

/*
 * File systems whose mappings are their files' pages and nothing else, and the same for everybody: the list is complete so
 * that a file of sysfs, say, never makes a device's memory the guest's. overlayfs goes on showing the lower file to those who
 * have it mapped when it is copied up.
 */
static bool fs_map_suits(const struct fs_node *node)
{
	struct statfs st;

	if (fstatfs(node->fd, &st) < 0)
		return false;
	switch ((unsigned long)st.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case TMPFS_MAGIC:
	case EROFS_SUPER_MAGIC_V1:
	case SQUASHFS_MAGIC:
		return true;
	default:
		return false;
	}
}

static bool fs_node_can_be_mapped(const struct fs_node *node)
{
	return node->type == S_IFREG && fs_export_is_read_only(node->export) && fs_map_suits(node);
}

uint32_t fs_map_flags(struct fs *fs, const struct fs_node *node, const struct statx *st)
{
	bool maps;

	if (!fs->can_map || node->type != S_IFREG || st->stx_size < FS_MAP_MIN)
		return 0;
	fs_lock(fs);
	maps = fs->maps;
	fs_unlock(fs);
	return maps && fs_node_can_be_mapped(node) ? FUSE_ATTR_DAX : 0;
}

int fs_op_setupmapping(struct fs_req *r)
{
	const struct fuse_setupmapping_in *in = fs_args(r);
	int fd;

	if (!r->maps)
		return -ENOSYS;
	if (in->flags & FUSE_SETUPMAPPING_FLAG_WRITE)
		return -EROFS;
	if (in->flags != FUSE_SETUPMAPPING_FLAG_READ)
		return -EINVAL;
	if (!fs_node_can_be_mapped(r->node))
		return -EPERM;
	fd = fs_node_open(r->fs, r->node, O_RDONLY | O_NOATIME);
	if (fd < 0)
		return fd;
	r->w->lent = (struct fs_opened){
		.fd = fd, .node_id = r->node->id, .export_id = r->node->export->id};
	return 0;
}
