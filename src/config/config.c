/*
 * Reader of harpoon.conf and of io.harpoon.* annotations.
 *
 * One const table names every key with its type, place in struct config and range; reading, checking,
 * printing and the tests all go by it. inih splits lines; line numbers are counted in its reader
 * callback, because the distributions build inih without passing them on. The first error stops
 * everything: a root process does not run on half a configuration.
 *
 * Limits: a file of CONFIG_FILE_MAX bytes; a line as long as inih's buffer (200 bytes as commonly
 * built), longer ones are refused, not cut.
 *
 * Threads: none of its own. Allocations belong to struct config.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "config_paths.h"
#include "io.h"

#define CONFIG_FILE_MAX (64 * 1024)
#define CONFIG_TIMEOUT_MAX_MS (60 * 60 * 1000)

enum config_type {
	CONFIG_TYPE_PATH,
	CONFIG_TYPE_TEXT,
	CONFIG_TYPE_NUMBER,
	CONFIG_TYPE_MEMORY,
	CONFIG_TYPE_BACKEND,
	CONFIG_TYPE_LOG_LEVEL,
	CONFIG_TYPE_TEMPLATES,
	CONFIG_TYPE_BOOTSTRAP,
};

struct config_key {
	const char *section, *name;
	enum config_type type;
	size_t offset;
	uint32_t min, max;
	const char *fallback; /* goes through the same checks as a line of the file */
};

#define AT(field) offsetof(struct config, field)

static const struct config_key config_keys[] = {
	{"vm", "backend", CONFIG_TYPE_BACKEND, AT(backend), 0, 0, "auto"},
	{"vm", "kernel", CONFIG_TYPE_PATH, AT(kernel), 0, 0, CONFIG_DEFAULT_KERNEL},
	{"vm", "initrd", CONFIG_TYPE_PATH, AT(initrd), 0, 0, CONFIG_DEFAULT_INITRD},
	{"vm", "kernel_args", CONFIG_TYPE_TEXT, AT(kernel_args), 0, 0, ""},
	{"vm", "vcpus", CONFIG_TYPE_NUMBER, AT(vcpus), 1, CONFIG_VCPUS_MAX, "1"},
	{"vm", "memory", CONFIG_TYPE_MEMORY, AT(memory_mib), CONFIG_MEM_MIN_MIB, CONFIG_MEM_MAX_MIB,
	 "512"},
	{"vm", "memory_overhead", CONFIG_TYPE_MEMORY, AT(memory_overhead_mib), 0,
	 CONFIG_MEM_MAX_MIB, "64"},
	{"vm", "memory_max", CONFIG_TYPE_MEMORY, AT(memory_max_mib), 0, CONFIG_MEM_MAX_MIB, "4096"},
	{"vm", "dax_window", CONFIG_TYPE_MEMORY, AT(dax_window_mib), 0, CONFIG_WINDOW_MAX_MIB, "0"},
	{"network", "nics", CONFIG_TYPE_NUMBER, AT(nics), 0, CONFIG_NICS_MAX, "2"},
	{"templates", "use", CONFIG_TYPE_TEMPLATES, AT(templates), 0, 0, "auto"},
	{"templates", "dir", CONFIG_TYPE_PATH, AT(template_dir), 0, 0, CONFIG_DEFAULT_TEMPLATES},
	{"templates", "max", CONFIG_TYPE_NUMBER, AT(templates_max), 1, 1000, "16"},
	{"templates", "max_size", CONFIG_TYPE_MEMORY, AT(templates_max_mib), 1, CONFIG_MEM_MAX_MIB,
	 "1024"},
	{"templates", "max_days", CONFIG_TYPE_NUMBER, AT(templates_max_days), 1, 10000, "30"},
	{"programs", "qemu", CONFIG_TYPE_PATH, AT(qemu), 0, 0, CONFIG_DEFAULT_QEMU},
	{"programs", "fs_server", CONFIG_TYPE_PATH, AT(fs_server), 0, 0, CONFIG_DEFAULT_FS_SERVER},
	{"programs", "vmm", CONFIG_TYPE_PATH, AT(vmm), 0, 0, CONFIG_DEFAULT_VMM},
	{"programs", "passt", CONFIG_TYPE_PATH, AT(passt), 0, 0, "/usr/bin/passt"},
	{"programs", "cli", CONFIG_TYPE_PATH, AT(cli), 0, 0, CONFIG_DEFAULT_CLI},
	{"log", "level", CONFIG_TYPE_LOG_LEVEL, AT(log_level), 0, 0, "info"},
	{"containerd", "bootstrap", CONFIG_TYPE_BOOTSTRAP, AT(bootstrap), 0, 0, "auto"},
	{"limits", "ready_timeout_ms", CONFIG_TYPE_NUMBER, AT(ready_timeout_ms), 1,
	 CONFIG_TIMEOUT_MAX_MS, "30000"},
	{"limits", "call_timeout_ms", CONFIG_TYPE_NUMBER, AT(call_timeout_ms), 1,
	 CONFIG_TIMEOUT_MAX_MS, "60000"},
	{"limits", "console_log_kib", CONFIG_TYPE_NUMBER, AT(console_log_kib), 4, 64 * 1024, "256"},
};
_Static_assert(ARRAY_SIZE(config_keys) <= 32, "config_reader.seen has a bit for every key");

