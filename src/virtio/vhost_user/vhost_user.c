/*
 * vhost-user back-end. See vhost_user.h for threads and owners.
 *
 * The front-end is a VMM that a guest may have taken over, so it is checked like a guest: a message
 * has exactly the size and the number of descriptors it should have (surplus ones are closed), memory
 * regions lie inside the file that came with them, and ring addresses inside the regions.
 *
 * A queue runs when it has memory, a size, ring addresses and a kick descriptor, and is enabled. Any
 * message that touches a running queue stops it first and starts it again afterwards if it still can.
 *
 * Device state goes through a pipe of the front-end's after SET_DEVICE_STATE_FD was answered (before, the
 * front-end is not at the other end of it); CHECK_DEVICE_STATE asks how it went.
 *
 * A front-end that saves a machine wants to know which pages the device has written. The device does not
 * say: all bits are set when the log begins and whenever a queue stops, which is true enough for any use
 * and costs nothing for the one that matters (guest memory in a shared file, which is not sent anywhere).
 *
 * Limits: 8 regions, VHOST_USER_QUEUES_MAX queues, no configuration space, no postcopy.
 */
#include "vhost_user.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"

#define COMP "vhost-user"
#define BIT(n) (1ULL << (n))

struct vhost_user_map {
	void *base;
	size_t len;
	uint64_t user_addr;
};

struct vhost_user_ring {
	struct vhost_user_queue q;
	struct vhost_user_vring_addr addr;
	bool has_addr;
	bool enabled;
	bool running; /* between queue_start() and queue_stop() */
	uint16_t size;
	uint16_t base;
};

struct vhost_user {
	int fd;
	const struct vhost_user_ops *ops;
	void *ctx;
	uint64_t offered;
	uint64_t features; /* what the front-end accepted */
	uint64_t protocol_features;
	uint8_t *log; /* mapped; NULL = none */
	size_t log_len;
	int state_fd;	  /* owned: a transfer of device state to be made; -1 = none */
	bool state_load;  /* its direction */
	int state_result; /* of the last one: 0 or -errno */
	unsigned int nr_queues;
	struct guest_mem mem;
	struct vhost_user_map maps[VHOST_USER_REGIONS_MAX]; /* same index as mem.regions */
	struct vhost_user_ring rings[VHOST_USER_QUEUES_MAX];
};

static uint64_t vhost_user_protocol_offered(const struct vhost_user *vu)
{
	uint64_t offered = BIT(VHOST_USER_PROTOCOL_F_MQ) | BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
			   BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE) |
			   BIT(VHOST_USER_PROTOCOL_F_LOG_SHMFD);

	return vu->ops->state_save ? offered | BIT(VHOST_USER_PROTOCOL_F_DEVICE_STATE) : offered;
}

static void vhost_user_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Pointer for an address in the front-end's own address space, which is how rings are given. */
static void *vhost_user_ptr(const struct vhost_user *vu, uint64_t addr, uint64_t len)
{
	for (unsigned int i = 0; i < vu->mem.nr; i++) {
		uint64_t off = addr - vu->maps[i].user_addr;
		uint64_t size = vu->mem.regions[i].len;

		if (off < size && len <= size - off)
			return vu->mem.regions[i].host + off;
	}
	return NULL;
}

static void vhost_user_log_all(struct vhost_user *vu)
{
	if (vu->log && (vu->features & BIT(VHOST_USER_F_LOG_ALL)))
		memset(vu->log, 0xff, vu->log_len);
}

static void vhost_user_ring_stop(struct vhost_user *vu, unsigned int index)
{
	struct vhost_user_ring *r = &vu->rings[index];

	if (!r->running)
		return;
	vu->ops->queue_stop(vu->ctx, index);
	r->running = false;
	vhost_user_log_all(vu);
	r->base = r->q.vq.last_avail;
}

static bool vhost_user_ring_is_ready(const struct vhost_user *vu, const struct vhost_user_ring *r)
{
	/* Without protocol features there is no SET_VRING_ENABLE, and a ring runs from its kick on. */
	bool enabled = r->enabled || !(vu->features & BIT(VHOST_USER_F_PROTOCOL_FEATURES));

	return enabled && r->has_addr && r->size && r->q.kick_fd >= 0;
}

