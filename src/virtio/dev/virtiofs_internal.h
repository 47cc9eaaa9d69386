/* What the parts of the virtio-fs device share; see virtiofs.h. */
#pragma once

#include <limits.h>

#include <linux/fuse.h>

#include "virtiofs.h"
#include "virtiofs_files.h"
#include "virtiofs_link.h"
#include "virtiofs_window.h"

/* Queue 0 carries FORGET and has link 0. */
#define VIRTIOFS_QUEUE_HIPRIO 0
#define VIRTIOFS_QUEUE_REQUEST 1
#define VIRTIOFS_NR_QUEUES 2
/* One of them may wait for changes by others (FS_EVENTS_NAME). */
#define VIRTIOFS_WORKERS 5
#define VIRTIOFS_LINKS (1 + VIRTIOFS_WORKERS)

/* Header and fixed arguments, as far as this side looks at them. */
struct virtiofs_head {
	struct fuse_in_header h;
	union {
		struct fuse_read_in read;
		struct fuse_write_in write;
		struct fuse_release_in release;
		struct fuse_setupmapping_in map;
		struct fuse_removemapping_in unmap;
	};
};

/* What serves one request at a time; a worker takes one that is free. */
struct virtiofs_lane {
	struct virtiofs *f;
	const struct virtiofs_link *link;
	struct virtiofs_lane *next_free; /* f->lock */
	struct virtq_chain chain;
	/* The request being served: copied once, then judged. */
	struct virtiofs_head head;
	size_t head_len; /* of head, what is there of it */
	size_t req_len, room;
	struct iovec iov[IOV_MAX];
};

struct virtiofs {
	struct virtio_device dev;
	struct virtiofs_params params;
	uint8_t config[VIRTIOFS_TAG_MAX + 4];
	struct virtiofs_channel channel;
	struct virtiofs_files files;
	struct virtiofs_window window;
	int event_fd; /* owned eventfd, the loop's: lost, or a revoked file was closed */
	struct loop_watch *trunk_watch, *event_watch;
	/* The loop's: revocations not answered yet. */
	uint64_t revoking[8];
	unsigned int nr_revoking;
	bool greeted;
	bool lost_told;
	pthread_mutex_t lock;		  /* around the queues' virtq_ calls, and: */
	struct virtiofs_lane *free_lanes; /* of the request queue */
	const char *lost;		  /* why the session is over; NULL = it is not */
	uint64_t nr_direct, nr_channel;
	struct virtiofs_lane *lanes; /* owned: VIRTIOFS_LINKS of them */
};

/* virtiofs_serve.c: the bytes of the answer. Worker's thread. */
size_t virtiofs_serve(struct virtiofs_lane *l);
/* Maps what a saved machine had mapped. Loop's thread; no worker serves. */
int virtiofs_serve_map(struct virtiofs *f, uint64_t at, uint64_t node_id, uint64_t offset);
/* Any thread: nothing works any more, for the reason in the static text. */
void virtiofs_lose(struct virtiofs *f, const char *why);
