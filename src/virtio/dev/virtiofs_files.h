/*
 * The files that the guest has open and whose descriptors harpoon-fs handed over, by file number.
 *
 * Threads: any; a lock of its own. Descriptors are closed without it.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define VIRTIOFS_BUCKETS 256
/* Revocations that answers under way may still be late for. */
#define VIRTIOFS_REVOKED_MAX 256

struct virtiofs_file {
	uint64_t fh, node_id, export_id;
	int fd;	       /* owned; -1 = this entry is free */
	uint32_t refs; /* of those who read or write right now */
	bool gone;     /* released or revoked: closed when nobody uses it */
	int32_t next;  /* in its bucket or in the list of free ones; -1 = the last */
};

struct virtiofs_files {
	pthread_mutex_t lock;
	struct virtiofs_file *files; /* owned; numbers stay, the array moves */
	uint32_t nr, cap, max;
	uint32_t nr_open;
	int32_t first_free;
	int32_t buckets[VIRTIOFS_BUCKETS];
	uint64_t revoked[VIRTIOFS_REVOKED_MAX]; /* the latest export numbers taken back */
	unsigned int next_revoked, nr_revoked;
	int gone_fd; /* borrowed eventfd: told when a file of a revoked export was closed */
};

void virtiofs_files_init(struct virtiofs_files *t, uint32_t max, int gone_fd);
void virtiofs_files_done(struct virtiofs_files *t);

/* Keeps fd (taken over in any case). -EEXIST, -ESTALE: its export was revoked; -ENFILE, -ENOMEM. */
int virtiofs_files_add(struct virtiofs_files *t, const struct virtiofs_file *file);
/* The descriptor, in use until _put(); -EBADF. A file is good only together with its node. */
int virtiofs_files_get(struct virtiofs_files *t, uint64_t fh, uint64_t node_id, int *ret_fd,
		       uint32_t *ret_index);
void virtiofs_files_put(struct virtiofs_files *t, uint32_t index);
void virtiofs_files_release(struct virtiofs_files *t, uint64_t fh, uint64_t node_id);
/* All files; all of one export, and those of it that would still come. */
void virtiofs_files_clear(struct virtiofs_files *t);
void virtiofs_files_revoke(struct virtiofs_files *t, uint64_t export_id);
/* Was the export taken back? ctx: the table (for virtiofs_window_map()). */
bool virtiofs_files_is_revoked(void *ctx, uint64_t export_id);
/* Is any descriptor of the export still held? */
bool virtiofs_files_has(struct virtiofs_files *t, uint64_t export_id);
uint32_t virtiofs_files_count(struct virtiofs_files *t);
