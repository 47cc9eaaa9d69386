/* Sizes of files: truncation, allocation, holes and where they are. */
#include "posix.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define KEEP FALLOC_FL_KEEP_SIZE
#define PUNCH FALLOC_FL_PUNCH_HOLE
#define ZERO FALLOC_FL_ZERO_RANGE
#define COLLAPSE 0x08
#define INSERT 0x20
#define UNSHARE 0x40

/* 64 KiB of letters, different in each block. */
static void px_letters(const char *path)
{
	static char b[65536];
	int fd = (int)px_must(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644), path);

	for (size_t i = 0; i < sizeof(b); i++)
		b[i] = (char)('a' + i / 4096);
	px_must(write(fd, b, sizeof(b)), "write");
	close(fd);
}

/* What a file reads as: runs of one byte, with their lengths. */
static void px_runs(const char *path)
{
	static char b[1 << 20];
	int fd = open(path, O_RDONLY), runs = 0;
	ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof(b));

	if (fd >= 0)
		close(fd);
	for (ssize_t at = 0; at < n && runs < 24; runs++) {
		ssize_t end = at;

		while (end < n && b[end] == b[at])
			end++;
		px_note("%c%zd", b[at] ? b[at] : '0', end - at);
		at = end;
	}
}

void px_table_sizes(void)
{
	static const off_t sizes[] = {0, 1, 4095, 4096, 4097, 65536, 70000, -1, LLONG_MAX};
	static const struct {
		const char *name;
		int flags;
	} opens[] = {{"by-name", -1},
		     {"write", O_WRONLY},
		     {"both", O_RDWR},
		     {"read", O_RDONLY},
		     {"append", O_WRONLY | O_APPEND},
		     {"path", O_PATH}};

	for (size_t o = 0; o < PX_SIZE(opens); o++) {
		for (size_t i = 0; i < PX_SIZE(sizes); i++) {
			int fd = -1;

			px_fresh();
			px_letters(PX_W "/o");
			if (opens[o].flags >= 0)
				fd = (int)px_must(open(PX_W "/o", opens[o].flags), "open");
			px_check("sizes/%s/%lld", opens[o].name, (long long)sizes[i]);
			px_result(fd < 0 ? truncate(PX_W "/o", sizes[i]) : ftruncate(fd, sizes[i]));
			if (fd >= 0)
				close(fd);
			px_describe(PX_W "/o");
			px_runs(PX_W "/o");
			px_done();
		}
	}
	px_fresh();
}

