/*
 * `harpoon boot`: boots a VM without any container, as the shim does, says where the time went, ends it.
 *
 * Phases, all on the host's clock: `spawn` until both processes run their programs, `vmm` until the guest
 * kernel's first console byte, `kernel` until the agent's first instruction, `agent` until its greeting
 * has arrived. The two clocks meet in one point only, the greeting; from there the guest's own duration of
 * the last phase is counted back. A clone has neither `kernel` nor `agent`: its guest goes on where the
 * template's stood. Then the agent is called once, about a container that does not exist, and answers.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "cli.h"
#include "hv.h"
#include "mux.h"
#include "rpc.h"

#define BOOT_RUNS_MAX 1000

enum boot_figure {
	BOOT_SPAWN_MS,
	BOOT_VMM_MS,
	BOOT_KERNEL_MS,
	BOOT_AGENT_MS,
	BOOT_TOTAL_MS,
	BOOT_ANSWER_MS,
	BOOT_CPU_MS,
	BOOT_PSS_MIB,
	BOOT_VMM_PSS_MIB,
	BOOT_FS_PSS_MIB,
	BOOT_FIGURE_MAX
};

static const struct {
	const char *key;  /* in JSON */
	const char *text; /* for people */
	const char *unit;
} boot_figures[] = {
	[BOOT_SPAWN_MS] = {"spawn_ms", "processes started", "ms"},
	[BOOT_VMM_MS] = {"vmm_ms", "VMM start until the guest kernel runs", "ms"},
	[BOOT_KERNEL_MS] = {"kernel_ms", "guest kernel until the agent runs", "ms"},
	[BOOT_AGENT_MS] = {"agent_ms", "agent until ready", "ms"},
	[BOOT_TOTAL_MS] = {"total_ms", "total", "ms"},
	[BOOT_ANSWER_MS] = {"answer_ms", "until the agent has answered a call", "ms"},
	[BOOT_CPU_MS] = {"vmm_cpu_ms", "processor time of the VMM until then", "ms"},
	[BOOT_PSS_MIB] = {"pss_mib", "memory (PSS) of the VM, all processes", "MiB"},
	[BOOT_VMM_PSS_MIB] = {"vmm_pss_mib", "  of it the VMM", "MiB"},
	[BOOT_FS_PSS_MIB] = {"fs_pss_mib", "  of it the file server", "MiB"},
};
_Static_assert(ARRAY_SIZE(boot_figures) == BOOT_FIGURE_MAX, "a name for every figure");

struct boot_result {
	double figure[BOOT_FIGURE_MAX];
	bool is_clone;
};

struct boot {
	struct loop *loop;
	struct hv_vm *vm;	  /* owned */
	struct rpc_client *agent; /* owned */
	struct boot_result result;
	uint64_t start_ns;
	bool ready, failed;
	struct err *err;
};

static double boot_ms(uint64_t from_ns, uint64_t to_ns)
{
	return ((double)to_ns - (double)from_ns) / 1e6;
}

/* What the boot cost, however busy the host is with other things. */
static double boot_cpu_ms(pid_t pid)
{
	struct timespec ts;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts))
		return 0;
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void boot_measure_memory(struct boot *b)
{
	double *f = b->result.figure;
	struct hv_footprint mem;

	if (hv_vm_footprint(b->vm, &mem, b->err)) {
		b->failed = true;
		return;
	}
	f[BOOT_PSS_MIB] = (double)mem.pss_bytes / (1 << 20);
	f[BOOT_VMM_PSS_MIB] = (double)mem.vmm_pss_bytes / (1 << 20);
	f[BOOT_FS_PSS_MIB] = (double)mem.fs_pss_bytes / (1 << 20);
}

/* There is no such container, and the agent is the one that knows. */
static void boot_on_answer(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			   const char *message)
{
	struct boot *b = ctx;

	if (code == RPC_CANCELED)
		return;
	b->result.figure[BOOT_ANSWER_MS] = boot_ms(b->start_ns, util_now_ns());
	b->result.figure[BOOT_CPU_MS] = boot_cpu_ms(hv_vm_pid(b->vm));
	if (code != RPC_NOT_FOUND) {
		b->failed = true;
		err_say(b->err, -EPROTO, "the agent answers: %s", code ? message : "(nothing)");
	}
	boot_measure_memory(b);
	hv_vm_kill(b->vm);
}

