/*
 * What this host can run. Used by `auto` backend selection and by `harpoon check`.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

enum probe_kvm_state {
	PROBE_KVM_MISSING, /* /dev/kvm does not open or is not KVM API 12 */
	PROBE_KVM_SLOW,	   /* it runs guests through an instruction emulator */
	PROBE_KVM_NATIVE,
};

struct probe_kvm {
	enum probe_kvm_state state;
	uint64_t insn_per_s; /* of the probe loop, 0 when it did not run */
	char text[200];	     /* one sentence: what was found, and what to do */
};

/* Runs a short 64-bit loop in a throw-away VM; takes a few ms. Never fails: the answer says why. */
void probe_kvm(struct probe_kvm *ret);
/* The same, from the file of an earlier one in this boot of the host if there is one. */
void probe_kvm_cached(struct probe_kvm *ret);

struct probe_qemu {
	bool found;
	bool usable; /* found, and new enough to run containers */
	int major, minor;
	char text[200]; /* one sentence: which, what it lacks */
};
/* Asks `binary --version`. */
void probe_qemu(const char *binary, struct probe_qemu *ret);

/* What `binary --version` prints, first `room` - 1 bytes, NUL-terminated. */
int probe_ask_version(const char *binary, char *out, size_t room, struct err *err);
