/* The server object and its exports: the entries of the root directory. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <linux/magic.h>

#include "fs_internal.h"
#include "notify.h"
#include "sys.h"

/* Not in every linux/magic.h. */
#define FS_MAGIC_CIFS 0xff534d42
#define FS_MAGIC_SMB2 0xfe534d42
#define FS_MAGIC_CEPH 0x00c36400
#define FS_MAGIC_FUSE 0x65735546

int fs_open_proc(struct err *err)
{
	/* A clone of the directory is a mount whose root it is: ".." stays there. */
	int fd = sys_open_tree(AT_FDCWD, "/proc/self/fd", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (fd < 0 && (errno == EPERM || errno == EINVAL || errno == ENOSYS))
		fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? err_set(err, -errno, "open /proc/self/fd") : fd;
}

/*
 * A descriptor with which nothing can be done: an O_PATH one of a socket. It is no directory, cannot be
 * read, written or opened anew, and nothing can be linked to it.
 */
static int fs_open_dead(int proc_fd, struct err *err)
{
	cleanup_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd;

	if (sock < 0)
		return err_set(err, -errno, "create a socket");
	fd = openat(proc_fd, fs_proc_name(sock).s, O_PATH | O_CLOEXEC);
	return fd < 0 ? err_set(err, -errno, "open a socket's inode") : fd;
}

int fs_new(const struct fs_config *config, struct fs **ret, struct err *err)
{
	int dead_fd = fs_open_dead(config->proc_fd, err);
	pthread_condattr_t attr;
	struct fs *fs;

	if (dead_fd < 0)
		return dead_fd;
	fs = xcalloc(1, sizeof(*fs));
	fs->dead_fd = dead_fd;
	fs->proc_fd = config->proc_fd;
	fs->max_fds = config->max_fds;
	fs->next_export_id = 1;
	list_init(&fs->exports);
	list_init(&fs->workers);
	pthread_mutex_init(&fs->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fs->request_done, &attr);
	pthread_condattr_destroy(&attr);
	fs_notify_init(fs);
	*ret = fs;
	return 0;
}

void fs_free(struct fs *fs)
{
	struct fs_export *e;

	if (!fs)
		return;
	fs_forget_all(fs);
	list_for_each (e, &fs->exports, link) {
		list_remove(&e->link);
		fs_export_unref_locked(e);
	}
	fs_notify_done(fs);
	fs_slots_done(&fs->node_slots);
	fs_slots_done(&fs->handle_slots);
	free(fs->hash);
	free(fs->devs);
	pthread_cond_destroy(&fs->request_done);
	pthread_mutex_destroy(&fs->lock);
	close(fs->dead_fd);
	close(fs->proc_fd);
	free(fs);
}

static bool fs_close_can_fail(int fd)
{
	struct statfs st;

	if (fstatfs(fd, &st) < 0)
		return true;
	switch ((unsigned long)st.f_type) {
	case NFS_SUPER_MAGIC:
	case AFS_SUPER_MAGIC:
	case V9FS_MAGIC:
	case FS_MAGIC_CIFS:
	case FS_MAGIC_SMB2:
	case FS_MAGIC_CEPH:
	case FS_MAGIC_FUSE:
		return true;
	default:
		return false;
	}
}

static struct fs_export *fs_export_find_locked(struct fs *fs, const char *name)
{
	struct fs_export *e;

	list_for_each (e, &fs->exports, link) {
		if (!strcmp(e->name, name))
			return e;
	}
	return NULL;
}

int fs_export_add(struct fs *fs, const char *name, int fd_taken, uint32_t flags)
{
	cleanup_close int fd = fd_taken;
	cleanup_free struct fs_export *e = NULL;
	int fl = fcntl(fd, F_GETFL), r;
	struct statx st;

	if (!fs_name_is_valid(name) || strlen(name) >= sizeof(e->name) ||
	    (flags & ~(uint32_t)FS_CONTROL_FLAGS) || fl < 0 || !(fl & O_PATH))
		return -EINVAL;
	r = fs_stat(fd, &st);
	if (r < 0)
		return r;
	if (S_ISLNK(st.stx_mode))
		return -ELOOP;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	memcpy(e->name, name, strlen(name) + 1);
	e->flags = flags;
	e->type = st.stx_mode & S_IFMT;
	e->ino = st.stx_ino;
	e->flush = fs_close_can_fail(fd);
	e->refs = 1;
	fs_lock(fs);
	if (fs_export_find_locked(fs, name)) {
		/* Its scope frees it. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
		fs_unlock(fs);
		/* cppcheck-suppress memleak */
		return -EEXIST;
	}
	e->fd = take_fd(&fd);
	e->id = fs->next_export_id++;
	list_append(&fs->exports, &e->link);
	(void)take_ptr(&e);
	fs_unlock(fs);
	/* The list has it. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
	return 0;
}

void fs_set_revoke_hook(struct fs *fs, int (*fn)(void *ctx, uint64_t export_id), void *ctx)
{
	fs->revoke_hook = fn;
	fs->revoke_ctx = ctx;
}

void fs_offer_mappings(struct fs *fs)
{
	fs->can_map = true;
}

/* Nobody has anything of e any more when this returns; or -EBUSY. Called and returns with the lock. */
static int fs_export_revoke_locked(struct fs *fs, struct fs_export *e)
{
	int r, hook = 0;

	fs_revoke_locked(fs, e);
	r = fs_quiesce_locked(fs);
	if (fs->revoke_hook) {
		fs_unlock(fs);
		hook = fs->revoke_hook(fs->revoke_ctx, e->id);
		fs_lock(fs);
	}
	return r ? r : hook;
}

int fs_export_remove(struct fs *fs, const char *name, bool revoke)
{
	struct fs_export *e;
	int r = 0;

	fs_lock(fs);
	e = fs_export_find_locked(fs, name);
	if (e) {
		list_remove(&e->link);
		if (revoke)
			r = fs_export_revoke_locked(fs, e);
		fs_export_unref_locked(e);
	}
	fs_unlock(fs);
	return e ? r : -ENOENT;
}

struct fs_export *fs_export_next(struct fs *fs, uint64_t after)
{
	struct fs_export *e, *found = NULL;

	fs_lock(fs);
	/* Exports are appended in the order of their numbers. */
	list_for_each (e, &fs->exports, link) {
		if (e->id > after) {
			found = e;
			found->refs++;
			break;
		}
	}
	fs_unlock(fs);
	return found;
}

struct fs_export *fs_export_get(struct fs *fs, const char *name)
{
	struct fs_export *e;

	fs_lock(fs);
	e = fs_export_find_locked(fs, name);
	if (e)
		e->refs++;
	fs_unlock(fs);
	return e;
}

void fs_export_put(struct fs *fs, struct fs_export *e)
{
	fs_lock(fs);
	fs_export_unref_locked(e);
	fs_unlock(fs);
}
