/*
 * The qemu backend: QEMU's microvm machine under TCG, in a jail, controlled by QMP.
 *
 * QEMU gets four descriptors and no name of anything: QMP, the guest's serial console, the byte channel
 * to the agent (a virtio-serial port), the vhost-user socket to harpoon-fs; and one of each network device and disk. It
 * dies with us.
 *
 * How it ended is told by three witnesses, the better ones first: QMP's SHUTDOWN event, the exit status,
 * and the console. A guest without ACPI can only reset, so a clean end is a reset that the kernel
 * announced ("reboot: Restarting system"); any other reset is a crash.
 *
 * Thread: the loop's.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "guest_ram.h"
#include "host_tsc.h"
#include "hv_internal.h"
#include "kernel_args.h"
#include "kernel_image.h"
#include "log.h"
#include "mux.h"
#include "qemu_args.h"
#include "qemu_internal.h"
#include "template_image.h"

#define QEMU_FILES_MAX 128
/* The vCPUs, the main loop, RCU, and a few workers. */
#define QEMU_THREADS_MAX(nr_vcpus) ((nr_vcpus) + 16)
/* QEMU's pool of threads that read and write disks has up to so many. */
#define QEMU_IO_THREADS 64

/* The pairs between us and QEMU; whatever is still here goes away with it. */
struct qemu_ends {
	int ours[QEMU_NR_FDS], theirs[QEMU_NR_FDS];
};

static void qemu_ends_done(struct qemu_ends *e)
{
	for (size_t i = 0; i < QEMU_NR_FDS; i++) {
		cleanup_closep(&e->ours[i]);
		cleanup_closep(&e->theirs[i]);
	}
}

static int qemu_ends_init(struct qemu_ends *e, int fs_fd, struct err *err)
{
	memset(e, 0xff, sizeof(*e)); /* -1 everywhere */
	for (size_t i = 0; i < QEMU_NR_FDS; i++) {
		int pair[2];

		if (i == QEMU_FD_FS - SPAWN_FD_FIRST)
			continue;
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			return err_set(err, -errno, "socketpair");
		e->ours[i] = pair[0];
		e->theirs[i] = pair[1];
	}
	e->theirs[QEMU_FD_FS - SPAWN_FD_FIRST] = fcntl(fs_fd, F_DUPFD_CLOEXEC, 0);
	if (e->theirs[QEMU_FD_FS - SPAWN_FD_FIRST] < 0)
		return err_set(err, -errno, "dup");
	return 0;
}

static void qemu_on_greeting(void *ctx, int major, int minor)
{
	struct qemu *q = ctx;

	q->greeted = true;
	log_dbg("hv", "QEMU %d.%d", major, minor);
	if (!qemu_version_runs(major, minor))
		log_warn("hv", "QEMU %d.%d is older than %d.%d, which is the oldest that was tried",
			 major, minor, QEMU_MIN_MAJOR, QEMU_MIN_MINOR);
	if (q->vm->tmpl)
		qemu_incoming(q);
}

static void qemu_on_event(void *ctx, const char *name, struct json_object *data)
{
	struct qemu *q = ctx;
	struct json_object *reason;

	log_dbg("hv", "QEMU event %s", name);
	if (!strcmp(name, "GUEST_PANICKED"))
		q->panicked = true;
	if (!strcmp(name, "SHUTDOWN") && json_object_object_get_ex(data, "reason", &reason))
		snprintf(q->reason, sizeof(q->reason), "%s", json_object_get_string(reason));
	qemu_migrate_event(q, name, data);
}

static void qemu_on_qmp_broken(void *ctx, int err)
{
	struct qemu *q = ctx;

	/* -EPIPE: QEMU is ending, which its pidfd tells. */
	if (err == -EPROTO)
		hv_end(q->vm, HV_EXIT_FAILED, "QEMU does not keep to its own protocol");
}

static int qemu_new(struct hv_vm *vm, struct err *err)
{
	struct qemu *q;

	if (vm->params.mem_bytes % QEMU_MEM_ALIGN)
		return err_say(err, -EINVAL, "memory must be whole MiB, not %llu bytes",
			       (unsigned long long)vm->params.mem_bytes);
	if (vm->params.nr_disks + vm->params.nr_nics > QEMU_TRANSPORTS - QEMU_TRANSPORTS_TAKEN)
		return err_say(err, -ENOSPC,
			       "%zu disks and %zu network devices: QEMU's microvm has room for %d "
			       "together (key 'nics' of harpoon.conf)",
			       vm->params.nr_disks, vm->params.nr_nics,
			       QEMU_TRANSPORTS - QEMU_TRANSPORTS_TAKEN);
	q = xcalloc(1, sizeof(*q));
	q->vm = vm;
	q->ram = (struct guest_ram){.mount_fd = -1, .fd = -1};
	host_tsc_start(&q->tsc);
	vm->backend = q;
	return 0;
}

