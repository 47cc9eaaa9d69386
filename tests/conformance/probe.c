/*
 * What a container's process sees, one fact a line: KEY, a tab, VALUE. The arguments say which facts; each is a word
 * or WORD:ARGUMENT. It runs as a container's process under two runtimes, and test_conformance.py compares the lines.
 *
 * Static, musl: musl-gcc -static. A fact that cannot be had is the name of the errno: that is a fact, too.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* sched_getattr(2); the kernel's header does not go together with musl's. */
struct probe_sched_attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static const char *errname(void)
{
	static const struct {
		int n;
		const char *name;
	} names[] = {
		{EPERM, "EPERM"},   {ENOENT, "ENOENT"},	  {EACCES, "EACCES"}, {EEXIST, "EEXIST"},
		{EROFS, "EROFS"},   {ENOTDIR, "ENOTDIR"}, {EISDIR, "EISDIR"}, {EINVAL, "EINVAL"},
		{ENXIO, "ENXIO"},   {ENODEV, "ENODEV"},	  {ENOSYS, "ENOSYS"}, {ENOSPC, "ENOSPC"},
		{EBUSY, "EBUSY"},   {EIO, "EIO"},	  {ELOOP, "ELOOP"},   {ENOTSUP, "ENOTSUP"},
		{EFAULT, "EFAULT"}, {ESRCH, "ESRCH"},	  {EAGAIN, "EAGAIN"}, {ENOTTY, "ENOTTY"},
		{EBADF, "EBADF"},   {ECHILD, "ECHILD"},	  {EDOM, "EDOM"},     {ENOMEM, "ENOMEM"},
	};
	static char other[16];

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (names[i].n == errno)
			return names[i].name;
	snprintf(other, sizeof(other), "E%d", errno);
	return other;
}

/* "" = the errno. */
static void say(const char *word, const char *arg, const char *value)
{
	printf("%s%s%s\t%s\n", word, *arg ? ":" : "", arg, value);
}

static void say_result(const char *word, const char *arg, bool ok)
{
	say(word, arg, ok ? "ok" : errname());
}

/* "name: value" lines whose name is in the list. */
static void say_fields(const char *word, const char *path, const char *const *wanted)
{
	FILE *f = fopen(path, "re");
	char line[1024];

	while (f && fgets(line, sizeof(line), f)) {
		char *value = strchr(line, ':');

		if (!value)
			continue;
		*value++ = '\0';
		value += strspn(value, " \t");
		value[strcspn(value, "\n")] = '\0';
		for (size_t i = 0; wanted[i]; i++)
			if (!strcmp(wanted[i], line))
				say(word, line, value);
	}
	if (f)
		fclose(f);
}

static void do_status(const char *arg)
{
	static const char *const wanted[] = {
		"Uid",	       "Gid",	 "Groups",    "Umask",		 "CapInh",  "CapPrm",
		"CapEff",      "CapBnd", "CapAmb",    "NoNewPrivs",	 "Seccomp", "Pid",
		"NSpid",       "PPid",	 "TracerPid", "Seccomp_filters", "SigBlk",  "SigIgn",
		"THP_enabled", NULL};

	say_fields("status", "/proc/self/status", wanted);
}

static void do_lines(const char *word, const char *path)
{
	FILE *f = fopen(path, "re");
	char line[4096], key[16];
	int n = 0;

	if (!f) {
		say(word, path, errname());
		return;
	}
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		snprintf(key, sizeof(key), "%03d", n++);
		printf("%s:%s:%s\t%s\n", word, path, key, line);
	}
	fclose(f);
}

static void do_file(const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n < 0) {
		say("file", path, errname());
	} else {
		text[n] = '\0';
		while (n && text[n - 1] == '\n')
			text[--n] = '\0';
		for (char *p = text; *p; p++)
			*p = *p == '\n' ? '|' : *p;
		say("file", path, text);
	}
	if (fd >= 0)
		close(fd);
}

static void do_lines_of(const char *path)
{
	do_lines("lines", path);
}

