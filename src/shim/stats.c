/*
 * Statistics; see stats.h. The files are "name value" lines or single values; one table says which number of
 * which file is which field.
 */
#include "stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "container.h"
#include "util.h"
#include "vmreq.h"

#define STATS_TYPE "io.containerd.cgroups.v2.Metrics"
/* containerd gives up after two seconds. */
#define STATS_LIMIT_NS 1800000000ull

struct stats_field {
	const char *file, *key; /* key NULL: the whole file is the value */
	size_t offset;
};

/* NOLINTBEGIN(bugprone-macro-parentheses): a member cannot be in parentheses */
#define STATS_KEY(f, part, name) \
	{ \
		(f), #name, offsetof(struct stats, part.name) \
	}
#define STATS_VALUE(f, part, name) \
	{ \
		(f), NULL, offsetof(struct stats, part.name) \
	}
/* NOLINTEND(bugprone-macro-parentheses) */

static const struct stats_field stats_fields[] = {
	STATS_VALUE("pids.current", pids, current),
	STATS_VALUE("pids.max", pids, limit),
	STATS_KEY("cpu.stat", cpu, usage_usec),
	STATS_KEY("cpu.stat", cpu, user_usec),
	STATS_KEY("cpu.stat", cpu, system_usec),
	STATS_KEY("cpu.stat", cpu, nr_periods),
	STATS_KEY("cpu.stat", cpu, nr_throttled),
	STATS_KEY("cpu.stat", cpu, throttled_usec),
	STATS_KEY("memory.stat", memory, anon),
	STATS_KEY("memory.stat", memory, file),
	STATS_KEY("memory.stat", memory, kernel_stack),
	STATS_KEY("memory.stat", memory, slab),
	STATS_KEY("memory.stat", memory, sock),
	STATS_KEY("memory.stat", memory, shmem),
	STATS_KEY("memory.stat", memory, file_mapped),
	STATS_KEY("memory.stat", memory, file_dirty),
	STATS_KEY("memory.stat", memory, file_writeback),
	STATS_KEY("memory.stat", memory, anon_thp),
	STATS_KEY("memory.stat", memory, inactive_anon),
	STATS_KEY("memory.stat", memory, active_anon),
	STATS_KEY("memory.stat", memory, inactive_file),
	STATS_KEY("memory.stat", memory, active_file),
	STATS_KEY("memory.stat", memory, unevictable),
	STATS_KEY("memory.stat", memory, slab_reclaimable),
	STATS_KEY("memory.stat", memory, slab_unreclaimable),
	STATS_KEY("memory.stat", memory, pgfault),
	STATS_KEY("memory.stat", memory, pgmajfault),
	STATS_KEY("memory.stat", memory, pgrefill),
	STATS_KEY("memory.stat", memory, pgscan),
	STATS_KEY("memory.stat", memory, pgsteal),
	STATS_KEY("memory.stat", memory, pgactivate),
	STATS_KEY("memory.stat", memory, pgdeactivate),
	STATS_KEY("memory.stat", memory, pglazyfree),
	STATS_KEY("memory.stat", memory, pglazyfreed),
	STATS_KEY("memory.stat", memory, thp_fault_alloc),
	STATS_KEY("memory.stat", memory, thp_collapse_alloc),
	STATS_VALUE("memory.current", memory, usage),
	STATS_VALUE("memory.max", memory, usage_limit),
	STATS_VALUE("memory.swap.current", memory, swap_usage),
	STATS_VALUE("memory.swap.max", memory, swap_limit),
	STATS_VALUE("memory.peak", memory, max_usage),
	STATS_KEY("memory.events", events, low),
	STATS_KEY("memory.events", events, high),
	STATS_KEY("memory.events", events, max),
	STATS_KEY("memory.events", events, oom),
	STATS_KEY("memory.events", events, oom_kill),
};

static uint64_t stats_number(const char *text)
{
	if (!strncmp(text, "max", 3))
		return UINT64_MAX;
	if (*text < '0' || *text > '9')
		return 0;
	return strtoull(text, NULL, 10);
}

/* The text behind "key " at the beginning of a line; NULL = no such line. */
static const char *stats_find(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && line[len] == ' ')
			return line + len + 1;
	}
	return NULL;
}

static const char *stats_file(const VMREQ_PB(StatsResponse) * r, const char *name)
{
	for (size_t i = 0; i < r->n_files; i++) {
		if (!strcmp(r->files[i]->name, name))
			return r->files[i]->value;
	}
	return NULL;
}

/*
 * Disks of the host, as far as it counts, and those of the guest: as with a loop device and the disk its file lies on.
 * The host need not know who wrote to a disk's image: its kernel may hold whoever used the file before to account.
 */