static void qemu_free(struct hv_vm *vm)
{
	struct qemu *q = vm->backend;

	mux_free(vm->mux);
	vm->mux = NULL;
	if (!q)
		return;
	qmp_free(q->qmp);
	guest_ram_done(&q->ram);
	free(q);
	vm->backend = NULL;
}

static_assert(QEMU_NR_FDS + HV_NICS_MAX + HV_DISKS_MAX <= SPAWN_FDS_MAX,
	      "room for every descriptor");

/* The jailed QEMU is nobody: what it is to read must be readable by everybody. */
static int qemu_check_file(const char *key, const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st))
		return err_set(err, -errno,
			       "%s '%s' (key '%s' of harpoon.conf; `harpoon check` says more)", key,
			       path, key);
	if (!S_ISREG(st.st_mode))
		return err_say(err, -EINVAL, "%s '%s' is not a file", key, path);
	if (!(st.st_mode & S_IROTH))
		return err_say(err, -EACCES,
			       "%s '%s' is not readable by everyone, which the unprivileged QEMU "
			       "needs: chmod o+r",
			       key, path);
	return 0;
}

/* Folder that holds a QEMU installed outside of /usr: PREFIX for PREFIX/bin/qemu, else its own. */
static char *qemu_find_prefix(const char *binary)
{
	const char *slash = strrchr(binary, '/');
	size_t len = (size_t)(slash - binary);

	if (len >= 4 && !strncmp(binary + len - 4, "/bin", 4))
		len -= 4;
	return xstrndup(binary, len);
}

/* Guest memory is a file, and a disk may be. */
static uint64_t qemu_file_size_max(const struct hv_params *p)
{
	uint64_t max = hv_machine_bytes(p);

	for (size_t i = 0; i < p->nr_disks; i++) {
		struct stat st;

		if (!fstat(p->disks[i].fd, &st) && S_ISREG(st.st_mode))
			max = MAX(max, (uint64_t)st.st_size);
	}
	return max;
}

static int qemu_spawn(struct hv_vm *vm, const char *binary, char **argv, const int *fds,
		      struct err *err)
{
	const struct config *c = vm->params.config;
	const struct qemu *q = vm->backend;
	cleanup_free char *prefix = qemu_find_prefix(binary);
	struct spawn_bind binds[SPAWN_BINDS_MAX] = {
		{SPAWN_BIND_DIR, "/usr", "usr"},
		{SPAWN_BIND_LIB_DIR, "/lib", "lib"},
		{SPAWN_BIND_LIB_DIR, "/lib64", "lib64"},
		{SPAWN_BIND_FILE, c->kernel, "kernel"},
		{SPAWN_BIND_FILE, c->initrd, "initrd"},
		{SPAWN_BIND_MOUNT, "guest memory", GUEST_RAM_DIR, q->ram.mount_fd},
	};
	int all[QEMU_NR_FDS + HV_NICS_MAX + HV_DISKS_MAX];
	size_t nr = 6;

	if (!access("/etc/ld.so.cache", R_OK))
		binds[nr++] =
			(struct spawn_bind){SPAWN_BIND_FILE, "/etc/ld.so.cache", "etc/ld.so.cache"};
	if (strncmp(prefix, "/usr", 4) != 0 || (prefix[4] != '/' && prefix[4] != '\0')) {
		if (!prefix[0])
			return err_say(err, -EINVAL,
				       "QEMU in the root folder ('%s') cannot be used", binary);
		binds[nr++] = (struct spawn_bind){SPAWN_BIND_DIR, prefix, prefix + 1};
	}
	memcpy(all, fds, QEMU_NR_FDS * sizeof(*fds));
	for (size_t i = 0; i < vm->params.nr_nics; i++)
		all[QEMU_NR_FDS + i] = vm->params.nics[i].fd;
	for (size_t i = 0; i < vm->params.nr_disks; i++)
		all[QEMU_NR_FDS + vm->params.nr_nics + i] = vm->params.disks[i].fd;
	return child_start(
		&vm->vmm,
		&(struct spawn_params){
			.path = binary,
			.argv = argv,
			.fds = all,
			.nr_fds = QEMU_NR_FDS + vm->params.nr_nics + vm->params.nr_disks,
			.jail =
				&(struct spawn_jail){
					.netns_fd = vm->params.netns_fd,
					.binds = binds,
					.nr_binds = nr,
					.file_size_max = qemu_file_size_max(&vm->params),
					.nr_files_max = QEMU_FILES_MAX,
					.nr_threads_max =
						QEMU_THREADS_MAX(vm->params.nr_vcpus) +
						(vm->params.nr_disks ? QEMU_IO_THREADS : 0),
				},
		},
		err);
}

