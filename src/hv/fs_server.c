/*
 * Starting harpoon-fs and giving it trees; see fs_server.h.
 *
 * Thread: the loop's. An export blocks it until the server has answered: that is a few microseconds of
 * work for the server, and callers want to know before they tell the guest of a share. A server that
 * does not answer in time is broken, and so is the VM.
 */
#include "fs_server.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs_control.h"
#include "io.h"

#define FS_SERVER_TIMEOUT_MS 10000

void fs_server_init(struct fs_server *s, struct loop *loop, loop_fn on_exit, void *ctx)
{
	child_init(&s->child, loop, "fs", on_exit, ctx);
	s->control_fd = -1;
}

int fs_server_start(struct fs_server *s, const char *binary, enum fs_server_channel channel, int fd,
		    struct err *err)
{
	char path[] = "harpoon-fs";
	char vhost_opt[] = "--vhost-user-fd", vmm_opt[] = "--vmm-fd",
	     control_opt[] = "--control-fd";
	char channel_arg[] = "3", control_arg[] = "4";
	/* Which exports may have device nodes is said with each; without this none could. */
	char devices_opt[] = "--allow-devices";
	char *channel_opt = channel == FS_SERVER_VMM ? vmm_opt : vhost_opt;
	char *argv[] = {path,	     channel_opt, channel_arg, control_opt,
			control_arg, devices_opt, NULL};
	cleanup_close int theirs = -1;
	int pair[2];

	_Static_assert(SPAWN_FD_FIRST == 3, "the numbers in argv");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "start the file server: socketpair");
	s->control_fd = pair[0];
	s->binary = binary;
	theirs = pair[1];
	return child_start(&s->child,
			   &(struct spawn_params){
				   .path = binary,
				   .argv = argv,
				   .fds = (const int[]){fd, theirs},
				   .nr_fds = 2,
			   },
			   err);
}

static int fs_server_receive(struct fs_server *s, struct fs_control_answer *ret)
{
	struct pollfd pfd = {.fd = s->control_fd, .events = POLLIN};
	struct fs_control_notice message;
	ssize_t n;
	int r;

	/* Notices that nobody asked for are passed over. */
	do {
		do
			r = poll(&pfd, 1, FS_SERVER_TIMEOUT_MS);
		while (r < 0 && errno == EINTR);
		if (r <= 0)
			return r ? -errno : -ETIMEDOUT;
		n = recv(s->control_fd, &message, sizeof(message), 0);
	} while (n == sizeof(message));
	if (n < 0)
		return -errno;
	if (!n)
		return -EPIPE;
	memcpy(ret, &message, sizeof(*ret));
	return n == sizeof(*ret) && ret->error <= 0 ? 0 : -EPROTO;
}

bool fs_server_complains(struct fs_server *s, char *ret, size_t room)
{
	struct fs_control_notice n;
	bool found = false;

	while (s->control_fd >= 0 &&
	       recv(s->control_fd, &n, sizeof(n), MSG_DONTWAIT) == sizeof(n)) {
		/* The guest chose the file's name. */
		n.text[sizeof(n.text) - 1] = '\0';
		for (char *p = n.text; *p; p++)
			if ((unsigned char)*p < 0x20 || *p == 0x7f)
				*p = '?';
		found = n.text[0];
		snprintf(ret, room, "%s", n.text);
	}
	return found;
}

int fs_server_export(struct fs_server *s, const char *name, int dirfd, uint32_t flags,
		     struct err *err)
{
	struct fs_control_request req = {.op = FS_CONTROL_EXPORT, .flags = flags};
	struct fs_control_answer answer = {0};
	int r;

	snprintf(req.name, sizeof(req.name), "%s", name);
	r = io_send_fds(s->control_fd, &req, sizeof(req), &dirfd, 1);
	if (!r)
		r = fs_server_receive(s, &answer);
	if (r)
		return err_set(err, r, "share '%s': '%s' does not answer as harpoon-fs does", name,
			       s->binary);
	if (answer.error)
		return err_set(err, answer.error, "share '%s'", name);
	return 0;
}

void fs_server_done(struct fs_server *s)
{
	cleanup_closep(&s->control_fd);
	child_done(&s->child);
}
