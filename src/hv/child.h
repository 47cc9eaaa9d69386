/*
 * One running process of a VM on the loop: watched by pidfd, its output turned into log lines, killed,
 * reaped. Embedded in its owner.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "loop.h"
#include "procs.h"
#include "spawn.h"
#include "text.h"

struct child {
	struct loop *loop;
	const char *role; /* static text: "qemu", "fs"; also the log's component */
	pid_t pid;	  /* 0 = not started */
	int pidfd;	  /* owned */
	int output_fd;	  /* owned: our end of its stdout and stderr */
	struct loop_watch *watch, *output_watch;
	const int *cgroup_fds; /* borrowed, may be set before the start; see spawn.h */
	size_t nr_cgroup_fds;
	struct text_lines lines;
	char last_line[TEXT_LINE_MAX]; /* of its output, escaped */
	unsigned int nr_lines;
	bool exited;
	int status; /* exit code, or 128 + signal; -1 = somebody else reaped it */
	loop_fn on_exit;
	void *ctx;
};

void child_init(struct child *c, struct loop *loop, const char *role, loop_fn on_exit, void *ctx);
/* params->output_fd is provided here. on_exit is called from the loop, once, after the child was reaped. */
int child_start(struct child *c, struct spawn_params *params, struct err *err);
static inline bool child_is_running(const struct child *c)
{
	return c->pid && !c->exited;
}
/* SIGKILL; on_exit follows. Nothing when it does not run. */
void child_kill(struct child *c);
/* Kills, waits, closes. No callback. Any state, also never started. */
void child_done(struct child *c);
/* "killed by signal 9", "exited with code 1: <last line of output>", for a sentence. */
void child_describe_exit(const struct child *c, char *out, size_t len);
