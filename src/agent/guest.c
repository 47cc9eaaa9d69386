/*
 * PID 1's duties; see guest.h. Everything here runs as root in the initial namespaces, before or beside
 * containers. A failing step leaves a line on the console and the guest goes on: the call that needs what
 * is missing then fails with its own sentence, which reaches the host.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/random.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <time.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "memory.h"
#include "mountfs.h"

#define GUEST_RUN_DIR "/run/harpoon"
#define GUEST_FS_DIR GUEST_RUN_DIR "/fs"
#define GUEST_SOCK_DIR GUEST_RUN_DIR "/sock"
#define GUEST_FS_TAG "harpoon"
#define GUEST_READ_AHEAD_KB "1024" /* FS_DATA_MAX of the file server */
#define GUEST_CGROUP_ROOT "/sys/fs/cgroup"
#define GUEST_CGROUP_DIR GUEST_CGROUP_ROOT "/harpoon"
#define GUEST_PORT "/dev/vport0p1"

/* What containers together leave to the agent and the kernel. */
#define GUEST_RESERVE_BYTES ((uint64_t)16 << 20)
#define GUEST_RESERVE_MIN_RAM ((uint64_t)64 << 20) /* smaller guests reserve nothing */
#define GUEST_RESERVE_TASKS 64
#define GUEST_FILES_MAX 65536

const struct agent_params guest_params = {
	.fs_dir = GUEST_FS_DIR,
	.sock_dir = GUEST_SOCK_DIR,
	.disk_dir = GUEST_RUN_DIR "/disks",
	.cgroup_dir = GUEST_CGROUP_DIR,
	.proc_dir = "/proc",
	.dev_dir = "/dev",
	.channel = GUEST_PORT,
	.is_guest_init = true,
};

/* The port to the host is a node of this one: all that answering calls takes. */
static const struct guest_mount {
	const char *target, *type, *data;
	unsigned long flags;
} guest_dev = {"/dev", "devtmpfs", "mode=0755", MS_NOSUID};

