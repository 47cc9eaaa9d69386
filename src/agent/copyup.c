/*
 * A copy of a tree of the image; see copyup.h. Runs in the forked child. The source is hostile in what it holds,
 * not in what it does: the container has no process yet. Links are copied, never followed; depth is bounded,
 * and so is the amount, by the size of the tmpfs.
 */
#include "copyup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "util.h"

#define COPYUP_DEPTH_MAX 128
#define COPYUP_CHUNK (1u << 20)

static int copyup_folder(int from, int to, int depth, struct err *err);

/* Owner first: changing it takes set-id bits away. */
static int copyup_attrs(int fd, const struct stat *st)
{
	const struct timespec times[2] = {st->st_atim, st->st_mtim};

	if (fchown(fd, st->st_uid, st->st_gid) || fchmod(fd, st->st_mode & 07777) ||
	    futimens(fd, times))
		return -errno;
	return 0;
}

static int copyup_file(int from, int to, const char *name, const struct stat *st)
{
	cleanup_close int in =
		openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	cleanup_close int out =
		in < 0 ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ssize_t n;

	if (out < 0)
		return -errno;
	do
		n = sendfile(out, in, NULL, COPYUP_CHUNK);
	while (n > 0 || (n < 0 && errno == EINTR));
	return n < 0 ? -errno : copyup_attrs(out, st);
}

static int copyup_link(int from, int to, const char *name, const struct stat *st)
{
	char text[PATH_MAX];
	ssize_t n = readlinkat(from, name, text, sizeof(text) - 1);

	if (n < 0)
		return -errno;
	text[n] = '\0';
	if (symlinkat(text, to, name) ||
	    fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW))
		return -errno;
	return 0;
}

static int copyup_node(int to, const char *name, const struct stat *st)
{
	if (mknodat(to, name, st->st_mode, st->st_rdev) ||
	    fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) ||
	    fchmodat(to, name, st->st_mode & 07777, 0))
		return -errno;
	return 0;
}

static int copyup_subfolder(int from, int to, const char *name, const struct stat *st, int depth,
			    struct err *err)
{
	cleanup_close int in = openat(from, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_close int out = -1;
	int e;

	if (in < 0 || mkdirat(to, name, 0700))
		return err_set(err, -errno, "copy '%.100s'", name);
	out = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (out < 0)
		return err_set(err, -errno, "copy '%.100s'", name);
	if (copyup_folder(in, out, depth + 1, err))
		return err->code;
	e = copyup_attrs(out, st);
	return e ? err_set(err, e, "copy '%.100s'", name) : 0;
}

static int copyup_entry(int from, int to, const char *name, int depth, struct err *err)
{
	struct stat st;
	int e = fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) ? -errno : 0;

	if (!e && S_ISDIR(st.st_mode))
		return copyup_subfolder(from, to, name, &st, depth, err);
	if (!e && S_ISREG(st.st_mode))
		e = copyup_file(from, to, name, &st);
	else if (!e && S_ISLNK(st.st_mode))
		e = copyup_link(from, to, name, &st);
	else if (!e && !S_ISSOCK(st.st_mode)) /* nobody listens */
		e = copyup_node(to, name, &st);
	return e ? err_set(err, e, "copy '%.100s'", name) : 0;
}

static int copyup_folder(int from, int to, int depth, struct err *err)
{
	int list_fd = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = list_fd < 0 ? NULL : fdopendir(list_fd);
	struct dirent *e;

	if (!d) {
		err_set(err, -errno, "read a folder");
		if (list_fd >= 0)
			close(list_fd);
		return err->code;
	}
	if (depth >= COPYUP_DEPTH_MAX)
		return err_say(err, -ELOOP, "more than %d folders in each other", COPYUP_DEPTH_MAX);
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (copyup_entry(from, to, e->d_name, depth, err))
			return err->code;
	}
	return 0;
}

int copyup(int from, int to, struct err *err)
{
	return copyup_folder(from, to, 0, err) ? err_wrap(err, "tmpcopyup") : 0;
}
