/*
 * Stand-ins for the VM and the agent, so that the shim's Task service can be tested without a guest: src/hv's
 * functions are defined here, the agent is a ttrpc server on the stream the shim attaches. What each does
 * wrong is set in `fake`.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "hv.h"
#include "rpc.h"
#include "shim.h"

#define FAKE_STREAMS_MAX 32
#define FAKE_WAITS_MAX 16

struct fake_stream {
	uint32_t id;
	int rfd, wfd;
	hv_stream_done_fn done;
	void *ctx;
	bool live;
};

struct fake {
	struct loop *loop;
	/* What goes wrong. */
	const char *start_error;   /* hv_vm_start fails with it */
	const char *share_dies;	   /* hv_vm_share fails, as the VM dies of this */
	bool never_ready;	   /* the agent never greets */
	enum rpc_code create_code; /* CreateContainer's answer */
	const char *create_text;
	enum rpc_code exec_code; /* Exec's answer; Start then knows no such process */
	enum rpc_code pids_code; /* Pids' answer */
	bool kills_ignored;	 /* SIGKILL is confirmed and does nothing */
	bool signals_ignored;	 /* Signal is never answered */
	uint64_t oom_kills;	 /* told with an exit */
	bool hold_start;	 /* Start is answered by fake_answer_start() only */
	uint32_t exit_on_start;	 /* init exits with this (+1) before Start is answered; 0 = no */
	/* What happened. */
	bool vm_exists;
	pid_t pid;
	unsigned int nr_vms, nr_shares;
	bool paused, frozen;
	unsigned int slow_configures; /* so many are answered late */
	int64_t clock_ahead_ns;	      /* of the guest */
	bool clock_gradual;	      /* how it was set right last */
	const char *save_error;	      /* of a checkpoint; NULL = it is made */
	char note[256];
	uint32_t last_signal;
	unsigned int nr_signals;
	unsigned int nr_updates;
	uint64_t memory_bytes; /* of the last update */
	uint64_t memory_given;
	char last_method[32];
	struct fake_stream streams[FAKE_STREAMS_MAX];
};

extern struct fake fake;

void fake_reset(struct loop *loop);
/* The VM dies of itself. */
void fake_vm_die(const char *why);
/* A process ends in the guest; exec_id "" = init. */
void fake_exit(const char *exec_id, uint32_t status);
void fake_answer_start(void);
/* The guest's kernel has killed so many processes. */
void fake_oom(uint64_t kills);
/* Output of a process: writes into what the shim attached as stream `id`; closes it with data NULL. */
void fake_output(uint32_t id, const char *data);
struct fake_stream *fake_find_stream(uint32_t id);
