/* Calls relative to a descriptor, their flags, and every combination of flags of open(). */
#include "posix.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/openat2.h>

/* p is relative to fd. */
struct px_at {
	const char *name;
	long (*fn)(int fd, const char *p, int flags);
};

static long at_open(int fd, const char *p, int flags)
{
	int r = openat(fd, p, O_RDONLY | O_NONBLOCK);

	(void)flags;
	if (r < 0)
		return -1;
	close(r);
	return 0;
}

static long at_create(int fd, const char *p, int flags)
{
	int r = openat(fd, p, O_WRONLY | O_CREAT | O_NONBLOCK, 0600);

	(void)flags;
	if (r < 0)
		return -1;
	close(r);
	return 0;
}

static long at_stat(int fd, const char *p, int flags)
{
	struct stat st;

	return syscall(SYS_newfstatat, fd, p, &st, flags);
}

static long at_statx(int fd, const char *p, int flags)
{
	struct statx st;
	long r = statx(fd, p, flags, STATX_BASIC_STATS | STATX_BTIME, &st);

	if (!r && (st.stx_mask & STATX_BASIC_STATS) != STATX_BASIC_STATS) {
		errno = ENODATA;
		return -1;
	}
	return r;
}

static long at_access(int fd, const char *p, int flags)
{
	return syscall(SYS_faccessat2, fd, p, R_OK, flags);
}

static long at_chmod(int fd, const char *p, int flags)
{
	(void)flags;
	return syscall(SYS_fchmodat, fd, p, 0755);
}

static long at_chown(int fd, const char *p, int flags)
{
	return fchownat(fd, p, 0, 0, flags);
}

static long at_utimens(int fd, const char *p, int flags)
{
	return syscall(SYS_utimensat, fd, p, NULL, flags);
}

static long at_mkdir(int fd, const char *p, int flags)
{
	(void)flags;
	return mkdirat(fd, p, 0755);
}

static long at_mknod(int fd, const char *p, int flags)
{
	(void)flags;
	return mknodat(fd, p, S_IFIFO | 0644, 0);
}

static long at_symlink(int fd, const char *p, int flags)
{
	(void)flags;
	return symlinkat("f", fd, p);
}

static long at_readlink(int fd, const char *p, int flags)
{
	char b[64];

	(void)flags;
	return readlinkat(fd, p, b, sizeof(b));
}

static long at_link_of(int fd, const char *p, int flags)
{
	return linkat(fd, p, AT_FDCWD, PX_W "/n", flags);
}

static long at_link_as(int fd, const char *p, int flags)
{
	return linkat(AT_FDCWD, PX_W "/f", fd, p, flags);
}

static long at_rename_of(int fd, const char *p, int flags)
{
	(void)flags;
	return renameat(fd, p, AT_FDCWD, PX_W "/n");
}

static long at_rename_as(int fd, const char *p, int flags)
{
	(void)flags;
	return renameat(AT_FDCWD, PX_W "/f", fd, p);
}

static long at_unlink(int fd, const char *p, int flags)
{
	return unlinkat(fd, p, flags);
}

static const struct px_at px_ats[] = {
	{"open", at_open},	     {"create", at_create},   {"stat", at_stat},
	{"statx", at_statx},	     {"access", at_access},   {"chmod", at_chmod},
	{"chown", at_chown},	     {"utimens", at_utimens}, {"mkdir", at_mkdir},
	{"mknod", at_mknod},	     {"symlink", at_symlink}, {"readlink", at_readlink},
	{"link-of", at_link_of},     {"link-as", at_link_as}, {"rename-of", at_rename_of},
	{"rename-as", at_rename_as}, {"unlink", at_unlink},
};

static void px_at_scene(void)
{
	px_fresh();
	px_file(PX_W "/f", "file", 0644);
	px_must(mkdir(PX_W "/d", 0755), "make a folder");
	px_file(PX_W "/d/x", "inside", 0644);
	px_must(symlink("x", PX_W "/d/s"), "make a link");
}

