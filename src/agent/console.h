/*
 * The terminal of a process: a pair from the container's own devpts. The container may have put
 * anything at that path, so what is opened is checked to be a devpts multiplexer first.
 */
#pragma once

#include <stdint.h>

#include "err.h"

struct console {
	int master_fd; /* goes to the agent */
	int slave_fd;
};

/* root_fd: the container's root; proc_fd: the guest's procfs, for reopening what was checked. */
int console_open(int root_fd, int proc_fd, struct console *ret, struct err *err);
/* The terminal's other side is hung up (SIGHUP, end of file, errors); what it wrote before can still be read. */
int console_hang_up(int master_fd);
int console_resize(int fd, uint32_t width, uint32_t height);
