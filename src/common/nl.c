/*
 * Netlink; see nl.h.
 *
 * A socket that was left in the middle of an answer would take the rest for the next one: every wait goes by
 * the sequence number, and what belongs to an earlier request is dropped. Only the kernel may speak: messages
 * of another sender (port id not 0) are dropped too.
 */
#include "nl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "cleanup.h"

/* What the kernel fills at most per message of a dump (NLMSG_GOODSIZE is 8 KiB; links are larger). */
#define NL_BUF_LEN (64 * 1024)

static void *nl_reserve(struct nl_msg *m, size_t len)
{
	size_t total = NLMSG_ALIGN(len);
	void *at;

	if (m->overflow || total < len || total > sizeof(m->data) - m->len) {
		m->overflow = true;
		return NULL;
	}
	at = m->data + m->len;
	memset(at, 0, total);
	m->len += total;
	return at;
}

void nl_begin(struct nl_msg *m, uint16_t type, uint16_t flags, const void *head, size_t len)
{
	struct nlmsghdr h = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags};

	m->len = 0;
	m->overflow = false;
	nl_put_raw(m, &h, sizeof(h));
	nl_put_raw(m, head, len);
}

size_t nl_put_raw(struct nl_msg *m, const void *data, size_t len)
{
	size_t where = m->len;
	void *at = nl_reserve(m, len);

	if (at && len)
		memcpy(at, data, len);
	return where;
}

void nl_put(struct nl_msg *m, uint16_t type, const void *data, size_t len)
{
	struct nlattr a = {.nla_type = type};
	uint8_t *at;

	if (len > NL_MSG_MAX) {
		m->overflow = true;
		return;
	}
	a.nla_len = (uint16_t)(NLA_HDRLEN + len);
	at = nl_reserve(m, a.nla_len);
	if (!at)
		return;
	memcpy(at, &a, sizeof(a));
	if (len)
		memcpy(at + NLA_HDRLEN, data, len);
}

void nl_put_u32(struct nl_msg *m, uint16_t type, uint32_t value)
{
	nl_put(m, type, &value, sizeof(value));
}

void nl_put_text(struct nl_msg *m, uint16_t type, const char *text)
{
	nl_put(m, type, text, strlen(text) + 1);
}

size_t nl_nest(struct nl_msg *m, uint16_t type)
{
	size_t nest = m->len;

	nl_put(m, type, NULL, 0);
	return nest;
}

void nl_nest_end(struct nl_msg *m, size_t nest)
{
	uint16_t len = (uint16_t)(m->len - nest);

	if (!m->overflow)
		memcpy(m->data + nest, &len, sizeof(len));
}

const struct nlmsghdr *nl_next(const void *buf, size_t len, size_t *off)
{
	const uint8_t *at = (const uint8_t *)buf + *off;
	struct nlmsghdr h;

	if (*off > len || len - *off < sizeof(h))
		return NULL;
	memcpy(&h, at, sizeof(h));
	if (h.nlmsg_len < sizeof(h) || h.nlmsg_len > len - *off)
		return NULL;
	*off += MIN((size_t)NLMSG_ALIGN(h.nlmsg_len), len - *off);
	return (const void *)at;
}

bool nl_attr_next(const void *buf, size_t len, size_t *off, struct nl_attr *ret)
{
	const uint8_t *at = (const uint8_t *)buf + *off;
	struct nlattr a;

	if (*off > len || len - *off < sizeof(a))
		return false;
	memcpy(&a, at, sizeof(a));
	if (a.nla_len < sizeof(a) || a.nla_len > len - *off)
		return false;
	*off += MIN((size_t)NLA_ALIGN(a.nla_len), len - *off);
	ret->type = a.nla_type & NLA_TYPE_MASK;
	ret->data = at + NLA_HDRLEN;
	ret->len = a.nla_len - NLA_HDRLEN;
	return true;
}

