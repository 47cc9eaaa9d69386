/* Who may do what: modes of files and folders, sticky folders, owners; and what owners may set. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

struct px_act {
	const char *name;
	long (*fn)(const char *path);
	bool changes;
};

static long act_open(const char *p, int flags)
{
	int fd = open(p, flags | O_NONBLOCK, 0600);

	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

static long act_read(const char *p)
{
	return act_open(p, O_RDONLY);
}

static long act_write(const char *p)
{
	return act_open(p, O_WRONLY);
}

static long act_both(const char *p)
{
	return act_open(p, O_RDWR);
}

static long act_noatime(const char *p)
{
	return act_open(p, O_RDONLY | O_NOATIME);
}

static long act_open_trunc(const char *p)
{
	return act_open(p, O_RDONLY | O_TRUNC);
}

static long act_access_r(const char *p)
{
	return faccessat(AT_FDCWD, p, R_OK, AT_EACCESS);
}

static long act_access_w(const char *p)
{
	return faccessat(AT_FDCWD, p, W_OK, AT_EACCESS);
}

static long act_access_x(const char *p)
{
	return faccessat(AT_FDCWD, p, X_OK, AT_EACCESS);
}

static long act_truncate(const char *p)
{
	return truncate(p, 3);
}

static long act_chmod(const char *p)
{
	struct stat st;

	return lstat(p, &st) < 0 ? -1 : chmod(p, st.st_mode & 07777);
}

static long act_utime_now(const char *p)
{
	return utimensat(AT_FDCWD, p, NULL, 0);
}

static long act_utime_set(const char *p)
{
	const struct timespec t[2] = {{1000000000, 1}, {1000000001, 2}};

	return utimensat(AT_FDCWD, p, t, 0);
}

static long act_utime_one(const char *p)
{
	const struct timespec t[2] = {{0, UTIME_NOW}, {0, UTIME_OMIT}};

	return utimensat(AT_FDCWD, p, t, 0);
}

static long act_setxattr(const char *p)
{
	return setxattr(p, "user.a", "1", 1, 0);
}

static long act_getxattr(const char *p)
{
	char v[16];

	return getxattr(p, "user.there", v, sizeof(v));
}

static long act_link(const char *p)
{
	long r = link(p, PX_W "/link");
	int saved = errno;

	if (!r)
		unlink(PX_W "/link");
	errno = saved;
	return r;
}

static const struct px_act px_file_acts[] = {
	{"read", act_read, false},
	{"write", act_write, false},
	{"read-write", act_both, false},
	{"noatime", act_noatime, false},
	{"open-trunc", act_open_trunc, false},
	{"access-r", act_access_r, false},
	{"access-w", act_access_w, false},
	{"access-x", act_access_x, false},
	{"truncate", act_truncate, false},
	{"chmod", act_chmod, false},
	{"utime-now", act_utime_now, false},
	{"utime-set", act_utime_set, false},
	{"utime-one", act_utime_one, false},
	{"setxattr", act_setxattr, false},
	{"getxattr", act_getxattr, false},
	{"link", act_link, false},
};

void px_table_access(void)
{
	static const mode_t modes[] = {0000, 0400, 0200, 0100, 0600, 0700, 0040, 0020, 0010,
				       0060, 0004, 0002, 0001, 0006, 0644, 0666, 0777};

	px_fresh();
	px_file(PX_W "/o", "content", 0600);
	px_must(setxattr(PX_W "/o", "user.there", "x", 1, 0), "set an attribute");
	px_must(chown(PX_W "/o", px_users[PX_OWNER].uid, px_users[PX_OWNER].gid), "give away");
	for (size_t m = 0; m < PX_SIZE(modes); m++) {
		px_must(chmod(PX_W "/o", modes[m]), "set a mode");
		for (int u = 0; u < PX_USERS; u++) {
			px_become(u);
			for (size_t i = 0; i < PX_SIZE(px_file_acts); i++) {
				if (!px_turn())
					continue;
				px_check("access/%04o/%s/%s", modes[m], px_users[u].name,
					 px_file_acts[i].name);
				px_result(px_file_acts[i].fn(PX_W "/o"));
				px_done();
			}
			px_become(PX_ROOT);
		}
	}
	px_fresh();
}

/* --- folders: p is the folder, with f and e (a folder) in it ------------------------------------- */

static const char *px_in(const char *folder, const char *name)
{
	static char path[2][256];
	static int which;

	which = !which;
	snprintf(path[which], sizeof(path[which]), "%s/%s", folder, name);
	return path[which];
}

