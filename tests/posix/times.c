/* Which call changes which time of which file; and who may set times to what. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Each works in a folder of its own, which is the working one, on what px_times_scene() made there. */
struct px_timed {
	const char *name;
	long (*fn)(void);
};

static long with_file(const char *path, int flags, long (*fn)(int fd))
{
	int fd = open(path, flags, 0644);
	long r = fd < 0 ? -1 : fn(fd);
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
	return r;
}

static long fd_nothing(int fd)
{
	(void)fd;
	return 0;
}

static long fd_read(int fd)
{
	char b[4];

	return read(fd, b, sizeof(b));
}

static long fd_read_none(int fd)
{
	char b[4];

	return read(fd, b, 0);
}

static long fd_read_end(int fd)
{
	char b[4];

	return pread(fd, b, sizeof(b), 100000);
}

static long fd_write(int fd)
{
	return write(fd, "abc", 3);
}

static long fd_write_none(int fd)
{
	return write(fd, "abc", 0);
}

static long fd_ftruncate_same(int fd)
{
	return ftruncate(fd, 7);
}

static long fd_ftruncate_less(int fd)
{
	return ftruncate(fd, 3);
}

static long fd_ftruncate_more(int fd)
{
	return ftruncate(fd, 9000);
}

static long fd_fallocate_more(int fd)
{
	return fallocate(fd, 0, 0, 9000);
}

static long fd_fallocate_keep(int fd)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 9000);
}

static long fd_punch(int fd)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4);
}

static long fd_fchmod(int fd)
{
	return fchmod(fd, 0600);
}

static long fd_fchown(int fd)
{
	return fchown(fd, 5, 6);
}

