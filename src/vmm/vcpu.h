/*
 * The virtual CPUs: one thread each, and what they all obey. A vCPU is parked (outside of KVM_RUN, its
 * last exit completed) or runs; all start parked, and all park when asked to or when one of them ends
 * the machine.
 *
 * Threads: functions are the loop's. The vCPU threads call the buses, and write `event_fd`, which the
 * loop watches: something is to be asked of vcpus_all_parked() or vcpus_end().
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus.h"
#include "err.h"

#define VCPUS_MAX 32

struct kvm_run;
struct vcpus;

enum vcpus_end_kind {
	VCPUS_END_NONE,
	VCPUS_END_RESET, /* the guest reset itself (a triple fault, the reset port) */
	VCPUS_END_FAILED /* KVM cannot go on; `text` says why */
};

struct vcpus_end {
	enum vcpus_end_kind kind;
	char text[160];
};

struct vcpu {
	struct vcpus *all; /* borrowed */
	unsigned int index;
	int fd;		     /* owned */
	struct kvm_run *run; /* owned mapping, shared with KVM */
	pthread_t thread;
	bool has_thread;
	uint64_t nr_mends; /* the thread's: what it knows of vcpus_callbacks.fault() */
	bool is_parked;	   /* all->lock */
};

/* All on a vCPU's thread; each may be NULL. */
struct vcpus_callbacks {
	/* First thing. */
	void (*thread_init)(void *ctx, unsigned int index);
	/* The guest touched memory that cannot be had. How often that was made good so far, by whichever thread. */
	uint64_t (*fault)(void *ctx);
};

struct vcpus {
	bool is_init;
	const struct bus *mmio, *ports; /* borrowed */
	unsigned int nr;
	int event_fd; /* owned */
	size_t run_len;
	struct vcpu *vcpus[VCPUS_MAX]; /* owned */
	struct vcpus_callbacks cb;
	void *ctx;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	enum { VCPUS_PARK, VCPUS_RUN, VCPUS_QUIT } want;
	unsigned int nr_parked;
	struct vcpus_end end;
};

/* Creates the vCPUs; their registers are the architecture's matter (vcpus.vcpus[i]->fd). */
int vcpus_init(struct vcpus *v, int kvm_fd, int vm_fd, unsigned int nr, const struct bus *mmio,
	       const struct bus *ports, struct err *err);
/* Starts the threads, parked; returns when all have run thread_init. */
int vcpus_start(struct vcpus *v, const struct vcpus_callbacks *cb, void *ctx, struct err *err);
void vcpus_run(struct vcpus *v);
/* Asks all to park; event_fd tells when they have. */
void vcpus_park(struct vcpus *v);
bool vcpus_all_parked(struct vcpus *v);
/* How the machine ended; kind NONE = it has not. */
struct vcpus_end vcpus_end(struct vcpus *v);
/* Ends the threads. Accepts a struct that vcpus_init() failed on. */
void vcpus_done(struct vcpus *v);

/* From a bus target, on a vCPU thread: the machine ends now. */
void vcpus_reset_requested(struct vcpus *v);
