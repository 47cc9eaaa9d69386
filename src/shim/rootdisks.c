/*
 * A root file system with disks in it; see rootdisks.h.
 *
 * containerd's list, of version 1.7: mounts that go over each other, the last one being the root. Of 2.2: the same, with
 * a type that may be a chain (format/mkdir/overlay), whose first words are transformations of the rest: `format` expands
 * templates that name earlier mounts, `mkdir` makes folders first. Its daemon does all that on the host unless a shim
 * claims it; what comes here is what is left to us.
 *
 * Writable folders of the host do not become upper layers in the guest: overlayfs needs its work folder beside it, and
 * what is beside a snapshot's folder is containerd's.
 */
#include "rootdisks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "util.h"

#define ROOTDISKS_MKDIR "X-containerd.mkdir.path="

/* The word after the last '/': a chain's own type. */
static const char *rootdisks_base(const char *type)
{
	const char *slash = strrchr(type, '/');

	return slash ? slash + 1 : type;
}

static bool rootdisks_has_transform(const char *type, const char *name)
{
	size_t len = strlen(name);

	for (const char *p = type, *slash; (slash = strchr(p, '/')); p = slash + 1)
		if ((size_t)(slash - p) == len && !strncmp(p, name, len))
			return true;
	return false;
}

static bool rootdisks_is_layered(const char *base)
{
	return !strcmp(base, "overlay") || !strcmp(base, "bind") || !strncmp(base, "fuse", 4);
}

static bool rootdisks_has_option(const struct mounts_entry *e, const char *option)
{
	for (size_t i = 0; i < e->nr_options; i++)
		if (!strcmp(e->options[i], option))
			return true;
	return false;
}

static bool rootdisks_entry_wants(const struct mounts_entry *e)
{
	struct stat st;

	if (rootdisks_is_layered(rootdisks_base(e->type)) || rootdisks_has_option(e, "bind") ||
	    rootdisks_has_option(e, "rbind"))
		return false;
	if (rootdisks_has_option(e, "loop"))
		return true;
	return e->source[0] == '/' && !stat(e->source, &st) &&
	       (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
}

bool rootdisks_wanted(const struct mounts_entry *entries, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (rootdisks_entry_wants(&entries[i]))
			return true;
	return false;
}

/* ---- templates ---- */

/* A place in the list, before the index-th. */
static bool rootdisks_number(const char **p, size_t index, size_t *ret)
{
	char *end;

	*p += strspn(*p, " ");
	if (**p < '0' || **p > '9')
		return false;
	*ret = strtoul(*p, &end, 10);
	*p = end;
	return *ret < index;
}

/* What stands between the braces. */
static bool rootdisks_expand_one(const char *p, size_t index, FILE *out)
{
	size_t from, to, len;

	p += strspn(p, " ");
	len = strcspn(p, " ");
	if (len == 5 && !strncmp(p, "mount", len)) {
		p += len;
		if (!rootdisks_number(&p, index, &from))
			return false;
		fprintf(out, "%zu", from);
		return p[strspn(p, " ")] == '\0';
	}
	if (len != 7 || strncmp(p, "overlay", len) != 0)
		return false;
	p += len;
	if (!rootdisks_number(&p, index, &from) || !rootdisks_number(&p, index, &to) ||
	    p[strspn(p, " ")] != '\0')
		return false;
	/* From the first to the second, in either direction. */
	for (size_t i = from;; i += from < to ? 1 : (size_t)-1) {
		fprintf(out, "%s%zu", i == from ? "" : ":", i);
		if (i == to)
			return true;
	}
}

int rootdisks_expand(const char *text, size_t index, char **ret, struct err *err)
{
	cleanup_free char *copy = xstrdup(text);
	cleanup_free char *out = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&out, &len);
	char *p = copy;
	bool ok = true;

	if (!f)
		abort();
	while (ok && *p) {
		char *open = strstr(p, "{{"), *close = open ? strstr(open, "}}") : NULL;

		if (!close) {
			ok = !open;
			fputs(p, f);
			break;
		}
		*open = *close = '\0';
		fputs(p, f);
		ok = rootdisks_expand_one(open + 2, index, f);
		p = close + 2;
	}
	if (fclose(f))
		abort();
	if (!ok)
		return err_say(err, -EINVAL, "template '%.200s' of mount %zu is not understood",
			       text, index);
	*ret = take_ptr(&out);
	return 0;
}

