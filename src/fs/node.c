/*
 * Nodes: the files the guest has looked up, each held by one O_PATH descriptor. A descriptor pins its
 * inode, so (device, inode, mount) cannot come to mean another file while the node lives; that makes
 * hard links found twice one node. Exports are part of the key: the same file seen through a
 * read-only and a writable export is two nodes.
 *
 * All tables are under fs.lock, which is never held over a system call that reaches a file system,
 * except closing on DESTROY.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include "fs_internal.h"
#include "notify.h"

#define FS_HASH_FIRST 1024
/* Devices told apart by the top 16 bits of inode numbers. */
#define FS_DEVS_MAX 65536

void fs_lock(struct fs *fs)
{
	pthread_mutex_lock(&fs->lock);
}

void fs_unlock(struct fs *fs)
{
	pthread_mutex_unlock(&fs->lock);
}

int fs_budget_take(struct fs *fs)
{
	int r = 0;

	fs_lock(fs);
	if (fs->nr_fds >= fs->max_fds)
		r = -ENFILE;
	else
		fs->nr_fds++;
	fs_unlock(fs);
	return r;
}

void fs_budget_give(struct fs *fs)
{
	fs_lock(fs);
	fs->nr_fds--;
	fs_unlock(fs);
}

int fs_stat(int fd, struct statx *ret)
{
	int r = statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW,
		      STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, ret);

	return r < 0 ? -errno : 0;
}

/* What identifies a file. */
struct fs_key {
	const struct fs_export *export;
	dev_t dev;
	uint64_t ino;
	uint64_t mnt_id;
};

static size_t fs_hash(const struct fs *fs, const struct fs_key *k)
{
	uint64_t h = k->ino * 0x9e3779b97f4a7c15ULL;

	h ^= (k->dev + k->mnt_id * 31 + k->export->id * 131) * 0xc2b2ae3d27d4eb4fULL;
	h ^= h >> 29;
	return (size_t)(h * 0x9e3779b97f4a7c15ULL >> 32) & (fs->hash_size - 1);
}

static struct fs_key fs_node_key(const struct fs_node *n)
{
	return (struct fs_key){n->export, n->dev, n->ino, n->mnt_id};
}

static struct fs_node *fs_hash_find(const struct fs *fs, const struct fs_key *k)
{
	struct fs_node *n = fs->hash_size ? fs->hash[fs_hash(fs, k)] : NULL;

	while (n && (n->ino != k->ino || n->dev != k->dev || n->mnt_id != k->mnt_id ||
		     n->export != k->export))
		n = n->hash_next;
	return n;
}

static void fs_hash_insert(struct fs *fs, struct fs_node *n)
{
	struct fs_key k = fs_node_key(n);
	struct fs_node **slot = &fs->hash[fs_hash(fs, &k)];

	n->hash_next = *slot;
	*slot = n;
}

static void fs_hash_remove(struct fs *fs, struct fs_node *n)
{
	struct fs_key k = fs_node_key(n);
	struct fs_node **p = &fs->hash[fs_hash(fs, &k)];

	while (*p != n)
		p = &(*p)->hash_next;
	*p = n->hash_next;
}

/* Doubles the table when it holds one node per bucket. A failure only makes chains longer. */
static int fs_hash_grow(struct fs *fs)
{
	size_t old_size = fs->hash_size;
	size_t size = old_size ? old_size * 2 : FS_HASH_FIRST;
	struct fs_node **old = fs->hash, **hash;

	if (fs->nr_nodes < old_size)
		return 0;
	hash = calloc(size, sizeof(struct fs_node *));
	if (!hash)
		return old_size ? 0 : -ENOMEM;
	fs->hash = hash;
	fs->hash_size = size;
	for (size_t i = 0; i < old_size; i++) {
		for (struct fs_node *n = old[i], *next; n; n = next) {
			next = n->hash_next;
			fs_hash_insert(fs, n);
		}
	}
	free(old);
	return 0;
}

/* The tag of a device's inode numbers: zero for the first device seen, so it shows the host's. */
static int fs_dev_tag(struct fs *fs, dev_t dev, uint64_t *ret)
{
	size_t i = 0;

	while (i < fs->nr_devs && fs->devs[i] != dev)
		i++;
	if (i == fs->nr_devs) {
		dev_t *devs;

		if (i == FS_DEVS_MAX)
			return -ENFILE;
		devs = reallocarray(fs->devs, i + 1, sizeof(*devs));
		if (!devs)
			return -ENOMEM;
		devs[i] = dev;
		fs->devs = devs;
		fs->nr_devs++;
	}
	*ret = (uint64_t)i << 48;
	return 0;
}

