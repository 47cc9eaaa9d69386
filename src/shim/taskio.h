/*
 * Standard streams of one process: the FIFOs a client named, opened so that neither side's comings and
 * goings are mistaken for the end of the data, and handed to the VM's streams. Outputs may also go to a
 * file or to a logging program (logger.h).
 *
 * Keep-open ends: the shim holds a reader of each output FIFO (a client that goes away is no EPIPE, a full
 * FIFO blocks the container) and a writer of the input FIFO (a client that goes away is no end of file;
 * CloseIO is). They are closed when the stream is over, which is what the client sees as end of file.
 *
 * Threads: the loop's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "hv.h"
#include "logger.h"
#include "loop.h"

enum taskio_kind { TASKIO_FIFO, TASKIO_FILE, TASKIO_BINARY };

enum taskio_index { TASKIO_IN, TASKIO_OUT, TASKIO_ERR, TASKIO_MAX };

/* How long a client may take to open its ends of the output FIFOs. */
#define TASKIO_OPEN_LIMIT_NS 30000000000ull

struct taskio;
struct taskio_link;
typedef void (*taskio_opened_fn)(void *ctx, const struct err *err);

struct taskio_stream {
	enum taskio_kind kind;
	char *path;		  /* "" = not wanted; of a logging program: the whole URI */
	uint32_t id;		  /* in the VM, 0 = none */
	int fd;			  /* the container's end, until it is attached */
	int keep_fd;		  /* the shim's own end */
	struct hv_stream *stream; /* NULL = not attached, or over */
	struct taskio_link *link; /* what the stream's callback knows of us */
	struct logger_file file;  /* kind TASKIO_FILE */
	struct taskio *io;
};

struct taskio {
	struct loop *loop;
	bool terminal;
	bool stdin_closed; /* by CloseIO, maybe before anything was open */
	struct taskio_stream s[TASKIO_MAX];
	struct loop_timer retry;
	uint64_t retry_ns, deadline_ns;
	taskio_opened_fn opened;
	void *opened_ctx;
	struct logger logger;
	char *id, *namespace_; /* for the logging program */
	loop_fn drained;
	void *drained_ctx;
};

/*
 * Copies and checks the paths; opens nothing. Harmless to call taskio_done() after a failure. id: of the
 * container or the exec process, and its namespace, for logging programs.
 */
struct taskio_params {
	const char *const *paths; /* TASKIO_MAX of them */
	bool terminal;
	const char *id, *namespace_;
};
int taskio_init(struct taskio *io, struct loop *loop, const struct taskio_params *params,
		struct err *err);
/* Detaches and closes everything; may be opened again. No callback follows. Idempotent. */
void taskio_close(struct taskio *io);
void taskio_done(struct taskio *io);

/* Gives every wanted stream a number, counting *next up. */
void taskio_number(struct taskio *io, uint32_t *next);
/*
 * For a process that has streams already, of these numbers (TASKIO_MAX; 0 = none): what the client does not want of
 * it comes from and goes to /dev/null, and what it wants and there is not is over.
 */
void taskio_renumber(struct taskio *io, const uint32_t *ids);

/*
 * Opens the FIFOs, waiting for the client's readers; then calls opened (err->code 0 = all open), never
 * from inside this call.
 */
void taskio_open(struct taskio *io, taskio_opened_fn opened, void *ctx);

/*
 * Joins the open FIFOs to the VM's streams. drained (may be NULL) is called once from the loop when both
 * outputs are over and everything was written to the FIFOs.
 */
int taskio_attach(struct taskio *io, struct hv_vm *vm, loop_fn drained, void *ctx, struct err *err);
/* True when no output can come any more. */
bool taskio_is_drained(const struct taskio *io);
/* CloseIO: end of file for the process once the clients' writers are closed, too. */
void taskio_close_stdin(struct taskio *io);
