/* From the fields of linux.resources to the files of cgroup v2. Private to src/oci. */
#pragma once

#include "spec.h"

#define OCI_CPU_PERIOD_DEFAULT 100000 /* the kernel's */

struct oci_disk {
	uint32_t major, minor;
	uint32_t weight, leaf_weight;
	uint64_t rate;
};

struct oci_hugepage {
	char *page_size;
	uint64_t limit;
};

struct oci_disks {
	struct oci_disk *v;
	size_t nr;
};

/* The fields as they are written; lives while oci_resources_read() runs. */
struct oci_raw {
	int64_t limit, reservation, swap;
	bool has_burst, has_idle, has_pids;
	uint64_t shares, burst, period;
	int64_t quota, idle, pids;
	char *cpus, *mems;
	uint32_t weight;
	struct oci_disks weights, read_bps, write_bps, read_iops, write_iops;
	struct oci_hugepage *hugepages;
	size_t nr_hugepages;
	struct json_pair *unified;
	size_t nr_unified;
};

/* One of the two lists of struct oci_resources. */
struct oci_files {
	struct oci_cgroup_file **v;
	size_t *nr;
};

int oci_file_add(struct json_ctx *ctx, struct oci_files l, const char *name, const char *fmt, ...)
	HARPOON_PRINTF(4, 5);

/* Fills files, host_files and the numbers of `ret`. */
int oci_cgroup_files_make(struct json_ctx *ctx, const struct oci_raw *raw,
			  struct oci_resources *ret);
/* `unified`, after all others. */
int oci_unified_convert(struct json_ctx *ctx, const struct oci_raw *raw, struct oci_resources *ret,
			struct oci_files guest, struct oci_files host);
