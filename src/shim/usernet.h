/*
 * User-mode networking for containers in the host's own network namespace: passt makes the guest's connections
 * anew from the host, as any program of the host would.
 *
 * The guest has one interface, with the name, the addresses and the gateway of the host's interface that has the
 * default route. Hosts without a default route have nothing to lend: the container has loopback only then.
 */
#pragma once

#include "config.h"
#include "err.h"
#include "hv.h"
#include "vmreq.h"

struct usernet;

/* *ret NULL, and a line in the log: there is nothing to be had. */
int usernet_new(const struct config *config, struct usernet **ret, struct err *err);
void usernet_free(struct usernet *u);
/* For the VM's start; borrowed until usernet_vm_started(). */
struct hv_nic usernet_nic(const struct usernet *u);
const struct hv_helper *usernet_helper(const struct usernet *u);
void usernet_vm_started(struct usernet *u);
/* Free with vmreq_network_free(). */
VMREQ_PB(NetworkRequest) * usernet_request(const struct usernet *u);
