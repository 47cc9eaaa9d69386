/* State on disk; see bundle.h. Used by the serving shim and by `delete`. */
#include "bundle.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "sys.h"

#define BUNDLE_FILE_MAX 4096
#define BUNDLE_DEPTH_MAX 4

int bundle_open(const char *path, struct err *err)
{
	int fd;

	if (path[0] != '/')
		return err_say(err, -EINVAL, "bundle '%.300s' is not an absolute path", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "open bundle '%.300s'", path);
	return fd;
}

int bundle_state_open(int bundle_fd)
{
	cleanup_close int fd = openat(bundle_fd, BUNDLE_STATE_DIR,
				      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st))
		return -errno;
	if (st.st_uid != geteuid() || (st.st_mode & 077))
		return -EPERM;
	return take_fd(&fd);
}

int bundle_state_make(int bundle_fd, struct err *err)
{
	int fd;

	if (mkdirat(bundle_fd, BUNDLE_STATE_DIR, 0700) && errno != EEXIST)
		return err_set(err, -errno, "make the bundle's '%s'", BUNDLE_STATE_DIR);
	fd = bundle_state_open(bundle_fd);
	if (fd < 0)
		return err_set(err, fd, "open the bundle's '%s'", BUNDLE_STATE_DIR);
	return fd;
}

static int bundle_remove_tree(int dirfd, const char *name, int depth)
{
	cleanup_dir DIR *dir = NULL;
	struct dirent *e;
	int fd, r = 0;

	if (!unlinkat(dirfd, name, 0) || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	if (depth > BUNDLE_DEPTH_MAX)
		return -ELOOP;
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	while ((e = readdir(dir))) {
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
			int one = bundle_remove_tree(fd, e->d_name, depth + 1);

			r = one ? one : r;
		}
	}
	if (unlinkat(dirfd, name, AT_REMOVEDIR) && errno != ENOENT && !r)
		r = -errno;
	return r;
}

int bundle_state_remove(int bundle_fd)
{
	return bundle_remove_tree(bundle_fd, BUNDLE_STATE_DIR, 0);
}

int bundle_task_write(int state_fd, const struct bundle_task *t)
{
	char text[160];
	int n = snprintf(text, sizeof(text), "pid %d\n", (int)t->pid);

	if (t->exited)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "exited %u %" PRId64 "\n",
			      t->exit_status, t->exited_at_ns);
	if (t->deleted)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "deleted\n");
	return io_replace_file(state_fd, "task", text, (size_t)n);
}

/* Takes a decimal number off the front of *text, blanks before it skipped. */
static bool bundle_take_number(const char **text, uint64_t *ret)
{
	const char *p = *text + strspn(*text, " ");
	char *end;

	if (*p < '0' || *p > '9')
		return false;
	errno = 0;
	*ret = strtoull(p, &end, 10);
	*text = end;
	return !errno;
}

/* The rest of `line` when it begins with `word`, else NULL. */
static const char *bundle_after(const char *line, const char *word)
{
	size_t len = strlen(word);

	return strncmp(line, word, len) ? NULL : line + len;
}

static void bundle_task_line(const char *line, struct bundle_task *ret)
{
	uint64_t a, b;
	const char *rest = bundle_after(line, "pid ");

	if (rest) {
		if (bundle_take_number(&rest, &a) && a <= INT32_MAX)
			ret->pid = (pid_t)a;
		return;
	}
	rest = bundle_after(line, "exited ");
	if (rest && bundle_take_number(&rest, &a) && bundle_take_number(&rest, &b) &&
	    a <= UINT32_MAX && b <= INT64_MAX) {
		ret->exited = true;
		ret->exit_status = (uint32_t)a;
		ret->exited_at_ns = (int64_t)b;
	} else if (!strcmp(line, "deleted")) {
		ret->deleted = true;
	}
}

void bundle_task_read(int state_fd, struct bundle_task *ret)
{
	cleanup_free char *text = NULL;
	char *save = NULL;

	*ret = (struct bundle_task){0};
	if (io_read_file(state_fd, "task", BUNDLE_FILE_MAX, &text, NULL))
		return;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		bundle_task_line(line, ret);
}

/* Field 22 of /proc/PID/stat: start time in clock ticks since boot. 0 = no such process. */
static uint64_t bundle_start_time(pid_t pid)
{
	cleanup_free char *text = NULL;
	char path[64];
	const char *p;
	uint64_t start = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (io_read_file(AT_FDCWD, path, BUNDLE_FILE_MAX, &text, NULL))
		return 0;
	/* The name (field 2) may hold anything, blanks and brackets too: count from its last ')'. */
	p = strrchr(text, ')');
	for (int field = 2; p && field < 22; field++) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	return p && bundle_take_number(&p, &start) ? start : 0;
}

int bundle_shim_write(int state_fd)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "%d %" PRIu64 "\n", (int)getpid(),
			 bundle_start_time(getpid()));

	return io_replace_file(state_fd, "shim", text, (size_t)n);
}

int bundle_shim_open(int state_fd)
{
	cleanup_free char *text = NULL;
	cleanup_close int fd = -1;
	uint64_t pid, start;
	const char *p;

	if (io_read_file(state_fd, "shim", BUNDLE_FILE_MAX, &text, NULL))
		return -ENOENT;
	p = text;
	if (!bundle_take_number(&p, &pid) || !bundle_take_number(&p, &start) || pid <= 1 ||
	    pid > INT32_MAX)
		return -ENOENT;
	fd = sys_pidfd_open((pid_t)pid);
	/* The start time is looked at after the pidfd was opened: now it cannot become another's. */
	if (fd < 0 || !start || bundle_start_time((pid_t)pid) != start)
		return -ESRCH;
	return take_fd(&fd);
}
