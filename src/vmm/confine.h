/*
 * The last step of the jail: what a thread of harpoon-vmm may still ask of the kernel. Namespaces, root,
 * ids and limits are in place before the program starts (hv/jail.c).
 */
#pragma once

#include "err.h"

enum confine_kind { CONFINE_LOOP, CONFINE_VCPU, CONFINE_WORKER, CONFINE_KIND_MAX };

/* For the calling thread and whatever it starts, for good. */
int confine_thread(enum confine_kind kind, struct err *err);