/* Starts the queue if all is there. 0 also when something is still missing. */
static int vhost_user_ring_start(struct vhost_user *vu, unsigned int index, struct err *err)
{
	struct vhost_user_ring *r = &vu->rings[index];
	struct virtq_config c = {
		.size = r->size,
		.last_avail = r->base,
		.event_idx = vu->features & BIT(VIRTIO_RING_F_EVENT_IDX),
		.indirect = vu->features & BIT(VIRTIO_RING_F_INDIRECT_DESC),
	};
	int ret;

	if (r->running || !vhost_user_ring_is_ready(vu, r))
		return 0;
	/*
	 * A driver without VIRTIO_F_VERSION_1 (QEMU's virtio-mmio is of the older kind by default) uses
	 * the guest's byte order, which is ours: guest and host are one architecture, and little-endian.
	 */
	c.desc = vhost_user_ptr(vu, r->addr.desc, virtq_desc_len(r->size));
	c.avail = vhost_user_ptr(vu, r->addr.avail, virtq_avail_len(r->size));
	c.used = vhost_user_ptr(vu, r->addr.used, virtq_used_len(r->size));
	if (!c.desc || !c.avail || !c.used)
		return err_say(err, -EFAULT, "the rings of queue %u lie outside guest memory",
			       index);
	ret = virtq_start(&r->q.vq, &vu->mem, &c);
	if (ret < 0)
		return err_say(err, ret, "queue %u has size %u or rings that virtio does not allow",
			       index, r->size);
	r->running = true;
	log_dbg(COMP, "queue %u runs: size %u, next %u", index, r->size, r->base);
	vu->ops->queue_start(vu->ctx, index, &r->q);
	return 0;
}

static void vhost_user_stop_all(struct vhost_user *vu)
{
	for (unsigned int i = 0; i < vu->nr_queues; i++)
		vhost_user_ring_stop(vu, i);
}

static void vhost_user_unmap(struct vhost_user *vu)
{
	for (unsigned int i = 0; i < vu->mem.nr; i++)
		munmap(vu->maps[i].base, vu->maps[i].len);
	vu->mem.nr = 0;
}

/* Maps one region after comparing it with the file that is said to hold it. */
static int vhost_user_map_region(struct vhost_user *vu, const struct vhost_user_region *r, int fd,
				 struct err *err)
{
	uint64_t end, user_end;
	struct stat st;
	void *base;
	int ret;

	if (fstat(fd, &st) < 0)
		return err_set(err, -errno, "stat of a memory region's file");
	if (!S_ISREG(st.st_mode) || __builtin_add_overflow(r->mmap_offset, r->len, &end) ||
	    end > (uint64_t)st.st_size || r->mmap_offset % 4096 ||
	    __builtin_add_overflow(r->user_addr, r->len, &user_end))
		return err_say(err, -EINVAL, "a memory region does not lie inside its file");
	base = mmap(NULL, r->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		    (off_t)r->mmap_offset);
	if (base == MAP_FAILED)
		return err_set(err, -errno, "map %llu bytes of guest memory",
			       (unsigned long long)r->len);
	/* Guest memory has no place in our core dumps. Failing to say so is no reason to stop. */
	(void)madvise(base, r->len, MADV_DONTDUMP);
	ret = guest_mem_add(&vu->mem, (gpa_t){r->gpa}, r->len, base);
	if (ret < 0) {
		munmap(base, r->len);
		return err_set(err, ret, "memory region at guest address 0x%llx",
			       (unsigned long long)r->gpa);
	}
	vu->maps[vu->mem.nr - 1] =
		(struct vhost_user_map){.base = base, .len = r->len, .user_addr = r->user_addr};
	return 0;
}

