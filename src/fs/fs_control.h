/*
 * Control protocol between the program that starts harpoon-fs (the hv layer) and harpoon-fs, over a
 * SOCK_SEQPACKET unix socket pair (descriptor number given by --control-fd). One fixed-size request with
 * at most one descriptor, one fixed-size answer, in order. End of file on the socket ends the server.
 */
#pragma once

#include <stdint.h>

#define FS_CONTROL_NAME_MAX 64

enum fs_control_op {
	/* Descriptor: the tree or single file, O_PATH (a detached mount's descriptor is one). */
	FS_CONTROL_EXPORT = 1,
	/*
	 * No descriptor. New look-ups fail; what the guest has open stays usable until it lets go, and
	 * keeps the file system busy on the host until then, unless FS_CONTROL_REVOKE says otherwise.
	 */
	FS_CONTROL_UNEXPORT = 2,
};

/* The server refuses every change below this export (EROFS), whatever the mount says. */
#define FS_CONTROL_READ_ONLY 0x1u
/*
 * Nobody but this VM changes the tree while it is exported: the guest may keep names, attributes and
 * pages for long. Without it they are good for one second, so that changes made on the host show.
 */
#define FS_CONTROL_EXCLUSIVE 0x2u
/* Block and character device nodes may be created (they are never opened by the server). */
#define FS_CONTROL_ALLOW_DEVICES 0x4u
#define FS_CONTROL_FLAGS 0x7u

/*
 * With UNEXPORT, alone: nothing of the export is held any more when the answer comes, so that the host can
 * unmount it; whatever the guest still has of it fails (ESTALE). The answer is -EBUSY when a request that
 * was being served did not end in two seconds; the export is gone all the same.
 */
#define FS_CONTROL_REVOKE 0x1u

struct fs_control_request {
	uint32_t op;
	uint32_t flags;
	char name[FS_CONTROL_NAME_MAX]; /* NUL-terminated, one path component */
};

struct fs_control_answer {
	int32_t error; /* 0 or negative errno */
	uint32_t reserved;
};

/*
 * Sent unasked when a session cannot be saved or restored, before the front-end is told: told apart from an answer
 * by its size.
 */
struct fs_control_notice {
	int32_t error;
	char text[252]; /* NUL-terminated sentence, may be empty */
};
