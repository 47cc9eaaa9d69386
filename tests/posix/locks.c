/* Record locks of processes, of open files, and flock(): who keeps whom out, and when they go. */
#include "posix.h"

#include <errno.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

enum px_lock_kind { PX_POSIX, PX_OFD, PX_FLOCK, PX_LOCK_KINDS };
static const char *const px_lock_kinds[] = {"posix", "ofd", "flock"};

struct px_lock {
	int fd;
	enum px_lock_kind kind;
	short type; /* F_RDLCK, F_WRLCK, F_UNLCK */
	off_t start, len;
};

static long px_lock_set(const struct px_lock *l)
{
	struct flock f = {.l_type = l->type, .l_start = l->start, .l_len = l->len};

	if (l->kind == PX_FLOCK)
		return flock(l->fd, LOCK_NB | (l->type == F_RDLCK   ? LOCK_SH
					       : l->type == F_WRLCK ? LOCK_EX
								    : LOCK_UN));
	return fcntl(l->fd, l->kind == PX_OFD ? F_OFD_SETLK : F_SETLK, &f);
}

/* A child that opens the file anew. */
static int px_lock_child(void *arg)
{
	struct px_lock l = *(const struct px_lock *)arg;

	l.fd = open(PX_W "/o", O_RDWR);
	return l.fd < 0 || px_lock_set(&l) < 0 ? errno : 0;
}

static int px_lock_inherited(void *arg)
{
	return px_lock_set(arg) < 0 ? errno : 0;
}

static int px_lock_get_child(void *arg)
{
	const struct px_lock *l = arg;
	struct flock f = {.l_type = l->type, .l_start = l->start, .l_len = l->len};
	int fd = open(PX_W "/o", O_RDWR);

	if (fd < 0 || fcntl(fd, l->kind == PX_OFD ? F_OFD_GETLK : F_GETLK, &f) < 0)
		return errno;
	/* Coded as an exit code: what was found and where. */
	if (f.l_type == F_UNLCK)
		return 0;
	return f.l_start == 10 && f.l_len == 20 && (l->kind == PX_OFD) == (f.l_pid == -1) ? EPERM
											  : ENOENT;
}

static int px_lock_open(void)
{
	px_fresh();
	px_make(PX_REG, PX_W "/o");
	return (int)px_must(open(PX_W "/o", O_RDWR), "open");
}

/* One holds 10 to 29, another wants this. */
static void px_lock_conflicts(void)
{
	static const struct {
		off_t start, len;
	} ranges[] = {{0, 10}, {0, 11}, {15, 5}, {29, 1}, {30, 0}, {0, 0}};
	static const short types[] = {F_RDLCK, F_WRLCK};

	for (int held = 0; held < PX_LOCK_KINDS; held++) {
		for (int wanted = 0; wanted < PX_LOCK_KINDS; wanted++) {
			for (size_t n = 0; n < PX_SIZE(ranges) * 4; n++) {
				int fd = px_turn() ? px_lock_open() : -1;
				struct px_lock a = {fd, (enum px_lock_kind)held, types[n & 1], 10,
						    20};
				struct px_lock b = {-1, (enum px_lock_kind)wanted,
						    types[n >> 1 & 1], ranges[n / 4].start,
						    ranges[n / 4].len};

				if (fd < 0)
					continue;
				px_check("locks/%s/%s/%s/%s/%ld+%ld", px_lock_kinds[held],
					 n & 1 ? "write" : "read", px_lock_kinds[wanted],
					 n & 2 ? "write" : "read", (long)b.start, (long)b.len);
				px_result(px_lock_set(&a));
				px_in_child(px_lock_child, &b);
				if (wanted != PX_FLOCK)
					px_in_child(px_lock_get_child, &b);
				close(fd);
				px_in_child(px_lock_child, &b);
				px_done();
			}
		}
	}
}

