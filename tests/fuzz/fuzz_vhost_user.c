/*
 * Fuzz entry: the vhost-user back-end as a front-end that is all input sees it. The input is a series of
 * messages, each one byte of "how many descriptors" and then header and payload; they go through a
 * real socket pair, so framing and descriptor passing are exercised too.
 *
 * Checked beyond "no crash": a queue is started and stopped in turn, and no descriptor stays open.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "vhost_user.h"

#define MEMFD_LEN 65536
#define MESSAGES_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool running[2];

static void on_start(void *ctx, unsigned int index, struct vhost_user_queue *q)
{
	static struct virtq_chain chain;

	(void)ctx;
	if (running[index])
		abort();
	running[index] = true;
	/* What a device would do at once; the rings are shared memory full of anything. */
	while (virtq_pop(&q->vq, &chain) > 0)
		virtq_push(&q->vq, chain.head, 0);
}

static void on_stop(void *ctx, unsigned int index)
{
	(void)ctx;
	if (!running[index])
		abort();
	running[index] = false;
}

/* Never blocks: the descriptors are eventfds whose counter is zero, or files. */
static int on_state(void *ctx, int fd)
{
	(void)ctx;
	return running[0] || running[1] ? (abort(), 0) : -fcntl(fd, F_GETFD);
}

static const struct vhost_user_ops ops = {.queue_start = on_start,
					  .queue_stop = on_stop,
					  .state_save = on_state,
					  .state_load = on_state};

/* A descriptor of the kind the message wants: memory, or an eventfd. */
static int fd_for(uint32_t request)
{
	int fd;

	if (request != VHOST_USER_SET_MEM_TABLE)
		return eventfd(0, EFD_CLOEXEC);
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (ftruncate(fd, MEMFD_LEN) < 0)
		abort();
	return fd;
}

/* Sends one message. Returns the input used, 0 = no more. */
static size_t send_one(int peer, const uint8_t *data, size_t size)
{
	struct vhost_user_header h;
	uint8_t m[sizeof(h) + sizeof(union vhost_user_payload)];
	int fds[IO_FDS_MAX];
	size_t nr_fds, len;

	if (size < 1 + sizeof(h))
		return 0;
	memcpy(&h, data + 1, sizeof(h));
	len = MIN(MIN(h.size, sizeof(union vhost_user_payload)), size - 1 - sizeof(h));
	memcpy(m, data + 1, sizeof(h) + len);
	nr_fds = data[0] % (IO_FDS_MAX + 1);
	for (size_t i = 0; i < nr_fds; i++)
		fds[i] = fd_for(h.request);
	if (io_send_fds(peer, m, sizeof(h) + len, fds, nr_fds) < 0)
		len = size;
	for (size_t i = 0; i < nr_fds; i++)
		close(fds[i]);
	return len == size ? 0 : 1 + sizeof(h) + len;
}

static int next_fd(void)
{
	int fd = dup(0);

	if (fd < 0)
		fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhost_user_config c = {.nr_queues = 2, .ops = &ops};
	int before = next_fd(), sv[2];
	struct vhost_user *vu;
	struct err err = {0};
	size_t used;
	int r = 1;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return 0;
	c.fd = sv[1];
	if (vhost_user_new(&c, &vu, &err) < 0)
		abort();
	for (int i = 0; i < MESSAGES_MAX && r > 0; i++) {
		uint8_t answer[512];

		used = send_one(sv[0], data, size);
		data += used;
		size -= used;
		/* The last message may be cut short: what the back-end still waits for does not come. */
		if (!used || size < 1 + sizeof(struct vhost_user_header))
			shutdown(sv[0], SHUT_WR);
		r = vhost_user_handle_message(vu, &err);
		while (recv(sv[0], answer, sizeof(answer), MSG_DONTWAIT) > 0)
			;
	}
	close(sv[0]);
	vhost_user_free(vu);
	if (running[0] || running[1] || next_fd() != before)
		abort();
	return 0;
}
