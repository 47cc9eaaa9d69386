/*
 * Making, listing and removing templates; see template.h.
 *
 * One lock for the store, held by whoever makes or prunes: one VM is being built at a time on a host, and
 * what lies under the name of a new one while nobody holds the lock is left over. Readers take no lock.
 */
#include "template.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "template_internal.h"
#include "util.h"

#define TEMPLATE_LOCK ".lock"
#define TEMPLATE_NEW ".new"
#define TEMPLATE_RETRY_S 600
#define TEMPLATE_NAME_MAX (TEMPLATE_KEY_LEN + 16)

static const char *const template_suffixes[] = {
	[TEMPLATE_GOOD] = "", [TEMPLATE_BAD] = ".bad", [TEMPLATE_FAILED] = ".failed"};

/* ---- removing ---- */

/* A template has no folders in it. */
static int template_remove_at(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	cleanup_dir DIR *d = NULL;
	struct dirent *e;

	if (fd < 0)
		return errno == ENOTDIR && !unlinkat(dir_fd, name, 0) ? 0 : -errno;
	d = fdopendir(fd);
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	while ((e = readdir(d))) {
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			unlinkat(fd, e->d_name, 0);
	}
	return unlinkat(dir_fd, name, AT_REMOVEDIR) ? -errno : 0;
}

static void template_name(const char *key, enum template_state state, char ret[TEMPLATE_NAME_MAX])
{
	snprintf(ret, TEMPLATE_NAME_MAX, "%.*s%s", TEMPLATE_KEY_LEN, key, template_suffixes[state]);
}

void template_set_aside(const char *dir, const char *key)
{
	cleanup_close int dir_fd = template_open_dir(dir, NULL);
	char bad[TEMPLATE_NAME_MAX];

	if (dir_fd < 0 || faccessat(dir_fd, key, F_OK, AT_SYMLINK_NOFOLLOW))
		return;
	template_name(key, TEMPLATE_BAD, bad);
	template_remove_at(dir_fd, bad);
	if (renameat(dir_fd, key, dir_fd, bad) && errno != ENOENT)
		template_remove_at(dir_fd, key);
}

/* ---- failures ---- */

void template_note_failure(const char *dir, const char *key, const char *why)
{
	cleanup_close int dir_fd = template_open_dir(dir, NULL);
	cleanup_free char *text = xasprintf("%s\n", why);
	char name[TEMPLATE_NAME_MAX];

	template_name(key, TEMPLATE_FAILED, name);
	if (dir_fd >= 0)
		io_replace_file(dir_fd, name, text, strlen(text));
}

int64_t template_wait_s(const char *dir, const char *key)
{
	cleanup_close int dir_fd = template_open_dir(dir, NULL);
	char name[TEMPLATE_NAME_MAX];
	struct stat st;
	int64_t age;

	template_name(key, TEMPLATE_FAILED, name);
	if (dir_fd < 0 || fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW))
		return 0;
	age = time(NULL) - st.st_mtime;
	return age >= 0 && age < TEMPLATE_RETRY_S ? TEMPLATE_RETRY_S - age : 0;
}

/* ---- making ---- */

static int template_make_dirs(const char *dir)
{
	cleanup_free char *path = xstrdup(dir);

	for (char *p = strchr(path + 1, '/');; p = strchr(p + 1, '/')) {
		if (p)
			*p = '\0';
		/* The last one is the store; those above are no secret. */
		if (mkdir(path, p ? 0755 : 0700) && errno != EEXIST)
			return -errno;
		if (!p)
			return 0;
		*p = '/';
	}
}

static int template_lock(const char *dir, int dir_fd, bool wait, struct err *err)
{
	cleanup_close int fd =
		openat(dir_fd, TEMPLATE_LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int r;

	if (fd < 0)
		return err_set(err, -errno, "create '%s/%s'", dir, TEMPLATE_LOCK);
	do
		r = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB));
	while (r && errno == EINTR);
	if (r && errno == EWOULDBLOCK)
		return err_say(err, -EBUSY, "another template is being made");
	return r ? err_set(err, -errno, "lock '%s/%s'", dir, TEMPLATE_LOCK) : take_fd(&fd);
}

