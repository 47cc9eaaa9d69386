/* Command line of harpoon-fs. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs_control.h"
#include "log.h"
#include "server.h"

#ifndef HARPOON_VERSION
#define HARPOON_VERSION "unknown"
#endif

enum option_id {
	OPTION_VHOST_USER_FD = 1,
	OPTION_VMM_FD,
	OPTION_FUSE_FD,
	OPTION_CONTROL_FD,
	OPTION_MOUNT,
	OPTION_EXPORT,
	OPTION_REQUEST_QUEUES,
	OPTION_WORKERS,
	OPTION_ALLOW_DEVICES,
	OPTION_LOG_LEVEL,
	OPTION_HELP,
	OPTION_VERSION,
};

static const struct option option_table[] = {
	{"vhost-user-fd", required_argument, NULL, OPTION_VHOST_USER_FD},
	{"vmm-fd", required_argument, NULL, OPTION_VMM_FD},
	{"fuse-fd", required_argument, NULL, OPTION_FUSE_FD},
	{"control-fd", required_argument, NULL, OPTION_CONTROL_FD},
	{"mount", required_argument, NULL, OPTION_MOUNT},
	{"export", required_argument, NULL, OPTION_EXPORT},
	{"request-queues", required_argument, NULL, OPTION_REQUEST_QUEUES},
	{"workers", required_argument, NULL, OPTION_WORKERS},
	{"allow-devices", no_argument, NULL, OPTION_ALLOW_DEVICES},
	{"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{0},
};

static const char option_help[] =
	"Usage: harpoon-fs CHANNEL [--control-fd=N] [OPTION...]\n"
	"Serves directory trees and single files to a virtual machine over FUSE.\n"
	"\n"
	"Channels (exactly one):\n"
	"  --vhost-user-fd=N     connected socket of a vhost-user-fs front-end\n"
	"  --vmm-fd=N            SEQPACKET socket of harpoon-vmm\n"
	"  --fuse-fd=N           open /dev/fuse that is mounted already\n"
	"  --mount=DIR           mount on DIR of this host and serve it (for tests)\n"
	"\n"
	"Options:\n"
	"  --control-fd=N        SEQPACKET socket: exports are added and removed through it;\n"
	"                        its end of file ends the server\n"
	"  --export=NAME=PATH[:FLAG...]\n"
	"                        export PATH as NAME from the start; flags: ro, exclusive, "
	"devices\n"
	"  --request-queues=N    request queues of the device, 1 to 8 (1)\n"
	"  --workers=N           threads for each request queue, 1 to 16 (5)\n"
	"  --allow-devices       keep the capability to create device nodes, for exports that may\n"
	"  --log-level=LEVEL     error, warn, info or debug (warn)\n"
	"  --help, --version\n";

/* A number between min and max, or -EINVAL. */
static int option_number(const char *name, const char *text, long min, long max, long *ret,
			 struct err *err)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || !isdigit((unsigned char)*text) || *end || n < min || n > max)
		return err_say(err, -EINVAL, "--%s takes a number from %ld to %ld, not '%s'", name,
			       min, max, text);
	*ret = n;
	return 0;
}

static int option_fd(const char *name, const char *text, int *ret, struct err *err)
{
	long n = -1;
	int r = option_number(name, text, 3, 1 << 20, &n, err);

	if (r)
		return r;
	if (fcntl((int)n, F_GETFD) < 0)
		return err_set(err, -errno, "--%s: descriptor %ld", name, n);
	*ret = (int)n;
	return 0;
}

static int option_count(const char *name, const char *text, long max, unsigned int *ret,
			struct err *err)
{
	long n = 0;
	int r = option_number(name, text, 1, max, &n, err);

	if (!r)
		*ret = (unsigned int)n;
	return r;
}

static int option_export_flag(const char *flag, uint32_t *flags, struct err *err)
{
	if (!strcmp(flag, "ro"))
		*flags |= FS_CONTROL_READ_ONLY;
	else if (!strcmp(flag, "exclusive"))
		*flags |= FS_CONTROL_EXCLUSIVE;
	else if (!strcmp(flag, "devices"))
		*flags |= FS_CONTROL_ALLOW_DEVICES;
	else
		return err_say(err, -EINVAL, "--export: unknown flag '%s'", flag);
	return 0;
}