/* Kinds of descriptors to be relative to. */
static int px_at_fd(int kind)
{
	switch (kind) {
	case 0:
		return (int)px_must(open(PX_W "/d", O_RDONLY | O_DIRECTORY), "open");
	case 1:
		return (int)px_must(open(PX_W "/d", O_PATH), "open");
	case 2:
		return (int)px_must(open(PX_W "/f", O_RDONLY), "open");
	case 3:
		return (int)px_must(open(PX_W "/f", O_PATH), "open");
	case 4:
		return -1;
	case 5:
		return (int)px_must(open(PX_W "/d/s", O_PATH | O_NOFOLLOW), "open");
	default:
		return 999;
	}
}

static void px_at_line(const struct px_at *a, int kind, const char *name, int flags,
		       const char *flags_name)
{
	static const char *const kinds[] = {"folder", "path-folder", "file",  "path-file",
					    "none",   "path-link",   "closed"};
	int fd;

	if (!px_turn())
		return;
	px_at_scene();
	fd = px_at_fd(kind);
	px_check("at/%s/%s/%s/%s", a->name, kinds[kind], *name ? name : "empty", flags_name);
	px_result(a->fn(fd, name, flags));
	if (fd >= 0 && fd < 999)
		close(fd);
	px_describe(PX_W "/d/x");
	px_describe(PX_W "/n");
	px_done();
}

void px_table_at(void)
{
	static const char *const names[] = {"x", "new", "s", "../f", "."};
	static const struct {
		const char *name;
		int flags;
	} flags[] = {{"0", 0},
		     {"nofollow", AT_SYMLINK_NOFOLLOW},
		     {"follow", AT_SYMLINK_FOLLOW},
		     {"removedir", AT_REMOVEDIR},
		     {"unknown", 0x80000}};

	for (size_t i = 0; i < PX_SIZE(px_ats); i++) {
		for (int kind = 0; kind < 7; kind++) {
			for (size_t n = 0; n < PX_SIZE(names); n++) {
				/* All names for folders; one tells enough about the rest. */
				if (kind < 2 || n == 0)
					px_at_line(&px_ats[i], kind, names[n], 0, "0");
			}
			px_at_line(&px_ats[i], kind, "", AT_EMPTY_PATH, "empty-path");
		}
		for (size_t f = 1; f < PX_SIZE(flags); f++) {
			px_at_line(&px_ats[i], 0, "s", flags[f].flags, flags[f].name);
			px_at_line(&px_ats[i], 0, "x", flags[f].flags, flags[f].name);
		}
	}
	px_fresh();
}

/* --- open() --------------------------------------------------------------------------------------------- */

static void px_open_flags(enum px_type type)
{
	static const int bits[] = {O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY, O_NOFOLLOW, O_APPEND};

	for (int n = 0; n < 3 << PX_SIZE(bits); n++) {
		int flags = n % 3 | O_NONBLOCK, fd;

		for (size_t b = 0; b < PX_SIZE(bits); b++)
			flags |= n / 3 >> b & 1 ? bits[b] : 0;
		/* What comes of O_CREAT and O_DIRECTORY together is the kernel's version's affair. */
		if ((flags & (O_CREAT | O_DIRECTORY)) == (O_CREAT | O_DIRECTORY))
			continue;
		if (!px_turn())
			continue;
		px_fresh();
		px_make(type, PX_W "/o");
		px_check("open/%s/%s%s%s%s%s%s%s", px_type_names[type],
			 n % 3 == 0   ? "r"
			 : n % 3 == 1 ? "w"
				      : "rw",
			 flags & O_CREAT ? "+creat" : "", flags & O_EXCL ? "+excl" : "",
			 flags & O_TRUNC ? "+trunc" : "",
			 (flags & O_DIRECTORY) == O_DIRECTORY ? "+directory" : "",
			 flags & O_NOFOLLOW ? "+nofollow" : "", flags & O_APPEND ? "+append" : "");
		fd = open(PX_W "/o", flags, 0642);
		px_result(fd);
		if (fd >= 0 && (n % 3) && type != PX_FIFO)
			px_number(write(fd, "w", 1));
		if (fd >= 0)
			close(fd);
		px_describe(PX_W "/o");
		px_content(PX_W "/o");
		px_done();
	}
}

