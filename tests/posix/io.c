/* Reading and writing: what descriptors allow, files without a name, memory mappings. */
#include "posix.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

static char px_buf[65536];

static long io_read(int fd)
{
	return read(fd, px_buf, 100);
}

static long io_pread(int fd)
{
	return pread(fd, px_buf, 100, 3);
}

static long io_pread_beyond(int fd)
{
	return pread(fd, px_buf, 100, 1000000);
}

static long io_pread_negative(int fd)
{
	return pread(fd, px_buf, 100, -1);
}

static long io_read_bad_memory(int fd)
{
	return syscall(SYS_read, fd, (void *)8, 100UL);
}

static long io_write_bad_memory(int fd)
{
	return syscall(SYS_write, fd, (const void *)8, 100UL);
}

static long io_write(int fd)
{
	return write(fd, "0123", 4);
}

static long io_pwrite(int fd)
{
	return pwrite(fd, "0123", 4, 2);
}

static long io_pwrite_far(int fd)
{
	return pwrite(fd, "0123", 4, 20000);
}

static long io_pwrite_negative(int fd)
{
	return pwrite(fd, "0123", 4, -1);
}

static long io_pwrite_max(int fd)
{
	return pwrite(fd, "0123", 4, LLONG_MAX - 1);
}

static long io_pwrite_huge(int fd)
{
	return pwrite(fd, "0123", 4, 1LL << 60);
}

static long io_write_none(int fd)
{
	return write(fd, "", 0);
}

static long io_append(int fd)
{
	struct iovec v = {"AB", 2};

	return pwritev2(fd, &v, 1, 0, RWF_APPEND);
}

static long io_dsync(int fd)
{
	struct iovec v = {"AB", 2};

	return pwritev2(fd, &v, 1, 0, RWF_DSYNC);
}

static long io_nowait(int fd)
{
	struct iovec v = {px_buf, 2};
	long r = preadv2(fd, &v, 1, 0, RWF_NOWAIT);

	/* Whether it is in memory is chance. */
	return r < 0 && errno == EAGAIN ? 2 : r;
}

static long io_unknown_flag(int fd)
{
	struct iovec v = {px_buf, 2};

	return preadv2(fd, &v, 1, 0, 0x4000);
}

static long io_fsync(int fd)
{
	return fsync(fd);
}

static long io_fdatasync(int fd)
{
	return fdatasync(fd);
}

static long io_syncfs(int fd)
{
	return syncfs(fd);
}

static long io_sync_range(int fd)
{
	return sync_file_range(fd, 0, 4, SYNC_FILE_RANGE_WRITE);
}

static long io_fadvise(int fd)
{
	int r = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);

	errno = r;
	return r ? -1 : 0;
}

static long io_readahead(int fd)
{
	return readahead(fd, 0, 10);
}

static long io_getdents(int fd)
{
	return syscall(SYS_getdents64, fd, px_buf, sizeof(px_buf)) < 0 ? -1 : 0;
}

static long io_getdents_small(int fd)
{
	return syscall(SYS_getdents64, fd, px_buf, 10);
}

static long io_fchmod(int fd)
{
	return fchmod(fd, 0644);
}

static long io_fchown(int fd)
{
	return fchown(fd, 0, 0);
}

static long io_futimens(int fd)
{
	return futimens(fd, NULL);
}

static long io_fsetxattr(int fd)
{
	return fsetxattr(fd, "user.x", "1", 1, 0);
}

static long io_fgetxattr(int fd)
{
	return fgetxattr(fd, "user.there", px_buf, 10);
}

static long io_flistxattr(int fd)
{
	return flistxattr(fd, px_buf, sizeof(px_buf)) < 0 ? -1 : 0;
}

static long io_fchdir(int fd)
{
	int back = open(".", O_PATH);
	long r = fchdir(fd);
	int saved = errno;

	px_must(fchdir(back), "go back");
	close(back);
	errno = saved;
	return r;
}

static long io_mmap_read(int fd)
{
	void *m = mmap(NULL, 10, PROT_READ, MAP_SHARED, fd, 0);

	return m == MAP_FAILED ? -1 : munmap(m, 10);
}

