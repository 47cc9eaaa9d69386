/*
 * Control protocol between the program that starts harpoon-fs (the hv layer) and harpoon-fs, over a
 * SOCK_SEQPACKET unix socket pair (descriptor number given by --control-fd). One fixed-size request with
 * at most one descriptor, one fixed-size answer, in order. End of file on the socket ends the server.
 */
#pragma once

#include <stdint.h>

#define FS_CONTROL_NAME_MAX 64

enum fs_control_op {
	FS_CONTROL_EXPORT =
		1, /* descriptor: the tree (O_PATH or detached mount), or a single file */
	FS_CONTROL_UNEXPORT = 2,
};

#define FS_CONTROL_READ_ONLY 0x1u

struct fs_control_request {
	uint32_t op;
	uint32_t flags;
	char name[FS_CONTROL_NAME_MAX]; /* NUL-terminated, one path component */
};

struct fs_control_answer {
	int32_t error; /* 0 or negative errno */
	uint32_t reserved;
};
