/*
 * Checkpoint, and Create from one; see container.h. The VM is saved as it runs (hv.h), with its container frozen:
 *
 *   Checkpoint:  VM runs, if it is paused -- Freeze -- VM saved, stands still -+- Thaw, answer
 *                                                                              +- exit: VM killed, answer
 *                                                                              `- was paused: answer; Thaw by Resume
 *   Create:      VM restored -- Adopt -- clock -- answer        Start: network -- Thaw -- answer
 *
 * Clients pause the task before they ask for a checkpoint, and resume it when they have saved what belongs to it.
 *
 * What the shim itself has to know of a container that goes on in another one is a few numbers, which are saved as a
 * text ("note"). It is from outside when it comes back: read loosely, printed again, compared.
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

#include "checkpoint.h"
#include "cleanup.h"
#include "container.h"
#include "containerd_events.pb-c.h"
#include "log.h"
#include "mux.h"
#include "vmreq.h"

#define CHECKPOINT_MEM_MAX ((uint64_t)CONFIG_MEM_MAX_MIB << 20)
#define CHECKPOINT_OPTIONS "containerd.runc.v1.CheckpointOptions"
#define CHECKPOINT_OPTIONS_MAX 65536
/* The slowest process of the container may take five of it to stop, and then everything is written back. */
#define CHECKPOINT_FREEZE_NS 30000000000ull

struct checkpoint {
	struct rpc_call *call;
	int dir_fd; /* owned */
	bool exit, was_paused;
	char error[512];
};

/* ---- the note ---- */

static char *checkpoint_note_format(const struct checkpoint_note *n)
{
	return xasprintf("streams %u %u %u next %u terminal %u oom_kills %" PRIu64
			 " mem_bytes %" PRIu64 "\n",
			 n->streams[0], n->streams[1], n->streams[2], n->next_stream, n->terminal,
			 n->oom_kills, n->mem_bytes);
}

int checkpoint_note_parse(const char *text, struct checkpoint_note *ret)
{
	struct checkpoint_note n = {0};
	cleanup_free char *again = NULL;

	/* NOLINTNEXTLINE(cert-err34-c): a number read wrongly prints otherwise, below */
	if (sscanf(text,
		   "streams %u %u %u next %u terminal %u oom_kills %" SCNu64 " mem_bytes %" SCNu64,
		   &n.streams[0], &n.streams[1], &n.streams[2], &n.next_stream, &n.terminal,
		   &n.oom_kills, &n.mem_bytes) != 7)
		return -EPROTO;
	again = checkpoint_note_format(&n);
	if (strcmp(again, text) != 0 || n.terminal > 1 || n.next_stream < MUX_STREAM_FIRST_FREE ||
	    n.mem_bytes > CHECKPOINT_MEM_MAX)
		return -EPROTO;
	for (size_t i = 0; i < TASKIO_MAX; i++)
		if (n.streams[i] &&
		    (n.streams[i] < MUX_STREAM_FIRST_FREE || n.streams[i] >= n.next_stream))
			return -EPROTO;
	*ret = n;
	return 0;
}

static char *checkpoint_note_of(const struct container *c)
{
	struct checkpoint_note n = {.next_stream = c->next_stream,
				    .terminal = c->init.io_terminal,
				    .oom_kills = c->oom_kills,
				    .mem_bytes = c->mem_bytes};

	for (size_t i = 0; i < TASKIO_MAX; i++)
		n.streams[i] = c->init.io.s[i].id;
	return checkpoint_note_format(&n);
}

/* ---- the request ---- */

static void checkpoint_read_options(const Ctrd__Any *any, struct checkpoint *cp, char **path)
{
	Ctrd__CheckpointOptions *o;

	if (!any || !strstr(any->type_url, CHECKPOINT_OPTIONS) ||
	    any->value.len > CHECKPOINT_OPTIONS_MAX)
		return;
	o = ctrd__checkpoint_options__unpack(NULL, any->value.len, any->value.data);
	if (!o)
		return;
	cp->exit = o->exit;
	/* Where containerd keeps the image itself, the request names the folder. */
	if (*o->image_path && !**path) {
		free(*path);
		*path = xstrdup(o->image_path);
	}
	ctrd__checkpoint_options__free_unpacked(o, NULL);
}

