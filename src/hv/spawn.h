/*
 * Starts a program as a child that cannot outlive us and, for the process that runs the guest, inside
 * a jail of its own. Blocks until the child has exec'd (a few ms): a failure of any step comes back as
 * a sentence that names the step.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

/* Descriptors the child gets beyond 0-2: fds[i] becomes SPAWN_FD_FIRST + i. */
#define SPAWN_FD_FIRST 3
#define SPAWN_FDS_MAX 32
#define SPAWN_BINDS_MAX 16

/*
 * Every jailed process has a user id of its own: this plus its pid. systemd's table of uid ranges
 * calls 0x70000000 to 0x7ffeffff unused, and a pid has at most 22 bits.
 */
#define SPAWN_UID_BASE 0x70000000u

enum spawn_bind_kind {
	SPAWN_BIND_DIR,	    /* a folder, read-only; programs in it may be executed */
	SPAWN_BIND_LIB_DIR, /* as above; a symbolic link is copied as a link, absence is no error */
	SPAWN_BIND_FILE,    /* one file, read-only, not executable; links are followed */
	SPAWN_BIND_MOUNT,   /* a detached mount, moved as it is: the jail is its only place */
};

struct spawn_bind {
	enum spawn_bind_kind kind;
	const char *source; /* on the host; for a SPAWN_BIND_MOUNT only what messages call it */
	const char *target; /* in the jail, without the leading slash; parents are made */
	int mount_fd;	    /* SPAWN_BIND_MOUNT: borrowed */
};

struct spawn_jail {
	int netns_fd; /* network namespace to join, borrowed; -1 = a new empty one */
	const struct spawn_bind *binds;
	size_t nr_binds;
	uint64_t file_size_max; /* RLIMIT_FSIZE; guest memory is a file */
	uint64_t nr_files_max, nr_threads_max;
};

struct spawn_params {
	const char *path;  /* as seen inside the jail; with by_fd for messages only */
	bool by_fd;	   /* execute exe_fd: a static program needs no file in its jail */
	int exe_fd;	   /* O_PATH, borrowed */
	char *const *argv; /* NULL-terminated */
	const int *fds;	   /* borrowed */
	size_t nr_fds;
	int output_fd;		       /* stdout and stderr, borrowed */
	const struct spawn_jail *jail; /* NULL = stays root in our namespaces */
	const int *cgroup_fds; /* cgroup.procs files the child is written to before it runs */
	size_t nr_cgroup_fds;
};

struct spawn_child {
	pid_t pid;
	int pidfd; /* owned by the caller */
};

int spawn(const struct spawn_params *p, struct spawn_child *ret, struct err *err);
