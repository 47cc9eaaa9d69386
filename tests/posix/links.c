/* rename() of everything to everything, links, and what both do to link counts. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

static const struct {
	const char *name;
	unsigned int flags;
} px_rename_flags[] = {
	{"plain", 0},
	{"noreplace", RENAME_NOREPLACE},
	{"exchange", RENAME_EXCHANGE},
	{"whiteout", RENAME_WHITEOUT},
	{"noreplace+exchange", RENAME_NOREPLACE | RENAME_EXCHANGE},
	{"noreplace+whiteout", RENAME_NOREPLACE | RENAME_WHITEOUT},
	{"exchange+whiteout", RENAME_EXCHANGE | RENAME_WHITEOUT},
	{"unknown", 0x100},
};

static void px_rename_one(int from, int to, size_t flag)
{
	px_check("rename/%s/to-%s/%s", px_type_names[from], px_type_names[to],
		 px_rename_flags[flag].name);
	px_result(
		renameat2(AT_FDCWD, PX_W "/a", AT_FDCWD, PX_W "/d/b", px_rename_flags[flag].flags));
	px_describe(PX_W "/a");
	px_describe(PX_W "/d/b");
	px_describe(PX_W);
	px_describe(PX_W "/d");
	px_done();
}

/* Names of one file, of a folder and what is in it, of places that are no places. */
static void px_rename_special(void)
{
	static const struct {
		const char *name, *from, *to;
	} cases[] = {
		{"same-name", "f", "f"},
		{"two-names-of-a-file", "f", "g"},
		{"two-names-elsewhere", "f", "d/g"},
		{"into-itself", "d", "d/x"},
		{"deep-into-itself", "d", "d/e/x"},
		{"onto-parent", "d/e", "d"},
		{"onto-grandparent", "d/e/h", "d"},
		{"folder-same-name", "d", "d"},
		{"dot", "d/.", "x"},
		{"dotdot", "d/e/..", "x"},
		{"to-dot", "f", "d/."},
		{"to-dotdot", "f", "d/e/.."},
		{"folder-to-slash", "d", "x/"},
		{"file-to-slash", "f", "x/"},
		{"empty-onto-empty", "e1", "e2"},
		{"onto-full", "e1", "d"},
		{"to-missing-folder", "f", "none/x"},
		{"name-of-256", "f", NULL},
	};
	char from[64], to[400], name[257];

	memset(name, 'n', 256);
	name[256] = 0;
	for (size_t i = 0; i < PX_SIZE(cases); i++) {
		for (size_t flag = 0; flag < 3; flag++) {
			px_fresh();
			px_file(PX_W "/f", "file", 0644);
			px_must(link(PX_W "/f", PX_W "/g"), "link");
			px_must(mkdir(PX_W "/d", 0755), "make a folder");
			px_must(mkdir(PX_W "/d/e", 0755), "make a folder");
			px_must(mkdir(PX_W "/d/e/h", 0755), "make a folder");
			px_must(link(PX_W "/f", PX_W "/d/g"), "link");
			px_must(mkdir(PX_W "/e1", 0755), "make a folder");
			px_must(mkdir(PX_W "/e2", 0755), "make a folder");
			snprintf(from, sizeof(from), PX_W "/%s", cases[i].from);
			snprintf(to, sizeof(to), PX_W "/%s", cases[i].to ? cases[i].to : name);
			px_check("rename/%s/%s", cases[i].name, px_rename_flags[flag].name);
			px_result(renameat2(AT_FDCWD, from, AT_FDCWD, to,
					    px_rename_flags[flag].flags));
			px_describe(PX_W "/f");
			px_describe(PX_W "/g");
			px_describe(PX_W "/d");
			px_describe(PX_W);
			px_done();
		}
	}
}

void px_table_rename(void)
{
	for (int from = 0; from < PX_TYPES; from++) {
		for (int to = 0; to < PX_TYPES; to++) {
			for (size_t flag = 0; flag < PX_SIZE(px_rename_flags); flag++) {
				/* Of flags that exclude each other a few will do. */
				if ((flag > 3 && from > PX_DIR_FULL) || !px_turn())
					continue;
				px_fresh();
				px_must(mkdir(PX_W "/d", 0755), "make a folder");
				px_make((enum px_type)from, PX_W "/a");
				px_make((enum px_type)to, PX_W "/d/b");
				px_rename_one(from, to, flag);
			}
		}
	}
	px_rename_special();
	px_fresh();
}

