/*
 * `harpoon check`: everything that running a container needs, one line each: ok, missing (with what to
 * do), or a note. One table of checks; each looks at one thing and says what it saw.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cleanup.h"
#include "cli.h"
#include "hv.h"
#include "io.h"
#include "probe.h"
#include "sys.h"

#define CGROUP2_MAGIC 0x63677270

enum check_state { CHECK_OK, CHECK_NOTE, CHECK_MISSING, CHECK_MAX };

struct check_result {
	enum check_state state;
	char text[300];
	char hint[200]; /* what to do, "" = nothing */
};

static void HARPOON_PRINTF(3, 4)
	check_say(struct check_result *r, enum check_state state, const char *fmt, ...)
{
	va_list ap;

	r->state = state;
	va_start(ap, fmt);
	vsnprintf(r->text, sizeof(r->text), fmt, ap);
	va_end(ap);
}

static void check_hint(struct check_result *r, const char *hint)
{
	if (r->state != CHECK_OK)
		snprintf(r->hint, sizeof(r->hint), "%s", hint);
}

static void check_root(const struct config *c, struct check_result *r)
{
	if (!geteuid())
		check_say(r, CHECK_OK, "running as root");
	else
		check_say(r, CHECK_MISSING, "running as user %u", (unsigned int)geteuid());
	check_hint(r, "containerd and its shims run as root; run this as root to see the same");
}

static void check_config(const struct config *c, struct check_result *r)
{
	check_say(r, CHECK_OK, "%s", c->path ? c->path : "built-in defaults, no file");
}

/* A file that the unprivileged QEMU has to read. `magic`: its first bytes. */
static void check_guest_file(const char *path, const char *magic, size_t magic_len,
			     struct check_result *r)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	char head[16] = "";
	struct stat st;

	if (fd < 0 || fstat(fd, &st)) {
		check_say(r, CHECK_MISSING, "%s: %s", path, strerror(errno));
		check_hint(r, "`make guest` builds it; harpoon.conf may name another");
	} else if (!(st.st_mode & S_IROTH)) {
		check_say(r, CHECK_MISSING, "%s is not readable by everyone", path);
		check_hint(r, "chmod o+r: the process that runs the guest has no privileges");
	} else if (io_read_full(fd, head, magic_len) != (ssize_t)magic_len ||
		   memcmp(head, magic, magic_len) != 0) {
		check_say(r, CHECK_MISSING, "%s is not what it should be", path);
		check_hint(r, "the kernel is an uncompressed ELF vmlinux, the initrd a plain cpio");
	} else {
		check_say(r, CHECK_OK, "%s (%.1f MB)", path, (double)st.st_size / 1e6);
	}
}

static void check_kernel(const struct config *c, struct check_result *r)
{
	check_guest_file(c->kernel, "\177ELF\2", 5, r);
}

static void check_initrd(const struct config *c, struct check_result *r)
{
	check_guest_file(c->initrd, "070701", 6, r);
}

static void check_program(const char *path, const char *hint, struct check_result *r)
{
	if (access(path, X_OK))
		check_say(r, CHECK_MISSING, "%s: %s", path, strerror(errno));
	else
		check_say(r, CHECK_OK, "%s", path);
	check_hint(r, hint);
}

static void check_fs_server(const struct config *c, struct check_result *r)
{
	check_program(c->fs_server, "install harpoon, or name it in harpoon.conf, [programs]", r);
}

/* Without it there is QEMU, on any host; whoever asks for it must have it. */
static void check_vmm(const struct config *c, struct check_result *r)
{
	if (!access(c->vmm, X_OK))
		check_say(r, CHECK_OK, "%s", c->vmm);
	else
		check_say(r, c->backend == CONFIG_BACKEND_KVM ? CHECK_MISSING : CHECK_NOTE,
			  "%.200s: %s; without it KVM is not used, however fast it is", c->vmm,
			  strerror(errno));
	check_hint(r, "install harpoon, or name it in harpoon.conf, [programs], key 'vmm'");
}

