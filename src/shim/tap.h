/*
 * Taps, and the traffic control that joins one to an interface. `nl` is a socket of the namespace they are in.
 */
#pragma once

#include <stdbool.h>

#include "err.h"
#include "nl.h"

/* Names of our taps: this and a number, which counts in each namespace. */
#define TAP_NAME_PREFIX "hpn"

/*
 * A new tap in the calling thread's namespace. Descriptor; the tap goes when its last copy is closed, or, if it is to stay,
 * with the namespace.
 */
int tap_open(bool stays, int *ret_ifindex, struct err *err);
/* Up, with no addresses of its own. */
int tap_raise(struct nl_sock *nl, int tap, uint32_t mtu, struct err *err);
/*
 * What arrives at the interface goes out of the tap, and the other way round. -EEXIST: the interface has ingress
 * traffic control already, by which we know another VM.
 */
int tap_join(struct nl_sock *nl, int tap, int ifindex, const char *name, struct err *err);
/* Takes the interface's ingress traffic control away. */
int tap_part(struct nl_sock *nl, int ifindex, struct err *err);
