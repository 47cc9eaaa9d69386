/*
 * Parses argv; see args.h. One table of flags; -socket and -debug-socket exist in the reference shim and
 * are accepted without effect, as containerd never sends them.
 */
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

enum args_kind { ARGS_STRING, ARGS_BOOL };

struct args_flag {
	const char *name;
	enum args_kind kind;
	size_t offset; /* in struct args_raw */
};

struct args_raw {
	struct args args;
	bool version, info;
	const char *ignored;
};

static const struct args_flag args_flags[] = {
	{"namespace", ARGS_STRING, offsetof(struct args_raw, args.namespace_)},
	{"address", ARGS_STRING, offsetof(struct args_raw, args.address)},
	{"publish-binary", ARGS_STRING, offsetof(struct args_raw, args.publish_binary)},
	{"id", ARGS_STRING, offsetof(struct args_raw, args.id)},
	{"bundle", ARGS_STRING, offsetof(struct args_raw, args.bundle)},
	{"socket", ARGS_STRING, offsetof(struct args_raw, ignored)},
	{"debug-socket", ARGS_STRING, offsetof(struct args_raw, ignored)},
	{"debug", ARGS_BOOL, offsetof(struct args_raw, args.debug)},
	{"v", ARGS_BOOL, offsetof(struct args_raw, version)},
	{"version", ARGS_BOOL, offsetof(struct args_raw, version)},
	{"info", ARGS_BOOL, offsetof(struct args_raw, info)},
};

bool args_id_is_valid(const char *id)
{
	size_t len = strlen(id);
	bool separator = true; /* none at the beginning */

	if (!len || len > ARGS_ID_MAX)
		return false;
	for (; *id; id++) {
		bool is_separator = strchr("-_.", *id) != NULL;

		if (!is_separator && !(isascii((unsigned char)*id) && isalnum((unsigned char)*id)))
			return false;
		if (is_separator && separator)
			return false;
		separator = is_separator;
	}
	return !separator;
}

static const struct args_flag *args_find_flag(const char *name, size_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(args_flags); i++) {
		const struct args_flag *f = &args_flags[i];

		if (strlen(f->name) == len && !memcmp(f->name, name, len))
			return f;
	}
	return NULL;
}

static int args_set_bool(bool *ret, const char *name, const char *value, struct err *err)
{
	if (!value || !strcmp(value, "true") || !strcmp(value, "1"))
		*ret = true;
	else if (!strcmp(value, "false") || !strcmp(value, "0"))
		*ret = false;
	else
		return err_say(err, -EINVAL, "flag -%s: '%s' is neither true nor false", name,
			       value);
	return 0;
}

/* Handles argv[*i] (and takes its value from argv[*i + 1] when it is a separate word). */
static int args_parse_flag(struct args_raw *raw, int argc, char *const *argv, int *i,
			   struct err *err)
{
	const char *name = argv[*i] + (argv[*i][1] == '-' ? 2 : 1);
	const char *equals = strchr(name, '=');
	size_t len = equals ? (size_t)(equals - name) : strlen(name);
	const struct args_flag *f = args_find_flag(name, len);
	const char *value = equals ? equals + 1 : NULL;
	char *field;

	if (!f)
		return err_say(err, -EINVAL, "unknown flag '%s'", argv[*i]);
	field = (char *)raw + f->offset;
	if (f->kind == ARGS_BOOL)
		return args_set_bool((bool *)field, f->name, value, err);
	if (!value) {
		if (*i + 1 >= argc)
			return err_say(err, -EINVAL, "flag -%s needs a value", f->name);
		value = argv[++*i];
	}
	memcpy(field, &value, sizeof(value));
	return 0;
}

static int args_check(const struct args *a, struct err *err)
{
	if (a->action != ARGS_START && a->action != ARGS_DELETE)
		return 0;
	if (!*a->namespace_)
		return err_say(err, -EINVAL, "shim namespace cannot be empty (flag -namespace)");
	if (!args_id_is_valid(a->namespace_))
		return err_say(err, -EINVAL, "flag -namespace: '%.100s' is not a valid identifier",
			       a->namespace_);
	if (!args_id_is_valid(a->id))
		return err_say(err, -EINVAL, "flag -id: '%.100s' is not a valid identifier", a->id);
	return 0;
}

static int args_set_action(struct args_raw *raw, const char *word, struct err *err)
{
	if (raw->version)
		raw->args.action = ARGS_VERSION;
	else if (raw->info)
		raw->args.action = ARGS_INFO;
	else if (!word)
		return err_say(
			err, -EINVAL,
			"no sub-command: containerd calls this program with 'start' or 'delete'");
	else if (!strcmp(word, "start"))
		raw->args.action = ARGS_START;
	else if (!strcmp(word, "delete"))
		raw->args.action = ARGS_DELETE;
	else
		return err_say(err, -EINVAL, "unknown sub-command '%.100s'", word);
	return 0;
}

int args_parse(int argc, char *const *argv, struct args *ret, struct err *err)
{
	struct args_raw raw = {.args = {.namespace_ = "",
					.address = "",
					.publish_binary = "",
					.id = "",
					.bundle = ""}};
	int i, r;

	for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		if (!strcmp(argv[i], "--")) {
			i++;
			break;
		}
		r = args_parse_flag(&raw, argc, argv, &i, err);
		if (r)
			return r;
	}
	r = args_set_action(&raw, i < argc ? argv[i] : NULL, err);
	if (!r)
		r = args_check(&raw.args, err);
	if (!r)
		*ret = raw.args;
	return r;
}
