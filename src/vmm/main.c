/*
 * harpoon-vmm: one microVM on KVM. docs/vmm.md describes it.
 *
 * It is started by the shim, inside its jail (hv/jail.c), with the control socket as its only descriptor
 * beyond the standard ones, and does what comes over that socket. It ends when the guest or the
 * socket does; then the kernel takes everything back, so nothing is torn down by hand.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "log.h"
#include "session.h"

static int main_serve(struct err *err)
{
	struct loop *loop = loop_new();
	struct session *session;
	int r;

	if (!loop)
		return err_set(err, -errno, "create the event loop");
	r = session_new(loop, VMM_CONTROL_FD, true, &session, err);
	if (r)
		return r;
	r = loop_run(loop);
	return r ? err_set(err, r, "wait for events") : 0;
}

/* The first process of a pid namespace gets only signals that it handles: SIGTERM would not end the VM. */
static void main_on_term(int sig)
{
	_exit(128 + sig);
}

int main(int argc, char **argv)
{
	struct err err = {0};

	if (argc > 1) {
		if (!strcmp(argv[1], "--version")) {
			printf("harpoon-vmm %s\n", HARPOON_VERSION);
			return 0;
		}
		fprintf(stderr, "usage: harpoon-vmm [--version]\n"
				"The shim starts it, with a control socket as descriptor 3.\n");
		return 2;
	}
	log_init(STDERR_FILENO, LOG_LEVEL_WARN, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, main_on_term);
	/* No dump, no debugger: its memory is the guest's. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (main_serve(&err)) {
		fprintf(stderr, "harpoon-vmm: %s\n", err.msg);
		_exit(1);
	}
	_exit(0);
}