/* For containers, in this order. */
static const struct guest_mount guest_mounts[] = {
	{"/proc", "proc", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
	{"/sys", "sysfs", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
	{"/run", "tmpfs", "mode=0755,size=10%", MS_NOSUID | MS_NODEV},
	{GUEST_CGROUP_ROOT, "cgroup2", "nsdelegate", MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

uint64_t guest_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* EBUSY: the kernel has mounted it already (devtmpfs.mount=1). */
static void guest_mount(const struct guest_mount *m)
{
	mkdir(m->target, 0755);
	if (sys_mount(m->type, m->target, m->type, m->flags, m->data) && errno != EBUSY)
		log_err("guest", "mount %s on %s: %s", m->type, m->target, strerror(errno));
}

/*
 * The initial root (initramfs) cannot be pivoted away from. A bind of it on itself can, and containers'
 * children inherit that as their root. /dev comes along; mounts made afterwards hang below the bind.
 */
static void guest_make_root_pivotable(void)
{
	cleanup_close int fd = mountfs_clone(AT_FDCWD, "/", true);
	cleanup_close int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || root < 0 || mountfs_attach(fd, root) || fchdir(fd) || chroot("."))
		log_err("guest", "bind the root: %s", strerror(errno));
}

/* Descriptors 0 to 2 must be taken before anything else gets them; messages go to the kernel's log. */
static void guest_open_console(void)
{
	int fd = open("/dev/null", O_RDWR);
	int log_fd;

	for (int i = 0; fd >= 0 && i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	log_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NONBLOCK);
	if (log_fd >= 0)
		log_init(log_fd, LOG_LEVEL_INFO, NULL);
}

void guest_boot(void)
{
	umask(0022);
	guest_mount(&guest_dev);
	guest_open_console();
}

int guest_open_channel(struct err *err)
{
	int fd = open(GUEST_PORT, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 && errno != ENOENT)
		return err_set(err, -errno, "open '%s'", GUEST_PORT);
	return fd < 0 ? -ENOENT : fd;
}

static int guest_add_entropy(const AGENT_PB(ConfigureRequest) * r, struct err *err)
{
	cleanup_close int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	size_t len = r->entropy.len;
	cleanup_free struct rand_pool_info *info = xcalloc(1, sizeof(*info) + len);

	info->entropy_count = (int)(8 * len);
	info->buf_size = (int)len;
	memcpy(info->buf, r->entropy.data, len);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, info))
		return err_set(err, -errno, "add %zu bytes of entropy", len);
	/* Without it the kernel would use the new seed up to a minute later. */
	if (ioctl(fd, RNDRESEEDCRNG))
		return err_set(err, -errno, "reseed the random number generator");
	return 0;
}

static int guest_set_clock(int64_t ns, struct err *err)
{
	struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	return clock_settime(CLOCK_REALTIME, &ts) ? err_set(err, -errno, "set the clock") : 0;
}

/*
 * In one step of the kernel: whatever holds us up meanwhile makes no difference. In microseconds, because ADJ_NANO
 * would stay in effect for what programs read with adjtimex().
 */
static int guest_move_clock(int64_t by_ns, struct err *err)
{
	struct timex t = {.modes = ADJ_SETOFFSET};

	t.time.tv_sec = by_ns / 1000000000;
	t.time.tv_usec = by_ns % 1000000000 / 1000;
	if (t.time.tv_usec < 0) {
		t.time.tv_sec--;
		t.time.tv_usec += 1000000;
	}
	return adjtimex(&t) < 0
		       ? err_set(err, -errno, "move the clock by %lld ns", (long long)by_ns)
		       : 0;
}

static int guest_slew_clock(int64_t by_ns, struct err *err)
{
	struct timex t = {.modes = ADJ_OFFSET_SINGLESHOT, .offset = (long)(by_ns / 1000)};

	return adjtimex(&t) < 0
		       ? err_set(err, -errno, "slew the clock by %lld ns", (long long)by_ns)
		       : 0;
}

int guest_adjust_clock(const struct agent_params *params, int64_t by_ns, bool gradual,
		       int64_t *ret_now_ns, struct err *err)
{
	struct timespec ts;

	if (params->is_guest_init && by_ns &&
	    (gradual ? guest_slew_clock(by_ns, err) : guest_move_clock(by_ns, err)))
		return err->code;
	clock_gettime(CLOCK_REALTIME, &ts);
	*ret_now_ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
	return 0;
}

int guest_tell_driver(const char *driver, const char *file, const char *name)
{
	cleanup_free char *path = xasprintf("%s/%s", driver, file);
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd < 0 ? -errno : io_write_full(fd, name, strlen(name));
}

static void guest_raise_loopback(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr))
		log_err("guest", "bring up the loopback interface: %s", strerror(errno));
}

/* Entropy first: nothing that follows may use random numbers of before. */
int guest_configure(const struct agent_params *params, const AGENT_PB(ConfigureRequest) * r,
		    struct err *err)
{
	if (!params->is_guest_init)
		return 0;
	if (r->entropy.len && guest_add_entropy(r, err))
		return err->code;
	if (r->realtime_ns && guest_set_clock(r->realtime_ns, err))
		return err->code;
	if (r->hostname[0] && sethostname(r->hostname, strlen(r->hostname)))
		return err_set(err, -errno, "set hostname '%s'", r->hostname);
	return 0;
}

/*
 * Each request is a trip to the host and back, which costs far more than the copying: as much ahead as fits in one.
 * The kernel's own 128 KiB are meant for disks.
 */
static void guest_read_ahead(const char *mount)
{
	char path[64];
	struct stat st;
	int e = stat(mount, &st) ? -errno : 0;

	if (!e) {
		snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(st.st_dev),
			 minor(st.st_dev));
		e = io_write_file(AT_FDCWD, path, GUEST_READ_AHEAD_KB,
				  sizeof(GUEST_READ_AHEAD_KB) - 1);
	}
	if (e)
		log_warn("guest", "read ahead of the shared folder: %s", strerror(-e));
}

int guest_mount_shared(const struct agent_params *params, struct err *err)
{
	static bool is_done;

	if (is_done || !params->is_guest_init)
		return 0;
	if (sys_mount(GUEST_FS_TAG, GUEST_FS_DIR, "virtiofs", 0, ""))
		return err_set(err, -errno, "mount the shared folder (virtiofs '%s')",
			       GUEST_FS_TAG);
	guest_read_ahead(GUEST_FS_DIR);
	is_done = true;
	return 0;
}

