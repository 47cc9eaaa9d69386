/*
 * harpoon-fs seen from the side that starts it: one process per VM that serves every exported tree.
 * It starts as root and confines itself; the exports go to it as descriptors (src/fs/fs_control.h).
 */
#pragma once

#include "child.h"

/* What carries its requests, and so what the socket between it and the VMM is. */
enum fs_server_channel {
	FS_SERVER_VHOST_USER, /* SOCK_STREAM */
	FS_SERVER_VMM,	      /* SOCK_SEQPACKET: the trunk of fs_channel.h */
};

struct fs_server {
	struct child child;
	int control_fd;	    /* owned, -1 = not started */
	const char *binary; /* borrowed from the start on, for messages */
};

void fs_server_init(struct fs_server *s, struct loop *loop, loop_fn on_exit, void *ctx);
/* fd: its end of the channel's socket, borrowed. binary: lives as long as s. */
int fs_server_start(struct fs_server *s, const char *binary, enum fs_server_channel channel, int fd,
		    struct err *err);
/* Borrows dirfd. flags: FS_CONTROL_*. Waits for the server's answer, FS_SERVER_TIMEOUT_MS at most. */
int fs_server_export(struct fs_server *s, const char *name, int dirfd, uint32_t flags,
		     struct err *err);
/* The last sentence the server said unasked, about a session that could not be saved or restored. */
bool fs_server_complains(struct fs_server *s, char *ret, size_t room);
void fs_server_done(struct fs_server *s);
