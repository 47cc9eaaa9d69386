/* Users, objects and the line that is printed; see posix.h. */
#include "posix.h"

#include <dirent.h>
#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

const struct px_user px_users[PX_USERS] = {
	[PX_ROOT] = {"root", 0, 0, 0},	       [PX_OWNER] = {"owner", 1000, 1000, 0},
	[PX_GROUP] = {"group", 1001, 1000, 0}, [PX_SUPP] = {"supplementary", 1002, 1002, 1000},
	[PX_OTHER] = {"other", 1003, 1003, 0},
};

const char *const px_type_names[PX_TYPES] = {
	[PX_NONE] = "nothing",
	[PX_REG] = "file",
	[PX_DIR_EMPTY] = "empty-folder",
	[PX_DIR_FULL] = "folder",
	[PX_LINK_REG] = "link-to-file",
	[PX_LINK_DIR] = "link-to-folder",
	[PX_LINK_NONE] = "dangling",
	[PX_LINK_SELF] = "loop",
	[PX_FIFO] = "fifo",
	[PX_SOCKET] = "socket",
	[PX_CHAR] = "device",
};

unsigned int px_stride = 1;

bool px_turn(void)
{
	static unsigned int turn;

	return !(turn++ % px_stride);
}

static char px_line[2 * PX_PATH_MAX];
static size_t px_line_len;
static bool px_has_note;

static void px_append(const char *fmt, va_list args)
{
	size_t room = sizeof(px_line) - px_line_len;
	int n = vsnprintf(px_line + px_line_len, room, fmt, args);

	px_line_len += n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;
}

void px_check(const char *fmt, ...)
{
	va_list args;

	px_line_len = 0;
	px_has_note = false;
	va_start(args, fmt);
	px_append(fmt, args);
	va_end(args);
}

static void px_add(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	px_append(fmt, args);
	va_end(args);
}

void px_note(const char *fmt, ...)
{
	va_list args;

	px_add(px_has_note ? " " : " = ");
	px_has_note = true;
	va_start(args, fmt);
	px_append(fmt, args);
	va_end(args);
}

long px_result(long r)
{
	int saved = errno;

	px_note("%s", r < 0 ? strerrorname_np(errno) : "ok");
	errno = saved;
	return r;
}

long px_number(long r)
{
	if (r < 0)
		return px_result(r);
	px_note("%ld", r);
	return r;
}

void px_done(void)
{
	puts(px_line);
}

long px_must(long r, const char *what)
{
	if (r >= 0)
		return r;
	fprintf(stderr, "posix: cannot %s for '%s': %s\n", what, px_line, strerror(errno));
	exit(3);
}

void px_become(int user)
{
	const struct px_user *u = &px_users[user];

	px_must(setresuid(0, 0, 0), "become root");
	px_must(setgroups(u->extra ? 1 : 0, &u->extra), "set groups");
	px_must(setresgid(u->gid, u->gid, u->gid), "set the group");
	if (u->uid)
		px_must(setresuid(u->uid, u->uid, 0), "set the user");
}

static void px_remove_below(const char *path)
{
	DIR *d = opendir(path);
	char name[PX_PATH_MAX];

	for (struct dirent *e; d && (e = readdir(d));) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
		if (e->d_type != DT_DIR && e->d_type != DT_UNKNOWN)
			px_must(unlink(name), name);
		else
			px_remove(name);
	}
	if (d)
		closedir(d);
}

void px_remove(const char *path)
{
	if (!unlink(path) || errno == ENOENT)
		return;
	px_remove_below(path);
	if (rmdir(path) < 0 && errno != ENOENT)
		px_must(-1, path);
}

void px_fresh(void)
{
	struct stat st;

	/* Usually only what is in it has changed. */
	if (!lstat(PX_W, &st) && st.st_mode == (S_IFDIR | 0777)) {
		px_remove_below(PX_W);
		return;
	}
	px_remove(PX_W);
	px_must(mkdir(PX_W, 0777), "make a folder");
	px_must(chmod(PX_W, 0777), "open a folder");
}