/* ---- one entry ---- */

/* The options as they are after the transformations; folders to make are taken out. */
struct rootdisks_options {
	char **v;
	size_t nr;
};

static void rootdisks_options_done(struct rootdisks_options *o)
{
	for (size_t i = 0; i < o->nr; i++)
		free(o->v[i]);
	free(o->v);
}

static int rootdisks_option(struct disks_root_mount *m, const char *option, bool format,
			    size_t index, struct rootdisks_options *o, struct err *err)
{
	static const size_t prefix = sizeof(ROOTDISKS_MKDIR) - 1;
	cleanup_free char *text = NULL;
	int r = 0;

	if (format)
		r = rootdisks_expand(option, index, &text, err);
	else
		text = xstrdup(option);
	if (r)
		return r;
	if (!strncmp(text, ROOTDISKS_MKDIR, prefix)) {
		/* Relative, so in one of the mounts before. */
		if (text[prefix] == '/' || strstr(text, ".."))
			return err_say(err, -EOPNOTSUPP, "folder '%.200s' is not in a disk",
				       text + prefix);
		m->folders[m->nr_folders++] = xstrdup(text + prefix);
	} else if (strncmp(text, "x-", 2) != 0 && strncmp(text, "X-", 2) != 0) {
		o->v[o->nr++] = take_ptr(&text);
	}
	return 0;
}

static int rootdisks_options(const struct mounts_entry *e, size_t index, bool format,
			     struct disks_root_mount *m, struct mounts_options *ret,
			     struct err *err)
{
	cleanup(rootdisks_options_done) struct rootdisks_options o = {
		.v = xcalloc(e->nr_options, sizeof(char *))};
	int r = 0;

	m->folders = xcalloc(e->nr_options, sizeof(char *));
	for (size_t i = 0; i < e->nr_options && !r; i++)
		r = rootdisks_option(m, e->options[i], format, index, &o, err);
	return r ? r : mounts_options_parse(o.v, o.nr, ret, err);
}

/* "share:rN" for a folder of the host. */
static char *rootdisks_share(struct disks *d, const char *path, bool read_only)
{
	char *name = xasprintf("r%zu", d->nr_shares);

	d->shares = xrealloc(d->shares, (d->nr_shares + 1) * sizeof(*d->shares));
	d->shares[d->nr_shares++] =
		(struct disks_share){.name = name, .path = xstrdup(path), .read_only = read_only};
	return xasprintf("share:%s", name);
}

/* Lower layers that are folders of the host are shared, read only. */
static void rootdisks_lower(struct disks *d, const char *value, FILE *out)
{
	cleanup_free char *copy = xstrdup(value);
	char *save = NULL;

	for (char *p = strtok_r(copy, ":", &save); p; p = strtok_r(NULL, ":", &save)) {
		cleanup_free char *share = *p == '/' ? rootdisks_share(d, p, true) : NULL;

		fprintf(out, "%s%s", p == copy ? "" : ":", share ? share : p);
	}
}

/* An image that an option names (erofs: the rest of its data) is a disk, too. */
static int rootdisks_device_option(struct disks *d, const char *path, FILE *out, struct err *err)
{
	int index, r = disks_add_path(d, AT_FDCWD, path, true, &index, err);

	if (!r)
		fprintf(out, "device=disk:" HV_DISK_SERIAL, (size_t)index);
	return r;
}

static int rootdisks_word(struct disks *d, const char *word, FILE *out, struct err *err)
{
	if (!strncmp(word, "lowerdir=", 9)) {
		fputs("lowerdir=", out);
		rootdisks_lower(d, word + 9, out);
	} else if (!strncmp(word, "device=/", 8)) {
		return rootdisks_device_option(d, word + 7, out, err);
	} else if (!strncmp(word, "upperdir=/", 10) || !strncmp(word, "workdir=/", 9)) {
		return err_say(err, -EOPNOTSUPP,
			       "layers that are disks need a writable layer that "
			       "is one, and '%.200s' is a folder of the host (erofs snapshotter: "
			       "set default_size)",
			       strchr(word, '=') + 1);
	} else {
		fputs(word, out);
	}
	return 0;
}

