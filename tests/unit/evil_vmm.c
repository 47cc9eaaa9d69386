/*
 * A harpoon-vmm that a guest has taken over: speaks the control protocol wrongly in the way that the kernel's
 * command line names (evil=NAME). For test_hv_kvm.c; static, as its jail is empty.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent_hello.h"
#include "vmm_control.h"

static void say(struct vmm_event e)
{
	if (send(VMM_CONTROL_FD, &e, sizeof(e), 0) < 0)
		_exit(9);
}

static void say_bytes(size_t len)
{
	static char bytes[2 * sizeof(struct vmm_event)];

	send(VMM_CONTROL_FD, bytes, len, 0);
}

static void say_hello(uint32_t len)
{
	const struct agent_hello hello = {.magic = AGENT_HELLO_MAGIC,
					  .version = AGENT_PROTOCOL_VERSION};
	struct vmm_event e = {.kind = VMM_EVENT_HELLO, .len = len};

	memcpy(e.hello, &hello, sizeof(hello));
	say(e);
}

static void say_with_fd(void)
{
	struct vmm_event e = {.kind = VMM_EVENT_RUNNING};
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {.iov_base = &e, .iov_len = sizeof(e)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int fd = 0;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(VMM_CONTROL_FD, &msg, 0) < 0)
		_exit(9);
}

/* The next request of that kind; others are read and ignored, all descriptors kept. False: the shim has closed. */
static bool await(uint32_t op, struct vmm_request *ret)
{
	for (;;) {
		char control[CMSG_SPACE(sizeof(int) * VMM_REQUEST_FDS_MAX)];
		struct iovec iov = {.iov_base = ret, .iov_len = sizeof(*ret)};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};

		if (recvmsg(VMM_CONTROL_FD, &msg, 0) != sizeof(*ret))
			return false;
		if (ret->op == op)
			return true;
	}
}

static void be_evil_at_start(const char *how)
{
	struct vmm_event failed = {.kind = VMM_EVENT_FAILED};

	if (!strcmp(how, "short"))
		say_bytes(10);
	else if (!strcmp(how, "long"))
		say_bytes(sizeof(struct vmm_event) + 1);
	else if (!strcmp(how, "kind-0"))
		say((struct vmm_event){.kind = 0});
	else if (!strcmp(how, "kind-99"))
		say((struct vmm_event){.kind = 99});
	else if (!strcmp(how, "hello-early"))
		say_hello(24);
	else if (!strcmp(how, "reset-early"))
		say((struct vmm_event){.kind = VMM_EVENT_RESET});
	else if (!strcmp(how, "exit"))
		_exit(3);
	else if (!strcmp(how, "failed")) {
		memset(failed.text, '\x1b', sizeof(failed.text));
		say(failed);
		_exit(0);
	} else if (!strcmp(how, "fd")) {
		say_with_fd();
		_exit(0);
	}
}

static void be_evil_when_saved(const char *how)
{
	struct vmm_event saved = {.kind = VMM_EVENT_SAVED};
	struct vmm_request req;

	if (!strcmp(how, "save-fails")) {
		saved.error = -EIO;
		memset(saved.text, '\x1b', sizeof(saved.text));
	} else if (!strcmp(how, "save-positive")) {
		saved.error = 5;
	}
	/* "save-nothing": the file for the memory stays empty. */
	say(saved);
	if (await(VMM_OP_RESUME, &req))
		say((struct vmm_event){.kind = VMM_EVENT_RESUMED});
}

static void be_evil_later(const char *how)
{
	struct vmm_request req;

	if (!strcmp(how, "running-twice"))
		say((struct vmm_event){.kind = VMM_EVENT_RUNNING});
	else if (!strcmp(how, "hello-short"))
		say_hello(3);
	else if (!strcmp(how, "hello-huge"))
		say_hello(100000);
	else if (!strcmp(how, "paused"))
		say((struct vmm_event){.kind = VMM_EVENT_PAUSED});
	else if (!strcmp(how, "saved"))
		say((struct vmm_event){.kind = VMM_EVENT_SAVED});
	else if (!strcmp(how, "done-unknown"))
		say((struct vmm_event){.kind = VMM_EVENT_STREAM_DONE, .stream = 77});
	else if (!strcmp(how, "close"))
		close(VMM_CONTROL_FD);
	else if (strcmp(how, "silent") != 0)
		say_hello(24);
	if (!strcmp(how, "hello-twice"))
		say_hello(24);
	if (!strncmp(how, "save-", 5) && await(VMM_OP_SAVE, &req))
		be_evil_when_saved(how);
	if (strncmp(how, "stream-", 7) != 0 || !await(VMM_OP_ATTACH, &req))
		return;
	if (!strcmp(how, "stream-positive"))
		say((struct vmm_event){
			.kind = VMM_EVENT_STREAM_DONE, .stream = req.stream.id, .error = 5});
	if (!strcmp(how, "stream-twice")) {
		for (int i = 0; i < 2; i++)
			say((struct vmm_event){.kind = VMM_EVENT_STREAM_DONE,
					       .stream = req.stream.id,
					       .error = -EPIPE});
	}
	if (!strcmp(how, "stream-lost"))
		_exit(0);
}

int main(void)
{
	struct vmm_request req;
	bool is_template;
	char how[64] = "";
	const char *word;

	if (!await(VMM_OP_MACHINE, &req))
		return 8;
	is_template = strstr(req.machine.cmdline, " harpoon_template=1 ");
	word = strstr(req.machine.cmdline, "evil=");
	if (!word || sscanf(word, "evil=%63[a-z0-9-]", how) != 1 || !await(VMM_OP_START, &req))
		return 8;
	if (is_template != !strcmp(how, "template"))
		return 7;
	be_evil_at_start(how);
	say((struct vmm_event){.kind = VMM_EVENT_RUNNING});
	be_evil_later(how);
	for (;;)
		pause();
}
