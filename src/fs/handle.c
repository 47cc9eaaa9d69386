/* Open files and directories of the guest. Tables under fs.lock, descriptors closed without it. */
#include <errno.h>
#include <stdlib.h>

#include "fs_internal.h"

int fs_handle_new(struct fs *fs, struct fs_node *node, int fd_taken, uint64_t *ret_id)
{
	cleanup_close int fd = fd_taken;
	cleanup_free struct fs_handle *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	r = fs_budget_take(fs);
	if (r < 0)
		/* cppcheck-suppress memleak */
		return r; /* NOLINT(clang-analyzer-unix.Malloc): its scope frees it */
	pthread_mutex_init(&h->lock, NULL);
	h->refs = 1;
	h->node = node;
	h->fd = fd;
	fs_lock(fs);
	r = node && node->export->revoked ? -ESTALE : fs_slots_add(&fs->handle_slots, h, &h->id);
	if (!r) {
		*ret_id = h->id;
		if (node)
			node->refs++;
		(void)take_fd(&fd);
		(void)take_ptr(&h);
	} else {
		fs->nr_fds--;
		pthread_mutex_destroy(&h->lock);
	}
	fs_unlock(fs);
	/* The table has it. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
	return r;
}

int fs_handle_restore(struct fs *fs, struct fs_node *node, int fd_taken, uint64_t id, off_t pos)
{
	cleanup_close int fd = fd_taken;
	cleanup_free struct fs_handle *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	*h = (struct fs_handle){.id = id, .refs = 1, .fd = fd, .node = node, .pos = pos};
	fs_lock(fs);
	r = fs->nr_fds >= fs->max_fds ? -ENFILE
				      : fs_slots_put(&fs->handle_slots, id, h, fs->max_fds);
	if (!r) {
		pthread_mutex_init(&h->lock, NULL);
		fs->nr_fds++;
		if (node)
			node->refs++;
		(void)take_fd(&fd);
		(void)take_ptr(&h);
	}
	fs_unlock(fs);
	/* The table has it. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
	return r;
}

int fs_handle_get(struct fs *fs, uint64_t id, const struct fs_node *node, struct fs_handle **ret)
{
	struct fs_handle *h;

	fs_lock(fs);
	h = fs_slots_get(&fs->handle_slots, id);
	/* A handle is good only together with the node it was opened on. */
	if (h && h->node == node)
		h->refs++;
	else
		h = NULL;
	fs_unlock(fs);
	*ret = h;
	return h ? 0 : -EBADF;
}

void fs_handle_tell(struct fs_req *r, uint64_t id, struct fs_node *node)
{
	/* Gone already when another thread of the guest guessed its number and released it. */
	if (node->type == S_IFREG)
		(void)fs_handle_get(r->fs, id, node, &r->w->opened);
}

void fs_handle_put(struct fs *fs, struct fs_handle *h)
{
	bool last;

	if (!h)
		return;
	fs_lock(fs);
	last = !--h->refs;
	fs_unlock(fs);
	if (!last)
		return;
	if (h->fd >= 0)
		close(h->fd);
	fs_budget_give(fs);
	fs_node_put(fs, h->node);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

void fs_handle_release(struct fs *fs, uint64_t id, uint64_t node_id)
{
	struct fs_handle *h;

	fs_lock(fs);
	h = fs_slots_get(&fs->handle_slots, id);
	if (h && (h->node ? h->node->id : FUSE_ROOT_ID) == node_id)
		fs_slots_remove(&fs->handle_slots, id);
	else
		h = NULL;
	fs_unlock(fs);
	fs_handle_put(fs, h);
}
