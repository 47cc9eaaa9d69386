/*
 * Making a template: a VM boots with nothing in it, its agent prepares all it can and greets, and the machine
 * is saved. On a loop of its own in the caller's process; the processes of the VM are children as ever.
 *
 *   lock -> boot -> greeting -> state saved, guest stands still -> memory, channel -> hashes -> name
 *
 * Whatever happens before the last step leaves no trace but a note of the failure, which keeps the next
 * starts from trying the same again for a while.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "hv_internal.h"
#include "io.h"
#include "log.h"
#include "mux_frame.h"

#define BUILD_DISK_BYTES (1 << 20)

struct build {
	struct loop *loop;
	struct hv_vm *vm; /* owned */
	char key[TEMPLATE_KEY_LEN + 1];
	struct template_new new;
	int memory_fd; /* owned, -1 = not made yet */
	struct template_meta meta;
	const char *shape;
	bool done;
	struct err *err;
};

static void build_fail(struct build *b, int code, const char *why)
{
	if (!b->err->code && !b->done)
		err_say(b->err, code, "%s", why);
	loop_stop(b->loop);
}

/* A part of a frame would be lost: the other part is still in the guest. */
static int build_check_channel(const struct hv_vm *vm)
{
	size_t at = 0;

	if (vm->record_len > sizeof(vm->record))
		return -E2BIG;
	/* The greeting itself, which was looked at when it came. */
	if (!vm->mux)
		return 0;
	while (vm->record_len - at >= MUX_HEADER_LEN) {
		struct mux_frame f;

		if (mux_frame_decode(vm->record + at, &f) ||
		    vm->record_len - at < MUX_HEADER_LEN + (size_t)f.len)
			return -EPROTO;
		at += MUX_HEADER_LEN + (size_t)f.len;
	}
	return at == vm->record_len ? 0 : -EPROTO;
}

static int build_write_rest(struct build *b)
{
	const struct hv_ops *ops = b->vm->ops;
	struct stat st;
	int r = ops->save_memory ? ops->save_memory(b->vm, b->memory_fd, b->err) : 0;

	if (r)
		return r;
	r = build_check_channel(b->vm);
	if (!r)
		r = io_write_file(b->new.fd, "channel", b->vm->record, b->vm->record_len);
	if (r || fstat(b->memory_fd, &st))
		return err_set(b->err, r ? r : -errno, "keep what the guest has sent");
	log_info("template", "template %s: %u vCPUs, %u MiB, of which %llu KiB are used", b->key,
		 b->meta.nr_vcpus, b->meta.mem_mib, (unsigned long long)st.st_blocks / 2);
	b->meta.tsc_khz = b->vm->ops->tsc_khz(b->vm);
	b->meta.created = time(NULL);
	/* Of the VM that is about to end. */
	unlinkat(b->new.fd, PROCS_FILE, 0);
	unlinkat(b->new.fd, "console.log", 0);
	return template_new_commit(&b->new, &b->meta, b->shape, b->err);
}

static void build_on_saved(void *ctx, const char *error)
{
	struct build *b = ctx;

	if (error)
		build_fail(b, -EIO, error);
	else if (!build_write_rest(b))
		b->done = true;
	loop_stop(b->loop);
}

