/*
 * Checkpoints: a VM saved as it runs, with the container in it; see hv.h. The folder:
 *
 *   manifest    what it is; size and SHA-256 of the files below, and of itself; written last
 *   shape       what shapes such a VM (clone.c): a VM of any other shape does not take it
 *   note        the caller's own
 *   memory      the pages of guest memory that are not zero (template_image.h)
 *   state       the rest of the machine, as its VMM wrote it, harpoon-fs's session included
 *
 * Saving: the channel to the agent is held, so that nothing is under way in it -> the VMM saves its state, and the
 * guest stands still from then on -> a child of ours writes the memory and the rest. It is a child because it maps
 * guest memory, whose file a VMM that was taken over can cut short under it, and because it takes its time.
 * A VMM that carries the streams itself saves what is under way in them, and one whose memory nobody else can map
 * saves that, too: into a file without a name, as it is.
 *
 * Restoring is what a clone does, with three differences: the agent is told that its host is another one, instead of
 * hearing nothing; there is no other way to start if it fails; and all of it is hashed each time.
 *
 * Images come from anywhere. The hashes say that one is whole, not that it is honest: what is in it can take over the
 * guest, whose it was, and the VMM, which is where a hostile guest is already.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "hv_internal.h"
#include "io.h"
#include "log.h"
#include "manifest.h"
#include "mux.h"
#include "sys.h"
#include "template_image.h"
#include "template_internal.h"

#define CHECKPOINT_VERSION 1
#define CHECKPOINT_RAW "memory.raw" /* for a moment */
#define CHECKPOINT_MANIFEST_MAX 4096
#define CHECKPOINT_SHAPE_MAX (64 * 1024)
/* The agent's answer; its loop is free, as no container runs. */
#define CHECKPOINT_HOLD_NS 10000000000ull

enum {
	CHECKPOINT_SHAPE,
	CHECKPOINT_NOTE,
	CHECKPOINT_MEMORY,
	CHECKPOINT_STATE,
	CHECKPOINT_NR_FILES
};
static const char *const checkpoint_files[CHECKPOINT_NR_FILES] = {"shape", "note", "memory",
								  "state"};

struct checkpoint_manifest {
	struct template_meta meta;
	uint64_t sizes[CHECKPOINT_NR_FILES];
	char hashes[CHECKPOINT_NR_FILES][SHA256_HEX_LEN + 1];
};

/* One being made; in vm->saving. */
struct checkpoint_run {
	struct hv_vm *vm;
	int dir_fd; /* owned */
	char *note; /* owned */
	int raw_fd; /* owned: memory as the VMM saved it, -1 = it does not */
	pid_t pid;  /* the child that writes, 0 = none */
	int pidfd, words_fd;
	struct loop_watch *watch;
	struct loop_timer timer;
	hv_done_fn done;
	void *ctx;
};

struct hv_checkpoint {
	struct checkpoint_manifest m;
	int fds[CHECKPOINT_NR_FILES];
	char *shape, *note;
};

/* ---- the manifest ---- */

static char *checkpoint_format(const struct checkpoint_manifest *m)
{
	cleanup_free char *head = xasprintf(
		"harpoon-checkpoint %d\nvcpus %u\nmemory_mib %u\ntsc_khz %u\ncreated %" PRId64 "\n",
		CHECKPOINT_VERSION, m->meta.nr_vcpus, m->meta.mem_mib, m->meta.tsc_khz,
		m->meta.created);

	return manifest_print(head, checkpoint_files, CHECKPOINT_NR_FILES, m->sizes, m->hashes);
}

static int checkpoint_parse(const char *text, struct checkpoint_manifest *ret)
{
	struct checkpoint_manifest m = {0};
	cleanup_free char *again = NULL;
	int version, at = 0;

	/* NOLINTNEXTLINE(cert-err34-c): a number read wrongly prints otherwise, below */
	if (sscanf(text,
		   "harpoon-checkpoint %d vcpus %" SCNu32 " memory_mib %" SCNu32 " tsc_khz %" SCNu32
		   " created %" SCNd64 " %n",
		   &version, &m.meta.nr_vcpus, &m.meta.mem_mib, &m.meta.tsc_khz, &m.meta.created,
		   &at) != 5 ||
	    !at)
		return -EPROTO;
	if (version != CHECKPOINT_VERSION)
		return -EOPNOTSUPP;
	if (manifest_scan(text + at, CHECKPOINT_NR_FILES, m.sizes, m.hashes))
		return -EPROTO;
	again = checkpoint_format(&m);
	if (strcmp(again, text) != 0)
		return -EPROTO;
	*ret = m;
	return 0;
}