static int vhost_user_start_all(struct vhost_user *vu, const bool *was_running, struct err *err)
{
	for (unsigned int i = 0; i < vu->nr_queues; i++) {
		int r = was_running[i] ? vhost_user_ring_start(vu, i, err) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

static int vhost_user_set_mem_table(struct vhost_user *vu, const union vhost_user_payload *p,
				    const int *fds, struct err *err)
{
	bool was_running[VHOST_USER_QUEUES_MAX] = {false};
	int r = 0;

	for (unsigned int i = 0; i < vu->nr_queues; i++)
		was_running[i] = vu->rings[i].running;
	vhost_user_stop_all(vu);
	vhost_user_unmap(vu);
	for (unsigned int i = 0; i < p->mem.nr && !r; i++)
		r = vhost_user_map_region(vu, &p->mem.regions[i], fds[i], err);
	if (r < 0) {
		vhost_user_unmap(vu);
		return r;
	}
	return vhost_user_start_all(vu, was_running, err);
}

/* Everything as if the front-end had just connected, memory excepted. */
static void vhost_user_reset(struct vhost_user *vu)
{
	vhost_user_stop_all(vu);
	vu->features = 0;
	for (unsigned int i = 0; i < vu->nr_queues; i++) {
		struct vhost_user_ring *r = &vu->rings[i];

		vhost_user_close(&r->q.kick_fd);
		vhost_user_close(&r->q.call_fd);
		r->has_addr = r->enabled = false;
		r->size = r->base = 0;
	}
}

static int vhost_user_set_features(struct vhost_user *vu, uint64_t features, struct err *err)
{
	if (features & ~vu->offered)
		return err_say(err, -EINVAL, "the driver accepted features 0x%llx, of 0x%llx",
			       (unsigned long long)features, (unsigned long long)vu->offered);
	for (unsigned int i = 0; i < vu->nr_queues; i++) {
		/* The front-end repeats the message while running; only a change is refused. */
		if (vu->rings[i].running && (features ^ vu->features) & ~BIT(VHOST_USER_F_LOG_ALL))
			return err_say(err, -EBUSY, "features changed while queue %u runs", i);
	}
	vu->features = features;
	vhost_user_log_all(vu);
	return 0;
}

static void vhost_user_unmap_log(struct vhost_user *vu)
{
	if (vu->log)
		munmap(vu->log, vu->log_len);
	vu->log = NULL;
}

static int vhost_user_set_log(struct vhost_user *vu, const struct vhost_user_log *l, int fd,
			      struct err *err)
{
	struct stat st;
	uint64_t end;
	void *log;

	if (fstat(fd, &st) < 0)
		return err_set(err, -errno, "stat of the log's file");
	if (!S_ISREG(st.st_mode) || !l->size || l->size > VHOST_USER_LOG_MAX ||
	    l->mmap_offset % 4096 || __builtin_add_overflow(l->mmap_offset, l->size, &end) ||
	    end > (uint64_t)st.st_size)
		return err_say(err, -EINVAL, "the log does not lie inside its file");
	log = mmap(NULL, l->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)l->mmap_offset);
	if (log == MAP_FAILED)
		return err_set(err, -errno, "map a log of %llu bytes", (unsigned long long)l->size);
	vhost_user_unmap_log(vu);
	vu->log = log;
	vu->log_len = l->size;
	vhost_user_log_all(vu);
	return 0;
}

/* SET_VRING_KICK and CALL: the new descriptor, or -1, takes the place of the old one. */
static int vhost_user_set_ring_fd(struct vhost_user *vu, const struct vhost_user_header *h,
				  unsigned int index, int *fd, struct err *err)
{
	struct vhost_user_ring *r = &vu->rings[index];
	int *slot = h->request == VHOST_USER_SET_VRING_KICK ? &r->q.kick_fd : &r->q.call_fd;

	if (*fd < 0 && slot == &r->q.kick_fd)
		return err_say(err, -EOPNOTSUPP, "queue %u has no kick descriptor", index);
	/* A full eventfd counter must not block a worker; a kick must not either. */
	if (*fd >= 0 && io_set_nonblock(*fd, true) < 0)
		return err_say(err, -EINVAL, "queue %u got an unusable descriptor", index);
	vhost_user_ring_stop(vu, index);
	vhost_user_close(slot);
	*slot = take_fd(fd);
	return vhost_user_ring_start(vu, index, err);
}

static int vhost_user_set_ring_state(struct vhost_user *vu, const struct vhost_user_header *h,
				     unsigned int index, uint32_t num, struct err *err)
{
	struct vhost_user_ring *r = &vu->rings[index];

	vhost_user_ring_stop(vu, index);
	switch (h->request) {
	case VHOST_USER_SET_VRING_NUM:
		if (!num || num > VIRTQ_SIZE_MAX)
			return err_say(err, -EINVAL, "queue %u has size %u, the limit is %u", index,
				       num, VIRTQ_SIZE_MAX);
		r->size = (uint16_t)num;
		break;
	case VHOST_USER_SET_VRING_BASE:
		if (num > UINT16_MAX)
			return err_say(err, -EINVAL, "queue %u starts at %u", index, num);
		r->base = (uint16_t)num;
		break;
	default: /* SET_VRING_ENABLE */
		r->enabled = num == 1;
		break;
	}
	return vhost_user_ring_start(vu, index, err);
}

static int vhost_user_set_ring_addr(struct vhost_user *vu, const union vhost_user_payload *p,
				    struct err *err)
{
	struct vhost_user_ring *r = &vu->rings[p->addr.index];

	if (p->addr.flags & ~VHOST_USER_VRING_LOG)
		return err_say(err, -EINVAL, "queue %u has unknown flags 0x%x", p->addr.index,
			       p->addr.flags);
	vhost_user_ring_stop(vu, p->addr.index);
	r->addr = p->addr;
	r->has_addr = true;
	return vhost_user_ring_start(vu, p->addr.index, err);
}

static void vhost_user_get_ring_base(struct vhost_user *vu, unsigned int index,
				     union vhost_user_payload *reply)
{
	struct vhost_user_ring *r = &vu->rings[index];

	vhost_user_ring_stop(vu, index);
	reply->state = (struct vhost_user_vring_state){.index = index, .num = r->base};
	vhost_user_close(&r->q.kick_fd);
	vhost_user_close(&r->q.call_fd);
}

/* Notes the transfer; vhost_user_transfer_state() makes it. */
static int vhost_user_set_state_fd(struct vhost_user *vu, const union vhost_user_payload *p,
				   int *fd, struct err *err)
{
	if (!vu->ops->state_save || p->device_state.phase != VHOST_USER_STATE_STOPPED ||
	    p->device_state.direction > VHOST_USER_STATE_LOAD)
		return err_say(err, -EOPNOTSUPP, "device state: direction %u in phase %u",
			       p->device_state.direction, p->device_state.phase);
	for (unsigned int i = 0; i < vu->nr_queues; i++) {
		if (vu->rings[i].running)
			return err_say(err, -EBUSY, "device state while queue %u runs", i);
	}
	vhost_user_close(&vu->state_fd);
	vu->state_fd = take_fd(fd);
	vu->state_load = p->device_state.direction == VHOST_USER_STATE_LOAD;
	vu->state_result = -EINPROGRESS;
	return 0;
}

static void vhost_user_transfer_state(struct vhost_user *vu)
{
	int (*fn)(void *, int) = vu->state_load ? vu->ops->state_load : vu->ops->state_save;

	if (vu->state_fd < 0)
		return;
	vu->state_result = fn(vu->ctx, vu->state_fd);
	log_dbg(COMP, "device state %s: %d", vu->state_load ? "loaded" : "saved", vu->state_result);
	/* The front-end reads until the end. */
	vhost_user_close(&vu->state_fd);
}

/* The queue a message is about, or -1 for messages about none. */
static int64_t vhost_user_queue_of(const struct vhost_user_header *h,
				   const union vhost_user_payload *p)
{
	switch (h->request) {
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		return p->u64 & VHOST_USER_VRING_INDEX_MASK;
	case VHOST_USER_SET_VRING_NUM:
	case VHOST_USER_SET_VRING_ADDR:
	case VHOST_USER_SET_VRING_BASE:
	case VHOST_USER_GET_VRING_BASE:
	case VHOST_USER_SET_VRING_ENABLE:
		return p->state.index; /* addr.index lies at the same place */
	default:
		return -1;
	}
}

static int vhost_user_obey(struct vhost_user *vu, const struct vhost_user_header *h,
			   const union vhost_user_payload *p, int *fds,
			   union vhost_user_payload *reply, uint32_t *reply_size, struct err *err)
{
	int r;

	*reply_size = 0;
	switch (h->request) {
	case VHOST_USER_GET_FEATURES:
		reply->u64 = vu->offered;
		*reply_size = sizeof(reply->u64);
		return 0;
	case VHOST_USER_GET_PROTOCOL_FEATURES:
		reply->u64 = vhost_user_protocol_offered(vu);
		*reply_size = sizeof(reply->u64);
		return 0;
	case VHOST_USER_GET_QUEUE_NUM:
		reply->u64 = vu->nr_queues;
		*reply_size = sizeof(reply->u64);
		return 0;
	case VHOST_USER_GET_VRING_BASE:
		vhost_user_get_ring_base(vu, p->state.index, reply);
		*reply_size = sizeof(reply->state);
		return 0;
	case VHOST_USER_SET_FEATURES:
		return vhost_user_set_features(vu, p->u64, err);
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		vu->protocol_features = p->u64 & vhost_user_protocol_offered(vu);
		return 0;
	case VHOST_USER_SET_MEM_TABLE:
		return vhost_user_set_mem_table(vu, p, fds, err);
	case VHOST_USER_SET_VRING_NUM:
	case VHOST_USER_SET_VRING_BASE:
	case VHOST_USER_SET_VRING_ENABLE:
		return vhost_user_set_ring_state(vu, h, p->state.index, p->state.num, err);
	case VHOST_USER_SET_VRING_ADDR:
		return vhost_user_set_ring_addr(vu, p, err);
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
		return vhost_user_set_ring_fd(vu, h, p->u64 & VHOST_USER_VRING_INDEX_MASK, &fds[0],
					      err);
	case VHOST_USER_SET_LOG_BASE:
		/* Answered, so that the front-end knows when the log counts. */
		*reply_size = sizeof(reply->u64);
		return vhost_user_set_log(vu, &p->log, fds[0], err);
	case VHOST_USER_SET_DEVICE_STATE_FD:
		r = vhost_user_set_state_fd(vu, p, &fds[0], err);
		/* No descriptor of ours takes the place of the front-end's. */
		reply->u64 = VHOST_USER_VRING_NO_FD | (r < 0);
		*reply_size = sizeof(reply->u64);
		return r;
	case VHOST_USER_CHECK_DEVICE_STATE:
		reply->u64 = vu->state_result < 0;
		*reply_size = sizeof(reply->u64);
		return 0;
	case VHOST_USER_RESET_OWNER:
	case VHOST_USER_RESET_DEVICE:
		vhost_user_reset(vu);
		return 0;
	default: /* SET_OWNER, SET_VRING_ERR, SET_LOG_FD: nothing to do */
		return 0;
	}
}

int vhost_user_dispatch(struct vhost_user *vu, const struct vhost_user_header *h,
			const union vhost_user_payload *p, int *fds, unsigned int nr_fds,
			union vhost_user_payload *reply, uint32_t *reply_size, struct err *err)
{
	int64_t queue = vhost_user_queue_of(h, p);
	int held[VHOST_USER_REGIONS_MAX];
	int r;

	*reply_size = 0;
	memset(reply, 0, sizeof(*reply));
	for (unsigned int i = 0; i < ARRAY_SIZE(held); i++)
		held[i] = i < nr_fds ? fds[i] : -1;
	r = vhost_user_message_check(h, p, nr_fds);
	if (r < 0)
		err_say(err, r, "the front-end sent a malformed %s with %u descriptors",
			vhost_user_request_name(h->request), nr_fds);
	else if (queue >= (int64_t)vu->nr_queues)
		r = err_say(err, -EPROTO, "%s is about queue %lld, the device has %u",
			    vhost_user_request_name(h->request), (long long)queue, vu->nr_queues);
	else
		r = vhost_user_obey(vu, h, p, held, reply, reply_size, err);
	for (unsigned int i = 0; i < ARRAY_SIZE(held); i++)
		vhost_user_close(&held[i]);
	/* Whoever asked for an acknowledgement learns of a failure; there is no answer of its own. */
	if (!*reply_size && (h->flags & VHOST_USER_FLAG_NEED_REPLY) &&
	    (vu->protocol_features & BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK))) {
		reply->u64 = r < 0;
		*reply_size = sizeof(reply->u64);
	}
	return r;
}