static int rootdisks_data(struct disks *d, const char *data, char **ret, struct err *err)
{
	cleanup_free char *copy = xstrdup(data);
	cleanup_free char *out = NULL;
	char *save = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&out, &len);
	int r = 0;

	if (!f)
		abort();
	for (char *w = strtok_r(copy, ",", &save); w && !r; w = strtok_r(NULL, ",", &save)) {
		fputs(w == copy ? "" : ",", f);
		r = rootdisks_word(d, w, f, err);
	}
	if (fclose(f))
		abort();
	if (!r)
		*ret = take_ptr(&out);
	return r;
}

static int rootdisks_source(struct disks *d, const char *source, const char *base, uint64_t flags,
			    char **ret, struct err *err)
{
	bool read_only = (flags & MS_RDONLY) || disks_type_is_read_only(base);
	int index, r;

	if (!strcmp(base, "overlay") || (!strcmp(base, "bind") && source[0] != '/')) {
		*ret = xstrdup(source);
		return 0;
	}
	if (!strcmp(base, "bind")) {
		*ret = rootdisks_share(d, source, read_only);
		return 0;
	}
	r = disks_add_path(d, AT_FDCWD, source, read_only, &index, err);
	if (!r)
		*ret = xasprintf("disk:" HV_DISK_SERIAL, (size_t)index);
	return r;
}

/* Everything but the chain's `format` and `mkdir` would have to be done on the host. */
static int rootdisks_check_type(const char *type, struct err *err)
{
	for (const char *p = type, *slash; (slash = strchr(p, '/')); p = slash + 1) {
		size_t len = (size_t)(slash - p);

		if ((len == 6 && !strncmp(p, "format", len)) ||
		    (len == 5 && !strncmp(p, "mkdir", len)))
			continue;
		return err_say(err, -EOPNOTSUPP,
			       "mount type '%.60s' needs containerd's mount "
			       "manager",
			       type);
	}
	if (!strncmp(rootdisks_base(type), "fuse", 4))
		return err_say(err, -EOPNOTSUPP,
			       "FUSE snapshotters (type '%.60s') are not "
			       "supported",
			       type);
	return 0;
}

static int rootdisks_entry(struct disks *d, const struct mounts_entry *e, size_t index,
			   struct disks_root_mount *m, struct err *err)
{
	cleanup(mounts_options_done) struct mounts_options o = {0};
	bool format = rootdisks_has_transform(e->type, "format");
	cleanup_free char *source = NULL;
	const char *base = rootdisks_base(e->type);
	int r = rootdisks_check_type(e->type, err);

	if (!r)
		r = rootdisks_options(e, index, format, m, &o, err);
	if (!r && format)
		r = rootdisks_expand(e->source, index, &source, err);
	else if (!r)
		source = xstrdup(e->source);
	if (r || !source)
		return r ? r : err_say(err, -EINVAL, "mount %zu has no source", index);
	if (o.flags & MS_BIND)
		base = "bind";
	m->type = xstrdup(base);
	m->target = xstrdup(e->target);
	m->flags = o.flags & ~(uint64_t)MS_REMOUNT;
	r = rootdisks_source(d, source, base, o.flags, &m->source, err);
	return r ? r : rootdisks_data(d, o.data, &m->data, err);
}

int rootdisks_add(struct disks *d, const struct mounts_entry *entries, size_t nr, struct err *err)
{
	int r = 0;

	if (nr > MOUNTS_MAX)
		return err_say(err, -E2BIG, "root file system: %zu mounts, at most %d", nr,
			       MOUNTS_MAX);
	d->root = xcalloc(nr, sizeof(*d->root));
	d->nr_root = nr;
	for (size_t i = 0; i < nr && !r; i++)
		r = rootdisks_entry(d, &entries[i], i, &d->root[i], err);
	return r ? err_wrap(err, "root file system") : 0;
}
