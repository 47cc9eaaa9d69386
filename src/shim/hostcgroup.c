/*
 * The container's cgroup on the host: folders, limits, removal; see hostcgroup.h.
 *
 * Threads: the loop's. Everything here is a handful of system calls on kernfs.
 */
#include "hostcgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "hostcgroup_find.h"
#include "io.h"
#include "log.h"
#include "util.h"

#define HOSTCGROUP_NOTE "cgroup"
#define HOSTCGROUP_MAKE "make"
#define HOSTCGROUP_OWN "own"
#define HOSTCGROUP_NOTE_MAX (64u << 10)
#define HOSTCGROUP_FILE_MAX 65536
#define HOSTCGROUP_PERIOD_DEFAULT 100000
#define HOSTCGROUP_REMOVE_TRIES \
	100 /* 1 ms apart; a folder is busy for a moment after its last process */
#define HOSTCGROUP_KILL_TRIES 2000

/* ---- making the folders ---- */

static int hostcgroup_read(int fd, const char *name, char **ret)
{
	int r = io_read_file(fd, name, HOSTCGROUP_FILE_MAX, ret, NULL);

	if (!r)
		(*ret)[strcspn(*ret, "\n")] = '\0';
	return r;
}

static int hostcgroup_write(int fd, const char *name, const char *value)
{
	cleanup_close int file = openat(fd, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);

	return file < 0 ? -errno : io_write_full(file, value, strlen(value));
}

/* A new cpuset of version 1 is empty, and takes no process until it has CPUs and memory nodes. */
static int hostcgroup_inherit_cpuset(int parent, int fd)
{
	static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		cleanup_free char *own = NULL, *from = NULL;
		int r = hostcgroup_read(fd, files[i], &own);

		if (!r && *own)
			continue;
		if (!r)
			r = hostcgroup_read(parent, files[i], &from);
		if (!r && *from)
			r = hostcgroup_write(fd, files[i], from);
		if (r)
			return r;
	}
	return 0;
}

/*
 * Version 2: hands the controllers on to the folders below. What cannot be handed on shows when a limit that
 * must hold finds no file.
 */
static void hostcgroup_pass_controllers(int parent)
{
	static const char *const wanted[] = {"cpuset", "cpu", "io", "memory", "pids"};

	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		char word[16];

		snprintf(word, sizeof(word), "+%s", wanted[i]);
		hostcgroup_write(parent, "cgroup.subtree_control", word);
	}
}

/* Makes or finds one folder; owns nothing of the parent. */
static int hostcgroup_step(const struct hostcgroup_hierarchy *h, int parent, const char *name)
{
	cleanup_close int fd = -1;
	int r;

	if (h->is_v2)
		hostcgroup_pass_controllers(parent);
	if (mkdirat(parent, name, 0755) && errno != EEXIST)
		return -errno;
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = hostcgroup_has_controller(h, "cpuset") ? hostcgroup_inherit_cpuset(parent, fd) : 0;
	return r ? r : take_fd(&fd);
}