/* Header and descriptors; they travel with its first byte. 1, 0 at end of file, or -errno. */
static int vhost_user_recv_header(struct vhost_user *vu, struct vhost_user_header *h, int *fds,
				  size_t *nr_fds)
{
	ssize_t n = io_recv_fds(vu->fd, h, sizeof(*h), fds, nr_fds);

	if (n <= 0)
		return (int)n;
	if ((size_t)n < sizeof(*h)) {
		ssize_t m = io_read_full(vu->fd, (char *)h + n, sizeof(*h) - (size_t)n);

		if (m < 0)
			return (int)m;
		n += m;
	}
	return n == sizeof(*h) ? 1 : -EPROTO;
}

static int vhost_user_recv_payload(struct vhost_user *vu, const struct vhost_user_header *h,
				   union vhost_user_payload *p)
{
	ssize_t n;

	n = io_read_full(vu->fd, p, h->size);
	if (n < 0)
		return (int)n;
	return (size_t)n == h->size ? 0 : -EPROTO;
}

static int vhost_user_send_reply(struct vhost_user *vu, const struct vhost_user_header *h,
				 const union vhost_user_payload *reply, uint32_t size)
{
	struct {
		struct vhost_user_header h;
		uint8_t payload[sizeof(*reply)];
	} __attribute__((packed)) m = {
		.h = {.request = h->request,
		      .flags = VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY,
		      .size = size},
	};

	memcpy(m.payload, reply, size);
	return io_send_fds(vu->fd, &m, sizeof(m.h) + size, NULL, 0);
}

