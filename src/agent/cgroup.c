/* cgroup v2 folders; see cgroup.h. Depth and number of what a container made in its own are bounded. */
#include "cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "buf.h"
#include "cleanup.h"
#include "io.h"

#define CGROUP_DEPTH_MAX 32

typedef int (*cgroup_walk_fn)(int fd, void *ctx);

/* "cpu memory" -> "+cpu +memory". */
static int cgroup_write_controllers(int control, char *names, bool one_by_one)
{
	cleanup(buf_done) struct buf line;
	const char *name;

	buf_init(&line, CGROUP_READ_MAX);
	while ((name = strsep(&names, " \n"))) {
		if (!*name)
			continue;
		if (buf_append(&line, "+", 1) || buf_append(&line, name, strlen(name)) ||
		    buf_append(&line, " ", 1))
			return -E2BIG;
		if (one_by_one) {
			io_write_full(control, buf_head(&line), line.len);
			buf_consume(&line, line.len);
		}
	}
	return line.len ? io_write_full(control, buf_head(&line), line.len) : 0;
}

/* All at once is several times faster; a controller that refuses must not keep the others back, though. */
static int cgroup_pass_on(int fd, char *names)
{
	cleanup_close int control = openat(fd, "cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
	cleanup_free char *again = xstrdup(names);

	if (control < 0)
		return -errno;
	if (cgroup_write_controllers(control, names, false))
		cgroup_write_controllers(control, again, true);
	return 0;
}

int cgroup_enable_controllers(const char *dir, struct err *err)
{
	cleanup_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_free char *names = NULL;
	struct statfs fs;
	int e;

	if (fd < 0 || fstatfs(fd, &fs))
		return err_set(err, -errno, "open cgroup folder '%s'", dir);
	if (fs.f_type != CGROUP2_SUPER_MAGIC)
		return err_say(err, -EINVAL, "'%s' is not cgroup v2", dir);
	e = cgroup_read(fd, "cgroup.controllers", &names);
	if (!e)
		e = cgroup_pass_on(fd, names);
	return e ? err_set(err, e, "controllers of '%s'", dir) : 0;
}

int cgroup_create(const char *base, const char *id, int *ret_fd, struct err *err)
{
	cleanup_close int dir = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd;

	if (dir < 0)
		return err_set(err, -errno, "open cgroup folder '%s'", base);
	if (mkdirat(dir, id, 0755))
		return err_set(err, -errno, "make cgroup '%s/%s'", base, id);
	fd = openat(dir, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		err_set(err, -errno, "open the new cgroup in '%s'", base);
		unlinkat(dir, id, AT_REMOVEDIR);
		return err->code;
	}
	*ret_fd = fd;
	return 0;
}

int cgroup_write(int fd, const char *name, const char *value, struct err *err)
{
	cleanup_close int file = openat(fd, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
	int e;

	if (file < 0 && errno == ENOENT)
		return err_say(err, -ENOTSUP,
			       "cgroup file '%s' does not exist: the guest's kernel lacks the "
			       "controller '%.*s' or this knob of it",
			       name, (int)strcspn(name, "."), name);
	if (file < 0)
		return err_set(err, -errno, "open cgroup file '%s'", name);
	e = io_write_full(file, value, strlen(value));
	if (e)
		return err_set(err, e, "write '%.64s' to cgroup file '%s'", value, name);
	return 0;
}

int cgroup_write_files(int fd, AGENT_PB(CgroupFile) *const *files, size_t nr, struct err *err)
{
	for (size_t i = 0; i < nr; i++) {
		if (files[i]->optional && faccessat(fd, files[i]->name, F_OK, 0) && errno == ENOENT)
			continue;
		if (cgroup_write(fd, files[i]->name, files[i]->value, err))
			return err->code;
	}
	return 0;
}

int cgroup_check_memory(int fd, AGENT_PB(CgroupFile) *const *files, size_t nr, struct err *err)
{
	cleanup_free char *text = NULL;
	unsigned long long used, max;

	if (cgroup_read(fd, "memory.current", &text))
		return 0;
	used = strtoull(text, NULL, 10);
	for (size_t i = 0; i < nr; i++) {
		const char *value = files[i]->value;

		if (strcmp(files[i]->name, "memory.max") != 0 || *value < '0' || *value > '9')
			continue;
		max = strtoull(value, NULL, 10);
		if (max < used)
			return err_say(err, -EBUSY,
				       "memory limit %llu is below the %llu bytes in use "
				       "(checkBeforeUpdate)",
				       max, used);
	}
	return 0;
}

int cgroup_read(int fd, const char *name, char **ret)
{
	return io_read_file(fd, name, CGROUP_READ_MAX, ret, NULL);
}

/* Calls fn for fd and every folder below, deepest first. */
static int cgroup_walk(int fd, int depth, cgroup_walk_fn fn, void *ctx)
{
	int list_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = list_fd < 0 ? NULL : fdopendir(list_fd);
	struct dirent *e;
	int r = 0;

	if (!d) {
		r = -errno;
		if (list_fd >= 0)
			close(list_fd);
		return r;
	}
	while (!r && (e = readdir(d))) {
		cleanup_close int sub = -1;

		if (e->d_type != DT_DIR || e->d_name[0] == '.' || depth >= CGROUP_DEPTH_MAX)
			continue;
		sub = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (sub >= 0)
			r = cgroup_walk(sub, depth + 1, fn, ctx);
	}
	return r ? r : fn(fd, ctx);
}

static int cgroup_remove_below(int dir, const char *name, int depth)
{
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d) {
		if (fd >= 0)
			close(fd);
		return errno == ENOENT ? 0 : -errno;
	}
	while ((e = readdir(d)))
		if (e->d_type == DT_DIR && e->d_name[0] != '.' && depth < CGROUP_DEPTH_MAX)
			cgroup_remove_below(fd, e->d_name, depth + 1);
	return unlinkat(dir, name, AT_REMOVEDIR) && errno != ENOENT ? -errno : 0;
}

int cgroup_remove(const char *base, const char *id)
{
	cleanup_close int dir = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		return -errno;
	return cgroup_remove_below(dir, id, 0);
}

struct cgroup_pid_list {
	uint32_t *pids;
	size_t nr, cap;
};

static int cgroup_collect(int fd, void *ctx)
{
	struct cgroup_pid_list *l = ctx;
	int file = openat(fd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	cleanup_file FILE *f = file < 0 ? NULL : fdopen(file, "re");
	uint32_t pid;

	if (!f) {
		if (file >= 0)
			close(file);
		return 0; /* gone, or a threaded folder */
	}
	while (l->nr < CGROUP_PIDS_MAX &&
	       fscanf(f, "%" SCNu32, &pid) == 1) { /* NOLINT(cert-err34-c) */
		if (l->nr == l->cap) {
			l->cap = l->cap ? 2 * l->cap : 64;
			l->pids = xrealloc(l->pids, l->cap * sizeof(*l->pids));
		}
		l->pids[l->nr++] = pid;
	}
	return 0;
}

int cgroup_pids(int fd, uint32_t **ret, size_t *ret_nr)
{
	struct cgroup_pid_list l = {0};
	int r = cgroup_walk(fd, 0, cgroup_collect, &l);

	if (r) {
		free(l.pids);
		return r;
	}
	*ret = l.pids;
	*ret_nr = l.nr;
	return 0;
}

int cgroup_signal(int fd, int sig)
{
	cleanup_free uint32_t *pids = NULL;
	size_t nr = 0;
	int r;

	if (sig == SIGKILL && !cgroup_write(fd, "cgroup.kill", "1", NULL))
		return 0;
	r = cgroup_pids(fd, &pids, &nr);
	for (size_t i = 0; !r && i < nr; i++)
		if (pids[i])
			kill((pid_t)pids[i], sig);
	return r;
}

uint64_t cgroup_oom_kills(int fd)
{
	cleanup_free char *text = NULL;
	const char *p;

	if (cgroup_read(fd, "memory.events", &text))
		return 0;
	p = strstr(text, "oom_kill ");
	return p ? strtoull(p + strlen("oom_kill "), NULL, 10) : 0;
}
