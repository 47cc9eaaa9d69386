/* Names of any bytes and lengths, and folders read while they change. */
#include "posix.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How often a folder's listing has this name. */
static int px_listed(const char *folder, const char *name)
{
	DIR *d = opendir(folder);
	int nr = 0;

	for (struct dirent *e; d && (e = readdir(d));)
		nr += !strcmp(e->d_name, name);
	if (d)
		closedir(d);
	return nr;
}

static void px_name(const char *label, const char *name)
{
	char path[PX_PATH_MAX], other[PX_PATH_MAX];
	struct stat st;
	int fd;

	if (!px_turn())
		return;
	snprintf(path, sizeof(path), PX_W "/%s", name);
	snprintf(other, sizeof(other), PX_W "/d/%s", name);
	px_check("names/%s", label);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	px_result(fd);
	if (fd >= 0)
		close(fd);
	px_note("%d", px_listed(PX_W, name));
	px_result(lstat(path, &st));
	px_result(rename(path, other));
	px_note("%d %d", px_listed(PX_W, name), px_listed(PX_W "/d", name));
	px_result(symlink(name, path));
	px_result(unlink(path));
	px_result(unlink(other));
	px_done();
}

void px_table_names(void)
{
	static const char *const odd[] = {
		" ",  "..a",	       "...",	       "a.",	      "-rf", "a\nb",
		"\\", "%s%n",	       "\xc3\xa9",     "e\xcc\x81",   "CON", "A",
		"a",  ".fuse_hidden0", "\xef\xbb\xbf", "\xe2\x80\xae"};
	char name[300], label[32];

	px_fresh();
	px_must(mkdir(PX_W "/d", 0755), "make a folder");
	for (int byte = 1; byte < 256; byte++) {
		/* The one byte that cannot be in a name. */
		if (byte == '/')
			continue;
		name[0] = (char)byte;
		name[1] = byte == '.' ? 'x' : 0;
		name[2] = 0;
		snprintf(label, sizeof(label), "byte-%02x", byte);
		px_name(label, name);
		snprintf(name, sizeof(name), "a%cb", byte);
		snprintf(label, sizeof(label), "inside-%02x", byte);
		px_name(label, name);
	}
	for (size_t i = 0; i < PX_SIZE(odd); i++) {
		snprintf(label, sizeof(label), "odd-%zu", i);
		px_name(label, odd[i]);
	}
	for (int len = 1; len <= 257; len += len < 250 ? 31 : 1) {
		memset(name, 'n', sizeof(name));
		name[len] = 0;
		snprintf(label, sizeof(label), "length-%d", len);
		px_name(label, name);
	}
	px_fresh();
}

/* --- reading folders --------------------------------------------------------------------------------------- */

static void px_fill(int nr)
{
	char path[64];

	for (int i = 0; i < nr; i++) {
		snprintf(path, sizeof(path), PX_W "/d/f%d", i);
		px_file(path, "", 0600);
	}
}

static int px_count(DIR *d)
{
	int nr = 0;

	while (readdir(d))
		nr++;
	return nr;
}

static void px_reading_one(int how)
{
	DIR *d = opendir(PX_W "/d"), *second;
	char path[600];
	struct dirent *e;
	long at = 0;
	int nr = 0;

	switch (how) {
	case 0: /* all of them, twice */
		px_note("%d", px_count(d));
		rewinddir(d);
		px_note("%d", px_count(d));
		break;
	case 1: /* back to a position */
		while (nr < 100 && readdir(d))
			nr++;
		at = telldir(d);
		nr = px_count(d);
		seekdir(d, at);
		px_note("%s", px_count(d) == nr ? "same" : "other");
		break;
	case 2: /* all removed on the way */
		while ((e = readdir(d))) {
			snprintf(path, sizeof(path), PX_W "/d/%s", e->d_name);
			nr += unlink(path) == 0;
		}
		px_note("%d", nr);
		break;
	case 3: /* two at a time */
		second = opendir(PX_W "/d");
		while (readdir(d) && readdir(second))
			nr++;
		px_note("%d", nr);
		closedir(second);
		break;
	case 4: /* the folder itself is gone: nothing, not even "." */
		px_must(rename(PX_W "/d", PX_W "/e"), "rename");
		px_note("%d", px_count(d));
		break;
	default: /* types are told with the names */
		px_make(PX_LINK_NONE, PX_W "/d/link");
		px_make(PX_DIR_EMPTY, PX_W "/d/folder");
		px_make(PX_FIFO, PX_W "/d/fifo");
		px_make(PX_SOCKET, PX_W "/d/socket");
		while ((e = readdir(d))) {
			struct stat st;

			snprintf(path, sizeof(path), PX_W "/d/%s", e->d_name);
			if (e->d_name[0] != '.' &&
			    (lstat(path, &st) || IFTODT(st.st_mode) != e->d_type ||
			     st.st_ino != e->d_ino))
				px_note("%s", e->d_name);
			nr++;
		}
		px_note("%d", nr);
		break;
	}
	closedir(d);
}

void px_table_folder_reading(void)
{
	static const char *const hows[] = {"twice", "seek", "remove", "two", "renamed", "types"};
	static const int sizes[] = {0, 1, 40, 400};

	for (size_t h = 0; h < PX_SIZE(hows); h++) {
		for (size_t s = 0; s < PX_SIZE(sizes); s++) {
			px_fresh();
			px_must(mkdir(PX_W "/d", 0755), "make a folder");
			px_fill(sizes[s]);
			px_check("reading/%s/%d", hows[h], sizes[s]);
			px_reading_one((int)h);
			px_done();
		}
	}
	px_fresh();
}
