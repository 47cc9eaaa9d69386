/*
 * The agent in a virtual machine, through the hv layer: the real kernel, initrd and file server. One
 * machine serves all tests of the program, booted by the first; it ends with the process (its children die
 * with their parent). Which kernel, initrd and programs: harpoon.conf, by HARPOON_CONFIG.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent_harness.h"
#include "cleanup.h"
#include "hv.h"

#define VM_PATIENCE_NS (60ull * 1000000000)

static struct vm {
	struct harness tree; /* loop, base, root, fs */
	struct config config;
	struct hv_vm *hv;
	int state_fd;
	struct rpc_client *client;
	bool is_ready, is_over;
	char why[ERR_MSG_MAX];
} vm;

static void vm_on_ready(void *ctx, const struct hv_ready *ready)
{
	vm.is_ready = true;
	print_message("# guest: init after %llu us, ready after %llu us\n",
		      (unsigned long long)ready->guest_init_ns / 1000,
		      (unsigned long long)ready->guest_ready_ns / 1000);
}

static void vm_on_exit(void *ctx, const struct hv_exit *why)
{
	vm.is_over = true;
	snprintf(vm.why, sizeof(vm.why), "%s", why->text);
}

static const struct hv_callbacks vm_callbacks = {.on_ready = vm_on_ready, .on_exit = vm_on_exit};

static void vm_remove(void)
{
	char cmd[200];

	rpc_client_free(vm.client);
	hv_vm_free(vm.hv);
	snprintf(cmd, sizeof(cmd), "rm -rf --one-file-system %s", vm.tree.base);
	if (system(cmd)) /* NOLINT(cert-env33-c) */
		fprintf(stderr, "%s failed\n", cmd);
}

static void vm_boot(void)
{
	struct hv_params params = {
		.id = "test-agent", .netns_fd = -1, .nr_vcpus = 1, .mem_bytes = 256u << 20};
	uint64_t end = util_now_ns() + VM_PATIENCE_NS;
	struct err err = {0};
	char state[96];

	vm.tree.loop = loop_new();
	harness_make_tree(&vm.tree);
	atexit(vm_remove);
	snprintf(state, sizeof(state), "%s/state", vm.tree.base);
	assert_int_equal(mkdir(state, 0700), 0);
	vm.state_fd = open(state, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	params.config = &vm.config;
	params.state_dir_fd = vm.state_fd;
	params.state_dir = state;
	if (hv_vm_new(vm.tree.loop, &params, &vm_callbacks, NULL, &vm.hv, &err) ||
	    hv_vm_start(vm.hv, &err))
		fail_msg("%s", err.msg);
	while (!vm.is_ready && !vm.is_over && util_now_ns() < end)
		assert_int_equal(loop_run_once(vm.tree.loop, 1000), 0);
	if (!vm.is_ready)
		fail_msg("the guest did not come up: %s", vm.why);
	harness_backend_share(&vm.tree, "root");
}

bool harness_backend_check(const char **ret_why)
{
	struct err err = {0};

	*ret_why = vm.why;
	if (config_load(&vm.config, &err))
		snprintf(vm.why, sizeof(vm.why), "%s", err.msg);
	else if (access(vm.config.kernel, R_OK) || access(vm.config.initrd, R_OK))
		snprintf(vm.why, sizeof(vm.why), "no guest kernel and initrd were built");
	else
		return true;
	return false;
}

bool harness_backend_has_limits(void)
{
	return true;
}

void harness_backend_start(struct harness *h)
{
	if (vm.is_over)
		fail_msg("the guest is gone: %s", vm.why);
	if (!vm.hv)
		vm_boot();
	h->loop = vm.tree.loop;
	memcpy(h->base, vm.tree.base, sizeof(h->base));
	memcpy(h->root, vm.tree.root, sizeof(h->root));
	memcpy(h->fs, vm.tree.fs, sizeof(h->fs));
}

struct rpc_client *harness_backend_client(struct harness *h)
{
	int pair[2];

	if (!vm.client) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		harness_backend_attach(h, MUX_STREAM_RPC, pair[0], pair[0]);
		vm.client = rpc_client_new(h->loop, pair[1], NULL, NULL);
	}
	return vm.client;
}

void harness_backend_attach(struct harness *h, uint32_t id, int rfd, int wfd)
{
	struct err err = {0};

	if (hv_vm_attach_stream(vm.hv, id, rfd, wfd, NULL, NULL, NULL, &err))
		fail_msg("stream %u: %s", id, err.msg);
}

void harness_backend_share(struct harness *h, const char *name)
{
	struct err err = {0};
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", h->fs, name);
	fd = open(path, O_PATH | O_CLOEXEC);
	assert_true(fd >= 0);
	if (hv_vm_share(vm.hv, name, fd, false, &err))
		fail_msg("share %s: %s", name, err.msg);
}

/* The machine goes on; its containers must not. */
void harness_backend_stop(struct harness *h)
{
	static const char *const ids[] = {"c1", "c2"};
	struct harness_answer a;

	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		harness_ref(h, &a, "Delete", ids[i], "");
		harness_answer_done(&a);
	}
}