static void check_qemu(const struct config *c, struct check_result *r)
{
	struct probe_qemu q;

	probe_qemu(c->qemu, &q);
	check_say(r, q.usable ? CHECK_OK : CHECK_MISSING, "%s", q.text);
	check_hint(r, "on Debian: apt-get install qemu-system-x86 (from backports on Debian 12)");
}

static void check_kvm(const struct config *c, struct check_result *r)
{
	struct probe_kvm kvm;

	probe_kvm(&kvm);
	check_say(r, kvm.state == PROBE_KVM_NATIVE ? CHECK_OK : CHECK_NOTE, "%s", kvm.text);
}

static void check_backend(const struct config *c, struct check_result *r)
{
	struct hv_choice choice;
	struct err err = {0};

	if (hv_choose_backend(c, &choice, &err)) {
		check_say(r, CHECK_MISSING, "%s", err.msg);
		return;
	}
	check_say(r, CHECK_OK, "%s (%s)", config_backend_name(choice.backend), choice.why);
}

/* The absolute path of a program that containerd or a shell would find, or -ENOENT. */
static int check_find_program(const char *name, char *out, size_t len)
{
	const char *path = getenv("PATH");
	cleanup_free char *copy = xstrdup(path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
	char *save = NULL;

	for (char *dir = strtok_r(copy, ":", &save); dir; dir = strtok_r(NULL, ":", &save)) {
		int n = snprintf(out, len, "%s/%s", dir, name);

		if (n > 0 && (size_t)n < len && !access(out, X_OK))
			return 0;
	}
	return -ENOENT;
}

static void check_shim(const struct config *c, struct check_result *r)
{
	char path[512];

	if (check_find_program("containerd-shim-harpoon-v1", path, sizeof(path)))
		check_say(r, CHECK_MISSING, "containerd-shim-harpoon-v1 is not in PATH");
	else
		check_say(r, CHECK_OK, "%.290s", path);
	check_hint(r, "containerd looks for it in its own PATH: install it in /usr/local/bin");
}

static void check_containerd(const struct config *c, struct check_result *r)
{
	char path[512], text[256], version[32] = "";
	struct err err = {0};

	if (check_find_program("containerd", path, sizeof(path))) {
		check_say(r, CHECK_MISSING, "no containerd in PATH");
		check_hint(r, "on Debian: apt-get install containerd");
		return;
	}
	if (probe_ask_version(path, text, sizeof(text), &err)) {
		check_say(r, CHECK_MISSING, "%.250s", err.msg);
		return;
	}
	/* "containerd github.com/containerd/containerd 1.6.20~ds1 ..." or "containerd ... v2.0.0 ..." */
	if (sscanf(text, "containerd %*s %31[a-zA-Z0-9.~+-]", version) != 1)
		check_say(r, CHECK_NOTE, "%.200s, of unknown version", path);
	else
		check_say(r, CHECK_OK, "%.200s, version %s", path, version);
}

static void check_overlayfs(const struct config *c, struct check_result *r)
{
	cleanup_free char *text = NULL;

	if (io_read_file(AT_FDCWD, "/proc/filesystems", 1 << 16, &text, NULL))
		check_say(r, CHECK_NOTE, "/proc/filesystems cannot be read");
	else if (strstr(text, "\toverlay\n"))
		check_say(r, CHECK_OK, "overlayfs");
	else
		check_say(r, CHECK_NOTE,
			  "no overlayfs: containerd uses the slower `native` snapshotter then "
			  "(or: modprobe overlay)");
}

static void check_cgroup(const struct config *c, struct check_result *r)
{
	struct statfs fs;

	if (statfs("/sys/fs/cgroup", &fs)) {
		check_say(r, CHECK_MISSING, "/sys/fs/cgroup: %s", strerror(errno));
		check_hint(r, "mount a cgroup file system");
		return;
	}
	if (fs.f_type == CGROUP2_MAGIC)
		check_say(r, CHECK_OK, "cgroup v2");
	else if (!access("/sys/fs/cgroup/unified", F_OK))
		check_say(r, CHECK_OK, "cgroup v1 with v2 beside it (hybrid)");
	else
		check_say(r, CHECK_OK, "cgroup v1");
}

static void check_namespaces(const struct config *c, struct check_result *r)
{
	static const char *const names[] = {"mnt", "pid", "ipc", "uts", "net", "cgroup"};
	char path[64];

	check_say(r, CHECK_OK, "mount, pid, IPC, UTS, network, cgroup");
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		if (access(path, F_OK))
			check_say(r, CHECK_MISSING, "this kernel has no %s namespace", names[i]);
	}
	check_hint(r, "the guest's process is confined with it: another host kernel is needed");
}

