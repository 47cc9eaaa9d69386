/* What takes a place of its own: read-only ones, other mounts, mount points, a file system that is full. */
#include "posix.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static long closed(long fd)
{
	if (fd >= 0)
		close((int)fd);
	return fd < 0 ? -1 : 0;
}

/* --- read-only: the folder has file, folder and link, made by whoever started this ------------------------ */

static long ro_call(int i, const char *p, const char *fresh)
{
	switch (i) {
	case 0:
		return closed(open(p, O_RDONLY | O_NONBLOCK));
	case 1:
		return closed(open(p, O_WRONLY | O_NONBLOCK));
	case 2:
		return closed(open(p, O_RDONLY | O_TRUNC | O_NONBLOCK));
	case 3:
		return closed(open(p, O_RDONLY | O_CREAT | O_NONBLOCK, 0600));
	case 4:
		return closed(open(fresh, O_RDONLY | O_CREAT, 0600));
	case 5:
		return closed(open(p, O_RDWR | O_CREAT | O_EXCL, 0600));
	case 6:
		return closed(open(p, O_TMPFILE | O_WRONLY, 0600));
	case 7:
		return access(p, R_OK);
	case 8:
		return access(p, W_OK);
	case 9:
		return chmod(p, 0600);
	case 10:
		return lchown(p, 1, 1);
	case 11:
		return truncate(p, 1);
	case 12:
		return utimensat(AT_FDCWD, p, NULL, 0);
	case 13:
		return mkdir(p, 0755);
	case 14:
		return mkdir(fresh, 0755);
	case 15:
		return mkfifo(fresh, 0644);
	case 16:
		return symlink("x", fresh);
	case 17:
		return symlink("x", p);
	case 18:
		return link(p, fresh);
	case 19:
		return rename(p, fresh);
	case 20:
		return rename(fresh, p);
	case 21:
		return rename(p, p);
	case 22:
		return unlink(p);
	case 23:
		return rmdir(p);
	case 24:
		return unlink(fresh);
	case 25:
		return rmdir(fresh);
	case 26:
		return setxattr(p, "user.x", "1", 1, 0);
	case 27:
		return removexattr(p, "user.x");
	case 28:
		return listxattr(p, NULL, 0) < 0 ? -1 : 0;
	case 29:
		return link(p, PX_W "/n");
	default:
		return rename(PX_W "/f", p);
	}
}

static void px_read_only(void)
{
	static const char *const names[] = {"file", "folder", "link", "none"};
	char path[PX_PATH_MAX], fresh[PX_PATH_MAX];

	for (size_t n = 0; n < PX_SIZE(names); n++) {
		for (int i = 0; i <= 30; i++) {
			px_fresh();
			px_file(PX_W "/f", "file", 0600);
			snprintf(path, sizeof(path), "%s/%s", px_places.read_only, names[n]);
			snprintf(fresh, sizeof(fresh), "%s/fresh", px_places.read_only);
			px_check("places/read-only/%s/%d", names[n], i);
			px_result(ro_call(i, path, fresh));
			px_describe(path);
			px_done();
		}
	}
}

/* --- another mount ------------------------------------------------------------------------------------------ */

static void px_other_mount(void)
{
	char there[PX_PATH_MAX], missing[PX_PATH_MAX];

	snprintf(there, sizeof(there), "%s/there", px_places.other);
	snprintf(missing, sizeof(missing), "%s/missing", px_places.other);
	for (int type = PX_REG; type < PX_TYPES; type++) {
		for (int i = 0; i < 5; i++) {
			px_fresh();
			px_remove(there);
			px_file(there, "there", 0600);
			px_make((enum px_type)type, PX_W "/o");
			px_check("places/other/%s/%d", px_type_names[type], i);
			if (i == 0)
				px_result(rename(PX_W "/o", missing));
			else if (i == 1)
				px_result(rename(PX_W "/o", there));
			else if (i == 2)
				px_result(renameat2(AT_FDCWD, PX_W "/o", AT_FDCWD, there,
						    RENAME_EXCHANGE));
			else if (i == 3)
				px_result(link(PX_W "/o", missing));
			else
				px_result(link(there, PX_W "/n"));
			px_describe(PX_W "/o");
			px_describe(there);
			px_done();
		}
	}
	px_remove(there);
}

/* --- device nodes ------------------------------------------------------------------------------------------- */

void px_table_devices(void)
{
	const struct {
		const char *name;
		mode_t type;
		dev_t dev;
	} nodes[] = {{"whiteout", S_IFCHR, makedev(0, 0)},
		     {"null", S_IFCHR, makedev(1, 3)},
		     {"disk", S_IFBLK, makedev(8, 0)},
		     {"high", S_IFCHR, makedev(4095, 0xfffff)}};
	struct stat st;

	for (size_t i = 0; i < PX_SIZE(nodes); i++) {
		for (int user = PX_ROOT; user <= PX_OWNER; user++) {
			px_fresh();
			px_check("devices/%s/%s", nodes[i].name, px_users[user].name);
			px_become(user);
			if (!px_result(mknod(PX_W "/n", nodes[i].type | 0600, nodes[i].dev)) &&
			    !px_result(lstat(PX_W "/n", &st)))
				px_note("%u:%u", major(st.st_rdev), minor(st.st_rdev));
			px_become(PX_ROOT);
			px_describe(PX_W "/n");
			px_done();
		}
	}
	px_fresh();
}

