/* Environment, HOME and executable of a process; see lookup.h. Runs in the forked child. */
#include "lookup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "agent_sys.h"
#include "cleanup.h"
#include "io.h"
#include "rootpath.h"

struct lookup_var {
	const char *text;
	size_t name_len, index;
};

static int lookup_compare(const void *a, const void *b)
{
	const struct lookup_var *x = a, *y = b;
	int r;

	if (x->name_len != y->name_len)
		return x->name_len < y->name_len ? -1 : 1;
	r = memcmp(x->text, y->text, x->name_len);
	if (r)
		return r;
	return x->index < y->index ? -1 : 1;
}

/* Keeps of every name the last value, in the order of those. env has room for nr pointers. */
static size_t lookup_unique(char *const *vars, size_t nr, char **env)
{
	struct lookup_var *sorted = xcalloc(nr, sizeof(*sorted));
	size_t kept = 0;

	for (size_t i = 0; i < nr; i++) {
		sorted[i] = (struct lookup_var){vars[i], strcspn(vars[i], "="), i};
		env[i] = vars[i];
	}
	qsort(sorted, nr, sizeof(*sorted), lookup_compare);
	for (size_t i = 0; i + 1 < nr; i++)
		if (sorted[i].name_len == sorted[i + 1].name_len &&
		    !memcmp(sorted[i].text, sorted[i + 1].text, sorted[i].name_len))
			env[sorted[i].index] = NULL;
	free(sorted);
	for (size_t i = 0; i < nr; i++)
		if (env[i])
			env[kept++] = env[i];
	return kept;
}

static const char *lookup_var(char *const *env, const char *name)
{
	size_t len = strlen(name);

	for (; *env; env++)
		if (!strncmp(*env, name, len) && (*env)[len] == '=')
			return *env + len + 1;
	return NULL;
}

/* Files that procfs and its like make up have no size, and some never end. */
static bool lookup_is_made_up(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) || fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC ||
	       fs.f_type == DEBUGFS_MAGIC || fs.f_type == TRACEFS_MAGIC;
}

/* The text of etc/passwd; *ret NULL when there is none. */
static int lookup_read_passwd(int root_fd, char **ret, struct err *err)
{
	cleanup_close int fd =
		rootpath_open(root_fd, "etc/passwd", O_RDONLY | O_NONBLOCK | O_NOCTTY);
	cleanup_free char *text = NULL;
	struct stat st;
	ssize_t n;

	if (fd == -ENOENT || fd == -ENOTDIR)
		return 0;
	if (fd < 0 || fstat(fd, &st))
		return err_say(err, -EINVAL, "/etc/passwd of the image cannot be opened");
	if (!S_ISREG(st.st_mode) || lookup_is_made_up(fd))
		return err_say(err, -EINVAL, "/etc/passwd of the image is not a regular file");
	if (st.st_size > LOOKUP_PASSWD_MAX)
		return err_say(err, -EINVAL, "/etc/passwd of the image is larger than %u bytes",
			       LOOKUP_PASSWD_MAX);
	text = xmalloc(LOOKUP_PASSWD_MAX + 1);
	n = io_read_full(fd, text, LOOKUP_PASSWD_MAX);
	if (n < 0)
		return err_set(err, -EINVAL, "read /etc/passwd of the image");
	text[n] = '\0';
	*ret = take_ptr(&text);
	return 0;
}

const char *lookup_home(char *text, uint32_t uid)
{
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		/* name:password:uid:gid:gecos:home:shell */
		char *field[6] = {line};
		size_t nr = 1;
		unsigned long id;
		char *end;

		for (char *p = line; *p && nr < ARRAY_SIZE(field); p++)
			if (*p == ':') {
				*p = '\0';
				field[nr++] = p + 1;
			}
		if (nr < ARRAY_SIZE(field) || field[2][0] < '0' || field[2][0] > '9')
			continue;
		id = strtoul(field[2], &end, 10);
		if (*end || id != uid)
			continue;
		field[5][strcspn(field[5], ":")] = '\0';
		return field[5];
	}
	return NULL;
}

/* Sets *home to "HOME=<folder of uid>", new. */
static int lookup_default_home(uint32_t uid, int root_fd, char **home, struct err *err)
{
	cleanup_free char *passwd = NULL;
	const char *dir;

	if (lookup_read_passwd(root_fd, &passwd, err))
		return err->code;
	dir = passwd ? lookup_home(passwd, uid) : NULL;
	*home = xasprintf("HOME=%s", dir && dir[0] ? dir : "/");
	return 0;
}

int lookup_env(const AGENT_PB(Process) * process, int root_fd, char ***ret, struct err *err)
{
	cleanup_free char **env = xcalloc(process->n_env + 2, sizeof(*env));
	uint32_t uid = process->user ? process->user->uid : 0;
	size_t nr = lookup_unique(process->env, process->n_env, env), slot = 0;

	while (slot < nr && strncmp(env[slot], "HOME=", 5) != 0)
		slot++;
	if (slot == nr || !env[slot][5]) {
		if (lookup_default_home(uid, root_fd, &env[slot], err))
			return err->code;
	}
	*ret = take_ptr(&env);
	return 0;
}

/* 0 when `path` is a file this process may execute. */
static int lookup_check(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!(st.st_mode & 0111))
		return -EACCES;
	return sys_faccessat2(AT_FDCWD, path, X_OK, AT_EACCESS) ? -errno : 0;
}

static int lookup_fail(const char *name, int code, struct err *err)
{
	struct stat st;

	if (stat(name, &st))
		return err_say(err, -errno, "exec: \"%s\": stat %s: %s", name, name,
			       errno == ENOENT	  ? "no such file or directory"
			       : errno == ENOTDIR ? "not a directory"
			       : errno == EACCES  ? "permission denied"
						  : strerror(errno));
	return err_say(err, code == -EISDIR ? -EACCES : code, "exec: \"%s\": %s", name,
		       code == -EISDIR	 ? "is a directory"
		       : code == -EACCES ? "permission denied"
					 : strerror(-code));
}

int lookup_executable(const char *name, char *const *env, char *ret, size_t room, struct err *err)
{
	const char *dirs = lookup_var(env, "PATH");
	int r;

	if (strchr(name, '/')) {
		r = lookup_check(name);
		if (r)
			return lookup_fail(name, r, err);
		snprintf(ret, room, "%s", name);
		return 0;
	}
	while (dirs && *dirs) {
		size_t len = strcspn(dirs, ":");
		int n = snprintf(ret, room, "%.*s/%s", len ? (int)len : 1, len ? dirs : ".", name);

		/* A relative folder of PATH is skipped: it would run what the cwd holds. */
		if (dirs[0] == '/' && n > 0 && (size_t)n < room && !lookup_check(ret))
			return 0;
		dirs += len;
		dirs += *dirs == ':';
	}
	return err_say(err, -ENOENT, "exec: \"%s\": executable file not found in $PATH", name);
}
