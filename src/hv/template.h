/*
 * The store of templates: one folder per template, named by its key, below a folder of root's alone.
 *
 *   <dir>/<key>/manifest   what it is, and size and SHA-256 of the others; written last
 *               /memory    guest memory (template_image.h)
 *               /state     everything else of the machine, as its VMM wrote it
 *               /channel   what the guest had sent to the host by then
 *               /shape     what the key was made of, for people
 *               /verified  that the hashes were compared, in this boot of the host, with these files
 *   <dir>/<key>.bad        a template that was set aside
 *   <dir>/<key>.failed     an attempt that failed, with the reason: no other for a while
 *   <dir>/.new             the one being made; .lock is held meanwhile
 *
 * Nothing here is trusted for being there: whoever opens a template gets descriptors of files whose hashes
 * were compared, and these descriptors are what is used. Threads: any; processes: any number.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define TEMPLATE_KEY_LEN 32
#define TEMPLATE_CHANNEL_MAX 512

struct template_meta {
	uint32_t nr_vcpus, mem_mib;
	uint32_t tsc_khz; /* that its guest was told; 0 = none */
	int64_t created;  /* seconds since 1970 */
};

struct template
{
	char key[TEMPLATE_KEY_LEN + 1];
	struct template_meta meta;
	int memory_fd, state_fd; /* owned; read only, position unspecified */
	uint8_t channel[TEMPLATE_CHANNEL_MAX];
	size_t channel_len;
};

/* text, any length, says what shapes a VM. */
void template_key(const char *text, char ret[TEMPLATE_KEY_LEN + 1]);

/*
 * -ENOENT: there is none. Any other failure: there is one that must not be used, and err says why. Reads
 * all of it the first time in each boot of the host (about 5 ms per MiB), its attributes later.
 */
int template_open(const char *dir, const char *key, struct template **ret, struct err *err);
/* As above, and all of it is read whatever is known of it. 0, -ENOENT, or what is wrong. */
int template_check(const char *dir, const char *key, struct err *err);
void template_free(struct template *t);
static inline void template_freep(struct template **t)
{
	template_free(*t);
}

/* So that nobody uses it again; a new one may be made. Not an error when it is gone. */
void template_set_aside(const char *dir, const char *key);
/* Notes a failure: see template_wait_s(). */
void template_note_failure(const char *dir, const char *key, const char *why);
/* Seconds until making this template may be tried again; 0 = now. */
int64_t template_wait_s(const char *dir, const char *key);

/* ---- making ---- */

struct template_new {
	char *dir;  /* owned */
	int dir_fd; /* owned */
	int lock_fd;
	int fd; /* owned: the folder being filled */
	char key[TEMPLATE_KEY_LEN + 1];
};

/*
 * Takes the store's lock (wait: until it is free; else -EBUSY) and makes an empty folder. The caller
 * creates memory, state and channel in ret->fd. In any case ends with template_new_done().
 */
int template_new_begin(const char *dir, const char *key, bool wait, struct template_new *ret,
		       struct err *err);
/* Hashes what is there and gives the template its name, in one step. */
int template_new_commit(struct template_new *n, const struct template_meta *meta, const char *shape,
			struct err *err);
void template_new_done(struct template_new *n);

/* ---- looking after them ---- */

enum template_state { TEMPLATE_GOOD, TEMPLATE_BAD, TEMPLATE_FAILED };

struct template_info {
	char key[TEMPLATE_KEY_LEN + 1];
	enum template_state state;
	struct template_meta meta; /* GOOD only */
	uint64_t bytes;		   /* on disk */
	int64_t used;		   /* last use, give or take an hour */
};

/* Allocated array, most recently used first; no folder = none. */
int template_list(const char *dir, struct template_info **ret, size_t *ret_nr, struct err *err);

struct template_limits {
	size_t max;
	uint64_t max_bytes;
	int64_t max_age_s;
};

/* limits NULL: everything. Returns how many were removed, or -errno. Waits for the store's lock. */
int template_prune(const char *dir, const struct template_limits *limits, struct err *err);