int fs_node_get(struct fs *fs, uint64_t id, struct fs_node **ret)
{
	struct fs_node *n;

	*ret = NULL;
	if (id == FUSE_ROOT_ID)
		return 0;
	fs_lock(fs);
	n = fs_slots_get(&fs->node_slots, id);
	if (n && n->nlookup && !n->export->revoked)
		n->refs++;
	else
		n = NULL;
	fs_unlock(fs);
	*ret = n;
	return n ? 0 : -ESTALE;
}

/* Drops one reference under the lock; true = the caller closes and frees the node without it. */
static bool fs_node_put_locked(struct fs *fs, struct fs_node *n)
{
	if (--n->refs)
		return false;
	fs_hash_remove(fs, n);
	fs_slots_remove(&fs->node_slots, n->id);
	fs->nr_nodes--;
	fs->nr_fds--;
	return true;
}

static void fs_node_free(struct fs *fs, struct fs_node *n)
{
	fs_notify_unwatch(fs, n);
	fs_lockers_free(fs, n);
	fs_export_put(fs, n->export);
	close(n->fd);
	free(n);
}

void fs_node_put(struct fs *fs, struct fs_node *n)
{
	bool last;

	if (!n)
		return;
	fs_lock(fs);
	last = fs_node_put_locked(fs, n);
	fs_unlock(fs);
	if (last)
		fs_node_free(fs, n);
}

void fs_node_forget(struct fs *fs, uint64_t id, uint64_t nlookup)
{
	struct fs_node *n;
	bool last = false;

	fs_lock(fs);
	n = fs_slots_get(&fs->node_slots, id);
	/* A guest that forgets more than it looked up has forgotten all. */
	if (n && n->nlookup && nlookup) {
		n->nlookup -= MIN(n->nlookup, nlookup);
		last = !n->nlookup && fs_node_put_locked(fs, n);
	}
	fs_unlock(fs);
	if (last)
		fs_node_free(fs, n);
}

/* Counts a look-up of an existing node and takes a reference for the caller. */
static void fs_node_count_locked(struct fs_node *n)
{
	if (!n->nlookup)
		n->refs++; /* the guest knows it (again) */
	n->nlookup++;
	n->refs++;
}

static int fs_node_add_locked(struct fs *fs, const struct fs_key *k, struct fs_export *export,
			      mode_t type, struct fs_node **ret)
{
	cleanup_free struct fs_node *n = calloc(1, sizeof(*n));
	int r;

	if (!n)
		return -ENOMEM;
	r = fs_hash_grow(fs);
	if (r < 0)
		/* cppcheck-suppress memleak */
		return r; /* NOLINT(clang-analyzer-unix.Malloc): its scope frees it */
	r = fs_dev_tag(fs, k->dev, &n->ino_tag);
	if (r < 0)
		return r;
	r = fs_slots_add(&fs->node_slots, n, &n->id);
	if (r < 0)
		return r; /* NOLINT(clang-analyzer-unix.Malloc): its scope frees it */
	n->type = type;
	n->dev = k->dev;
	n->ino = k->ino;
	n->mnt_id = k->mnt_id;
	n->export = export;
	export->refs++;
	fs->nr_nodes++;
	fs_hash_insert(fs, n);
	*ret = take_ptr(&n);
	return 0;
}

struct fs_node *fs_node_find(struct fs *fs, uint64_t id)
{
	struct fs_node *n;

	fs_lock(fs);
	n = fs_slots_get(&fs->node_slots, id);
	fs_unlock(fs);
	return n;
}

bool fs_node_drop_strays(struct fs *fs)
{
	bool found = false;

	for (uint32_t i = 0;; i++) {
		struct fs_node *n = NULL;
		bool is_end;

		fs_lock(fs);
		is_end = i >= fs->node_slots.nr;
		if (!is_end)
			n = fs->node_slots.slots[i].ptr;
		if (n && n->refs)
			n = NULL;
		if (n)
			n->refs = 1;
		fs_unlock(fs);
		if (is_end)
			return found;
		found = found || n;
		fs_node_put(fs, n);
	}
}

static int fs_node_restore_locked(struct fs *fs, struct fs_node *n)
{
	int r = fs->nr_fds >= fs->max_fds ? -ENFILE : fs_hash_grow(fs);

	if (!r)
		r = fs_dev_tag(fs, n->dev, &n->ino_tag);
	if (!r)
		r = fs_slots_put(&fs->node_slots, n->id, n, fs->max_fds);
	if (r)
		return r;
	n->export->refs++;
	fs->nr_nodes++;
	fs->nr_fds++;
	fs_hash_insert(fs, n);
	return 0;
}