static const char *const config_backend_names[] = {
	[CONFIG_BACKEND_AUTO] = "auto",
	[CONFIG_BACKEND_KVM] = "kvm",
	[CONFIG_BACKEND_QEMU] = "qemu",
};
_Static_assert(ARRAY_SIZE(config_backend_names) == CONFIG_BACKEND_MAX, "a name for every backend");

static const char *const config_level_names[] = {
	[LOG_LEVEL_ERR] = "error",
	[LOG_LEVEL_WARN] = "warn",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DBG] = "debug",
};
_Static_assert(ARRAY_SIZE(config_level_names) == LOG_LEVEL_MAX, "a name for every level");

static const char *const config_templates_names[] = {
	[CONFIG_TEMPLATES_AUTO] = "auto",
	[CONFIG_TEMPLATES_OFF] = "off",
};
_Static_assert(ARRAY_SIZE(config_templates_names) == CONFIG_TEMPLATES_MAX, "a name for each");

static const char *const config_bootstrap_names[] = {
	[CONFIG_BOOTSTRAP_AUTO] = "auto",
	[CONFIG_BOOTSTRAP_PLAIN] = "plain",
	[CONFIG_BOOTSTRAP_JSON2] = "json2",
	[CONFIG_BOOTSTRAP_JSON3] = "json3",
};
_Static_assert(ARRAY_SIZE(config_bootstrap_names) == CONFIG_BOOTSTRAP_MAX, "a name for every form");

const char *config_backend_name(enum config_backend b)
{
	return config_backend_names[b];
}

static int config_find_name(const char *const *names, size_t nr, const char *value)
{
	for (size_t i = 0; i < nr; i++) {
		if (!strcmp(names[i], value))
			return (int)i;
	}
	return -EINVAL;
}

/* Decimal digits, then nothing or one of the given suffixes. No sign, no blank, no octal. */
static int config_parse_number(const char *value, const char **ret_rest, uint64_t *ret)
{
	uint64_t n = 0;
	const char *p = value;

	for (; *p >= '0' && *p <= '9'; p++) {
		n = n * 10 + (uint64_t)(*p - '0');
		if (n > UINT32_MAX)
			return -ERANGE;
	}
	if (p == value)
		return -EINVAL;
	*ret_rest = p;
	*ret = n;
	return 0;
}

static int config_parse_u32(const char *value, const struct config_key *key, uint32_t *ret)
{
	static const struct {
		const char *suffix;
		uint64_t mib;
	} units[] = {{"", 1}, {"M", 1}, {"MiB", 1}, {"G", 1024}, {"GiB", 1024}};
	size_t nr_units = key->type == CONFIG_TYPE_MEMORY ? ARRAY_SIZE(units) : 1;
	const char *rest;
	uint64_t n;
	int r = config_parse_number(value, &rest, &n);

	if (r)
		return r;
	for (size_t i = 0; i < nr_units; i++) {
		if (strcmp(rest, units[i].suffix) != 0)
			continue;
		n *= units[i].mib;
		if (n < key->min || n > key->max)
			return -ERANGE;
		*ret = (uint32_t)n;
		return 0;
	}
	return -EINVAL;
}

/* Text that goes to a command line: printable, so that it cannot forge anything where it is shown. */
static bool config_is_printable(const char *value)
{
	for (const char *p = value; *p; p++) {
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false;
	}
	return true;
}

static int config_set_string(const struct config_key *key, char **field, const char *value,
			     struct err *err)
{
	if (!config_is_printable(value))
		return err_say(err, -EINVAL, "key '%s' holds control characters", key->name);
	if (key->type == CONFIG_TYPE_PATH && value[0] != '/')
		return err_say(err, -EINVAL, "key '%s' must be an absolute path, not '%.100s'",
			       key->name, value);
	free(*field);
	*field = xstrdup(value);
	return 0;
}

static int config_set_number(const struct config_key *key, uint32_t *field, const char *value,
			     struct err *err)
{
	bool memory = key->type == CONFIG_TYPE_MEMORY;

	if (!config_parse_u32(value, key, field))
		return 0;
	return err_say(err, -EINVAL, "key '%s' must be a number from %u to %u%s, not '%.100s'",
		       key->name, key->min, key->max, memory ? " (MiB; suffix M or G allowed)" : "",
		       value);
}

