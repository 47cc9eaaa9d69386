/*
 * Netlink messages: building, walking, and one socket to send them through. Nothing here knows what a
 * message means; rtnl.h does, for links, addresses, routes and neighbours.
 *
 * Parsing is for hostile input: the functions that take a buffer are pure, never read outside of it and
 * end a walk at the first thing that does not fit. Format: linux/netlink.h, netlink(7).
 *
 * Errors: negative errno; with `err`, a sentence that has the kernel's own words in it where it sent some
 * (NETLINK_EXT_ACK). Thread: any one at a time per socket. Calls block, for NL_TIMEOUT_S at most.
 */
#pragma once

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

/* The largest message that is built here: a request. What the kernel dumps may be larger. */
#define NL_MSG_MAX 4096
#define NL_TIMEOUT_S 10

/* A message in the making. Appending over its end is noted and comes out when it is sent: -EMSGSIZE. */
struct nl_msg {
	_Alignas(struct nlmsghdr) uint8_t data[NL_MSG_MAX];
	size_t len;
	bool overflow;
};

/* Starts a message of `type` with NLM_F_* flags; `head` is the family's fixed part (struct ifinfomsg...). */
void nl_begin(struct nl_msg *m, uint16_t type, uint16_t flags, const void *head, size_t len);
void nl_put(struct nl_msg *m, uint16_t type, const void *data, size_t len);
void nl_put_u32(struct nl_msg *m, uint16_t type, uint32_t value);
/* With its NUL. */
void nl_put_text(struct nl_msg *m, uint16_t type, const char *text);
/* Attributes until nl_nest_end() are inside this one. Answers what nl_nest_end() wants. */
size_t nl_nest(struct nl_msg *m, uint16_t type);
void nl_nest_end(struct nl_msg *m, size_t nest);
/* Raw bytes, padded: for formats that put structs between attributes (RTA_MULTIPATH). Answers where. */
size_t nl_put_raw(struct nl_msg *m, const void *data, size_t len);

/*
 * Walks messages of a buffer: *off is where to go on, 0 first. Answers NULL at the end and at anything that
 * does not fit. A message that is answered lies in the buffer with its whole length, at least its header.
 */
const struct nlmsghdr *nl_next(const void *buf, size_t len, size_t *off);

/* One attribute: its number without flag bits, and its payload inside the buffer (not aligned). */
struct nl_attr {
	uint16_t type;
	const uint8_t *data;
	size_t len;
};
/* Walks attributes as nl_next() does messages. False at the end. */
bool nl_attr_next(const void *buf, size_t len, size_t *off, struct nl_attr *ret);
/* Attributes of a message behind its fixed part of head_len bytes. -EBADMSG: it is shorter than that. */
int nl_attrs(const struct nlmsghdr *h, size_t head_len, const uint8_t **ret, size_t *ret_len);
/* A number of exactly this size, else `otherwise`. */
uint32_t nl_attr_u32(const struct nl_attr *a, uint32_t otherwise);
/* Copies a text; false when it is empty, has no end or does not fit. */
bool nl_attr_text(const struct nl_attr *a, char *ret, size_t room);

struct nl_sock {
	int fd; /* owned, -1 = closed */
	uint32_t seq;
};

/* A socket of the caller's network namespace; it stays there, whatever the caller joins later. */
int nl_open(struct nl_sock *s, int protocol, struct err *err);
void nl_close(struct nl_sock *s);
/* One request, and its acknowledgement. `what` begins the sentence: "add address 10.0.0.1". */
int nl_request(struct nl_sock *s, struct nl_msg *m, struct err *err, const char *what);

/* Called for each message of a dump, borrowed for the call. Not 0 = stop, and that is the answer. */
typedef int (*nl_visit_fn)(void *ctx, const struct nlmsghdr *h);
/*
 * A dump. -EINTR: what is dumped changed meanwhile and the picture may be torn; all messages were seen, the
 * caller may ask again.
 */
int nl_dump(struct nl_sock *s, struct nl_msg *m, nl_visit_fn visit, void *ctx, struct err *err,
	    const char *what);
