/* containerd-shim-harpoon-v1: the program containerd runs for io.containerd.harpoon.v1. */
#include <signal.h>
#include <stdio.h>

#include "args.h"
#include "manager.h"

int main(int argc, char **argv)
{
	struct args args;
	struct err err = {0};

	signal(SIGPIPE, SIG_IGN);
	if (args_parse(argc, argv, &args, &err)) {
		fprintf(stderr, "containerd-shim-harpoon-v1: %s\n", err.msg);
		return 1;
	}
	switch (args.action) {
	case ARGS_START:
		return manager_start(&args, argv);
	case ARGS_DELETE:
		return manager_delete(&args);
	case ARGS_INFO:
		return manager_info();
	case ARGS_VERSION:
		return manager_version();
	case ARGS_NONE:
		break;
	}
	return 1;
}