static int template_new_folder(struct template_new *n)
{
	int r = template_remove_at(n->dir_fd, TEMPLATE_NEW);

	if (r && r != -ENOENT)
		return r;
	if (mkdirat(n->dir_fd, TEMPLATE_NEW, 0700))
		return -errno;
	n->fd = openat(n->dir_fd, TEMPLATE_NEW, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return n->fd < 0 ? -errno : 0;
}

int template_new_begin(const char *dir, const char *key, bool wait, struct template_new *ret,
		       struct err *err)
{
	struct template_new *n = ret;
	int r = template_make_dirs(dir);

	*n = (struct template_new){.dir = xstrdup(dir), .dir_fd = -1, .lock_fd = -1, .fd = -1};
	snprintf(n->key, sizeof(n->key), "%s", key);
	if (r)
		return err_set(err, r, "make the template folder '%s'", dir);
	n->dir_fd = template_open_dir(dir, err);
	if (n->dir_fd < 0)
		return n->dir_fd;
	n->lock_fd = template_lock(dir, n->dir_fd, wait, err);
	if (n->lock_fd < 0)
		return n->lock_fd;
	r = template_new_folder(n);
	return r ? err_set(err, r, "make '%s/%s'", dir, TEMPLATE_NEW) : 0;
}

static int template_fill_manifest(const struct template_new *n, struct template_manifest *m,
				  struct err *err)
{
	for (size_t i = 0; i < TEMPLATE_NR_FILES; i++) {
		cleanup_close int fd = openat(n->fd, template_files[i], O_RDONLY | O_CLOEXEC);
		struct stat st;
		int r;

		if (fd < 0 || fstat(fd, &st))
			return err_set(err, -errno, "open '%s' of a new template",
				       template_files[i]);
		m->sizes[i] = (uint64_t)st.st_size;
		r = template_hash(fd, m->hashes[i]);
		if (r)
			return err_set(err, r, "read '%s' of a new template", template_files[i]);
	}
	return 0;
}

/* In the place of an old one, if there is one that is used by nobody any more. */
static int template_give_name(const struct template_new *n)
{
	char name[TEMPLATE_NAME_MAX];

	template_remove_at(n->dir_fd, n->key);
	if (renameat(n->dir_fd, TEMPLATE_NEW, n->dir_fd, n->key))
		return -errno;
	template_name(n->key, TEMPLATE_BAD, name);
	template_remove_at(n->dir_fd, name);
	template_name(n->key, TEMPLATE_FAILED, name);
	template_remove_at(n->dir_fd, name);
	return 0;
}

int template_new_commit(struct template_new *n, const struct template_meta *meta, const char *shape,
			struct err *err)
{
	struct template_manifest m = {.meta = *meta};
	cleanup_free char *text = NULL;
	int r;

	memcpy(m.key, n->key, sizeof(m.key));
	r = template_fill_manifest(n, &m, err);
	if (r)
		return r;
	text = template_manifest_format(&m);
	r = io_write_file(n->fd, TEMPLATE_SHAPE, shape, strlen(shape));
	if (!r)
		r = io_replace_file(n->fd, TEMPLATE_MANIFEST, text, strlen(text));
	if (!r)
		r = template_give_name(n);
	return r ? err_set(err, r, "put the template into '%s'", n->dir) : 0;
}

void template_new_done(struct template_new *n)
{
	cleanup_closep(&n->fd);
	if (n->lock_fd >= 0)
		template_remove_at(n->dir_fd, TEMPLATE_NEW);
	cleanup_closep(&n->lock_fd);
	cleanup_closep(&n->dir_fd);
	free(take_ptr(&n->dir));
}

/* ---- listing, pruning ---- */

static bool template_parse_name(const char *name, struct template_info *ret)
{
	char key[TEMPLATE_KEY_LEN + 1];

	snprintf(key, sizeof(key), "%.*s", TEMPLATE_KEY_LEN, name);
	if (!template_key_is_valid(key))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(template_suffixes); i++) {
		if (strcmp(name + TEMPLATE_KEY_LEN, template_suffixes[i]) != 0)
			continue;
		memcpy(ret->key, key, sizeof(key));
		ret->state = (enum template_state)i;
		return true;
	}
	return false;
}