static int checkpoint_open_folder(const char *path, struct err *err)
{
	int fd;

	if (*path != '/')
		return err_say(err, -EINVAL, "'%.200s' is not an absolute path", path);
	if (mkdir(path, 0700) && errno != EEXIST)
		return err_set(err, -errno, "make folder '%.200s'", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? err_set(err, -errno, "open folder '%.200s'", path) : fd;
}

/* ---- the end of it ---- */

void checkpoint_forget(struct container *c)
{
	struct checkpoint *cp = take_ptr(&c->checkpoint);

	if (!cp)
		return;
	rpc_fail(cp->call, RPC_UNKNOWN, "the container's VM is gone");
	cleanup_closep(&cp->dir_fd);
	free(cp);
}

static void checkpoint_answer(struct container *c)
{
	struct checkpoint *cp = take_ptr(&c->checkpoint);

	if (!cp)
		return;
	if (*cp->error) {
		log_err("shim", "checkpoint %s: %s", c->id, cp->error);
		rpc_fail(cp->call, RPC_UNKNOWN, "checkpoint %s: %s", c->id, cp->error);
	} else {
		rpc_reply_empty(cp->call);
	}
	cleanup_closep(&cp->dir_fd);
	free(cp);
}

static void checkpoint_paused_again(void *ctx, const char *error)
{
	if (error)
		log_warn("shim", "pause after a failed checkpoint: %s", error);
	checkpoint_answer(ctx);
}

/* The VM runs, and the container in it. */
static void checkpoint_thawed(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct container *c = ctx;
	struct err err = {0};

	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED || !c->checkpoint)
		return;
	if (code != RPC_OK) {
		checkpoint_answer(c);
		container_give_up_vm(c, "the container cannot be woken up after its checkpoint");
		return;
	}
	if (!c->checkpoint->was_paused || hv_vm_pause(c->vm, checkpoint_paused_again, c, &err))
		checkpoint_answer(c);
}

static void checkpoint_thaw(struct container *c)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;

	c->is_frozen = false;
	clock_set(c, NULL);
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_THAW, &ref.base, container_call_timeout_ns(c),
			  checkpoint_thawed, c);
}

static void checkpoint_fail(struct container *c, const char *error)
{
	snprintf(c->checkpoint->error, sizeof(c->checkpoint->error), "%s", error);
	checkpoint_thaw(c);
}

static void checkpoint_saved(void *ctx, const char *error)
{
	struct container *c = ctx;
	struct checkpoint *cp = c->checkpoint;
	struct err err = {0};

	if (!cp)
		return;
	if (error) {
		checkpoint_fail(c, error);
	} else if (cp->exit) {
		log_info("shim", "%s: checkpointed, and ended", c->id);
		checkpoint_answer(c);
		container_kill_vm(c);
	} else if (cp->was_paused) {
		/* It stands still, as the client left it. */
		checkpoint_answer(c);
	} else if (hv_vm_resume(c->vm, &err)) {
		checkpoint_answer(c);
		container_give_up_vm(c, err.msg);
	} else {
		checkpoint_thaw(c);
	}
}

static void checkpoint_frozen(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			      const char *message)
{
	struct container *c = ctx;
	cleanup_free char *note = NULL;
	struct err err = {0};

	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED || !c->checkpoint)
		return;
	/* It may have been late to answer, and frozen all the same. */
	if (code != RPC_OK) {
		checkpoint_fail(c, message);
		return;
	}
	c->is_frozen = true;
	note = checkpoint_note_of(c);
	if (hv_vm_checkpoint(c->vm, c->checkpoint->dir_fd, note, checkpoint_saved, c, &err))
		checkpoint_fail(c, err.msg);
}

static int checkpoint_begin(struct container *c, struct checkpoint *cp, struct err *err)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	int r = cp->was_paused ? hv_vm_resume(c->vm, err) : 0;

	if (r)
		return r;
	c->checkpoint = cp;
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_FREEZE, &ref.base, CHECKPOINT_FREEZE_NS,
			  checkpoint_frozen, c);
	return 0;
}

void container_checkpoint(struct container *c, const Ctrd__CheckpointRequest *req,
			  struct rpc_call *call)
{
	cleanup_free char *path = xstrdup(req->path);
	struct checkpoint *cp;
	struct err err = {0};

	if (!process_check(&c->init, TASK_OP_CHECKPOINT, call))
		return;
	if (c->phase != CONTAINER_LIVE || c->init.has_exited || !c->agent) {
		rpc_fail(call, RPC_UNKNOWN, "cannot checkpoint a stopped container");
		return;
	}
	if (c->checkpoint || c->pause_call || c->is_frozen) {
		rpc_fail(call, RPC_UNKNOWN,
			 "the container is being checkpointed or paused already");
		return;
	}
	cp = xcalloc(1, sizeof(*cp));
	*cp = (struct checkpoint){.call = call, .was_paused = c->init.state == TASK_PAUSED};
	checkpoint_read_options(req->options, cp, &path);
	cp->dir_fd = checkpoint_open_folder(path, &err);
	if (cp->dir_fd >= 0 && !checkpoint_begin(c, cp, &err))
		return;
	cleanup_closep(&cp->dir_fd);
	free(cp);
	rpc_fail_err(call, &err);
}

/* ---- create ---- */

int checkpoint_open(const char *path, struct hv_checkpoint **ret, struct checkpoint_note *ret_note,
		    struct err *err)
{
	cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return err_set(err, -errno, "open the checkpoint '%.150s'", path);
	r = hv_checkpoint_open(fd, ret, err);
	if (r)
		return err_wrap(err, "checkpoint '%.100s'", path);
	r = checkpoint_note_parse(hv_checkpoint_note(*ret), ret_note);
	return r ? err_say(err, r, "checkpoint '%.100s': its file 'note' is damaged", path) : 0;
}