static long fd_mmap_write(int fd)
{
	char *m = mmap(NULL, 7, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	long r;

	if (m == MAP_FAILED)
		return -1;
	m[1] = 'M';
	r = msync(m, 7, MS_SYNC);
	munmap(m, 7);
	return r;
}

static long fd_list(int fd)
{
	char b[1024];

	return syscall(SYS_getdents64, fd, b, sizeof(b));
}

static long fd_copy_range(int fd)
{
	int to = open("g", O_WRONLY);
	loff_t a = 0, b = 0;
	long r = to < 0 ? -1 : copy_file_range(fd, &a, to, &b, 5, 0);

	if (to >= 0)
		close(to);
	return r;
}

static long fd_sendfile(int fd)
{
	int to = open("g", O_WRONLY);
	off_t a = 0;
	long r = to < 0 ? -1 : sendfile(to, fd, &a, 5);

	if (to >= 0)
		close(to);
	return r;
}

#define TIMED_FD(id, path, flags, fn_) \
	static long timed_##id(void) \
	{ \
		return with_file(path, flags, fn_); \
	}
#define TIMED(id, expression) \
	static long timed_##id(void) \
	{ \
		return expression; \
	}

TIMED_FD(open_r, "f", O_RDONLY, fd_nothing)
TIMED_FD(open_w, "f", O_WRONLY, fd_nothing)
TIMED_FD(open_trunc, "f", O_WRONLY | O_TRUNC, fd_nothing)
TIMED_FD(open_trunc_empty, "z", O_WRONLY | O_TRUNC, fd_nothing)
TIMED_FD(open_creat, "f", O_WRONLY | O_CREAT, fd_nothing)
TIMED_FD(create, "n", O_WRONLY | O_CREAT, fd_nothing)
TIMED_FD(tmpfile, ".", O_WRONLY | O_TMPFILE, fd_nothing)
TIMED_FD(read, "f", O_RDONLY, fd_read)
TIMED_FD(read_noatime, "f", O_RDONLY | O_NOATIME, fd_read)
TIMED_FD(read_none, "f", O_RDONLY, fd_read_none)
TIMED_FD(read_end, "f", O_RDONLY, fd_read_end)
TIMED_FD(write, "f", O_WRONLY, fd_write)
TIMED_FD(append, "f", O_WRONLY | O_APPEND, fd_write)
TIMED_FD(write_none, "f", O_WRONLY, fd_write_none)
TIMED_FD(ftruncate_same, "f", O_WRONLY, fd_ftruncate_same)
TIMED_FD(ftruncate_less, "f", O_WRONLY, fd_ftruncate_less)
TIMED_FD(ftruncate_more, "f", O_WRONLY, fd_ftruncate_more)
TIMED_FD(fallocate_more, "f", O_WRONLY, fd_fallocate_more)
TIMED_FD(fallocate_keep, "f", O_WRONLY, fd_fallocate_keep)
TIMED_FD(punch, "f", O_WRONLY, fd_punch)
TIMED_FD(fchmod, "f", O_RDONLY, fd_fchmod)
TIMED_FD(fchown, "f", O_RDONLY, fd_fchown)
TIMED_FD(mmap_write, "f", O_RDWR, fd_mmap_write)
TIMED_FD(list, "d", O_RDONLY, fd_list)
TIMED_FD(copy_range, "f", O_RDONLY, fd_copy_range)
TIMED_FD(sendfile, "f", O_RDONLY, fd_sendfile)
TIMED(chmod, chmod("f", 0600))
TIMED(chmod_same, chmod("f", 0644))
TIMED(chmod_folder, chmod("d", 0700))
TIMED(chown, chown("f", 5, 6))
TIMED(chown_nothing, chown("f", (uid_t)-1, (gid_t)-1))
TIMED(lchown_link, lchown("s", 5, 6))
TIMED(truncate_same, truncate("f", 7))
TIMED(truncate_less, truncate("f", 2))
TIMED(truncate_more, truncate("f", 100))
TIMED(setxattr, setxattr("f", "user.new", "1", 1, 0))
TIMED(setxattr_same, setxattr("f", "user.there", "x", 1, 0))
TIMED(removexattr, removexattr("f", "user.there"))
TIMED(getxattr, getxattr("f", "user.there", NULL, 0))
TIMED(link, link("f", "n"))
TIMED(link_into, link("f", "d/n"))
TIMED(unlink, unlink("f"))
TIMED(unlink_one_of_two, unlink("h"))
TIMED(unlink_in, unlink("d/in"))
TIMED(mkdir, mkdir("n", 0755))
TIMED(mkdir_in, mkdir("d/n", 0755))
TIMED(rmdir, rmdir("e"))
TIMED(mkfifo, mkfifo("d/n", 0644))
TIMED(symlink, symlink("x", "d/n"))
TIMED(rename, rename("f", "n"))
TIMED(rename_into, rename("f", "d/n"))
TIMED(rename_onto, rename("f", "g"))
TIMED(rename_out, rename("d/in", "n"))
TIMED(rename_folder, rename("d", "n"))
TIMED(rename_folder_into, rename("d", "e/n"))
TIMED(rename_same, rename("f", "f"))
TIMED(rename_two_names, rename("g", "h"))
TIMED(exchange, renameat2(AT_FDCWD, "f", AT_FDCWD, "d/in", RENAME_EXCHANGE))
TIMED(utimens_omit,
      utimensat(AT_FDCWD, "f", (struct timespec[2]){{0, UTIME_OMIT}, {0, UTIME_OMIT}}, 0))
TIMED(utimens_atime,
      utimensat(AT_FDCWD, "f", (struct timespec[2]){{0, UTIME_NOW}, {0, UTIME_OMIT}}, 0))
TIMED(utimens_mtime,
      utimensat(AT_FDCWD, "f", (struct timespec[2]){{0, UTIME_OMIT}, {0, UTIME_NOW}}, 0))
TIMED(utimens_now, utimensat(AT_FDCWD, "f", NULL, 0))
TIMED(failed_unlink, unlink("none"))
TIMED(failed_mkdir, mkdir("d", 0755))
TIMED(failed_rmdir, rmdir("d"))
TIMED(failed_rename, rename("f", "d"))
TIMED(failed_create, open("f", O_WRONLY | O_CREAT | O_EXCL, 0600))
TIMED(stat, access("f", R_OK))

static long timed_readlink(void)
{
	char b[64];

	return readlink("s", b, sizeof(b));
}

#define TIMED_ROW(id) \
	{ \
#id, timed_##id \
	}
static const struct px_timed px_timed[] = {
	TIMED_ROW(open_r),
	TIMED_ROW(open_w),
	TIMED_ROW(open_trunc),
	TIMED_ROW(open_trunc_empty),
	TIMED_ROW(open_creat),
	TIMED_ROW(create),
	TIMED_ROW(tmpfile),
	TIMED_ROW(read),
	TIMED_ROW(read_noatime),
	TIMED_ROW(read_none),
	TIMED_ROW(read_end),
	TIMED_ROW(write),
	TIMED_ROW(append),
	TIMED_ROW(write_none),
	TIMED_ROW(ftruncate_same),
	TIMED_ROW(ftruncate_less),
	TIMED_ROW(ftruncate_more),
	TIMED_ROW(fallocate_more),
	TIMED_ROW(fallocate_keep),
	TIMED_ROW(punch),
	TIMED_ROW(fchmod),
	TIMED_ROW(fchown),
	TIMED_ROW(mmap_write),
	TIMED_ROW(list),
	TIMED_ROW(copy_range),
	TIMED_ROW(sendfile),
	TIMED_ROW(chmod),
	TIMED_ROW(chmod_same),
	TIMED_ROW(chmod_folder),
	TIMED_ROW(chown),
	TIMED_ROW(chown_nothing),
	TIMED_ROW(lchown_link),
	TIMED_ROW(truncate_same),
	TIMED_ROW(truncate_less),
	TIMED_ROW(truncate_more),
	TIMED_ROW(setxattr),
	TIMED_ROW(setxattr_same),
	TIMED_ROW(removexattr),
	TIMED_ROW(getxattr),
	TIMED_ROW(link),
	TIMED_ROW(link_into),
	TIMED_ROW(unlink),
	TIMED_ROW(unlink_one_of_two),
	TIMED_ROW(unlink_in),
	TIMED_ROW(mkdir),
	TIMED_ROW(mkdir_in),
	TIMED_ROW(rmdir),
	TIMED_ROW(mkfifo),
	TIMED_ROW(symlink),
	TIMED_ROW(rename),
	TIMED_ROW(rename_into),
	TIMED_ROW(rename_onto),
	TIMED_ROW(rename_out),
	TIMED_ROW(rename_folder),
	TIMED_ROW(rename_folder_into),
	TIMED_ROW(rename_same),
	TIMED_ROW(rename_two_names),
	TIMED_ROW(exchange),
	TIMED_ROW(utimens_omit),
	TIMED_ROW(utimens_atime),
	TIMED_ROW(utimens_mtime),
	TIMED_ROW(utimens_now),
	TIMED_ROW(failed_unlink),
	TIMED_ROW(failed_mkdir),
	TIMED_ROW(failed_rmdir),
	TIMED_ROW(failed_rename),
	TIMED_ROW(failed_create),
	TIMED_ROW(stat),
	TIMED_ROW(readlink),
};

static const char *const px_watched[] = {".", "f", "g", "h", "d", "d/in", "e", "s", "z"};
static struct stat px_before[PX_SIZE(px_timed)][PX_SIZE(px_watched)];

static void px_times_scene(size_t i)
{
	/* Long past, so that a file system that saves access times (relatime) does not save this one. */
	const struct timespec past[2] = {{1000000000, 5}, {1000000000, 5}};
	char name[64];

	snprintf(name, sizeof(name), PX_W "/%zu", i);
	px_must(mkdir(name, 0755), "make a folder");
	px_must(chdir(name), "enter it");
	px_file("f", "content", 0644);
	px_file("g", "other", 0644);
	px_file("z", "", 0644);
	px_must(link("g", "h"), "link");
	px_must(setxattr("f", "user.there", "x", 1, 0), "set an attribute");
	px_must(mkdir("d", 0755), "make a folder");
	px_file("d/in", "inside", 0644);
	px_must(mkdir("e", 0755), "make a folder");
	px_must(symlink("f", "s"), "make a link");
	/* All are set before one is looked at: two of the names are one file's. */
	for (size_t w = PX_SIZE(px_watched); w-- > 0;)
		px_must(utimensat(AT_FDCWD, px_watched[w], past, AT_SYMLINK_NOFOLLOW), "set times");
	for (size_t w = 0; w < PX_SIZE(px_watched); w++)
		px_must(lstat(px_watched[w], &px_before[i][w]), "look");
	px_must(chdir("../.."), "leave it");
}

static bool px_is_later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

static void px_compare_times(size_t i)
{
	for (size_t w = 0; w < PX_SIZE(px_watched); w++) {
		const struct stat *was = &px_before[i][w];
		struct stat st;

		if (lstat(px_watched[w], &st) < 0 || st.st_ino != was->st_ino)
			continue;
		if (px_is_later(&st.st_atim, &was->st_atim) ||
		    px_is_later(&st.st_mtim, &was->st_mtim) ||
		    px_is_later(&st.st_ctim, &was->st_ctim))
			px_note("%s:%s%s%s", px_watched[w],
				px_is_later(&st.st_atim, &was->st_atim) ? "a" : "",
				px_is_later(&st.st_mtim, &was->st_mtim) ? "m" : "",
				px_is_later(&st.st_ctim, &was->st_ctim) ? "c" : "");
	}
}

static void px_pause(void)
{
	const struct timespec t = {0, 40000000};

	nanosleep(&t, NULL);
}

void px_table_times(void)
{
	char name[64];

	px_fresh();
	for (size_t i = 0; i < PX_SIZE(px_timed); i++)
		px_times_scene(i);
	/* What happens from here on gets another time, whatever a file system's clock ticks by. */
	px_pause();
	for (size_t i = 0; i < PX_SIZE(px_timed); i++) {
		snprintf(name, sizeof(name), PX_W "/%zu", i);
		px_must(chdir(name), "enter it");
		px_check("times/%s", px_timed[i].name);
		px_result(px_timed[i].fn());
		px_compare_times(i);
		px_done();
		px_must(chdir("../.."), "leave it");
	}
	px_fresh();
}

/* --- utimensat() ----------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	struct timespec t;
} px_times_values[] = {
	{"set", {1111111111, 123456789}}, {"now", {0, UTIME_NOW}},
	{"omit", {0, UTIME_OMIT}},	  {"negative", {-5, 999999999}},
	{"too-many-ns", {1, 1000000000}}, {"epoch", {0, 0}},
	{"year-2100", {4102444800, 1}},	  {"year-2500", {16725225600, 0}},
};

static void px_note_time(const struct timespec *t)
{
	/* A time of now is only known to be recent. */
	if (t->tv_sec > 1500000000 && t->tv_sec < 4000000000)
		px_note("now");
	else
		px_note("%ld.%09ld", (long)t->tv_sec, t->tv_nsec);
}

