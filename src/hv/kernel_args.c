/*
 * The guest kernel's command line: one const table, each word with its reason. Devices are not here: the
 * VMM appends them by itself.
 */
#include "kernel_args.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "util.h"

/* The x86 machines' own: QEMU's microvm, docs/vmm.md. */
#define KERNEL_ARGS_HOLE (3ull << 30)
#define KERNEL_ARGS_HOLE_END (4ull << 30)

enum kernel_arg_when { ALWAYS, TEMPLATE, EMULATED, EMULATED_COLD_ONE_CPU };

static const struct {
	enum kernel_arg_when when;
	const char *arg;
	const char *why; /* for the reader; not used by the program */
} kernel_args[] = {
	{ALWAYS, "earlyprintk=serial,ttyS0,keep", "the only console: a polled port, no driver"},
	{ALWAYS, "console=ttynull", "what /dev/console opens; else the kernel warns each time"},
	{ALWAYS, "quiet", "every byte is an exit to the VMM; a panic is shown all the same"},
	{ALWAYS, "panic=-1", "a dead kernel resets at once, which ends the VM"},
	{ALWAYS, "reboot=t", "reset by triple fault: there is no ACPI, no keyboard controller"},
	{ALWAYS, "dummy.numdummies=0", "no dummy0 among the container's interfaces"},
	{ALWAYS, "rcupdate.rcu_expedited=1", "a grace period takes microseconds, not three ticks"},
	{ALWAYS, "no_timer_check", "no wait of ten ticks for proof that the timer interrupts"},
	{ALWAYS, "random.trust_cpu=on", "RDRAND is the host's getrandom(): the pool is ready"},
	{TEMPLATE, "harpoon_template=1", "in the agent's environment: greet when all is prepared"},
	{EMULATED, "mitigations=off", "emulated code is not speculated; the VM is the boundary"},
	{EMULATED, "noreplace-smp", "patching lock prefixes out throws translated code away"},
	/*
	 * With more CPUs the second one would lose its high resolution timer. And the PIT cannot wait longer than
	 * 27 ms, so an idle guest wakes up all the time: templates take their time for the other timer.
	 */
	{EMULATED_COLD_ONE_CPU, "noapictimer", "the PIT serves; 200 ms of calibration are saved"},
};

static bool kernel_arg_applies(enum kernel_arg_when when, const struct kernel_args *a)
{
	switch (when) {
	case ALWAYS:
		return true;
	case TEMPLATE:
		return a->template;
	case EMULATED:
		return a->emulated;
	case EMULATED_COLD_ONE_CPU:
		return a->emulated && a->nr_vcpus == 1 && !a->template;
	}
	return false;
}

/* mem= is an address, and both backends' machines have theirs on two sides of a hole. */
static uint64_t kernel_arg_memory_end(uint64_t bytes)
{
	return bytes <= KERNEL_ARGS_HOLE ? bytes : bytes - KERNEL_ARGS_HOLE + KERNEL_ARGS_HOLE_END;
}

char *kernel_args_build(const struct kernel_args *a)
{
	char *line = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&line, &len);

	if (!f)
		abort();
	for (size_t i = 0; i < ARRAY_SIZE(kernel_args); i++) {
		if (kernel_arg_applies(kernel_args[i].when, a))
			fprintf(f, "%s%s", i ? " " : "", kernel_args[i].arg);
	}
	/* An emulated counter is the host's: no need to measure it against emulated timers. */
	if (a->emulated && a->tsc_khz)
		fprintf(f, " tsc=reliable tsc_early_khz=%" PRIu32, a->tsc_khz);
	/* What is above can be added later, as if it were plugged in. */
	if (a->mem_bytes < a->machine_bytes)
		fprintf(f, " mem=%" PRIu64 "M", kernel_arg_memory_end(a->mem_bytes) >> 20);
	if (*a->extra)
		fprintf(f, " %s", a->extra);
	fclose(f);
	return line;
}
