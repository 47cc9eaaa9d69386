/*
 * The publisher; see events.h.
 *
 * A call has no time limit of its own: a containerd that is stopped and continued would otherwise get
 * the same event many times. What ends a call is its answer or the end of the connection, and only the
 * latter is tried again. An answer that says the event itself is bad drops the event, so that it cannot
 * block those behind it.
 *
 * The client library's callbacks only note what happened; the connection is freed from a timer, never from
 * inside its own callback.
 */
#include "events.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "cleanup.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "rpc.h"
#include "util.h"

#define EVENTS_SERVICE "containerd.services.events.ttrpc.v1.Events"
#define EVENTS_RETRY_MIN_NS 50000000ull
#define EVENTS_RETRY_MAX_NS 1000000000ull

struct event {
	struct list link;
	struct timespec at;
	char *topic;
	char *type_url;
	uint8_t *data;
	size_t len;
};

struct publisher {
	struct loop *loop;
	char *address, *namespace_;
	struct list queue;
	size_t nr_queued;
	unsigned int nr_refused;
	struct rpc_client *client; /* NULL = not connected */
	bool in_flight;		   /* the first of the queue was sent */
	bool client_dead;	   /* to be freed by the timer */
	bool is_down;		   /* said so in the log */
	uint64_t retry_ns;
	struct loop_timer retry;
	struct loop_timer flush_timer;
	loop_fn flush_fn;
	void *flush_ctx;
};

static void publisher_kick(struct publisher *p);

static void event_free(struct event *e)
{
	list_remove(&e->link);
	free(e->topic);
	free(e->type_url);
	free(e->data);
	free(e);
}

struct publisher *publisher_new(struct loop *loop, const char *address, const char *namespace_)
{
	struct publisher *p = xcalloc(1, sizeof(*p));

	p->loop = loop;
	p->address = xstrdup(address);
	p->namespace_ = xstrdup(namespace_);
	p->retry_ns = EVENTS_RETRY_MIN_NS;
	list_init(&p->queue);
	return p;
}

void publisher_free(struct publisher *p)
{
	struct event *e;

	if (!p)
		return;
	loop_timer_cancel(&p->retry);
	loop_timer_cancel(&p->flush_timer);
	p->flush_fn = NULL;
	/* The callbacks of calls under way run in here; they must find nothing to do. */
	p->client_dead = true;
	rpc_client_free(p->client);
	loop_timer_cancel(&p->retry);
	list_for_each (e, &p->queue, link)
		event_free(e);
	free(p->address);
	free(p->namespace_);
	free(p);
}

static void publisher_flushed(void *ctx)
{
	struct publisher *p = ctx;
	loop_fn fn = p->flush_fn;

	loop_timer_cancel(&p->flush_timer);
	p->flush_fn = NULL;
	if (fn)
		fn(p->flush_ctx);
}

void publisher_flush(struct publisher *p, uint64_t timeout_ns, loop_fn fn, void *ctx)
{
	p->flush_fn = fn;
	p->flush_ctx = ctx;
	loop_timer_arm(p->loop, &p->flush_timer, p->nr_queued ? timeout_ns : 0, publisher_flushed,
		       p);
}

static void publisher_retry(void *ctx)
{
	struct publisher *p = ctx;

	if (p->client_dead) {
		struct rpc_client *client = take_ptr(&p->client);

		rpc_client_free(client);
		p->client_dead = false;
		p->in_flight = false;
	}
	publisher_kick(p);
}

static void publisher_retry_later(struct publisher *p)
{
	loop_timer_arm(p->loop, &p->retry, p->retry_ns, publisher_retry, p);
	p->retry_ns = MIN(p->retry_ns * 2, EVENTS_RETRY_MAX_NS);
}

/* The connection ended; all calls on it have been answered. */
static void publisher_closed(void *ctx)
{
	struct publisher *p = ctx;

	if (p->client_dead)
		return;
	p->client_dead = true;
	publisher_retry_later(p);
}