static void stats_fill_disks(struct stats *s, const char *guest, const struct hostcgroup *host)
{
	struct hostcgroup_io v[STATS_DISKS_MAX];
	size_t nr = hostcgroup_read_io(host, v, ARRAY_SIZE(v));

	nr = hostcgroup_add_io(guest, v, nr, ARRAY_SIZE(v));
	for (size_t i = 0; i < nr; i++) {
		s->disk[i] = (Ctrd__IOEntry)CTRD__IOENTRY__INIT;
		s->disk[i].major = v[i].major;
		s->disk[i].minor = v[i].minor;
		s->disk[i].rbytes = v[i].read_bytes;
		s->disk[i].wbytes = v[i].write_bytes;
		s->disk[i].rios = v[i].reads;
		s->disk[i].wios = v[i].writes;
		s->disks[i] = &s->disk[i];
	}
	s->io.usage = s->disks;
	s->io.n_usage = nr;
}

void stats_fill(struct stats *s, const VMREQ_PB(StatsResponse) * r, const struct hostcgroup *host)
{
	*s = (struct stats){.metrics = CTRD__METRICS__INIT,
			    .pids = CTRD__PIDS_STAT__INIT,
			    .cpu = CTRD__CPUSTAT__INIT,
			    .memory = CTRD__MEMORY_STAT__INIT,
			    .io = CTRD__IOSTAT__INIT,
			    .events = CTRD__MEMORY_EVENTS__INIT};
	for (size_t i = 0; i < ARRAY_SIZE(stats_fields); i++) {
		const struct stats_field *f = &stats_fields[i];
		const char *text = stats_file(r, f->file);
		uint64_t n;

		if (text && f->key)
			text = stats_find(text, f->key);
		n = text ? stats_number(text) : 0;
		memcpy((char *)s + f->offset, &n, sizeof(n));
	}
	/* A container without a limit of its own has the VM's. */
	if (!s->memory.usage_limit || s->memory.usage_limit == UINT64_MAX)
		s->memory.usage_limit = r->mem_total;
	/* 0 is "no limit" here, as in containerd's own reader of the file. */
	if (s->pids.limit == UINT64_MAX)
		s->pids.limit = 0;
	stats_fill_disks(s, stats_file(r, "io.stat"), host);
	s->metrics.pids = &s->pids;
	s->metrics.cpu = &s->cpu;
	s->metrics.memory = &s->memory;
	s->metrics.io = &s->io;
	s->metrics.memory_events = &s->events;
}

uint8_t *stats_pack(const VMREQ_PB(StatsResponse) * r, const struct hostcgroup *host,
		    size_t *ret_len)
{
	struct stats s;
	uint8_t *data;

	stats_fill(&s, r, host);
	*ret_len = ctrd__metrics__get_packed_size(&s.metrics);
	data = xmalloc(*ret_len);
	ctrd__metrics__pack(&s.metrics, data);
	return data;
}

static void stats_answer(struct rpc_call *call, uint8_t *data, size_t len)
{
	Ctrd__StatsResponse out = CTRD__STATS_RESPONSE__INIT;
	Ctrd__Any any = CTRD__ANY__INIT;
	static char type[] = STATS_TYPE;

	any.type_url = type;
	any.value.len = len;
	any.value.data = data;
	out.stats = &any;
	rpc_reply(call, &out.base);
}

struct stats_query {
	struct container *container; /* its agent answers before it goes */
	struct rpc_call *call;
};

static void stats_done(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		       const char *message)
{
	cleanup_free struct stats_query *q = ctx;
	struct rpc_call *call = q->call;
	cleanup_free uint8_t *data = NULL;
	size_t len;

	if (code != RPC_OK) {
		process_fail_call(call, code, message);
		return;
	}
	data = stats_pack((const void *)response, q->container->cgroup, &len);
	stats_answer(call, data, len);
}

void stats_request(struct container *c, struct rpc_call *call)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	struct stats_query *q;

	if (!c->agent || c->init.has_exited) {
		rpc_fail(call, RPC_NOT_FOUND, "cgroup does not exist: not found");
		return;
	}
	if (c->init.state == TASK_PAUSED) {
		if (c->metrics)
			stats_answer(call, c->metrics, c->metrics_len);
		else
			rpc_fail(call, RPC_UNAVAILABLE,
				 "the guest told no statistics when it was "
				 "paused");
		return;
	}
	ref.id = c->id;
	q = xcalloc(1, sizeof(*q));
	*q = (struct stats_query){c, call};
	agent_client_call(c->agent, AGENT_STATS, &ref.base,
			  MIN(container_call_timeout_ns(c), STATS_LIMIT_NS), stats_done, q);
}
