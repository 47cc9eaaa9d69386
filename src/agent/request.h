/*
 * Checks of what the host asks, before anything acts on it. Pure: no system calls, no state. The host
 * is the agent's master, so this is not a border of trust; it keeps a wrong or corrupt request from
 * becoming undefined behaviour in PID 1, and gives the error its sentence.
 *
 * What passed: ids are safe file names, strings are bounded, sub-messages that are needed exist, stream
 * numbers are usable, numbers are in the kernel's ranges.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "agent_pb.h"
#include "err.h"

#define REQUEST_ID_MAX 76
#define REQUEST_NAME_MAX 64	  /* shares, cgroup files */
#define REQUEST_PATH_MAX 4095	  /* as the kernel's PATH_MAX without its NUL */
#define REQUEST_STRINGS_MAX 65536 /* args, env: each */
#define REQUEST_MOUNTS_MAX 1024
#define REQUEST_DEVICES_MAX 4096
#define REQUEST_DEVICE_RULES_MAX 8192
#define REQUEST_CLOCKS_MAX 8
#define REQUEST_HOOKS_MAX 256
#define REQUEST_PATHS_MAX 1024 /* masked, read-only: each */
#define REQUEST_SYSCTLS_MAX 256
#define REQUEST_CGROUP_FILES_MAX 64
#define REQUEST_MAPPINGS_MAX 340 /* the kernel's UID_GID_MAP_MAX_EXTENTS */
#define REQUEST_RLIMITS_MAX 16
#define REQUEST_GIDS_MAX 65536 /* NGROUPS_MAX */
#define REQUEST_BPF_MAX 4096   /* instructions: BPF_MAXINSNS */
#define REQUEST_ENTROPY_MAX 4096
#define REQUEST_VALUE_MAX 4096 /* a sysctl's or cgroup file's content */
#define REQUEST_DATA_MAX 4095  /* mount data: one page in the kernel */
#define REQUEST_NICS_MAX 8
#define REQUEST_DISKS_MAX 16
#define REQUEST_SERIAL_MAX 20 /* virtio-blk's */
#define REQUEST_ROOT_MOUNTS_MAX 256
#define REQUEST_LISTENERS_MAX 2048
#define REQUEST_ADDRESSES_MAX 1024 /* of an interface; neighbours too */
#define REQUEST_ROUTES_MAX 16384

/* [A-Za-z0-9][A-Za-z0-9_.-]{0,75} */
bool request_id_is_valid(const char *id);

int request_check_configure(const AGENT_PB(ConfigureRequest) * r, struct err *err);
int request_check_create(const AGENT_PB(CreateContainerRequest) * r, struct err *err);
int request_check_exec(const AGENT_PB(ExecRequest) * r, struct err *err);
/* An id and, when not empty, an exec id: of every call that names a process. */
int request_check_ref(const char *id, const char *exec_id, struct err *err);
int request_check_signal(const AGENT_PB(SignalRequest) * r, struct err *err);
int request_check_resize(const AGENT_PB(ResizeRequest) * r, struct err *err);
int request_check_listen(const AGENT_PB(ListenRequest) * r, struct err *err);
int request_check_accept(const AGENT_PB(AcceptRequest) * r, struct err *err);
int request_check_listeners(const AGENT_PB(ListenersRequest) * r, struct err *err);
int request_check_connect(const AGENT_PB(ConnectRequest) * r, struct err *err);
int request_check_network(const AGENT_PB(NetworkRequest) * r, struct err *err);
int request_check_update(const AGENT_PB(UpdateRequest) * r, struct err *err);