static long act_list(const char *p)
{
	return act_open(p, O_RDONLY | O_DIRECTORY);
}

static long act_look(const char *p)
{
	struct stat st;

	return stat(px_in(p, "f"), &st);
}

static long act_look_missing(const char *p)
{
	struct stat st;

	return stat(px_in(p, "none"), &st);
}

static long act_open_in(const char *p)
{
	return act_open(px_in(p, "f"), O_RDONLY);
}

static long act_create(const char *p)
{
	return act_open(px_in(p, "new"), O_WRONLY | O_CREAT | O_EXCL);
}

static long act_create_there(const char *p)
{
	return act_open(px_in(p, "f"), O_RDONLY | O_CREAT);
}

static long act_tmpfile(const char *p)
{
	return act_open(p, O_WRONLY | O_TMPFILE);
}

static long act_mkdir(const char *p)
{
	return mkdir(px_in(p, "new"), 0700);
}

static long act_mkfifo(const char *p)
{
	return mkfifo(px_in(p, "new"), 0600);
}

static long act_symlink(const char *p)
{
	return symlink("f", px_in(p, "new"));
}

static long act_link_in(const char *p)
{
	return link(PX_W "/mine", px_in(p, "new"));
}

static long act_unlink(const char *p)
{
	return unlink(px_in(p, "f"));
}

static long act_rmdir(const char *p)
{
	return rmdir(px_in(p, "e"));
}

static long act_rename_in(const char *p)
{
	return rename(PX_W "/mine", px_in(p, "new"));
}

static long act_rename_out(const char *p)
{
	return rename(px_in(p, "f"), PX_W "/out");
}

static long act_rename_onto(const char *p)
{
	return rename(PX_W "/mine", px_in(p, "f"));
}

static long act_rename_folder(const char *p)
{
	return rename(px_in(p, "e"), px_in(p, "new"));
}

static long act_exchange(const char *p)
{
	return renameat2(AT_FDCWD, PX_W "/mine", AT_FDCWD, px_in(p, "f"), RENAME_EXCHANGE);
}

static const struct px_act px_folder_acts[] = {
	{"list", act_list, false},
	{"look", act_look, false},
	{"look-missing", act_look_missing, false},
	{"open", act_open_in, false},
	{"create-there", act_create_there, false},
	{"tmpfile", act_tmpfile, false},
	{"create", act_create, true},
	{"mkdir", act_mkdir, true},
	{"mkfifo", act_mkfifo, true},
	{"symlink", act_symlink, true},
	{"link", act_link_in, true},
	{"unlink", act_unlink, true},
	{"rmdir", act_rmdir, true},
	{"rename-in", act_rename_in, true},
	{"rename-out", act_rename_out, true},
	{"rename-onto", act_rename_onto, true},
	{"rename-folder", act_rename_folder, true},
	{"exchange", act_exchange, true},
};

/* A folder of this owner and mode, with a file and a folder of that one. mine is everybody's. */
static void px_folder_scene(int owner, mode_t mode, int of_file)
{
	const struct px_user *o = &px_users[owner], *f = &px_users[of_file];

	px_fresh();
	px_must(mkdir(PX_W "/p", 0700), "make a folder");
	px_file(PX_W "/p/f", "inside", 0666);
	px_must(mkdir(PX_W "/p/e", 0777), "make a folder");
	px_must(chown(PX_W "/p/f", f->uid, f->gid), "give away");
	px_must(chown(PX_W "/p/e", f->uid, f->gid), "give away");
	px_must(chown(PX_W "/p", o->uid, o->gid), "give away");
	px_must(chmod(PX_W "/p", mode), "set a mode");
}

static void px_mine(int user)
{
	px_remove(PX_W "/mine");
	px_file(PX_W "/mine", "mine", 0666);
	px_must(chown(PX_W "/mine", px_users[user].uid, px_users[user].gid), "give away");
}