int vhost_user_handle_message(struct vhost_user *vu, struct err *err)
{
	union vhost_user_payload p = {0}, reply = {0};
	struct vhost_user_header h;
	int fds[VHOST_USER_REGIONS_MAX], r, sent;
	size_t nr_fds = ARRAY_SIZE(fds);
	uint32_t reply_size;

	memset(&p, 0, sizeof(p));
	r = vhost_user_recv_header(vu, &h, fds, &nr_fds);
	if (r == 0)
		return 0;
	if (r > 0) {
		r = vhost_user_header_check(&h);
		if (r == 0 || r == -EOPNOTSUPP) {
			int bad = vhost_user_recv_payload(vu, &h, &p);

			r = bad < 0 ? bad : r;
		}
	}
	if (r < 0) {
		while (nr_fds)
			close(fds[--nr_fds]);
		return err_set(err, r, "message %u (%s) of the vhost-user front-end", h.request,
			       vhost_user_request_name(h.request));
	}
	log_dbg(COMP, "%s", vhost_user_request_name(h.request));
	r = vhost_user_dispatch(vu, &h, &p, fds, (unsigned int)nr_fds, &reply, &reply_size, err);
	if (reply_size) {
		sent = vhost_user_send_reply(vu, &h, &reply, reply_size);
		if (sent < 0)
			return err_set(err, sent, "answer %s", vhost_user_request_name(h.request));
	}
	vhost_user_transfer_state(vu);
	return r < 0 ? r : 1;
}

