/*
 * virtio-fs (virtio 1.2, section 5.11) inside harpoon-vmm. Requests are copied out of guest memory and
 * served by harpoon-fs over the channel (fs_channel.h), which never sees guest memory. Reading and
 * writing of files whose descriptors harpoon-fs handed over happens here, straight between guest memory and
 * the file.
 *
 * Threads: one worker for the queue of FORGETs, several for the queue of requests; each has a link of the
 * channel at its disposal while it serves. The trunk is the loop's.
 *
 * What the process needs for it: no limit on file sizes (RLIMIT_FSIZE), SIGXFSZ and SIGPIPE ignored. In the
 * workers' system call filter: preadv, pwritev, pwritev2, fstat, sendmsg, recvmsg, close, madvise, mmap; in that of the vCPUs:
 * fstat, mmap.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "virtio.h"

#define VIRTIOFS_TAG_MAX 36

struct virtiofs_params {
	const char *tag;       /* what the guest mounts; at most VIRTIOFS_TAG_MAX bytes */
	int sock;	       /* the trunk; taken over in any case */
	uint32_t max_files;    /* descriptors of files to hold at most */
	uint64_t window_bytes; /* of files that the guest maps (virtiofs_window.h); 0 = none */
	/*
	 * Once, loop's thread: harpoon-fs is gone or broke the protocol. Every request fails from then
	 * on; the VM is of no use any more.
	 */
	void (*on_lost)(void *ctx, const char *why);
	void *ctx;
};

/*
 * Says hello to harpoon-fs, without waiting for it. The device is taken over by a transport. Saved with a machine, it has
 * its session as harpoon-fs keeps it, and what is mapped in the window; restored, the guest's files have no descriptors
 * here, and are read and written through the channel.
 */
int virtiofs_new(const struct virtiofs_params *params, struct virtio_device **ret, struct err *err);

/* For statistics and tests. Any thread. */
struct virtiofs_stats {
	uint64_t direct;  /* READ and WRITE served here */
	uint64_t channel; /* requests served by harpoon-fs */
	uint32_t files;	  /* descriptors held */
};
void virtiofs_get_stats(struct virtio_device *dev, struct virtiofs_stats *ret);