static int config_set(struct config *c, const struct config_key *key, const char *value,
		      struct err *err)
{
	char *field = (char *)c + key->offset;
	int n;

	switch (key->type) {
	case CONFIG_TYPE_PATH:
	case CONFIG_TYPE_TEXT:
		return config_set_string(key, (char **)(void *)field, value, err);
	case CONFIG_TYPE_NUMBER:
	case CONFIG_TYPE_MEMORY:
		return config_set_number(key, (uint32_t *)(void *)field, value, err);
	case CONFIG_TYPE_BACKEND:
		n = config_find_name(config_backend_names, CONFIG_BACKEND_MAX, value);
		if (n < 0)
			return err_say(err, n, "key '%s' must be auto, kvm or qemu, not '%.100s'",
				       key->name, value);
		*(enum config_backend *)(void *)field = (enum config_backend)n;
		return 0;
	case CONFIG_TYPE_LOG_LEVEL:
		n = config_find_name(config_level_names, LOG_LEVEL_MAX, value);
		if (n < 0)
			return err_say(err, n,
				       "key '%s' must be error, warn, info or debug, not '%.100s'",
				       key->name, value);
		*(enum log_level *)(void *)field = (enum log_level)n;
		return 0;
	case CONFIG_TYPE_TEMPLATES:
		n = config_find_name(config_templates_names, CONFIG_TEMPLATES_MAX, value);
		if (n < 0)
			return err_say(err, n, "key '%s' must be auto or off, not '%.100s'",
				       key->name, value);
		*(enum config_templates *)(void *)field = (enum config_templates)n;
		return 0;
	case CONFIG_TYPE_BOOTSTRAP:
		n = config_find_name(config_bootstrap_names, CONFIG_BOOTSTRAP_MAX, value);
		if (n < 0)
			return err_say(err, n,
				       "key '%s' must be auto, plain, json2 or json3, not '%.100s'",
				       key->name, value);
		*(enum config_bootstrap *)(void *)field = (enum config_bootstrap)n;
		return 0;
	}
	return -EINVAL;
}

static void config_set_defaults(struct config *c)
{
	*c = (struct config){0};
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		struct err err = {0};

		/* Only a broken build (an install prefix that is not absolute) can fail here. */
		if (config_set(c, &config_keys[i], config_keys[i].fallback, &err)) {
			fprintf(stderr, "harpoon: built-in default: %s\n", err.msg);
			abort();
		}
	}
}

struct config_reader {
	struct config *config;
	const char *path;
	const char *text;
	size_t len, off;
	unsigned int line; /* that inih is working on, from 1 */
	uint32_t seen;	   /* bit per key */
	struct err *err;
	bool failed;
};

/* Only the first complaint counts; inih goes on after an error and would overwrite it. */
static void HARPOON_PRINTF(2, 3) config_reader_fail(struct config_reader *r, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (r->failed)
		return;
	r->failed = true;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	err_say(r->err, -EINVAL, "%s:%u: %s", r->path, r->line, text);
}

/* Gives inih one line; NULL ends the parse. */
static char *config_reader_line(char *out, int room, void *ctx)
{
	struct config_reader *r = ctx;
	const char *start = r->text + r->off, *end;
	size_t n;

	if (r->failed || r->off == r->len)
		return NULL;
	r->line++;
	end = memchr(start, '\n', r->len - r->off);
	n = end ? (size_t)(end - start) + 1 : r->len - r->off;
	if (n >= (size_t)room) {
		config_reader_fail(r, "line is longer than %d characters", room - 2);
		return NULL;
	}
	if (memchr(start, '\0', n)) {
		config_reader_fail(r, "line holds a NUL byte");
		return NULL;
	}
	memcpy(out, start, n);
	out[n] = '\0';
	r->off += n;
	return out;
}

static int config_reader_value(void *ctx, const char *section, const char *name, const char *value)
{
	struct config_reader *r = ctx;

	if (r->failed)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		const struct config_key *key = &config_keys[i];
		struct err err = {0};

		if (strcmp(key->name, name) != 0 || strcmp(key->section, section) != 0)
			continue;
		if (r->seen & (1u << i)) {
			config_reader_fail(r,
					   "key '%s' is given twice (a line that starts with a "
					   "blank continues the one before)",
					   name);
			return 0;
		}
		r->seen |= 1u << i;
		if (config_set(r->config, key, value, &err))
			config_reader_fail(r, "%s", err.msg);
		return !r->failed;
	}
	config_reader_fail(r, "key '%.64s' is not known in section [%.32s]", name, section);
	return 0;
}

int config_load_text(struct config *ret, const char *path, const char *text, size_t len,
		     struct err *err)
{
	struct config c;
	struct config_reader r = {.config = &c, .path = path, .text = text, .len = len, .err = err};
	int n;

