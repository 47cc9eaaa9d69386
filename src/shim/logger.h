/*
 * Where output goes when it is not a FIFO: a logging program (binary://) or a file (file://).
 *
 * The program gets stdout on descriptor 3, stderr on 4, and a pipe on 5 that it closes (or writes to) when it
 * is ready. It lives until both pipes end.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "err.h"
#include "loop.h"

struct logger {
	pid_t pid; /* 0 = none */
	int pidfd, ready_fd;
};

/*
 * uri: binary:///path?key=value&...; the program's arguments are key value ..., its environment the two
 * variables every logger knows. ret_fds: write ends for stdout and stderr, non-blocking. id: of the
 * container, or of the exec process.
 */
int logger_start(struct logger *l, const char *uri, const char *id, const char *namespace_,
		 int ret_fds[2], struct err *err);
/* It is ready, or gone. Does not block. */
bool logger_is_ready(struct logger *l);
/* After both pipes were closed: gives it a moment to end, then SIGTERM, then SIGKILL. Blocks for seconds at
 * most. Harmless when there is none. */
void logger_stop(struct logger *l);

/* One file, fed through a pipe: files cannot be watched for being writable, and never block for long. */
struct logger_file {
	struct loop *loop;
	int rfd, file; /* -1 = not open, or at its end */
	bool failed;   /* said so in the log; what comes is dropped */
	struct loop_watch *watch;
	loop_fn over; /* end of file was reached and everything written */
	void *ctx;
};

/* Opens for appending, made with its folders when missing. Returns the write end of the pipe. */
int logger_file_open(struct logger_file *f, struct loop *loop, const char *path, loop_fn over,
		     void *ctx, struct err *err);
/* Writes what is in the pipe now, closes. No callback. Harmless when not open. */
void logger_file_close(struct logger_file *f);