static int boot_call_agent(struct boot *b)
{
	Harpoon__Agent__V1__ProcessRef ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	char none[] = "none";
	struct rpc_request req = {
		.service = "harpoon.agent.v1.Agent", .method = "Pids", .request = &ref.base};
	int sv[2], r;

	ref.id = none;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return err_set(b->err, -errno, "socket pair for the agent");
	r = hv_vm_attach_stream(b->vm, MUX_STREAM_RPC, sv[1], sv[1], NULL, NULL, NULL, b->err);
	if (r) {
		close(sv[0]);
		return r;
	}
	b->agent = rpc_client_new(b->loop, sv[0], NULL, NULL);
	r = b->agent ? rpc_client_call(b->agent, &req, boot_on_answer, b) : -errno;
	return r ? err_set(b->err, r, "call the agent") : 0;
}

static void boot_on_ready(void *ctx, const struct hv_ready *t)
{
	struct boot *b = ctx;
	double *f = b->result.figure;

	/* The guest is not trusted with arithmetic: nonsense from it shows up as nonsense, no more. */
	f[BOOT_AGENT_MS] = t->is_clone ? 0 : boot_ms(t->guest_init_ns, t->guest_ready_ns);
	f[BOOT_SPAWN_MS] = boot_ms(t->host_start_ns, t->host_spawn_ns);
	f[BOOT_VMM_MS] = t->host_kernel_ns ? boot_ms(t->host_spawn_ns, t->host_kernel_ns) : 0;
	f[BOOT_TOTAL_MS] = boot_ms(t->host_start_ns, t->host_ready_ns);
	f[BOOT_KERNEL_MS] = f[BOOT_TOTAL_MS] - f[BOOT_SPAWN_MS] - f[BOOT_VMM_MS] - f[BOOT_AGENT_MS];
	b->result.is_clone = t->is_clone;
	b->ready = true;
	if (boot_call_agent(b)) {
		b->failed = true;
		hv_vm_kill(b->vm);
	}
}

static void boot_on_exit(void *ctx, const struct hv_exit *why)
{
	struct boot *b = ctx;

	if (!b->ready) {
		b->failed = true;
		err_say(b->err, -EIO, "%s", why->text);
	}
	loop_stop(b->loop);
}

static int boot_vm(struct boot *b, const struct hv_params *params)
{
	static const struct hv_callbacks cb = {.on_ready = boot_on_ready, .on_exit = boot_on_exit};
	int r;

	b->start_ns = util_now_ns();
	r = hv_vm_new(b->loop, params, &cb, b, &b->vm, b->err);

	if (!r)
		r = hv_vm_start(b->vm, b->err);
	if (!r)
		r = loop_run(b->loop);
	rpc_client_free(b->agent);
	hv_vm_free(b->vm);
	return !r && b->failed ? b->err->code : r;
}

static void boot_remove_dir(const char *path, int dir_fd)
{
	static const char *const files[] = {"processes", "console.log", "console.log.old"};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		unlinkat(dir_fd, files[i], 0);
	rmdir(path);
}

static int boot_once(const struct config *c, bool cold, struct boot_result *ret, struct err *err)
{
	char dir[] = "/tmp/harpoon-boot-XXXXXX";
	cleanup_close int dir_fd = -1;
	struct boot b = {.err = err};
	struct hv_params params = {.birth = cold ? HV_BIRTH_COLD : HV_BIRTH_AUTO,
				   .config = c,
				   .id = "boot",
				   .state_dir = dir,
				   .netns_fd = -1,
				   .nr_vcpus = c->vcpus,
				   .mem_bytes = (uint64_t)c->memory_mib << 20};
	int r;

	if (!mkdtemp(dir))
		return err_set(err, -errno, "create '%s'", dir);
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	b.loop = loop_new();
	if (dir_fd < 0 || !b.loop) {
		rmdir(dir);
		return err_set(err, -errno, "open '%s'", dir);
	}
	params.state_dir_fd = dir_fd;
	r = boot_vm(&b, &params);
	loop_free(b.loop);
	boot_remove_dir(dir, dir_fd);
	*ret = b.result;
	return r;
}

static int boot_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct boot_spread {
	double min, median, max;
};

static struct boot_spread boot_spread(const struct boot_result *runs, size_t nr, size_t figure)
{
	cleanup_free double *v = xcalloc(nr, sizeof(*v));

	for (size_t i = 0; i < nr; i++)
		v[i] = runs[i].figure[figure];
	qsort(v, nr, sizeof(*v), boot_compare);
	return (struct boot_spread){
		.min = v[0], .median = (v[(nr - 1) / 2] + v[nr / 2]) / 2, .max = v[nr - 1]};
}

