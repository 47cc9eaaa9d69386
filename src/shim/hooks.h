/*
 * OCI hooks that run on the host: programs the spec names, one after the other, each with the container's
 * state as JSON on its standard input. The shim's own namespaces are theirs.
 *
 * Threads: the loop's.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "err.h"
#include "loop.h"
#include "oci.h"

/* For a hook without a timeout of its own, so that none can hold a container for ever. */
#define HOOKS_DEFAULT_LIMIT_S 60

struct hooks_run;
/* err->code 0: all ran and ended with 0. Otherwise the first failure. */
typedef void (*hooks_done_fn)(void *ctx, const struct err *err);

/* State JSON of the runtime spec. pid 0 = left out. Caller frees. */
char *hooks_state_json(const struct oci_spec *spec, const char *id, const char *status, pid_t pid,
		       const char *bundle);

/*
 * Runs lists[0], then lists[1], ... keep_going: a failure is logged and the next hook runs (poststart and
 * poststop). done is called once from the loop, never from inside; the run is gone then. state is copied,
 * the lists are borrowed until done. limit_s: upper bound for each hook.
 */
struct hooks_run *hooks_start(struct loop *loop, const struct oci_hooks *const *lists, size_t nr,
			      const char *state, bool keep_going, uint32_t limit_s,
			      hooks_done_fn done, void *ctx);
/* Kills what runs; done is not called. Accepts NULL. */
void hooks_cancel(struct hooks_run *run);
