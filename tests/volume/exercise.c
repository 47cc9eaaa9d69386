/*
 * Random changes of one file by two sides in turns, against a model: exercise FILE SEED SIDE.
 *
 * Each line of input, "SIDE N", is a turn: the next N changes are that side's. Both sides draw the same changes from the
 * seed and keep the same model; only the one whose turn it is carries them out. It opens the file first and
 * finds in it what the model says, whoever wrote that. Answers "ok", or says what is wrong and ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE_MAX_ 300000L
#define PAGE 4096L

enum {
	READ,
	WRITE,
	APPEND,
	TRUNCATE,
	MAP_READ,
	MAP_WRITE,
	ALLOCATE,
	PUNCH,
	ZERO,
	COPY,
	SYNC,
	DROP,
	KINDS
};

static const char *const names[KINDS] = {"read",     "write",	  "append",   "truncate",
					 "map-read", "map-write", "allocate", "punch",
					 "zero",     "copy",	  "sync",     "drop"};

static uint8_t model[2 * SIZE_MAX_], found[2 * SIZE_MAX_];
static long model_len;
static uint64_t state;
static unsigned long step;
static int fd = -1;

struct change {
	int kind;
	long off, len, to;
	uint64_t seed; /* of the bytes written */
};

static uint64_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void fill(uint8_t *p, long len, uint64_t seed)
{
	for (long i = 0; i < len; i++) {
		seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
		p[i] = (uint8_t)(seed >> 33);
	}
}

static void die(const struct change *c, const char *what)
{
	printf("step %lu, %s %ld+%ld to %ld: %s (%s)\n", step, c ? names[c->kind] : "turn",
	       c ? c->off : 0, c ? c->len : 0, c ? c->to : 0, what, strerror(errno));
	exit(1);
}

static void must(int ok, const struct change *c, const char *what)
{
	if (!ok)
		die(c, what);
}

static void model_grow(long len)
{
	if (len > model_len) {
		memset(model + model_len, 0, (size_t)(len - model_len));
		model_len = len;
	}
}

/* What is drawn depends on the model alone, so both sides draw the same. */
static struct change draw_change(void)
{
	struct change c = {.kind = (int)(draw() % KINDS)};

	c.off = (long)(draw() % SIZE_MAX_);
	c.len = 1 + (long)(draw() % 30000);
	c.to = (long)(draw() % SIZE_MAX_);
	c.seed = draw();
	if (c.kind == READ || c.kind == MAP_READ || c.kind == MAP_WRITE || c.kind == COPY) {
		if (!model_len) {
			c.kind = WRITE;
			return c;
		}
		c.off %= model_len;
		c.len = c.len < model_len - c.off ? c.len : model_len - c.off;
	}
	/* Ranges that overlap are refused. */
	if (c.kind == COPY && c.to < c.off + c.len && c.off < c.to + c.len)
		c.kind = READ;
	if (c.kind == APPEND && model_len + c.len > SIZE_MAX_)
		c.kind = TRUNCATE;
	return c;
}

static void model_apply(const struct change *c)
{
	switch (c->kind) {
	case WRITE:
		model_grow(c->off);
		fill(model + c->off, c->len, c->seed);
		model_len = c->off + c->len > model_len ? c->off + c->len : model_len;
		break;
	case APPEND:
		fill(model + model_len, c->len, c->seed);
		model_len += c->len;
		break;
	case TRUNCATE:
		model_grow(c->off);
		model_len = c->off;
		break;
	case MAP_WRITE:
		fill(model + c->off, c->len, c->seed);
		break;
	case ALLOCATE:
		model_grow(c->off + c->len);
		break;
	case PUNCH:
	case ZERO:
		if (c->kind == ZERO)
			model_grow(c->off + c->len);
		if (c->off < model_len)
			memset(model + c->off, 0,
			       (size_t)(c->off + c->len < model_len ? c->len : model_len - c->off));
		break;
	case COPY:
		model_grow(c->to);
		memcpy(model + c->to, model + c->off, (size_t)c->len);
		model_len = c->to + c->len > model_len ? c->to + c->len : model_len;
		break;
	default:
		break;
	}
}