static void boot_print_text(const struct config *c, const struct boot_result *runs, size_t nr)
{
	size_t clones = 0;

	for (size_t i = 0; i < nr; i++)
		clones += runs[i].is_clone;
	printf("%zu boots, %zu of them clones, %u vCPUs, %u MiB of memory\n\n", nr, clones,
	       c->vcpus, c->memory_mib);
	printf("%-40s %8s %8s %8s\n", "", "min", "median", "max");
	for (size_t i = 0; i < BOOT_FIGURE_MAX; i++) {
		struct boot_spread s = boot_spread(runs, nr, i);

		printf("%-40s %8.1f %8.1f %8.1f %s\n", boot_figures[i].text, s.min, s.median, s.max,
		       boot_figures[i].unit);
	}
}

static void boot_print_json(const struct config *c, const struct boot_result *runs, size_t nr)
{
	printf("{\"vcpus\": %u, \"memory_mib\": %u, \"median\": {", c->vcpus, c->memory_mib);
	for (size_t i = 0; i < BOOT_FIGURE_MAX; i++)
		printf("%s\"%s\": %.3f", i ? ", " : "", boot_figures[i].key,
		       boot_spread(runs, nr, i).median);
	printf("}, \"runs\": [");
	for (size_t run = 0; run < nr; run++) {
		printf("%s{\"clone\": %s", run ? ", " : "", runs[run].is_clone ? "true" : "false");
		for (size_t i = 0; i < BOOT_FIGURE_MAX; i++)
			printf(", \"%s\": %.3f", boot_figures[i].key, runs[run].figure[i]);
		printf("}");
	}
	printf("]}\n");
}

static int boot_all(const struct config *c, uint32_t nr, bool cold, bool json)
{
	cleanup_free struct boot_result *runs = xcalloc(nr, sizeof(*runs));
	struct err err = {0};

	for (uint32_t i = 0; i < nr; i++) {
		if (boot_once(c, cold, &runs[i], &err)) {
			fprintf(stderr, "harpoon boot: %s\n", err.msg);
			return CLI_FAILED;
		}
	}
	if (json)
		boot_print_json(c, runs, nr);
	else
		boot_print_text(c, runs, nr);
	return CLI_OK;
}

static int boot_run(const struct cli_command *cmd, int argc, char **argv)
{
	uint32_t runs = 1, vcpus = 0, memory_mib = 0, cold = 0, json = 0;
	const struct cli_option options[] = {
		{"runs", 'n', CLI_NUMBER, &runs, 1, BOOT_RUNS_MAX},
		{"vcpus", 0, CLI_NUMBER, &vcpus, 1, CONFIG_VCPUS_MAX},
		{"memory", 0, CLI_MEMORY, &memory_mib, 0, 0},
		{"cold", 0, CLI_FLAG, &cold, 0, 0},
		{"json", 0, CLI_FLAG, &json, 0, 0},
		{0},
	};
	struct config c;
	struct err err = {0};
	int r = cli_parse(cmd, options, argc, argv);

	if (r >= 0)
		return r;
	if (geteuid()) {
		fprintf(stderr, "harpoon boot: needs root, to confine what it starts\n");
		return CLI_FAILED;
	}
	if (config_load(&c, &err)) {
		fprintf(stderr, "harpoon boot: %s\n", err.msg);
		return CLI_FAILED;
	}
	c.vcpus = vcpus ? vcpus : c.vcpus;
	c.memory_mib = memory_mib ? memory_mib : c.memory_mib;
	log_init(STDERR_FILENO, MIN(c.log_level, LOG_LEVEL_WARN), NULL);
	r = boot_all(&c, runs, cold, json);
	config_done(&c);
	return r;
}

const struct cli_command cli_boot = {
	.name = "boot",
	.summary = "boot a VM without a container and say where the time went",
	.usage = "usage: harpoon boot [-n RUNS] [--vcpus N] [--memory SIZE] [--cold] [--json]\n"
		 "\n"
		 "Boots a VM as a container's would be, until its agent is ready, ends it, and "
		 "prints\n"
		 "how long each phase took and how much memory the VM had then. The VM has no "
		 "network\n"
		 "devices: its template is made by `harpoon template build --taps 0`.\n"
		 "\n"
		 "  -n, --runs RUNS   boot that many VMs, one after the other (1)\n"
		 "  --vcpus N         virtual CPUs (as configured)\n"
		 "  --memory SIZE     memory: MiB, or with a suffix, 512M, 2G (as configured)\n"
		 "  --cold            boot, also when there is a template to make a clone of\n"
		 "  --json            print JSON\n",
	.run = boot_run,
};
