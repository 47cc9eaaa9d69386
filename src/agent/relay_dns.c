/*
 * Datagrams to a name server: each goes over a connection of its own, with its length before it, and the answer
 * comes back so and leaves as a datagram. A query lives until it is answered, the connection ends, or
 * RELAY_QUERY_NS are over.
 */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "dns.h"
#include "relay_internal.h"

#define RELAY_QUERIES_MAX 64
#define RELAY_QUERY_NS 10000000000ull
#define RELAY_LENGTH 2
/* More than any name server's client sends as a datagram; what is longer is cut and refused there. */
#define RELAY_DATAGRAM_MAX 4096

struct relay_query {
	struct list link;
	struct relay_listener *listener;
	struct sockaddr_storage peer;
	socklen_t peer_len;
	size_t limit; /* of the answer */
	int fd;	      /* our end of the connection */
	struct loop_watch *watch;
	struct loop_timer timer;
	size_t len; /* of what has come */
	uint8_t answer[RELAY_LENGTH + DNS_MESSAGE_MAX];
};

static void relay_query_free(void *ctx)
{
	struct relay_query *q = ctx;

	list_remove(&q->link);
	q->listener->relay->nr_queries--;
	loop_timer_cancel(&q->timer);
	loop_watch_remove(q->watch);
	cleanup_closep(&q->fd);
	free(q);
}

void relay_drop_queries(struct relay *r)
{
	struct relay_query *q;

	list_for_each (q, &r->queries, link)
		relay_query_free(q);
}

static void relay_send_answer(struct relay_query *q, size_t len)
{
	len = dns_truncate(q->answer + RELAY_LENGTH, len, q->limit);
	/* A datagram that cannot be sent is one that got lost. */
	if (len && sendto(q->listener->udp_fd, q->answer + RELAY_LENGTH, len, MSG_NOSIGNAL,
			  (const struct sockaddr *)&q->peer, q->peer_len) < 0)
		errno = 0;
}

static void relay_on_answer(void *ctx, uint32_t events)
{
	struct relay_query *q = ctx;
	ssize_t n = read(q->fd, q->answer + q->len, sizeof(q->answer) - q->len);
	size_t want;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		relay_query_free(q);
		return;
	}
	q->len += (size_t)n;
	if (q->len < RELAY_LENGTH)
		return;
	want = (size_t)q->answer[0] << 8 | q->answer[1];
	if (q->len < RELAY_LENGTH + want)
		return;
	relay_send_answer(q, want);
	relay_query_free(q);
}

static struct relay_query *relay_query_new(struct relay_listener *l, int fd)
{
	struct relay_query *q = xcalloc(1, sizeof(*q));

	q->listener = l;
	q->fd = fd;
	q->peer_len = sizeof(q->peer);
	list_append(&l->relay->queries, &q->link);
	l->relay->nr_queries++;
	return q;
}

void relay_take_datagram(struct relay_listener *l)
{
	struct relay *r = l->relay;
	uint8_t query[RELAY_LENGTH + RELAY_DATAGRAM_MAX];
	struct relay_query *q;
	ssize_t n;
	int pair[2];

	/* The newest question is as good as the oldest: whoever asked that has given up by now. */
	if (r->nr_queries == RELAY_QUERIES_MAX)
		relay_query_free(list_entry(r->queries.next, struct relay_query, link));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return;
	q = relay_query_new(l, pair[0]);
	n = recvfrom(l->udp_fd, query + RELAY_LENGTH, RELAY_DATAGRAM_MAX, 0,
		     (struct sockaddr *)&q->peer, &q->peer_len);
	if (n > 0) {
		query[0] = (uint8_t)(n >> 8);
		query[1] = (uint8_t)n;
		q->limit = dns_query_limit(query + RELAY_LENGTH, (size_t)n);
		q->watch = loop_watch_add(r->loop, q->fd, EPOLLIN, relay_on_answer, q);
	}
	/* The pair's buffer is empty and larger than a datagram. */
	if (!q->watch || write(q->fd, query, RELAY_LENGTH + (size_t)n) != RELAY_LENGTH + n) {
		relay_query_free(q);
		close(pair[1]);
		return;
	}
	loop_timer_arm(r->loop, &q->timer, RELAY_QUERY_NS, relay_query_free, q);
	relay_hand_over(r, l->id, pair[1]);
}
