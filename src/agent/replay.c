/*
 * See replay.h. The process trusts what it reads as far as the guest trusts its file server: it resolves paths below the
 * shared folder alone and follows no links, as a container may have put one there meanwhile. What it asks
 * for changes nothing: the server only answers (fs_events.h).
 */
#include "replay.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "fs_events.h"
#include "log.h"
#include "util.h"

/* Changes of so long become one event of each kind, as the kernel merges them until they are read. */
#define REPLAY_PAUSE_MS 20

#define REPLAY_RESOLVE (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)

/* The size that it has: whoever watches is told of a change, and the kernel looks at it anew. */
static int replay_content(int dir_fd, const char *name)
{
	char path[32];
	struct stat st;
	int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), r = -1;

	if (fd < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		r = truncate(path, st.st_size);
	close(fd);
	return r;
}

static int replay_closed(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	return fd < 0 ? -1 : close(fd);
}

static int replay_call(int dir_fd, const char *name, char kind)
{
	switch (kind) {
	case FS_EVENT_FILE:
		return mknodat(dir_fd, name, S_IFREG | 0600, 0);
	case FS_EVENT_DIR:
		return mkdirat(dir_fd, name, 0700);
	case FS_EVENT_LINK:
		return symlinkat("-", dir_fd, name);
	case FS_EVENT_FIFO:
		return mknodat(dir_fd, name, S_IFIFO | 0600, 0);
	case FS_EVENT_SOCKET:
		return mknodat(dir_fd, name, S_IFSOCK | 0600, 0);
	case FS_EVENT_UNLINK:
		return unlinkat(dir_fd, name, 0);
	case FS_EVENT_RMDIR:
		return unlinkat(dir_fd, name, AT_REMOVEDIR);
	case FS_EVENT_CONTENT:
		return replay_content(dir_fd, name);
	case FS_EVENT_ATTR:
		return utimensat(dir_fd, name, NULL, AT_SYMLINK_NOFOLLOW);
	case FS_EVENT_CLOSED:
		return replay_closed(dir_fd, name);
	default:
		return -1;
	}
}

/* path is "EXPORT/folders/name", or an export that is a file. */
static void replay_record(int root_fd, char kind, char *path)
{
	char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	int dir_fd;

	if (slash)
		*slash = '\0';
	dir_fd = sys_openat2(root_fd, slash ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
			     REPLAY_RESOLVE);
	if (dir_fd < 0)
		return;
	/* Failures are of no interest: what has changed has changed again. */
	(void)replay_call(dir_fd, name, kind);
	close(dir_fd);
}

static void replay_answer(int root_fd, char *text, size_t len)
{
	for (size_t at = 0; at < len;) {
		size_t one = strnlen(text + at, len - at);

		if (one == len - at)
			return;
		if (one > 1)
			replay_record(root_fd, text[at], text + at + 1);
		at += one + 1;
	}
}

HARPOON_NORETURN static void replay_run(int root_fd, int fd)
{
	const struct timespec pause = {.tv_nsec = REPLAY_PAUSE_MS * 1000000L};
	char *text = malloc(FS_EVENTS_READ);

	(void)prctl(PR_SET_NAME, "harpoon-replay");
	while (text) {
		ssize_t n = read(fd, text, FS_EVENTS_READ);

		if (n < 0 && errno != EINTR)
			break;
		if (n > 0)
			replay_answer(root_fd, text, (size_t)n);
		nanosleep(&pause, NULL);
	}
	_exit(0);
}

/* Of the agent's descriptors, these two only. */
static void replay_keep(int a, int b)
{
	unsigned int low = (unsigned int)MIN(a, b), high = (unsigned int)MAX(a, b);

	if (low > 3)
		(void)sys_close_range(3, low - 1, 0);
	if (high > low + 1)
		(void)sys_close_range(low + 1, high - 1, 0);
	(void)sys_close_range(high + 1, ~0U, 0);
}

void replay_start(const struct agent_params *params)
{
	cleanup_close int root_fd = -1, fd = -1;
	static bool is_done;
	pid_t pid;

	if (is_done || !params->is_guest_init)
		return;
	is_done = true;
	root_fd = open(params->fs_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	/* From here on harpoon-fs watches; what happens before the first read is kept. */
	fd = root_fd < 0 ? -1 : openat(root_fd, FS_EVENTS_NAME, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	pid = fork();
	if (!pid) {
		replay_keep(root_fd, fd);
		replay_run(root_fd, fd);
	}
	if (pid < 0)
		log_warn("replay", "changes by the host will not be told: %s", strerror(errno));
}
