/*
 * A saved session that is anything. Whatever is taken must be such that saving it gives the same bytes
 * again: nothing was read that is not understood.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fs_config config = {.max_fds = 16};
	cleanup_free uint8_t *again = NULL;
	struct err err = {0};
	struct fs *fs;
	size_t len;

	config.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs_new(&config, &fs, &err) < 0)
		abort();
	if (!fs_state_load(fs, data, size) &&
	    (fs_state_save(fs, &again, &len) || len != size || memcmp(again, data, len) != 0))
		abort();
	fs_free(fs);
	return 0;
}