void px_file(const char *path, const char *content, mode_t mode)
{
	int fd = (int)px_must(open(path, O_WRONLY | O_CREAT | O_EXCL, 0600), path);

	px_must(write(fd, content, strlen(content)), "write");
	px_must(fchmod(fd, mode), "set a mode");
	close(fd);
}

static void px_make_socket(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = (int)px_must(socket(AF_UNIX, SOCK_STREAM, 0), "make a socket");

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	px_must(bind(fd, (struct sockaddr *)&a, sizeof(a)), "bind a socket");
	close(fd);
}

static void px_make_link(enum px_type type, const char *path)
{
	const char *base = strrchr(path, '/');
	char target[PX_PATH_MAX], beside[PX_PATH_MAX];

	base = base ? base + 1 : path;
	snprintf(target, sizeof(target), "%s%s", base, type == PX_LINK_SELF ? "" : ".t");
	snprintf(beside, sizeof(beside), "%s.t", path);
	px_must(symlink(target, path), "make a link");
	if (type == PX_LINK_REG)
		px_file(beside, "target", 0644);
	else if (type == PX_LINK_DIR)
		px_must(mkdir(beside, 0755), "make a link's target");
}

void px_make(enum px_type type, const char *path)
{
	char inside[PX_PATH_MAX];

	switch (type) {
	case PX_REG:
		px_file(path, "content", 0644);
		return;
	case PX_DIR_EMPTY:
	case PX_DIR_FULL:
		px_must(mkdir(path, 0755), path);
		if (type == PX_DIR_EMPTY)
			return;
		snprintf(inside, sizeof(inside), "%s/in", path);
		px_file(inside, "inside", 0644);
		return;
	case PX_LINK_REG:
	case PX_LINK_DIR:
	case PX_LINK_NONE:
	case PX_LINK_SELF:
		px_make_link(type, path);
		return;
	case PX_FIFO:
		px_must(mkfifo(path, 0644), "make a fifo");
		return;
	case PX_SOCKET:
		px_make_socket(path);
		return;
	case PX_CHAR:
		/* Leads nowhere and may be made everywhere but on overlayfs, to which it is a whiteout. */
		if (mknod(path, S_IFCHR | 0644, makedev(0, 0)) < 0)
			px_must(mknod(path, S_IFCHR | 0644, makedev(1, 3)), "make a device");
		return;
	case PX_NONE:
	case PX_TYPES:
		return;
	}
}

static const char *px_kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "folder";
	case S_IFLNK:
		return "link";
	case S_IFIFO:
		return "fifo";
	case S_IFSOCK:
		return "socket";
	case S_IFCHR:
		return "char";
	default:
		return "?";
	}
}

void px_describe(const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0) {
		px_note("[%s]", strerrorname_np(errno));
		return;
	}
	px_note("[%s %o %u:%u n%lu", px_kind(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid,
		(unsigned long)st.st_nlink);
	/* A folder's size is its file system's affair. */
	if (S_ISDIR(st.st_mode))
		px_add("]");
	else
		px_add(" s%ld]", (long)st.st_size);
}

void px_content(const char *path)
{
	char text[65] = "";
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	for (ssize_t i = 0; i < n; i++)
		text[i] = (char)(text[i] ? text[i] : '0');
	px_note("'%s'", text);
}

void px_in_child(int (*fn)(void *), void *arg)
{
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = (pid_t)px_must(fork(), "fork");
	if (!pid)
		_exit(fn(arg));
	px_must(waitpid(pid, &status, 0), "wait");
	if (WIFSIGNALED(status))
		px_note("SIG%s", sigabbrev_np(WTERMSIG(status)));
	else
		px_note("%s", WEXITSTATUS(status) ? strerrorname_np(WEXITSTATUS(status)) : "ok");
}
