/*
 * What bench/io runs in a container: reads, writes and metadata in one folder, which holds `in` (a file made by
 * somebody else) and `tree.tar`. One line a figure, "name<tab>value<tab>unit", more is better. Static; any failure
 * ends it with a message, as a figure of half a measurement is none.
 *
 *   iobench FOLDER
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1u << 20)
#define SMALL 4096u
#define NR_RANDOM 4000
#define WRITE_BLOCKS 32
#define NR_FILES 500

static char block[BLOCK];
static uint64_t seed = 88172645463325252ull;
static unsigned int nr_found;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(const char *name, double amount, double since, const char *unit)
{
	printf("%s\t%.3f\t%s\n", name, amount / (now() - since), unit);
	fflush(stdout);
}

/* xorshift: the same places every time */
static off_t random_place(off_t size)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (off_t)(seed % (uint64_t)(size / SMALL)) * SMALL;
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void read_all(const char *name)
{
	int fd = open_or_die("in", O_RDONLY);
	double start = now(), sum = 0;
	ssize_t n;

	while ((n = read(fd, block, BLOCK)) > 0)
		sum += (double)n;
	if (n < 0)
		err(1, "read");
	say(name, sum / 1e6, start, "MB/s");
	close(fd);
}

static void random_io(const char *name, const char *path, int is_write)
{
	int fd = open_or_die(path, O_RDWR);
	off_t size = lseek(fd, 0, SEEK_END);
	double start = now();

	for (int i = 0; i < NR_RANDOM; i++) {
		off_t at = random_place(size);
		ssize_t n = is_write ? pwrite(fd, block, SMALL, at) : pread(fd, block, SMALL, at);

		if (n != SMALL)
			err(1, "%s", name);
	}
	if (is_write && fsync(fd))
		err(1, "fsync");
	say(name, NR_RANDOM, start, "1/s");
	close(fd);
}

static void write_all(void)
{
	int fd = open_or_die("out", O_RDWR | O_CREAT | O_TRUNC);
	double start = now();

	for (int i = 0; i < WRITE_BLOCKS; i++)
		if (write(fd, block, BLOCK) != BLOCK)
			err(1, "write");
	say("sequential write", WRITE_BLOCKS * BLOCK / 1e6, start, "MB/s");
	if (fsync(fd))
		err(1, "fsync");
	say("sequential write, fsync", WRITE_BLOCKS * BLOCK / 1e6, start, "MB/s");
	close(fd);
}

static void small_files(void)
{
	double start = now();
	struct stat st;
	char path[32];

	for (int i = 0; i < NR_FILES; i++) {
		int fd;

		snprintf(path, sizeof(path), "f%d", i);
		fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
		if (write(fd, block, SMALL) != SMALL)
			err(1, "%s", path);
		close(fd);
	}
	say("create and write 4 KiB", NR_FILES, start, "1/s");
	start = now();
	for (int i = 0; i < 4 * NR_FILES; i++) {
		snprintf(path, sizeof(path), "f%d", i % NR_FILES);
		if (stat(path, &st) || st.st_size != SMALL)
			err(1, "%s", path);
	}
	say("stat", 4 * NR_FILES, start, "1/s");
	start = now();
	for (int i = 0; i < 4 * NR_FILES; i++) {
		snprintf(path, sizeof(path), "f%d", i % NR_FILES);
		close(open_or_die(path, O_RDONLY));
	}
	say("open and close", 4 * NR_FILES, start, "1/s");
	start = now();
	for (int i = 0; i < NR_FILES; i++) {
		snprintf(path, sizeof(path), "f%d", i);
		if (unlink(path))
			err(1, "%s", path);
	}
	say("unlink", NR_FILES, start, "1/s");
}

static int count_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)path;
	(void)st;
	(void)kind;
	(void)at;
	nr_found++;
	return 0;
}

static void find(const char *name)
{
	double start = now();

	nr_found = 0;
	if (nftw("tree", count_one, 16, FTW_PHYS))
		err(1, "tree");
	say(name, nr_found, start, "1/s");
}

static void untar(void)
{
	double start = now();
	pid_t pid = fork();
	int status;

	if (!pid) {
		execl("/bin/busybox", "tar", "xf", "tree.tar", (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		errx(1, "tar failed");
	say("untar", 1, start, "1/s");
}

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(2, "usage: iobench FOLDER");
	if (chdir(argv[1]))
		err(1, "%s", argv[1]);
	memset(block, 'x', sizeof(block));
	read_all("first sequential read");
	read_all("second sequential read");
	random_io("random read 4 KiB", "in", 0);
	write_all();
	random_io("random write 4 KiB, fsync", "out", 1);
	small_files();
	untar();
	find("find, just made");
	find("find again");
	return 0;
}
