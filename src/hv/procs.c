/*
 * Processes file, start times, PSS; see procs.h.
 *
 * The file is read by a root process after whoever wrote it is gone, so it is parsed strictly, and a
 * process is signalled only through a pidfd that was opened before its start time was compared: the
 * pid cannot be reused in between.
 */
#include "procs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "hv.h"
#include "io.h"
#include "sys.h"

#define PROCS_FILE_MAX 4096
#define PROCS_STAT_MAX 4096
#define PROCS_SMAPS_MAX (64 * 1024)
#define PROCS_KILL_TIMEOUT_MS 10000

/* Digits only, up to a given end character. */
static int procs_parse_number(const char **p, char end, uint64_t max, uint64_t *ret)
{
	uint64_t n = 0;
	const char *s = *p;

	for (; *s >= '0' && *s <= '9'; s++) {
		if (n > (max - (uint64_t)(*s - '0')) / 10)
			return -ERANGE;
		n = n * 10 + (uint64_t)(*s - '0');
	}
	if (s == *p || *s != end)
		return -EINVAL;
	*p = s + 1;
	*ret = n;
	return 0;
}

int procs_start_time(pid_t pid, uint64_t *ret)
{
	cleanup_free char *text = NULL;
	char path[64];
	const char *p;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	r = io_read_file(AT_FDCWD, path, PROCS_STAT_MAX, &text, NULL);
	if (r)
		return r == -ENOENT ? -ESRCH : r;
	/* Field 2 is the name in brackets, which may hold anything: go on from the last bracket. */
	p = strrchr(text, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -EINVAL;
	p++;
	return procs_parse_number(&p, ' ', UINT64_MAX, ret);
}

static int procs_parse_line(const char **p, struct procs_entry *ret)
{
	const char *blank = strchr(*p, ' ');
	uint64_t pid, start;
	size_t n;

	if (!blank || blank == *p)
		return -EINVAL;
	n = (size_t)(blank - *p);
	if (n > PROCS_ROLE_MAX || memchr(*p, '\n', n))
		return -EINVAL;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->role, *p, n);
	*p = blank + 1;
	if (procs_parse_number(p, ' ', INT_MAX, &pid) ||
	    procs_parse_number(p, '\n', UINT64_MAX, &start))
		return -EINVAL;
	/* 0 and 1 would be everybody and init. */
	if (pid < 2)
		return -EINVAL;
	ret->pid = (pid_t)pid;
	ret->start_time = start;
	return 0;
}

int procs_parse(const char *text, struct procs_entry ret[PROCS_MAX], size_t *ret_nr)
{
	size_t nr = 0;

	while (*text) {
		int r = nr < PROCS_MAX ? procs_parse_line(&text, &ret[nr]) : -EINVAL;

		if (r)
			return r;
		nr++;
	}
	*ret_nr = nr;
	return 0;
}

int procs_save(int state_dir_fd, const struct procs_entry *entries, size_t nr, struct err *err)
{
	char text[PROCS_FILE_MAX];
	size_t len = 0;
	int r;

	for (size_t i = 0; i < nr && len < sizeof(text); i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s %d %" PRIu64 "\n",
					entries[i].role, (int)entries[i].pid,
					entries[i].start_time);
	if (len >= sizeof(text))
		return err_say(err, -E2BIG, "write '%s': too long", PROCS_FILE);
	r = io_replace_file(state_dir_fd, PROCS_FILE, text, len);
	return r ? err_set(err, r, "write '%s'", PROCS_FILE) : 0;
}

/* SIGKILL to that very process. ret_pidfd -1 = it is gone already. */
static int procs_kill(const struct procs_entry *e, int *ret_pidfd)
{
	cleanup_close int pidfd = sys_pidfd_open(e->pid);
	uint64_t start;
	int r;

	*ret_pidfd = -1;
	if (pidfd < 0)
		return errno == ESRCH ? 0 : -errno;
	r = procs_start_time(e->pid, &start);
	if (r == -ESRCH || (!r && start != e->start_time))
		return 0;
	if (r)
		return r;
	if (sys_pidfd_send_signal(pidfd, SIGKILL))
		return errno == ESRCH ? 0 : -errno;
	*ret_pidfd = take_fd(&pidfd);
	return 0;
}

static int procs_wait_gone(int pidfd)
{
	struct pollfd pfd = {.fd = pidfd, .events = POLLIN};
	int r;

	do
		r = poll(&pfd, 1, PROCS_KILL_TIMEOUT_MS);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	return r ? 0 : -ETIMEDOUT;
}

int hv_cleanup_state(int state_dir_fd, struct err *err)
{
	struct procs_entry entries[PROCS_MAX];
	cleanup_free char *text = NULL;
	int fds[PROCS_MAX];
	size_t nr = 0;
	int r = io_read_file(state_dir_fd, PROCS_FILE, PROCS_FILE_MAX, &text, NULL), failed = 0;

	if (r == -ENOENT)
		return 0;
	if (r)
		return err_set(err, r, "read '%s'", PROCS_FILE);
	r = procs_parse(text, entries, &nr);
	if (r)
		return err_say(err, r, "'%s' is damaged: not a list of role, pid, start time",
			       PROCS_FILE);
	/* All are signalled before the first is waited for. */
	for (size_t i = 0; i < nr; i++) {
		r = procs_kill(&entries[i], &fds[i]);
		if (r)
			failed = err_set(err, r, "end %s, pid %d", entries[i].role,
					 (int)entries[i].pid);
	}
	for (size_t i = 0; i < nr; i++) {
		cleanup_close int fd = fds[i];

		r = fd >= 0 ? procs_wait_gone(fd) : 0;
		if (r)
			failed = err_set(err, r, "wait for the end of %s, pid %d", entries[i].role,
					 (int)entries[i].pid);
	}
	if (!failed && unlinkat(state_dir_fd, PROCS_FILE, 0) && errno != ENOENT)
		failed = err_set(err, -errno, "remove '%s'", PROCS_FILE);
	return failed;
}

int procs_pss(pid_t pid, uint64_t *ret)
{
	cleanup_free char *text = NULL;
	char path[64];
	uint64_t kib;
	const char *p;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)pid);
	r = io_read_file(AT_FDCWD, path, PROCS_SMAPS_MAX, &text, NULL);
	if (r)
		return r == -ENOENT ? -ESRCH : r;
	p = strstr(text, "\nPss:");
	if (!p)
		return -ENODATA;
	p += 5;
	p += strspn(p, " ");
	r = procs_parse_number(&p, ' ', UINT64_MAX / 1024, &kib);
	if (r)
		return r;
	*ret = kib * 1024;
	return 0;
}
