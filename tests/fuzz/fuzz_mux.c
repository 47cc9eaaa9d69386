/*
 * Fuzz entry: a channel's peer says these bytes. First byte: how many bytes at a time. Four streams are
 * attached, one of each kind that behaves differently: a socket both ways, a source that never ends, a
 * sink that never takes, one that is over from the start.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"
#include "mux.h"

#define ROUNDS_AFTER 20

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz {
	struct loop *loop;
	struct mux *mux;
	int peer;
};

static void on_broken(void *ctx, int err)
{
	struct fuzz *f = ctx;

	(void)err;
	mux_free(f->mux);
	f->mux = NULL;
}

/* What the mux answers is read and thrown away. */
static void drain(int fd)
{
	char buf[65536];

	while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

static void feed(struct fuzz *f, const uint8_t *data, size_t size, size_t step)
{
	while (size && f->mux) {
		ssize_t n =
			send(f->peer, data, step < size ? step : size, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0) {
			data += n;
			size -= (size_t)n;
		}
		loop_run_once(f->loop, 0);
		drain(f->peer);
	}
}

static void attach(struct fuzz *f, int sock, int sink)
{
	mux_attach(f->mux, 16, sock, sock, NULL, NULL, NULL);
	mux_attach(f->mux, 17, open("/dev/zero", O_RDONLY | O_CLOEXEC), -1, NULL, NULL, NULL);
	mux_attach(f->mux, 18, -1, sink, NULL, NULL, NULL);
	mux_attach(f->mux, 19, -1, -1, NULL, NULL, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct mux_callbacks cb = {.on_broken = on_broken};
	struct fuzz f = {.loop = loop_new()};
	int channel[2], sock[2], sink[2];

	if (!size || !f.loop || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) || pipe2(sink, O_CLOEXEC)) {
		loop_free(f.loop);
		return 0;
	}
	signal(SIGPIPE, SIG_IGN);
	f.mux = mux_new(f.loop, channel[0], &cb, &f);
	f.peer = channel[1];
	attach(&f, sock[0], sink[1]);
	feed(&f, data + 1, size - 1, (size_t)data[0] * 64 + 1);
	for (int i = 0; i < ROUNDS_AFTER && f.mux; i++) {
		loop_run_once(f.loop, 0);
		drain(f.peer);
	}
	mux_free(f.mux);
	loop_free(f.loop);
	close(channel[1]);
	close(sock[1]);
	close(sink[0]);
	return 0;
}