int vhost_user_new(const struct vhost_user_config *config, struct vhost_user **ret, struct err *err)
{
	struct vhost_user *vu;

	if (!config->nr_queues || config->nr_queues > VHOST_USER_QUEUES_MAX)
		return err_say(err, -EINVAL, "a vhost-user device has 1 to %d queues, not %u",
			       VHOST_USER_QUEUES_MAX, config->nr_queues);
	vu = xcalloc(1, sizeof(*vu));
	vu->fd = config->fd;
	vu->state_fd = -1;
	vu->ops = config->ops;
	vu->ctx = config->ctx;
	vu->nr_queues = config->nr_queues;
	vu->offered = config->device_features | BIT(VIRTIO_F_VERSION_1) |
		      BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |
		      BIT(VHOST_USER_F_LOG_ALL) | BIT(VHOST_USER_F_PROTOCOL_FEATURES);
	for (unsigned int i = 0; i < ARRAY_SIZE(vu->rings); i++)
		vu->rings[i].q.kick_fd = vu->rings[i].q.call_fd = -1;
	*ret = vu;
	return 0;
}

void vhost_user_free(struct vhost_user *vu)
{
	if (!vu)
		return;
	vhost_user_reset(vu);
	vhost_user_unmap(vu);
	vhost_user_unmap_log(vu);
	vhost_user_close(&vu->state_fd);
	vhost_user_close(&vu->fd);
	free(vu);
}
