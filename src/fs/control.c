/* The control socket: exports come and go while the server runs. See fs_control.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "fs_control.h"
#include "io.h"
#include "log.h"
#include "server.h"

static int control_obey(struct fs *fs, struct fs_control_request *req, size_t len, int *fd)
{
	if (len != sizeof(*req) || !memchr(req->name, 0, sizeof(req->name)))
		return -EINVAL;
	switch (req->op) {
	case FS_CONTROL_EXPORT:
		return *fd < 0 ? -EBADF : fs_export_add(fs, req->name, take_fd(fd), req->flags);
	case FS_CONTROL_UNEXPORT:
		if (*fd >= 0 || (req->flags & ~FS_CONTROL_REVOKE))
			return -EINVAL;
		return fs_export_remove(fs, req->name, req->flags & FS_CONTROL_REVOKE);
	default:
		return -ENOSYS;
	}
}

int control_handle(struct fs *fs, int sock, struct err *err)
{
	/* One byte more than a request, to tell a message that is too long. */
	char message[sizeof(struct fs_control_request) + 1];
	struct fs_control_request req = {0};
	struct fs_control_answer answer = {0};
	cleanup_close int fd = -1;
	size_t nr_fds = 1;
	ssize_t n = io_recv_fds(sock, message, sizeof(message), &fd, &nr_fds);
	int r;

	if (n == 0 || n == -ECONNRESET)
		return 0;
	if (n < 0 && n != -EMSGSIZE)
		return err_set(err, (int)n, "read the control socket");
	if (!nr_fds)
		fd = -1;
	if (n > 0)
		memcpy(&req, message, MIN((size_t)n, sizeof(req)));
	/* More descriptors than one: the message is refused, not the connection. */
	answer.error = n < 0 ? -EINVAL : control_obey(fs, &req, (size_t)n, &fd);
	log_dbg(SERVER_COMP, "control operation %u on '%.*s': %d", req.op,
		(int)sizeof(req.name) - 1, req.name, answer.error);
	r = io_send_fds(sock, &answer, sizeof(answer), NULL, 0);
	if (r == -EPIPE)
		return 0;
	return r < 0 ? err_set(err, r, "answer on the control socket") : 1;
}

void server_complain(const struct fs *fs, int control_fd, const char *what, int error)
{
	struct fs_control_notice n = {.error = error};

	log_err(SERVER_COMP, "%s the session: error %d: %s", what, -error, fs_state_why(fs));
	snprintf(n.text, sizeof(n.text), "%s", fs_state_why(fs));
	if (control_fd >= 0)
		(void)io_send_fds(control_fd, &n, sizeof(n), NULL, 0);
}
