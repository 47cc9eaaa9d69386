/*
 * Whole-file and whole-message input and output, and descriptors over sockets. All return 0 or a
 * byte count, or -errno. EINTR is retried.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct stat;

/* Exactly len bytes; io_read_full answers the bytes read, fewer only at end of file. */
ssize_t io_read_full(int fd, void *data, size_t len);
int io_write_full(int fd, const void *data, size_t len);
/* The same somewhere in a file. -ENODATA: it ends before. */
int io_pread_full(int fd, void *data, size_t len, off_t offset);
int io_pwrite_full(int fd, const void *data, size_t len, off_t offset);
int io_set_nonblock(int fd, bool on);
int io_set_cloexec(int fd, bool on);

/*
 * Reads a whole file below dirfd (AT_FDCWD allowed) into a new NUL-terminated allocation; -EFBIG
 * when it is larger than max. *ret_len may be NULL.
 */
int io_read_file(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len);
/* fstat(2) itself: unlike what C libraries make of it, it takes no path, so that a system call filter can allow it alone. */
int io_fstat(int fd, struct stat *ret);
/* Writes a file (created 0600, truncated) in one go. */
int io_write_file(int dirfd, const char *path, const void *data, size_t len);
/* As above, by way of a temporary name and rename: readers see the old or the whole new content. */
int io_replace_file(int dirfd, const char *path, const void *data, size_t len);

/* One message with up to IO_FDS_MAX descriptors over a unix socket. */
#define IO_FDS_MAX 8
int io_send_fds(int sock, const void *data, size_t len, const int *fds, size_t nr_fds);
/*
 * Receives one message; *nr_fds: in = room in fds, out = received (O_CLOEXEC, owned by the caller;
 * more than the room are closed and -EMSGSIZE is the answer). Returns bytes, 0 = end of file.
 */
ssize_t io_recv_fds(int sock, void *data, size_t len, int *fds, size_t *nr_fds);
