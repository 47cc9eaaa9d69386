/*
 * virtio over MMIO; see mmio.h for the contract. Spec: virtio 1.2, 4.2.2 (registers), 3.1 (order of
 * initialisation), 2.1 (status).
 *
 * Two locks. `lock` guards the registers in `s` and is held over activate and reset, which wait for
 * the device. `irq_lock` is a leaf: it guards what devices write when they notify, from any thread.
 */
#include "mmio.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "util.h"

#define VIRTIO_MMIO_MAGIC 0x74726976u /* "virt" */
#define VIRTIO_MMIO_MODERN 2u
#define VIRTIO_MMIO_VENDOR 0x4e505248u /* "HRPN" */
/* Status bits that a driver sets. */
#define VIRTIO_MMIO_STATUS_BITS \
	(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | \
	 VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)

struct virtio_mmio {
	struct virtio_transport transport;
	struct virtio_device *dev; /* owned */
	int irq_fd;		   /* owned */
	struct virtio_mmio_shm shm[VIRTIO_MMIO_SHM_MAX];
	pthread_mutex_t lock;	  /* `s`, but for its three fields below irq_lock */
	pthread_mutex_t irq_lock; /* s.interrupt_status, s.config_generation, s.needs_reset */
	struct virtio_mmio_state s;
};

/* --- from the device ----------------------------------------------------------------------------- */

static void virtio_mmio_interrupt(struct virtio_mmio *m)
{
	const uint64_t one = 1;

	if (write(m->irq_fd, &one, sizeof(one)) < 0)
		log_dbg("virtio", "%s: an interrupt was lost: %m", m->dev->info.name);
}

static void virtio_mmio_notify_queue(struct virtio_transport *t, unsigned int index)
{
	struct virtio_mmio *m = container_of(t, struct virtio_mmio, transport);

	pthread_mutex_lock(&m->irq_lock);
	m->s.interrupt_status |= VIRTIO_MMIO_INT_VRING;
	pthread_mutex_unlock(&m->irq_lock);
	virtio_mmio_interrupt(m);
}

static void virtio_mmio_notify_config(struct virtio_transport *t, enum virtio_event event)
{
	struct virtio_mmio *m = container_of(t, struct virtio_mmio, transport);

	pthread_mutex_lock(&m->irq_lock);
	if (event == VIRTIO_EVENT_NEEDS_RESET)
		m->s.needs_reset = 1;
	else
		m->s.config_generation++;
	m->s.interrupt_status |= VIRTIO_MMIO_INT_CONFIG;
	pthread_mutex_unlock(&m->irq_lock);
	virtio_mmio_interrupt(m);
}

static const struct virtio_transport_ops virtio_mmio_transport_ops = {
	.notify_queue = virtio_mmio_notify_queue,
	.notify_config = virtio_mmio_notify_config,
};

/* --- status -------------------------------------------------------------------------------------- */

static void virtio_mmio_reset(struct virtio_mmio *m)
{
	uint32_t generation;

	virtio_device_reset(m->dev);
	pthread_mutex_lock(&m->irq_lock);
	generation = m->s.config_generation;
	m->s = (struct virtio_mmio_state){.config_generation = generation};
	pthread_mutex_unlock(&m->irq_lock);
}

static void virtio_mmio_fail(struct virtio_mmio *m, const char *what, int error)
{
	log_dbg("virtio", "%s: %s: %s", m->dev->info.name, what, strerror(-error));
	virtio_mmio_notify_config(&m->transport, VIRTIO_EVENT_NEEDS_RESET);
}

static struct virtio_queue_setup virtio_mmio_queue_setup(const struct virtio_mmio_queue_state *q)
{
	return (struct virtio_queue_setup){
		.ready = q->ready,
		.size = (uint16_t)q->num,
		.last_avail = (uint16_t)q->last_avail,
		.desc = {q->desc},
		.avail = {q->avail},
		.used = {q->used},
	};
}

