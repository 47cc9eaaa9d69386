/*
 * Numbers in the shape of cgroup v1 to files of cgroup v2.
 *
 * The conversions are runc's: memory+swap becomes swap alone, shares 2..262144 become a weight 1..10000 by
 * the curve that maps 1024 to 100, a block weight 10..1000 becomes one of 1..10000 linearly. -1 is "max".
 *
 * Two lists come out (oci.h): for the guest, and for the host what counts the host's CPUs, nodes and disks.
 */
#include "cgroup_files.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OCI_CGROUP_NAME_MAX 128
#define OCI_CGROUP_WRITES_MAX 8192

int oci_file_add(struct json_ctx *ctx, struct oci_files l, const char *name, const char *fmt, ...)
{
	struct oci_cgroup_file *p = *l.v;
	va_list ap;
	int n;

	if (*l.nr >= OCI_CGROUP_WRITES_MAX)
		return json_fail(ctx, -E2BIG, "more than %u writes to cgroup files",
				 OCI_CGROUP_WRITES_MAX);
	/* Grows at the powers of two. */
	if (!(*l.nr & (*l.nr - 1))) {
		p = reallocarray(p, *l.nr ? *l.nr * 2 : 1, sizeof(*p));
		if (!p)
			return json_fail(ctx, -ENOMEM, "out of memory");
		*l.v = p;
	}
	p += *l.nr;
	*p = (struct oci_cgroup_file){.name = strdup(name)};
	va_start(ap, fmt);
	n = vasprintf(&p->value, fmt, ap);
	va_end(ap);
	if (!p->name || n < 0) {
		free(p->name);
		return json_fail(ctx, -ENOMEM, "out of memory");
	}
	(*l.nr)++;
	return 0;
}

static void oci_file_set_optional(struct oci_files l)
{
	(*l.v)[*l.nr - 1].optional = true;
}

/* "max" for -1; nothing at all for 0, which means "not set" everywhere in memory. */
static int oci_limit_add(struct json_ctx *ctx, struct oci_files l, const char *name, int64_t n)
{
	if (!n)
		return 0;
	if (n < 0)
		return oci_file_add(ctx, l, name, "max");
	return oci_file_add(ctx, l, name, "%" PRId64, n);
}

/* memory.swap counts memory and swap together, memory.swap.max swap alone. */
static int oci_swap_convert(struct json_ctx *ctx, const struct oci_raw *raw, struct oci_files guest)
{
	int64_t swap = raw->swap;
	size_t old;
	int r;

	if (!swap && raw->limit != -1)
		return 0;
	old = json_enter(ctx, "memory.swap");
	if (swap > 0 && !raw->limit)
		return json_fail(ctx, -EINVAL, "set without memory.limit");
	if (swap > 0 && swap < raw->limit)
		return json_fail(ctx, -EINVAL, "below memory.limit, which it includes");
	if (swap <= 0)
		r = oci_file_add(ctx, guest, "memory.swap.max", "max");
	else
		r = oci_file_add(ctx, guest, "memory.swap.max", "%" PRId64,
				 raw->limit > 0 ? swap - raw->limit : swap);
	if (r < 0)
		return r;
	/* A kernel without swap has no such file, and no swap to limit. */
	oci_file_set_optional(guest);
	json_leave(ctx, old);
	return 0;
}

static int oci_memory_convert(struct json_ctx *ctx, const struct oci_raw *raw,
			      struct oci_resources *ret, struct oci_files guest)
{
	int r = oci_swap_convert(ctx, raw, guest);

	ret->memory_limit = raw->limit;
	if (r >= 0)
		r = oci_limit_add(ctx, guest, "memory.max", raw->limit);
	if (r >= 0)
		r = oci_limit_add(ctx, guest, "memory.low", raw->reservation);
	return r;
}

uint64_t oci_cpu_weight(uint64_t shares)
{
	double l;

	if (shares <= 2)
		return 1;
	if (shares >= 262144)
		return 10000;
	l = log2((double)shares);
	return (uint64_t)ceil(pow(10, (l * l + 125 * l) / 612.0 - 7.0 / 34.0));
}

static int oci_cpu_check(struct json_ctx *ctx, const struct oci_raw *raw)
{
	size_t old = json_enter(ctx, "cpu");

	if (raw->period && (raw->period < 1000 || raw->period > 1000000))
		return json_fail(ctx, -ERANGE, "period not between 1000 and 1000000 microseconds");
	if (raw->quota > 0 && raw->quota < 1000)
		return json_fail(ctx, -ERANGE, "quota below 1000 microseconds");
	if (raw->quota > 0 && raw->burst > (uint64_t)raw->quota)
		return json_fail(ctx, -EINVAL, "burst above quota");
	if (raw->idle < 0 || raw->idle > 1)
		return json_fail(ctx, -ERANGE, "idle not 0 or 1");
	json_leave(ctx, old);
	return 0;
}