/* --- a mount point ----------------------------------------------------------------------------------------- */

static void px_busy(void)
{
	char beside[PX_PATH_MAX], dot[PX_PATH_MAX];

	snprintf(beside, sizeof(beside), "%s.moved", px_places.busy);
	snprintf(dot, sizeof(dot), "%s/.", px_places.busy);
	for (int i = 0; i < 7; i++) {
		px_fresh();
		px_must(mkdir(PX_W "/d", 0755), "make a folder");
		px_check("places/busy/%d", i);
		if (i == 0)
			px_result(rmdir(px_places.busy));
		else if (i == 1)
			px_result(rename(px_places.busy, beside));
		else if (i == 2)
			px_result(unlink(px_places.busy));
		else if (i == 3)
			px_result(rmdir(dot));
		else if (i == 4)
			px_result(mkdir(px_places.busy, 0755));
		else if (i == 5)
			px_result(symlink("x", px_places.busy));
		else
			px_result(renameat2(AT_FDCWD, px_places.busy, AT_FDCWD, beside,
					    RENAME_NOREPLACE));
		px_done();
	}
}

/* --- no space ------------------------------------------------------------------------------------------------ */

static char px_small_path[PX_PATH_MAX];

static const char *px_in_small(const char *name)
{
	snprintf(px_small_path, sizeof(px_small_path), "%s/%s", px_places.small, name);
	return px_small_path;
}

/* Which call tells that there is no space: the write, none later. */
static void px_full_by_writing(void)
{
	static char b[65536];
	int fd = (int)px_must(open(px_in_small("big"), O_RDWR | O_CREAT, 0600), "create");
	off_t end = 0;
	ssize_t n;

	px_check("places/small/write");
	while ((n = write(fd, b, sizeof(b))) > 0)
		end += n;
	px_result(n);
	px_note("%ld", (long)end);
	px_result(pwrite(fd, "x", 1, 0));
	px_result(pwrite(fd, "x", 1, end + 100000));
	px_result(ftruncate(fd, 100 << 20));
	px_result(fsync(fd));
	px_result(close(fd));
	px_done();
	px_check("places/small/another-file");
	fd = open(px_in_small("second"), O_RDWR | O_CREAT, 0600);
	px_result(fd);
	px_result(write(fd, "x", 1));
	px_result(fallocate(fd, 0, 0, 65536));
	close(fd);
	px_done();
	px_check("places/small/space-again");
	px_result(unlink(px_in_small("second")));
	px_result(truncate(px_in_small("big"), 0));
	fd = open(px_in_small("big"), O_RDWR);
	px_result(write(fd, b, sizeof(b)));
	close(fd);
	px_result(unlink(px_in_small("big")));
	px_done();
}

static int px_fill_mapping(void *arg)
{
	(void)arg;
	int fd = open(px_in_small("mapped"), O_RDWR | O_CREAT, 0600);
	char *m;

	if (fd < 0 || fallocate(fd, 0, 0, 8 << 20) == 0)
		return EIO;
	if (ftruncate(fd, 65536) || pwrite(fd, "x", 1, 0) != 1)
		return errno;
	m = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED)
		return errno;
	for (int at = 0; at < 65536; at += 4096)
		m[at] = 'm';
	return msync(m, 65536, MS_SYNC) < 0 ? errno : 0;
}

static void px_full_of_files(void)
{
	char name[32];
	int nr = 0;

	px_check("places/small/files");
	for (; nr < 1000; nr++) {
		int fd;

		snprintf(name, sizeof(name), "n%d", nr);
		fd = open(px_in_small(name), O_WRONLY | O_CREAT | O_EXCL, 0600);
		if (fd < 0)
			break;
		close(fd);
	}
	px_result(nr == 1000 ? 0 : -1);
	px_note("%d", nr);
	px_result(mkdir(px_in_small("d"), 0755));
	px_result(symlink("x", px_in_small("s")));
	px_result(mkfifo(px_in_small("p"), 0644));
	px_result(closed(open(px_places.small, O_TMPFILE | O_WRONLY, 0600)));
	for (int i = 0; i < nr; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		px_must(unlink(px_in_small(name)), "remove");
	}
	px_result(mkdir(px_in_small("d"), 0755));
	px_result(rmdir(px_in_small("d")));
	px_done();
}

void px_table_places(void)
{
	if (px_places.read_only)
		px_read_only();
	if (px_places.other)
		px_other_mount();
	if (px_places.busy)
		px_busy();
	if (px_places.small) {
		px_full_by_writing();
		px_check("places/small/mapping");
		px_in_child(px_fill_mapping, NULL);
		px_remove(px_in_small("mapped"));
		px_done();
		px_full_of_files();
	}
	px_fresh();
}