static void do_limits(const char *arg)
{
	static const char *const names[] = {
		"CPU",	   "FSIZE", "DATA",  "STACK",	   "CORE",     "RSS",  "NPROC",	 "NOFILE",
		"MEMLOCK", "AS",    "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
	struct rlimit l;
	char text[64];

	for (int i = 0; i < 16; i++) {
		getrlimit(i, &l);
		snprintf(text, sizeof(text), "%lld %lld", (long long)l.rlim_cur,
			 (long long)l.rlim_max);
		say("limit", names[i], text);
	}
}

static void do_env(const char *arg)
{
	char key[16];
	int n = 0;

	for (char **e = environ; *e; e++) {
		snprintf(key, sizeof(key), "%03d", n++);
		say("env", key, *e);
	}
}

static void do_names(const char *arg)
{
	struct utsname u;
	char cwd[4096];

	uname(&u);
	say("hostname", "", u.nodename);
	say("domainname", "", u.domainname);
	say("cwd", "", getcwd(cwd, sizeof(cwd)) ? cwd : errname());
	snprintf(cwd, sizeof(cwd), "%lx", (unsigned long)personality(0xffffffff));
	say("personality", "", cwd);
	snprintf(cwd, sizeof(cwd), "%d %d", prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS));
	say("dumpable-keepcaps", "", cwd);
	snprintf(cwd, sizeof(cwd), "%d %d %d", getpid(), getsid(0), getpgid(0));
	say("session", "", cwd);
}

static void say_stat(const char *word, const char *path)
{
	struct stat st;
	char text[512], link[256];
	ssize_t n;

	if (lstat(path, &st)) {
		say(word, path, errname());
		return;
	}
	snprintf(text, sizeof(text), "%s %o %u:%u",
		 S_ISDIR(st.st_mode)	? "dir"
		 : S_ISREG(st.st_mode)	? "file"
		 : S_ISLNK(st.st_mode)	? "link"
		 : S_ISCHR(st.st_mode)	? "char"
		 : S_ISBLK(st.st_mode)	? "block"
		 : S_ISFIFO(st.st_mode) ? "fifo"
					: "socket",
		 st.st_mode & 07777, st.st_uid, st.st_gid);
	if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
		snprintf(text + strlen(text), sizeof(text) - strlen(text), " %u:%u",
			 major(st.st_rdev), minor(st.st_rdev));
	n = S_ISLNK(st.st_mode) ? readlink(path, link, sizeof(link)) : -1;
	if (n >= 0)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), " -> %.*s", (int)n,
			 link);
	say(word, path, text);
}

static void do_stat(const char *path)
{
	say_stat("stat", path);
}

/* A folder's entries, and those of folders below, without what comes and goes. */
static void do_tree(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char below[4096];

	if (!d) {
		say("tree", path, errname());
		return;
	}
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		snprintf(below, sizeof(below), "%s/%s", path, e->d_name);
		say_stat("tree", below);
		if (e->d_type == DT_DIR)
			do_tree(below);
	}
	closedir(d);
}

static void do_count(const char *path)
{
	DIR *d = opendir(path);
	char text[16];
	int n = 0;

	if (!d) {
		say("count", path, errname());
		return;
	}
	while (readdir(d))
		n++;
	closedir(d);
	snprintf(text, sizeof(text), "%d", n - 2);
	say("count", path, text);
}

static void do_read(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char c;
	ssize_t n = fd < 0 ? -1 : read(fd, &c, 1);

	if (n < 0)
		say("read", path, errname());
	else
		say("read", path, n ? "data" : "empty");
	if (fd >= 0)
		close(fd);
}

static void do_open(const char *word, const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	say_result(word, path, fd >= 0);
	if (fd >= 0)
		close(fd);
}

static void do_openr(const char *path)
{
	do_open("openr", path, O_RDONLY);
}

static void do_openw(const char *path)
{
	do_open("openw", path, O_WRONLY);
}

static void do_openrw(const char *path)
{
	do_open("openrw", path, O_RDWR);
}

static void do_touch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);

	say_result("touch", path, fd >= 0);
	if (fd >= 0)
		close(fd);
}

