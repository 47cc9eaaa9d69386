/*
 * The tables of config.json but process and resources, the checks between fields, and the entry points.
 *
 * What harpoon does not honour and why: docs/differences.md. mountLabel is SELinux's and read past.
 */
#include "spec.h"

#include <errno.h>
#include <json-c/json.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cleanup.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

#define OCI_HOSTNAME_MAX 64
#define OCI_VERSION_MAX 64
#define OCI_NAMESPACES_MAX 32
#define OCI_CLOCKS_MAX 8
#define OCI_MAJOR_MAX 0xfff
#define OCI_MINOR_MAX 0xfffff

static const struct json_field oci_root_fields[] = {
	{"path", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_spec, root_path),
	 .max = OCI_STRING_MAX},
	{"readonly", JSON_BOOL, AT(oci_spec, root_readonly)},
	{0},
};

static const struct json_field oci_mount_fields[] = {
	{"destination", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_mount, destination),
	 .max = OCI_STRING_MAX},
	{"type", JSON_STRING, JSON_NEVER_NULL, AT(oci_mount, type), .max = OCI_STRING_MAX},
	{"source", JSON_STRING, JSON_NEVER_NULL, AT(oci_mount, source), .max = OCI_STRING_MAX},
	{"options", JSON_CUSTOM, JSON_NEVER_NULL, AT(oci_mount, data),
	 .read = oci_mount_options_read, .done = json_string_done},
	{"uidMappings", JSON_UNSUPPORTED, .reason = "id-mapped mounts"},
	{"gidMappings", JSON_UNSUPPORTED, .reason = "id-mapped mounts"},
	{0},
};

static const struct json_field oci_hook_fields[] = {
	{"path", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY | JSON_ABSOLUTE, AT(oci_hook, path),
	 .max = OCI_STRING_MAX},
	{"args", JSON_STRINGS, AT(oci_hook, args), .max = OCI_ARGS_MAX, .longest = OCI_ARG_MAX},
	{"env", JSON_STRINGS, AT(oci_hook, env), .max = OCI_ARGS_MAX, .longest = OCI_ARG_MAX},
	{"timeout", JSON_U32, AT(oci_hook, timeout_s), .min = 1, .max = INT32_MAX},
	{0},
};

#define OCI_HOOK(word, kind) \
	{ \
		word, JSON_ARRAY, .off = offsetof(struct oci_spec, hooks[kind].v), \
				  .nr_off = offsetof(struct oci_spec, hooks[kind].nr), \
				  .elem_len = sizeof(struct oci_hook), .max = OCI_HOOKS_MAX, \
				  .fields = oci_hook_fields \
	}

static const struct json_field oci_hooks_fields[] = {
	OCI_HOOK("prestart", OCI_HOOK_PRESTART),
	OCI_HOOK("createRuntime", OCI_HOOK_CREATE_RUNTIME),
	OCI_HOOK("createContainer", OCI_HOOK_CREATE_CONTAINER),
	OCI_HOOK("startContainer", OCI_HOOK_START_CONTAINER),
	OCI_HOOK("poststart", OCI_HOOK_POSTSTART),
	OCI_HOOK("poststop", OCI_HOOK_POSTSTOP),
	{0},
};

#define OCI_NUMBER_MISSING UINT32_MAX

static const struct json_word oci_device_words[] = {
	{"c", S_IFCHR}, {"u", S_IFCHR}, {"b", S_IFBLK}, {"p", S_IFIFO}, {0},
};

/* First in the table: what is the default and what is required depends on the type. */
static int oci_device_type_read(struct json_ctx *ctx, const struct json_field *f,
				struct json_object *v, void *obj)
{
	struct oci_device *d = obj;
	uint64_t type;
	int r = json_find_word(ctx, v, oci_device_words, &type);

	if (r < 0)
		return r;
	d->mode = (uint32_t)type | 0666;
	if (type != S_IFIFO)
		d->major = d->minor = OCI_NUMBER_MISSING;
	return 0;
}

/* Some writers put the whole st_mode there; only the permissions count. */
static int oci_device_mode_read(struct json_ctx *ctx, const struct json_field *f,
				struct json_object *v, void *obj)
{
	static const struct json_field mode = {"fileMode", JSON_U32};
	struct oci_device *d = obj;
	uint32_t bits;
	int r = json_read_one(ctx, &mode, v, &bits);

	if (r < 0)
		return r;
	d->mode = (d->mode & S_IFMT) | (bits & 07777);
	return 0;
}