/* NAME=PATH[:FLAG...]; writes into the argument, as strtok() does. */
static int option_export(struct server_options *o, char *text, struct err *err)
{
	struct server_export *x = &o->exports[o->nr_exports];
	char *path = strchr(text, '='), *save = NULL, *flag;

	if (o->nr_exports == SERVER_EXPORTS_MAX)
		return err_say(err, -EINVAL, "--export was given more than %d times",
			       SERVER_EXPORTS_MAX);
	if (!path || path == text)
		return err_say(err, -EINVAL, "--export takes NAME=PATH, not '%s'", text);
	*path++ = '\0';
	*x = (struct server_export){.name = text};
	path = strtok_r(path, ":", &save);
	while ((flag = strtok_r(NULL, ":", &save))) {
		int r = option_export_flag(flag, &x->flags, err);

		if (r < 0)
			return r;
	}
	x->fd = path ? open(path, O_PATH | O_CLOEXEC) : -1;
	if (x->fd < 0)
		return err_set(err, path ? -errno : -EINVAL, "--export: open '%s'",
			       path ? path : "");
	o->nr_exports++;
	return 0;
}

static int option_log_level(const char *text, struct err *err)
{
	enum log_level level;

	if (log_level_parse(text, &level) < 0)
		return err_say(err, -EINVAL,
			       "--log-level takes error, warn, info or debug, not '%s'", text);
	log_init(STDERR_FILENO, level, NULL);
	return 0;
}

static int option_take(struct server_options *o, int id, const char *name, struct err *err)
{
	switch (id) {
	case OPTION_VHOST_USER_FD:
		return option_fd(name, optarg, &o->vhost_user_fd, err);
	case OPTION_VMM_FD:
		return option_fd(name, optarg, &o->vmm_fd, err);
	case OPTION_FUSE_FD:
		return option_fd(name, optarg, &o->fuse_fd, err);
	case OPTION_CONTROL_FD:
		return option_fd(name, optarg, &o->control_fd, err);
	case OPTION_MOUNT:
		o->mount = optarg;
		return 0;
	case OPTION_EXPORT:
		return option_export(o, optarg, err);
	case OPTION_REQUEST_QUEUES:
		return option_count(name, optarg, SERVER_REQUEST_QUEUES_MAX, &o->nr_request_queues,
				    err);
	case OPTION_WORKERS:
		return option_count(name, optarg, SERVER_WORKERS_MAX, &o->nr_workers, err);
	case OPTION_ALLOW_DEVICES:
		o->allow_devices = true;
		return 0;
	case OPTION_LOG_LEVEL:
		return option_log_level(optarg, err);
	case OPTION_HELP:
		fputs(option_help, stdout);
		return 1;
	case OPTION_VERSION:
		puts("harpoon-fs " HARPOON_VERSION);
		return 1;
	default:
		return err_say(err, -EINVAL, "try 'harpoon-fs --help'");
	}
}

int server_options_parse(struct server_options *o, int argc, char **argv, struct err *err)
{
	int id, index = 0, r = 0;

	*o = (struct server_options){.vhost_user_fd = -1,
				     .vmm_fd = -1,
				     .fuse_fd = -1,
				     .control_fd = -1,
				     .nr_request_queues = 1,
				     .nr_workers = 5};
	while (!r && (id = getopt_long(argc, argv, "", option_table, &index)) != -1)
		r = option_take(o, id, option_table[index].name, err);
	if (r)
		return r;
	if (optind < argc)
		return err_say(err, -EINVAL, "'%s' is not an option; try 'harpoon-fs --help'",
			       argv[optind]);
	if ((o->vhost_user_fd >= 0) + (o->vmm_fd >= 0) + (o->fuse_fd >= 0) + (o->mount != NULL) !=
	    1)
		return err_say(err, -EINVAL,
			       "give one of --vhost-user-fd, --vmm-fd, --fuse-fd and --mount; try "
			       "'harpoon-fs --help'");
	return 0;
}
