/*
 * Command line of the shim binary, in the style of Go's flag package, which is what containerd speaks:
 * "-name value", "-name=value", "--name" alike, flags before the sub-command.
 */
#pragma once

#include <stdbool.h>

#include "err.h"

/* Longest id containerd itself accepts for a container, an exec or a namespace. */
#define ARGS_ID_MAX 76

enum args_action {
	ARGS_NONE, /* neither sub-command nor -v/-info: an error for main() to report */
	ARGS_START,
	ARGS_DELETE,
	ARGS_INFO,
	ARGS_VERSION,
};

/* Strings are borrowed from argv; a flag that was not given is "". */
struct args {
	enum args_action action;
	const char *namespace_, *address, *publish_binary, *id, *bundle;
	bool debug;
};

/* -EINVAL names the flag or the missing value. Ids are checked for the actions that use them. */
int args_parse(int argc, char *const *argv, struct args *ret, struct err *err);

/*
 * containerd's rule for identifiers: letters and digits, separated by single '-', '_' or '.'; at most
 * ARGS_ID_MAX bytes. Everything that becomes part of a path passes through here.
 */
bool args_id_is_valid(const char *id);
