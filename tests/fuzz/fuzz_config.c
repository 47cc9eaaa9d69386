/* harpoon.conf from any bytes: an error or a configuration that prints to something it reads back. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void fuzz_annotation(struct config *c, const uint8_t *data, size_t len)
{
	cleanup_free char *value = xstrndup((const char *)data, len);
	struct err err = {0};

	config_apply_annotation(c, "io.harpoon.vcpus", value, &err);
	config_apply_annotation(c, "io.harpoon.memory", value, &err);
	config_apply_annotation(c, "io.harpoon.backend", value, &err);
	config_apply_annotation(c, value, value, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct config c, again;
	struct err err = {0};
	cleanup_free char *text = NULL;

	if (config_load_text(&c, "fuzz", (const char *)data, len, &err)) {
		/* A refusal names file and line, and leaves nothing behind. */
		if (strncmp(err.msg, "fuzz:", 5) != 0 || c.kernel)
			abort();
		return 0;
	}
	if (c.vcpus < 1 || c.vcpus > CONFIG_VCPUS_MAX || c.memory_mib < CONFIG_MEM_MIN_MIB ||
	    c.kernel[0] != '/')
		abort();
	text = config_format(&c);
	/* Only a value that fills inih's line buffer to the last byte does not fit a line again. */
	if (!config_load_text(&again, "again", text, strlen(text), &err)) {
		if (again.memory_mib != c.memory_mib || strcmp(again.kernel, c.kernel) != 0)
			abort();
		config_done(&again);
	}
	fuzz_annotation(&c, data, len);
	config_done(&c);
	return 0;
}
