/*
 * harpoon-fs as a library: a FUSE passthrough server for many exported trees. It is fed raw FUSE
 * requests by a channel (a virtqueue, /dev/fuse, a test) and knows nothing of where they come from.
 *
 * Threads: struct fs is shared by all; its own lock guards its tables. A struct fs_worker belongs to
 * one thread, which must have created it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "err.h"

struct fs;
struct fs_worker;

/* The largest data part of one READ or WRITE, and room for any request or answer around it. */
#define FS_DATA_MAX (1u << 20)
#define FS_HEADROOM 4096

struct fs_config {
	/* Directory descriptor of /proc/self/fd, taken over: the way from a node back to a file. */
	int proc_fd;
	/* Descriptors the guest may make the server hold, nodes and open files together. */
	uint64_t max_fds;
};

/* Opens /proc/self/fd as a mount of its own, so that ".." leads nowhere. -errno on failure. */
int fs_open_proc(struct err *err);

int fs_new(const struct fs_config *config, struct fs **ret, struct err *err);
/* All workers are gone. Accepts NULL. */
void fs_free(struct fs *fs);

/*
 * Adds an export, seen by the guest as an entry of the root directory. fd (O_PATH, taken over in any
 * case) is a directory or anything else but a symbolic link. flags: FS_CONTROL_*. -EEXIST, -EINVAL.
 */
int fs_export_add(struct fs *fs, const char *name, int fd, uint32_t flags);
/*
 * revoke: what the guest still has of it becomes useless, and is closed when this returns; -EBUSY when
 * that took too long.
 */
int fs_export_remove(struct fs *fs, const char *name, bool revoke);

/*
 * Before the first revocation: called when an export is being revoked and no request is being served
 * that began before, by the thread that revokes. Returns when the channel's peer has closed what it
 * had of the export: 0, or -EBUSY after FS_QUIESCE_MS.
 */
void fs_set_revoke_hook(struct fs *fs, int (*fn)(void *ctx, uint64_t export_id), void *ctx);
#define FS_QUIESCE_MS 2000

/* Before there are requests: the channel's peer maps files into the guest (struct fs_opened with fh 0), if the guest wants to. */
void fs_offer_mappings(struct fs *fs);

/* Ends a read that waits for changes by others, with nothing; the guest reads again. Any thread. */
void fs_events_interrupt(struct fs *fs);
/* What this process changes the guest has asked for, too: no events of it. Before there are requests. */
void fs_events_except(struct fs *fs, pid_t pid);

/*
 * Saving and restoring what a guest's session is made of, for a virtual machine that is saved and
 * restored; docs/fs.md has the format. No request is being served meanwhile. What is restored is judged
 * like anything else that comes from outside.
 *
 * Saving fails (-EBUSY) when a file is open that has no name any more. Restoring needs a server that has the same
 * exports and no session: -EBUSY. -EPROTO: not what was saved; -EOPNOTSUPP: saved by another version; -ESTALE: a
 * file that was open is not there, or is another one. fs_state_why(): a sentence about the last failure, or "".
 */
int fs_state_save(struct fs *fs, uint8_t **ret, size_t *ret_len);
int fs_state_load(struct fs *fs, const uint8_t *state, size_t len);
const char *fs_state_why(const struct fs *fs);
#define FS_STATE_MAX (16u << 20)
/* The guest knows no file and has none open. */
bool fs_is_idle(struct fs *fs);

/*
 * Makes the calling thread a worker: own umask and working directory (the latter becomes proc_fd),
 * so the thread is good for nothing else afterwards.
 */
int fs_worker_new(struct fs *fs, struct fs_worker **ret, struct err *err);
void fs_worker_free(struct fs_worker *w);

/*
 * Serves one request. reply is the room for the answer; the bytes used are returned, 0 = no answer
 * (FORGET, or a request too broken to answer). Both sides may be guest memory.
 */
size_t fs_worker_handle(struct fs_worker *w, const struct iovec *req, unsigned int nr_req,
			const struct iovec *reply, unsigned int nr_reply);

/* A regular file that a request opened, for a channel that lets its peer read and write by itself; or, fh 0, map it. */
struct fs_opened {
	int fd; /* borrowed until fs_worker_end() */
	uint64_t fh, node_id, export_id;
};
/*
 * As fs_worker_handle(), in two steps: begin serves the request and tells what it opened (fd -1 =
 * nothing). Until fs_worker_end() the request counts as being served: a revocation waits for it.
 */
size_t fs_worker_begin(struct fs_worker *w, const struct iovec *req, unsigned int nr_req,
		       const struct iovec *reply, unsigned int nr_reply, struct fs_opened *ret);
void fs_worker_end(struct fs_worker *w);