/* The pages of a range, mapped; compared with the model, or changed. */
static void map_range(const struct change *c)
{
	long start = c->off / PAGE * PAGE, len = c->off + c->len - start;
	int write = c->kind == MAP_WRITE;
	uint8_t *m = mmap(NULL, (size_t)len, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, fd,
			  start);

	must(m != MAP_FAILED, c, "map");
	must(!memcmp(m, model + start, (size_t)len), c, "the mapping is not what was written");
	if (write) {
		fill(m + (c->off - start), c->len, c->seed);
		must(!msync(m, (size_t)len, MS_SYNC), c, "msync");
	}
	munmap(m, (size_t)len);
}

static void write_all(const struct change *c, long off)
{
	fill(found, c->len, c->seed);
	must(pwrite(fd, found, (size_t)c->len, off) == c->len, c, "write");
}

static void allocate(const struct change *c)
{
	int mode = c->kind == PUNCH  ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
		   : c->kind == ZERO ? FALLOC_FL_ZERO_RANGE
				     : 0;

	must(!fallocate(fd, mode, c->off, c->len), c, "fallocate");
}

static void copy(const struct change *c)
{
	loff_t from = c->off, to = c->to;
	long left = c->len;

	while (left > 0) {
		ssize_t n = copy_file_range(fd, &from, fd, &to, (size_t)left, 0);

		must(n > 0, c, "copy_file_range");
		left -= n;
	}
}

/* Before the model knows of it. */
static void carry_out(const struct change *c)
{
	switch (c->kind) {
	case READ:
		must(pread(fd, found, (size_t)c->len, c->off) == c->len, c, "read");
		must(!memcmp(found, model + c->off, (size_t)c->len), c, "not what was written");
		break;
	case WRITE:
		write_all(c, c->off);
		break;
	case APPEND:
		write_all(c, model_len);
		break;
	case TRUNCATE:
		must(!ftruncate(fd, c->off), c, "truncate");
		break;
	case MAP_READ:
	case MAP_WRITE:
		map_range(c);
		break;
	case ALLOCATE:
	case PUNCH:
	case ZERO:
		allocate(c);
		break;
	case COPY:
		copy(c);
		break;
	case SYNC:
		must(!fsync(fd), c, "fsync");
		break;
	default:
		must(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), c, "fadvise");
		break;
	}
}

static void check_all(const char *what)
{
	struct stat st;

	must(!fstat(fd, &st), NULL, "fstat");
	if (st.st_size != model_len) {
		printf("step %lu, %s: %ld bytes, not %ld\n", step, what, (long)st.st_size,
		       model_len);
		exit(1);
	}
	must(pread(fd, found, (size_t)model_len + 1, 0) == model_len, NULL, "read it all");
	for (long i = 0; i < model_len; i++) {
		if (found[i] != model[i]) {
			printf("step %lu, %s: byte %ld is %02x, not %02x\n", step, what, i,
			       found[i], model[i]);
			exit(1);
		}
	}
}

static void turn(const char *path, int mine, unsigned long nr)
{
	if (mine) {
		fd = open(path, O_RDWR | O_CREAT, 0644);
		must(fd >= 0, NULL, "open");
		check_all("at the beginning of a turn");
	}
	for (; nr; nr--, step++) {
		struct change c = draw_change();

		if (mine)
			carry_out(&c);
		model_apply(&c);
	}
	if (mine) {
		check_all("at the end of a turn");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	char line[64];
	int side;
	unsigned long nr;

	if (argc != 4)
		return 2;
	state = strtoull(argv[2], NULL, 10) | 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin) && sscanf(line, "%d %lu", &side, &nr) == 2) {
		turn(argv[1], side == atoi(argv[3]), nr);
		puts("ok");
	}
	return 0;
}
