/*
 * harpoon-fs's end of the channel to harpoon-vmm (fs_channel.h): the trunk with its messages, and the
 * serving of links. The peer is taken for hostile.
 *
 * Threads: one follows the trunk; each link has one worker. fs_trunk_revoke() may be called by any other.
 */
#pragma once

#include <pthread.h>

#include "err.h"
#include "fs.h"
#include "fs_channel.h"

/* error, as fs_state_save() and fs_state_load() gave it; fs_state_why() has the sentence. */
typedef void (*fs_trunk_complain_fn)(void *ctx, const char *what, int error);

struct fs_trunk {
	struct fs *fs; /* borrowed */
	int sock;      /* owned */
	/* From HELLO on, constant. */
	unsigned int nr_links;
	int links[FS_CHANNEL_LINKS_MAX]; /* owned */
	uint8_t *mem;			 /* owned mapping of nr_links slots */
	/* Shared by requests, alone by SAVE and LOAD: whatever the peer does at once, they see no request. */
	pthread_rwlock_t requests;
	/* SAVE and LOAD: the session, whole or as far as it has come. */
	uint8_t *state; /* owned */
	size_t state_len;
	/* Whoever started the program hears of sessions that cannot be saved or restored; may be NULL. */
	fs_trunk_complain_fn complain;
	void *complain_ctx;
	/* A revocation that waits for its answer; the lock guards all of it. */
	pthread_mutex_t lock;
	pthread_cond_t answered;
	uint64_t revoking; /* export number, 0 = none */
	struct {
		struct fs_trunk_msg msg;
		uint8_t data[FS_TRUNK_DATA_MAX + 1]; /* one more, to tell a message too long */
	} in;
};

/* sock is taken over. Never fails but for want of locks. */
int fs_trunk_new(struct fs *fs, int sock, struct fs_trunk **ret, struct err *err);
/* No other thread uses it any more. Accepts NULL. */
void fs_trunk_free(struct fs_trunk *t);

/*
 * Receives and answers one message. 1 = go on; 0 = the peer is gone; -errno and a sentence: it broke the
 * protocol, or HELLO could not be obeyed. After HELLO `nr_links` is at least 1, and at most max_links.
 */
int fs_trunk_handle(struct fs_trunk *t, unsigned int max_links, struct err *err);

/* fs_set_revoke_hook(): asks the peer to close what it has of an export. 0, -EBUSY. ctx: the trunk. */
int fs_trunk_revoke(void *ctx, uint64_t export_id);

/* Serves one request of a link. 1 = go on; 0 = the peer is gone; -errno: it broke the protocol. */
int fs_link_serve(struct fs_trunk *t, struct fs_worker *w, int sock, uint8_t *slot);
