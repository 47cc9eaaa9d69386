/*
 * The program around the library: its options, its threads, its channels, its confinement.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "fs.h"

#define SERVER_COMP "harpoon-fs"
#define SERVER_EXPORTS_MAX 16
#define SERVER_REQUEST_QUEUES_MAX 8
#define SERVER_WORKERS_MAX 16

/* An export given on the command line. */
struct server_export {
	const char *name; /* borrowed from argv */
	int fd;
	uint32_t flags;
};

struct server_options {
	int vhost_user_fd; /* -1 = not given; likewise below */
	int vmm_fd;
	int fuse_fd;
	int control_fd;
	const char *mount; /* borrowed from argv */
	unsigned int nr_request_queues;
	unsigned int nr_workers; /* for each request queue, or for /dev/fuse */
	bool allow_devices;
	struct server_export exports[SERVER_EXPORTS_MAX];
	unsigned int nr_exports;
};

/* Returns 0, 1 = help or version was printed, or -EINVAL and the error. */
int server_options_parse(struct server_options *o, int argc, char **argv, struct err *err);

/*
 * The threads of a server. They are all made before the system call filter, which then applies to all
 * of them, and wait at a gate until it is in place.
 */
struct server_crew {
	pthread_barrier_t prepared;
	pthread_barrier_t go;
	int done_fd; /* eventfd: a thread asks the main thread to end the program */
	pthread_mutex_t lock;
	struct err err; /* lock: the first failure to get ready */
};

int server_crew_init(struct server_crew *crew, unsigned int nr_threads, struct err *err);
int server_crew_start_thread(struct server_crew *crew, void *(*fn)(void *), void *arg,
			     struct err *err);
/* Main thread: waits until all are ready; the failure of any of them. */
int server_crew_wait_prepared(struct server_crew *crew, struct err *err);
void server_crew_open_gate(struct server_crew *crew);
/* A thread: tells how its preparation went (NULL = well) and waits for the gate. */
void server_crew_prepared(struct server_crew *crew, const struct err *err);
void server_crew_end_program(struct server_crew *crew);

/* A channel starts its threads (as many as said) and is theirs from then on; it never goes away. */
unsigned int channel_fuse_nr_threads(const struct server_options *o);
int channel_fuse_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
		       struct err *err);
unsigned int channel_vhost_nr_threads(const struct server_options *o);
int channel_vhost_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
			struct err *err);

unsigned int channel_vmm_nr_threads(const struct server_options *o);
int channel_vmm_start(struct server_crew *crew, struct fs *fs, const struct server_options *o,
		      struct err *err);

/* Mounts a FUSE file system on dir; returns the /dev/fuse descriptor that serves it. */
int channel_fuse_mount(const char *dir, struct err *err);

/*
 * A session could not be saved or restored ("save", "restore"): into the log, and to whoever started us, who can tell
 * people more than the VMM could. control_fd: -1 = nobody. Any thread.
 */
void server_complain(const struct fs *fs, int control_fd, const char *what, int error);

/* Serves one control message. 1 = go on, 0 = the peer is gone, -errno. */
int control_handle(struct fs *fs, int sock, struct err *err);

/* Confinement, in this order. */
void confine_close_other_fds(const struct server_options *o);
/* Raises the limit on descriptors as far as it goes; returns what the guest may use of it. */
uint64_t confine_limits(void);
int confine_namespaces(struct err *err);
int confine_privileges(bool allow_devices, struct err *err);
/* All threads of the process. */
int confine_syscalls(struct err *err);
