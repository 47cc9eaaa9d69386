/* What the parts of src/oci share: tables and the readers behind single fields. Private to src/oci. */
#pragma once

#include "json.h"
#include "oci.h"

#define OCI_MOUNTS_MAX 1024
#define OCI_MOUNT_OPTIONS_MAX 1024
#define OCI_DEVICES_MAX 4096
#define OCI_PATHS_MAX 1024
#define OCI_ID_MAPPINGS_MAX 340 /* the kernel's own limit for one map */
#define OCI_SYSCTLS_MAX 256
#define OCI_ANNOTATIONS_MAX 1024
#define OCI_HOOKS_MAX 256
#define OCI_ARGS_MAX 65536
#define OCI_GIDS_MAX 65536 /* NGROUPS_MAX */
#define OCI_CGROUP_FILES_MAX 1024

#define AT(type, member) .off = offsetof(struct type, member)
#define NR(type, member) .nr_off = offsetof(struct type, member)
#define HAS(type, member) .flags = JSON_HAS, .has_off = offsetof(struct type, member)

extern const struct json_field oci_process_fields[];
int oci_process_check(struct json_ctx *ctx, void *process);

/* linux.resources: obj is the struct oci_resources. */
int oci_resources_read(struct json_ctx *ctx, struct json_object *v, struct oci_resources *ret);
void oci_resources_done(struct oci_resources *r);

/* mounts[].options: obj is the struct oci_mount, its data is made. */
int oci_mount_options_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			   void *obj);
/* After all fields of a mount. */
int oci_mount_check(struct json_ctx *ctx, void *mount);
extern const struct json_word oci_propagation_words[];

/* One of process.capabilities.*: the uint64_t at f->off of obj. */
int oci_caps_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		  void *obj);
int oci_caps_check(struct json_ctx *ctx, void *caps);

/* linux.seccomp: obj is the struct oci_spec. */
int oci_seccomp_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		     void *obj);
void oci_seccomp_done(const struct json_field *f, void *obj);

/* linux.sysctl: brings the keys to the dotted form and refuses those that no namespace of the container holds. */
int oci_sysctls_check(struct json_ctx *ctx, struct oci_spec *s);
