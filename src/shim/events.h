/*
 * Tells containerd what happened: an ordered, bounded queue in front of its event service. One event is on
 * its way at a time and leaves the queue when containerd has answered, so nothing is overtaken and nothing
 * is lost while containerd restarts: the publisher dials again until somebody answers.
 *
 * Threads: the loop's.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "loop.h"

/* Events waiting for containerd; beyond it new ones are refused (and counted in the log). */
#define EVENTS_QUEUE_MAX 2048

struct publisher;

/* address: path of containerd's ttrpc socket. Nothing is dialled before the first event. */
struct publisher *publisher_new(struct loop *loop, const char *address, const char *namespace_);
/* Drops what is still queued. Accepts NULL. */
void publisher_free(struct publisher *p);

/* Queues `event` (packed now, stamped now) as containerd.events.<name> under `topic`. */
void publisher_publish(struct publisher *p, const char *topic, const char *name,
		       const ProtobufCMessage *event);

/* Calls fn once, when the queue is empty or after timeout_ns, never from inside. One at a time. */
void publisher_flush(struct publisher *p, uint64_t timeout_ns, loop_fn fn, void *ctx);