/* The kernel refuses a weight for an idle group, where it would count for nothing anyway. */
static int oci_weight_convert(struct json_ctx *ctx, const struct oci_raw *raw,
			      struct oci_files guest)
{
	if (raw->has_idle) {
		int r = oci_file_add(ctx, guest, "cpu.idle", "%" PRId64, raw->idle);

		if (r < 0)
			return r;
	}
	if (!raw->shares || raw->idle)
		return 0;
	return oci_file_add(ctx, guest, "cpu.weight", "%" PRIu64, oci_cpu_weight(raw->shares));
}

static int oci_quota_convert(struct json_ctx *ctx, const struct oci_raw *raw,
			     struct oci_files guest)
{
	uint64_t period = raw->period ? raw->period : OCI_CPU_PERIOD_DEFAULT;
	int r = 0;

	if (!raw->quota && !raw->period)
		return 0;
	if (raw->quota > 0)
		r = oci_file_add(ctx, guest, "cpu.max", "%" PRId64 " %" PRIu64, raw->quota, period);
	else
		r = oci_file_add(ctx, guest, "cpu.max", "max %" PRIu64, period);
	return r;
}

static int oci_cpu_convert(struct json_ctx *ctx, const struct oci_raw *raw,
			   struct oci_resources *ret, struct oci_files guest)
{
	int r = oci_cpu_check(ctx, raw);

	ret->cpu_shares = raw->shares;
	ret->cpu_quota = raw->quota;
	ret->cpu_period = raw->period || raw->quota <= 0 ? raw->period : OCI_CPU_PERIOD_DEFAULT;
	if (r >= 0)
		r = oci_weight_convert(ctx, raw, guest);
	/* No quota may be below the burst, so an old burst goes first. */
	if (r >= 0 && raw->has_burst)
		r = oci_file_add(ctx, guest, "cpu.max.burst", "0");
	if (r >= 0)
		r = oci_quota_convert(ctx, raw, guest);
	if (r >= 0 && raw->has_burst && raw->burst)
		r = oci_file_add(ctx, guest, "cpu.max.burst", "%" PRIu64, raw->burst);
	return r;
}

/* Every process of the container is counted, so 0 cannot mean 0: 1 is as good, as runc has it. */
static int oci_pids_convert(struct json_ctx *ctx, const struct oci_raw *raw, struct oci_files guest)
{
	if (!raw->has_pids)
		return 0;
	return oci_limit_add(ctx, guest, "pids.max", raw->pids ? raw->pids : 1);
}

static int oci_hugepages_convert(struct json_ctx *ctx, const struct oci_raw *raw,
				 struct oci_files guest)
{
	static const char *const suffixes[] = {"max", "rsvd.max"};

	for (size_t i = 0; i < raw->nr_hugepages * ARRAY_SIZE(suffixes); i++) {
		const struct oci_hugepage *h = &raw->hugepages[i / ARRAY_SIZE(suffixes)];
		size_t suffix = i % ARRAY_SIZE(suffixes);
		char name[OCI_CGROUP_NAME_MAX];
		int r;

		snprintf(name, sizeof(name), "hugetlb.%s.%s", h->page_size, suffixes[suffix]);
		r = oci_file_add(ctx, guest, name, "%" PRIu64, h->limit);
		if (r < 0)
			return r;
		/* Kubernetes sends a 0 for each page size of the host; the guest may lack the size. */
		if (suffix || !h->limit)
			oci_file_set_optional(guest);
	}
	return 0;
}

#define OCI_CPUS_MAX 8192

/* "0-3,7". Counts what it names, 0 = not such a list. */
static size_t oci_cpu_list_count(const char *s)
{
	uint8_t seen[OCI_CPUS_MAX / 8] = {0};
	size_t n = 0;

	for (;;) {
		unsigned long first, last;
		char *end;

		if (*s < '0' || *s > '9')
			return 0;
		first = last = strtoul(s, &end, 10);
		s = end;
		if (s[0] == '-' && s[1] >= '0' && s[1] <= '9') {
			last = strtoul(s + 1, &end, 10);
			s = end;
		}
		if (first > last || last >= OCI_CPUS_MAX)
			return 0;
		for (; first <= last; first++) {
			n += !(seen[first / 8] & (1u << first % 8));
			seen[first / 8] |= (uint8_t)(1u << first % 8);
		}
		if (!*s)
			return n;
		if (*s++ != ',')
			return 0;
	}
}

