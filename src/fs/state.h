/* What state.c (the frame of a saved session) and state_files.c (the files in it) share. */
#pragma once

#include "buf.h"
#include "fs_internal.h"

/* Numbers are never used anew. */
enum fs_state_type {
	FS_STATE_SESSION = 1,
	FS_STATE_EXPORT = 2,
	FS_STATE_NODE = 3,
	FS_STATE_HANDLE = 4,
};

#define FS_STATE_EXPORTS_MAX 512

/* A session being taken in. */
struct fs_state_load {
	struct fs *fs;
	bool seen;					 /* the session itself, which comes first */
	bool began;					 /* and was taken in */
	struct fs_export *exports[FS_STATE_EXPORTS_MAX]; /* referenced */
	size_t nr_exports;
	struct fs_export *lost; /* referenced; NULL = nothing is */
};

/* Appends a record of two parts. */
int fs_state_put(struct buf *out, enum fs_state_type type, const void *a, size_t a_len,
		 const void *b, size_t b_len);
/* Notes a sentence for fs_state_why(); returns code. */
int fs_state_say(struct fs *fs, int code, const char *fmt, ...) HARPOON_PRINTF(3, 4);

/* state_files.c */
int fs_state_put_files(struct fs *fs, struct buf *out);
int fs_state_load_export(struct fs_state_load *l, const uint8_t *p, size_t len);
int fs_state_load_node(struct fs_state_load *l, const uint8_t *p, size_t len);
int fs_state_load_handle(struct fs_state_load *l, const uint8_t *p, size_t len);
void fs_state_load_done(struct fs_state_load *l);
