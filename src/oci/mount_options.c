/*
 * Mount options: words to MS_*, propagation and MOUNT_ATTR_*; what is none of them is data for the file
 * system. The words and their meaning are the specification's list (config.md, Linux mount options).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "spec.h"
#include "sys.h"

#define OCI_MOUNT_DATA_MAX 4095 /* mount(2) takes a page with its NUL */

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

enum oci_option_kind { OCI_OPTION_SET, OCI_OPTION_CLEAR, OCI_OPTION_RSET, OCI_OPTION_RCLEAR };

struct oci_option {
	const char *name;
	enum oci_option_kind kind;
	uint64_t flag;
};

static const struct oci_option oci_options[] = {
	{"async", OCI_OPTION_CLEAR, MS_SYNCHRONOUS},
	{"atime", OCI_OPTION_CLEAR, MS_NOATIME},
	{"bind", OCI_OPTION_SET, MS_BIND},
	{"defaults", OCI_OPTION_SET, 0},
	{"dev", OCI_OPTION_CLEAR, MS_NODEV},
	{"diratime", OCI_OPTION_CLEAR, MS_NODIRATIME},
	{"dirsync", OCI_OPTION_SET, MS_DIRSYNC},
	{"exec", OCI_OPTION_CLEAR, MS_NOEXEC},
	{"iversion", OCI_OPTION_SET, MS_I_VERSION},
	{"lazytime", OCI_OPTION_SET, MS_LAZYTIME},
	{"loud", OCI_OPTION_CLEAR, MS_SILENT},
	{"mand", OCI_OPTION_SET, MS_MANDLOCK},
	{"noatime", OCI_OPTION_SET, MS_NOATIME},
	{"nodev", OCI_OPTION_SET, MS_NODEV},
	{"nodiratime", OCI_OPTION_SET, MS_NODIRATIME},
	{"noexec", OCI_OPTION_SET, MS_NOEXEC},
	{"noiversion", OCI_OPTION_CLEAR, MS_I_VERSION},
	{"nolazytime", OCI_OPTION_CLEAR, MS_LAZYTIME},
	{"nomand", OCI_OPTION_CLEAR, MS_MANDLOCK},
	{"norelatime", OCI_OPTION_CLEAR, MS_RELATIME},
	{"nostrictatime", OCI_OPTION_CLEAR, MS_STRICTATIME},
	{"nosuid", OCI_OPTION_SET, MS_NOSUID},
	{"nosymfollow", OCI_OPTION_SET, MS_NOSYMFOLLOW},
	{"ratime", OCI_OPTION_RCLEAR, MOUNT_ATTR_NOATIME},
	{"rbind", OCI_OPTION_SET, MS_BIND | MS_REC},
	{"rdev", OCI_OPTION_RCLEAR, MOUNT_ATTR_NODEV},
	{"rdiratime", OCI_OPTION_RCLEAR, MOUNT_ATTR_NODIRATIME},
	{"relatime", OCI_OPTION_SET, MS_RELATIME},
	{"remount", OCI_OPTION_SET, MS_REMOUNT},
	{"rexec", OCI_OPTION_RCLEAR, MOUNT_ATTR_NOEXEC},
	{"rnoatime", OCI_OPTION_RSET, MOUNT_ATTR_NOATIME},
	{"rnodev", OCI_OPTION_RSET, MOUNT_ATTR_NODEV},
	{"rnodiratime", OCI_OPTION_RSET, MOUNT_ATTR_NODIRATIME},
	{"rnoexec", OCI_OPTION_RSET, MOUNT_ATTR_NOEXEC},
	{"rnorelatime", OCI_OPTION_RCLEAR, MOUNT_ATTR_RELATIME},
	{"rnostrictatime", OCI_OPTION_RCLEAR, MOUNT_ATTR_STRICTATIME},
	{"rnosuid", OCI_OPTION_RSET, MOUNT_ATTR_NOSUID},
	{"rnosymfollow", OCI_OPTION_RSET, MOUNT_ATTR_NOSYMFOLLOW},
	{"ro", OCI_OPTION_SET, MS_RDONLY},
	{"rrelatime", OCI_OPTION_RSET, MOUNT_ATTR_RELATIME},
	{"rro", OCI_OPTION_RSET, MOUNT_ATTR_RDONLY},
	{"rrw", OCI_OPTION_RCLEAR, MOUNT_ATTR_RDONLY},
	{"rstrictatime", OCI_OPTION_RSET, MOUNT_ATTR_STRICTATIME},
	{"rsuid", OCI_OPTION_RCLEAR, MOUNT_ATTR_NOSUID},
	{"rsymfollow", OCI_OPTION_RCLEAR, MOUNT_ATTR_NOSYMFOLLOW},
	{"rw", OCI_OPTION_CLEAR, MS_RDONLY},
	{"silent", OCI_OPTION_SET, MS_SILENT},
	{"strictatime", OCI_OPTION_SET, MS_STRICTATIME},
	{"suid", OCI_OPTION_CLEAR, MS_NOSUID},
	{"symfollow", OCI_OPTION_CLEAR, MS_NOSYMFOLLOW},
	{"sync", OCI_OPTION_SET, MS_SYNCHRONOUS},
};

const struct json_word oci_propagation_words[] = {
	{"private", MS_PRIVATE},
	{"rprivate", MS_PRIVATE | MS_REC},
	{"slave", MS_SLAVE},
	{"rslave", MS_SLAVE | MS_REC},
	{"shared", MS_SHARED},
	{"rshared", MS_SHARED | MS_REC},
	{"unbindable", MS_UNBINDABLE},
	{"runbindable", MS_UNBINDABLE | MS_REC},
	{0},
};