int fs_node_restore(struct fs *fs, const struct fs_node *node)
{
	cleanup_close int fd = node->fd;
	cleanup_free struct fs_node *n = calloc(1, sizeof(*n));
	int r;

	if (!n)
		return -ENOMEM;
	*n = *node;
	fs_lock(fs);
	r = fs_node_restore_locked(fs, n);
	fs_unlock(fs);
	if (!r) {
		(void)take_fd(&fd);
		(void)take_ptr(&n);
	}
	/* The table has it. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
	return r;
}

int fs_node_enter(struct fs *fs, struct fs_export *export, int fd_taken, struct fs_node **ret,
		  struct statx *ret_attr)
{
	cleanup_close int fd = fd_taken;
	struct fs_node *n;
	struct fs_key k;
	int r = fs_stat(fd, ret_attr);

	if (r < 0)
		return r;
	k = (struct fs_key){
		.export = export,
		.dev = makedev(ret_attr->stx_dev_major, ret_attr->stx_dev_minor),
		.ino = ret_attr->stx_ino,
		.mnt_id = ret_attr->stx_mnt_id,
	};
	fs_lock(fs);
	n = fs_hash_find(fs, &k);
	if (export->revoked)
		r = -ESTALE;
	else if (!n && fs->nr_fds >= fs->max_fds) {
		r = -ENFILE;
	} else if (!n) {
		r = fs_node_add_locked(fs, &k, export, ret_attr->stx_mode & S_IFMT, &n);
		if (!r) {
			n->fd = take_fd(&fd);
			fs->nr_fds++;
		}
	}
	if (!r) {
		fs_node_count_locked(n);
		*ret = n;
	}
	fs_unlock(fs);
	/* Its descriptor was taken: the node is new. */
	if (!r && fd < 0)
		fs_notify_watch(fs, n);
	return r;
}

void fs_revoke_locked(struct fs *fs, struct fs_export *export)
{
	export->revoked = true;
	(void)dup3(fs->dead_fd, export->fd, O_CLOEXEC);
	for (uint32_t i = 0; i < fs->node_slots.nr; i++) {
		const struct fs_node *n = fs->node_slots.slots[i].ptr;

		if (!n || n->export != export)
			continue;
		(void)dup3(fs->dead_fd, n->fd, O_CLOEXEC);
		fs_lockers_revoke_locked(fs, n);
	}
	for (uint32_t i = 0; i < fs->handle_slots.nr; i++) {
		const struct fs_handle *h = fs->handle_slots.slots[i].ptr;

		if (h && h->node && h->node->export == export)
			(void)dup3(fs->dead_fd, h->fd, O_CLOEXEC);
	}
}

void fs_forget_all(struct fs *fs)
{
	struct fs_node *gone = NULL;

	for (uint32_t i = 0;; i++) {
		struct fs_handle *h;
		uint64_t id = 0;

		fs_lock(fs);
		if (i >= fs->handle_slots.nr) {
			fs_unlock(fs);
			break;
		}
		h = fs->handle_slots.slots[i].ptr;
		if (h) {
			id = h->id;
			fs_slots_remove(&fs->handle_slots, id);
		}
		fs_unlock(fs);
		if (h)
			fs_handle_put(fs, h);
	}
	fs_lock(fs);
	for (uint32_t i = 0; i < fs->node_slots.nr; i++) {
		struct fs_node *n = fs->node_slots.slots[i].ptr;

		if (!n || !n->nlookup)
			continue;
		n->nlookup = 0;
		if (fs_node_put_locked(fs, n)) {
			n->hash_next = gone;
			gone = n;
		}
	}
	fs_unlock(fs);
	while (gone) {
		struct fs_node *next = gone->hash_next;

		fs_node_free(fs, gone);
		gone = next;
	}
}

struct fs_proc_name fs_proc_name(int fd)
{
	struct fs_proc_name n;

	snprintf(n.s, sizeof(n.s), "%d", fd);
	return n;
}

int fs_node_open(struct fs *fs, const struct fs_node *node, int flags)
{
	int fd;

	/*
	 * Opening anything else has effects of its own: a fifo blocks, a device node reaches the host's
	 * driver. What a descriptor refers to cannot change, so the type seen at look-up holds.
	 */
	if (node->type != S_IFREG && node->type != S_IFDIR)
		return -ENXIO;
	fd = openat(fs->proc_fd, fs_proc_name(node->fd).s, flags | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}