static const struct json_field oci_device_fields[] = {
	{"type", JSON_CUSTOM, JSON_REQUIRED, .read = oci_device_type_read},
	{"path", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY | JSON_ABSOLUTE, AT(oci_device, path),
	 .max = OCI_STRING_MAX},
	{"major", JSON_U32, AT(oci_device, major), .max = OCI_MAJOR_MAX},
	{"minor", JSON_U32, AT(oci_device, minor), .max = OCI_MINOR_MAX},
	{"fileMode", JSON_CUSTOM, .read = oci_device_mode_read},
	{"uid", JSON_U32, AT(oci_device, uid)},
	{"gid", JSON_U32, AT(oci_device, gid)},
	{0},
};

static int oci_device_check(struct json_ctx *ctx, void *device)
{
	const struct oci_device *d = device;

	if (d->major == OCI_NUMBER_MISSING || d->minor == OCI_NUMBER_MISSING)
		return json_fail(ctx, -EINVAL, "major or minor missing");
	return 0;
}

static const struct json_word oci_namespace_words[] = {
	{"pid", CLONE_NEWPID},	     {"network", CLONE_NEWNET}, {"mount", CLONE_NEWNS},
	{"ipc", CLONE_NEWIPC},	     {"uts", CLONE_NEWUTS},	{"user", CLONE_NEWUSER},
	{"cgroup", CLONE_NEWCGROUP}, {"time", CLONE_NEWTIME},	{0},
};

static const struct json_field oci_namespace_fields[] = {
	{"type", JSON_WORD, JSON_REQUIRED, AT(oci_namespace, flag), .words = oci_namespace_words},
	{"path", JSON_STRING, JSON_ABSOLUTE, AT(oci_namespace, path), .max = OCI_STRING_MAX},
	{0},
};

static const struct json_field oci_id_mapping_fields[] = {
	{"containerID", JSON_U32, JSON_REQUIRED, AT(oci_id_mapping, container_id)},
	{"hostID", JSON_U32, JSON_REQUIRED, AT(oci_id_mapping, host_id)},
	{"size", JSON_U32, JSON_REQUIRED, AT(oci_id_mapping, size), .min = 1},
	{0},
};

static int oci_id_mapping_check(struct json_ctx *ctx, void *mapping)
{
	const struct oci_id_mapping *m = mapping;
	uint32_t end;

	if (__builtin_add_overflow(m->container_id, m->size, &end) ||
	    __builtin_add_overflow(m->host_id, m->size, &end))
		return json_fail(ctx, -ERANGE, "reaches beyond the last id");
	return 0;
}

static const struct json_word oci_clock_words[] = {
	{"monotonic", CLOCK_MONOTONIC},
	{"boottime", CLOCK_BOOTTIME},
	{0},
};

static const struct json_field oci_time_offset_fields[] = {
	{"secs", JSON_I64, AT(oci_time_offset, secs)},
	{"nanosecs", JSON_U32, AT(oci_time_offset, nanosecs), .max = 999999999},
	{0},
};

/* The clock is the key of the member, so this is no table's array. */
static int oci_time_offset_read(struct json_ctx *ctx, const char *clock, struct json_object *v,
				struct oci_time_offset *ret)
{
	const struct json_word *w = oci_clock_words;
	size_t old = json_enter_key(ctx, clock);
	int r;

	while (w->name && strcmp(w->name, clock) != 0)
		w++;
	if (!w->name)
		return json_fail(ctx, -EINVAL, "unknown clock");
	ret->clock = (uint32_t)w->value;
	r = json_read_fields(ctx, oci_time_offset_fields, v, ret);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	return 0;
}

static int oci_time_offsets_read(struct json_ctx *ctx, const struct json_field *f,
				 struct json_object *v, void *obj)
{
	struct oci_spec *s = obj;

	if (!json_object_is_type(v, json_type_object))
		return json_fail(ctx, -EINVAL, "not an object");
	/* One per clock: keys are unique and unknown ones an error. */
	s->time_offsets = xcalloc(ARRAY_SIZE(oci_clock_words), sizeof(*s->time_offsets));
	json_object_object_foreach(v, key, val)
	{
		int r = oci_time_offset_read(ctx, key, val, &s->time_offsets[s->nr_time_offsets++]);

		if (r < 0)
			return r;
	}
	return 0;
}

static void oci_time_offsets_done(const struct json_field *f, void *obj)
{
	free(((struct oci_spec *)obj)->time_offsets);
}

