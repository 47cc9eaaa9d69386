/*
 * A container's network namespace on the host, and how it gets into the VM.
 *
 * At Create the namespace is opened (or made), and a few taps are made in it: the VM's network devices, which
 * carry nothing yet, because interfaces may appear later: in an OCI hook, or between Create and Start. At Start
 * the namespace is read, every interface gets a tap, and traffic control moves frames between the two: what
 * arrives at the interface goes to the guest, before the host's own stack sees it, and what the guest sends
 * leaves by the interface. Nothing else of the namespace changes: interfaces keep their names and addresses.
 *
 *   wire --- eth0 (its ingress: redirect) ---> hpn0 --- VM
 *   wire <-- eth0 <--- (redirect: its ingress) hpn0 --- VM
 *
 * So only the guest answers ARP, neighbour discovery and ping; the host's stack in the namespace receives
 * nothing any more, and what it sends is answered to the guest. Two VMs cannot share a namespace that has
 * interfaces: the second is refused at its Start.
 *
 * Threads: the loop's. Calls block for a few netlink exchanges.
 */
#pragma once

#include "config.h"
#include "err.h"
#include "hv.h"
#include "oci.h"
#include "vmreq.h"

struct network;

enum network_mode {
	NETWORK_OWN,	/* a namespace made for this container */
	NETWORK_JOINED, /* one that the spec names */
	NETWORK_HOST,	/* the one we are in ourselves: no namespace in the spec, or its path */
};

int network_new(const struct oci_spec *spec, const struct config *config, struct network **ret,
		struct err *err);
/* Takes back what network_connect() did, closes everything. The VM must be gone. Accepts NULL. */
void network_free(struct network *n);

enum network_mode network_mode(const struct network *n);
/* The namespace, for the VM's process; borrowed. */
int network_netns(const struct network *n);
/* The VM's network devices; borrowed until network_vm_started(). */
const struct hv_nic *network_nics(const struct network *n, size_t *ret_nr);
/* The program behind them, NULL = none; borrowed likewise. */
const struct hv_helper *network_helper(const struct network *n);
/* The VM has its devices: taps live as long as it does, or as its own namespace, and no longer. */
void network_vm_started(struct network *n);

/*
 * Reads the namespace as it is now, connects its interfaces with the VM's devices, and says in *ret (NULL = the
 * VM has no devices, nothing to be said) what the agent has to do; free with vmreq_network_free(). What was
 * done is noted in <state>/network for network_clean_up().
 */
int network_connect(struct network *n, int state_fd, VMREQ_PB(NetworkRequest) * *ret,
		    struct err *err);

/* From disk alone, after a crash: takes traffic control away from interfaces of a namespace that lives on. */
void network_clean_up(int state_fd);
