/*
 * The channel between harpoon-vmm and harpoon-fs: FUSE requests without shared guest memory. Both ends
 * take the other for hostile.
 *
 * One SOCK_SEQPACKET socket pair, made by whoever starts the two (--vmm-fd of harpoon-fs), is the
 * *trunk*. Over it harpoon-vmm passes a memory file and one more SEQPACKET socket for each *link*. A link
 * carries one request at a time: harpoon-vmm puts the bytes into the link's slot of the memory file,
 * sends struct fs_link_request, and waits for struct fs_link_reply, when the answer is in the slot.
 * Nothing is in a slot that either side trusts: lengths travel in the messages, and what is to be
 * judged is copied first. End of file on any of the sockets ends the session.
 *
 * A request that opened a regular file is answered with the file's descriptor besides (SCM_RIGHTS):
 * opened with exactly what the guest's open asked for. harpoon-vmm may then read and write by itself,
 * until RELEASE, DESTROY, or until harpoon-fs takes it back (FS_TRUNK_REVOKE). A file without descriptor is
 * read and written through the channel. SETUPMAPPING (virtio-fs's window) is answered with a descriptor, too, of number
 * 0, for reading only: harpoon-vmm maps what was asked for, and answers REMOVEMAPPING by itself.
 *
 * All numbers are in host byte order: both ends are one machine's.
 */
#pragma once

#include <assert.h>
#include <stdint.h>

#define FS_CHANNEL_VERSION 2
/* Links of one session: with the memory file as many descriptors as one message carries. */
#define FS_CHANNEL_LINKS_MAX 7

/* The largest data part of one READ or WRITE. */
#define FS_CHANNEL_DATA_MAX (1u << 20)
/* The memory file: for each link the request's area, then the answer's. */
#define FS_CHANNEL_AREA (FS_CHANNEL_DATA_MAX + (128u << 10))
#define FS_CHANNEL_SLOT (2u * FS_CHANNEL_AREA)

enum fs_trunk_type {
	/*
	 * To harpoon-fs, first and once; arg: FS_CHANNEL_VERSION. Descriptors: the memory file, sealed against
	 * shrinking, of at least FS_CHANNEL_SLOT for each link, and the links. Answered in kind.
	 */
	FS_TRUNK_HELLO = 1,
	/*
	 * To harpoon-fs: what the session consists of (fs_state_save()). arg: from which byte on; 0 takes it anew. The
	 * answer's arg: bytes of all of it; data: the next of them.
	 */
	FS_TRUNK_SAVE,
	/*
	 * To harpoon-fs: go on with a saved session. arg: bytes that follow in further messages; data: the next of them.
	 * Each is answered in kind.
	 */
	FS_TRUNK_LOAD,
	/*
	 * To harpoon-vmm: close every descriptor that came with this export number (arg), and take no
	 * more of them. Answered in kind when nothing uses them any more.
	 */
	FS_TRUNK_REVOKE,
	/* To harpoon-fs, not answered: a request that waits for changes by others ends now (fs_events.h). */
	FS_TRUNK_INTERRUPT,
};

struct fs_trunk_msg {
	uint32_t type;
	int32_t error; /* of an answer: 0 or negative errno */
	uint64_t arg;
	uint32_t len; /* bytes of data behind this */
	uint32_t reserved;
};

#define FS_TRUNK_DATA_MAX 65536
/* A saved session at most; FS_STATE_MAX of fs.h. */
#define FS_TRUNK_STATE_MAX (16u << 20)

struct fs_link_request {
	uint32_t len;  /* bytes in the request's area */
	uint32_t room; /* for the answer, as the guest has it; at most FS_CHANNEL_AREA is used */
};

/* fh, node_id and export_id say what a descriptor is; without one they are zero. */
struct fs_link_reply {
	uint32_t len;	 /* bytes in the answer's area; 0 = the request has no answer */
	uint32_t opened; /* 1 = one descriptor comes with this message */
	uint64_t fh;
	uint64_t node_id;
	uint64_t export_id;
};

static_assert(sizeof(struct fs_trunk_msg) == 24, "message layout");
static_assert(sizeof(struct fs_link_request) == 8, "message layout");
static_assert(sizeof(struct fs_link_reply) == 32, "message layout");
