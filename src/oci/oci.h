/*
 * config.json of the OCI runtime spec (1.2) as C: the fields harpoon uses, checked and with everything
 * that needs only the host's knowledge resolved (capability names to masks, rlimit names to numbers, mount
 * options to flags, seccomp to BPF). The bytes are hostile: size, depth, types, ranges, NULs and lengths are
 * bounded, and an error names the field ("process.args[3]: not a string"). JSON stops here.
 *
 * Unknown fields are ignored, as the spec demands. A field we know but cannot honour is an error
 * (-EOPNOTSUPP, naming it), never silently dropped; which ones: docs/differences.md.
 *
 * Members of other platforms (windows, solaris, zos, freebsd) are ignored. null counts as absent, and so does
 * "" for an optional string.
 *
 * Ownership: everything hangs on the struct, oci_spec_free() frees it. Strings are NUL-terminated UTF-8
 * without inner NULs; absent ones are NULL unless said otherwise. Arrays of strings end in NULL and carry their
 * number; v may be NULL when nr is 0.
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
#define OCI_STRING_MAX 4095 /* a path, a name, a mount's source; bytes */
#define OCI_ARG_MAX 131071  /* one of process.args or env: what execve() takes */
#define OCI_ANNOTATION_MAX (256u << 10)

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

struct oci_scheduler {
	uint32_t policy; /* SCHED_* */
	int32_t nice, priority;
	uint64_t flags; /* SCHED_FLAG_* of sched_setattr(2) */
	uint64_t runtime_ns, deadline_ns, period_ns;
};

struct oci_io_priority {
	uint32_t class; /* IOPRIO_CLASS_* */
	uint32_t priority;
};

struct oci_process {
	struct oci_strv args; /* at least one */
	struct oci_strv
		env; /* each NAME=value; a name given twice is here once, with its last value */
	char *cwd;
	uint32_t *additional_gids;
	size_t nr_additional_gids;
	struct oci_rlimit *rlimits;
	size_t nr_rlimits;
	struct oci_caps caps; /* ambient is already cut to permitted & inheritable */
	struct oci_scheduler scheduler;
	struct oci_io_priority io_priority;
	uint32_t console_width, console_height;
	uint32_t uid, gid;
	uint32_t umask;
	int32_t oom_score_adj;
	bool terminal;
	bool no_new_privileges;
	bool has_umask, has_oom_score_adj, has_scheduler, has_io_priority;
	bool has_caps; /* false: the field is absent = no capabilities, as runc */
};

struct oci_mount {
	char *destination;	     /* absolute */
	char *type, *source;	     /* never NULL; a bind's source may be relative to the bundle */
	bool bind;		     /* type bind, or option bind/rbind; type is "bind" then */
	uint64_t flags;		     /* MS_* to set */
	uint64_t clear_flags;	     /* MS_* that an option cleared explicitly (rw, suid, ...) */
	uint64_t propagation;	     /* MS_SHARED | MS_REC, ... 0 = none given */
	uint64_t recursive_attr_set; /* MOUNT_ATTR_* of rro, rnosuid, ..., for mount_setattr(2) */
	uint64_t
		recursive_attr_clear; /* ... of rrw, rsuid, ...; MOUNT_ATTR__ATIME with any atime mode */
	bool copy_up;		      /* a tmpfs begins with what the image has there */
	char *data;		      /* the remaining options, comma-joined, never NULL */
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

/*
 * key: below /proc/sys in the dotted form. A dot inside a component (an interface's name) is a slash there:
 * the file's path is the key with '.' and '/' exchanged. No component is empty, "." or "..".
 */
struct oci_sysctl {
	char *key, *value;
};

struct oci_time_offset {
	uint32_t clock; /* CLOCK_MONOTONIC or CLOCK_BOOTTIME */
	int64_t secs;
	uint32_t nanosecs;
};

/* linux.resources.devices: one rule of the device cgroup, in order. */
struct oci_device_rule {
	bool allow;
	uint32_t type;	      /* 'a', 'b', 'c' */
	int64_t major, minor; /* -1 = all */
	bool read, write, mknod;
};

/* One cgroup v2 file to write, already translated from the spec's (v1-shaped) numbers. */
struct oci_cgroup_file {
	char *name, *value;
	bool optional; /* a kernel without this file enforces it anyway, or has nothing to enforce it on */
};

/*
 * `files` are for the container's cgroup in the guest. What names the host's CPUs, memory nodes and block
 * devices (cpuset.*, io.*) means nothing there: those are in `host_files`, for the cgroup of the VM's
 * processes on the host. Both are to be written in order.
 */
struct oci_resources {
	int64_t memory_limit;	       /* bytes, -1 = unlimited, 0 = not set */
	int64_t cpu_quota;	       /* us per period, <= 0 = no limit */
	uint64_t cpu_period;	       /* us; 0 = not set, and then there is no quota */
	uint64_t cpu_shares;	       /* 0 = not set */
	struct oci_cgroup_file *files; /* memory.max, cpu.max, cpu.weight, pids.max, ... */
	size_t nr_files;
	struct oci_cgroup_file *host_files;
	size_t nr_host_files;
	size_t nr_cpuset_cpus;	  /* how many CPUs cpuset.cpus names, 0 = not set */
	bool check_before_update; /* refuse a memory limit below what is used */
	struct oci_device_rule *device_rules;
	size_t nr_device_rules;
};

struct oci_hook {
	char *path; /* absolute */
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
	struct oci_time_offset *time_offsets;
	size_t nr_time_offsets;
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
/* NULL = not there. */
const char *oci_spec_annotation(const struct oci_spec *s, const char *key);
const struct oci_namespace *oci_spec_namespace(const struct oci_spec *s, int flag);

/* A process alone (Exec's spec). */
int oci_process_parse(const char *json, size_t len, struct oci_process **ret, struct err *err);
void oci_process_free(struct oci_process *p);
/* cpu.weight of cgroup v2 for the spec's CPU shares. */
uint64_t oci_cpu_weight(uint64_t shares);
/* linux.resources alone (Update). */
int oci_resources_parse(const char *json, size_t len, struct oci_resources **ret, struct err *err);
void oci_resources_free(struct oci_resources *r);
/* The i-th word that may stand among a mount's options, besides data for the file system; NULL = no more. */
const char *oci_mount_option_word(size_t i);
