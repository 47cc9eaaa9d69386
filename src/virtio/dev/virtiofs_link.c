/* The channel to harpoon-fs, this end; see virtiofs_link.h and fs_channel.h. */
#include "virtiofs_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

/* What a call may leave in memory, for the next one. */
#define LINK_KEEP (64u << 10)

static int channel_make_memory(struct virtiofs_channel *c, struct err *err)
{
	size_t len = (size_t)c->nr_links * FS_CHANNEL_SLOT;
	int fd = memfd_create("harpoon-fs", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *mem = MAP_FAILED;

	if (fd < 0)
		return err_set(err, -errno, "make the memory shared with harpoon-fs");
	if (!ftruncate(fd, (off_t)len) && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) >= 0)
		mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED) {
		int r = err_set(err, -errno, "map the memory shared with harpoon-fs");

		close(fd);
		return r;
	}
	c->mem = mem;
	return fd;
}

/* ends[0] is the memory; the peer's end of each link follows. */
static int channel_make_links(struct virtiofs_channel *c, int *ends, struct err *err)
{
	for (unsigned int i = 0; i < c->nr_links; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
			return err_set(err, -errno, "make a link to harpoon-fs");
		c->links[i] = (struct virtiofs_link){pair[0], c->mem + (size_t)i * FS_CHANNEL_SLOT};
		ends[1 + i] = pair[1];
	}
	return 0;
}

int virtiofs_channel_open(struct virtiofs_channel *c, int trunk, unsigned int nr_links,
			  struct err *err)
{
	struct fs_trunk_msg hello = {.type = FS_TRUNK_HELLO, .arg = FS_CHANNEL_VERSION};
	int ends[1 + FS_CHANNEL_LINKS_MAX], r;

	*c = (struct virtiofs_channel){.trunk = trunk, .nr_links = nr_links};
	for (unsigned int i = 0; i < FS_CHANNEL_LINKS_MAX; i++)
		c->links[i].sock = ends[1 + i] = -1;
	r = ends[0] = channel_make_memory(c, err);
	if (r >= 0)
		r = channel_make_links(c, ends, err);
	if (!r) {
		r = io_send_fds(trunk, &hello, sizeof(hello), ends, 1 + nr_links);
		if (r)
			err_set(err, r, "say hello to harpoon-fs");
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(ends); i++)
		cleanup_closep(&ends[i]);
	if (r)
		virtiofs_channel_close(c);
	return r;
}

void virtiofs_channel_close(struct virtiofs_channel *c)
{
	if (c->mem)
		munmap(c->mem, (size_t)c->nr_links * FS_CHANNEL_SLOT);
	for (unsigned int i = 0; i < c->nr_links; i++)
		cleanup_closep(&c->links[i].sock);
	cleanup_closep(&c->trunk);
	*c = (struct virtiofs_channel){.trunk = -1};
}

/*
 * One message and at most one descriptor. A descriptor that this process has no room for is left out
 * by the kernel, which is no fault of the sender's: the file works without.
 */
static ssize_t link_receive(int sock, void *data, size_t len, int *ret_fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {data, len};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     /* Not the whole room: its padding would hold a second one. */
			     .msg_controllen = CMSG_LEN(sizeof(int))};
	struct cmsghdr *cmsg;
	ssize_t n;

	*ret_fd = -1;
	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS &&
	    cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(ret_fd, CMSG_DATA(cmsg), sizeof(int));
	return n;
}

int virtiofs_link_call(const struct virtiofs_link *link, struct virtiofs_call *call)
{
	struct fs_link_request req = {.len = (uint32_t)call->len, .room = (uint32_t)call->room};
	struct {
		struct fs_link_reply reply;
		uint8_t more;
	} in = {0};
	ssize_t n;
	int r;

	call->fd = -1;
	r = io_send_fds(link->sock, &req, sizeof(req), NULL, 0);
	if (r)
		return -EPIPE;
	n = link_receive(link->sock, &in, sizeof(in), &call->fd);
	if (n <= 0)
		return -EPIPE;
	if (n != sizeof(in.reply) || in.reply.len > MIN(call->room, FS_CHANNEL_AREA) ||
	    in.reply.opened > 1 || (call->fd >= 0 && !in.reply.opened)) {
		cleanup_closep(&call->fd);
		return -EPROTO;
	}
	call->reply = in.reply;
	return 0;
}

void virtiofs_link_trim(const struct virtiofs_link *link, size_t len)
{
	size_t keep = LINK_KEEP;

	if (len <= keep)
		return;
	/* It is a file's memory: given back, it reads as zeros. Whether that works is not important. */
	(void)madvise(link->slot + keep, FS_CHANNEL_AREA - keep, MADV_REMOVE);
	(void)madvise(link->slot + FS_CHANNEL_AREA + keep, FS_CHANNEL_AREA - keep, MADV_REMOVE);
}

int virtiofs_trunk_send(const struct virtiofs_channel *c, uint32_t type, uint64_t arg,
			const void *data, size_t len)
{
	struct fs_trunk_msg msg = {.type = type, .arg = arg, .len = (uint32_t)len};
	cleanup_free uint8_t *out = NULL;

	if (len > FS_TRUNK_DATA_MAX)
		return -E2BIG;
	out = xmalloc(sizeof(msg) + len);
	memcpy(out, &msg, sizeof(msg));
	if (len)
		memcpy(out + sizeof(msg), data, len);
	return io_send_fds(c->trunk, out, sizeof(msg) + len, NULL, 0) ? -EPIPE : 0;
}

int virtiofs_trunk_receive(const struct virtiofs_channel *c, struct fs_trunk_msg *ret, void *data,
			   size_t room, int timeout_ms)
{
	struct pollfd pfd = {.fd = c->trunk, .events = POLLIN};
	char beyond;
	struct iovec iov[3] = {{ret, sizeof(*ret)}, {data, room}, {&beyond, 1}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = ARRAY_SIZE(iov)};
	ssize_t n;
	int r;

	do
		r = timeout_ms ? poll(&pfd, 1, timeout_ms) : 1;
	while (r < 0 && errno == EINTR);
	if (r <= 0)
		return r ? -errno : -ETIMEDOUT;
	/* Without room for descriptors the kernel drops what comes of them. */
	n = recvmsg(c->trunk, &msg, MSG_DONTWAIT);
	if (n <= 0)
		return n < 0 && errno == EAGAIN ? -ETIMEDOUT : -EPIPE;
	if ((size_t)n < sizeof(*ret) || (size_t)n > sizeof(*ret) + room ||
	    ret->len != (size_t)n - sizeof(*ret) || ret->error > 0)
		return -EPROTO;
	return 0;
}