/* Created with 0666 & ~umask. */
static void do_umask(const char *path)
{
	struct stat st = {0};
	char text[16];
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0777);

	if (fd < 0) {
		say("umask", path, errname());
		return;
	}
	fstat(fd, &st);
	close(fd);
	unlink(path);
	snprintf(text, sizeof(text), "%o", st.st_mode & 07777);
	say("umask", path, text);
}

/* "PATH,c,MAJOR,MINOR": makes the node and opens it for reading and writing. */
static void do_mknod(const char *arg)
{
	char path[256], type;
	unsigned int ma, mi;

	if (sscanf(arg, "%255[^,],%c,%u,%u", path, &type, &ma, &mi) != 4)
		exit(2);
	say_result("mknod", arg,
		   !mknod(path, (type == 'b' ? S_IFBLK : S_IFCHR) | 0666, makedev(ma, mi)));
	do_openr(path);
	do_openw(path);
	unlink(path);
}

/* Executes a program of the root file system: does noexec, nosuid hold? Prints its own status lines. */
static void do_exec(const char *path)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		execl(path, path, "effective", NULL);
		say("exec", path, errname());
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, &status, 0);
}

static void do_effective(const char *arg)
{
	char text[64];

	snprintf(text, sizeof(text), "%d:%d", geteuid(), getegid());
	say("effective", "", text);
}

static void do_statvfs(const char *path)
{
	struct statvfs v;
	char text[128];

	if (statvfs(path, &v)) {
		say("statvfs", path, errname());
		return;
	}
	snprintf(text, sizeof(text), "%llu", (unsigned long long)v.f_blocks * v.f_frsize);
	say("statvfs", path, text);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)v.f_files);
	/* By default a part of the machine's memory. */
	say("inodes", path, v.f_files < 1000 ? text : "many");
}

static void do_ns(const char *arg)
{
	static const char *const names[] = {"pid", "ipc",    "uts",  "mnt",
					    "net", "cgroup", "user", "time"};
	char path[64], text[64];

	for (size_t i = 0; i < 8; i++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		n = readlink(path, text, sizeof(text) - 1);
		text[n < 0 ? 0 : n] = '\0';
		say("ns", names[i], text);
	}
}

static void do_sched(const char *arg)
{
	struct probe_sched_attr a = {.size = sizeof(a)};
	char text[128];

	if (syscall(SYS_sched_getattr, 0, &a, sizeof(a), 0))
		snprintf(text, sizeof(text), "%s", errname());
	else
		snprintf(text, sizeof(text), "policy %u flags %llx nice %d priority %u", a.policy,
			 (unsigned long long)a.flags, a.nice, a.priority);
	say("sched", "", text);
	snprintf(text, sizeof(text), "%lx", syscall(SYS_ioprio_get, 1, 0));
	say("ioprio", "", text);
}

static void do_clock(const char *arg)
{
	struct timespec m, b;
	char text[64];

	clock_gettime(CLOCK_MONOTONIC, &m);
	clock_gettime(CLOCK_BOOTTIME, &b);
	snprintf(text, sizeof(text), "%lld", (long long)(m.tv_sec / 100000));
	say("clock", "monotonic", text);
	snprintf(text, sizeof(text), "%lld", (long long)(b.tv_sec / 100000));
	say("clock", "boottime", text);
}

