/*
 * A saved session that is anything, for a server that has one tree with a file. What is taken must be such that
 * saving it gives bytes which are taken again, and then give the same: nothing was read that is not understood.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Its folder goes away at once: a name that was removed is as good as any. */
static int open_tree(void)
{
	char path[] = "/tmp/fuzz-state-XXXXXX";
	cleanup_close int file = -1;
	int fd;

	if (!mkdtemp(path))
		abort();
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	file = openat(fd, "f", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || file < 0 || unlinkat(fd, "f", 0) || rmdir(path))
		abort();
	return fd;
}

static struct fs *open_server(void)
{
	struct fs_config config = {.max_fds = 16};
	struct err err = {0};
	struct fs *fs;

	config.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs_new(&config, &fs, &err) < 0 || fs_export_add(fs, "t", open_tree(), 0))
		abort();
	return fs;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_free uint8_t *once = NULL, *twice = NULL;
	struct fs *fs = open_server(), *other = open_server();
	size_t once_len, twice_len;

	if (!fs_state_load(fs, data, size) && !fs_state_save(fs, &once, &once_len) &&
	    (fs_state_load(other, once, once_len) || fs_state_save(other, &twice, &twice_len) ||
	     once_len != twice_len || memcmp(once, twice, once_len) != 0))
		abort();
	fs_free(fs);
	fs_free(other);
	return 0;
}
