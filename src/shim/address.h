/*
 * The shim's own socket: where it is, how it is made. A path socket in a folder only root enters, never an
 * abstract one (reachable from containers that share the host's network namespace).
 */
#pragma once

#include <stdbool.h>

#include "err.h"

/* Longest path that bind(2) takes on every kernel, NUL not counted. */
#define ADDRESS_PATH_MAX 106
/* Used when the folder beside containerd's socket makes the path too long. */
#define ADDRESS_FALLBACK_DIR "/run/harpoon/s"

/*
 * <folder of grpc_address>/s/<sha256 of "grpc_address/namespace/id">: with containerd's default address the
 * place where Go shims put theirs and `ctr shim` looks. grpc_address may be relative or empty: fall-back.
 */
void address_path(const char *grpc_address, const char *namespace_, const char *id,
		  char ret[ADDRESS_PATH_MAX + 1]);

/*
 * Listens on path, making its folder (0700) when missing. A socket file that nobody serves is replaced.
 * Returns the descriptor; *ret_in_use true and -EADDRINUSE when somebody answers there.
 */
int address_listen(const char *path, bool *ret_in_use, struct err *err);
