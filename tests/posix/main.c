/* The table of file system checks; see posix.h. posix [-n STRIDE]
 *     [-r READ-ONLY] [-o OTHER] [-b BUSY] [-s SMALL] FOLDER [TABLE...] */
#include "posix.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

struct px_places px_places;

static const struct {
	const char *name;
	void (*run)(void);
} px_tables[] = {
	{"calls", px_table_calls},
	{"paths", px_table_paths},
	{"access", px_table_access},
	{"folders", px_table_folders},
	{"sticky", px_table_sticky},
	{"owner", px_table_owner},
	{"rename", px_table_rename},
	{"link", px_table_link},
	{"times", px_table_times},
	{"set-times", px_table_set_times},
	{"modes", px_table_modes},
	{"set-id", px_table_set_id},
	{"xattr", px_table_xattr},
	{"acl", px_table_acl},
	{"sizes", px_table_sizes},
	{"fallocate", px_table_fallocate},
	{"seek", px_table_seek},
	{"io", px_table_io},
	{"unlinked", px_table_unlinked},
	{"mmap", px_table_mmap},
	{"locks", px_table_locks},
	{"at", px_table_at},
	{"open", px_table_open},
	{"names", px_table_names},
	{"reading", px_table_folder_reading},
	{"devices", px_table_devices},
	{"places", px_table_places},
};

/* What the root of a container has: more of it would let checks pass that ask for permissions. */
static void px_drop_capabilities(void)
{
	static const int keep[] = {CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FSETID,  CAP_FOWNER, CAP_MKNOD,
				   CAP_SETGID, CAP_SETUID,	 CAP_SETFCAP, CAP_KILL};
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {0};

	for (size_t i = 0; i < PX_SIZE(keep); i++)
		d[keep[i] / 32].permitted |= 1u << keep[i] % 32;
	d[0].effective = d[0].permitted;
	d[1].effective = d[1].permitted;
	px_must(syscall(SYS_capset, &h, d), "drop capabilities");
}

static bool px_is_wanted(const char *name, char **wanted)
{
	bool all = !*wanted;

	for (; *wanted && !all; wanted++)
		all = !strcmp(name, *wanted);
	return all;
}

int main(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "n:r:o:b:s:")) >= 0) {
		if (c == 'n' && atoi(optarg) > 0)
			px_stride = (unsigned int)atoi(optarg);
		else if (c == 'r')
			px_places.read_only = optarg;
		else if (c == 'o')
			px_places.other = optarg;
		else if (c == 'b')
			px_places.busy = optarg;
		else if (c == 's')
			px_places.small = optarg;
		else
			return 2;
	}
	if (optind >= argc || chdir(argv[optind]) < 0) {
		fprintf(stderr, "posix: no folder to work in\n");
		return 2;
	}
	px_drop_capabilities();
	umask(022);
	(void)signal(SIGXFSZ, SIG_IGN);
	(void)signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < PX_SIZE(px_tables); i++) {
		if (px_is_wanted(px_tables[i].name, argv + optind + 1))
			px_tables[i].run();
	}
	px_become(PX_ROOT);
	px_remove(PX_W);
	return 0;
}
