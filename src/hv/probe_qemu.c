/* Which version of a program is there, and what a QEMU can do; see probe.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "probe.h"
#include "qemu_args.h"
#include "spawn.h"
#include "sys.h"
#include "text.h"

#define PROBE_QEMU_TIMEOUT_MS 10000

/* Reads to end of file, in no more than PROBE_QEMU_TIMEOUT_MS between two pieces. */
static int probe_read_output(int fd, char *out, size_t room)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	size_t len = 0;

	while (len + 1 < room) {
		int r = poll(&pfd, 1, PROBE_QEMU_TIMEOUT_MS);
		ssize_t n;

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return -ETIMEDOUT;
		n = read(fd, out + len, room - 1 - len);
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	out[len] = '\0';
	return 0;
}

int probe_ask_version(const char *binary, char *out, size_t room, struct err *err)
{
	char name[] = "version", option[] = "--version";
	char *argv[] = {name, option, NULL};
	cleanup_close int read_end = -1;
	cleanup_close int write_end = -1;
	cleanup_close int pidfd = -1;
	struct spawn_child child;
	siginfo_t info;
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC))
		return err_set(err, -errno, "pipe");
	read_end = ends[0];
	write_end = ends[1];
	r = spawn(&(struct spawn_params){.path = binary, .argv = argv, .output_fd = write_end},
		  &child, err);
	if (r)
		return r;
	pidfd = child.pidfd;
	close(take_fd(&write_end));
	r = probe_read_output(read_end, out, room);
	sys_pidfd_send_signal(pidfd, SIGKILL);
	while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) && errno == EINTR)
		;
	return r ? err_set(err, r, "ask '%s' for its version", binary) : 0;
}

void probe_qemu(const char *binary, struct probe_qemu *ret)
{
	char out[1024], line[80];
	struct err err = {0};
	size_t used = 0;

	*ret = (struct probe_qemu){0};
	if (access(binary, X_OK)) {
		snprintf(ret->text, sizeof(ret->text), "no QEMU at '%.100s': %s", binary,
			 strerror(errno));
		return;
	}
	if (probe_ask_version(binary, out, sizeof(out), &err)) {
		snprintf(ret->text, sizeof(ret->text), "%.190s", err.msg);
		return;
	}
	if (qemu_version_parse(out, &ret->major, &ret->minor)) {
		text_escape(out, strcspn(out, "\n"), false, line, sizeof(line) - 1, &used);
		line[used] = '\0';
		snprintf(ret->text, sizeof(ret->text), "'%.60s' is no QEMU: it says '%s'", binary,
			 line);
		return;
	}
	ret->found = true;
	ret->usable = qemu_version_runs(ret->major, ret->minor);
	qemu_version_describe(ret->major, ret->minor, ret->text, sizeof(ret->text));
}
