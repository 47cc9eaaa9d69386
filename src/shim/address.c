/*
 * The socket's path and its making; see address.h. Runs in `start`, before anything is forked.
 */
#include "address.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "cleanup.h"
#include "sha256.h"
#include "util.h"

#define ADDRESS_BACKLOG 64

static_assert(ADDRESS_PATH_MAX < sizeof(((struct sockaddr_un *)0)->sun_path), "fits sun_path");

void address_path(const char *grpc_address, const char *namespace_, const char *id,
		  char ret[ADDRESS_PATH_MAX + 1])
{
	cleanup_free char *text = xasprintf("%s/%s/%s", grpc_address, namespace_, id);
	const char *slash = strrchr(grpc_address, '/');
	size_t dir_len = slash ? (size_t)(slash - grpc_address) : 0;
	char hash[SHA256_HEX_LEN + 1];

	sha256_hex(text, strlen(text), hash);
	if (grpc_address[0] == '/' && dir_len + strlen("/s/") + SHA256_HEX_LEN <= ADDRESS_PATH_MAX)
		snprintf(ret, ADDRESS_PATH_MAX + 1, "%.*s/s/%s", (int)dir_len, grpc_address, hash);
	else
		snprintf(ret, ADDRESS_PATH_MAX + 1, "%s/%s", ADDRESS_FALLBACK_DIR, hash);
}

/* Makes the folder of `path` and its parents; refuses one that others could plant sockets in. */
static int address_make_dir(const char *path, struct err *err)
{
	char dir[ADDRESS_PATH_MAX + 1];
	struct stat st;

	snprintf(dir, sizeof(dir), "%s", path);
	*strrchr(dir, '/') = '\0';
	for (char *p = strchr(dir + 1, '/');; p = strchr(p + 1, '/')) {
		if (p)
			*p = '\0';
		if (mkdir(dir, 0700) && errno != EEXIST)
			return err_set(err, -errno, "make folder '%s'", dir);
		if (!p)
			break;
		*p = '/';
	}
	if (lstat(dir, &st))
		return err_set(err, -errno, "look at folder '%s'", dir);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
		return err_say(err, -EPERM,
			       "'%s' must be a folder of uid %u that nobody else may write to", dir,
			       (unsigned int)geteuid());
	return 0;
}

static bool address_is_served(const struct sockaddr_un *addr)
{
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* A full backlog (EAGAIN) is somebody, too. */
	return fd >= 0 &&
	       (!connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) || errno == EAGAIN);
}

static int address_bind(int fd, const struct sockaddr_un *addr)
{
	mode_t mask = umask(0177);
	int r = bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? -errno : 0;

	umask(mask);
	return r;
}

int address_listen(const char *path, bool *ret_in_use, struct err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	*ret_in_use = false;
	if (fd < 0)
		return err_set(err, -errno, "make the shim's socket");
	r = address_make_dir(path, err);
	if (r)
		return r;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	r = address_bind(fd, &addr);
	if (r == -EADDRINUSE) {
		*ret_in_use = address_is_served(&addr);
		if (*ret_in_use)
			return err_set(err, r, "bind '%s'", path);
		unlink(path);
		r = address_bind(fd, &addr);
	}
	if (r)
		return err_set(err, r, "bind '%s'", path);
	if (listen(fd, ADDRESS_BACKLOG)) {
		r = err_set(err, -errno, "listen on '%s'", path);
		unlink(path);
		return r;
	}
	return take_fd(&fd);
}