static int virtio_mmio_activate(struct virtio_mmio *m)
{
	struct virtio_queue_setup setup[VIRTIO_QUEUES_MAX] = {0};

	for (unsigned int i = 0; i < m->dev->info.nr_queues; i++)
		setup[i] = virtio_mmio_queue_setup(&m->s.queues[i]);
	return virtio_device_activate(m->dev, m->s.driver_features, setup);
}

static bool virtio_mmio_features_are_good(const struct virtio_mmio *m)
{
	return !(m->s.driver_features & ~virtio_device_features(m->dev)) &&
	       m->s.driver_features >> VIRTIO_F_VERSION_1 & 1;
}

static bool virtio_mmio_needs_reset(struct virtio_mmio *m)
{
	bool r;

	pthread_mutex_lock(&m->irq_lock);
	r = m->s.needs_reset;
	pthread_mutex_unlock(&m->irq_lock);
	return r;
}

/* Which status a driver may have before it adds the bit; each step needs all earlier ones. */
static bool virtio_mmio_may_add(struct virtio_mmio *m, uint32_t bit)
{
	const uint32_t ack = VIRTIO_CONFIG_S_ACKNOWLEDGE;
	const uint32_t driver = ack | VIRTIO_CONFIG_S_DRIVER;
	const uint32_t features = driver | VIRTIO_CONFIG_S_FEATURES_OK;

	switch (bit) {
	case VIRTIO_CONFIG_S_ACKNOWLEDGE:
	case VIRTIO_CONFIG_S_FAILED:
		return true;
	case VIRTIO_CONFIG_S_DRIVER:
		return (m->s.status & ack) == ack;
	case VIRTIO_CONFIG_S_FEATURES_OK:
		return (m->s.status & driver) == driver && virtio_mmio_features_are_good(m);
	case VIRTIO_CONFIG_S_DRIVER_OK:
		return (m->s.status & features) == features && !virtio_mmio_needs_reset(m);
	default:
		return false;
	}
}

static void virtio_mmio_write_status(struct virtio_mmio *m, uint32_t value)
{
	if (!value) {
		virtio_mmio_reset(m);
		return;
	}
	/* Lowest bit first: that is their order, DRIVER_OK (4) before FEATURES_OK (8) excepted. */
	static const uint32_t order[] = {VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER,
					 VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK,
					 VIRTIO_CONFIG_S_FAILED};

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		uint32_t bit = order[i];

		if (!(value & bit) || m->s.status & bit || !virtio_mmio_may_add(m, bit))
			continue;
		if (bit == VIRTIO_CONFIG_S_DRIVER_OK) {
			int r = virtio_mmio_activate(m);

			if (r) {
				virtio_mmio_fail(m, "start the queues", r);
				continue;
			}
		}
		m->s.status |= bit;
	}
}

/* --- registers ----------------------------------------------------------------------------------- */

/* The selected queue if its registers may be written now; NULL otherwise. */
static struct virtio_mmio_queue_state *virtio_mmio_open_queue(struct virtio_mmio *m)
{
	if (m->s.queue_sel >= m->dev->info.nr_queues ||
	    !(m->s.status & VIRTIO_CONFIG_S_FEATURES_OK) ||
	    m->s.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED))
		return NULL;
	return &m->s.queues[m->s.queue_sel];
}

static void virtio_mmio_write_ready(struct virtio_mmio *m, uint32_t value)
{
	struct virtio_mmio_queue_state *q = virtio_mmio_open_queue(m);
	struct virtio_queue_setup setup;
	int r;

	if (!q || q->ready == (value & 1))
		return;
	if (value & 1) {
		setup = virtio_mmio_queue_setup(q);
		r = virtio_device_check_queue(m->dev, m->s.queue_sel, &setup);
		if (r) {
			virtio_mmio_fail(m, "rings that cannot be used", r);
			return;
		}
	}
	q->ready = value & 1;
}