/* fd: the cgroup of all containers. */
static void guest_reserve_memory(int fd)
{
	struct sysinfo info;
	char value[32];
	uint64_t all;

	if (sysinfo(&info))
		return;
	all = (uint64_t)info.totalram * info.mem_unit;
	if (all <= GUEST_RESERVE_MIN_RAM)
		return;
	snprintf(value, sizeof(value), "%" PRIu64, all - GUEST_RESERVE_BYTES);
	cgroup_write(fd, "memory.max", value, NULL);
}

static void guest_reserve_tasks(int fd)
{
	char value[32];
	char *text = NULL;
	long tasks;

	if (io_read_file(AT_FDCWD, "/proc/sys/kernel/threads-max", 64, &text, NULL))
		return;
	tasks = strtol(text, NULL, 10);
	free(text);
	if (tasks > 4 * GUEST_RESERVE_TASKS) {
		snprintf(value, sizeof(value), "%ld", tasks - GUEST_RESERVE_TASKS);
		cgroup_write(fd, "pids.max", value, NULL);
	}
}

/* Containers may hold thousands of pipes; what they get themselves is in their requests. */
static void guest_set_own_limits(void)
{
	struct rlimit l = {.rlim_cur = GUEST_FILES_MAX, .rlim_max = GUEST_FILES_MAX};
	int e = io_write_file(AT_FDCWD, "/proc/self/oom_score_adj", "-1000", 5);

	/* Containers start from 0: spawn.c writes theirs. */
	if (e)
		log_err("guest", "protect from the OOM killer: %s", strerror(-e));
	if (setrlimit(RLIMIT_NOFILE, &l))
		log_warn("guest", "raise the number of descriptors: %s", strerror(errno));
}

/* What distributions set for their hosts, and containers so expect; the kernel's defaults differ. */
static void guest_set_sysctls(void)
{
	static const struct {
		const char *path, *value;
	} sysctls[] = {
		{"/proc/sys/kernel/dmesg_restrict", "1"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(sysctls); i++) {
		int e = io_write_file(AT_FDCWD, sysctls[i].path, sysctls[i].value,
				      strlen(sysctls[i].value));

		if (e)
			log_warn("guest", "set %s: %s", sysctls[i].path, strerror(-e));
	}
}

/* All containers live below one cgroup, which leaves the agent room whatever they do. */
static int guest_make_cgroups(struct err *err)
{
	cleanup_close int fd = -1;

	if (cgroup_enable_controllers(GUEST_CGROUP_ROOT, err) ||
	    cgroup_create(GUEST_CGROUP_ROOT, "harpoon", &fd, err))
		return err->code;
	guest_reserve_memory(fd);
	guest_reserve_tasks(fd);
	return 0;
}

int guest_grow(const struct agent_params *params, uint64_t bytes, struct err *err)
{
	cleanup_close int fd = -1;
	int r;

	if (!params->is_guest_init)
		return 0;
	r = memory_grow(bytes, err);
	fd = open(params->cgroup_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0)
		guest_reserve_memory(fd);
	return r;
}

int guest_prepare(const struct agent_params *params, struct err *err)
{
	static bool is_done;

	if (is_done || !params->is_guest_init)
		return 0;
	is_done = true;
	guest_make_root_pivotable();
	for (size_t i = 0; i < ARRAY_SIZE(guest_mounts); i++)
		guest_mount(&guest_mounts[i]);
	mkdir(GUEST_RUN_DIR, 0755);
	mkdir(GUEST_FS_DIR, 0755);
	mkdir(GUEST_SOCK_DIR, 0755);
	guest_set_own_limits();
	guest_set_sysctls();
	guest_raise_loopback();
	return guest_make_cgroups(err);
}

void guest_shutdown(void)
{
	kill(-1, SIGKILL);
	sync();
	/* Machines without ACPI know no power-off; the host runs them so that a restart ends them. */
	reboot(RB_AUTOBOOT);
}
