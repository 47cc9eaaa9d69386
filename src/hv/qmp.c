/*
 * QMP client; see qmp.h.
 *
 * Thread: the loop's. Callbacks run from the loop only. Once the connection is over nothing is
 * delivered any more; the owner frees the client when it likes.
 *
 * Protocol: QEMU docs/interop/qmp-spec. After the greeting the client enters command mode with
 * qmp_capabilities, which is sent here; events come only after that.
 */
#include "qmp.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json_tokener.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buf.h"
#include "cleanup.h"
#include "io.h"
#include "log.h"

#define QMP_DEPTH_MAX 16
#define QMP_READ_MAX 4096
#define QMP_CAPABILITIES_TIMEOUT_MS 10000

struct qmp_call {
	bool used;
	uint32_t id;
	struct loop_timer timer;
	qmp_done_fn done;
	void *ctx;
	struct qmp *qmp;
};

struct qmp {
	struct loop *loop;
	struct loop_watch *watch;
	int fd; /* owned */
	struct qmp_callbacks cb;
	void *ctx;
	struct buf in;
	uint32_t next_id;
	struct qmp_call calls[QMP_CALLS_MAX];
};

void qmp_message_done(struct qmp_message *m)
{
	json_object_put(m->root);
	m->root = NULL;
}

static struct json_object *qmp_get(struct json_object *o, const char *key, enum json_type type)
{
	struct json_object *v;

	if (!o || !json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, type))
		return NULL;
	return v;
}

static int qmp_decode_greeting(struct json_object *qmp, struct qmp_message *m)
{
	struct json_object *version = qmp_get(qmp, "version", json_type_object);
	struct json_object *qemu = qmp_get(version, "qemu", json_type_object);
	struct json_object *major = qmp_get(qemu, "major", json_type_int);
	struct json_object *minor = qmp_get(qemu, "minor", json_type_int);

	if (!major || !minor)
		return -EPROTO;
	m->kind = QMP_GREETING;
	m->major = json_object_get_int(major);
	m->minor = json_object_get_int(minor);
	return m->major >= 0 && m->minor >= 0 ? 0 : -EPROTO;
}

static int qmp_decode_answer(struct qmp_message *m)
{
	struct json_object *id = qmp_get(m->root, "id", json_type_int);
	struct json_object *error = qmp_get(m->root, "error", json_type_object);
	struct json_object *desc = qmp_get(error, "desc", json_type_string);
	int64_t n = id ? json_object_get_int64(id) : -1;

	/* An answer without our number is to something we never sent. */
	if (n < 0 || n > UINT32_MAX)
		return -EPROTO;
	m->id = (uint32_t)n;
	if (error && !desc)
		return -EPROTO;
	if (error) {
		m->kind = QMP_ERROR;
		m->name = json_object_get_string(desc);
		return 0;
	}
	m->kind = QMP_RETURN;
	return json_object_object_get_ex(m->root, "return", &m->data) ? 0 : -EPROTO;
}

static int qmp_decode_object(struct qmp_message *m)
{
	struct json_object *qmp = qmp_get(m->root, "QMP", json_type_object);
	struct json_object *event = qmp_get(m->root, "event", json_type_string);

	if (qmp)
		return qmp_decode_greeting(qmp, m);
	if (event) {
		m->kind = QMP_EVENT;
		m->name = json_object_get_string(event);
		m->data = qmp_get(m->root, "data", json_type_object);
		return 0;
	}
	return qmp_decode_answer(m);
}

static void qmp_tokener_freep(struct json_tokener **t)
{
	if (*t)
		json_tokener_free(*t);
}

int qmp_decode(const char *line, size_t len, struct qmp_message *ret)
{
	cleanup(qmp_tokener_freep) struct json_tokener *t = json_tokener_new_ex(QMP_DEPTH_MAX);
	struct qmp_message m = {0};

	if (!t || !len || len > QMP_LINE_MAX)
		return -EPROTO;
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	m.root = json_tokener_parse_ex(t, line, (int)len);
	if (json_tokener_get_error(t) != json_tokener_success ||
	    json_tokener_get_parse_end(t) != len ||
	    !json_object_is_type(m.root, json_type_object) || qmp_decode_object(&m)) {
		qmp_message_done(&m);
		return -EPROTO;
	}
	*ret = m;
	return 0;
}

static void qmp_call_finish(struct qmp_call *c, const char *error)
{
	if (!c->used)
		return;
	loop_timer_cancel(&c->timer);
	c->used = false;
	if (c->done)
		c->done(c->ctx, error);
}

static void qmp_break(struct qmp *q, int err)
{
	if (!q->watch)
		return;
	loop_watch_remove(q->watch);
	q->watch = NULL;
	for (size_t i = 0; i < QMP_CALLS_MAX; i++)
		qmp_call_finish(&q->calls[i], "the connection to QEMU is over");
	q->cb.on_broken(q->ctx, err);
}

static void qmp_on_timeout(void *ctx)
{
	qmp_call_finish(ctx, "QEMU does not answer");
}

