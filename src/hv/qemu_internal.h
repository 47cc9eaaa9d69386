/* What qemu.c (one QEMU, start to end) and qemu_migrate.c (its state, out and in) share. */
#pragma once

#include "guest_ram.h"
#include "host_tsc.h"
#include "hv_internal.h"
#include "qmp.h"

#define QEMU_CALL_TIMEOUT_MS 5000
#define QEMU_REASON_MAX 32

struct qemu {
	struct hv_vm *vm;
	struct qmp *qmp; /* owned */
	struct guest_ram ram;
	struct host_tsc tsc; /* first reading, taken early so that the second need not wait */
	uint32_t tsc_khz;    /* what the guest was told */
	unsigned int nr_fdsets;
	bool greeted;
	bool panicked;
	char reason[QEMU_REASON_MAX]; /* of the SHUTDOWN event, "" = none came */
	/* A save under way: NULL = none. */
	hv_saved_fn saved;
	void *saved_ctx;
};

/* A clone's memory, and whether its host is still the template's. */
int qemu_fill_memory(struct qemu *q, struct err *err);
/* QEMU has greeted: takes the template's state in and goes on from there. */
void qemu_incoming(struct qemu *q);
void qemu_migrate_event(struct qemu *q, const char *name, struct json_object *data);
int qemu_save(struct hv_vm *vm, int state_fd, int memory_fd, hv_saved_fn done, void *ctx,
	      struct err *err);
