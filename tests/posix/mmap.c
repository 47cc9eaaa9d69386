/* Memory mappings: what one sees of another way to the same file, and where it ends. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L

struct px_map {
	int fd;
	char *m;
};

static struct px_map px_map_open(int prot, int flags, off_t size)
{
	struct px_map x;

	px_fresh();
	px_make(PX_REG, PX_W "/o");
	x.fd = (int)px_must(open(PX_W "/o", O_RDWR), "open");
	px_must(ftruncate(x.fd, size), "set a size");
	x.m = mmap(NULL, 4 * PAGE, prot, flags, x.fd, 0);
	if (x.m == MAP_FAILED)
		px_must(-1, "map");
	return x;
}

static void px_map_close(struct px_map *x)
{
	munmap(x->m, 4 * PAGE);
	close(x->fd);
}

static int touch_read(void *arg)
{
	return *(volatile char *)arg == 'Q' ? EEXIST : 0;
}

static int touch_write(void *arg)
{
	*(volatile char *)arg = 'w';
	return 0;
}

/* Where a mapping of a file of this size may be touched. */
static void px_map_ends(void)
{
	static const off_t sizes[] = {1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE};
	static const long at[] = {0, PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE};

	for (size_t s = 0; s < PX_SIZE(sizes); s++) {
		for (size_t a = 0; a < PX_SIZE(at); a++) {
			for (int shared = 0; shared < 2; shared++) {
				struct px_map x =
					px_map_open(PROT_READ | PROT_WRITE,
						    shared ? MAP_SHARED : MAP_PRIVATE, sizes[s]);

				px_check("mmap/ends/%s/%ld/at-%ld", shared ? "shared" : "private",
					 (long)sizes[s], at[a]);
				px_in_child(touch_read, x.m + at[a]);
				px_in_child(touch_write, x.m + at[a]);
				px_map_close(&x);
				px_describe(PX_W "/o");
				px_done();
			}
		}
	}
}

static void px_map_coherence(int shared)
{
	static const char *const steps[] = {
		"write-then-load",  "store-then-read", "truncate-then-load", "truncate-and-grow",
		"append-then-load", "punch-then-load", "rename-then-store"};
	char b[8] = "";

	for (size_t i = 0; i < PX_SIZE(steps); i++) {
		struct px_map x = px_map_open(PROT_READ | PROT_WRITE,
					      shared ? MAP_SHARED : MAP_PRIVATE, 2 * PAGE);

		px_check("mmap/%s/%s", shared ? "shared" : "private", steps[i]);
		x.m[1] = 'S';
		if (i == 0)
			px_number(pwrite(x.fd, "W", 1, 2));
		else if (i == 2)
			px_result(ftruncate(x.fd, 1));
		else if (i == 3)
			px_result(ftruncate(x.fd, 1) ? -1 : ftruncate(x.fd, 2 * PAGE));
		else if (i == 4)
			px_number(pwrite(x.fd, "A", 1, 2 * PAGE));
		else if (i == 5)
			px_result(fallocate(x.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
					    PAGE));
		else if (i == 6)
			px_result(rename(PX_W "/o", PX_W "/p"));
		px_note("%02x%02x%02x", x.m[0], x.m[1], x.m[2]);
		px_number(pread(x.fd, b, 3, 0));
		px_note("%02x%02x%02x", b[0], b[1], b[2]);
		px_map_close(&x);
		px_describe(PX_W "/o");
		px_done();
	}
}

/* Two mappings of one file, and one that outlives its name and its descriptor. */
static void px_map_two(void)
{
	struct px_map x = px_map_open(PROT_READ | PROT_WRITE, MAP_SHARED, 2 * PAGE);
	char *second = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, x.fd, PAGE);

	px_check("mmap/two");
	x.m[PAGE + 5] = 'T';
	px_note("%c", second[5]);
	second[6] = 'U';
	px_note("%c", x.m[PAGE + 6]);
	close(x.fd);
	px_must(unlink(PX_W "/o"), "remove");
	x.m[0] = 'V';
	px_result(msync(x.m, 2 * PAGE, MS_SYNC));
	px_note("%c", x.m[0]);
	munmap(second, PAGE);
	munmap(x.m, 4 * PAGE);
	px_done();
}

static void px_map_protections(void)
{
	static const struct {
		const char *name;
		int flags;
	} opens[] = {{"read", O_RDONLY}, {"write", O_WRONLY}, {"both", O_RDWR}};
	static const int prots[] = {PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE,
				    PROT_READ | PROT_EXEC};

	for (size_t o = 0; o < PX_SIZE(opens); o++) {
		for (size_t p = 0; p < PX_SIZE(prots); p++) {
			for (int shared = 0; shared < 2; shared++) {
				int fd;
				void *m;

				px_fresh();
				px_make(PX_REG, PX_W "/o");
				fd = (int)px_must(open(PX_W "/o", opens[o].flags), "open");
				px_check("mmap/protection/%s/%d/%s", opens[o].name, prots[p],
					 shared ? "shared" : "private");
				m = mmap(NULL, PAGE, prots[p], shared ? MAP_SHARED : MAP_PRIVATE,
					 fd, 0);
				px_result(m == MAP_FAILED ? -1 : 0);
				if (m != MAP_FAILED) {
					px_result(mprotect(m, PAGE, PROT_READ | PROT_WRITE));
					munmap(m, PAGE);
				}
				close(fd);
				px_done();
			}
		}
	}
}

void px_table_mmap(void)
{
	px_map_ends();
	px_map_coherence(0);
	px_map_coherence(1);
	px_map_two();
	px_map_protections();
	px_fresh();
}
