/*
 * The guest kernel's command line: one const table, each entry with its reason. QEMU appends the
 * virtio-mmio devices by itself.
 */
#include "kernel_args.h"

#include <string.h>

#include "util.h"

static const struct {
	const char *arg;
	const char *why; /* for the reader; not used by the program */
} kernel_args[] = {
	{"earlyprintk=serial,ttyS0,115200,keep", "the console: polled serial port, no driver"},
	{"quiet", "every character is an exit to the VMM; a panic is shown all the same"},
	{"panic=-1", "a dead kernel resets at once, which ends the VM (-no-reboot)"},
	{"reboot=t", "reset by triple fault: there is no ACPI, no keyboard controller"},
	{"mitigations=off", "TCG does not speculate; the guest's own side channels are not the "
			    "boundary, the VM is"},
	{"random.trust_cpu=on", "RDRAND is the host's getrandom(): the pool is ready at once"},
};

char *kernel_args_build(const char *extra)
{
	char *line = xstrdup(kernel_args[0].arg);

	for (size_t i = 1; i < ARRAY_SIZE(kernel_args); i++) {
		char *longer = xasprintf("%s %s", line, kernel_args[i].arg);

		free(line);
		line = longer;
	}
	if (extra && *extra) {
		char *longer = xasprintf("%s %s", line, extra);

		free(line);
		line = longer;
	}
	return line;
}
