/*
 * The sub-commands that containerd runs. Each returns the exit status of the program; an error has been
 * written to stderr by then, in one line.
 */
#pragma once

#include "args.h"

#define MANAGER_RUNTIME_NAME "io.containerd.harpoon.v1"

/*
 * Starts the serving process for args->id, prints its address and returns. In the child that serves, returns
 * when that is over. argv: the program's, so that the child can drop the sub-command from its name.
 */
int manager_start(const struct args *args, char **argv);
/* Cleans up from disk and prints how the container ended. Nothing there: success. */
int manager_delete(const struct args *args);
/* Prints a RuntimeInfo message. */
int manager_info(void);
int manager_version(void);