static void virtio_mmio_write_half(uint64_t *reg, bool high, uint32_t value)
{
	if (high)
		*reg = (*reg & 0xffffffffu) | (uint64_t)value << 32;
	else
		*reg = (*reg & ~0xffffffffULL) | value;
}

static void virtio_mmio_write_queue(struct virtio_mmio *m, uint32_t reg, uint32_t value)
{
	struct virtio_mmio_queue_state *q = virtio_mmio_open_queue(m);

	if (!q || q->ready)
		return;
	switch (reg) {
	case VIRTIO_MMIO_QUEUE_NUM:
		/* Beyond 16 bits nothing is valid; 0 is refused when the queue is made ready. */
		q->num = value <= VIRTQ_SIZE_MAX ? value : 0;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		virtio_mmio_write_half(&q->desc, reg == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		virtio_mmio_write_half(&q->avail, reg == VIRTIO_MMIO_QUEUE_AVAIL_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		virtio_mmio_write_half(&q->used, reg == VIRTIO_MMIO_QUEUE_USED_HIGH, value);
		break;
	default:
		break;
	}
}

static void virtio_mmio_write_features(struct virtio_mmio *m, uint32_t value)
{
	if (!(m->s.status & VIRTIO_CONFIG_S_DRIVER) || m->s.status & VIRTIO_CONFIG_S_FEATURES_OK ||
	    m->s.driver_features_sel > 1)
		return;
	virtio_mmio_write_half(&m->s.driver_features, m->s.driver_features_sel, value);
}

/* Registers under `lock`. */
static void virtio_mmio_write_reg(struct virtio_mmio *m, uint32_t reg, uint32_t value)
{
	switch (reg) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		m->s.device_features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		m->s.driver_features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		virtio_mmio_write_features(m, value);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		m->s.queue_sel = value;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		virtio_mmio_write_ready(m, value);
		break;
	case VIRTIO_MMIO_STATUS:
		virtio_mmio_write_status(m, value);
		break;
	case VIRTIO_MMIO_SHM_SEL:
		m->s.shm_sel = value;
		break;
	default:
		virtio_mmio_write_queue(m, reg, value);
		break;
	}
}

static uint32_t virtio_mmio_read_queue(const struct virtio_mmio *m, uint32_t reg)
{
	if (m->s.queue_sel >= m->dev->info.nr_queues)
		return 0;
	if (reg == VIRTIO_MMIO_QUEUE_NUM_MAX)
		return m->dev->queues[m->s.queue_sel].size_max;
	return m->s.queues[m->s.queue_sel].ready;
}

/* A region that is not there has length and base -1 (4.2.2, SHMLen). */
static uint32_t virtio_mmio_read_shm(const struct virtio_mmio *m, uint32_t reg)
{
	uint64_t len = UINT64_MAX, base = UINT64_MAX;

	if (m->s.shm_sel < ARRAY_SIZE(m->shm) && m->shm[m->s.shm_sel].len) {
		len = m->shm[m->s.shm_sel].len;
		base = m->shm[m->s.shm_sel].gpa.v;
	}
	switch (reg) {
	case VIRTIO_MMIO_SHM_LEN_LOW:
		return (uint32_t)len;
	case VIRTIO_MMIO_SHM_LEN_HIGH:
		return (uint32_t)(len >> 32);
	case VIRTIO_MMIO_SHM_BASE_LOW:
		return (uint32_t)base;
	default:
		return (uint32_t)(base >> 32);
	}
}

static uint32_t virtio_mmio_read_features(const struct virtio_mmio *m)
{
	uint64_t features = virtio_device_features(m->dev);

	if (m->s.device_features_sel > 1)
		return 0;
	return (uint32_t)(features >> (32 * m->s.device_features_sel));
}

/* Registers under `lock`. */
static uint32_t virtio_mmio_read_reg(const struct virtio_mmio *m, uint32_t reg)
{
	switch (reg) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return VIRTIO_MMIO_MAGIC;
	case VIRTIO_MMIO_VERSION:
		return VIRTIO_MMIO_MODERN;
	case VIRTIO_MMIO_DEVICE_ID:
		return m->dev->info.id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VIRTIO_MMIO_VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return virtio_mmio_read_features(m);
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
	case VIRTIO_MMIO_QUEUE_READY:
		return virtio_mmio_read_queue(m, reg);
	case VIRTIO_MMIO_STATUS:
		return m->s.status;
	case VIRTIO_MMIO_SHM_LEN_LOW:
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return virtio_mmio_read_shm(m, reg);
	default:
		return 0;
	}
}