static int oci_propagation_read(struct json_ctx *ctx, const struct json_field *f,
				struct json_object *v, void *obj)
{
	const char *s = json_borrow_string(ctx, v, OCI_STRING_MAX);

	if (!s)
		return -EINVAL;
	return *s ? json_find_word(ctx, v, oci_propagation_words,
				   (uint64_t *)((char *)obj + f->off))
		  : 0;
}

static int oci_spec_resources_read(struct json_ctx *ctx, const struct json_field *f,
				   struct json_object *v, void *obj)
{
	return oci_resources_read(ctx, v, &((struct oci_spec *)obj)->resources);
}

static void oci_spec_resources_done(const struct json_field *f, void *obj)
{
	oci_resources_done(&((struct oci_spec *)obj)->resources);
}

static int oci_personality_read(struct json_ctx *ctx, const struct json_field *f,
				struct json_object *v, void *obj)
{
	const char *s = json_borrow_string(ctx, v, OCI_STRING_MAX);

	if (!s)
		return -EINVAL;
	if (!strcmp(s, "LINUX32"))
		return json_fail(ctx, -EOPNOTSUPP, "not supported: only LINUX");
	if (strcmp(s, "LINUX") != 0)
		return json_fail(ctx, -EINVAL, "unknown value '%.64s'", s);
	return 0;
}

static const struct json_field oci_personality_fields[] = {
	{"domain", JSON_CUSTOM, JSON_REQUIRED, .read = oci_personality_read},
	{"flags", JSON_UNSUPPORTED, .reason = "the specification defines no flag"},
	{0},
};

static const struct json_field oci_linux_fields[] = {
	{"namespaces", JSON_ARRAY, AT(oci_spec, namespaces), NR(oci_spec, nr_namespaces),
	 .elem_len = sizeof(struct oci_namespace), .max = OCI_NAMESPACES_MAX,
	 .fields = oci_namespace_fields},
	{"uidMappings", JSON_ARRAY, AT(oci_spec, uid_mappings), NR(oci_spec, nr_uid_mappings),
	 .elem_len = sizeof(struct oci_id_mapping), .max = OCI_ID_MAPPINGS_MAX,
	 .fields = oci_id_mapping_fields, .post = oci_id_mapping_check},
	{"gidMappings", JSON_ARRAY, AT(oci_spec, gid_mappings), NR(oci_spec, nr_gid_mappings),
	 .elem_len = sizeof(struct oci_id_mapping), .max = OCI_ID_MAPPINGS_MAX,
	 .fields = oci_id_mapping_fields, .post = oci_id_mapping_check},
	{"timeOffsets", JSON_CUSTOM, .read = oci_time_offsets_read, .done = oci_time_offsets_done},
	{"devices", JSON_ARRAY, AT(oci_spec, devices), NR(oci_spec, nr_devices),
	 .elem_len = sizeof(struct oci_device), .max = OCI_DEVICES_MAX, .fields = oci_device_fields,
	 .post = oci_device_check},
	{"netDevices", JSON_UNSUPPORTED,
	 .reason = "network devices come from the container's network namespace"},
	{"cgroupsPath", JSON_STRING, AT(oci_spec, cgroups_path), .max = OCI_STRING_MAX},
	{"resources", JSON_CUSTOM, .read = oci_spec_resources_read,
	 .done = oci_spec_resources_done},
	{"rootfsPropagation", JSON_CUSTOM, AT(oci_spec, rootfs_propagation),
	 .read = oci_propagation_read},
	{"maskedPaths", JSON_STRINGS, JSON_ABSOLUTE, AT(oci_spec, masked_paths),
	 .max = OCI_PATHS_MAX, .longest = OCI_STRING_MAX},
	{"readonlyPaths", JSON_STRINGS, JSON_ABSOLUTE, AT(oci_spec, readonly_paths),
	 .max = OCI_PATHS_MAX, .longest = OCI_STRING_MAX},
	{"sysctl", JSON_MAP, AT(oci_spec, sysctls), NR(oci_spec, nr_sysctls),
	 .max = OCI_SYSCTLS_MAX, .longest = OCI_STRING_MAX},
	{"seccomp", JSON_CUSTOM, .read = oci_seccomp_read, .done = oci_seccomp_done},
	{"personality", JSON_OBJECT, .fields = oci_personality_fields},
	{"intelRdt", JSON_UNSUPPORTED, .reason = "cache and bandwidth classes of the host's CPUs"},
	{"memoryPolicy", JSON_UNSUPPORTED, .reason = "memory nodes of the host"},
	{0},
};