static void px_link_one(int from, int to, int flags, const char *what)
{
	px_fresh();
	px_make((enum px_type)from, PX_W "/a");
	px_make((enum px_type)to, PX_W "/b");
	px_check("link/%s/to-%s/%s", px_type_names[from], px_type_names[to], what);
	px_result(linkat(AT_FDCWD, PX_W "/a", AT_FDCWD, PX_W "/b", flags));
	px_describe(PX_W "/a");
	px_describe(PX_W "/b");
	px_done();
}

/* Link counts along a life; each line is one step. */
static void px_link_counts(void)
{
	static const char *const steps[] = {
		"mkdir w/d/1",	    "mkdir w/d/2",    "rmdir w/d/1",  "rename w/d/2 w/2",
		"link w/f w/d/f",   "link w/f w/d/g", "unlink w/f",   "rename w/d/f w/d/g",
		"rename w/d/f w/f", "symlink w/d/s",  "unlink w/d/s", "mkfifo w/d/p"};

	px_fresh();
	px_must(mkdir(PX_W "/d", 0755), "make a folder");
	px_file(PX_W "/f", "file", 0644);
	for (size_t i = 0; i < PX_SIZE(steps); i++) {
		char what[16] = "", a[64] = "", b[64] = "";
		long r = -1;

		sscanf(steps[i], "%15s %63s %63s", what, a, b);
		if (!strcmp(what, "mkdir"))
			r = mkdir(a, 0755);
		else if (!strcmp(what, "rmdir"))
			r = rmdir(a);
		else if (!strcmp(what, "rename"))
			r = rename(a, b);
		else if (!strcmp(what, "link"))
			r = link(a, b);
		else if (!strcmp(what, "unlink"))
			r = unlink(a);
		else if (!strcmp(what, "symlink"))
			r = symlink("x", a);
		else
			r = mkfifo(a, 0644);
		px_check("link/count/%02zu-%s", i, what);
		px_result(r);
		px_describe(PX_W);
		px_describe(PX_W "/d");
		px_describe(PX_W "/f");
		px_describe(PX_W "/d/g");
		px_done();
	}
}

/* Links to and from names that lead through links. */
static void px_link_targets(void)
{
	static const size_t lengths[] = {1, 59, 60, 255, 1000, 4095};
	char target[5000], text[5000];
	struct stat st;

	for (size_t i = 0; i < PX_SIZE(lengths); i++) {
		px_fresh();
		memset(target, 't', lengths[i]);
		target[lengths[i]] = 0;
		px_check("link/target-of-%zu", lengths[i]);
		px_result(symlink(target, PX_W "/s"));
		px_number(readlink(PX_W "/s", text, sizeof(text)));
		px_number(readlink(PX_W "/s", text, 10));
		px_result(lstat(PX_W "/s", &st));
		px_note("%ld", (long)st.st_size);
		px_done();
	}
	px_check("link/target-empty");
	px_result(symlink("", PX_W "/e"));
	px_done();
	memset(target, 't', 4096);
	target[4096] = 0;
	px_check("link/target-of-4096");
	px_result(symlink(target, PX_W "/e"));
	px_done();
	px_check("link/readlink-of-no-room");
	px_number(readlink(PX_W "/s", text, 0));
	px_done();
}

void px_table_link(void)
{
	for (int from = 0; from < PX_TYPES; from++) {
		for (int to = 0; to < PX_TYPES; to++) {
			if (!px_turn())
				continue;
			px_link_one(from, to, 0, "plain");
			if (from == PX_LINK_REG || from == PX_LINK_NONE || from == PX_LINK_DIR)
				px_link_one(from, to, AT_SYMLINK_FOLLOW, "follow");
		}
	}
	px_link_counts();
	px_link_targets();
	px_fresh();
}
