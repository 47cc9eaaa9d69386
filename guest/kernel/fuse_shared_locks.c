// SPDX-License-Identifier: GPL-2.0
/*
 * Locks on files that others have, too: other VMs, processes of the host. Part of fs/fuse/file.c of our guest kernel, which
 * build-kernel makes include it.
 *
 * Linux has them all asked of the server (FUSE_POSIX_LOCKS, FUSE_FLOCK_LOCKS) or none. Asking for all costs a trip for
 * every lock in the container's own root; and a process that waits for a lock of a virtio-fs server sleeps until it has it,
 * without hearing signals, one of the server's few workers with it. So here: files whose open says so (OPEN_SHARED_LOCKS)
 * are asked about, never in a way that waits: who is to wait asks again, and hears signals in between.
 *
 * The server's answer counts; the kernel's own list is kept so that a lock goes with the last close, and with the process.
 */
#include <linux/delay.h>
#include <linux/version.h>

/* In fuse_open_out.open_flags; src/fs/fuse_compat.h has the same. */
#define OPEN_SHARED_LOCKS (1u << 31)
/* Between two tries of one who waits. */
#define SHARED_LOCK_PAUSE_US 500
#define SHARED_LOCK_PAUSE_MAX_US 32000
#define SHARED_LOCK_TRIES 10

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0)
#define LOCK_FLAGS(fl) ((fl)->fl_flags)
#define LOCK_TYPE(fl) ((fl)->fl_type)
#else
#define LOCK_FLAGS(fl) ((fl)->c.flc_flags)
#define LOCK_TYPE(fl) ((fl)->c.flc_type)
#endif

static bool has_shared_locks(const struct file *file)
{
	const struct fuse_file *ff = file->private_data;

	return ff && (ff->open_flags & OPEN_SHARED_LOCKS);
}

static int keep_lock_here(struct file *file, struct file_lock *fl, bool flock)
{
	return flock ? locks_lock_file_wait(file, fl) : posix_lock_file(file, fl, NULL);
}

/*
 * The server has granted it, so nobody here has it any more; but whoever has just made less of a lock may not have come to
 * the kernel's list yet. After a restore, of which the server knows no locks, that list is what counts.
 */
static int keep_granted_lock(struct file *file, struct file_lock *fl, bool flock)
{
	int type = LOCK_TYPE(fl), err;

	for (unsigned int i = 0; i < SHARED_LOCK_TRIES; i++) {
		err = keep_lock_here(file, fl, flock);
		if (err != -EAGAIN)
			return err;
		usleep_range(SHARED_LOCK_PAUSE_US, 2 * SHARED_LOCK_PAUSE_US);
	}
	LOCK_TYPE(fl) = F_UNLCK;
	fuse_setlk(file, fl, flock);
	LOCK_TYPE(fl) = type;
	return err;
}

/* Linux 6.1 asks nothing when a close unlocks: a FLUSH is to do that, which most of our files go without. */
static int give_shared_lock(struct file *file, struct file_lock *fl, bool flock)
{
	unsigned int close = LOCK_FLAGS(fl) & FL_CLOSE;
	int kept = keep_lock_here(file, fl, flock), err;

	LOCK_FLAGS(fl) &= ~FL_CLOSE;
	err = fuse_setlk(file, fl, flock);
	LOCK_FLAGS(fl) |= close;
	return kept ? kept : err;
}

static int try_shared_lock(struct file *file, struct file_lock *fl, bool flock)
{
	int err;

	if (LOCK_TYPE(fl) == F_UNLCK)
		return give_shared_lock(file, fl, flock);
	err = fuse_setlk(file, fl, flock);
	return err ? err : keep_granted_lock(file, fl, flock);
}

static int shared_lock(struct file *file, struct file_lock *fl, bool flock)
{
	unsigned int pause = SHARED_LOCK_PAUSE_US, waits = LOCK_FLAGS(fl) & FL_SLEEP;
	int err;

	LOCK_FLAGS(fl) &= ~FL_SLEEP;
	for (;;) {
		err = try_shared_lock(file, fl, flock);
		if (err != -EAGAIN || !waits)
			break;
		usleep_range_state(pause, 2 * pause, TASK_INTERRUPTIBLE);
		if (signal_pending(current)) {
			err = -ERESTARTSYS;
			break;
		}
		pause = min_t(unsigned int, 2 * pause, SHARED_LOCK_PAUSE_MAX_US);
	}
	LOCK_FLAGS(fl) |= waits;
	return err;
}

/* Of a lock of this guest's its own kernel knows more than the server: the process. */
static int get_shared_lock(struct file *file, struct file_lock *fl)
{
	int type = LOCK_TYPE(fl);

	posix_test_lock(file, fl);
	if (LOCK_TYPE(fl) != F_UNLCK)
		return 0;
	LOCK_TYPE(fl) = type;
	return fuse_getlk(file, fl);
}

static int fuse_file_lock_shared(struct file *file, int cmd, struct file_lock *fl)
{
	if (!has_shared_locks(file) || cmd == F_CANCELLK)
		return fuse_file_lock(file, cmd, fl);
	return cmd == F_GETLK ? get_shared_lock(file, fl) : shared_lock(file, fl, false);
}

static int fuse_file_flock_shared(struct file *file, int cmd, struct file_lock *fl)
{
	return has_shared_locks(file) ? shared_lock(file, fl, true)
				      : fuse_file_flock(file, cmd, fl);
}
