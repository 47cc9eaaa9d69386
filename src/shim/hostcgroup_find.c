/*
 * Which cgroup hierarchies there are, where they are mounted, and what a cgroupsPath means in each.
 *
 * /proc/self/cgroup tells the hierarchies and our own place in them, one a line: "4:memory:/own/place", and
 * "0::/own/place" for version 2. /proc/self/mountinfo tells the mount points. In a container of its own a host
 * may see only part of a hierarchy; the mount's root, field 4, is then taken off our own place.
 */
#include "hostcgroup_find.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"

#define FIND_MOUNTINFO_MAX (4u << 20)
#define FIND_MEMBERSHIP_MAX (64u << 10)
#define FIND_PATH_MAX 4096

const struct hostcgroup_host hostcgroup_real = {.mountinfo = "/proc/self/mountinfo",
						.membership = "/proc/self/cgroup"};

void hostcgroup_hierarchy_done(struct hostcgroup_hierarchy *h)
{
	free(h->controllers);
	free(h->mount);
	free(h->path);
	cleanup_closep(&h->fd);
	cleanup_closep(&h->procs_fd);
}

/* Is `word` one of the comma-separated words of `list`? */
static bool find_has_word(const char *list, const char *word, size_t len)
{
	for (;;) {
		size_t n = strcspn(list, ",");

		if (n == len && !memcmp(list, word, len))
			return true;
		if (!list[n])
			return false;
		list += n + 1;
	}
}

bool hostcgroup_has_controller(const struct hostcgroup_hierarchy *h, const char *controller)
{
	return find_has_word(h->controllers, controller, strlen(controller));
}

/* All words of `controllers` are among the options of a version 1 mount. */
static bool find_matches(const char *controllers, const char *options)
{
	for (;;) {
		size_t n = strcspn(controllers, ",");

		if (!find_has_word(options, controllers, n))
			return false;
		if (!controllers[n])
			return true;
		controllers += n + 1;
	}
}

/* Space, tab, newline and backslash are \040 and the like in mountinfo. */
static void find_unescape(char *s)
{
	char *out = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
		    s[3] >= '0' && s[3] <= '7') {
			*out++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 4;
		} else {
			*out++ = *s++;
		}
	}
	*out = '\0';
}

/* One line of mountinfo, cut into what counts here; false = not a mount of cgroups. */
struct find_mount {
	char *root, *point, *options;
	bool is_v2;
};

static bool find_parse_mount(char *line, struct find_mount *ret)
{
	char *right = strstr(line, " - "), *save = NULL, *word;
	int i = 0;

	if (!right)
		return false;
	*right = '\0';
	right += 3;
	*ret = (struct find_mount){0};
	for (word = strtok_r(line, " ", &save); word; word = strtok_r(NULL, " ", &save), i++) {
		if (i == 3)
			ret->root = word;
		if (i == 4)
			ret->point = word;
	}
	word = strtok_r(right, " ", &save);
	if (!word || !ret->point || (strcmp(word, "cgroup") != 0 && strcmp(word, "cgroup2") != 0))
		return false;
	ret->is_v2 = word[6] == '2';
	if (!strtok_r(NULL, " ", &save))
		return false;
	ret->options = strtok_r(NULL, " ", &save);
	if (!ret->options)
		return false;
	find_unescape(ret->root);
	find_unescape(ret->point);
	return true;
}

/* Our own place as seen below the mount. */
static const char *find_own(const struct find_mount *m, const char *own)
{
	size_t len = strlen(m->root);

	if (!strcmp(m->root, "/"))
		return own;
	if (!strncmp(own, m->root, len) && (own[len] == '/' || !own[len]))
		return own + len;
	return "";
}

/* Copies s without empty components and "."; ".." is for the callers to have refused. */
static void find_append(char *out, size_t cap, const char *s)
{
	while (*s) {
		size_t len = strcspn(s, "/"), at = strlen(out);

		if (len && !(len == 1 && *s == '.'))
			snprintf(out + at, cap - at, "%s%.*s", at ? "/" : "", (int)len, s);
		s += len + (s[len] == '/');
	}
}

static char *find_place(const char *path, const char *own, bool is_v2)
{
	char out[2 * FIND_PATH_MAX + 2] = "";

	if (*path != '/') {
		find_append(out, sizeof(out), own);
		if (is_v2)
			*(strrchr(out, '/') ? strrchr(out, '/') : out) = '\0';
	}
	find_append(out, sizeof(out), path);
	return xstrdup(out);
}

