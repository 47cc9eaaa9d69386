/* The guest of the KVM probe: an endless counting loop. One file per architecture. */
#pragma once

#include <stdint.h>

/* Guest memory the loop needs, at guest physical address 0. */
#define PROBE_GUEST_MEM (32 * 1024)

/* Writes code (and page tables) into mem, which is zeroed, and sets the vCPU's registers. 0 or -errno. */
int probe_guest_load(int vm_fd, int vcpu_fd, uint8_t *mem);
/* Instructions executed so far. 0 or -errno. */
int probe_guest_count(int vcpu_fd, uint64_t *ret_insns);
