/*
 * When what happened in one start of a container: spans with a beginning and an end, kept with the container and
 * written to <bundle>/harpoon/timeline for `harpoon trace`. Always on: a clock is read a few times.
 */
#pragma once

#include <stdint.h>

enum timeline_span {
	TIMELINE_CREATE,    /* Create, from the call to its answer */
	TIMELINE_SPEC,	    /* bundle and config.json read */
	TIMELINE_PROCESSES, /* network, file server and VMM started; a clone's memory copied */
	TIMELINE_MOUNTS,    /* root file system mounted, trees shared */
	TIMELINE_VMM,	    /* until the guest runs */
	TIMELINE_GUEST,	    /* until the agent is ready; a clone's is at once */
	TIMELINE_STDIO,	    /* until the client has opened the FIFOs */
	TIMELINE_HOOKS,
	TIMELINE_CONFIGURE, /* the agent: entropy, names */
	TIMELINE_CONTAINER, /* the agent: CreateContainer */
	TIMELINE_CLOCK,	    /* the guest's clock is set */
	TIMELINE_START,	    /* Start, from the call to its answer */
	TIMELINE_NETWORK,
	TIMELINE_EXEC, /* the agent: the program is executed */
	TIMELINE_RUN,  /* until the program has ended */
	TIMELINE_END,  /* last output, VM killed and gone */
	TIMELINE_MAX
};

struct timeline {
	/* CLOCK_MONOTONIC; 0 = not yet */
	uint64_t begin_ns[TIMELINE_MAX], end_ns[TIMELINE_MAX];
};

void timeline_begin(struct timeline *t, enum timeline_span s);
/* Only what has begun. The first end counts. */
void timeline_end(struct timeline *t, enum timeline_span s);
void timeline_set(struct timeline *t, enum timeline_span s, uint64_t begin_ns, uint64_t end_ns);
/* One line per span: name, begin and end in microseconds since Create; end -1 = not over. Failing is harmless. */
void timeline_write(const struct timeline *t, int state_fd);
/* The same into the folder that the environment variable HARPOON_TRACE names, if it is set, as file `id`: the
 * bundle goes when the container does. */
void timeline_keep(const struct timeline *t, const char *id);