static void build_on_ready(void *ctx, const struct hv_ready *ready)
{
	struct build *b = ctx;
	cleanup_close int fd =
		openat(b->new.fd, "state", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	b->memory_fd = openat(b->new.fd, "memory", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || b->memory_fd < 0)
		err_set(b->err, -errno, "create its files 'state' and 'memory'");
	else
		b->vm->ops->save(b->vm, fd, b->memory_fd, build_on_saved, b, b->err);
	if (b->err->code)
		loop_stop(b->loop);
}

static void build_on_exit(void *ctx, const struct hv_exit *why)
{
	build_fail(ctx, -EIO, why->text);
}

static int build_run(struct build *b, struct hv_params *params)
{
	static const struct hv_callbacks cb = {.on_ready = build_on_ready,
					       .on_exit = build_on_exit};
	int r;

	params->state_dir = b->new.dir;
	params->state_dir_fd = b->new.fd;
	b->loop = loop_new();
	if (!b->loop)
		return err_set(b->err, -errno, "make an event loop");
	r = hv_vm_new(b->loop, params, &cb, b, &b->vm, b->err);
	if (!r)
		r = hv_vm_start(b->vm, b->err);
	if (!r)
		r = loop_run(b->loop);
	hv_vm_free(b->vm);
	loop_free(b->loop);
	return r ? r : b->err->code;
}

/* There was one in the meantime? */
static bool build_is_there(const struct config *c, const char *key)
{
	cleanup(template_freep) struct template *t = NULL;
	struct err err = {0};

	return !template_open(c->template_dir, key, &t, &err);
}

static void build_prune(const struct config *c)
{
	const struct template_limits limits = {
		.max = c->templates_max,
		.max_bytes = (uint64_t)c->templates_max_mib << 20,
		.max_age_s = (int64_t)c->templates_max_days * 24 * 3600,
	};
	struct err err = {0};

	if (template_prune(c->template_dir, &limits, &err) < 0)
		log_warn("template", "%s", err.msg);
}

static int build_shape(const struct hv_params *params, char **ret, struct err *err)
{
	const struct hv_ops *ops;
	struct hv_choice choice;
	int r = hv_choose_backend(params->config, &choice, err);

	if (r)
		return r;
	ops = hv_ops_of(choice.backend);
	if (!ops->describe)
		return err_say(err, -EOPNOTSUPP, "the %s backend has no templates", ops->name);
	return hv_describe(params, ops, ret, err);
}

static int build_locked(struct build *b, struct hv_params *params, const char *dir, bool wait)
{
	int r = template_new_begin(dir, b->key, wait, &b->new, b->err);

	if (!r && build_is_there(params->config, b->key))
		r = -EEXIST;
	if (!r)
		r = build_run(b, params);
	/* First: a full disk has room for the note then. */
	template_new_done(&b->new);
	if (r && r != -EEXIST && r != -EBUSY) {
		err_wrap(b->err, "make template %s", b->key);
		template_note_failure(dir, b->key, b->err->msg);
	}
	return r;
}

/* ---- network devices that lead nowhere ---- */

/* Descriptors that a guest's network devices can have behind them, as a container's would. */
struct build_nics {
	struct hv_nic nics[HV_NICS_MAX];
	int peers[HV_NICS_MAX]; /* of streams */
	size_t nr;
};

static void build_nics_done(struct build_nics *n)
{
	for (size_t i = 0; i < n->nr; i++) {
		cleanup_closep(&n->nics[i].fd);
		cleanup_closep(&n->peers[i]);
	}
}

static int build_open_tap(void)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	return fd < 0 || ioctl(fd, TUNSETIFF, &ifr) ? -errno : take_fd(&fd);
}

static int build_open_nics(const struct hv_template_size *size, struct build_nics *n,
			   struct err *err)
{
	if (size->nr_taps + size->nr_streams > HV_NICS_MAX)
		return err_say(err, -EINVAL, "a VM has at most %d network devices", HV_NICS_MAX);
	/* A place of their own for the taps; the process is here for nothing else. */
	if (size->nr_taps && unshare(CLONE_NEWNET))
		return err_set(err, -errno, "make a network namespace");
	for (uint32_t i = 0; i < size->nr_taps + size->nr_streams; i++) {
		int pair[2] = {-1, -1};

		n->nr++;
		n->nics[i].kind = i < size->nr_taps ? HV_NIC_TAP : HV_NIC_STREAM;
		if (i < size->nr_taps)
			pair[0] = build_open_tap();
		else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			pair[0] = -errno;
		n->nics[i].fd = pair[0];
		n->peers[i] = pair[1];
		if (pair[0] < 0)
			return err_set(err, pair[0], "make network device %u", i);
	}
	return 0;
}

/* ---- disks with nothing in them ---- */

struct build_disks {
	struct hv_disk disks[HV_DISKS_MAX];
	size_t nr;
};

static void build_disks_done(struct build_disks *d)
{
	for (size_t i = 0; i < d->nr; i++)
		cleanup_closep(&d->disks[i].fd);
}

