/*
 * linux.resources: the tables. Fields are read as they are written into struct oci_raw, and from there
 * cgroup_files.c makes the files of cgroup v2.
 *
 * memory.kernel, kernelTCP, swappiness and useHierarchy are read past, as runc does with cgroup v2.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cgroup_files.h"
#include "cleanup.h"

#define OCI_RULES_MAX 8192
#define OCI_DISKS_MAX 1024
#define OCI_HUGEPAGES_MAX 16

static const struct json_field oci_memory_fields[] = {
	{"limit", JSON_I64, AT(oci_raw, limit), .min = -1},
	{"reservation", JSON_I64, AT(oci_raw, reservation), .min = -1},
	{"swap", JSON_I64, AT(oci_raw, swap), .min = -1},
	{"disableOOMKiller", JSON_UNSUPPORTED,
	 .reason = "cgroup v2 cannot switch the OOM killer off"},
	{0},
};

static const struct json_field oci_cpu_fields[] = {
	{"shares", JSON_U64, AT(oci_raw, shares)},
	{"quota", JSON_I64, AT(oci_raw, quota)},
	{"burst", JSON_U64, HAS(oci_raw, has_burst), AT(oci_raw, burst)},
	{"period", JSON_U64, AT(oci_raw, period), .max = INT64_MAX},
	{"realtimeRuntime", JSON_UNSUPPORTED, .reason = "cgroup v2 has no real-time limits"},
	{"realtimePeriod", JSON_UNSUPPORTED, .reason = "cgroup v2 has no real-time limits"},
	{"cpus", JSON_STRING, AT(oci_raw, cpus), .max = OCI_STRING_MAX},
	{"mems", JSON_STRING, AT(oci_raw, mems), .max = OCI_STRING_MAX},
	{"idle", JSON_I64, HAS(oci_raw, has_idle), AT(oci_raw, idle)},
	{0},
};

static const struct json_field oci_pids_fields[] = {
	{"limit", JSON_I64, HAS(oci_raw, has_pids), AT(oci_raw, pids)},
	{0},
};

#define OCI_NO_LEAF "cgroup v2 has no leaf weights"

static const struct json_field oci_weight_fields[] = {
	{"major", JSON_U32, JSON_REQUIRED, AT(oci_disk, major)},
	{"minor", JSON_U32, JSON_REQUIRED, AT(oci_disk, minor)},
	{"weight", JSON_U32, AT(oci_disk, weight), .max = 1000},
	{"leafWeight", JSON_UNSUPPORTED, .reason = OCI_NO_LEAF},
	{0},
};

static const struct json_field oci_throttle_fields[] = {
	{"major", JSON_U32, JSON_REQUIRED, AT(oci_disk, major)},
	{"minor", JSON_U32, JSON_REQUIRED, AT(oci_disk, minor)},
	{"rate", JSON_U64, JSON_REQUIRED, AT(oci_disk, rate)},
	{0},
};

static const struct json_field oci_block_fields[] = {
	{"weight", JSON_U32, AT(oci_raw, weight), .max = 1000},
	{"leafWeight", JSON_UNSUPPORTED, .reason = OCI_NO_LEAF},
	{"weightDevice", JSON_ARRAY, AT(oci_raw, weights.v), NR(oci_raw, weights.nr),
	 .elem_len = sizeof(struct oci_disk), .max = OCI_DISKS_MAX, .fields = oci_weight_fields},
	{"throttleReadBpsDevice", JSON_ARRAY, AT(oci_raw, read_bps.v), NR(oci_raw, read_bps.nr),
	 .elem_len = sizeof(struct oci_disk), .max = OCI_DISKS_MAX, .fields = oci_throttle_fields},
	{"throttleWriteBpsDevice", JSON_ARRAY, AT(oci_raw, write_bps.v), NR(oci_raw, write_bps.nr),
	 .elem_len = sizeof(struct oci_disk), .max = OCI_DISKS_MAX, .fields = oci_throttle_fields},
	{"throttleReadIOPSDevice", JSON_ARRAY, AT(oci_raw, read_iops.v), NR(oci_raw, read_iops.nr),
	 .elem_len = sizeof(struct oci_disk), .max = OCI_DISKS_MAX, .fields = oci_throttle_fields},
	{"throttleWriteIOPSDevice", JSON_ARRAY, AT(oci_raw, write_iops.v),
	 NR(oci_raw, write_iops.nr), .elem_len = sizeof(struct oci_disk), .max = OCI_DISKS_MAX,
	 .fields = oci_throttle_fields},
	{0},
};

static const struct json_field oci_hugepage_fields[] = {
	{"pageSize", JSON_STRING, JSON_REQUIRED | JSON_NOT_EMPTY, AT(oci_hugepage, page_size),
	 .max = 32},
	{"limit", JSON_U64, JSON_REQUIRED, AT(oci_hugepage, limit)},
	{0},
};

/* "<number>KB", "MB" or "GB": part of a file's name. */
static int oci_hugepage_check(struct json_ctx *ctx, void *hugepage)
{
	const char *s = ((struct oci_hugepage *)hugepage)->page_size;
	size_t digits = strspn(s, "0123456789"), old = json_enter(ctx, "pageSize");

	if (!digits || *s == '0' || !strchr("KMG", s[digits]) || !s[digits] ||
	    strcmp(s + digits + 1, "B") != 0)
		return json_fail(ctx, -EINVAL, "not a page size like 2MB: '%s'", s);
	json_leave(ctx, old);
	return 0;
}