/* One call in a child: its errno, or the signal that ended it. */
static const struct {
	const char *name;
	long nr, a, b, c;
} calls[] = {
	{"getpid", SYS_getpid, 0, 0, 0},
	{"getppid", SYS_getppid, 0, 0, 0},
	{"mkdir", SYS_mkdir, (long)"/nowhere/x", 0700, 0},
	{"chmod", SYS_chmod, (long)"/nowhere/x", 0700, 0},
	{"chown", SYS_chown, (long)"/nowhere/x", 0, 0},
	{"mount", SYS_mount, 0, 0, 0},
	{"unshare", SYS_unshare, CLONE_NEWUTS, 0, 0},
	{"unshare-user", SYS_unshare, CLONE_NEWUSER, 0, 0},
	{"sethostname", SYS_sethostname, (long)"x", 1, 0},
	{"settimeofday", SYS_settimeofday, 0, 0, 0},
	{"setuid-7", SYS_setuid, 7, 0, 0},
	{"kill-1", SYS_kill, 1, 0, 0},
	{"personality", SYS_personality, 8, 0, 0},
	{"socket-inet", SYS_socket, AF_INET, SOCK_STREAM, 0},
	{"socket-raw", SYS_socket, AF_INET, SOCK_RAW, 1},
	{"socket-vsock", SYS_socket, 40, SOCK_STREAM, 0},
	{"bpf", SYS_bpf, 0, 0, 0},
	{"keyctl", SYS_keyctl, 0, -3, 0},
	{"sync", SYS_sync, 0, 0, 0},
	{"nice-low", SYS_setpriority, PRIO_PROCESS, 0, -5},
	{"reboot", SYS_reboot, 0, 0, 0},
	{"syslog", SYS_syslog, 3, 0, 0},
	{"swapon", SYS_swapon, (long)"/nowhere", 0, 0},
	{"ptrace-me", SYS_ptrace, 0, 0, 0},
	{"chroot", SYS_chroot, (long)"/", 0, 0},
	{"mlock", SYS_mlock, 0, 0, 0},
};

static void do_call(const char *name)
{
	char text[64];
	int status;
	pid_t pid;

	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		if (strcmp(calls[i].name, name) != 0)
			continue;
		fflush(stdout);
		pid = fork();
		if (!pid) {
			errno = 0;
			syscall(calls[i].nr, calls[i].a, calls[i].b, calls[i].c);
			_exit(errno);
		}
		waitpid(pid, &status, 0);
		errno = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
		if (WIFSIGNALED(status))
			snprintf(text, sizeof(text), "signal %d", WTERMSIG(status));
		else
			snprintf(text, sizeof(text), "%s", errno ? errname() : "ok");
		say("call", name, text);
		return;
	}
	exit(2);
}

static void do_fds(const char *arg)
{
	char path[64], text[256];
	ssize_t n;

	for (int i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", i);
		n = readlink(path, text, sizeof(text) - 1);
		if (n < 0)
			continue;
		text[n] = '\0';
		text[strcspn(text, ":[")] = '\0';
		snprintf(path, sizeof(path), "%d", i);
		say("fd", path, text);
	}
}

static const struct {
	const char *word;
	void (*fn)(const char *arg);
} facts[] = {
	{"status", do_status},	     {"limits", do_limits},   {"env", do_env},
	{"names", do_names},	     {"stat", do_stat},	      {"tree", do_tree},
	{"count", do_count},	     {"read", do_read},	      {"openr", do_openr},
	{"openw", do_openw},	     {"openrw", do_openrw},   {"touch", do_touch},
	{"umask", do_umask},	     {"mknod", do_mknod},     {"exec", do_exec},
	{"effective", do_effective}, {"statvfs", do_statvfs}, {"ns", do_ns},
	{"sched", do_sched},	     {"clock", do_clock},     {"call", do_call},
	{"file", do_file},	     {"lines", do_lines_of},  {"fds", do_fds},
};

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "args"))
		for (int i = 0; i < argc; i++) {
			char key[16];

			snprintf(key, sizeof(key), "%d", i);
			say("arg", key, argv[i]);
		}
	for (int i = argc > 1 && !strcmp(argv[1], "args") ? argc : 1; i < argc; i++) {
		size_t len = strcspn(argv[i], ":");
		const char *arg = argv[i][len] ? argv[i] + len + 1 : "";
		bool found = false;

		for (size_t f = 0; f < sizeof(facts) / sizeof(*facts); f++) {
			if (strlen(facts[f].word) != len ||
			    memcmp(facts[f].word, argv[i], len) != 0)
				continue;
			facts[f].fn(arg);
			fflush(stdout);
			found = true;
		}
		if (!found)
			return 2;
	}
	return 0;
}