/* The first mount of a hierarchy counts, as for runc. */
static bool find_mount_of(const char *mountinfo, const char *controllers, char **ret_text,
			  struct find_mount *ret)
{
	for (const char *line = mountinfo; *line;) {
		size_t len = strcspn(line, "\n");
		char *copy = xstrndup(line, len);

		if (find_parse_mount(copy, ret) &&
		    (*controllers ? !ret->is_v2 && find_matches(controllers, ret->options)
				  : ret->is_v2)) {
			*ret_text = copy;
			return true;
		}
		free(copy);
		line += len + (line[len] == '\n');
	}
	return false;
}

/* "4:memory:/own/place" */
static int find_hierarchy(char *line, const char *mountinfo, const char *path,
			  struct hostcgroup_hierarchy *ret)
{
	char *controllers = strchr(line, ':');
	char *own = controllers ? strchr(controllers + 1, ':') : NULL;
	cleanup_free char *text = NULL;
	struct find_mount m;

	if (!own || own[1] != '/')
		return 0;
	controllers++;
	*own++ = '\0';
	if (strlen(own) > FIND_PATH_MAX || !find_mount_of(mountinfo, controllers, &text, &m))
		return 0;
	*ret = (struct hostcgroup_hierarchy){.is_v2 = m.is_v2,
					     .controllers = xstrdup(controllers),
					     .mount = xstrdup(m.point),
					     .path = find_place(path, find_own(&m, own), m.is_v2),
					     .fd = -1,
					     .procs_fd = -1};
	return 1;
}

int hostcgroup_find(const struct hostcgroup_host *host, const char *path,
		    struct hostcgroup_hierarchy v[HOSTCGROUP_HIERARCHIES_MAX], struct err *err)
{
	cleanup_free char *mountinfo = NULL, *membership = NULL;
	char *save = NULL;
	int r, nr = 0;

	r = io_read_file(AT_FDCWD, host->mountinfo, FIND_MOUNTINFO_MAX, &mountinfo, NULL);
	if (r)
		return err_set(err, r, "read '%s'", host->mountinfo);
	r = io_read_file(AT_FDCWD, host->membership, FIND_MEMBERSHIP_MAX, &membership, NULL);
	if (r == -ENOENT)
		return 0; /* a kernel without cgroups */
	if (r)
		return err_set(err, r, "read '%s'", host->membership);
	for (char *line = strtok_r(membership, "\n", &save);
	     line && nr < HOSTCGROUP_HIERARCHIES_MAX; line = strtok_r(NULL, "\n", &save))
		nr += find_hierarchy(line, mountinfo, path, &v[nr]);
	return nr;
}

/* ---- the forms of the path ---- */

/* "a-b.slice" is below "a.slice"; "-.slice" is the root. */
static int find_slice(const char *slice, char *out, size_t cap, struct err *err)
{
	size_t len = strlen(slice) - strlen(".slice");

	out[0] = '\0';
	if (!strcmp(slice, "-.slice"))
		return 0;
	if (!len || slice[0] == '-' || slice[len - 1] == '-' || strstr(slice, "--"))
		return err_say(err, -EINVAL, "cgroupsPath: '%.100s' is not the name of a slice",
			       slice);
	for (size_t i = 1; i <= len; i++) {
		size_t at = strlen(out);

		if (i == len || slice[i] == '-')
			snprintf(out + at, cap - at, "/%.*s.slice", (int)i, slice);
	}
	return 0;
}

static bool find_is_systemd(const char *path)
{
	const char *first = strchr(path, ':');
	const char *second = first ? strchr(first + 1, ':') : NULL;

	if (!second || strchr(second + 1, ':') || strchr(path, '/'))
		return false;
	return first == path || (first - path > 6 && !memcmp(first - 6, ".slice", 6));
}

char *hostcgroup_path(const char *cgroups_path, const char *id, struct err *err)
{
	cleanup_free char *copy = NULL;
	char slice[FIND_PATH_MAX];
	char *prefix, *name;
	size_t len;

	if (!cgroups_path || !*cgroups_path)
		return xstrdup(id);
	if (!find_is_systemd(cgroups_path))
		return xstrdup(cgroups_path);
	copy = xstrdup(cgroups_path);
	prefix = strchr(copy, ':');
	*prefix++ = '\0';
	name = strchr(prefix, ':');
	*name++ = '\0';
	if (strlen(copy) > NAME_MAX) {
		err_say(err, -ENAMETOOLONG, "cgroupsPath: a slice of %zu bytes", strlen(copy));
		return NULL;
	}
	if (find_slice(*copy ? copy : "system.slice", slice, sizeof(slice), err))
		return NULL;
	len = strlen(name);
	if (len >= 6 && !strcmp(name + len - 6, ".slice"))
		return xasprintf("%s/%s", slice, name);
	return xasprintf("%s/%s-%s.scope", slice, prefix, name);
}
