/*
 * Checkpoints of a container: what create.c needs to make one from an image. Checkpoint itself is in container.h.
 */
#pragma once

#include <stdint.h>

#include "err.h"
#include "hv.h"
#include "taskio.h"

/* What the shim knew of a container that was saved. */
struct checkpoint_note {
	uint32_t streams[TASKIO_MAX]; /* of its first process, 0 = none */
	uint32_t next_stream;
	uint32_t terminal; /* 0 or 1 */
	uint64_t oom_kills;
	uint64_t mem_bytes; /* of the VM, as far as it had grown */
};

int checkpoint_note_parse(const char *text, struct checkpoint_note *ret);
/* Reads and judges an image. *ret is owned by the caller, also when this fails: hv_checkpoint_free(). */
int checkpoint_open(const char *path, struct hv_checkpoint **ret, struct checkpoint_note *ret_note,
		    struct err *err);