int nl_attrs(const struct nlmsghdr *h, size_t head_len, const uint8_t **ret, size_t *ret_len)
{
	size_t head = NLMSG_HDRLEN + NLMSG_ALIGN(head_len);

	if (h->nlmsg_len < NLMSG_HDRLEN + head_len)
		return -EBADMSG;
	*ret = (const uint8_t *)h + MIN(head, (size_t)h->nlmsg_len);
	*ret_len = h->nlmsg_len > head ? h->nlmsg_len - head : 0;
	return 0;
}

uint32_t nl_attr_u32(const struct nl_attr *a, uint32_t otherwise)
{
	uint32_t value;

	if (a->len != sizeof(value))
		return otherwise;
	memcpy(&value, a->data, sizeof(value));
	return value;
}

bool nl_attr_text(const struct nl_attr *a, char *ret, size_t room)
{
	size_t len = strnlen((const char *)a->data, a->len);

	if (!len || len == a->len || len >= room)
		return false;
	memcpy(ret, a->data, len + 1);
	return true;
}

int nl_open(struct nl_sock *s, int protocol, struct err *err)
{
	struct timeval limit = {.tv_sec = NL_TIMEOUT_S};
	struct sockaddr_nl self = {.nl_family = AF_NETLINK};
	cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	int on = 1;

	s->fd = -1;
	if (fd < 0 || bind(fd, (const struct sockaddr *)&self, sizeof(self)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
		return err_set(err, -errno, "netlink socket");
	/* Wanted, not needed: sentences with errors, no copy of the request, filtered dumps. */
	setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
	setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
	setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on));
	s->fd = take_fd(&fd);
	s->seq = 0;
	return 0;
}

void nl_close(struct nl_sock *s)
{
	cleanup_closep(&s->fd);
}

static int nl_send(struct nl_sock *s, struct nl_msg *m)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	struct nlmsghdr h;

	if (m->overflow)
		return -EMSGSIZE;
	memcpy(&h, m->data, sizeof(h));
	h.nlmsg_len = (uint32_t)m->len;
	h.nlmsg_seq = ++s->seq;
	memcpy(m->data, &h, sizeof(h));
	return sendto(s->fd, m->data, m->len, 0, (const struct sockaddr *)&kernel, sizeof(kernel)) <
			       0
		       ? -errno
		       : 0;
}

/* One datagram of the kernel's. 0 = one of somebody else's, or interrupted: ask again. */
static ssize_t nl_receive(const struct nl_sock *s, void *buf)
{
	struct sockaddr_nl from = {0};
	socklen_t from_len = sizeof(from);
	ssize_t n =
		recvfrom(s->fd, buf, NL_BUF_LEN, MSG_TRUNC, (struct sockaddr *)&from, &from_len);

	if (n < 0)
		return errno == EINTR ? 0 : errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (n > NL_BUF_LEN)
		return -EMSGSIZE;
	return from_len == sizeof(from) && !from.nl_pid ? n : 0;
}

/* The kernel's own words behind an error; "" = none. With NETLINK_CAP_ACK the request is not repeated. */
static void nl_error_text(const struct nlmsghdr *h, char *ret, size_t room)
{
	size_t off = 0, len, head = sizeof(struct nlmsgerr);
	struct nlmsgerr e;
	struct nl_attr a;
	const uint8_t *attrs;

	ret[0] = '\0';
	if (!(h->nlmsg_flags & NLM_F_ACK_TLVS))
		return;
	memcpy(&e, (const uint8_t *)h + NLMSG_HDRLEN, sizeof(e));
	if (!(h->nlmsg_flags & NLM_F_CAPPED) && e.msg.nlmsg_len > sizeof(e.msg))
		head += e.msg.nlmsg_len - sizeof(e.msg);
	if (nl_attrs(h, head, &attrs, &len))
		return;
	while (nl_attr_next(attrs, len, &off, &a)) {
		if (a.type == NLMSGERR_ATTR_MSG && nl_attr_text(&a, ret, room))
			return;
	}
}

