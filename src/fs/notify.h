/*
 * Watching what others change in the trees of a guest; see fs_events.h for what is made of it.
 *
 * The guest's kernel does not tell what its processes watch, so every directory that the guest knows of an export
 * which is not its alone is watched here (fanotify, with marks of inodes), as soon as somebody in the guest has opened
 * the file of events. What harpoon-fs does itself is left out: the guest has seen that.
 *
 * Bounds: FS_NOTIFY_DIRS_MAX directories, what the kernel keeps of events that nobody reads (16384), one answer's
 * records at a time. What is beyond them is not told.
 */
#pragma once

#include "fs_internal.h"
#include "list.h"

#define FS_NOTIFY_DIRS_MAX 16384
#define FS_NOTIFY_RECORDS_MAX 256
#define FS_NOTIFY_HANDLE_MAX 64

/* The file of events, and files that are only there to be removed: no slot has such numbers. */
#define FS_EVENTS_ID (1ULL << 32 | FUSE_ROOT_ID)
#define FS_GHOST_FIRST (2ULL << 32 | FUSE_ROOT_ID)

struct fs_notify_watch {
	struct fs_notify_watch *next; /* of its bucket */
	uint64_t node_id;
	uint32_t len;
	uint8_t handle[FS_NOTIFY_HANDLE_MAX]; /* type and bytes, as the kernel tells them */
};

/* A change that the reader was told of and has not replayed. */
struct fs_notify_record {
	uint64_t dir_id; /* FUSE_ROOT_ID: an export that is a file, by its name */
	char kind;
	bool done;
	char name[NAME_MAX + 1];
};

struct fs_notify {
	int fan_fd;	      /* owned; -1 = this kernel or file system has none */
	int wake_fd;	      /* owned eventfd: a read shall end now */
	pid_t writer;	      /* of the channel, writes for the guest; constant; 0 = none */
	pthread_mutex_t lock; /* everything below; taken before fs.lock */
	bool is_open;	      /* somebody will read */
	bool is_waiting;
	uint64_t next_ghost;
	struct fs_notify_watch *buckets[1024];
	unsigned int nr_watches;
	unsigned int nr_records;
	struct fs_notify_record records[FS_NOTIFY_RECORDS_MAX];
};

/* Before privileges go: only then the kernel tells whose change it was. Never fails; may have nothing to offer. */
void fs_notify_init(struct fs *fs);
void fs_notify_done(struct fs *fs);
/* Nobody reads any more (DESTROY). */
void fs_notify_reset(struct fs *fs);
/* A node that the guest did not know; does nothing unless the file is open. The caller holds a reference. */
void fs_notify_watch(struct fs *fs, const struct fs_node *node);
/* A node that nobody has any more, before its descriptor is closed. */
void fs_notify_unwatch(struct fs *fs, const struct fs_node *node);

/* The file of events was opened. */
void fs_notify_begin(struct fs *fs);
/* READ of it. */
int fs_notify_read(struct fs_req *r);

/* replay.c: requests that concern the file of events, and those of its reader. true = *ret is the outcome. */
bool fs_notify_serve(struct fs_req *r, int *ret);