/* What a descriptor's mode has to be, and what numbers mean nothing. */
static void px_lock_errors(void)
{
	static const int flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_PATH};
	static const short types[] = {F_RDLCK, F_WRLCK, F_UNLCK, 77};

	for (int kind = 0; kind < PX_LOCK_KINDS; kind++) {
		for (size_t f = 0; f < PX_SIZE(flags); f++) {
			for (size_t t = 0; t < PX_SIZE(types); t++) {
				struct px_lock l = {-1, (enum px_lock_kind)kind, types[t], 0, 0};

				px_fresh();
				px_make(PX_REG, PX_W "/o");
				l.fd = (int)px_must(open(PX_W "/o", flags[f]), "open");
				px_check("locks/open/%s/%d/%d", px_lock_kinds[kind], flags[f],
					 types[t]);
				px_result(px_lock_set(&l));
				close(l.fd);
				px_done();
			}
		}
	}
	for (int kind = PX_POSIX; kind <= PX_OFD; kind++) {
		struct px_lock l = {px_lock_open(), (enum px_lock_kind)kind, F_WRLCK, -1, 10};

		px_check("locks/range/%s/negative-start", px_lock_kinds[kind]);
		px_result(px_lock_set(&l));
		px_done();
		l.start = 10;
		l.len = -5;
		px_check("locks/range/%s/negative-length", px_lock_kinds[kind]);
		px_result(px_lock_set(&l));
		px_done();
		l.len = -11;
		px_check("locks/range/%s/too-negative", px_lock_kinds[kind]);
		px_result(px_lock_set(&l));
		px_done();
		close(l.fd);
	}
}

/* When locks go, and whose they are. */
static void px_lock_lives(void)
{
	for (int kind = 0; kind < PX_LOCK_KINDS; kind++) {
		for (int step = 0; step < 6; step++) {
			int fd = px_lock_open(), second = (int)px_must(dup(fd), "dup");
			int anew = (int)px_must(open(PX_W "/o", O_RDWR), "open");
			struct px_lock l = {fd, (enum px_lock_kind)kind, F_WRLCK, 10, 20};
			struct px_lock b = l, part = l;

			px_check("locks/life/%s/%d", px_lock_kinds[kind], step);
			px_result(px_lock_set(&l));
			if (step == 0) {
				close(second);
			} else if (step == 1) {
				close(anew);
			} else if (step == 2) {
				close(fd);
			} else if (step == 3) {
				part.type = F_UNLCK;
				part.start = 15;
				part.len = 5;
				px_result(px_lock_set(&part));
				b.start = 16;
				b.len = 2;
			} else if (step == 4) {
				l.type = F_RDLCK;
				px_result(px_lock_set(&l));
				b.type = F_RDLCK;
			} else {
				px_in_child(px_lock_inherited, &l);
				part.fd = anew;
				px_result(px_lock_set(&part));
			}
			px_in_child(px_lock_child, &b);
			close(fd);
			close(second);
			close(anew);
			px_in_child(px_lock_child, &b);
			px_done();
		}
	}
}

/* A child that waits for a lock gets it when it is given up. */
static int px_lock_wait_child(void *arg)
{
	const struct px_lock *l = arg;
	struct flock f = {.l_type = l->type, .l_start = l->start, .l_len = l->len};
	int fd = open(PX_W "/o", O_RDWR);

	if (fd < 0)
		return errno;
	if (l->kind == PX_FLOCK)
		return flock(fd, LOCK_EX) < 0 ? errno : 0;
	return fcntl(fd, l->kind == PX_OFD ? F_OFD_SETLKW : F_SETLKW, &f) < 0 ? errno : 0;
}

static void px_lock_waits(void)
{
	for (int kind = 0; kind < PX_LOCK_KINDS; kind++) {
		struct px_lock l = {px_lock_open(), (enum px_lock_kind)kind, F_WRLCK, 10, 20};
		int ready[2], status = 0;
		char c = 0;
		pid_t pid;

		px_check("locks/wait/%s", px_lock_kinds[kind]);
		px_result(px_lock_set(&l));
		px_must(pipe(ready), "make a pipe");
		fflush(stdout);
		pid = (pid_t)px_must(fork(), "fork");
		if (!pid) {
			px_must(write(ready[1], "x", 1), "write");
			_exit(px_lock_wait_child(&l));
		}
		px_must(read(ready[0], &c, 1), "read");
		/* Not for ever: whether it waits by now or asks in a moment, it gets the lock. */
		usleep(20000);
		px_number(waitpid(pid, &status, WNOHANG));
		l.type = F_UNLCK;
		px_result(px_lock_set(&l));
		px_must(waitpid(pid, &status, 0), "wait");
		px_note("%d", status);
		close(ready[0]);
		close(ready[1]);
		close(l.fd);
		px_done();
	}
}

void px_table_locks(void)
{
	px_lock_conflicts();
	px_lock_errors();
	px_lock_lives();
	px_lock_waits();
	px_fresh();
}