/* The guest's driver has let go of them when it is saved: a clone's may be of any size. */
static int build_open_disks(uint32_t nr, struct build_disks *d, struct err *err)
{
	if (nr > HV_DISKS_MAX)
		return err_say(err, -EINVAL, "a VM has at most %d disks", HV_DISKS_MAX);
	for (uint32_t i = 0; i < nr; i++) {
		int fd = memfd_create("disk", MFD_CLOEXEC);

		d->disks[d->nr++].fd = fd;
		if (fd < 0 || ftruncate(fd, BUILD_DISK_BYTES))
			return err_set(err, -errno, "make disk %u", i);
	}
	return 0;
}

int hv_template_build(const struct config *config, const struct hv_template_size *size, bool wait,
		      char *ret_key, size_t key_len, struct err *err)
{
	cleanup(build_nics_done) struct build_nics nics = {0};
	cleanup(build_disks_done) struct build_disks disks = {0};
	struct hv_params params = {.birth = HV_BIRTH_TEMPLATE,
				   .config = config,
				   .id = "template",
				   .netns_fd = -1,
				   .nr_vcpus = size->nr_vcpus,
				   .mem_bytes = size->mem_bytes,
				   .nics = nics.nics,
				   .disks = disks.disks};
	struct build b = {
		.err = err,
		.memory_fd = -1,
		.meta = {.nr_vcpus = size->nr_vcpus, .mem_mib = (uint32_t)(size->mem_bytes >> 20)}};
	cleanup_free char *shape = NULL;
	char key[TEMPLATE_KEY_LEN + 1];
	int r = build_open_nics(size, &nics, err);

	params.nr_nics = nics.nr;
	if (!r)
		r = build_open_disks(size->nr_disks, &disks, err);
	params.nr_disks = disks.nr;
	if (!r)
		r = build_shape(&params, &shape, err);
	if (r)
		return r;
	template_key(shape, key);
	snprintf(ret_key, key_len, "%s", key);
	memcpy(b.key, key, sizeof(key));
	b.shape = shape;
	r = build_locked(&b, &params, config->template_dir, wait);
	cleanup_closep(&b.memory_fd);
	if (!r)
		build_prune(config);
	return r;
}

/* ---- in the background ---- */

/* Two forks: the grandchild is nobody's child that we would have to reap. */
static void build_exec_detached(const char *cli, char *const *argv, const char *config_path)
{
	char *const env[] = {config_path ? xasprintf("HARPOON_CONFIG=%s", config_path) : NULL,
			     NULL};
	int null_fd = open("/dev/null", O_RDWR);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (setsid() < 0 || fork() != 0)
		_exit(0);
	for (int i = 0; i < 3; i++)
		dup2(null_fd, i);
	close_range(3, ~0u, 0);
	(void)!nice(19);
	execve(cli, argv, env);
	_exit(127);
}

void hv_vm_build_template(struct hv_vm *vm)
{
	const struct config *c = vm->params.config;
	cleanup_free char *vcpus = xasprintf("%u", vm->params.nr_vcpus);
	cleanup_free char *memory =
		xasprintf("%llu", (unsigned long long)vm->params.mem_bytes >> 20);
	cleanup_free char *taps = xasprintf("%u", vm->nr_taps);
	cleanup_free char *streams = xasprintf("%u", vm->nr_streams);
	cleanup_free char *disks = xasprintf("%u", vm->nr_disks);
	char name[] = "harpoon", command[] = "template", verb[] = "build", quiet[] = "--background";
	char vcpus_opt[] = "--vcpus", memory_opt[] = "--memory", taps_opt[] = "--taps",
	     streams_opt[] = "--streams", disks_opt[] = "--disks";
	char *argv[] = {name,	     command,	 verb,	    quiet,    vcpus_opt,
			vcpus,	     memory_opt, memory,    taps_opt, taps,
			streams_opt, streams,	 disks_opt, disks,    NULL};
	pid_t pid;

	if (!vm->wants_template || template_wait_s(c->template_dir, vm->key))
		return;
	vm->wants_template = false;
	log_info("hv", "template %s is made in the background", vm->key);
	pid = fork();
	if (!pid)
		build_exec_detached(c->cli, argv, c->path);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		log_warn("hv", "make template %s: %s", vm->key, strerror(errno));
}