static int qmp_send(struct qmp *q, const char *command, const char *arguments, int fd, uint32_t id)
{
	char line[QMP_COMMAND_MAX];
	int n = snprintf(line, sizeof(line), "{\"execute\":\"%s\"%s%s,\"id\":%" PRIu32 "}\n",
			 command, arguments ? ",\"arguments\":" : "", arguments ? arguments : "",
			 id);

	if (n < 0 || (size_t)n >= sizeof(line))
		return -EMSGSIZE;
	/* Commands are short and few: a full socket means that QEMU stopped reading them. */
	return io_send_fds(q->fd, line, (size_t)n, &fd, fd >= 0);
}

int qmp_call_with(struct qmp *q, const char *command, const char *arguments, int fd,
		  uint32_t timeout_ms, qmp_done_fn done, void *ctx)
{
	struct qmp_call *c = NULL;
	int r;

	if (!q->watch)
		return -EPIPE;
	for (size_t i = 0; i < QMP_CALLS_MAX && !c; i++)
		c = q->calls[i].used ? NULL : &q->calls[i];
	if (!c)
		return -EBUSY;
	r = qmp_send(q, command, arguments, fd, q->next_id);
	if (r)
		return r;
	*c = (struct qmp_call){
		.used = true, .id = q->next_id++, .done = done, .ctx = ctx, .qmp = q};
	loop_timer_arm(q->loop, &c->timer, timeout_ms * 1000000ull, qmp_on_timeout, c);
	return 0;
}

int qmp_call(struct qmp *q, const char *command, uint32_t timeout_ms, qmp_done_fn done, void *ctx)
{
	return qmp_call_with(q, command, NULL, -1, timeout_ms, done, ctx);
}

static void qmp_answer(struct qmp *q, const struct qmp_message *m)
{
	for (size_t i = 0; i < QMP_CALLS_MAX; i++) {
		if (q->calls[i].used && q->calls[i].id == m->id) {
			qmp_call_finish(&q->calls[i], m->kind == QMP_ERROR ? m->name : NULL);
			return;
		}
	}
	log_dbg("qmp", "late answer to command %" PRIu32, m->id);
}

static void qmp_dispatch(struct qmp *q, const struct qmp_message *m)
{
	switch (m->kind) {
	case QMP_GREETING:
		qmp_call(q, "qmp_capabilities", QMP_CAPABILITIES_TIMEOUT_MS, NULL, NULL);
		q->cb.on_greeting(q->ctx, m->major, m->minor);
		return;
	case QMP_EVENT:
		q->cb.on_event(q->ctx, m->name, m->data);
		return;
	case QMP_RETURN:
	case QMP_ERROR:
		qmp_answer(q, m);
		return;
	}
}

/* 0, or -EPROTO. */
static int qmp_line(struct qmp *q, const char *line, size_t len)
{
	struct qmp_message m;
	int r;

	while (len && line[len - 1] == '\r')
		len--;
	if (!len)
		return 0;
	r = qmp_decode(line, len, &m);
	if (r)
		return r;
	qmp_dispatch(q, &m);
	qmp_message_done(&m);
	return 0;
}

static int qmp_lines(struct qmp *q)
{
	const uint8_t *start, *nl;
	int r = 0;

	while (!r && q->watch && q->in.len) {
		start = buf_head(&q->in);
		nl = memchr(start, '\n', q->in.len);
		if (!nl)
			return q->in.len >= QMP_LINE_MAX ? -EPROTO : 0;
		r = qmp_line(q, (const char *)start, (size_t)(nl - start));
		buf_consume(&q->in, (size_t)(nl - start) + 1);
	}
	return r;
}

/* Returns false when nothing more is to be had now. */
static bool qmp_read(struct qmp *q)
{
	uint8_t *p = buf_reserve(&q->in, QMP_READ_MAX);
	ssize_t n = p ? read(q->fd, p, QMP_READ_MAX) : 0;
	int r;

	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		qmp_break(q, p ? -EPIPE : -EPROTO);
		return false;
	}
	buf_commit(&q->in, (size_t)n);
	r = qmp_lines(q);
	if (r)
		qmp_break(q, r);
	return !r;
}

static void qmp_on_input(void *ctx, uint32_t events)
{
	qmp_read(ctx);
}

void qmp_drain(struct qmp *q)
{
	while (q->watch && qmp_read(q))
		;
}

struct qmp *qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *cb, void *ctx)
{
	struct qmp *q = xcalloc(1, sizeof(*q));

	*q = (struct qmp){.loop = loop, .fd = fd, .cb = *cb, .ctx = ctx, .next_id = 1};
	buf_init(&q->in, QMP_LINE_MAX + QMP_READ_MAX);
	if (!io_set_nonblock(fd, true))
		q->watch = loop_watch_add(loop, fd, EPOLLIN, qmp_on_input, q);
	if (!q->watch) {
		qmp_free(q);
		return NULL;
	}
	return q;
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	loop_watch_remove(q->watch);
	for (size_t i = 0; i < QMP_CALLS_MAX; i++)
		loop_timer_cancel(&q->calls[i].timer);
	cleanup_closep(&q->fd);
	buf_done(&q->in);
	free(q);
}
