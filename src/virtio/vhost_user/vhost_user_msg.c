/* What each vhost-user message must look like. Pure functions. */
#include "vhost_user_msg.h"

#include <errno.h>
#include <stddef.h>

enum vhost_user_fds {
	VHOST_USER_FDS_NONE,
	VHOST_USER_FDS_RING,	/* one, unless the u64 says that none comes */
	VHOST_USER_FDS_REGIONS, /* one for each region */
	VHOST_USER_FDS_ONE
};

struct vhost_user_shape {
	const char *name;
	uint32_t size; /* exact, save for the memory table, where it is the least */
	enum vhost_user_fds fds;
};

#define SHAPE(req, size_, fds_) [VHOST_USER_##req] = {#req, (size_), VHOST_USER_FDS_##fds_}

static const struct vhost_user_shape vhost_user_shapes[] = {
	SHAPE(GET_FEATURES, 0, NONE),
	SHAPE(SET_FEATURES, 8, NONE),
	SHAPE(SET_OWNER, 0, NONE),
	SHAPE(RESET_OWNER, 0, NONE),
	SHAPE(SET_MEM_TABLE, 8, REGIONS),
	SHAPE(SET_LOG_BASE, sizeof(struct vhost_user_log), ONE),
	SHAPE(SET_LOG_FD, 0, ONE),
	SHAPE(SET_VRING_NUM, sizeof(struct vhost_user_vring_state), NONE),
	SHAPE(SET_VRING_ADDR, sizeof(struct vhost_user_vring_addr), NONE),
	SHAPE(SET_VRING_BASE, sizeof(struct vhost_user_vring_state), NONE),
	SHAPE(GET_VRING_BASE, sizeof(struct vhost_user_vring_state), NONE),
	SHAPE(SET_VRING_KICK, 8, RING),
	SHAPE(SET_VRING_CALL, 8, RING),
	SHAPE(SET_VRING_ERR, 8, RING),
	SHAPE(GET_PROTOCOL_FEATURES, 0, NONE),
	SHAPE(SET_PROTOCOL_FEATURES, 8, NONE),
	SHAPE(GET_QUEUE_NUM, 0, NONE),
	SHAPE(SET_VRING_ENABLE, sizeof(struct vhost_user_vring_state), NONE),
	SHAPE(RESET_DEVICE, 0, NONE),
	SHAPE(SET_DEVICE_STATE_FD, sizeof(struct vhost_user_device_state), ONE),
	SHAPE(CHECK_DEVICE_STATE, 0, NONE),
};

static_assert(ARRAY_SIZE(vhost_user_shapes) == VHOST_USER_REQUEST_MAX, "one row per message");

static const struct vhost_user_shape *vhost_user_shape_of(uint32_t request)
{
	if (request >= ARRAY_SIZE(vhost_user_shapes) || !vhost_user_shapes[request].name)
		return NULL;
	return &vhost_user_shapes[request];
}

const char *vhost_user_request_name(uint32_t request)
{
	const struct vhost_user_shape *s = vhost_user_shape_of(request);

	return s ? s->name : "unknown";
}

int vhost_user_header_check(const struct vhost_user_header *h)
{
	const struct vhost_user_shape *s = vhost_user_shape_of(h->request);

	if ((h->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION ||
	    (h->flags & VHOST_USER_FLAG_REPLY) || (h->flags & ~VHOST_USER_FLAGS_MASK) ||
	    h->size > sizeof(union vhost_user_payload))
		return -EPROTO;
	if (!s)
		return -EOPNOTSUPP;
	if (s->fds == VHOST_USER_FDS_REGIONS)
		return h->size >= s->size ? 0 : -EPROTO;
	return h->size == s->size ? 0 : -EPROTO;
}

int vhost_user_message_check(const struct vhost_user_header *h, const union vhost_user_payload *p,
			     unsigned int nr_fds)
{
	const struct vhost_user_shape *s = vhost_user_shape_of(h->request);
	unsigned int want = 0;

	if (!s)
		return -EPROTO;
	if (s->fds == VHOST_USER_FDS_RING) {
		if (p->u64 & ~(uint64_t)(VHOST_USER_VRING_INDEX_MASK | VHOST_USER_VRING_NO_FD))
			return -EPROTO;
		want = p->u64 & VHOST_USER_VRING_NO_FD ? 0 : 1;
	} else if (s->fds == VHOST_USER_FDS_REGIONS) {
		if (p->mem.nr > VHOST_USER_REGIONS_MAX ||
		    h->size < offsetof(struct vhost_user_mem_table, regions) +
				      p->mem.nr * sizeof(struct vhost_user_region))
			return -EPROTO;
		want = p->mem.nr;
	} else if (s->fds == VHOST_USER_FDS_ONE) {
		want = 1;
	}
	return nr_fds == want ? 0 : -EPROTO;
}