static long io_mmap_shared(int fd)
{
	void *m = mmap(NULL, 10, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return m == MAP_FAILED ? -1 : munmap(m, 10);
}

static long io_mmap_private(int fd)
{
	void *m = mmap(NULL, 10, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	return m == MAP_FAILED ? -1 : munmap(m, 10);
}

static long io_mmap_unaligned(int fd)
{
	void *m = mmap(NULL, 10, PROT_READ, MAP_SHARED, fd, 3);

	return m == MAP_FAILED ? -1 : munmap(m, 10);
}

static long io_sendfile_from(int fd)
{
	int to = open(PX_W "/to", O_WRONLY);
	long r = sendfile(to, fd, NULL, 5);
	int saved = errno;

	close(to);
	errno = saved;
	return r;
}

static long io_copy_from(int fd)
{
	int to = open(PX_W "/to", O_WRONLY);
	long r = copy_file_range(fd, NULL, to, NULL, 5, 0);
	int saved = errno;

	close(to);
	errno = saved;
	return r;
}

static long io_copy_to(int fd)
{
	int from = open(PX_W "/to", O_RDONLY);
	long r = copy_file_range(from, NULL, fd, NULL, 5, 0);
	int saved = errno;

	close(from);
	errno = saved;
	return r;
}

static long io_copy_overlap(int fd)
{
	loff_t a = 0, b = 1;

	return copy_file_range(fd, &a, fd, &b, 4, 0);
}

static long io_copy_within(int fd)
{
	loff_t a = 0, b = 100;

	return copy_file_range(fd, &a, fd, &b, 4, 0);
}

static long io_copy_flags(int fd)
{
	return copy_file_range(fd, NULL, fd, NULL, 4, 1);
}

static long io_splice(int fd)
{
	int p[2];
	long r;
	int saved;

	px_must(pipe(p), "make a pipe");
	r = splice(fd, NULL, p[1], NULL, 5, 0);
	saved = errno;
	close(p[0]);
	close(p[1]);
	errno = saved;
	return r;
}

static long io_set_append(int fd)
{
	int r = fcntl(fd, F_SETFL, O_APPEND);

	return r < 0 ? -1 : write(fd, "end", 3);
}

static long io_set_noatime(int fd)
{
	return fcntl(fd, F_SETFL, O_NOATIME);
}

static long io_lease(int fd)
{
	return fcntl(fd, F_GETLEASE);
}

static const struct {
	const char *name;
	long (*fn)(int fd);
} px_io[] = {
	{"read", io_read},
	{"pread", io_pread},
	{"pread-beyond", io_pread_beyond},
	{"pread-negative", io_pread_negative},
	{"read-bad-memory", io_read_bad_memory},
	{"write-bad-memory", io_write_bad_memory},
	{"write", io_write},
	{"pwrite", io_pwrite},
	{"pwrite-far", io_pwrite_far},
	{"pwrite-negative", io_pwrite_negative},
	{"pwrite-max", io_pwrite_max},
	{"pwrite-huge", io_pwrite_huge},
	{"write-none", io_write_none},
	{"append", io_append},
	{"dsync", io_dsync},
	{"nowait", io_nowait},
	{"unknown-flag", io_unknown_flag},
	{"fsync", io_fsync},
	{"fdatasync", io_fdatasync},
	{"syncfs", io_syncfs},
	{"sync-range", io_sync_range},
	{"fadvise", io_fadvise},
	{"readahead", io_readahead},
	{"getdents", io_getdents},
	{"getdents-small", io_getdents_small},
	{"fchmod", io_fchmod},
	{"fchown", io_fchown},
	{"futimens", io_futimens},
	{"fsetxattr", io_fsetxattr},
	{"fgetxattr", io_fgetxattr},
	{"flistxattr", io_flistxattr},
	{"fchdir", io_fchdir},
	{"mmap-read", io_mmap_read},
	{"mmap-shared", io_mmap_shared},
	{"mmap-private", io_mmap_private},
	{"mmap-unaligned", io_mmap_unaligned},
	{"sendfile", io_sendfile_from},
	{"copy-from", io_copy_from},
	{"copy-to", io_copy_to},
	{"copy-overlap", io_copy_overlap},
	{"copy-within", io_copy_within},
	{"copy-flags", io_copy_flags},
	{"splice", io_splice},
	{"set-append", io_set_append},
	{"set-noatime", io_set_noatime},
	{"lease", io_lease},
};

void px_table_io(void)
{
	static const struct {
		const char *name;
		int flags;
		bool folder;
	} opens[] = {
		{"read", O_RDONLY, false},	  {"write", O_WRONLY, false},
		{"both", O_RDWR, false},	  {"append", O_RDWR | O_APPEND, false},
		{"sync", O_RDWR | O_SYNC, false}, {"dsync", O_WRONLY | O_DSYNC, false},
		{"path", O_PATH, false},	  {"nonblock", O_RDWR | O_NONBLOCK, false},
		{"folder", O_RDONLY, true},	  {"folder-path", O_PATH, true},
	};

	for (size_t o = 0; o < PX_SIZE(opens); o++) {
		for (size_t i = 0; i < PX_SIZE(px_io); i++) {
			const char *path = opens[o].folder ? PX_W "/d" : PX_W "/o";
			int fd;

			if (!px_turn())
				continue;
			px_fresh();
			px_make(PX_REG, PX_W "/o");
			px_make(PX_DIR_FULL, PX_W "/d");
			px_file(PX_W "/to", "towards", 0600);
			px_must(setxattr(path, "user.there", "x", 1, 0), "set an attribute");
			fd = (int)px_must(open(path, opens[o].flags), "open");
			px_check("io/%s/%s", opens[o].name, px_io[i].name);
			px_number(px_io[i].fn(fd));
			if (!(opens[o].flags & O_PATH))
				px_number(opens[o].folder ? 0 : lseek(fd, 0, SEEK_CUR));
			close(fd);
			px_describe(PX_W "/o");
			px_content(PX_W "/o");
			px_content(PX_W "/to");
			px_done();
		}
	}
	px_fresh();
}

/* --- files without a name ----------------------------------------------------------------------------- */

static long un_stat(int fd)
{
	struct stat st;
	long r = fstat(fd, &st);

	return r ? r : (long)st.st_nlink * 1000 + (long)st.st_size;
}

static long un_link_back(int fd)
{
	char name[64];

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	return linkat(AT_FDCWD, name, AT_FDCWD, PX_W "/back", AT_SYMLINK_FOLLOW);
}

static long un_open_again(int fd)
{
	char name[64];
	int again;
	long r;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	again = open(name, O_RDWR);
	r = again < 0 ? -1 : read(again, px_buf, 100);
	if (again >= 0)
		close(again);
	return r;
}

static long un_truncate(int fd)
{
	return ftruncate(fd, 3);
}

static const struct {
	const char *name;
	long (*fn)(int fd);
} px_unlinked[] = {
	{"stat", un_stat},
	{"read", io_read},
	{"write", io_write},
	{"truncate", un_truncate},
	{"fchmod", io_fchmod},
	{"fchown", io_fchown},
	{"futimens", io_futimens},
	{"fsetxattr", io_fsetxattr},
	{"fgetxattr", io_fgetxattr},
	{"fsync", io_fsync},
	{"link-back", un_link_back},
	{"open-again", un_open_again},
	{"mmap", io_mmap_shared},
	{"getdents", io_getdents},
	{"fchdir", io_fchdir},
	{"copy-within", io_copy_within},
	{"set-append", io_set_append},
};

/* -1 where the file system has none (overlayfs before Linux 6.2). */
static int px_nameless(int how)
{
	int fd;

	switch (how) {
	case 0: /* removed */
	case 1: /* another file put in its place */
		px_make(PX_REG, PX_W "/o");
		fd = (int)px_must(open(PX_W "/o", O_RDWR), "open");
		px_must(setxattr(PX_W "/o", "user.there", "x", 1, 0), "set an attribute");
		if (!how) {
			px_must(unlink(PX_W "/o"), "remove");
			return fd;
		}
		px_file(PX_W "/new", "new", 0600);
		px_must(rename(PX_W "/new", PX_W "/o"), "rename");
		return fd;
	case 2:
	case 3:
		fd = open(PX_W, O_RDWR | O_TMPFILE | (how == 3 ? O_EXCL : 0), 0600);
		if (fd < 0)
			return fd;
		px_must(write(fd, "content", 7), "write");
		px_must(lseek(fd, 0, SEEK_SET), "seek");
		return fd;
	default: /* a folder */
		px_must(mkdir(PX_W "/o", 0755), "make a folder");
		fd = (int)px_must(open(PX_W "/o", O_RDONLY), "open");
		px_must(rmdir(PX_W "/o"), "remove");
		return fd;
	}
}

void px_table_unlinked(void)
{
	static const char *const kinds[] = {"removed", "replaced", "tmpfile", "tmpfile-excl",
					    "folder"};

	for (size_t k = 0; k < PX_SIZE(kinds); k++) {
		for (size_t i = 0; i < PX_SIZE(px_unlinked); i++) {
			int fd;

			px_fresh();
			fd = px_nameless((int)k);
			px_check("unlinked/%s/%s", kinds[k], px_unlinked[i].name);
			if (fd < 0)
				px_result(fd);
			px_number(px_unlinked[i].fn(fd));
			px_number(un_stat(fd));
			if (fd >= 0)
				close(fd);
			px_describe(PX_W "/o");
			px_describe(PX_W "/back");
			px_done();
		}
	}
	px_fresh();
}
