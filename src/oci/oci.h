/*
 * config.json of the OCI runtime spec (1.2) as C: the fields harpoon uses, checked and with everything
 * that needs only the host's knowledge resolved (capability names to masks, rlimit names to numbers, mount
 * options to flags, seccomp to BPF). The bytes are hostile: size, depth, types, ranges, NULs and lengths are
 * bounded, and an error names the field ("process.args[3]: not a string"). JSON stops here.
 *
 * Unknown fields are ignored, as the spec demands. A field we know but cannot honour is an error
 * (-EOPNOTSUPP, naming it), never silently dropped; which ones: docs/differences.md.
 *
 * Ownership: everything hangs on the struct, oci_spec_free() frees it. Strings are NUL-terminated UTF-8
 * without inner NULs. Arrays of strings end in NULL and carry their number.
 */
#pragma once

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

#define OCI_CONFIG_MAX (16u << 20)
#define OCI_DEPTH_MAX 64

struct oci_strv {
	char **v; /* NULL-terminated */
	size_t nr;
};

struct oci_rlimit {
	uint32_t resource; /* RLIMIT_* */
	uint64_t soft, hard;
};

struct oci_caps {
	uint64_t bounding, effective, inheritable, permitted, ambient;
};

struct oci_process {
	struct oci_strv args, env;
	char *cwd;
	bool terminal;
	uint32_t console_width, console_height;
	uint32_t uid, gid;
	uint32_t *additional_gids;
	size_t nr_additional_gids;
	bool has_umask;
	uint32_t umask;
	bool has_caps; /* false: the field is absent = no capabilities, as runc */
	struct oci_caps caps;
	struct oci_rlimit *rlimits;
	size_t nr_rlimits;
	bool no_new_privileges;
	bool has_oom_score_adj;
	int32_t oom_score_adj;
};

struct oci_mount {
	char *destination, *type, *source;
	bool bind;		     /* type bind, or option bind/rbind */
	uint64_t flags;		     /* MS_* to set */
	uint64_t clear_flags;	     /* MS_* that an option cleared explicitly (rw, suid, ...) */
	uint64_t propagation;	     /* MS_SHARED | MS_REC, ... 0 = none given */
	uint64_t recursive_attr_set; /* MOUNT_ATTR_* of rro, rnosuid, ... */
	char *data;		     /* the remaining options, comma-joined, "" = none */
};

struct oci_device {
	char *path;
	uint32_t mode; /* S_IFCHR/S_IFBLK/S_IFIFO | permissions */
	uint32_t major, minor, uid, gid;
};

struct oci_namespace {
	int flag;   /* CLONE_NEW* */
	char *path; /* NULL = a new one */
};

struct oci_id_mapping {
	uint32_t container_id, host_id, size;
};

struct oci_sysctl {
	char *key, *value;
};

/* One cgroup v2 file to write, already translated from the spec's (v1-shaped) numbers. */
struct oci_cgroup_file {
	char *name, *value;
};

struct oci_resources {
	int64_t memory_limit;	       /* bytes, -1 = unlimited, 0 = not set */
	int64_t cpu_quota;	       /* us per period, <= 0 = no limit */
	uint64_t cpu_period;	       /* us */
	struct oci_cgroup_file *files; /* memory.max, cpu.max, cpu.weight, pids.max, ... */
	size_t nr_files;
};

struct oci_hook {
	char *path;
	struct oci_strv args, env;
	uint32_t timeout_s; /* 0 = none */
};

enum oci_hook_kind {
	OCI_HOOK_PRESTART,
	OCI_HOOK_CREATE_RUNTIME,
	OCI_HOOK_CREATE_CONTAINER,
	OCI_HOOK_START_CONTAINER,
	OCI_HOOK_POSTSTART,
	OCI_HOOK_POSTSTOP,
	OCI_HOOK_MAX
};

struct oci_hooks {
	struct oci_hook *v;
	size_t nr;
};

struct oci_annotation {
	char *key, *value;
};

struct oci_spec {
	char *version;
	char *root_path; /* as given: relative to the bundle or absolute */
	bool root_readonly;
	char *hostname, *domainname;
	bool has_process;
	struct oci_process process;
	struct oci_mount *mounts;
	size_t nr_mounts;
	struct oci_device *devices;
	size_t nr_devices;
	struct oci_namespace *namespaces;
	size_t nr_namespaces;
	struct oci_id_mapping *uid_mappings, *gid_mappings;
	size_t nr_uid_mappings, nr_gid_mappings;
	struct oci_sysctl *sysctls;
	size_t nr_sysctls;
	struct oci_strv masked_paths, readonly_paths;
	char *cgroups_path;
	struct oci_resources resources;
	uint64_t rootfs_propagation;
	struct sock_filter *seccomp; /* compiled for the guest's architecture, NULL = none */
	size_t nr_seccomp;
	uint32_t seccomp_flags; /* SECCOMP_FILTER_FLAG_* */
	struct oci_hooks hooks[OCI_HOOK_MAX];
	struct oci_annotation *annotations;
	size_t nr_annotations;
};

/* Parses a whole config.json. *ret is new and owned by the caller. */
int oci_spec_parse(const char *json, size_t len, struct oci_spec **ret, struct err *err);
void oci_spec_free(struct oci_spec *s);
/* Only the annotations and the process-independent head: what the manager's `start` needs. */
const char *oci_spec_annotation(const struct oci_spec *s, const char *key);
const struct oci_namespace *oci_spec_namespace(const struct oci_spec *s, int flag);

/* A process alone (Exec's spec). */
int oci_process_parse(const char *json, size_t len, struct oci_process **ret, struct err *err);
void oci_process_free(struct oci_process *p);
/* linux.resources alone (Update). */
int oci_resources_parse(const char *json, size_t len, struct oci_resources **ret, struct err *err);
void oci_resources_free(struct oci_resources *r);
