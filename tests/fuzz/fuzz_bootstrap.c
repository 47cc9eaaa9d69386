/*
 * Fuzz entry: what `start` reads from standard input (bootstrap parameters or runtime options). Whatever the
 * bytes, the answer is a filled struct or an error with a sentence, and all strings end within the input.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bootstrap.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bootstrap b;
	struct err err = {0};

	if (bootstrap_parse(data, size, &b, &err)) {
		assert(err.code < 0 && err.msg[0]);
		assert(!b.containerd_version && !b.options_type);
	} else {
		assert(strlen(b.containerd_version) <= size);
		assert(strlen(b.options_type) <= size);
	}
	bootstrap_done(&b);
	return 0;
}
