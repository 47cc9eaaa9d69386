/*
 * One process of the container: its first one (init), or one that Exec added. State, standard streams, those
 * who wait for its end.
 *
 * Owner: the container (init embedded, execs in its list). A process is never freed while a call of its own
 * to the agent is pending: its states forbid Delete then.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "oci.h"
#include "rpc.h"
#include "state.h"
#include "taskio.h"

struct container;
struct exec_wait;

/*
 * How a process of the guest is told by number to the outside: its pid in the guest plus this. No process of a
 * Linux host has such a number (they end at 4194304), so nobody takes one for the other, or signals it.
 */
#define PROCESS_GUEST_PIDS 10000000u
#define PROCESS_GUEST_PID_MAX 4194304u

struct process {
	struct list link; /* container.execs */
	struct container *container;
	char *exec_id; /* "" = init */
	enum task_state state;
	uint32_t guest_pid; /* 0 = none yet, or the guest told nonsense */
	struct taskio io;
	char *io_paths[TASKIO_MAX]; /* exactly as the client gave them */
	bool io_terminal;
	struct oci_process *spec; /* exec only */
	bool has_exited;	  /* in the guest; TaskExit may be yet to come */
	bool exit_is_public;	  /* TaskExit is out, waiters are answered */
	uint32_t exit_status;
	int64_t exited_at_ns; /* CLOCK_REALTIME of the host */
	struct list waiters;
	struct rpc_call *start_call; /* Start under way */
	struct err start_err;	/* exec: code is an enum rpc_code, what the agent said to Exec */
	struct exec_wait *wait; /* exec: the agent's Wait under way */
	struct rpc_call *delete_call; /* exec: Delete waits for the output */
	struct loop_timer delete_timer;
};

/* Takes nothing; copies. On failure process_done() is harmless. */
int process_init(struct process *p, struct container *c, const char *exec_id,
		 const char *const paths[TASKIO_MAX], bool terminal, struct err *err);
void process_done(struct process *p);
static inline bool process_is_exec(const struct process *p)
{
	return *p->exec_id != '\0';
}

/* The pid that clients are told: of init the VM's, of an exec its own in the guest; 0 before its start. */
uint32_t process_public_pid(const struct process *p);
/* Notes what the guest says. */
void process_set_guest_pid(struct process *p, uint32_t pid);

/* Answers with the error of the state table; false = not allowed, answered. */
bool process_check(struct process *p, enum task_op op, struct rpc_call *call);
/* Answers a call whose request to the agent failed. */
void process_fail_call(struct rpc_call *call, enum rpc_code code, const char *message);

void process_wait(struct process *p, struct rpc_call *call);
void process_kill(struct process *p, uint32_t signal, bool all, struct rpc_call *call);
void process_resize(struct process *p, uint32_t width, uint32_t height, struct rpc_call *call);

/* Notes the end, once; the first report counts. */
void process_set_exited(struct process *p, uint32_t status);
/* State stopped, TaskExit, answers for the waiters; once. */
void process_publish_exit(struct process *p);
/* Answers everybody who waits with what is known (zero when it never ran). */
void process_release_waiters(struct process *p);

/* ---- exec processes ---- */

/* Registers; answers the call. */
void process_exec_add(struct container *c, const char *exec_id, const char *const paths[TASKIO_MAX],
		      bool terminal, struct oci_process *spec, struct rpc_call *call);
void process_exec_start(struct process *p, struct rpc_call *call);
void process_exec_delete(struct process *p, struct rpc_call *call);
/* The VM is gone: ends whatever the process waits for and publishes its exit if it ran. */
void process_exec_vm_gone(struct process *p);

/* Fills the fields that State, Wait and Delete answer with. */
void process_reply_wait(const struct process *p, struct rpc_call *call);
