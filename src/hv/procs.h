/*
 * The processes of a VM as other processes see them: the file <state_dir>/processes, which lets
 * `delete` end them from disk, and what /proc says. See hv.h for hv_cleanup_state(), which is here too.
 *
 * The file: one line per process, "<role> <pid> <start time>", start time as in field 22 of
 * /proc/PID/stat. Pid and start time together name a process for the life of the host.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

#define PROCS_FILE "processes"
#define PROCS_ROLE_MAX 15
#define PROCS_MAX 8

struct procs_entry {
	char role[PROCS_ROLE_MAX + 1];
	pid_t pid;
	uint64_t start_time;
};

/* Field 22 of /proc/PID/stat. -ESRCH when there is no such process. */
int procs_start_time(pid_t pid, uint64_t *ret);

/* Pure. -EINVAL when any line is not as described above or there are more than PROCS_MAX. */
int procs_parse(const char *text, struct procs_entry ret[PROCS_MAX], size_t *ret_nr);

int procs_save(int state_dir_fd, const struct procs_entry *entries, size_t nr, struct err *err);

/* Proportional set size of a process in bytes, from /proc/PID/smaps_rollup. */
int procs_pss(pid_t pid, uint64_t *ret);
