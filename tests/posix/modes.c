/* The mode that a new file gets, and which calls take set-user-id and set-group-id bits away. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

/* --- new files ------------------------------------------------------------------------------------- */

static long made_creat(const char *p, mode_t mode)
{
	int fd = open(p, O_WRONLY | O_CREAT | O_EXCL, mode);

	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

static long made_mkdir(const char *p, mode_t mode)
{
	return mkdir(p, mode);
}

static long made_mknod(const char *p, mode_t mode)
{
	return mknod(p, S_IFREG | mode, 0);
}

static long made_fifo(const char *p, mode_t mode)
{
	return mkfifo(p, mode);
}

static long made_symlink(const char *p, mode_t mode)
{
	(void)mode;
	return symlink("x", p);
}

static long made_tmpfile(const char *p, mode_t mode)
{
	char name[64];
	int fd = open(PX_W "/p", O_WRONLY | O_TMPFILE, mode);
	long r;

	if (fd < 0)
		return -1;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	r = linkat(AT_FDCWD, name, AT_FDCWD, p, AT_SYMLINK_FOLLOW);
	close(fd);
	return r;
}

static const struct {
	const char *name;
	long (*fn)(const char *path, mode_t mode);
} px_makers[] = {
	{"create", made_creat}, {"mkdir", made_mkdir},	   {"mknod", made_mknod},
	{"mkfifo", made_fifo},	{"symlink", made_symlink}, {"tmpfile", made_tmpfile},
};

static void px_new_one(size_t maker, int user, mode_t dir_mode, mode_t mask, mode_t mode)
{
	if (!px_turn())
		return;
	px_fresh();
	px_must(mkdir(PX_W "/p", 0777), "make a folder");
	px_must(chown(PX_W "/p", 1003, 1000), "give away");
	px_must(chmod(PX_W "/p", dir_mode), "set a mode");
	px_check("modes/%s/in-%04o/%s/umask-%03o/%04o", px_makers[maker].name, dir_mode,
		 px_users[user].name, mask, mode);
	px_become(user);
	umask(mask);
	px_result(px_makers[maker].fn(PX_W "/p/n", mode));
	umask(022);
	px_become(PX_ROOT);
	px_describe(PX_W "/p/n");
	px_done();
}

void px_table_modes(void)
{
	static const mode_t dir_modes[] = {0777, 02777, 01777}, masks[] = {0, 022, 0777};
	static const mode_t modes[] = {0644, 0777, 02775, 06755, 07777};
	static const int users[] = {PX_ROOT, PX_OWNER, PX_SUPP, PX_OTHER};

	for (size_t k = 0; k < PX_SIZE(px_makers); k++) {
		for (size_t u = 0; u < PX_SIZE(users); u++) {
			for (size_t d = 0; d < PX_SIZE(dir_modes); d++) {
				/* All modes with the usual mask, one with the others. */
				for (size_t m = 0; m < PX_SIZE(modes); m++)
					px_new_one(k, users[u], dir_modes[d], 022, modes[m]);
				px_new_one(k, users[u], dir_modes[d], masks[0], 06777);
				px_new_one(k, users[u], dir_modes[d], masks[2], 0777);
			}
		}
	}
	px_fresh();
}

/* --- bits that go ------------------------------------------------------------------------------------- */

static long bits_fd(const char *p, int flags, long (*fn)(int fd))
{
	int fd = open(p, flags);
	long r = fd < 0 ? -1 : fn(fd);
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
	return r;
}

static long fd_write(int fd)
{
	return write(fd, "x", 1);
}

static long fd_write_none(int fd)
{
	return write(fd, "x", 0);
}

static long fd_writev(int fd)
{
	struct iovec v[2] = {{"a", 1}, {"b", 1}};

	return pwritev(fd, v, 2, 1);
}

static long fd_truncate(int fd)
{
	return ftruncate(fd, 2);
}

static long fd_truncate_same(int fd)
{
	return ftruncate(fd, 7);
}

static long fd_fallocate(int fd)
{
	return fallocate(fd, 0, 0, 100);
}

static long fd_punch(int fd)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 3);
}