static int oci_cpuset_convert(struct json_ctx *ctx, const char *field, const char *file,
			      const char *list, size_t *ret_nr, struct oci_files host)
{
	size_t old;
	int r;

	if (!list)
		return 0;
	old = json_enter(ctx, field);
	*ret_nr = oci_cpu_list_count(list);
	if (!*ret_nr)
		return json_fail(ctx, -EINVAL, "not a list like 0-3,7: '%.64s'", list);
	r = oci_file_add(ctx, host, file, "%s", list);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	return 0;
}

/* 10..1000 to 1..10000; the caller has looked at the lower end. */
static uint64_t oci_io_weight(uint32_t weight)
{
	return 1 + ((uint64_t)weight - 10) * 9999 / 990;
}

static int oci_io_weights_convert(struct json_ctx *ctx, const struct oci_raw *raw,
				  struct oci_files host)
{
	size_t old = json_enter(ctx, "blockIO");
	int r;

	/* Disks' schedulers differ in having weights: they are a wish, not a limit. */
	for (size_t i = 0; i <= raw->weights.nr; i++) {
		const struct oci_disk *d = i ? &raw->weights.v[i - 1] : NULL;
		uint32_t weight = d ? d->weight : raw->weight;

		if (!weight)
			continue;
		if (weight < 10)
			return json_fail(ctx, -ERANGE, "a weight not between 10 and 1000");
		if (d)
			r = oci_file_add(ctx, host, "io.weight", "%u:%u %" PRIu64, d->major,
					 d->minor, oci_io_weight(weight));
		else
			r = oci_file_add(ctx, host, "io.weight", "%" PRIu64, oci_io_weight(weight));
		if (r < 0)
			return r;
		oci_file_set_optional(host);
	}
	json_leave(ctx, old);
	return 0;
}

static int oci_throttle_convert(struct json_ctx *ctx, const struct oci_disks *disks,
				const char *word, struct oci_files host)
{
	for (size_t i = 0; i < disks->nr; i++) {
		const struct oci_disk *d = &disks->v[i];
		int r;

		if (d->rate)
			r = oci_file_add(ctx, host, "io.max", "%u:%u %s=%" PRIu64, d->major,
					 d->minor, word, d->rate);
		else
			r = oci_file_add(ctx, host, "io.max", "%u:%u %s=max", d->major, d->minor,
					 word);
		if (r < 0)
			return r;
	}
	return 0;
}

static int oci_io_convert(struct json_ctx *ctx, const struct oci_raw *raw, struct oci_files host)
{
	int r = oci_io_weights_convert(ctx, raw, host);

	if (r >= 0)
		r = oci_throttle_convert(ctx, &raw->read_bps, "rbps", host);
	if (r >= 0)
		r = oci_throttle_convert(ctx, &raw->write_bps, "wbps", host);
	if (r >= 0)
		r = oci_throttle_convert(ctx, &raw->read_iops, "riops", host);
	if (r >= 0)
		r = oci_throttle_convert(ctx, &raw->write_iops, "wiops", host);
	return r;
}

int oci_cgroup_files_make(struct json_ctx *ctx, const struct oci_raw *raw,
			  struct oci_resources *ret)
{
	struct oci_files guest = {&ret->files, &ret->nr_files};
	struct oci_files host = {&ret->host_files, &ret->nr_host_files};
	size_t nr_mems;
	int r = oci_pids_convert(ctx, raw, guest);

	if (r >= 0)
		r = oci_memory_convert(ctx, raw, ret, guest);
	if (r >= 0)
		r = oci_cpu_convert(ctx, raw, ret, guest);
	if (r >= 0)
		r = oci_hugepages_convert(ctx, raw, guest);
	if (r >= 0)
		r = oci_cpuset_convert(ctx, "cpu.cpus", "cpuset.cpus", raw->cpus,
				       &ret->nr_cpuset_cpus, host);
	if (r >= 0)
		r = oci_cpuset_convert(ctx, "cpu.mems", "cpuset.mems", raw->mems, &nr_mems, host);
	if (r >= 0)
		r = oci_io_convert(ctx, raw, host);
	return r < 0 ? r : oci_unified_convert(ctx, raw, ret, guest, host);
}
