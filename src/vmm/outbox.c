/* Events to the shim; see outbox.h. */
#include "outbox.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "io.h"
#include "util.h"

struct outbox_item {
	struct list link;
	struct vmm_event event;
};

void outbox_init(struct outbox *o, int sock, struct loop_watch *watch)
{
	*o = (struct outbox){.sock = sock, .watch = watch};
	list_init(&o->waiting);
}

/* False: no room now. A socket that is gone swallows everything: its end is noticed elsewhere. */
static bool outbox_try(struct outbox *o, const struct vmm_event *event)
{
	ssize_t n;

	do
		n = send(o->sock, event, sizeof(*event), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n >= 0 || errno != EAGAIN;
}

void outbox_send(struct outbox *o, const struct vmm_event *event)
{
	struct outbox_item *item;

	if (list_is_empty(&o->waiting) && outbox_try(o, event))
		return;
	item = xcalloc(1, sizeof(*item));
	item->event = *event;
	list_append(&o->waiting, &item->link);
	loop_watch_set(o->watch, EPOLLIN | EPOLLOUT);
}

void outbox_flush(struct outbox *o)
{
	struct outbox_item *item;

	list_for_each (item, &o->waiting, link) {
		if (!outbox_try(o, &item->event))
			return;
		list_remove(&item->link);
		free(item);
	}
	loop_watch_set(o->watch, EPOLLIN);
}

void outbox_drain(struct outbox *o)
{
	io_set_nonblock(o->sock, false);
	outbox_flush(o);
}

void outbox_done(struct outbox *o)
{
	struct outbox_item *item;

	list_for_each (item, &o->waiting, link) {
		list_remove(&item->link);
		free(item);
	}
}
