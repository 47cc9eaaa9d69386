/*
 * A machine's state out of QEMU and into another one, by its migration.
 *
 * x-ignore-shared leaves guest memory out: it is a shared file, and what of it counts is kept by us
 * (template_image.c). vhost-user-fs is saved through its back-end (VHOST_USER_PROTOCOL_F_DEVICE_STATE).
 *
 * Saving: the guest runs until QEMU has all but the last of it (which is at once, without memory) and then
 * stands still. So "running" is in the state, and the clone runs as soon as it has taken it in; nobody has to
 * tell it to. Its RESUME event is the sign.
 *
 * Commands are sent in a row, without waiting for answers: QEMU takes them in order, and a failure of one
 * ends the clone.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "qemu_internal.h"
#include "template_image.h"

#define MIGRATE_TIMEOUT_MS 30000
/* The counter's frequency is measured anew each time, to 20 ppm or so. */
#define MIGRATE_TSC_PPM_MAX 500u

static const char migrate_capabilities[] =
	"{\"capabilities\":[{\"capability\":\"x-ignore-shared\",\"state\":true},"
	"{\"capability\":\"events\",\"state\":true}]}";

/*
 * The state's descriptor goes along with add-fd; QEMU wants a name, and one of it opens the set. Each has a set of its
 * own: QEMU takes the first descriptor of a set that fits.
 */
struct migrate_names {
	char fdset[32], uri[48];
};

static struct migrate_names migrate_names(struct qemu *q)
{
	struct migrate_names n;

	q->nr_fdsets++;
	snprintf(n.fdset, sizeof(n.fdset), "{\"fdset-id\":%u}", q->nr_fdsets);
	snprintf(n.uri, sizeof(n.uri), "{\"uri\":\"file:/dev/fdset/%u\"}", q->nr_fdsets);
	return n;
}

/* ---- in ---- */

/* On another machine, or after a firmware's whim, the guest's clock would go wrong for good. */
static int migrate_check_tsc(const struct qemu *q, struct err *err)
{
	uint32_t khz = host_tsc_khz(&q->tsc), was = q->tsc_khz;
	uint32_t diff = khz > was ? khz - was : was - khz;

	if (!khz == !was && (uint64_t)diff * 1000000 <= (uint64_t)was * MIGRATE_TSC_PPM_MAX)
		return 0;
	return err_say(err, -ESTALE,
		       "it was made with a time stamp counter of %u kHz, here it is %u", was, khz);
}

int qemu_fill_memory(struct qemu *q, struct err *err)
{
	int r = template_image_load(q->vm->tmpl->memory_fd, q->ram.bytes, q->ram.fd, err);

	return r ? r : migrate_check_tsc(q, err);
}

static void migrate_on_in_done(void *ctx, const char *error)
{
	struct qemu *q = ctx;

	if (error)
		hv_end(q->vm, HV_EXIT_FAILED, "QEMU does not take the template's state: %.150s",
		       error);
}

void qemu_incoming(struct qemu *q)
{
	const struct migrate_names n = migrate_names(q);
	int fd = q->vm->tmpl->state_fd;
	int r = lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;

	if (!r)
		r = qmp_call_with(q->qmp, "add-fd", n.fdset, fd, MIGRATE_TIMEOUT_MS,
				  migrate_on_in_done, q);
	if (!r)
		r = qmp_call_with(q->qmp, "migrate-set-capabilities", migrate_capabilities, -1,
				  MIGRATE_TIMEOUT_MS, migrate_on_in_done, q);
	if (!r)
		r = qmp_call_with(q->qmp, "migrate-incoming", n.uri, -1, MIGRATE_TIMEOUT_MS,
				  migrate_on_in_done, q);
	if (r)
		hv_end(q->vm, HV_EXIT_FAILED, "give the template's state to QEMU: %s",
		       strerror(-r));
}

/* ---- out ---- */

static void migrate_saved(struct qemu *q, const char *error)
{
	hv_saved_fn done = q->saved;

	if (!done)
		return;
	q->saved = NULL;
	done(q->saved_ctx, error);
}

static void migrate_on_out_done(void *ctx, const char *error)
{
	if (error)
		migrate_saved(ctx, error);
}

int qemu_save(struct hv_vm *vm, int state_fd, int memory_fd, hv_saved_fn done, void *ctx,
	      struct err *err)
{
	struct qemu *q = vm->backend;
	const struct migrate_names n = migrate_names(q);
	int r = q->greeted && !q->saved ? 0 : -EBUSY;

	if (!r)
		r = qmp_call_with(q->qmp, "add-fd", n.fdset, state_fd, MIGRATE_TIMEOUT_MS,
				  migrate_on_out_done, q);
	if (!r)
		r = qmp_call_with(q->qmp, "migrate-set-capabilities", migrate_capabilities, -1,
				  MIGRATE_TIMEOUT_MS, migrate_on_out_done, q);
	if (!r)
		r = qmp_call_with(q->qmp, "migrate", n.uri, -1, MIGRATE_TIMEOUT_MS,
				  migrate_on_out_done, q);
	if (r)
		return err_set(err, r, "have QEMU save the machine");
	q->saved = done;
	q->saved_ctx = ctx;
	return 0;
}

void qemu_migrate_event(struct qemu *q, const char *name, struct json_object *data)
{
	struct json_object *status;
	const char *text;

	if (!strcmp(name, "RESUME") && q->vm->tmpl) {
		hv_clone_runs(q->vm);
		return;
	}
	if (strcmp(name, "MIGRATION") != 0 || !json_object_object_get_ex(data, "status", &status))
		return;
	text = json_object_get_string(status);
	log_dbg("hv", "QEMU's migration: %s", text);
	if (!strcmp(text, "completed"))
		migrate_saved(q, NULL);
	else if (!strcmp(text, "failed") || !strcmp(text, "cancelled"))
		migrate_saved(q, "QEMU could not save the machine");
}
