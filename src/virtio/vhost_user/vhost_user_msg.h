/*
 * The vhost-user wire format, as far as a back-end for a device without configuration space needs it:
 * message numbers, payloads, and what each message must look like. Spec: QEMU's
 * docs/interop/vhost-user. All fields are in the byte order of the host.
 */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "util.h"

enum vhost_user_request {
	VHOST_USER_GET_FEATURES = 1,
	VHOST_USER_SET_FEATURES = 2,
	VHOST_USER_SET_OWNER = 3,
	VHOST_USER_RESET_OWNER = 4,
	VHOST_USER_SET_MEM_TABLE = 5,
	VHOST_USER_SET_LOG_BASE = 6,
	VHOST_USER_SET_LOG_FD = 7,
	VHOST_USER_SET_VRING_NUM = 8,
	VHOST_USER_SET_VRING_ADDR = 9,
	VHOST_USER_SET_VRING_BASE = 10,
	VHOST_USER_GET_VRING_BASE = 11,
	VHOST_USER_SET_VRING_KICK = 12,
	VHOST_USER_SET_VRING_CALL = 13,
	VHOST_USER_SET_VRING_ERR = 14,
	VHOST_USER_GET_PROTOCOL_FEATURES = 15,
	VHOST_USER_SET_PROTOCOL_FEATURES = 16,
	VHOST_USER_GET_QUEUE_NUM = 17,
	VHOST_USER_SET_VRING_ENABLE = 18,
	VHOST_USER_RESET_DEVICE = 34,
	VHOST_USER_SET_DEVICE_STATE_FD = 42,
	VHOST_USER_CHECK_DEVICE_STATE = 43,
	VHOST_USER_REQUEST_MAX = 44,
};

/* Feature bits of SET/GET_FEATURES that belong to vhost-user, and the protocol features we know. */
#define VHOST_USER_F_LOG_ALL 26 /* VHOST_F_LOG_ALL: pages that the device writes are noted */
#define VHOST_USER_F_PROTOCOL_FEATURES 30
#define VHOST_USER_PROTOCOL_F_MQ 0
#define VHOST_USER_PROTOCOL_F_LOG_SHMFD 1
#define VHOST_USER_PROTOCOL_F_REPLY_ACK 3
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE 13
#define VHOST_USER_PROTOCOL_F_DEVICE_STATE 19

#define VHOST_USER_VERSION 0x1u
#define VHOST_USER_VERSION_MASK 0x3u
#define VHOST_USER_FLAG_REPLY 0x4u
#define VHOST_USER_FLAG_NEED_REPLY 0x8u
#define VHOST_USER_FLAGS_MASK 0xfu

/* In the u64 of SET_VRING_KICK, CALL and ERR: the queue, and "no descriptor comes with this". */
#define VHOST_USER_VRING_INDEX_MASK 0xffu
#define VHOST_USER_VRING_NO_FD 0x100u

/* Regions in one SET_MEM_TABLE, the protocol's limit. */
#define VHOST_USER_REGIONS_MAX 8

struct vhost_user_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size;
};

struct vhost_user_region {
	uint64_t gpa;
	uint64_t len;
	uint64_t user_addr; /* where the front-end has it mapped: ring addresses are given so */
	uint64_t mmap_offset;
};

struct vhost_user_mem_table {
	uint32_t nr;
	uint32_t padding;
	struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];
};

/* SET_LOG_BASE: a bit per page of guest memory, in the file that comes with it. */
struct vhost_user_log {
	uint64_t size;
	uint64_t mmap_offset;
};
#define VHOST_USER_LOG_MAX (256u << 20)

/* In the flags of SET_VRING_ADDR: writes to the ring are noted, too. */
#define VHOST_USER_VRING_LOG 0x1u

/* SET_DEVICE_STATE_FD: what the descriptor that comes with it is for. */
enum vhost_user_direction { VHOST_USER_STATE_SAVE, VHOST_USER_STATE_LOAD };
#define VHOST_USER_STATE_STOPPED 0 /* the one phase there is: no queue runs */

struct vhost_user_device_state {
	uint32_t direction;
	uint32_t phase;
};

struct vhost_user_vring_state {
	uint32_t index;
	uint32_t num;
};

struct vhost_user_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc;
	uint64_t used;
	uint64_t avail;
	uint64_t log;
};

union vhost_user_payload {
	uint64_t u64;
	struct vhost_user_vring_state state;
	struct vhost_user_vring_addr addr;
	struct vhost_user_mem_table mem;
	struct vhost_user_device_state device_state;
	struct vhost_user_log log;
};

static_assert(sizeof(struct vhost_user_header) == 12, "header layout");
static_assert(sizeof(struct vhost_user_region) == 32, "region layout");
static_assert(sizeof(struct vhost_user_vring_addr) == 40, "ring address layout");
static_assert(sizeof(union vhost_user_payload) == 8 + 8 * 32, "payload layout");

/*
 * Judges a header before its payload is read: 0, -EPROTO (not our version, a reply, unknown flags, a
 * size that the message cannot have) or -EOPNOTSUPP (a message we do not know; its size is still
 * bounded, so the payload can be skipped).
 */
int vhost_user_header_check(const struct vhost_user_header *h);

/* Judges payload and descriptors together: 0 or -EPROTO. */
int vhost_user_message_check(const struct vhost_user_header *h, const union vhost_user_payload *p,
			     unsigned int nr_fds);

const char *vhost_user_request_name(uint32_t request);