void px_table_folders(void)
{
	static const mode_t modes[] = {0000, 0500, 0300, 0100, 0700, 0050, 0030,
				       0070, 0005, 0003, 0007, 0755, 0777};

	for (size_t m = 0; m < PX_SIZE(modes); m++) {
		for (int u = 0; u < PX_USERS; u++) {
			bool anew = true;

			for (size_t i = 0; i < PX_SIZE(px_folder_acts); i++) {
				if (!px_turn())
					continue;
				if (anew) {
					px_folder_scene(PX_OWNER, modes[m], PX_OWNER);
					px_mine(u);
				}
				px_check("folders/%04o/%s/%s", modes[m], px_users[u].name,
					 px_folder_acts[i].name);
				px_become(u);
				anew = px_result(px_folder_acts[i].fn(PX_W "/p")) >= 0 &&
				       px_folder_acts[i].changes;
				px_become(PX_ROOT);
				if (anew)
					px_describe(PX_W "/p/new");
				px_done();
			}
		}
	}
	px_fresh();
}

void px_table_sticky(void)
{
	static const char *const acts[] = {"unlink",	  "rmdir",	   "rename-out",
					   "rename-onto", "rename-folder", "exchange"};
	static const int owners[] = {PX_ROOT, PX_OWNER, PX_OTHER};

	for (size_t n = 0; n < PX_SIZE(owners) * PX_SIZE(owners) * PX_USERS; n++) {
		int dir = owners[n % 3], file = owners[n / 3 % 3], user = (int)(n / 9);
		bool anew = true;

		for (size_t i = 0; i < PX_SIZE(px_folder_acts); i++) {
			const struct px_act *a = &px_folder_acts[i];
			bool wanted = false;

			for (size_t k = 0; k < PX_SIZE(acts); k++)
				wanted = wanted || !strcmp(acts[k], a->name);
			if (!wanted || !px_turn())
				continue;
			if (anew) {
				px_folder_scene(dir, 01777, file);
				px_mine(user);
			}
			px_check("sticky/of-%s/file-of-%s/%s/%s", px_users[dir].name,
				 px_users[file].name, px_users[user].name, a->name);
			px_become(user);
			anew = px_result(a->fn(PX_W "/p")) >= 0;
			px_become(PX_ROOT);
			px_done();
		}
	}
	px_fresh();
}

/* --- what owners may set --------------------------------------------------------------------------- */

static void px_owner_chown(int user, enum px_type type)
{
	static const struct {
		const char *name;
		uid_t uid;
		gid_t gid;
	} to[] = {
		{"same", 1000, 1000},
		{"nothing", (uid_t)-1, (gid_t)-1},
		{"other-user", 1003, (gid_t)-1},
		{"own-group", (uid_t)-1, 1000},
		{"other-group", (uid_t)-1, 1003},
		{"own-user", 1000, (gid_t)-1},
		{"root", 0, 0},
		{"high", 4000000000U, 4000000001U},
	};

	for (size_t i = 0; i < PX_SIZE(to); i++) {
		if (!px_turn())
			continue;
		px_fresh();
		px_make(type, PX_W "/o");
		px_must(chmod(PX_W "/o", 06775), "set a mode");
		px_must(chown(PX_W "/o", 1000, 1000), "give away");
		px_must(chmod(PX_W "/o", 06775), "set a mode");
		px_check("owner/chown/%s/%s/%s", px_type_names[type], px_users[user].name,
			 to[i].name);
		px_become(user);
		px_result(chown(PX_W "/o", to[i].uid, to[i].gid));
		px_become(PX_ROOT);
		px_describe(PX_W "/o");
		px_done();
	}
}

static void px_owner_chmod(int user, enum px_type type)
{
	static const mode_t modes[] = {0000, 0644, 0777, 01777, 02755, 04755, 06711, 07777};

	for (size_t i = 0; i < PX_SIZE(modes); i++) {
		/* A group that the owner is not in, and one that it is. */
		for (int in_group = 0; in_group < 2; in_group++) {
			if (!px_turn())
				continue;
			px_fresh();
			px_make(type, PX_W "/o");
			px_must(chown(PX_W "/o", 1000, in_group ? 1000 : 1003), "give away");
			px_check("owner/chmod/%s/%s/%s/%04o", px_type_names[type],
				 px_users[user].name, in_group ? "own-group" : "other-group",
				 modes[i]);
			px_become(user);
			px_result(chmod(PX_W "/o", modes[i]));
			px_become(PX_ROOT);
			px_describe(PX_W "/o");
			px_done();
		}
	}
}

void px_table_owner(void)
{
	static const enum px_type types[] = {PX_REG, PX_DIR_EMPTY, PX_FIFO};

	for (size_t t = 0; t < PX_SIZE(types); t++) {
		for (int u = 0; u < PX_USERS; u++) {
			px_owner_chown(u, types[t]);
			px_owner_chmod(u, types[t]);
		}
	}
	px_fresh();
}