/* As a template, or as its clone: the two must be alike. */
static bool qemu_is_template(const struct hv_params *p, const struct template *t)
{
	return t || p->birth == HV_BIRTH_TEMPLATE;
}

static char **qemu_build_args(const struct hv_params *p, const char *binary, bool template,
			      bool incoming, uint32_t tsc_khz)
{
	cleanup_free char *cmdline = kernel_args_build(&(struct kernel_args){
		.template = template,
		.emulated = true,
		.nr_vcpus = p->nr_vcpus,
		.mem_bytes = p->mem_bytes,
		.machine_bytes = hv_machine_bytes(p),
		.tsc_khz = tsc_khz,
		.extra = p->config->kernel_args,
	});

	return qemu_args_build(&(struct qemu_args){
		.qemu = binary,
		.kernel = "/kernel",
		.initrd = "/initrd",
		.ram = "/" GUEST_RAM_DIR "/" GUEST_RAM_FILE,
		.kernel_args = cmdline,
		.id = p->id,
		.incoming = incoming,
		.nr_vcpus = p->nr_vcpus,
		.mem_bytes = hv_machine_bytes(p),
		.nics = p->nics,
		.nr_nics = p->nr_nics,
		.disks = p->disks,
		.nr_disks = p->nr_disks,
	});
}

static int qemu_find_binary(const struct config *c, char ret[PATH_MAX], struct err *err)
{
	if (realpath(c->qemu, ret))
		return 0;
	return err_set(err, -errno,
		       "QEMU '%s' (key 'qemu' of harpoon.conf; on Debian: apt-get install "
		       "qemu-system-x86)",
		       c->qemu);
}

static int qemu_exec(struct hv_vm *vm, const int *fds, struct err *err)
{
	const struct config *c = vm->params.config;
	struct qemu *q = vm->backend;
	char binary[PATH_MAX];
	char **argv;
	int r = qemu_check_file("kernel", c->kernel, err);

	if (!r)
		r = kernel_image_check(c->kernel, err);
	if (!r)
		r = qemu_check_file("initrd", c->initrd, err);
	if (!r)
		r = qemu_find_binary(c, binary, err);
	if (r)
		return r;
	/* A clone's guest knows already, and the second reading has time. */
	q->tsc_khz = vm->tmpl ? vm->tmpl->meta.tsc_khz : host_tsc_khz(&q->tsc);
	argv = qemu_build_args(&vm->params, binary, qemu_is_template(&vm->params, vm->tmpl),
			       vm->tmpl, q->tsc_khz);
	r = qemu_spawn(vm, binary, argv, fds, err);
	qemu_args_free(argv);
	return r;
}