static void check_tun(const struct config *c, struct check_result *r)
{
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		check_say(r, CHECK_MISSING, "/dev/net/tun: %s", strerror(errno));
	else
		check_say(r, CHECK_OK, "/dev/net/tun");
	check_hint(r, "network devices of VMs are taps: modprobe tun");
}

static void check_passt(const struct config *c, struct check_result *r)
{
	if (access(c->passt, X_OK))
		check_say(r, CHECK_NOTE, "%s: %s: containers cannot have the host's network",
			  c->passt, strerror(errno));
	else
		check_say(r, CHECK_OK, "%s", c->passt);
}

static void check_host_kernel(const struct config *c, struct check_result *r)
{
	/* The youngest system call we use: Linux 5.12. A bad descriptor tells that it is there. */
	if (sys_mount_setattr(-1, "", AT_EMPTY_PATH, 0, 0) && errno == ENOSYS)
		check_say(r, CHECK_MISSING, "no mount_setattr()");
	else
		check_say(r, CHECK_OK, "mount_setattr() and what came before it");
	check_hint(r, "Linux 5.12 or newer is needed");
}

static const struct {
	const char *name;
	void (*run)(const struct config *c, struct check_result *r);
} check_table[] = {
	{"privileges", check_root},
	{"configuration", check_config},
	{"guest kernel", check_kernel},
	{"guest initrd", check_initrd},
	{"QEMU", check_qemu},
	{"file server", check_fs_server},
	{"harpoon-vmm", check_vmm},
	{"shim", check_shim},
	{"KVM", check_kvm},
	{"backend", check_backend},
	{"containerd", check_containerd},
	{"host kernel", check_host_kernel},
	{"namespaces", check_namespaces},
	{"cgroups", check_cgroup},
	{"overlayfs", check_overlayfs},
	{"taps", check_tun},
	{"passt", check_passt},
};

/* Returns how many are missing. */
static unsigned int check_all(const struct config *c)
{
	static const char *const states[] = {"ok", "note", "missing"};
	unsigned int missing = 0;

	_Static_assert(ARRAY_SIZE(states) == CHECK_MAX, "a word for every state");
	for (size_t i = 0; i < ARRAY_SIZE(check_table); i++) {
		struct check_result r = {0};

		check_table[i].run(c, &r);
		printf("%-8s %-14s %s\n", states[r.state], check_table[i].name, r.text);
		if (r.hint[0])
			printf("%-8s %-14s -> %s\n", "", "", r.hint);
		missing += r.state == CHECK_MISSING;
	}
	return missing;
}

static int check_run(const struct cli_command *cmd, int argc, char **argv)
{
	static const struct cli_option none[] = {{0}};
	struct config c;
	struct err err = {0};
	unsigned int missing;
	int r = cli_parse(cmd, none, argc, argv);

	if (r >= 0)
		return r;
	if (config_load(&c, &err)) {
		printf("%-8s %-14s %s\n", "missing", "configuration", err.msg);
		return CLI_FAILED;
	}
	missing = check_all(&c);
	config_done(&c);
	if (missing)
		printf("\n%u of %zu requirements missing\n", missing, ARRAY_SIZE(check_table));
	else
		printf("\nready to run containers\n");
	return missing ? CLI_FAILED : CLI_OK;
}

const struct cli_command cli_check = {
	.name = "check",
	.summary = "check what this host has of what running containers needs",
	.usage = "usage: harpoon check\n"
		 "\n"
		 "Looks at everything that running a container needs, one line each: ok, missing "
		 "(and what\n"
		 "to do), or a note. Exit code 0 when nothing is missing, else 1.\n",
	.run = check_run,
};