static void publisher_done(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			   const char *message)
{
	struct publisher *p = ctx;
	struct event *e = list_entry(p->queue.next, struct event, link);

	p->in_flight = false;
	if (p->client_dead)
		return;
	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED) {
		/* Closed (publisher_closed follows, or came already) or not up yet. */
		publisher_retry_later(p);
		return;
	}
	if (code != RPC_OK)
		log_warn("events", "containerd refuses event %s: %s", e->topic, message);
	p->is_down = false;
	p->retry_ns = EVENTS_RETRY_MIN_NS;
	p->nr_queued--;
	event_free(e);
	loop_timer_arm(p->loop, &p->retry, 0, publisher_retry, p);
}

static int publisher_dial(struct publisher *p)
{
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	if (fd < 0)
		return -errno;
	if (strlen(p->address) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", p->address);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return -errno;
	p->client = rpc_client_new(p->loop, take_fd(&fd), publisher_closed, p);
	return p->client ? 0 : -EIO;
}

static int publisher_send(struct publisher *p, const struct event *e)
{
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;
	Ctrd__Any any = CTRD__ANY__INIT;
	Ctrd__Envelope envelope = CTRD__ENVELOPE__INIT;
	Ctrd__ForwardRequest forward = CTRD__FORWARD_REQUEST__INIT;
	struct rpc_request req = {.service = EVENTS_SERVICE,
				  .method = "Forward",
				  .request = &forward.base,
				  .namespace_ = p->namespace_};

	at.seconds = e->at.tv_sec;
	at.nanos = (int32_t)e->at.tv_nsec;
	any.type_url = e->type_url;
	any.value.data = e->data;
	any.value.len = e->len;
	envelope.timestamp = &at;
	envelope.namespace_ = p->namespace_;
	envelope.topic = e->topic;
	envelope.event = &any;
	forward.envelope = &envelope;
	return rpc_client_call(p->client, &req, publisher_done, p);
}

static void publisher_kick(struct publisher *p)
{
	struct event *e;
	int r = 0;

	if (p->flush_fn && !p->nr_queued)
		loop_timer_arm(p->loop, &p->flush_timer, 0, publisher_flushed, p);
	if (p->in_flight || p->retry.loop || !p->nr_queued)
		return;
	if (!p->client)
		r = publisher_dial(p);
	if (r) {
		if (!p->is_down)
			log_warn("events", "containerd's event socket '%s': %s; will try again",
				 p->address, strerror(-r));
		p->is_down = true;
		publisher_retry_later(p);
		return;
	}
	e = list_entry(p->queue.next, struct event, link);
	r = publisher_send(p, e);
	if (!r) {
		p->in_flight = true;
	} else if (r == -EMSGSIZE) {
		log_warn("events", "event %s is too large for a message: dropped", e->topic);
		p->nr_queued--;
		event_free(e);
		loop_timer_arm(p->loop, &p->retry, 0, publisher_retry, p);
	} else {
		publisher_closed(p);
	}
}

void publisher_publish(struct publisher *p, const char *topic, const char *name,
		       const ProtobufCMessage *event)
{
	struct event *e;

	if (p->nr_queued >= EVENTS_QUEUE_MAX) {
		if (!p->nr_refused++)
			log_err("events", "%d events wait for containerd: new ones are lost",
				EVENTS_QUEUE_MAX);
		return;
	}
	e = xcalloc(1, sizeof(*e));
	clock_gettime(CLOCK_REALTIME, &e->at);
	e->topic = xstrdup(topic);
	e->type_url = xasprintf("containerd.events.%s", name);
	e->len = protobuf_c_message_get_packed_size(event);
	e->data = xmalloc(e->len);
	protobuf_c_message_pack(event, e->data);
	list_append(&p->queue, &e->link);
	p->nr_queued++;
	publisher_kick(p);
}
