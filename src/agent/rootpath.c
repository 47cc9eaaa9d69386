/*
 * In-root path resolution; see rootpath.h.
 *
 * The common case is one openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS). Only when something is missing
 * the walker below goes component by component: each step opens one name with O_NOFOLLOW relative to a
 * descriptor that is inside the root, links are expanded as text with the root as their "/", and ".." is
 * taken from the text already walked, which holds no links. So no step can leave the root, whoever
 * changes the tree meanwhile; the worst a race does is an error.
 */
#include "rootpath.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "agent_sys.h"
#include "cleanup.h"

#define ROOTPATH_LINKS_MAX 40

struct rootpath_walk {
	int root_fd;		 /* borrowed */
	int cur_fd;		 /* owned: what `done` names */
	char done[PATH_MAX];	 /* walked so far, below the root, no links, "" = the root */
	char todo[2 * PATH_MAX]; /* still to walk */
	int nr_links;
	enum rootpath_kind kind;
};

int rootpath_open(int root_fd, const char *path, int flags)
{
	int fd = sys_openat2(root_fd, path, (uint64_t)flags | O_CLOEXEC, 0,
			     RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);

	return fd < 0 ? -errno : fd;
}

static int rootpath_reopen(struct rootpath_walk *w)
{
	int fd = sys_openat2(w->root_fd, w->done[0] ? w->done : ".", O_PATH | O_CLOEXEC, 0,
			     RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);

	if (fd < 0)
		return -errno;
	close(w->cur_fd);
	w->cur_fd = fd;
	return 0;
}

/* Cuts the next component off todo; "" at the end. */
static void rootpath_next(struct rootpath_walk *w, char ret[NAME_MAX + 2])
{
	size_t skip = strspn(w->todo, "/");
	size_t len = strcspn(w->todo + skip, "/");
	size_t keep = len < NAME_MAX + 1 ? len : NAME_MAX + 1; /* over-long: the kernel says so */

	memcpy(ret, w->todo + skip, keep);
	ret[keep] = '\0';
	skip += len;
	memmove(w->todo, w->todo + skip, strlen(w->todo + skip) + 1);
}

static int rootpath_up(struct rootpath_walk *w)
{
	char *slash = strrchr(w->done, '/');

	if (slash)
		*slash = '\0';
	else
		w->done[0] = '\0';
	return rootpath_reopen(w);
}

/* fd is a symbolic link: its text goes in front of what is still to walk. */
static int rootpath_expand(struct rootpath_walk *w, int fd)
{
	char link[PATH_MAX], rest[sizeof(w->todo)];
	struct statfs fs;
	ssize_t len;
	int n;

	if (++w->nr_links > ROOTPATH_LINKS_MAX)
		return -ELOOP;
	/* Links of procfs may be magic, and none is a place to create something. */
	if (fstatfs(fd, &fs))
		return -errno;
	if (fs.f_type == PROC_SUPER_MAGIC)
		return -ELOOP;
	len = readlinkat(fd, "", link, sizeof(link) - 1);
	if (len < 0)
		return -errno;
	link[len] = '\0';
	memcpy(rest, w->todo, sizeof(rest));
	n = snprintf(w->todo, sizeof(w->todo), "%s/%s", link, rest);
	if (n < 0 || (size_t)n >= sizeof(w->todo))
		return -ENAMETOOLONG;
	if (link[0] != '/')
		return 0;
	w->done[0] = '\0';
	return rootpath_reopen(w);
}

static bool rootpath_is_last(const struct rootpath_walk *w)
{
	return w->todo[strspn(w->todo, "/")] == '\0';
}

static int rootpath_create(struct rootpath_walk *w, const char *name)
{
	if (!rootpath_is_last(w) || w->kind == ROOTPATH_DIR)
		return mkdirat(w->cur_fd, name, 0755) ? -errno : 0;
	return mknodat(w->cur_fd, name, S_IFREG | 0644, 0) ? -errno : 0;
}

static int rootpath_enter(struct rootpath_walk *w, int fd, const char *name)
{
	size_t len = strlen(w->done);
	int n = snprintf(w->done + len, sizeof(w->done) - len, "%s%s", len ? "/" : "", name);

	if (n < 0 || (size_t)n >= sizeof(w->done) - len) {
		close(fd);
		return -ENAMETOOLONG;
	}
	close(w->cur_fd);
	w->cur_fd = fd;
	return 0;
}

static int rootpath_step(struct rootpath_walk *w, const char *name)
{
	cleanup_close int fd = -1;
	struct stat st;
	int r;

	if (!strcmp(name, "."))
		return 0;
	if (!strcmp(name, ".."))
		return rootpath_up(w);
	fd = openat(w->cur_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		r = rootpath_create(w, name);
		if (r && r != -EEXIST)
			return r;
		fd = openat(w->cur_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	}
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st))
		return -errno;
	if (S_ISLNK(st.st_mode))
		return rootpath_expand(w, fd);
	if (!S_ISDIR(st.st_mode) && !rootpath_is_last(w))
		return -ENOTDIR;
	return rootpath_enter(w, take_fd(&fd), name);
}

static int rootpath_walk_make(int root_fd, const char *path, enum rootpath_kind kind)
{
	struct rootpath_walk w = {.root_fd = root_fd, .kind = kind};
	char name[NAME_MAX + 2];
	int r;

	if (strlen(path) >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(w.todo, path, strlen(path) + 1);
	w.cur_fd = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (w.cur_fd < 0)
		return -errno;
	for (rootpath_next(&w, name); name[0]; rootpath_next(&w, name)) {
		r = rootpath_step(&w, name);
		if (r) {
			close(w.cur_fd);
			return r;
		}
	}
	return w.cur_fd;
}

int rootpath_make(int root_fd, const char *path, enum rootpath_kind kind, struct err *err)
{
	cleanup_close int fd = rootpath_open(root_fd, path, O_PATH);
	struct stat st;

	if (fd == -ENOENT)
		fd = rootpath_walk_make(root_fd, path, kind);
	if (fd < 0)
		return err_set(err, fd, "'%s' in the container's root", path);
	if (fstat(fd, &st))
		return err_set(err, -errno, "stat '%s' in the container's root", path);
	if (kind == ROOTPATH_DIR && !S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "'%s' in the container's root", path);
	if (kind == ROOTPATH_FILE && S_ISDIR(st.st_mode))
		return err_set(err, -EISDIR, "'%s' in the container's root", path);
	return take_fd(&fd);
}

int rootpath_make_parent(int root_fd, const char *path, const char **ret_name, struct err *err)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];
	int n;

	*ret_name = slash ? slash + 1 : path;
	if (!**ret_name || !strcmp(*ret_name, ".") || !strcmp(*ret_name, ".."))
		return err_say(err, -EINVAL, "'%s' names no file", path);
	n = snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) : 0, path);
	if (n < 0 || (size_t)n >= sizeof(dir))
		return err_set(err, -ENAMETOOLONG, "'%.64s'", path);
	return rootpath_make(root_fd, n ? dir : ".", ROOTPATH_DIR, err);
}
