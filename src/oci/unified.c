/*
 * linux.resources.unified: files of cgroup v2 by name, written as they are, after and so above the other
 * fields. A value of several lines is several writes, one a line, because the kernel takes one at a time.
 *
 * The name becomes a file's name in a folder that holds harpoon's own handles on the container (cgroup.procs,
 * cgroup.kill), so only known controllers pass. A memory.max or cpu.max is understood too: the VM's size
 * follows from them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cgroup_files.h"

enum oci_place { OCI_PLACE_GUEST, OCI_PLACE_HOST };

static const struct {
	const char *prefix;
	enum oci_place place;
} oci_controllers[] = {
	{"memory.", OCI_PLACE_GUEST},	  {"cpu.", OCI_PLACE_GUEST},
	{"pids.", OCI_PLACE_GUEST},	  {"hugetlb.", OCI_PLACE_GUEST},
	{"cgroup.max.", OCI_PLACE_GUEST}, {"cpuset.", OCI_PLACE_HOST},
	{"io.", OCI_PLACE_HOST},
};

static int oci_unified_place(struct json_ctx *ctx, const char *name, enum oci_place *ret)
{
	if (name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._")])
		return json_fail(ctx, -EINVAL, "not the name of a cgroup file");
	for (size_t i = 0; i < ARRAY_SIZE(oci_controllers); i++) {
		size_t len = strlen(oci_controllers[i].prefix);

		if (!strncmp(name, oci_controllers[i].prefix, len) && name[len]) {
			*ret = oci_controllers[i].place;
			return 0;
		}
	}
	return json_fail(ctx, -EOPNOTSUPP,
			 "not supported: not a file of memory, cpu, pids, hugetlb, cpuset or io");
}

/* A number or "max" (-1) at *s, which is moved behind it. */
static bool oci_parse_limit(const char **s, int64_t *ret)
{
	char *end;

	if (!strncmp(*s, "max", 3)) {
		*s += 3;
		*ret = -1;
		return true;
	}
	if (**s < '0' || **s > '9')
		return false;
	errno = 0;
	*ret = strtoll(*s, &end, 10);
	*s = end;
	return !errno;
}

static void oci_unified_understand(struct oci_resources *ret, const char *name, const char *value)
{
	int64_t n, period;

	if (!strcmp(name, "memory.max")) {
		if (oci_parse_limit(&value, &n) && !*value && n)
			ret->memory_limit = n;
	} else if (!strcmp(name, "cpu.max") && oci_parse_limit(&value, &n)) {
		ret->cpu_quota = n;
		if (*value++ == ' ' && oci_parse_limit(&value, &period) && period > 0)
			ret->cpu_period = (uint64_t)period;
		else
			ret->cpu_period = OCI_CPU_PERIOD_DEFAULT;
	}
}

static int oci_unified_lines(struct json_ctx *ctx, const struct json_pair *p, struct oci_files l)
{
	for (const char *line = p->value; *line;) {
		size_t len = strcspn(line, "\n");
		int r;

		if (len) {
			r = oci_file_add(ctx, l, p->key, "%.*s", (int)len, line);
			if (r < 0)
				return r;
		}
		line += len + (line[len] == '\n');
	}
	return 0;
}

int oci_unified_convert(struct json_ctx *ctx, const struct oci_raw *raw, struct oci_resources *ret,
			struct oci_files guest, struct oci_files host)
{
	size_t top = json_enter(ctx, "unified");

	for (size_t i = 0; i < raw->nr_unified; i++) {
		const struct json_pair *p = &raw->unified[i];
		size_t old = json_enter_key(ctx, p->key);
		enum oci_place place = OCI_PLACE_GUEST;
		int r = oci_unified_place(ctx, p->key, &place);

		if (r >= 0)
			r = oci_unified_lines(ctx, p, place == OCI_PLACE_GUEST ? guest : host);
		if (r < 0)
			return r;
		oci_unified_understand(ret, p->key, p->value);
		json_leave(ctx, old);
	}
	json_leave(ctx, top);
	return 0;
}
