/*
 * One virtual machine: memory, vCPUs, buses, devices, and the order in which they come to life:
 *
 *   machine_new -> machine_add_device ... -> machine_start (kernel loaded, all threads there, vCPUs
 *   parked) -> machine_run <-> machine_pause -> the guest ends: on_end -> machine_free
 *
 * Everything here is the loop's thread; callbacks come from the loop.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "loop.h"
#include "vcpu.h"
#include "virtio.h"

/* The longest command line, device words included. */
#define MACHINE_CMDLINE_MAX 2047

struct machine;

struct machine_config {
	/* Taken over, also on failure. initrd_fd, console_fd: -1 = none. */
	int kvm_fd, kernel_fd, initrd_fd, console_fd;
	const char *cmdline; /* borrowed for the call; words for devices are appended later */
	uint64_t mem_bytes;  /* whole pages */
	unsigned int nr_vcpus;
};

struct machine_callbacks {
	/* Every vCPU stands still, as machine_pause() asked. */
	void (*on_paused)(void *ctx);
	/* Once. Nothing runs any more. */
	void (*on_end)(void *ctx, const struct vcpus_end *end);
};

enum machine_thread { MACHINE_THREAD_VCPU, MACHINE_THREAD_WORKER };

struct machine_env {
	/* First thing on each thread but the loop's; may end the process. */
	void (*thread_init)(void *ctx, enum machine_thread kind, const char *name);
	void *ctx;
};

int machine_new(struct loop *loop, const struct machine_config *config,
		const struct machine_callbacks *cb, void *ctx, struct machine **ret,
		struct err *err);
/* Ends all threads, frees devices and memory. Accepts NULL. */
void machine_free(struct machine *m);

/* In the next slot; dev is taken over, also on failure. */
int machine_add_device(struct machine *m, struct virtio_device *dev, struct err *err);
const struct guest_mem *machine_mem(const struct machine *m);

int machine_start(struct machine *m, const struct machine_env *env, struct err *err);
/* In place of machine_start(): a machine of the same build that was saved. Both are borrowed. is_own: as in snapshot.h. */
int machine_restore(struct machine *m, int state_fd, int memory_fd, bool is_own,
		    const struct machine_env *env, struct err *err);
void machine_run(struct machine *m);
void machine_pause(struct machine *m);
/* Between on_paused and machine_run(). Empty files, borrowed. */
int machine_save(struct machine *m, int state_fd, int memory_fd, uint64_t used_bytes,
		 struct err *err);
/* The last line of the guest's console, however it ends. */
void machine_flush_console(struct machine *m);