/* --- the guest's accesses ------------------------------------------------------------------------ */

static bool virtio_mmio_is_register(uint64_t off, uint32_t len)
{
	return len == sizeof(uint32_t) && !(off & 3);
}

/* What devices write too: false = not such a register. */
static bool virtio_mmio_read_irq(struct virtio_mmio *m, uint64_t off, uint32_t *ret)
{
	bool mine = true;

	pthread_mutex_lock(&m->irq_lock);
	if (off == VIRTIO_MMIO_INTERRUPT_STATUS)
		*ret = m->s.interrupt_status;
	else if (off == VIRTIO_MMIO_CONFIG_GENERATION)
		*ret = m->s.config_generation;
	else
		mine = false;
	pthread_mutex_unlock(&m->irq_lock);
	return mine;
}

void virtio_mmio_read(struct virtio_mmio *m, uint64_t off, void *data, uint32_t len)
{
	uint32_t value = 0;

	if (off >= VIRTIO_MMIO_CONFIG) {
		virtio_device_config_read(m->dev, off - VIRTIO_MMIO_CONFIG, data, len);
		return;
	}
	memset(data, 0, len);
	if (!virtio_mmio_is_register(off, len))
		return;
	if (!virtio_mmio_read_irq(m, off, &value)) {
		pthread_mutex_lock(&m->lock);
		value = virtio_mmio_read_reg(m, (uint32_t)off);
		pthread_mutex_unlock(&m->lock);
		if (off == VIRTIO_MMIO_STATUS && virtio_mmio_needs_reset(m))
			value |= VIRTIO_CONFIG_S_NEEDS_RESET;
	}
	value = htole32(value);
	memcpy(data, &value, sizeof(value));
}

void virtio_mmio_write(struct virtio_mmio *m, uint64_t off, const void *data, uint32_t len)
{
	uint32_t value;

	if (off >= VIRTIO_MMIO_CONFIG) {
		virtio_device_config_write(m->dev, off - VIRTIO_MMIO_CONFIG, data, len);
		return;
	}
	if (!virtio_mmio_is_register(off, len))
		return;
	memcpy(&value, data, sizeof(value));
	value = le32toh(value);
	if (off == VIRTIO_MMIO_QUEUE_NOTIFY) {
		virtio_device_kick(m->dev, value);
		return;
	}
	if (off == VIRTIO_MMIO_INTERRUPT_ACK) {
		pthread_mutex_lock(&m->irq_lock);
		m->s.interrupt_status &= ~value;
		pthread_mutex_unlock(&m->irq_lock);
		return;
	}
	pthread_mutex_lock(&m->lock);
	virtio_mmio_write_reg(m, (uint32_t)off, value);
	pthread_mutex_unlock(&m->lock);
}

/* --- life ---------------------------------------------------------------------------------------- */

struct virtio_mmio *virtio_mmio_new(const struct virtio_mmio_config *config)
{
	struct virtio_mmio *m = xcalloc(1, sizeof(*m));

	m->transport.ops = &virtio_mmio_transport_ops;
	m->dev = config->dev;
	m->irq_fd = config->irq_fd;
	memcpy(m->shm, config->shm, sizeof(m->shm));
	pthread_mutex_init(&m->lock, NULL);
	pthread_mutex_init(&m->irq_lock, NULL);
	virtio_device_attach(m->dev, &m->transport, config->mem);
	return m;
}