/* ---- writing: in the child ---- */

static int checkpoint_hash_file(int dir_fd, size_t i, struct checkpoint_manifest *m)
{
	cleanup_close int fd = openat(dir_fd, checkpoint_files[i], O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return -errno;
	m->sizes[i] = (uint64_t)st.st_size;
	return template_hash(fd, m->hashes[i]);
}

static int checkpoint_write_memory(const struct checkpoint_run *run, struct err *err)
{
	cleanup_close int fd =
		openat(run->dir_fd, "memory", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return err_set(err, -errno, "create its file 'memory'");
	if (run->raw_fd < 0)
		return run->vm->ops->save_memory(run->vm, fd, err);
	return template_image_write(run->raw_fd, hv_machine_bytes(&run->vm->params), fd, err);
}

static int checkpoint_write_all(const struct checkpoint_run *run, struct err *err)
{
	const struct hv_vm *vm = run->vm;
	struct checkpoint_manifest m = {.meta = {.nr_vcpus = vm->params.nr_vcpus,
						 .mem_mib = (uint32_t)(vm->params.mem_bytes >> 20),
						 .tsc_khz = vm->ops->tsc_khz(vm),
						 .created = time(NULL)}};
	cleanup_free char *text = NULL;
	int r = checkpoint_write_memory(run, err);

	if (r)
		return r;
	r = io_write_file(run->dir_fd, "shape", vm->shape, strlen(vm->shape));
	if (!r)
		r = io_write_file(run->dir_fd, "note", run->note, strlen(run->note));
	for (size_t i = 0; i < CHECKPOINT_NR_FILES && !r; i++)
		r = checkpoint_hash_file(run->dir_fd, i, &m);
	text = checkpoint_format(&m);
	if (!r)
		r = io_replace_file(run->dir_fd, "manifest", text, strlen(text));
	return r ? err_set(err, r, "write the checkpoint") : 0;
}

static void checkpoint_child(const struct checkpoint_run *run, int words_fd)
{
	struct err err = {0};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, SIG_DFL);
	if (checkpoint_write_all(run, &err))
		(void)!write(words_fd, err.msg, strlen(err.msg));
	_exit(err.code ? 1 : 0);
}

/* ---- the order of it ---- */

static void checkpoint_reap(struct checkpoint_run *run, int *ret_status)
{
	loop_watch_remove(run->watch);
	run->watch = NULL;
	while (run->pid && waitpid(run->pid, ret_status, 0) < 0 && errno == EINTR)
		;
	run->pid = 0;
}

/* What was written of one that failed is removed. */
static void checkpoint_free(struct checkpoint_run *run, bool is_whole)
{
	int status;

	loop_timer_cancel(&run->timer);
	if (run->pid)
		kill(run->pid, SIGKILL);
	checkpoint_reap(run, &status);
	for (size_t i = 0; !is_whole && i < CHECKPOINT_NR_FILES; i++)
		unlinkat(run->dir_fd, checkpoint_files[i], 0);
	if (!is_whole)
		unlinkat(run->dir_fd, "manifest", 0);
	cleanup_closep(&run->pidfd);
	cleanup_closep(&run->words_fd);
	cleanup_closep(&run->raw_fd);
	cleanup_closep(&run->dir_fd);
	free(run->note);
	free(run);
}

void hv_checkpoint_drop(struct hv_vm *vm)
{
	struct checkpoint_run *run = take_ptr(&vm->saving);

	if (run)
		checkpoint_free(run, false);
}

/* error NULL = done. */
void hv_checkpoint_end(struct hv_vm *vm, const char *error)
{
	struct checkpoint_run *run = take_ptr(&vm->saving);
	struct err err = {0};
	hv_done_fn done;
	void *ctx;

	if (!run)
		return;
	done = run->done;
	ctx = run->ctx;
	checkpoint_free(run, !error);
	if (error && vm->state == HV_RUNNING && hv_vm_resume(vm, &err))
		log_warn("hv", "after a failed checkpoint: %s", err.msg);
	done(ctx, error);
}

static void checkpoint_on_written(void *ctx, uint32_t events)
{
	struct hv_vm *vm = ctx;
	struct checkpoint_run *run = vm->saving;
	char words[256];
	ssize_t n = read(run->words_fd, words, sizeof(words) - 1);
	int status = -1;

	words[MAX(n, 0)] = '\0';
	checkpoint_reap(run, &status);
	if (!status)
		hv_checkpoint_end(vm, NULL);
	else
		hv_checkpoint_end(vm, *words ? words : "guest memory could not be read");
}

static int checkpoint_start_child(struct checkpoint_run *run)
{
	int pair[2];

	if (pipe2(pair, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	run->words_fd = pair[0];
	run->pid = sys_clone_pidfd(0, &run->pidfd);
	if (!run->pid)
		checkpoint_child(run, pair[1]);
	close(pair[1]);
	if (run->pid < 0) {
		run->pid = 0;
		return -errno;
	}
	run->watch =
		loop_watch_add(run->vm->loop, run->pidfd, EPOLLIN, checkpoint_on_written, run->vm);
	return run->watch ? 0 : -errno;
}

static void checkpoint_on_saved(void *ctx, const char *error)
{
	struct hv_vm *vm = ctx;
	char words[256];
	int r;

	if (!vm->saving)
		return;
	if (error && fs_server_complains(&vm->fs, words, sizeof(words)))
		error = words;
	r = error ? 0 : checkpoint_start_child(vm->saving);
	if (error || r)
		hv_checkpoint_end(vm, error ? error : strerror(-r));
}

static int checkpoint_make_raw(struct checkpoint_run *run)
{
	if (run->vm->ops->save_memory)
		return 0;
	run->raw_fd =
		openat(run->dir_fd, CHECKPOINT_RAW, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return run->raw_fd < 0 || unlinkat(run->dir_fd, CHECKPOINT_RAW, 0) ? -errno : 0;
}

void hv_checkpoint_held(struct hv_vm *vm)
{
	struct checkpoint_run *run = vm->saving;
	cleanup_close int fd = -1;
	struct err err = {0};

	if (!run)
		return;
	loop_timer_cancel(&run->timer);
	fd = openat(run->dir_fd, "state", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || checkpoint_make_raw(run))
		err_set(&err, -errno, "create its files");
	else
		vm->ops->save(vm, fd, run->raw_fd, checkpoint_on_saved, vm, &err);
	if (err.code)
		hv_checkpoint_end(vm, err.msg);
}

/* Where there is nothing to be held. */
static void checkpoint_on_begin(void *ctx)
{
	hv_checkpoint_held(ctx);
}

static void checkpoint_on_hold_timeout(void *ctx)
{
	hv_checkpoint_end(ctx, "the agent does not come to rest");
}

/* An image is never written over another one. */
static int checkpoint_check_folder(int dir_fd, struct err *err)
{
	for (size_t i = 0; i < CHECKPOINT_NR_FILES; i++)
		if (!faccessat(dir_fd, checkpoint_files[i], F_OK, AT_SYMLINK_NOFOLLOW))
			return err_say(err, -EEXIST,
				       "the folder has a file '%s' already: name an empty one",
				       checkpoint_files[i]);
	return 0;
}

void hv_vm_gave_memory(struct hv_vm *vm, uint64_t bytes)
{
	vm->given_bytes = MAX(vm->given_bytes, bytes);
}

uint64_t hv_used_bytes(const struct hv_vm *vm)
{
	if (vm->given_bytes <= vm->params.mem_bytes)
		return vm->params.mem_bytes;
	/* The last block has more than was asked for, and before the first one is a gap. */
	return MIN(vm->given_bytes + 2 * HV_MEMORY_BLOCK, hv_machine_bytes(&vm->params));
}

int hv_vm_checkpoint(struct hv_vm *vm, int dir_fd, const char *note, hv_done_fn done, void *ctx,
		     struct err *err)
{
	struct checkpoint_run *run;
	int r;

	if (vm->state != HV_RUNNING || !vm->is_ready)
		return err_say(err, -ESHUTDOWN, "checkpoint: VM '%s' does not run", vm->id);
	if (!vm->shape)
		return err_say(err, -EOPNOTSUPP, "this VM is of a kind that cannot be saved");
	if (vm->nr_disks)
		return err_say(err, -EOPNOTSUPP,
			       "a VM with disks cannot be saved with its container: not "
			       "implemented");
	r = checkpoint_check_folder(dir_fd, err);
	if (r)
		return r;
	r = vm->saving ? -EBUSY : vm->mux ? mux_hold(vm->mux) : 0;
	if (r)
		return err_set(err, r, "hold the channel to the agent");
	run = xcalloc(1, sizeof(*run));
	*run = (struct checkpoint_run){.vm = vm, .pidfd = -1, .words_fd = -1, .raw_fd = -1};
	run->dir_fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 3);
	run->note = xstrdup(note);
	run->done = done;
	run->ctx = ctx;
	vm->saving = run;
	if (vm->mux)
		loop_timer_arm(vm->loop, &run->timer, CHECKPOINT_HOLD_NS,
			       checkpoint_on_hold_timeout, vm);
	else
		loop_timer_arm(vm->loop, &run->timer, 0, checkpoint_on_begin, vm);
	return 0;
}

/* ---- reading ---- */

void hv_checkpoint_free(struct hv_checkpoint *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < CHECKPOINT_NR_FILES; i++)
		cleanup_closep(&c->fds[i]);
	free(c->shape);
	free(c->note);
	free(c);
}

static void checkpoint_freep(struct hv_checkpoint **c)
{
	hv_checkpoint_free(*c);
}

static int checkpoint_open_file(int dir_fd, size_t i, struct hv_checkpoint *c, struct err *err)
{
	char hash[SHA256_HEX_LEN + 1];
	struct stat st;
	int r;

	c->fds[i] =
		openat(dir_fd, checkpoint_files[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (c->fds[i] < 0 || fstat(c->fds[i], &st))
		return err_set(err, -errno, "open its file '%s'", checkpoint_files[i]);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != c->m.sizes[i])
		return err_say(err, -EPROTO, "its file '%s' is not of %" PRIu64 " bytes",
			       checkpoint_files[i], c->m.sizes[i]);
	r = template_hash(c->fds[i], hash);
	if (r)
		return err_set(err, r, "read its file '%s'", checkpoint_files[i]);
	if (strcmp(hash, c->m.hashes[i]) != 0)
		return err_say(err, -EPROTO, "its file '%s' is damaged", checkpoint_files[i]);
	return 0;
}

static int checkpoint_read_manifest(int dir_fd, struct checkpoint_manifest *ret, struct err *err)
{
	cleanup_free char *text = NULL;
	int r = io_read_file(dir_fd, "manifest", CHECKPOINT_MANIFEST_MAX, &text, NULL);

	if (r)
		return err_set(err, r, "read its manifest");
	r = checkpoint_parse(text, ret);
	if (r == -EOPNOTSUPP)
		return err_say(err, r, "it was made by another version of harpoon");
	return r ? err_say(err, r, "its manifest is damaged, or is none") : 0;
}

int hv_checkpoint_open(int dir_fd, struct hv_checkpoint **ret, struct err *err)
{
	cleanup(checkpoint_freep) struct hv_checkpoint *c = xcalloc(1, sizeof(*c));
	int r;

	memset(c->fds, 0xff, sizeof(c->fds));
	r = checkpoint_read_manifest(dir_fd, &c->m, err);
	for (size_t i = 0; i < CHECKPOINT_NR_FILES && !r; i++)
		r = checkpoint_open_file(dir_fd, i, c, err);
	if (r)
		return r;
	r = io_read_file(dir_fd, "shape", CHECKPOINT_SHAPE_MAX, &c->shape, NULL);
	if (!r)
		r = io_read_file(dir_fd, "note", CHECKPOINT_SHAPE_MAX, &c->note, NULL);
	if (r)
		return err_set(err, r, "read it");
	*ret = take_ptr(&c);
	return 0;
}

const char *hv_checkpoint_note(const struct hv_checkpoint *c)
{
	return c->note;
}

/* The first lines that differ say best what is wrong. */
static int checkpoint_compare(const char *was, const char *is, struct err *err)
{
	size_t was_len, is_len;

	for (;; was += was_len + !!was[was_len], is += is_len + !!is[is_len]) {
		was_len = strcspn(was, "\n");
		is_len = strcspn(is, "\n");
		if (was_len != is_len || strncmp(was, is, is_len) != 0)
			return err_say(err, -ESTALE,
				       "the checkpoint is of another machine: it was made with "
				       "'%.*s', here is '%.*s'",
				       (int)MIN(was_len, (size_t)70), was,
				       (int)MIN(is_len, (size_t)70), is);
		if (!*was)
			return 0;
	}
}

int hv_checkpoint_take(struct hv_vm *vm, const struct hv_checkpoint *c, struct err *err)
{
	struct template *t;
	int r;

	if (!vm->shape)
		return err_say(err, -EOPNOTSUPP, "a VM of this kind cannot be restored");
	r = checkpoint_compare(c->shape, vm->shape, err);
	if (r)
		return r;
	t = xcalloc(1, sizeof(*t));
	t->meta = c->m.meta;
	t->memory_fd = fcntl(c->fds[CHECKPOINT_MEMORY], F_DUPFD_CLOEXEC, 3);
	t->state_fd = fcntl(c->fds[CHECKPOINT_STATE], F_DUPFD_CLOEXEC, 3);
	vm->tmpl = t;
	vm->is_restored = true;
	return 0;
}