/* open() with other flags, by themselves. */
static void px_open_others(void)
{
	static const struct {
		const char *name;
		int flags;
	} others[] = {
		{"sync", O_RDWR | O_SYNC},	     {"dsync", O_RDWR | O_DSYNC},
		{"noatime", O_RDONLY | O_NOATIME},   {"largefile", O_RDWR | O_LARGEFILE},
		{"nonblock", O_RDWR | O_NONBLOCK},   {"async", O_RDWR | O_ASYNC},
		{"noctty", O_RDWR | O_NOCTTY},	     {"accmode-3", O_ACCMODE},
		{"path-write", O_PATH | O_WRONLY},   {"path-trunc", O_PATH | O_TRUNC},
		{"tmpfile-r", O_TMPFILE | O_RDONLY}, {"unknown", O_RDONLY | 0x20000000},
		{"excl-alone", O_RDWR | O_EXCL},
	};

	for (size_t i = 0; i < PX_SIZE(others); i++) {
		for (int type = PX_REG; type < PX_TYPES; type++) {
			int fd;

			px_fresh();
			px_make((enum px_type)type, PX_W "/o");
			px_check("open/%s/other/%s", px_type_names[type], others[i].name);
			fd = open(PX_W "/o", others[i].flags | O_NONBLOCK);
			px_result(fd);
			if (fd >= 0)
				close(fd);
			px_describe(PX_W "/o");
			px_done();
		}
	}
}

static void px_open_resolve(void)
{
	static const struct {
		const char *name;
		unsigned long long resolve;
	} rules[] = {{"beneath", RESOLVE_BENEATH},	{"in-root", RESOLVE_IN_ROOT},
		     {"no-links", RESOLVE_NO_SYMLINKS}, {"no-magic", RESOLVE_NO_MAGICLINKS},
		     {"no-xdev", RESOLVE_NO_XDEV},	{"unknown", 0x800}};
	static const char *const names[] = {"d/x", "d/s", "d/../f", "../w/f", "/", "none"};

	for (size_t r = 0; r < PX_SIZE(rules); r++) {
		for (size_t n = 0; n < PX_SIZE(names); n++) {
			struct open_how how = {.flags = O_RDONLY, .resolve = rules[r].resolve};
			int top;
			long fd;

			px_at_scene();
			top = (int)px_must(open(PX_W, O_PATH), "open");
			px_check("open/resolve/%s/%s", rules[r].name, names[n]);
			fd = syscall(SYS_openat2, top, names[n], &how, sizeof(how));
			px_result(fd);
			if (fd >= 0)
				close((int)fd);
			close(top);
			px_done();
		}
	}
}

/* Sockets and fifos are meeting points. */
static void px_open_meeting_points(void)
{
	for (int type = PX_NONE; type < PX_TYPES; type++) {
		struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = PX_W "/o"};
		int s = (int)px_must(socket(AF_UNIX, SOCK_STREAM, 0), "make a socket");

		px_fresh();
		px_make((enum px_type)type, PX_W "/o");
		px_check("open/%s/connect", px_type_names[type]);
		px_result(connect(s, (struct sockaddr *)&a, sizeof(a)));
		px_done();
		px_check("open/%s/bind", px_type_names[type]);
		px_result(bind(s, (struct sockaddr *)&a, sizeof(a)));
		px_describe(PX_W "/o");
		if (type == PX_NONE) {
			int c = (int)px_must(socket(AF_UNIX, SOCK_STREAM, 0), "make a socket");

			px_result(listen(s, 1));
			px_result(connect(c, (struct sockaddr *)&a, sizeof(a)));
			close(c);
		}
		px_done();
		close(s);
	}
}

void px_table_open(void)
{
	static const enum px_type types[] = {PX_NONE,	  PX_REG,	PX_DIR_EMPTY, PX_LINK_REG,
					     PX_LINK_DIR, PX_LINK_NONE, PX_FIFO};

	for (size_t t = 0; t < PX_SIZE(types); t++)
		px_open_flags(types[t]);
	px_open_others();
	px_open_resolve();
	px_open_meeting_points();
	px_fresh();
}