const char *oci_mount_option_word(size_t i)
{
	if (i < ARRAY_SIZE(oci_options))
		return oci_options[i].name;
	i -= ARRAY_SIZE(oci_options);
	return i < ARRAY_SIZE(oci_propagation_words) ? oci_propagation_words[i].name : NULL;
}

static bool oci_attr_is_atime(uint64_t attr)
{
	return attr == MOUNT_ATTR_RELATIME || attr == MOUNT_ATTR_NOATIME ||
	       attr == MOUNT_ATTR_STRICTATIME;
}

static void oci_option_apply(struct oci_mount *m, const struct oci_option *o)
{
	switch (o->kind) {
	case OCI_OPTION_SET:
		m->flags |= o->flag;
		m->clear_flags &= ~o->flag;
		break;
	case OCI_OPTION_CLEAR:
		m->flags &= ~o->flag;
		m->clear_flags |= o->flag;
		break;
	case OCI_OPTION_RSET:
		/* The access time modes are one number, not bits: the last one given holds. */
		if (oci_attr_is_atime(o->flag))
			m->recursive_attr_set &= ~(uint64_t)MOUNT_ATTR__ATIME;
		m->recursive_attr_set |= o->flag;
		m->recursive_attr_clear &= ~o->flag;
		break;
	case OCI_OPTION_RCLEAR:
		m->recursive_attr_set &= ~o->flag;
		m->recursive_attr_clear |= o->flag;
		break;
	}
	/* mount_setattr(2) sets a mode only when the old one is cleared in the same call. */
	if ((o->kind == OCI_OPTION_RSET || o->kind == OCI_OPTION_RCLEAR) &&
	    oci_attr_is_atime(o->flag))
		m->recursive_attr_clear |= MOUNT_ATTR__ATIME;
}

static int oci_propagation_apply(struct json_ctx *ctx, struct oci_mount *m, uint64_t flags)
{
	/* The only pair of which the second does not replace the first: "slave and shared". */
	if ((m->propagation & MS_SLAVE) && (flags & MS_SHARED))
		return json_fail(ctx, -EOPNOTSUPP,
				 "not supported: a mount that is slave and shared at once");
	m->propagation = flags;
	return 0;
}

static int oci_option_data(struct json_ctx *ctx, struct oci_mount *m, const char *word)
{
	size_t old = m->data ? strlen(m->data) : 0, len = strlen(word);
	char *p;

	if (!len)
		return 0;
	if (old + len + 1 > OCI_MOUNT_DATA_MAX)
		return json_fail(ctx, -E2BIG, "the options are longer than %u bytes together",
				 OCI_MOUNT_DATA_MAX);
	p = realloc(m->data, old + len + 2);
	if (!p)
		return json_fail(ctx, -ENOMEM, "out of memory");
	m->data = p;
	snprintf(p + old, len + 2, "%s%s", old ? "," : "", word);
	return 0;
}

static int oci_option_read(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	const char *word = json_borrow_string(ctx, v, OCI_STRING_MAX);
	struct oci_mount *m = arg;

	if (!word)
		return -EINVAL;
	if (!strcmp(word, "idmap") || !strcmp(word, "ridmap"))
		return json_fail(ctx, -EOPNOTSUPP, "not supported: id-mapped mounts ('%s')", word);
	/* runc's own, not in the specification; docker and nerdctl send it. */
	if (!strcmp(word, "tmpcopyup")) {
		m->copy_up = true;
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(oci_options); i++) {
		if (!strcmp(oci_options[i].name, word)) {
			oci_option_apply(m, &oci_options[i]);
			return 0;
		}
	}
	for (const struct json_word *p = oci_propagation_words; p->name; p++)
		if (!strcmp(p->name, word))
			return oci_propagation_apply(ctx, m, p->value);
	return oci_option_data(ctx, m, word);
}

int oci_mount_options_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			   void *obj)
{
	return json_each(ctx, v, OCI_MOUNT_OPTIONS_MAX, oci_option_read, obj);
}

static int oci_mount_check_bind(struct json_ctx *ctx, struct oci_mount *m)
{
	char *type;

	m->bind = true;
	m->flags |= MS_BIND;
	if (!*m->source)
		return json_fail(ctx, -EINVAL, "a bind mount without source");
	if (*m->data)
		return json_fail(ctx, -EINVAL,
				 "a bind mount with options for a file system: '%.100s'", m->data);
	type = strdup("bind");
	if (!type)
		return json_fail(ctx, -ENOMEM, "out of memory");
	free(m->type);
	m->type = type;
	return 0;
}

/* A relative destination is relative to "/" (deprecated, but the specification keeps it). */
static int oci_mount_check_destination(struct json_ctx *ctx, struct oci_mount *m)
{
	char *p;

	if (*m->destination == '/')
		return 0;
	if (asprintf(&p, "/%s", m->destination) < 0)
		return json_fail(ctx, -ENOMEM, "out of memory");
	free(m->destination);
	m->destination = p;
	return 0;
}

int oci_mount_check(struct json_ctx *ctx, void *mount)
{
	struct oci_mount *m = mount;
	int r = oci_mount_check_destination(ctx, m);

	if (r < 0)
		return r;
	if ((m->flags & MS_BIND) || !strcmp(m->type, "bind"))
		return oci_mount_check_bind(ctx, m);
	/* Of any other type runc takes no notice. */
	m->copy_up = m->copy_up && !strcmp(m->type, "tmpfs");
	return 0;
}
