/*
 * VMs as clones: which template, how its guest's words come again, and what happens when it goes wrong.
 *
 * A clone that fails in any way before its agent could answer is started once more, cold, with the same
 * shares and network devices; the template is set aside, unless it was not its fault. Whoever asked for
 * the VM notices a longer start and another pid.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "cpu_id.h"
#include "hv_internal.h"
#include "log.h"
#include "mux.h"

/* ---- what shapes a VM ---- */

/* Content is taken to be the same as long as nobody has touched the file. */
static int clone_describe_file(FILE *f, const char *what, const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st))
		return err_set(err, -errno, "%s '%s'", what, path);
	fprintf(f, "%s %s ino=%ju size=%jd mtime=%jd.%09ld ctime=%jd.%09ld\n", what, path,
		(uintmax_t)st.st_ino, (intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec,
		st.st_mtim.tv_nsec, (intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
	return 0;
}

int hv_describe(const struct hv_params *p, const struct hv_ops *ops, char **ret, struct err *err)
{
	const struct config *c = p->config;
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	int r;

	if (!f)
		abort();
	fprintf(f,
		"harpoon %s\nbackend %s\nvcpus %" PRIu32 "\nmemory_mib %" PRIu64
		"\nmachine_mib %" PRIu64 "\n",
		HARPOON_VERSION, ops->name, p->nr_vcpus, p->mem_bytes >> 20,
		hv_machine_bytes(p) >> 20);
	cpu_id_describe(f);
	r = clone_describe_file(f, "kernel", c->kernel, err);
	if (!r)
		r = clone_describe_file(f, "initrd", c->initrd, err);
	if (!r)
		r = clone_describe_file(f, "fs_server", c->fs_server, err);
	if (!r)
		r = ops->describe(p, f, err);
	fclose(f);
	if (r) {
		free(text);
		return r;
	}
	*ret = text;
	return 0;
}

/* ---- before the start ---- */

static void clone_keep_devices(struct hv_vm *vm)
{
	for (size_t i = 0; i < vm->params.nr_nics; i++) {
		vm->nics[i] = vm->params.nics[i];
		vm->nics[i].fd = fcntl(vm->params.nics[i].fd, F_DUPFD_CLOEXEC, 3);
	}
	for (size_t i = 0; i < vm->params.nr_disks; i++) {
		vm->disks[i] = vm->params.disks[i];
		vm->disks[i].fd = fcntl(vm->params.disks[i].fd, F_DUPFD_CLOEXEC, 3);
	}
}

static void clone_look_up_template(struct hv_vm *vm)
{
	const struct config *c = vm->params.config;
	struct err err = {0};
	int r;

	template_key(vm->shape, vm->key);
	r = template_open(c->template_dir, vm->key, &vm->tmpl, &err);
	if (!r) {
		clone_keep_devices(vm);
		return;
	}
	vm->wants_template = true;
	if (r == -ENOENT)
		return;
	log_warn("hv", "the VM boots instead of being cloned: %s", err.msg);
	template_set_aside(c->template_dir, vm->key);
}

int hv_clone_look_up(struct hv_vm *vm, struct err *err)
{
	struct err ignored = {0};

	for (size_t i = 0; i < vm->params.nr_nics; i++)
		*(vm->params.nics[i].kind == HV_NIC_TAP ? &vm->nr_taps : &vm->nr_streams) += 1;
	vm->nr_disks = (uint32_t)vm->params.nr_disks;
	/* What is missing the start itself complains about. */
	if (vm->ops->describe)
		hv_describe(&vm->params, vm->ops, &vm->shape, &ignored);
	if (vm->params.restore)
		return hv_checkpoint_take(vm, vm->params.restore, err);
	if (vm->shape && vm->params.birth == HV_BIRTH_AUTO &&
	    vm->params.config->templates != CONFIG_TEMPLATES_OFF)
		clone_look_up_template(vm);
	return 0;
}

/* ---- it runs ---- */

/* The greeting is among it; the VM may be gone afterwards. */
static void clone_on_runs(void *ctx)
{
	struct hv_vm *vm = ctx;

	/* Its agent waits for a word of its new host, and greets. */
	if (vm->is_restored)
		mux_restart(vm->mux);
	else if (mux_feed(vm->mux, vm->tmpl->channel, vm->tmpl->channel_len))
		hv_end(vm, HV_EXIT_FAILED, "what its template had sent is too long");
}

void hv_clone_runs(struct hv_vm *vm)
{
	if (!vm->tmpl || vm->falling_back || vm->is_ready || vm->state != HV_RUNNING)
		return;
	vm->ready.host_kernel_ns = util_now_ns();
	/* Not from inside the backend's callback. */
	loop_timer_arm(vm->loop, &vm->clone_timer, 0, clone_on_runs, vm);
}

void hv_clone_settle(struct hv_vm *vm)
{
	loop_timer_cancel(&vm->clone_timer);
	template_free(take_ptr(&vm->tmpl));
	for (size_t i = 0; i < HV_NICS_MAX; i++)
		cleanup_closep(&vm->nics[i].fd);
	for (size_t i = 0; i < HV_DISKS_MAX; i++)
		cleanup_closep(&vm->disks[i].fd);
	if (vm->is_ready)
		hv_share_free_all(vm);
}

/* ---- it does not ---- */

static int clone_start_cold(struct hv_vm *vm, struct err *err)
{
	int r;

	hv_drop_processes(vm);
	template_free(take_ptr(&vm->tmpl));
	vm->ready.host_kernel_ns = 0;
	vm->falling_back = false;
	vm->wants_template = true;
	hv_init_processes(vm);
	vm->params.nics = vm->nics;
	vm->params.disks = vm->disks;
	vm->params.nr_disks = vm->nr_disks;
	r = vm->ops->new (vm, err);
	if (!r)
		r = hv_start_all(vm, err);
	vm->params.nics = NULL;
	vm->params.disks = NULL;
	vm->params.nr_disks = 0;
	hv_clone_settle(vm);
	return r;
}

static void clone_on_fallback(void *ctx)
{
	struct hv_vm *vm = ctx;
	struct err err = {0};

	if (clone_start_cold(vm, &err))
		hv_end(vm, HV_EXIT_FAILED, "%s", err.msg);
}

bool hv_clone_falls_back(struct hv_vm *vm, enum hv_exit_kind kind, const char *why)
{
	const char *dir = vm->params.config->template_dir;

	if (vm->falling_back && kind != HV_EXIT_KILLED)
		return true;
	if (!vm->tmpl || vm->is_restored || vm->is_ready || kind == HV_EXIT_KILLED)
		return false;
	log_warn("hv", "the clone of template %s failed, the VM boots instead: %s", vm->key, why);
	template_set_aside(dir, vm->key);
	template_note_failure(dir, vm->key, why);
	vm->falling_back = true;
	child_kill(&vm->vmm);
	child_kill(&vm->fs.child);
	/* We may be inside a callback of what is to be freed. */
	loop_timer_arm(vm->loop, &vm->clone_timer, 0, clone_on_fallback, vm);
	return true;
}

int hv_clone_start_failed(struct hv_vm *vm, int error, struct err *err)
{
	log_warn("hv", "the VM boots instead of being cloned from template %s: %s", vm->key,
		 err->msg);
	/* Not its fault when, say, memory is short. */
	if (error == -EPROTO || error == -ESTALE)
		template_set_aside(vm->params.config->template_dir, vm->key);
	*err = (struct err){0};
	return clone_start_cold(vm, err);
}

void hv_record(struct hv_vm *vm, const void *data, size_t len)
{
	if (vm->record_len + len <= sizeof(vm->record))
		memcpy(vm->record + vm->record_len, data, len);
	vm->record_len += len;
}