/* Size of everything in it, and when it was last used. */
static void template_measure(int dir_fd, const char *name, struct template_info *info)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	struct stat st;

	if (!d) {
		if (fd >= 0)
			close(fd);
		if (!fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW))
			info->used = st.st_mtime;
		return;
	}
	while ((e = readdir(d))) {
		if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
			continue;
		info->bytes += (uint64_t)st.st_blocks * 512;
		info->used = MAX(info->used, (int64_t)st.st_mtime);
	}
}

static int template_compare_use(const void *a, const void *b)
{
	const struct template_info *x = a, *y = b;

	return (x->used < y->used) - (x->used > y->used);
}

static int template_list_at(int dir_fd, struct template_info **ret, size_t *ret_nr)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	cleanup_free struct template_info *list = NULL;
	struct dirent *e;
	size_t nr = 0;

	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		struct template_info info = {0};

		if (!template_parse_name(e->d_name, &info))
			continue;
		if (info.state == TEMPLATE_GOOD && template_read_meta(dir_fd, info.key, &info.meta))
			info.state = TEMPLATE_BAD;
		template_measure(dir_fd, e->d_name, &info);
		list = xrealloc(list, (nr + 1) * sizeof(*list));
		list[nr++] = info;
	}
	if (nr)
		qsort(list, nr, sizeof(*list), template_compare_use);
	*ret = take_ptr(&list);
	*ret_nr = nr;
	return 0;
}

int template_list(const char *dir, struct template_info **ret, size_t *ret_nr, struct err *err)
{
	cleanup_close int dir_fd = template_open_dir(dir, err);
	int r;

	*ret = NULL;
	*ret_nr = 0;
	if (dir_fd < 0)
		return dir_fd == -ENOENT ? 0 : dir_fd;
	r = template_list_at(dir_fd, ret, ret_nr);
	return r ? err_set(err, r, "list '%s'", dir) : 0;
}

/* Under whichever of its names it is there. */
static int template_prune_one(int dir_fd, const struct template_info *info)
{
	char name[TEMPLATE_NAME_MAX];
	int r;

	template_name(info->key, info->state, name);
	r = template_remove_at(dir_fd, name);
	return r == -ENOENT ? template_remove_at(dir_fd, info->key) : r;
}

int template_prune(const char *dir, const struct template_limits *limits, struct err *err)
{
	cleanup_close int dir_fd = template_open_dir(dir, err);
	cleanup_close int lock_fd = -1;
	cleanup_free struct template_info *list = NULL;
	size_t nr = 0, kept = 0;
	uint64_t bytes = 0;
	int r, removed = 0;

	if (dir_fd < 0)
		return dir_fd == -ENOENT ? 0 : dir_fd;
	lock_fd = template_lock(dir, dir_fd, true, err);
	if (lock_fd < 0)
		return lock_fd;
	r = template_list_at(dir_fd, &list, &nr);
	for (size_t i = 0; i < nr && !r; i++) {
		bytes += list[i].bytes;
		if (limits && kept < limits->max && bytes <= limits->max_bytes &&
		    list[i].used + limits->max_age_s >= time(NULL)) {
			kept++;
			continue;
		}
		bytes -= list[i].bytes;
		r = template_prune_one(dir_fd, &list[i]);
		removed++;
	}
	return r ? err_set(err, r, "prune '%s'", dir) : removed;
}