	*ret = (struct config){0};
	config_set_defaults(&c);
	n = ini_parse_stream(config_reader_line, &r, config_reader_value, &r);
	/* inih tells of lines it could not read only now; one of them may come before our complaint. */
	if (n > 0 && (!r.failed || (unsigned int)n < r.line)) {
		r.failed = false;
		r.line = (unsigned int)n;
		config_reader_fail(&r, "neither a [section], a 'key = value' nor a comment");
	}
	if (r.failed) {
		config_done(&c);
		return -EINVAL;
	}
	c.path = xstrdup(path);
	*ret = c;
	return 0;
}

int config_load_file(struct config *ret, const char *path, struct err *err)
{
	cleanup_free char *text = NULL;
	size_t len = 0;
	int r;

	*ret = (struct config){0};
	if (!*path) {
		config_set_defaults(ret);
		return 0;
	}
	r = io_read_file(AT_FDCWD, path, CONFIG_FILE_MAX, &text, &len);
	if (r == -EFBIG)
		return err_say(err, r, "%s: configuration is larger than %d bytes", path,
			       CONFIG_FILE_MAX);
	if (r)
		return err_set(err, r, "read configuration '%s'", path);
	return config_load_text(ret, path, text, len, err);
}

int config_load(struct config *ret, struct err *err)
{
	const char *path = getenv("HARPOON_CONFIG");

	if (path && *path)
		return config_load_file(ret, path, err);
	if (access(CONFIG_DEFAULT_FILE, F_OK) && errno == ENOENT)
		return config_load_file(ret, "", err);
	return config_load_file(ret, CONFIG_DEFAULT_FILE, err);
}

void config_done(struct config *c)
{
	free(c->path);
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		if (config_keys[i].type == CONFIG_TYPE_PATH ||
		    config_keys[i].type == CONFIG_TYPE_TEXT)
			free(*(char **)(void *)((char *)c + config_keys[i].offset));
	}
	*c = (struct config){0};
}

int config_apply_annotation(struct config *c, const char *key, const char *value, struct err *err)
{
	static const char prefix[] = "io.harpoon.";
	static const char *const allowed[] = {"vcpus", "memory", "backend"};
	struct err why = {0};

	if (strncmp(key, prefix, sizeof(prefix) - 1) != 0)
		return 0;
	if (config_find_name(allowed, ARRAY_SIZE(allowed), key + sizeof(prefix) - 1) < 0)
		return err_say(err, -EINVAL,
			       "annotation '%.100s' is not one of io.harpoon.vcpus, "
			       "io.harpoon.memory, io.harpoon.backend",
			       key);
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		if (strcmp(config_keys[i].name, key + sizeof(prefix) - 1) != 0)
			continue;
		if (!config_set(c, &config_keys[i], value, &why))
			return 0;
	}
	return err_say(err, -EINVAL, "annotation '%s': %s", key, why.msg);
}

static void config_format_value(FILE *f, const struct config *c, const struct config_key *key)
{
	const char *field = (const char *)c + key->offset;
	const char *text;

	switch (key->type) {
	case CONFIG_TYPE_PATH:
	case CONFIG_TYPE_TEXT:
		text = *(char *const *)(const void *)field;
		/* "key = " with a blank behind it would be an empty line to some editors. */
		fprintf(f, "%s =%s%s\n", key->name, *text ? " " : "", text);
		return;
	case CONFIG_TYPE_NUMBER:
	case CONFIG_TYPE_MEMORY:
		fprintf(f, "%s = %u\n", key->name, *(const uint32_t *)(const void *)field);
		return;
	case CONFIG_TYPE_BACKEND:
		text = config_backend_names[*(const enum config_backend *)(const void *)field];
		fprintf(f, "%s = %s\n", key->name, text);
		return;
	case CONFIG_TYPE_LOG_LEVEL:
		text = config_level_names[*(const enum log_level *)(const void *)field];
		fprintf(f, "%s = %s\n", key->name, text);
		return;
	case CONFIG_TYPE_TEMPLATES:
		text = config_templates_names[*(const enum config_templates *)(const void *)field];
		fprintf(f, "%s = %s\n", key->name, text);
		return;
	case CONFIG_TYPE_BOOTSTRAP:
		text = config_bootstrap_names[*(const enum config_bootstrap *)(const void *)field];
		fprintf(f, "%s = %s\n", key->name, text);
		return;
	}
}

char *config_format(const struct config *c)
{
	const char *section = "";
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	fprintf(f, "# %s\n", c->path ? c->path : "built-in defaults (no configuration file)");
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		if (strcmp(section, config_keys[i].section) != 0) {
			section = config_keys[i].section;
			fprintf(f, "\n[%s]\n", section);
		}
		config_format_value(f, c, &config_keys[i]);
	}
	fclose(f);
	return text;
}