static const struct json_field oci_spec_fields[] = {
	{"ociVersion", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_spec, version),
	 .max = OCI_VERSION_MAX},
	{"root", JSON_OBJECT, JSON_REQUIRED, .fields = oci_root_fields},
	{"hostname", JSON_STRING, AT(oci_spec, hostname), .max = OCI_HOSTNAME_MAX},
	{"domainname", JSON_STRING, AT(oci_spec, domainname), .max = OCI_HOSTNAME_MAX},
	{"process", JSON_OBJECT, HAS(oci_spec, has_process), AT(oci_spec, process),
	 .fields = oci_process_fields, .post = oci_process_check},
	{"mounts", JSON_ARRAY, AT(oci_spec, mounts), NR(oci_spec, nr_mounts),
	 .elem_len = sizeof(struct oci_mount), .max = OCI_MOUNTS_MAX, .fields = oci_mount_fields,
	 .post = oci_mount_check},
	{"hooks", JSON_OBJECT, .fields = oci_hooks_fields},
	{"annotations", JSON_MAP, AT(oci_spec, annotations), NR(oci_spec, nr_annotations),
	 .max = OCI_ANNOTATIONS_MAX, .longest = OCI_ANNOTATION_MAX},
	{"linux", JSON_OBJECT, .fields = oci_linux_fields},
	{"vm", JSON_UNSUPPORTED,
	 .reason = "hypervisor, kernel and image are chosen by harpoon.conf alone"},
	{0},
};

static int oci_check_version(struct json_ctx *ctx, const struct oci_spec *s)
{
	const char *v = s->version;

	if (v[0] < '0' || v[0] > '9')
		return json_fail(ctx, -EINVAL, "not a version: '%s'", v);
	if (v[0] != '1' || v[1] != '.' || v[2] < '0' || v[2] > '9')
		return json_fail(ctx, -EOPNOTSUPP, "not supported: version '%s', only 1.x", v);
	return 0;
}

static int oci_check_hostnamepaces(struct json_ctx *ctx, const struct oci_spec *s)
{
	int seen = 0;

	for (size_t i = 0; i < s->nr_namespaces; i++) {
		size_t old = json_enter_index(ctx, i);

		if (seen & s->namespaces[i].flag)
			return json_fail(ctx, -EINVAL, "the same type as an earlier one");
		seen |= s->namespaces[i].flag;
		json_leave(ctx, old);
	}
	return 0;
}

static int oci_check_uts(struct json_ctx *ctx, const struct oci_spec *s)
{
	if (!oci_spec_namespace(s, CLONE_NEWUTS))
		return json_fail(ctx, -EINVAL, "set without a namespace of type uts");
	return 0;
}

static int oci_check_hostname(struct json_ctx *ctx, const struct oci_spec *s)
{
	return s->hostname ? oci_check_uts(ctx, s) : 0;
}

static int oci_check_domainname(struct json_ctx *ctx, const struct oci_spec *s)
{
	return s->domainname ? oci_check_uts(ctx, s) : 0;
}

static int oci_check_mappings(struct json_ctx *ctx, const struct oci_spec *s)
{
	const struct oci_namespace *user = oci_spec_namespace(s, CLONE_NEWUSER);
	bool has = s->nr_uid_mappings || s->nr_gid_mappings;

	if (!user && has)
		return json_fail(ctx, -EINVAL, "set without a namespace of type user");
	if (user && !user->path && !(s->nr_uid_mappings && s->nr_gid_mappings))
		return json_fail(ctx, -EINVAL,
				 "a new user namespace needs uidMappings and gidMappings");
	return 0;
}

static int oci_check_time_offsets(struct json_ctx *ctx, const struct oci_spec *s)
{
	const struct oci_namespace *time = oci_spec_namespace(s, CLONE_NEWTIME);

	if (s->nr_time_offsets && (!time || time->path))
		return json_fail(ctx, -EINVAL, "set without a new namespace of type time");
	return 0;
}

/* runc resolves ".." lexically; nobody sends it, and a path that climbs is refused here. */
static int oci_check_cgroups_path(struct json_ctx *ctx, const struct oci_spec *s)
{
	const char *p = s->cgroups_path;

	while (p && *p) {
		size_t len = strcspn(p, "/");

		if (len == 2 && !memcmp(p, "..", 2))
			return json_fail(ctx, -EINVAL, "has a component '..'");
		p += len + strspn(p + len, "/");
	}
	return 0;
}