void virtio_mmio_free(struct virtio_mmio *m)
{
	if (!m)
		return;
	virtio_device_free(m->dev);
	cleanup_closep(&m->irq_fd);
	pthread_mutex_destroy(&m->lock);
	pthread_mutex_destroy(&m->irq_lock);
	free(m);
}

int virtio_mmio_start(struct virtio_mmio *m, const struct virtio_env *env, struct err *err)
{
	return virtio_device_start(m->dev, env, err);
}

unsigned int virtio_mmio_nr_queues(const struct virtio_mmio *m)
{
	return m->dev->info.nr_queues;
}

int virtio_mmio_kick_fd(const struct virtio_mmio *m, unsigned int queue)
{
	return queue < m->dev->info.nr_queues ? m->dev->queues[queue].kick_fd : -1;
}

struct virtio_device *virtio_mmio_device(struct virtio_mmio *m)
{
	return m->dev;
}

/* --- snapshots ----------------------------------------------------------------------------------- */

void virtio_mmio_save(struct virtio_mmio *m, struct virtio_mmio_state *ret)
{
	pthread_mutex_lock(&m->lock);
	pthread_mutex_lock(&m->irq_lock);
	*ret = m->s;
	for (unsigned int i = 0; i < m->dev->info.nr_queues; i++) {
		if (m->dev->queues[i].ready)
			ret->queues[i].last_avail = m->dev->queues[i].vq.last_avail;
	}
	pthread_mutex_unlock(&m->irq_lock);
	pthread_mutex_unlock(&m->lock);
}

/* Only what virtio_mmio_write() could have led to. */
static int virtio_mmio_check_state(const struct virtio_mmio *m, const struct virtio_mmio_state *s)
{
	if (s->status & ~(uint32_t)VIRTIO_MMIO_STATUS_BITS)
		return -EINVAL;
	if (s->status & VIRTIO_CONFIG_S_FEATURES_OK &&
	    (s->driver_features & ~virtio_device_features(m->dev) ||
	     !(s->driver_features >> VIRTIO_F_VERSION_1 & 1)))
		return -EINVAL;
	if (s->status & VIRTIO_CONFIG_S_DRIVER_OK && !(s->status & VIRTIO_CONFIG_S_FEATURES_OK))
		return -EINVAL;
	for (unsigned int i = 0; i < VIRTIO_QUEUES_MAX; i++) {
		const struct virtio_mmio_queue_state *q = &s->queues[i];
		struct virtio_queue_setup setup = virtio_mmio_queue_setup(q);
		int r;

		if (q->num > VIRTQ_SIZE_MAX || q->ready > 1 || q->last_avail > UINT16_MAX)
			return -EINVAL;
		r = q->ready ? virtio_device_check_queue(m->dev, i, &setup) : 0;
		if (r)
			return r;
	}
	return 0;
}

void virtio_mmio_interrupt_again(struct virtio_mmio *m)
{
	bool pending;

	pthread_mutex_lock(&m->irq_lock);
	pending = m->s.interrupt_status;
	pthread_mutex_unlock(&m->irq_lock);
	if (pending)
		virtio_mmio_interrupt(m);
}

int virtio_mmio_restore(struct virtio_mmio *m, const struct virtio_mmio_state *state)
{
	int r = virtio_mmio_check_state(m, state);

	if (r)
		return r;
	pthread_mutex_lock(&m->lock);
	pthread_mutex_lock(&m->irq_lock);
	m->s = *state;
	pthread_mutex_unlock(&m->irq_lock);
	if (m->s.status & VIRTIO_CONFIG_S_DRIVER_OK) {
		r = virtio_mmio_activate(m);
		if (r)
			virtio_mmio_reset(m);
	}
	pthread_mutex_unlock(&m->lock);
	return r;
}
