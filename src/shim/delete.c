/*
 * `delete`: runs after every task, orderly ended or not, with at most five seconds before containerd kills it.
 * All it knows is on disk: the state folder of the bundle. Every step takes "nothing there" for success, so
 * it can run twice, at once, or on half of a container.
 *
 *   the shim, if it still lives      given a moment, then killed; its children die with it
 *   the VM's processes               from <bundle>/harpoon/processes
 *   the host's cgroup                from <bundle>/harpoon/cgroup: emptied, removed
 *   poststop hooks                   if the container was never deleted in order
 *   <bundle>/rootfs, socket, state   removed
 *
 * stdout: a DeleteResponse. Without a record of the end it says killed (137), now.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "address.h"
#include "bundle.h"
#include "cleanup.h"
#include "containerd_task.pb-c.h"
#include "hooks.h"
#include "hostcgroup.h"
#include "hv.h"
#include "io.h"
#include "log.h"
#include "manager.h"
#include "mounts.h"
#include "network.h"
#include "sys.h"

#define DELETE_KILLED 137
#define DELETE_SHIM_MS 1000
#define DELETE_SHIM_KILL_MS 1000
#define DELETE_HOOK_LIMIT_S 2

/* Waits for the end of the process behind pidfd. */
static bool delete_wait_gone(int pidfd, int timeout_ms)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	int r;

	do
		r = poll(&p, 1, timeout_ms);
	while (r < 0 && errno == EINTR);
	return r > 0;
}

static void delete_end_shim(int state_fd)
{
	cleanup_close int pidfd = bundle_shim_open(state_fd);

	if (pidfd < 0)
		return;
	/* Mostly it is on its way out already. If not, containerd has given up on it. */
	if (delete_wait_gone(pidfd, DELETE_SHIM_MS))
		return;
	log_warn("delete", "the shim still runs, though nobody talks to it: killed");
	sys_pidfd_send_signal(pidfd, SIGKILL);
	delete_wait_gone(pidfd, DELETE_SHIM_KILL_MS);
}

static void delete_hooks_done(void *ctx, const struct err *err)
{
	loop_stop(ctx);
}

static void delete_run_hooks(int bundle_fd, const char *bundle, const char *id)
{
	cleanup_free char *json = NULL, *state = NULL;
	const struct oci_hooks *lists[1];
	struct oci_spec *spec = NULL;
	struct loop *loop;
	size_t len;

	if (io_read_file(bundle_fd, "config.json", OCI_CONFIG_MAX, &json, &len) ||
	    oci_spec_parse(json, len, &spec, NULL))
		return;
	lists[0] = &spec->hooks[OCI_HOOK_POSTSTOP];
	loop = lists[0]->nr ? loop_new() : NULL;
	if (loop) {
		state = hooks_state_json(spec, id, "stopped", 0, bundle);
		hooks_start(loop, lists, 1, state, true, DELETE_HOOK_LIMIT_S, delete_hooks_done,
			    loop);
		loop_run(loop);
		loop_free(loop);
	}
	oci_spec_free(spec);
}

static int delete_end_vm(int state_fd, struct err *err)
{
	int r = hv_cleanup_state(state_fd, err);

	if (r != -EBADMSG && r != -EFBIG && r != -EINVAL)
		return r;
	/* The list was cut off while it was written, say. The shim is gone, and what it started with it. */
	log_warn("delete", "%s", err->msg);
	*err = (struct err){0};
	return 0;
}

/* What is left of the container in the state folder. Returns what is known of its end. */
static int delete_state(int bundle_fd, const char *bundle, const char *id,
			struct bundle_task *ret_task, struct err *err)
{
	cleanup_close int state_fd = bundle_state_open(bundle_fd);
	struct bundle_task after;
	int r;

	if (state_fd == -ENOENT)
		return 0;
	if (state_fd < 0)
		return err_set(err, state_fd, "open '%s/%s'", bundle, BUNDLE_STATE_DIR);
	bundle_task_read(state_fd, ret_task);
	delete_end_shim(state_fd);
	r = delete_end_vm(state_fd, err);
	if (!r)
		r = hostcgroup_cleanup_state(state_fd, err);
	network_clean_up(state_fd);
	/* The shim may have noted the end while it was ending. */
	bundle_task_read(state_fd, &after);
	if (after.exited)
		*ret_task = after;
	if (!r && ret_task->pid && !ret_task->deleted)
		delete_run_hooks(bundle_fd, bundle, id);
	return r;
}

static int delete_print(const struct bundle_task *task)
{
	Ctrd__DeleteResponse r = CTRD__DELETE_RESPONSE__INIT;
	Ctrd__Timestamp at = CTRD__TIMESTAMP__INIT;
	uint8_t data[128];
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	at.seconds = task->exited ? task->exited_at_ns / 1000000000 : now.tv_sec;
	at.nanos = task->exited ? (int32_t)(task->exited_at_ns % 1000000000) : (int32_t)now.tv_nsec;
	r.pid = (uint32_t)task->pid;
	r.exit_status = task->exited ? task->exit_status : DELETE_KILLED;
	r.exited_at = &at;
	if (ctrd__delete_response__get_packed_size(&r) > sizeof(data))
		return -EMSGSIZE;
	return io_write_full(STDOUT_FILENO, data, ctrd__delete_response__pack(&r, data));
}

static int delete_bundle(const char *bundle, const struct args *args, struct bundle_task *ret_task,
			 struct err *err)
{
	cleanup_close int fd = bundle_open(bundle, err);
	int r;

	/* No bundle, nothing to clean. */
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	r = delete_state(fd, bundle, args->id, ret_task, err);
	if (!r)
		r = mounts_unmount_rootfs(fd, err);
	/* Kept when something could not be ended, for the next attempt. */
	if (!r)
		bundle_state_remove(fd);
	return r;
}

int manager_delete(const struct args *args)
{
	char cwd[PATH_MAX], socket_path[ADDRESS_PATH_MAX + 1];
	const char *bundle = args->bundle;
	struct bundle_task task = {0};
	struct err err = {0};
	int r = 0;

	log_init(STDERR_FILENO, LOG_LEVEL_WARN, args->id);
	if (!*bundle)
		bundle = getcwd(cwd, sizeof(cwd));
	if (bundle)
		r = delete_bundle(bundle, args, &task, &err);
	address_path(args->address, args->namespace_, args->id, socket_path);
	unlink(socket_path);
	if (!r)
		r = delete_print(&task);
	if (!r)
		return 0;
	fprintf(stderr, "delete %s: %s\n", args->id, err.code ? err.msg : strerror(-r));
	return 1;
}