static const struct json_field oci_network_fields[] = {
	{"classID", JSON_UNSUPPORTED, .reason = "cgroup v2 has no network classes"},
	{"priorities", JSON_UNSUPPORTED, .reason = "cgroup v2 has no network priorities"},
	{0},
};

static const struct json_field oci_raw_fields[] = {
	{"memory", JSON_OBJECT, .fields = oci_memory_fields},
	{"cpu", JSON_OBJECT, .fields = oci_cpu_fields},
	{"pids", JSON_OBJECT, .fields = oci_pids_fields},
	{"blockIO", JSON_OBJECT, .fields = oci_block_fields},
	{"hugepageLimits", JSON_ARRAY, AT(oci_raw, hugepages), NR(oci_raw, nr_hugepages),
	 .elem_len = sizeof(struct oci_hugepage), .max = OCI_HUGEPAGES_MAX,
	 .fields = oci_hugepage_fields, .post = oci_hugepage_check},
	{"network", JSON_OBJECT, .fields = oci_network_fields},
	{"rdma", JSON_UNSUPPORTED, .reason = "the guest has no RDMA devices"},
	{"unified", JSON_MAP, AT(oci_raw, unified), NR(oci_raw, nr_unified),
	 .max = OCI_CGROUP_FILES_MAX, .longest = OCI_STRING_MAX},
	{0},
};

/* First in the table, and required: also makes the defaults of the fields that may be absent. */
static int oci_access_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			   void *obj)
{
	const char *s = json_borrow_string(ctx, v, OCI_STRING_MAX);
	struct oci_device_rule *d = obj;

	if (!s)
		return -EINVAL;
	if (!*s || s[strspn(s, "rwm")])
		return json_fail(ctx, -EINVAL, "not some of the letters r, w and m: '%.64s'", s);
	*d = (struct oci_device_rule){
		.type = 'a',
		.major = -1,
		.minor = -1,
		.read = strchr(s, 'r'),
		.write = strchr(s, 'w'),
		.mknod = strchr(s, 'm'),
	};
	return 0;
}

static const struct json_word oci_rule_words[] = {{"a", 'a'}, {"b", 'b'}, {"c", 'c'}, {0}};

static const struct json_field oci_rule_fields[] = {
	{"access", JSON_CUSTOM, JSON_REQUIRED, .read = oci_access_read},
	{"allow", JSON_BOOL, AT(oci_device_rule, allow)},
	{"type", JSON_WORD, AT(oci_device_rule, type), .words = oci_rule_words},
	{"major", JSON_I64, AT(oci_device_rule, major), .min = -1, .max = UINT32_MAX},
	{"minor", JSON_I64, AT(oci_device_rule, minor), .min = -1, .max = UINT32_MAX},
	{0},
};

/* What goes into struct oci_resources as it is; the rest goes by way of struct oci_raw. */
static const struct json_field oci_check_fields[] = {
	{"checkBeforeUpdate", JSON_BOOL, AT(oci_resources, check_before_update)},
	{0},
};

static const struct json_field oci_plain_fields[] = {
	{"memory", JSON_OBJECT, .fields = oci_check_fields},
	{"devices", JSON_ARRAY, AT(oci_resources, device_rules), NR(oci_resources, nr_device_rules),
	 .elem_len = sizeof(struct oci_device_rule), .max = OCI_RULES_MAX,
	 .fields = oci_rule_fields},
	{0},
};

static void oci_raw_done(struct oci_raw *raw)
{
	json_fields_done(oci_raw_fields, raw);
}

int oci_resources_read(struct json_ctx *ctx, struct json_object *v, struct oci_resources *ret)
{
	cleanup(oci_raw_done) struct oci_raw raw = {0};
	int r = json_read_fields(ctx, oci_plain_fields, v, ret);

	if (r >= 0)
		r = json_read_fields(ctx, oci_raw_fields, v, &raw);
	return r < 0 ? r : oci_cgroup_files_make(ctx, &raw, ret);
}

static void oci_files_free(struct oci_cgroup_file *v, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		free(v[i].name);
		free(v[i].value);
	}
	free(v);
}

void oci_resources_done(struct oci_resources *r)
{
	json_fields_done(oci_plain_fields, r);
	oci_files_free(r->files, r->nr_files);
	oci_files_free(r->host_files, r->nr_host_files);
}
