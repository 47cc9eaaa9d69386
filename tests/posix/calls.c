/* Every call, on every type of file, by every form of its name; and names that cannot be followed. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

struct px_call {
	const char *name;
	long (*fn)(const char *path);
	bool changes; /* what is there, when it succeeds */
};

static long px_closed(long fd)
{
	if (fd >= 0)
		close((int)fd);
	return fd < 0 ? -1 : 0;
}

static long px_stat(const char *p)
{
	struct stat st;

	return stat(p, &st);
}

static long px_lstat(const char *p)
{
	struct stat st;

	return lstat(p, &st);
}

static long px_access(const char *p)
{
	return access(p, W_OK);
}

static long px_access_x(const char *p)
{
	return access(p, X_OK);
}

static long px_open_r(const char *p)
{
	return px_closed(open(p, O_RDONLY | O_NONBLOCK));
}

static long px_open_w(const char *p)
{
	return px_closed(open(p, O_WRONLY | O_NONBLOCK));
}

static long px_open_rw(const char *p)
{
	return px_closed(open(p, O_RDWR | O_NONBLOCK));
}

static long px_open_creat(const char *p)
{
	return px_closed(open(p, O_RDWR | O_CREAT | O_NONBLOCK, 0640));
}

static long px_open_excl(const char *p)
{
	return px_closed(open(p, O_WRONLY | O_CREAT | O_EXCL | O_NONBLOCK, 0640));
}

static long px_open_trunc(const char *p)
{
	return px_closed(open(p, O_WRONLY | O_TRUNC | O_NONBLOCK));
}

static long px_open_creat_trunc(const char *p)
{
	return px_closed(open(p, O_RDWR | O_CREAT | O_TRUNC | O_NONBLOCK, 0604));
}

static long px_open_dir(const char *p)
{
	return px_closed(open(p, O_RDONLY | O_DIRECTORY | O_NONBLOCK));
}