/* --- fallocate() --------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int mode;
} px_alloc_modes[] = {
	{"allocate", 0},
	{"keep", KEEP},
	{"punch", PUNCH | KEEP},
	{"punch-alone", PUNCH},
	{"zero", ZERO},
	{"zero-keep", ZERO | KEEP},
	{"collapse", COLLAPSE},
	{"collapse-keep", COLLAPSE | KEEP},
	{"insert", INSERT},
	{"unshare", UNSHARE},
	{"punch-zero", PUNCH | ZERO | KEEP},
	{"unknown", 0x1000},
};

static void px_allocate(size_t mode, off_t off, off_t len, int flags, const char *how)
{
	int fd;

	px_fresh();
	px_letters(PX_W "/o");
	fd = (int)px_must(open(PX_W "/o", flags), "open");
	px_check("fallocate/%s/%s/%lld+%lld", px_alloc_modes[mode].name, how, (long long)off,
		 (long long)len);
	px_result(fallocate(fd, px_alloc_modes[mode].mode, off, len));
	close(fd);
	px_describe(PX_W "/o");
	px_runs(PX_W "/o");
	px_done();
}

static void px_allocate_types(size_t mode)
{
	int fds[2];

	px_check("fallocate/%s/folder", px_alloc_modes[mode].name);
	fds[0] = (int)px_must(open(PX_W, O_RDONLY), "open");
	px_result(fallocate(fds[0], px_alloc_modes[mode].mode, 0, 4096));
	close(fds[0]);
	px_done();
	px_fresh();
	px_make(PX_FIFO, PX_W "/p");
	px_check("fallocate/%s/fifo", px_alloc_modes[mode].name);
	fds[0] = (int)px_must(open(PX_W "/p", O_RDWR | O_NONBLOCK), "open");
	px_result(fallocate(fds[0], px_alloc_modes[mode].mode, 0, 4096));
	close(fds[0]);
	px_done();
}

void px_table_fallocate(void)
{
	static const struct {
		off_t off, len;
	} ranges[] = {{0, 4096},
		      {4096, 8192},
		      {100, 200},
		      {65536, 4096},
		      {61440, 8192},
		      {200000, 100},
		      {0, 0},
		      {-1, 10},
		      {10, -1},
		      {LLONG_MAX, 1},
		      {LLONG_MAX - 4096, 8192}};

	for (size_t m = 0; m < PX_SIZE(px_alloc_modes); m++) {
		for (size_t i = 0; i < PX_SIZE(ranges); i++)
			px_allocate(m, ranges[i].off, ranges[i].len, O_RDWR, "both");
		px_allocate(m, 0, 4096, O_RDONLY, "read");
		px_allocate(m, 0, 4096, O_WRONLY | O_APPEND, "append");
		px_allocate(m, 0, 4096, O_PATH, "path");
		px_allocate_types(m);
	}
	px_fresh();
}

/* --- SEEK_DATA, SEEK_HOLE ------------------------------------------------------------------------------- */

#define KIB 1024L

static void px_seek_file(int layout)
{
	int fd = (int)px_must(open(PX_W "/o", O_RDWR | O_CREAT | O_TRUNC, 0644), "create");

	switch (layout) {
	case 1:
		px_must(ftruncate(fd, 256 * KIB), "truncate");
		break;
	case 2:
		close(fd);
		px_letters(PX_W "/o");
		return;
	case 3:
		px_must(ftruncate(fd, 256 * KIB), "truncate");
		px_must(pwrite(fd, "x", 1, 64 * KIB), "write");
		break;
	case 4:
		px_must(pwrite(fd, "x", 1, 0), "write");
		px_must(pwrite(fd, "x", 1, 128 * KIB), "write");
		break;
	case 5:
		close(fd);
		px_letters(PX_W "/o");
		fd = (int)px_must(open(PX_W "/o", O_RDWR), "open");
		px_must(fallocate(fd, PUNCH | KEEP, 16 * KIB, 16 * KIB), "punch");
		break;
	default:
		break;
	}
	px_must(fsync(fd), "sync");
	close(fd);
}

void px_table_seek(void)
{
	static const char *const layouts[] = {"empty", "hole", "data", "middle", "ends", "punched"};
	static const struct {
		const char *name;
		int whence;
	} kinds[] = {{"data", SEEK_DATA}, {"hole", SEEK_HOLE}, {"set", SEEK_SET},
		     {"cur", SEEK_CUR},	  {"end", SEEK_END},   {"unknown", 77}};
	static const off_t offs[] = {0,	     1,	     4096,   20000, 65536,  65537,
				     131072, 262143, 262144, -1,    -300000};

	for (size_t l = 0; l < PX_SIZE(layouts); l++) {
		px_fresh();
		px_seek_file((int)l);
		for (size_t k = 0; k < PX_SIZE(kinds); k++) {
			for (size_t o = 0; o < PX_SIZE(offs); o++) {
				int fd;

				if (!px_turn())
					continue;
				fd = (int)px_must(open(PX_W "/o", O_RDONLY), "open");
				px_check("seek/%s/%s/%ld", layouts[l], kinds[k].name,
					 (long)offs[o]);
				px_number(lseek(fd, offs[o], kinds[k].whence));
				px_number(lseek(fd, 0, SEEK_CUR));
				close(fd);
				px_done();
			}
		}
	}
	px_fresh();
}
