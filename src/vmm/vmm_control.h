/*
 * Control protocol between the shim (hv/kvm_launch.c) and harpoon-vmm, over one SOCK_SEQPACKET socket pair: fixed-size
 * messages, requests with descriptors one way, events without any the other way. End of file ends the VM.
 *
 * Order: MACHINE, DEVICE any number of times, START or RESTORE; then the rest in any order. A request that fails
 * before the guest runs is answered by FAILED, with a sentence, and the program ends. The shim believes
 * nothing that comes from here: a guest may have taken harpoon-vmm over.
 *
 * Both ends are built from one tree and run on one machine: integers in host order, and a version.
 */
#pragma once

#include <assert.h>
#include <stdint.h>

#define VMM_CONTROL_VERSION 4u
/* Number of the control socket's descriptor in harpoon-vmm. */
#define VMM_CONTROL_FD 3

enum vmm_op {
	/* Descriptors: /dev/kvm, kernel, initrd, console (a stream socket, guest's bytes). */
	VMM_OP_MACHINE = 1,
	/* A virtio device in the next slot; descriptors by kind. */
	VMM_OP_DEVICE,
	VMM_OP_START,
	/* In place of START: a machine of the same shape that was saved. Descriptors: its state, its memory
	 * (both read only). flags: VMM_RESTORE_*. Its agent is asked to greet once more. */
	VMM_OP_RESTORE,
	VMM_OP_PAUSE,
	VMM_OP_RESUME,
	/* Descriptors: rfd if VMM_STREAM_READS, wfd if VMM_STREAM_WRITES; with both and VMM_STREAM_ONE a
	 * single one stands for the two. */
	VMM_OP_ATTACH,
	VMM_OP_DETACH,
	/* Descriptors: two empty files, for the machine's state and for its memory. flags: VMM_SAVE_*. The guest
	 * stands still from then on, as after PAUSE, whether SAVED tells of a success or not. */
	VMM_OP_SAVE,
	VMM_OP_MAX
};

enum vmm_device_kind {
	VMM_DEVICE_VSOCK = 1, /* no descriptor; cid. The agent's streams need one */
	VMM_DEVICE_RNG,	      /* no descriptor */
	VMM_DEVICE_BALLOON,   /* no descriptor */
	VMM_DEVICE_BLK,	      /* the file or block device; tag: its serial number */
	VMM_DEVICE_NET, /* the tap, its offloads set as said, or with VMM_NET_STREAM a socket; mac */
	VMM_DEVICE_FS,	/* the channel to harpoon-fs; tag, window_bytes */
	VMM_DEVICE_MAX
};

/* It was saved with a container in it: the agent is told that its host is another one (agent_hello.h). */
#define VMM_RESTORE_IN_USE 0x1u
/* Once the guest has given back what it does not use: of a machine that others are to be made of. */
#define VMM_SAVE_SETTLED 0x1u

#define VMM_BLK_READ_ONLY 0x1u
#define VMM_NET_STREAM 0x2u /* see netstream.h */

#define VMM_STREAM_READS 0x1u
#define VMM_STREAM_WRITES 0x2u
#define VMM_STREAM_ONE 0x4u

#define VMM_TAG_MAX 36
#define VMM_CMDLINE_MAX 2000
#define VMM_REQUEST_FDS_MAX 4

struct vmm_request {
	uint32_t op;
	uint32_t version;
	union {
		struct {
			uint64_t mem_bytes;
			uint32_t nr_vcpus;
			char cmdline
				[VMM_CMDLINE_MAX]; /* NUL-terminated, without words for devices */
		} machine;
		struct {
			uint32_t kind;
			uint32_t flags;
			uint64_t cid;
			uint64_t window_bytes; /* of files that the guest maps; whole MiB */
			uint32_t offloads;     /* TUN_F_* */
			uint8_t mac[6];
			char tag[VMM_TAG_MAX + 1];
		} device;
		struct {
			uint32_t id;
			uint32_t flags;
		} stream;
		struct {
			uint64_t
				used_bytes; /* the guest has touched nothing of its memory behind these */
			uint32_t flags;
		} save;
		uint32_t flags; /* RESTORE */
	};
};

enum vmm_event_kind {
	VMM_EVENT_RUNNING = 1, /* START is done: the guest's first instruction is next */
	VMM_EVENT_HELLO,       /* the agent's greeting: `hello`, `len` bytes */
	VMM_EVENT_PAUSED,
	VMM_EVENT_RESUMED,
	VMM_EVENT_SAVED,       /* `error`, and then `text` says why not */
	VMM_EVENT_STREAM_DONE, /* `stream` is over: `error` */
	VMM_EVENT_RESET,       /* the guest reset itself; the program ends */
	VMM_EVENT_FAILED,      /* `text` says why; the program ends */
	VMM_EVENT_MAX
};

#define VMM_EVENT_TEXT_MAX 224

struct vmm_event {
	uint32_t kind;
	int32_t error; /* 0 or negative errno */
	uint32_t stream;
	uint32_t len;
	union {
		char text[VMM_EVENT_TEXT_MAX]; /* NUL-terminated, by an honest sender */
		uint8_t hello[VMM_EVENT_TEXT_MAX];
	};
};

static_assert(sizeof(struct vmm_event) == 240, "no holes");
