/* Files, messages and descriptors; see io.h. */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "util.h"

ssize_t io_read_full(int fd, void *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = read(fd, (char *)data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int io_write_full(int fd, const void *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = write(fd, (const char *)data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

static int io_set_flag(int fd, int get, int set, int flag, bool on)
{
	int flags = fcntl(fd, get);

	if (flags < 0)
		return -errno;
	flags = on ? flags | flag : flags & ~flag;
	return fcntl(fd, set, flags) < 0 ? -errno : 0;
}

int io_pread_full(int fd, void *data, size_t len, off_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (char *)data + done, len - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

int io_pwrite_full(int fd, const void *data, size_t len, off_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, (const char *)data + done, len - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int io_set_nonblock(int fd, bool on)
{
	return io_set_flag(fd, F_GETFL, F_SETFL, O_NONBLOCK, on);
}

int io_set_cloexec(int fd, bool on)
{
	return io_set_flag(fd, F_GETFD, F_SETFD, FD_CLOEXEC, on);
}

int io_read_file(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len)
{
	cleanup_close int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	cleanup_free char *data = NULL;
	size_t len = 0, cap = 0;

	if (fd < 0)
		return -errno;
	/* st_size is no guide: /proc files say 0, and the file may grow while it is read. */
	for (;;) {
		ssize_t n;

		if (len == cap) {
			cap = MIN(cap ? cap * 2 : 4096, max + 1);
			data = xrealloc(data, cap + 1);
		}
		n = io_read_full(fd, data + len, cap - len);
		if (n < 0)
			return (int)n;
		len += (size_t)n;
		if (len > max)
			return -EFBIG;
		if (!n)
			break;
	}
	data[len] = '\0';
	if (ret_len)
		*ret_len = len;
	*ret = take_ptr(&data);
	return 0;
}

int io_fstat(int fd, struct stat *ret)
{
	return syscall(SYS_fstat, fd, ret) < 0 ? -errno : 0;
}

int io_write_file(int dirfd, const char *path, const void *data, size_t len)
{
	cleanup_close int fd =
		openat(dirfd, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0600);

	if (fd < 0)
		return -errno;
	return io_write_full(fd, data, len);
}

int io_replace_file(int dirfd, const char *path, const void *data, size_t len)
{
	cleanup_free char *tmp = xasprintf("%s.tmp%d", path, (int)getpid());
	int r = io_write_file(dirfd, tmp, data, len);

	if (!r && renameat(dirfd, tmp, dirfd, path))
		r = -errno;
	if (r)
		unlinkat(dirfd, tmp, 0);
	return r;
}

int io_send_fds(int sock, const void *data, size_t len, const int *fds, size_t nr_fds)
{
	char control[CMSG_SPACE(sizeof(int) * IO_FDS_MAX)] = {0};
	/* sendmsg does not write there; struct iovec has no const */
	struct iovec iov = {.iov_base = (void *)data, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (nr_fds > IO_FDS_MAX)
		return -EINVAL;
	if (nr_fds) {
		struct cmsghdr *c;

		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nr_fds);
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* The descriptors went with the first byte; the rest of a short send is plain data. */
	return (size_t)n < len ? io_write_full(sock, (const char *)data + n, len - (size_t)n) : 0;
}

/* Moves received descriptors into fds[]; closes what has no room. Returns how many were too many. */
static size_t io_take_fds(struct msghdr *msg, int *fds, size_t room, size_t *ret_nr)
{
	size_t nr = 0, surplus = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (nr < room) {
				fds[nr++] = fd;
			} else {
				close(fd);
				surplus++;
			}
		}
	}
	*ret_nr = nr;
	return surplus;
}

ssize_t io_recv_fds(int sock, void *data, size_t len, int *fds, size_t *nr_fds)
{
	char control[CMSG_SPACE(sizeof(int) * IO_FDS_MAX)];
	struct iovec iov = {.iov_base = data, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	size_t room = *nr_fds, surplus;
	ssize_t n;

	*nr_fds = 0;
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	surplus = io_take_fds(&msg, fds, room, nr_fds);
	if (surplus || (msg.msg_flags & MSG_CTRUNC)) {
		while (*nr_fds)
			close(fds[--*nr_fds]);
		return -EMSGSIZE;
	}
	return n;
}
