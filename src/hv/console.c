/*
 * Guest console to a bounded file; see console.h.
 *
 * Thread: the loop's. Reading never stops, so that the guest never blocks on its console; when the
 * disk is full or the file cannot be written, bytes are dropped and the VM goes on.
 */
#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"

#define CONSOLE_FILE "console.log"
#define CONSOLE_FILE_OLD "console.log.old"
#define CONSOLE_READ_MAX 4096
/* One round of the loop takes at most this much: a babbling guest must not starve the rest. */
#define CONSOLE_READS_PER_ROUND 8

struct console {
	struct loop_watch *watch;
	int fd;	      /* owned */
	int file;     /* owned, -1 = could not be written */
	int dir_fd;   /* borrowed */
	size_t limit; /* of one of the two files */
	size_t size;
	struct text_lines lines;
	char panic[TEXT_LINE_MAX];
	char last[TEXT_LINE_MAX];
	bool saw_restart;
	uint64_t first_ns;
};

static int console_open_file(struct console *c)
{
	c->file = openat(c->dir_fd, CONSOLE_FILE,
			 O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	c->size = 0;
	return c->file < 0 ? -errno : 0;
}

static void console_write(struct console *c, const char *text, size_t len)
{
	if (c->file >= 0 && c->size + len > c->limit) {
		close(take_fd(&c->file));
		if (renameat(c->dir_fd, CONSOLE_FILE, c->dir_fd, CONSOLE_FILE_OLD) ||
		    console_open_file(c))
			log_dbg("hv", "console log ends here: %s", strerror(errno));
	}
	if (c->file < 0 || !len)
		return;
	c->size += len;
	if (io_write_full(c->file, text, len))
		close(take_fd(&c->file));
}

static void console_line(void *ctx, const char *line)
{
	struct console *c = ctx;

	snprintf(c->last, sizeof(c->last), "%s", line);
	if (!c->panic[0] && strstr(line, "Kernel panic"))
		snprintf(c->panic, sizeof(c->panic), "%s", line);
	/* kernel_restart() in kernel/reboot.c; printed at the level that is always shown. */
	if (strstr(line, "reboot: Restarting system"))
		c->saw_restart = true;
}

/* Returns false when nothing more is to be had now. */
static bool console_read_some(struct console *c)
{
	char in[CONSOLE_READ_MAX], out[CONSOLE_READ_MAX * 4];
	size_t used = 0;
	ssize_t n = read(c->fd, in, sizeof(in));

	if (n < 0 && errno == EINTR)
		return true;
	if (n <= 0) {
		if (!n || errno != EAGAIN) {
			loop_watch_remove(c->watch);
			c->watch = NULL;
		}
		return false;
	}
	if (!c->first_ns)
		c->first_ns = util_now_ns();
	text_lines_feed(&c->lines, in, (size_t)n, console_line, c);
	text_escape(in, (size_t)n, true, out, sizeof(out), &used);
	console_write(c, out, used);
	return true;
}

static void console_on_input(void *ctx, uint32_t events)
{
	struct console *c = ctx;

	for (int i = 0; i < CONSOLE_READS_PER_ROUND; i++) {
		if (!console_read_some(c))
			return;
	}
}

void console_drain(struct console *c)
{
	/* The writer is gone, so this is at most what a socket buffer holds. */
	while (c->watch && console_read_some(c))
		;
	text_lines_flush(&c->lines, console_line, c);
}

int console_new(struct loop *loop, int fd, int state_dir_fd, size_t limit, struct console **ret,
		struct err *err)
{
	struct console *c = xcalloc(1, sizeof(*c));
	int r;

	*c = (struct console){.fd = fd, .file = -1, .dir_fd = state_dir_fd, .limit = limit / 2};
	unlinkat(state_dir_fd, CONSOLE_FILE_OLD, 0);
	r = console_open_file(c);
	if (r) {
		console_free(c);
		return err_set(err, r, "create '%s'", CONSOLE_FILE);
	}
	r = io_set_nonblock(fd, true);
	if (!r) {
		c->watch = loop_watch_add(loop, fd, EPOLLIN, console_on_input, c);
		r = c->watch ? 0 : -errno;
	}
	if (r) {
		console_free(c);
		return err_set(err, r, "watch the guest's console");
	}
	*ret = c;
	return 0;
}

void console_free(struct console *c)
{
	if (!c)
		return;
	loop_watch_remove(c->watch);
	if (c->fd >= 0)
		close(c->fd);
	if (c->file >= 0)
		close(c->file);
	free(c);
}

const char *console_last_words(const struct console *c)
{
	return c->panic[0] ? c->panic : c->last;
}

bool console_saw_panic(const struct console *c)
{
	return c->panic[0] != '\0';
}

bool console_saw_restart(const struct console *c)
{
	return c->saw_restart;
}

uint64_t console_first_ns(const struct console *c)
{
	return c->first_ns;
}