/* Descriptor of the folder at `path`, made with all that is missing above it. */
static int hostcgroup_make_path(const struct hostcgroup_hierarchy *h)
{
	int fd = open(h->mount, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_free char *copy = xstrdup(h->path);
	char *save = NULL;

	if (fd < 0)
		return -errno;
	for (char *name = strtok_r(copy, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
		int next = hostcgroup_step(h, fd, name);

		close(fd);
		if (next < 0)
			return next;
		fd = next;
	}
	return fd;
}

static int hostcgroup_make(struct hostcgroup_hierarchy *h, struct err *err)
{
	cleanup_free char *inhabitants = NULL;
	int r = hostcgroup_make_path(h);

	if (r < 0)
		return err_set(err, r, "make cgroup '%.200s' below '%s'", h->path, h->mount);
	h->fd = r;
	r = hostcgroup_read(h->fd, "cgroup.procs", &inhabitants);
	if (r)
		return err_set(err, r, "read the processes of cgroup '%.200s'", h->path);
	if (*inhabitants)
		return err_say(
			err, -EBUSY,
			"cgroup '%.200s' (linux.cgroupsPath) below '%s' has processes already: "
			"another container uses it",
			h->path, h->mount);
	h->procs_fd = openat(h->fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (h->procs_fd < 0)
		return err_set(err, -errno, "open cgroup.procs of cgroup '%.200s'", h->path);
	return 0;
}

/*
 * On disk before anything exists: whatever happens next, `delete` knows where to look. Only what was found
 * empty is "own": the processes in it are the VM's.
 */
static int hostcgroup_note(const struct hostcgroup *g, const char *kind, int state_fd,
			   struct err *err)
{
	cleanup_free char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	int r;

	if (!f)
		abort();
	for (size_t i = 0; i < g->nr; i++)
		fprintf(f, "%s %s/%s\n", kind, g->v[i].mount, g->v[i].path);
	if (fclose(f))
		abort();
	r = io_replace_file(state_fd, HOSTCGROUP_NOTE, text, len);
	return r ? err_set(err, r, "write to the bundle's state folder") : 0;
}

static int hostcgroup_check_path(const char *path, struct err *err)
{
	for (const char *p = path; *p;) {
		size_t len = strcspn(p, "/");

		if (len > NAME_MAX || (len == 2 && !memcmp(p, "..", 2)) || strchr(path, '\n'))
			return err_say(err, -EINVAL, "'%.200s' cannot be a path of cgroups", path);
		p += len + strspn(p + len, "/");
	}
	if (!path[strspn(path, "/.")])
		return err_say(err, -EINVAL, "cgroupsPath '%.200s' names no cgroup", path);
	return strlen(path) > OCI_STRING_MAX ? err_say(err, -ENAMETOOLONG, "cgroupsPath") : 0;
}

static void hostcgroup_freep(struct hostcgroup **g)
{
	hostcgroup_free(*g);
}

int hostcgroup_new(const struct hostcgroup_host *host, const char *cgroups_path, const char *id,
		   int state_fd, struct hostcgroup **ret, struct err *err)
{
	cleanup(hostcgroup_freep) struct hostcgroup *g = xcalloc(1, sizeof(*g));
	cleanup_free char *path = hostcgroup_path(cgroups_path, id, err);
	int r;

	*ret = NULL;
	if (!path)
		return err->code;
	r = hostcgroup_check_path(path, err);
	if (!r)
		r = hostcgroup_find(host, path, g->v, err);
	if (r < 0)
		return r;
	g->nr = (size_t)r;
	if (!g->nr) {
		log_warn("shim", "no cgroups are mounted on this host: the VM is put into none");
		return 0;
	}
	r = hostcgroup_note(g, HOSTCGROUP_MAKE, state_fd, err);
	for (size_t i = 0; i < g->nr && !r; i++) {
		r = hostcgroup_make(&g->v[i], err);
		g->fds[i] = g->v[i].procs_fd;
	}
	if (!r)
		r = hostcgroup_note(g, HOSTCGROUP_OWN, state_fd, err);
	if (r)
		return r;
	*ret = take_ptr(&g);
	return 0;
}

const int *hostcgroup_fds(const struct hostcgroup *g, size_t *ret_nr)
{
	*ret_nr = g ? g->nr : 0;
	return g ? g->fds : NULL;
}

/* ---- limits ---- */

/* A file of one controller, by its names in the two versions; NULL = that version has none. */
struct hostcgroup_knob {
	const char *controller, *v1, *v2;
};

/* The folder where `controller` is, -1 = nowhere. */
static int hostcgroup_where(const struct hostcgroup *g, const struct hostcgroup_knob *k,
			    const char **ret_name)
{
	for (size_t i = 0; i < g->nr; i++) {
		const struct hostcgroup_hierarchy *h = &g->v[i];

		*ret_name = h->is_v2 ? k->v2 : k->v1;
		if (h->is_v2 ? k->v2 && !faccessat(h->fd, k->v2, F_OK, 0)
			     : k->v1 && hostcgroup_has_controller(h, k->controller))
			return (int)i;
	}
	return -1;
}

/* must: without it the limit would not hold, as nobody else keeps it. */
static int hostcgroup_set(const struct hostcgroup *g, const struct hostcgroup_knob *k,
			  const char *v1_value, const char *v2_value, bool must, struct err *err)
{
	const char *name, *value;
	int i = hostcgroup_where(g, k, &name);
	int r = -ENOENT;

	if (i >= 0) {
		value = g->v[i].is_v2 ? v2_value : v1_value;
		r = hostcgroup_write(g->v[i].fd, name, value);
		if (r && r != -ENOENT)
			return err_set(err, r,
				       "write '%.64s' to '%s' of the host's cgroup '%.200s'", value,
				       name, g->v[i].path);
	}
	if (!r)
		return 0;
	if (must)
		return err_say(
			err, -EOPNOTSUPP,
			"the host's cgroup has no '%s': its kernel lacks the controller '%s' "
			"or this part of it",
			k->v2 ? k->v2 : k->v1, k->controller);
	log_dbg("shim", "the host's cgroup has no '%s': left to the guest", k->v2 ? k->v2 : k->v1);
	return 0;
}

static int hostcgroup_limit_memory(const struct hostcgroup *g, uint64_t bytes, struct err *err)
{
	static const struct hostcgroup_knob max = {"memory", "memory.limit_in_bytes", "memory.max"};
	char value[24];

	if (!bytes)
		return 0;
	if (bytes == UINT64_MAX)
		return hostcgroup_set(g, &max, "-1", "max", false, err);
	snprintf(value, sizeof(value), "%" PRIu64, bytes);
	return hostcgroup_set(g, &max, value, value, false, err);
}

static int hostcgroup_limit_quota(const struct hostcgroup *g, const struct hostcgroup_limits *l,
				  struct err *err)
{
	static const struct hostcgroup_knob period = {"cpu", "cpu.cfs_period_us", NULL};
	static const struct hostcgroup_knob quota = {"cpu", "cpu.cfs_quota_us", NULL};
	static const struct hostcgroup_knob max = {"cpu", NULL, "cpu.max"};
	uint64_t us = l->cpu_period ? l->cpu_period : HOSTCGROUP_PERIOD_DEFAULT;
	char period_text[24], quota_text[24] = "-1", both[56];
	int r;

	if (!l->cpu_quota)
		return 0;
	snprintf(period_text, sizeof(period_text), "%" PRIu64, us);
	snprintf(both, sizeof(both), "max %s", period_text);
	if (l->cpu_quota > 0) {
		snprintf(quota_text, sizeof(quota_text), "%" PRId64, l->cpu_quota);
		snprintf(both, sizeof(both), "%s %s", quota_text, period_text);
	}
	r = hostcgroup_set(g, &period, period_text, NULL, false, err);
	if (!r)
		r = hostcgroup_set(g, &quota, quota_text, NULL, false, err);
	return r ? r : hostcgroup_set(g, &max, NULL, both, false, err);
}

static int hostcgroup_limit_shares(const struct hostcgroup *g, uint64_t shares, struct err *err)
{
	static const struct hostcgroup_knob knob = {"cpu", "cpu.shares", "cpu.weight"};
	char v1[24], v2[24];

	if (!shares)
		return 0;
	snprintf(v1, sizeof(v1), "%" PRIu64, shares);
	snprintf(v2, sizeof(v2), "%" PRIu64, oci_cpu_weight(shares));
	return hostcgroup_set(g, &knob, v1, v2, false, err);
}

static int hostcgroup_limit_pids(const struct hostcgroup *g, uint64_t nr, struct err *err)
{
	static const struct hostcgroup_knob knob = {"pids", "pids.max", "pids.max"};
	char value[24];

	if (!nr)
		return 0;
	snprintf(value, sizeof(value), "%" PRIu64, nr);
	return hostcgroup_set(g, &knob, value, value, false, err);
}

/* "8:0 rbps=1000": version 1 has a file for each of the words, and 0 for "max". */
static int hostcgroup_limit_throttle(const struct hostcgroup *g, const struct oci_cgroup_file *f,
				     struct err *err)
{
	static const struct {
		const char *word, *v1;
	} files[] = {{"rbps", "blkio.throttle.read_bps_device"},
		     {"wbps", "blkio.throttle.write_bps_device"},
		     {"riops", "blkio.throttle.read_iops_device"},
		     {"wiops", "blkio.throttle.write_iops_device"}};
	struct hostcgroup_knob k = {"blkio", NULL, "io.max"};
	const char *word = strchr(f->value, ' '), *rate = strchr(f->value, '=');
	char v1[64];

	for (size_t i = 0; word && rate && i < ARRAY_SIZE(files); i++) {
		if (!strncmp(word + 1, files[i].word, strlen(files[i].word)) &&
		    word + 1 + strlen(files[i].word) == rate)
			k.v1 = files[i].v1;
	}
	snprintf(v1, sizeof(v1), "%.*s %s", (int)strcspn(f->value, " "), f->value,
		 !rate || !strcmp(rate, "=max") ? "0" : rate + 1);
	return hostcgroup_set(g, &k, v1, f->value, !f->optional, err);
}

/* Version 1 counts 10..1000, version 2 1..10000: back the way cgroup_files.c came. */
static int hostcgroup_limit_weight(const struct hostcgroup *g, const struct oci_cgroup_file *f,
				   struct err *err)
{
	static const struct hostcgroup_knob all = {"blkio", "blkio.weight", "io.weight"};
	static const struct hostcgroup_knob one = {"blkio", "blkio.weight_device", "io.weight"};
	static const struct hostcgroup_knob bfq = {"blkio", "blkio.bfq.weight", "io.bfq.weight"};
	const char *space = strchr(f->value, ' ');
	uint64_t n = strtoull(space ? space + 1 : f->value, NULL, 10);
	char v1[64], weight[24];
	int r;

	snprintf(weight, sizeof(weight), "%" PRIu64, 10 + ((n ? n - 1 : 0) * 990 + 9998) / 9999);
	snprintf(v1, sizeof(v1), "%.*s%s%s", space ? (int)(space - f->value) : 0, f->value,
		 space ? " " : "", weight);
	/* Which of the two files there is depends on the disks' scheduler. */
	r = hostcgroup_set(g, space ? &one : &all, v1, f->value, !f->optional, err);
	return r || space ? r : hostcgroup_set(g, &bfq, weight, weight, false, err);
}

static int hostcgroup_limit_file(const struct hostcgroup *g, const struct oci_cgroup_file *f,
				 struct err *err)
{
	char controller[16];
	struct hostcgroup_knob k = {controller, NULL, f->name};

	if (!strcmp(f->name, "io.max"))
		return hostcgroup_limit_throttle(g, f, err);
	if (!strcmp(f->name, "io.weight"))
		return hostcgroup_limit_weight(g, f, err);
	snprintf(controller, sizeof(controller), "%.*s", (int)strcspn(f->name, "."), f->name);
	if (!strcmp(f->name, "cpuset.cpus") || !strcmp(f->name, "cpuset.mems"))
		k.v1 = f->name;
	return hostcgroup_set(g, &k, f->value, f->value, !f->optional, err);
}

int hostcgroup_limit(const struct hostcgroup *g, const struct hostcgroup_limits *l, struct err *err)
{
	int r;

	if (!g)
		return 0;
	r = hostcgroup_limit_memory(g, l->mem_bytes, err);
	if (!r)
		r = hostcgroup_limit_shares(g, l->cpu_shares, err);
	if (!r)
		r = hostcgroup_limit_quota(g, l, err);
	if (!r)
		r = hostcgroup_limit_pids(g, l->nr_pids, err);
	for (size_t i = 0; i < l->nr_files && !r; i++)
		r = hostcgroup_limit_file(g, &l->files[i], err);
	return r;
}

/* ---- removing ---- */

static void hostcgroup_nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* 0: gone. */
static int hostcgroup_remove(const char *path)
{
	int r = -EBUSY;

	for (int i = 0; i < HOSTCGROUP_REMOVE_TRIES && r == -EBUSY; i++) {
		if (i)
			hostcgroup_nap();
		r = rmdir(path) && errno != ENOENT ? -errno : 0;
	}
	return r;
}

void hostcgroup_free(struct hostcgroup *g)
{
	if (!g)
		return;
	for (size_t i = 0; i < g->nr; i++) {
		struct hostcgroup_hierarchy *h = &g->v[i];
		cleanup_free char *path = xasprintf("%s/%s", h->mount, h->path);
		/* Never made, or another's: not ours to remove. */
		int r = h->procs_fd < 0 ? 0 : hostcgroup_remove(path);

		if (r)
			log_warn("shim", "cgroup '%s' stays: %s", path, strerror(-r));
		hostcgroup_hierarchy_done(h);
	}
	free(g);
}

static void hostcgroup_kill(const char *path)
{
	cleanup_free char *name = xasprintf("%s/cgroup.procs", path);
	cleanup_file FILE *f = fopen(name, "re");
	int pid;

	/* 0 stands for a process that our pid namespace does not show. */
	while (f && fscanf(f, "%d", &pid) == 1) /* NOLINT(cert-err34-c) */
		if (pid > 1 && pid != getpid())
			kill(pid, SIGKILL);
}

static bool hostcgroup_is_one(const char *path)
{
	struct statfs fs;

	return !statfs(path, &fs) &&
	       (fs.f_type == CGROUP_SUPER_MAGIC || fs.f_type == CGROUP2_SUPER_MAGIC);
}

/* "own /sys/fs/cgroup/..." */
static int hostcgroup_cleanup_one(const char *line, struct err *err)
{
	const char *path = strchr(line, '/');
	int r = -EBUSY;

	if (!path || !hostcgroup_is_one(path))
		return 0;
	if (strncmp(line, HOSTCGROUP_OWN " ", strlen(HOSTCGROUP_OWN " ")) != 0) {
		rmdir(path);
		return 0;
	}
	for (int i = 0; i < HOSTCGROUP_KILL_TRIES && r == -EBUSY; i++) {
		if (i)
			hostcgroup_nap();
		hostcgroup_kill(path);
		r = rmdir(path) && errno != ENOENT ? -errno : 0;
	}
	return r ? err_set(err, r, "remove cgroup '%.200s'", path) : 0;
}

int hostcgroup_cleanup_state(int state_fd, struct err *err)
{
	cleanup_free char *text = NULL;
	char *save = NULL;
	int r = io_read_file(state_fd, HOSTCGROUP_NOTE, HOSTCGROUP_NOTE_MAX, &text, NULL);

	if (r)
		return r == -ENOENT ? 0 : err_set(err, r, "read the note about cgroups");
	for (char *line = strtok_r(text, "\n", &save); line && !r;
	     line = strtok_r(NULL, "\n", &save))
		r = hostcgroup_cleanup_one(line, err);
	return r;
}
