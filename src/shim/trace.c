/*
 * How the VM came up, for people: one line in the log and <bundle>/harpoon/vm.json, once Create has been
 * answered. Times are milliseconds since the VM was asked for, except where the guest's own clock is meant.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "container.h"
#include "io.h"
#include "log.h"
#include "util.h"

#define TRACE_JSON_MAX 1024

static double trace_ms(uint64_t from_ns, uint64_t to_ns)
{
	return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* Fit for a JSON string: nothing in it needs more than to lose its quotes and control characters. */
static void trace_json_text(char *out, size_t len, const char *in)
{
	size_t n = 0;

	for (; *in && n + 1 < len; in++)
		out[n++] = *in == '"' || *in == '\\' || (unsigned char)*in < 0x20 ? '\'' : *in;
	out[n] = '\0';
}

void trace_boot(void *ctx)
{
	struct container *c = ctx;
	const struct hv_ready *t = &c->ready;
	const char *backend;
	struct hv_footprint mem = {0};
	struct hv_choice choice = {0};
	char json[TRACE_JSON_MAX], why[sizeof(choice.why)];
	double spawn, boot, guest_kernel, guest_init, total;
	int n;

	if (!c->vm)
		return;
	backend = hv_vm_backend(c->vm);
	hv_vm_footprint(c->vm, &mem, NULL);
	hv_choose_backend(&c->shim->config, &choice, NULL);
	trace_json_text(why, sizeof(why), choice.why);
	spawn = trace_ms(t->host_start_ns, t->host_spawn_ns);
	boot = trace_ms(t->host_start_ns, t->host_ready_ns);
	guest_kernel = t->is_clone ? 0 : trace_ms(0, t->guest_init_ns);
	guest_init = t->is_clone ? 0 : trace_ms(t->guest_init_ns, t->guest_ready_ns);
	total = trace_ms(c->create_ns, c->created_ns);
	log_info("shim",
		 "VM ready: %s backend=%s (%s) pid=%d spawn_ms=%.1f guest_kernel_ms=%.1f "
		 "agent_ms=%.1f "
		 "ready_ms=%.1f create_ms=%.1f pss_kib=%" PRIu64 " (vmm %" PRIu64 ", fs %" PRIu64
		 ")",
		 t->is_clone ? "clone" : "cold", backend, choice.why, (int)c->pid, spawn,
		 guest_kernel, guest_init, boot, total, mem.pss_bytes / 1024,
		 mem.vmm_pss_bytes / 1024, mem.fs_pss_bytes / 1024);
	n = snprintf(json, sizeof(json),
		     "{\n  \"id\": \"%s\",\n  \"backend\": \"%s\",\n  \"clone\": %s,\n  \"why\": "
		     "\"%s\",\n  \"pid\": %d,\n"
		     "  \"spawn_ms\": %.1f,\n  \"guest_kernel_ms\": %.1f,\n  \"agent_ms\": %.1f,\n"
		     "  \"ready_ms\": %.1f,\n  \"create_ms\": %.1f,\n  \"pss_kib\": %" PRIu64
		     ",\n  \"vmm_pss_kib\": %" PRIu64 ",\n  \"fs_pss_kib\": %" PRIu64 "\n}\n",
		     c->id, backend, t->is_clone ? "true" : "false", why, (int)c->pid, spawn,
		     guest_kernel, guest_init, boot, total, mem.pss_bytes / 1024,
		     mem.vmm_pss_bytes / 1024, mem.fs_pss_bytes / 1024);
	io_replace_file(c->state_fd, "vm.json", json, MIN((size_t)n, sizeof(json) - 1));
}