/* Everything that QEMU itself is started with, save what differs from VM to VM by nature. */
static int qemu_describe(const struct hv_params *p, FILE *f, struct err *err)
{
	struct hv_params any = *p;
	char binary[PATH_MAX];
	struct stat st;
	char **argv;
	int r = qemu_find_binary(p->config, binary, err);

	if (r)
		return r;
	if (stat(binary, &st))
		return err_set(err, -errno, "QEMU '%s'", binary);
	fprintf(f, "qemu ino=%ju size=%jd mtime=%jd.%09ld ctime=%jd.%09ld\n", (uintmax_t)st.st_ino,
		(intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
		(intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
	any.id = "any";
	/* What is behind a disk does not shape the machine, only how many there are. */
	any.nr_disks = 0;
	if (p->nr_disks)
		fprintf(f, "disks %zu\n", p->nr_disks);
	argv = qemu_build_args(&any, binary, true, false, 0);
	for (char **a = argv; *a; a++)
		fprintf(f, "arg %s\n", *a);
	qemu_args_free(argv);
	return 0;
}

static int qemu_save_memory(struct hv_vm *vm, int memory_fd, struct err *err)
{
	const struct qemu *q = vm->backend;

	return template_image_write(q->ram.fd, q->ram.bytes, memory_fd, err);
}

static uint32_t qemu_tsc_khz(const struct hv_vm *vm)
{
	return ((const struct qemu *)vm->backend)->tsc_khz;
}

static int qemu_start(struct hv_vm *vm, int fs_fd, struct err *err)
{
	static const struct qmp_callbacks cb = {
		.on_greeting = qemu_on_greeting,
		.on_event = qemu_on_event,
		.on_broken = qemu_on_qmp_broken,
	};
	struct qemu *q = vm->backend;
	cleanup(qemu_ends_done) struct qemu_ends ends;
	int r = qemu_ends_init(&ends, fs_fd, err);

	if (!r)
		r = guest_ram_init(&q->ram, hv_machine_bytes(&vm->params), err);
	if (!r)
		r = qemu_exec(vm, ends.theirs, err);
	/* While QEMU starts. */
	if (!r && vm->tmpl)
		r = qemu_fill_memory(q, err);
	/* The jail has it now. We keep the file itself, in case the machine is to be saved. */
	cleanup_closep(&q->ram.mount_fd);
	if (r)
		return r;
	q->qmp = qmp_new(vm->loop, take_fd(&ends.ours[QEMU_FD_QMP - SPAWN_FD_FIRST]), &cb, q);
	if (!q->qmp)
		return err_set(err, -errno, "watch QEMU's control socket");
	r = console_new(vm->loop, take_fd(&ends.ours[QEMU_FD_CONSOLE - SPAWN_FD_FIRST]),
			vm->params.state_dir_fd, (size_t)vm->params.config->console_log_kib * 1024,
			&vm->console, err);
	if (r)
		return r;
	hv_mux_open(vm, take_fd(&ends.ours[QEMU_FD_AGENT - SPAWN_FD_FIRST]));
	return 0;
}

static void qemu_on_call_done(void *ctx, const char *error)
{
	struct qemu *q = ctx;

	if (error)
		hv_end(q->vm, HV_EXIT_FAILED, "QEMU refuses to stop or continue the guest: %.150s",
		       error);
}

static void qemu_on_stopped(void *ctx, const char *error)
{
	struct qemu *q = ctx;

	qemu_on_call_done(q, error);
	hv_paused(q->vm, error);
}

static int qemu_call(struct hv_vm *vm, const char *command, qmp_done_fn done, struct err *err)
{
	struct qemu *q = vm->backend;
	int r = q->greeted ? qmp_call(q->qmp, command, QEMU_CALL_TIMEOUT_MS, done, q) : -EAGAIN;

	return r ? err_set(err, r, "QEMU command '%s'", command) : 0;
}

static int qemu_pause(struct hv_vm *vm, struct err *err)
{
	return qemu_call(vm, "stop", qemu_on_stopped, err);
}

static int qemu_resume(struct hv_vm *vm, struct err *err)
{
	return qemu_call(vm, "cont", qemu_on_call_done, err);
}

/* No word from QMP: the status has to do. */
static void qemu_explain_status(const struct hv_vm *vm, struct hv_exit *ret)
{
	const struct qemu *q = vm->backend;
	char how[100];

	child_describe_exit(&vm->vmm, how, sizeof(how));
	ret->kind = HV_EXIT_FAILED;
	if (vm->vmm.status == 128 + SIGKILL || vm->vmm.status == 128 + SIGTERM)
		ret->kind = HV_EXIT_KILLED;
	if (q->greeted)
		snprintf(ret->text, sizeof(ret->text), "QEMU %s", how);
	else
		snprintf(ret->text, sizeof(ret->text),
			 "QEMU %s and never spoke QMP; is '%.100s' QEMU?", how,
			 vm->params.config->qemu);
}

static void qemu_explain_exit(struct hv_vm *vm, struct hv_exit *ret)
{
	struct qemu *q = vm->backend;

	qmp_drain(q->qmp);
	if (q->greeted &&
	    (q->panicked || !strcmp(q->reason, "guest-reset") ||
	     !strcmp(q->reason, "guest-panic") || (!q->reason[0] && vm->vmm.status == 0))) {
		hv_explain_reset(vm, ret);
	} else if (!strcmp(q->reason, "guest-shutdown")) {
		ret->kind = HV_EXIT_POWEROFF;
		snprintf(ret->text, sizeof(ret->text), "the guest powered itself off");
	} else if (!strncmp(q->reason, "host-", 5) && vm->vmm.status == 0) {
		ret->kind = HV_EXIT_KILLED;
		snprintf(ret->text, sizeof(ret->text), "QEMU was told to end (%s)", q->reason);
	} else {
		qemu_explain_status(vm, ret);
	}
}

const struct hv_ops hv_qemu_ops = {
	.name = "qemu",
	.fs_channel = FS_SERVER_VHOST_USER,
	.new = qemu_new,
	.start = qemu_start,
	.pause = qemu_pause,
	.resume = qemu_resume,
	.describe = qemu_describe,
	.save = qemu_save,
	.save_memory = qemu_save_memory,
	.tsc_khz = qemu_tsc_khz,
	.attach = hv_mux_attach,
	.detach = hv_mux_detach,
	.explain_exit = qemu_explain_exit,
	.free = qemu_free,
};