static long fd_mmap(int fd)
{
	char *m = mmap(NULL, 7, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	long r;

	if (m == MAP_FAILED)
		return -1;
	m[0] = 'x';
	r = msync(m, 7, MS_SYNC);
	munmap(m, 7);
	return r;
}

static long fd_copy(int fd)
{
	int from = open(PX_W "/from", O_RDONLY);
	long r = from < 0 ? -1 : copy_file_range(from, NULL, fd, NULL, 3, 0);

	if (from >= 0)
		close(from);
	return r;
}

static long bits_write(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_write);
}

static long bits_write_none(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_write_none);
}

static long bits_writev(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_writev);
}

static long bits_append(const char *p)
{
	return bits_fd(p, O_WRONLY | O_APPEND, fd_write);
}

static long bits_truncate(const char *p)
{
	return truncate(p, 2);
}

static long bits_ftruncate(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_truncate);
}

static long bits_ftruncate_same(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_truncate_same);
}

static long bits_open_trunc(const char *p)
{
	return bits_fd(p, O_WRONLY | O_TRUNC, fd_write_none);
}

static long bits_fallocate(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_fallocate);
}

static long bits_punch(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_punch);
}

static long bits_mmap(const char *p)
{
	return bits_fd(p, O_RDWR, fd_mmap);
}

static long bits_copy(const char *p)
{
	return bits_fd(p, O_WRONLY, fd_copy);
}

static long bits_chown(const char *p)
{
	return chown(p, 1000, 1000);
}

static long bits_chown_nothing(const char *p)
{
	return chown(p, (uid_t)-1, (gid_t)-1);
}

static long bits_chgrp(const char *p)
{
	return chown(p, (uid_t)-1, 1000);
}

static long bits_setxattr(const char *p)
{
	return setxattr(p, "user.x", "1", 1, 0);
}

static long bits_utimens(const char *p)
{
	return utimensat(AT_FDCWD, p, NULL, 0);
}

static long bits_link(const char *p)
{
	return link(p, PX_W "/n");
}

static long bits_rename(const char *p)
{
	long r = rename(p, PX_W "/n");

	return r ? r : rename(PX_W "/n", p);
}

static const struct {
	const char *name;
	long (*fn)(const char *path);
} px_bits[] = {
	{"write", bits_write},
	{"write-none", bits_write_none},
	{"writev", bits_writev},
	{"append", bits_append},
	{"truncate", bits_truncate},
	{"ftruncate", bits_ftruncate},
	{"ftruncate-same", bits_ftruncate_same},
	{"open-trunc", bits_open_trunc},
	{"fallocate", bits_fallocate},
	{"punch", bits_punch},
	{"mmap", bits_mmap},
	{"copy-range", bits_copy},
	{"chown", bits_chown},
	{"chown-nothing", bits_chown_nothing},
	{"chgrp", bits_chgrp},
	{"setxattr", bits_setxattr},
	{"utimens", bits_utimens},
	{"link", bits_link},
	{"rename", bits_rename},
};

void px_table_set_id(void)
{
	static const mode_t modes[] = {04777, 02777, 02767, 06777, 06666, 01777};
	static const int users[] = {PX_ROOT, PX_OWNER, PX_GROUP, PX_OTHER};

	for (size_t b = 0; b < PX_SIZE(px_bits); b++) {
		for (size_t u = 0; u < PX_SIZE(users); u++) {
			for (size_t m = 0; m < PX_SIZE(modes); m++) {
				if (!px_turn())
					continue;
				px_fresh();
				px_file(PX_W "/o", "content", 0644);
				px_file(PX_W "/from", "from", 0644);
				px_must(chown(PX_W "/o", 1000, 1000), "give away");
				px_must(chmod(PX_W "/o", modes[m]), "set a mode");
				px_check("set-id/%s/%s/%04o", px_bits[b].name,
					 px_users[users[u]].name, modes[m]);
				px_become(users[u]);
				px_result(px_bits[b].fn(PX_W "/o"));
				px_become(PX_ROOT);
				px_describe(PX_W "/o");
				px_done();
			}
		}
	}
	px_fresh();
}
