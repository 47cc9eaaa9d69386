/*
 * Things a process needs from inside its container: its environment, its HOME, its executable. The
 * files read are the image's and hostile: bounded, and only regular ones.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "agent_pb.h"
#include "err.h"

#define LOOKUP_PASSWD_MAX (1u << 20)

/*
 * The environment without duplicates (the last of a name counts, as in runc) and with HOME: from
 * etc/passwd below root_fd when missing, "/" when that knows no such user. *ret: NULL-terminated, its
 * array owned by the caller, its strings borrowed from `process` but HOME's. Never freed: exec follows.
 */
int lookup_env(const AGENT_PB(Process) * process, int root_fd, char ***ret, struct err *err);

/* The home folder of uid in the passwd text (modified in place), or NULL. Pure. */
const char *lookup_home(char *text, uint32_t uid);

/*
 * The path to execute for args[0], looked up along PATH of `env` as Go's exec.LookPath does, with its
 * error texts: clients decide on exit codes 126 and 127 by them. ret: at least PATH_MAX.
 */
int lookup_executable(const char *name, char *const *env, char *ret, size_t room, struct err *err);