/* What one field alone cannot tell. */
static const struct {
	const char *path;
	int (*check)(struct json_ctx *ctx, const struct oci_spec *s);
} oci_checks[] = {
	{"ociVersion", oci_check_version},
	{"linux.namespaces", oci_check_hostnamepaces},
	{"hostname", oci_check_hostname},
	{"domainname", oci_check_domainname},
	{"linux.uidMappings", oci_check_mappings},
	{"linux.timeOffsets", oci_check_time_offsets},
	{"linux.cgroupsPath", oci_check_cgroups_path},
};

static int oci_spec_check(struct json_ctx *ctx, struct oci_spec *s)
{
	int r = 0;

	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(oci_checks); i++) {
		json_enter(ctx, oci_checks[i].path);
		r = oci_checks[i].check(ctx, s);
		json_leave(ctx, 0);
	}
	if (r < 0)
		return r;
	json_enter(ctx, "linux.sysctl");
	r = oci_sysctls_check(ctx, s);
	json_leave(ctx, 0);
	return r;
}

static int oci_spec_read(struct json_ctx *ctx, const char *json, size_t len, struct oci_spec *s)
{
	cleanup(json_putp) struct json_object *v = NULL;
	int r = json_parse(ctx, json, len, &v);

	if (r < 0)
		return r;
	r = json_read_fields(ctx, oci_spec_fields, v, s);
	return r < 0 ? r : oci_spec_check(ctx, s);
}

static void oci_spec_freep(struct oci_spec **s)
{
	oci_spec_free(*s);
}

int oci_spec_parse(const char *json, size_t len, struct oci_spec **ret, struct err *err)
{
	cleanup(oci_spec_freep) struct oci_spec *s = xcalloc(1, sizeof(*s));
	struct json_ctx ctx = {.err = err, .what = "config.json"};
	int r = oci_spec_read(&ctx, json, len, s);

	if (r < 0)
		return r;
	*ret = take_ptr(&s);
	return 0;
}

void oci_spec_free(struct oci_spec *s)
{
	if (!s)
		return;
	json_fields_done(oci_spec_fields, s);
	free(s);
}

const char *oci_spec_annotation(const struct oci_spec *s, const char *key)
{
	for (size_t i = 0; i < s->nr_annotations; i++)
		if (!strcmp(s->annotations[i].key, key))
			return s->annotations[i].value;
	return NULL;
}

const struct oci_namespace *oci_spec_namespace(const struct oci_spec *s, int flag)
{
	for (size_t i = 0; i < s->nr_namespaces; i++)
		if (s->namespaces[i].flag == flag)
			return &s->namespaces[i];
	return NULL;
}

static void oci_process_freep(struct oci_process **p)
{
	oci_process_free(*p);
}

int oci_process_parse(const char *json, size_t len, struct oci_process **ret, struct err *err)
{
	cleanup(oci_process_freep) struct oci_process *p = xcalloc(1, sizeof(*p));
	cleanup(json_putp) struct json_object *v = NULL;
	struct json_ctx ctx = {.err = err, .what = "process"};
	int r = json_parse(&ctx, json, len, &v);

	if (r < 0)
		return r;
	json_enter(&ctx, "process");
	r = json_read_fields(&ctx, oci_process_fields, v, p);
	if (r < 0)
		return r;
	r = oci_process_check(&ctx, p);
	if (r < 0)
		return r;
	*ret = take_ptr(&p);
	return 0;
}

void oci_process_free(struct oci_process *p)
{
	if (!p)
		return;
	json_fields_done(oci_process_fields, p);
	free(p);
}

static void oci_resources_freep(struct oci_resources **r)
{
	oci_resources_free(*r);
}

int oci_resources_parse(const char *json, size_t len, struct oci_resources **ret, struct err *err)
{
	cleanup(oci_resources_freep) struct oci_resources *res = xcalloc(1, sizeof(*res));
	cleanup(json_putp) struct json_object *v = NULL;
	struct json_ctx ctx = {.err = err, .what = "resources"};
	int r = json_parse(&ctx, json, len, &v);

	if (r < 0)
		return r;
	json_enter(&ctx, "resources");
	r = oci_resources_read(&ctx, v, res);
	if (r < 0)
		return r;
	*ret = take_ptr(&res);
	return 0;
}

void oci_resources_free(struct oci_resources *r)
{
	if (!r)
		return;
	oci_resources_done(r);
	free(r);
}