static void px_set_times_one(enum px_type type, size_t a, size_t m, int user)
{
	const struct timespec t[2] = {px_times_values[a].t, px_times_values[m].t};
	const struct timespec past[2] = {{1000000000, 5}, {1000000000, 6}};
	struct stat st;

	px_must(utimensat(AT_FDCWD, PX_W "/o", past, AT_SYMLINK_NOFOLLOW), "set times");
	px_check("set-times/%s/%s/%s/%s", px_type_names[type], px_users[user].name,
		 px_times_values[a].name, px_times_values[m].name);
	px_become(user);
	px_result(utimensat(AT_FDCWD, PX_W "/o", t, AT_SYMLINK_NOFOLLOW));
	px_become(PX_ROOT);
	px_must(lstat(PX_W "/o", &st), "look");
	px_note_time(&st.st_atim);
	px_note_time(&st.st_mtim);
	px_done();
}

void px_table_set_times(void)
{
	static const enum px_type types[] = {PX_REG, PX_DIR_EMPTY, PX_LINK_NONE, PX_FIFO};
	static const int users[] = {PX_ROOT, PX_OWNER, PX_GROUP};

	for (size_t t = 0; t < PX_SIZE(types); t++) {
		px_fresh();
		px_make(types[t], PX_W "/o");
		if (types[t] != PX_LINK_NONE)
			px_must(chmod(PX_W "/o", 0660), "set a mode");
		px_must(lchown(PX_W "/o", 1000, 1000), "give away");
		for (size_t a = 0; a < PX_SIZE(px_times_values); a++) {
			for (size_t m = 0; m < PX_SIZE(px_times_values); m++) {
				/* Two odd values at once tell nothing more. */
				if (a > 2 && m > 2 && a != m)
					continue;
				px_set_times_one(types[t], a, m, users[(a + m) % PX_SIZE(users)]);
			}
		}
	}
	px_fresh();
}