static int nl_read_error(const struct nlmsghdr *h, struct err *err, const char *what)
{
	struct nlmsgerr e;
	char text[160];

	if (h->nlmsg_len < NLMSG_HDRLEN + sizeof(e.error))
		return err_say(err, -EBADMSG, "%s: the kernel's answer is cut short", what);
	memcpy(&e.error, (const uint8_t *)h + NLMSG_HDRLEN, sizeof(e.error));
	if (!e.error)
		return 0;
	if (e.error > 0)
		return err_say(err, -EBADMSG, "%s: the kernel answered nonsense", what);
	text[0] = '\0';
	if (h->nlmsg_len >= NLMSG_HDRLEN + sizeof(e))
		nl_error_text(h, text, sizeof(text));
	return text[0] ? err_set(err, e.error, "%s: %s", what, text)
		       : err_set(err, e.error, "%s", what);
}

struct nl_answer {
	const struct nl_sock *sock;
	nl_visit_fn visit; /* NULL = only the acknowledgement counts */
	void *ctx;
	struct err *err;
	const char *what;
	bool done, torn;
};

static int nl_take(struct nl_answer *a, const struct nlmsghdr *h)
{
	if (h->nlmsg_seq != a->sock->seq || h->nlmsg_type == NLMSG_NOOP)
		return 0;
	if (h->nlmsg_flags & NLM_F_DUMP_INTR)
		a->torn = true;
	if (h->nlmsg_type == NLMSG_ERROR || h->nlmsg_type == NLMSG_DONE) {
		a->done = true;
		/* The end of a dump has an error code too, or nothing. */
		if (h->nlmsg_type == NLMSG_DONE && h->nlmsg_len < NLMSG_HDRLEN + sizeof(int))
			return 0;
		return nl_read_error(h, a->err, a->what);
	}
	return a->visit ? a->visit(a->ctx, h) : 0;
}

/* Reads until the request is answered. After a visitor's word to stop, the rest is read, not shown. */
static int nl_collect(struct nl_answer *a)
{
	cleanup_free uint8_t *buf = xmalloc(NL_BUF_LEN);
	int r = 0;

	while (!a->done) {
		const struct nlmsghdr *h;
		ssize_t n = nl_receive(a->sock, buf);
		size_t off = 0;

		if (n < 0)
			return err_set(a->err, (int)n, "%s: netlink", a->what);
		while (!a->done && (h = nl_next(buf, (size_t)n, &off))) {
			int e = nl_take(a, h);

			if (e && !r) {
				r = e;
				a->visit = NULL;
			}
		}
	}
	return r;
}

int nl_request(struct nl_sock *s, struct nl_msg *m, struct err *err, const char *what)
{
	struct nl_answer a = {.sock = s, .err = err, .what = what};
	struct nlmsghdr h;
	int r;

	memcpy(&h, m->data, sizeof(h));
	h.nlmsg_flags |= NLM_F_ACK;
	memcpy(m->data, &h, sizeof(h));
	r = nl_send(s, m);
	return r ? err_set(err, r, "%s: netlink", what) : nl_collect(&a);
}

int nl_dump(struct nl_sock *s, struct nl_msg *m, nl_visit_fn visit, void *ctx, struct err *err,
	    const char *what)
{
	struct nl_answer a = {.sock = s, .visit = visit, .ctx = ctx, .err = err, .what = what};
	struct nlmsghdr h;
	int r;

	memcpy(&h, m->data, sizeof(h));
	h.nlmsg_flags |= NLM_F_DUMP;
	memcpy(m->data, &h, sizeof(h));
	r = nl_send(s, m);
	if (r)
		return err_set(err, r, "%s: netlink", what);
	r = nl_collect(&a);
	return r ? r : a.torn ? -EINTR : 0;
}