static long px_open_nofollow(const char *p)
{
	return px_closed(open(p, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
}

static long px_open_path(const char *p)
{
	return px_closed(open(p, O_PATH));
}

static long px_open_path_nofollow(const char *p)
{
	return px_closed(open(p, O_PATH | O_NOFOLLOW));
}

static long px_open_tmpfile(const char *p)
{
	return px_closed(open(p, O_TMPFILE | O_WRONLY, 0600));
}

static long px_chmod(const char *p)
{
	return chmod(p, 0751);
}

static long px_chown(const char *p)
{
	return chown(p, 5, 6);
}

static long px_lchown(const char *p)
{
	return lchown(p, 7, 8);
}

static long px_truncate(const char *p)
{
	return truncate(p, 0);
}

static long px_truncate_more(const char *p)
{
	return truncate(p, 10000);
}

static long px_utimens(const char *p)
{
	return utimensat(AT_FDCWD, p, NULL, 0);
}

static long px_utimens_nofollow(const char *p)
{
	return utimensat(AT_FDCWD, p, NULL, AT_SYMLINK_NOFOLLOW);
}

static long px_mkdir(const char *p)
{
	return mkdir(p, 0750);
}

static long px_mkfifo(const char *p)
{
	return mkfifo(p, 0640);
}

static long px_mknod(const char *p)
{
	return mknod(p, S_IFREG | 0640, 0);
}

static long px_symlink(const char *p)
{
	return symlink("f", p);
}

static long px_link_of(const char *p)
{
	return link(p, PX_W "/n");
}

static long px_link_follow(const char *p)
{
	return linkat(AT_FDCWD, p, AT_FDCWD, PX_W "/n", AT_SYMLINK_FOLLOW);
}

static long px_link_as(const char *p)
{
	return link(PX_W "/f", p);
}

static long px_rename_of(const char *p)
{
	return rename(p, PX_W "/n");
}

static long px_rename_file_to(const char *p)
{
	return rename(PX_W "/f", p);
}

static long px_rename_folder_to(const char *p)
{
	return rename(PX_W "/d", p);
}

static long px_rename_noreplace_to(const char *p)
{
	return renameat2(AT_FDCWD, PX_W "/f", AT_FDCWD, p, RENAME_NOREPLACE);
}

static long px_rename_exchange(const char *p)
{
	return renameat2(AT_FDCWD, PX_W "/f", AT_FDCWD, p, RENAME_EXCHANGE);
}

static long px_unlink(const char *p)
{
	return unlink(p);
}

static long px_rmdir(const char *p)
{
	return rmdir(p);
}

static long px_readlink(const char *p)
{
	char text[64];

	return readlink(p, text, sizeof(text));
}

static long px_opendir(const char *p)
{
	char text[1024];
	int fd = open(p, O_RDONLY | O_NONBLOCK);
	long r = fd < 0 ? -1 : syscall(SYS_getdents64, fd, text, sizeof(text));
	int saved = errno;

	px_closed(fd);
	errno = saved;
	return r < 0 ? -1 : 0;
}

static long px_getxattr(const char *p)
{
	char text[64];

	return getxattr(p, "user.px", text, sizeof(text));
}

static long px_lgetxattr(const char *p)
{
	char text[64];

	return lgetxattr(p, "user.px", text, sizeof(text));
}

static long px_setxattr(const char *p)
{
	return setxattr(p, "user.px", "v", 1, 0);
}

static long px_lsetxattr(const char *p)
{
	return lsetxattr(p, "user.px", "v", 1, 0);
}

static long px_removexattr(const char *p)
{
	return removexattr(p, "user.px");
}

static long px_listxattr(const char *p)
{
	char text[256];

	return listxattr(p, text, sizeof(text));
}

static long px_llistxattr(const char *p)
{
	char text[256];

	return llistxattr(p, text, sizeof(text));
}

static long px_get_acl(const char *p)
{
	char text[256];

	return getxattr(p, "system.posix_acl_access", text, sizeof(text));
}

static long px_statvfs(const char *p)
{
	struct statvfs st;

	return statvfs(p, &st);
}

static long px_chdir(const char *p)
{
	int back = (int)px_must(open(".", O_PATH), "open the working folder");
	long r = chdir(p);
	int saved = errno;

	px_must(fchdir(back), "go back");
	close(back);
	errno = saved;
	return r;
}

static long px_watch(const char *p)
{
	int fd = (int)px_must(inotify_init1(0), "make an inotify descriptor");
	long r = inotify_add_watch(fd, p, IN_MODIFY);
	int saved = errno;

	close(fd);
	errno = saved;
	return r < 0 ? -1 : 0;
}

/* Those that may end what is there come last, so that the object is made anew less often. */
static const struct px_call px_calls[] = {
	{"stat", px_stat, false},
	{"lstat", px_lstat, false},
	{"access", px_access, false},
	{"access-x", px_access_x, false},
	{"open-r", px_open_r, false},
	{"open-w", px_open_w, false},
	{"open-rw", px_open_rw, false},
	{"open-dir", px_open_dir, false},
	{"open-nofollow", px_open_nofollow, false},
	{"open-path", px_open_path, false},
	{"open-path-nofollow", px_open_path_nofollow, false},
	{"open-tmpfile", px_open_tmpfile, false},
	{"readlink", px_readlink, false},
	{"getdents", px_opendir, false},
	{"getxattr", px_getxattr, false},
	{"lgetxattr", px_lgetxattr, false},
	{"listxattr", px_listxattr, false},
	{"llistxattr", px_llistxattr, false},
	{"get-acl", px_get_acl, false},
	{"statvfs", px_statvfs, false},
	{"chdir", px_chdir, false},
	{"inotify", px_watch, false},
	{"utimens", px_utimens, false},
	{"utimens-nofollow", px_utimens_nofollow, false},
	{"removexattr", px_removexattr, true},
	{"setxattr", px_setxattr, true},
	{"lsetxattr", px_lsetxattr, true},
	{"chmod", px_chmod, true},
	{"chown", px_chown, true},
	{"lchown", px_lchown, true},
	{"open-creat", px_open_creat, true},
	{"open-excl", px_open_excl, true},
	{"open-trunc", px_open_trunc, true},
	{"open-creat-trunc", px_open_creat_trunc, true},
	{"truncate", px_truncate, true},
	{"truncate-more", px_truncate_more, true},
	{"mkdir", px_mkdir, true},
	{"mkfifo", px_mkfifo, true},
	{"mknod", px_mknod, true},
	{"symlink", px_symlink, true},
	{"link-of", px_link_of, true},
	{"link-follow", px_link_follow, true},
	{"link-as", px_link_as, true},
	{"rename-of", px_rename_of, true},
	{"rename-file-to", px_rename_file_to, true},
	{"rename-folder-to", px_rename_folder_to, true},
	{"rename-noreplace-to", px_rename_noreplace_to, true},
	{"rename-exchange", px_rename_exchange, true},
	{"unlink", px_unlink, true},
	{"rmdir", px_rmdir, true},
};

/* How a name is written; the object is o. */
static const struct {
	const char *name, *path;
} px_forms[] = {
	{"plain", PX_W "/o"},	    {"slash", PX_W "/o/"},	 {"dot", PX_W "/o/."},
	{"dotdot", PX_W "/o/../o"}, {"below", PX_W "/o/x"},	 {"link", PX_W "/l"},
	{"link-slash", PX_W "/l/"}, {"link-below", PX_W "/l/x"},
};

static void px_set_scene(enum px_type type)
{
	px_fresh();
	px_make(type, PX_W "/o");
	px_must(symlink("o", PX_W "/l"), "make a link");
	px_file(PX_W "/f", "file", 0600);
	px_must(mkdir(PX_W "/d", 0700), "make a folder");
}

static void px_one_call(const struct px_call *c, const char *form, const char *path,
			enum px_type type)
{
	static enum px_type scene = PX_TYPES;
	long r;

	if (!px_turn())
		return;
	if (scene != type)
		px_set_scene(type);
	scene = type;
	px_check("calls/%s/%s/%s", px_type_names[type], form, c->name);
	r = px_result(c->fn(path));
	if (c->changes) {
		px_describe(PX_W "/o");
		px_describe(PX_W "/l");
		px_describe(PX_W "/n");
	}
	px_done();
	if (r >= 0 && c->changes)
		scene = PX_TYPES;
}

void px_table_calls(void)
{
	for (int type = 0; type < PX_TYPES; type++) {
		for (size_t form = 0; form < PX_SIZE(px_forms); form++) {
			for (size_t i = 0; i < PX_SIZE(px_calls); i++)
				px_one_call(&px_calls[i], px_forms[form].name, px_forms[form].path,
					    (enum px_type)type);
		}
	}
	px_fresh();
}

/* Links to links, so many that the last can just be followed, or just not. */
static void px_make_chain(const char *name, int links)
{
	char from[64], to[64];

	snprintf(to, sizeof(to), "f");
	for (int i = 1; i <= links; i++) {
		snprintf(from, sizeof(from), PX_W "/%s%d", name, i);
		px_must(symlink(to, from), "make a chain of links");
		snprintf(to, sizeof(to), "%s%d", name, i);
	}
}

/* A name of exactly `len` bytes whose last component is "f" in PX_W: "w/./././f". */
static void px_long_path(char *path, size_t len)
{
	size_t at = strlen(PX_W "/");

	memcpy(path, PX_W "/", at);
	if ((len - at - 1) % 2)
		path[at++] = '/';
	for (; at < len - 1; at += 2)
		memcpy(path + at, "./", 2);
	path[at++] = 'f';
	path[at] = 0;
}

struct px_odd_path {
	const char *name;
	char path[PX_PATH_MAX];
};

static size_t px_odd_paths(struct px_odd_path *p)
{
	size_t n = 0;
	char component[300];

	p[n++] = (struct px_odd_path){"empty", ""};
	p[n++] = (struct px_odd_path){"missing", PX_W "/no/x"};
	p[n++] = (struct px_odd_path){"missing-slash", PX_W "/no/"};
	p[n++] = (struct px_odd_path){"through-file", PX_W "/f/x"};
	p[n++] = (struct px_odd_path){"through-file-up", PX_W "/f/../f"};
	p[n++] = (struct px_odd_path){"chain-40", PX_W "/c40"};
	p[n++] = (struct px_odd_path){"chain-41", PX_W "/c41"};
	p[n++] = (struct px_odd_path){"loop-below", PX_W "/self/x"};
	p[n++] = (struct px_odd_path){"dot", PX_W "/."};
	p[n++] = (struct px_odd_path){"slashes", PX_W "///f"};
	memset(component, 'n', sizeof(component));
	for (int len = 255; len <= 256; len++) {
		p[n].name = len == 255 ? "component-255" : "component-256";
		snprintf(p[n++].path, PX_PATH_MAX, PX_W "/%.*s", len, component);
		p[n].name = len == 255 ? "through-255" : "through-256";
		snprintf(p[n++].path, PX_PATH_MAX, PX_W "/%.*s/x", len, component);
	}
	p[n].name = "path-4095";
	px_long_path(p[n++].path, 4095);
	p[n].name = "path-4096";
	px_long_path(p[n++].path, 4096);
	return n;
}

void px_table_paths(void)
{
	static struct px_odd_path paths[24];
	size_t nr = px_odd_paths(paths);
	bool anew = true;

	for (size_t p = 0; p < nr; p++) {
		for (size_t i = 0; i < PX_SIZE(px_calls); i++) {
			if (!px_turn())
				continue;
			if (anew) {
				px_fresh();
				px_file(PX_W "/f", "file", 0644);
				px_must(mkdir(PX_W "/d", 0700), "make a folder");
				px_must(symlink("self", PX_W "/self"), "make a loop");
				px_make_chain("c", 41);
			}
			px_check("paths/%s/%s", paths[p].name, px_calls[i].name);
			anew = px_result(px_calls[i].fn(paths[p].path)) >= 0 && px_calls[i].changes;
			px_describe(PX_W "/f");
			px_done();
		}
	}
	px_fresh();
}
