/*
 * Client of QEMU's machine protocol: one JSON object per line over a socket. QEMU has touched the
 * guest and is not trusted: lines, nesting and pending commands are bounded, and what does not fit the
 * protocol ends the connection.
 *
 * Threads: everything on the loop's thread.
 */
#pragma once

#include <json-c/json_object.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"

#define QMP_LINE_MAX (64 * 1024)
#define QMP_CALLS_MAX 16
#define QMP_COMMAND_MAX 512

enum qmp_kind { QMP_GREETING, QMP_RETURN, QMP_ERROR, QMP_EVENT };

struct qmp_message {
	enum qmp_kind kind;
	uint32_t id;		  /* of the command answered */
	const char *name;	  /* QMP_EVENT: its name; QMP_ERROR: its sentence; lives in root */
	struct json_object *data; /* "return" or "data" of the message, or NULL; lives in root */
	int major, minor;	  /* QMP_GREETING */
	struct json_object *root; /* owned: qmp_message_done() */
};

/* One line without its end. 0 or -EPROTO; *ret needs qmp_message_done() only after 0. */
int qmp_decode(const char *line, size_t len, struct qmp_message *ret);
void qmp_message_done(struct qmp_message *m);

struct qmp;

/* error NULL = done. Called once per command: -ETIMEDOUT and a lost connection are errors, too. */
typedef void (*qmp_done_fn)(void *ctx, const char *error);

struct qmp_callbacks {
	/* QEMU said its version; commands may be given from now on. */
	void (*on_greeting)(void *ctx, int major, int minor);
	/* data may be NULL; borrowed for the call. */
	void (*on_event)(void *ctx, const char *name, struct json_object *data);
	/* The connection is over: -EPIPE or -EPROTO. Once; pending commands were answered before. */
	void (*on_broken)(void *ctx, int err);
};

/* fd: owned from here on. NULL when the loop refuses it (errno set; fd closed). */
struct qmp *qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *cb, void *ctx);
/* Pending commands are forgotten: their callbacks do not run. Not from inside a callback of this client. */
void qmp_free(struct qmp *q);
/*
 * Sends {"execute": command}; the greeting must have come. done may be NULL. -EBUSY: too many pending;
 * -EPIPE: no connection.
 */
int qmp_call(struct qmp *q, const char *command, uint32_t timeout_ms, qmp_done_fn done, void *ctx);
/*
 * As above, with arguments (the text of a JSON object, ours; NULL = none) and a descriptor that goes with
 * the command (borrowed; -1 = none). -EMSGSIZE: longer than QMP_COMMAND_MAX.
 */
int qmp_call_with(struct qmp *q, const char *command, const char *arguments, int fd,
		  uint32_t timeout_ms, qmp_done_fn done, void *ctx);
/* Takes what is left to read right now (QEMU is gone). */
void qmp_drain(struct qmp *q);
