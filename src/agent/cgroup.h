/*
 * cgroup v2 folders of containers: one per container below a folder that is the agent's, with the
 * files the host asked for. Controllers are enabled by the agent, values are written as given.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent_pb.h"
#include "err.h"

/* Largest content of one file that is read. */
#define CGROUP_READ_MAX (64u << 10)
#define CGROUP_PIDS_MAX 65536

/* Passes every controller of `dir` on to the folders below it. Accepts controllers that refuse. */
int cgroup_enable_controllers(const char *dir, struct err *err);
/* New folder base/id. *ret_fd: its descriptor, of the caller. */
int cgroup_create(const char *base, const char *id, int *ret_fd, struct err *err);
/* base/id and all below. -EBUSY while processes live in it; gone already is fine. */
int cgroup_remove(const char *base, const char *id);
int cgroup_write(int fd, const char *name, const char *value, struct err *err);
int cgroup_write_files(int fd, AGENT_PB(CgroupFile) *const *files, size_t nr, struct err *err);
/* -EBUSY when the files would set a memory.max below what is used now. */
int cgroup_check_memory(int fd, AGENT_PB(CgroupFile) *const *files, size_t nr, struct err *err);
/* Content of a file, new; -ENOENT when its controller is missing. */
int cgroup_read(int fd, const char *name, char **ret);
/* Pids of the folder and all below: new array. */
int cgroup_pids(int fd, uint32_t **ret, size_t *ret_nr);
/* To every process of the folder and all below; SIGKILL in one go, forks included. */
int cgroup_signal(int fd, int sig);
/* Number of processes the OOM killer took here. */
uint64_t cgroup_oom_kills(int fd);
