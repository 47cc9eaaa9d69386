/*
 * Network namespaces; see netns.h. A namespace is joined by one thread for a few system calls; the shim has one
 * thread. Could it not go back, everything it does later would happen in the wrong namespace: it ends.
 */
#include "netns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "cleanup.h"
#include "log.h"

#define NETNS_SELF "/proc/thread-self/ns/net"

int netns_open(const char *path, struct err *err)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct statfs fs;

	if (fd < 0)
		return err_set(err, -errno, "open network namespace '%.300s'", path);
	if (fstatfs(fd, &fs) || fs.f_type != NSFS_MAGIC || ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
		return err_say(err, -EINVAL, "'%.300s' is not a network namespace", path);
	return take_fd(&fd);
}

int netns_identify(int fd, struct netns_id *ret)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	*ret = (struct netns_id){st.st_dev, st.st_ino};
	return 0;
}

bool netns_is_own(int fd)
{
	cleanup_close int self = open(NETNS_SELF, O_RDONLY | O_CLOEXEC);
	struct netns_id a = {0}, b = {0};

	return self >= 0 && !netns_identify(fd, &a) && !netns_identify(self, &b) &&
	       a.dev == b.dev && a.ino == b.ino;
}

static void netns_go_back(int fd)
{
	if (!setns(fd, CLONE_NEWNET))
		return;
	log_err("shim", "return to the own network namespace: %s", strerror(errno));
	abort();
}

static int netns_raise_loopback(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	return fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr) ? -errno : 0;
}

int netns_make(struct err *err)
{
	cleanup_close int back = open(NETNS_SELF, O_RDONLY | O_CLOEXEC);
	cleanup_close int fd = -1;
	int r = 0;

	if (back < 0 || unshare(CLONE_NEWNET))
		return err_set(err, -errno, "make a network namespace");
	fd = open(NETNS_SELF, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		r = err_set(err, -errno, "open the new network namespace");
	if (!r && netns_raise_loopback())
		r = err_set(err, -errno, "bring up the loopback interface");
	netns_go_back(back);
	return r ? r : take_fd(&fd);
}

int netns_run_in(int fd, netns_fn fn, void *ctx, struct err *err)
{
	cleanup_close int back = open(NETNS_SELF, O_RDONLY | O_CLOEXEC);
	int r;

	if (back < 0 || setns(fd, CLONE_NEWNET))
		return err_set(err, -errno, "enter the container's network namespace");
	r = fn(ctx, err);
	netns_go_back(back);
	return r;
}
