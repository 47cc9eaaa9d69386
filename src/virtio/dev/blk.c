/*
 * virtio-blk; see blk.h. Spec: virtio 1.2, 5.2.6.
 *
 * A request: readable { header, data of a write }, writable { data of a read, status byte }, in whatever
 * buffers. A chain that has no place for header or status breaks the queue; everything else that is
 * wrong (sector range, length, type) is the status of that request alone. Header and segment tables are
 * copied before they are judged; data goes between the guest's buffers and the file without a copy.
 */
#include "blk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "iov.h"
#include "log.h"
#include "util.h"

#define VIRTIO_BLK_QUEUE_SIZE 256
#define VIRTIO_BLK_SECTOR 512u
#define VIRTIO_BLK_SECTOR_SHIFT 9
/* Segments of data in a request: header and status take two of an indirect table. */
#define VIRTIO_BLK_SEG_MAX (VIRTIO_BLK_QUEUE_SIZE - 2)
/* Of discard and write zeroes: per segment (1 GiB), and segments per request. */
#define VIRTIO_BLK_RANGE_SECTORS_MAX (1u << 21)
#define VIRTIO_BLK_RANGES_MAX 16
/* How the zeroes are written where the file system cannot. */
#define VIRTIO_BLK_ZERO_CHUNK (64u << 10)

struct virtio_blk {
	struct virtio_device dev;
	int fd; /* owned */
	bool read_only;
	uint64_t nr_sectors;
	char id[VIRTIO_BLK_ID_BYTES];
	struct virtio_blk_config config; /* little-endian, constant */
	/* The worker's. */
	struct virtq_chain chain;
	struct iovec slice[VIRTQ_SIZE_MAX];
	bool logged; /* an error of the host was logged; the first is enough */
};

static struct virtio_blk *virtio_blk_of(struct virtio_device *dev)
{
	return container_of(dev, struct virtio_blk, dev);
}

/* --- requests, on the worker --------------------------------------------------------------------- */

/* What the guest is told of -errno. */
static uint8_t virtio_blk_status(struct virtio_blk *b, int r, const char *what)
{
	if (!r)
		return VIRTIO_BLK_S_OK;
	if (r == -EOPNOTSUPP || r == -ENOTTY)
		return VIRTIO_BLK_S_UNSUPP;
	if (!b->logged)
		log_warn("virtio", "blk: %s: %s; the guest gets I/O errors", what, strerror(-r));
	b->logged = true;
	return VIRTIO_BLK_S_IOERR;
}

static bool virtio_blk_range_is_good(const struct virtio_blk *b, uint64_t sector, uint64_t len)
{
	uint64_t nr = len >> VIRTIO_BLK_SECTOR_SHIFT;

	return len % VIRTIO_BLK_SECTOR == 0 && sector <= b->nr_sectors &&
	       nr <= b->nr_sectors - sector;
}

/* All of [off, off + len) of the vectors to or from the file at `pos`. */
static int virtio_blk_transfer(struct virtio_blk *b, const struct iovec *iov, unsigned int nr_iov,
			       size_t off, size_t len, uint64_t pos, bool write)
{
	while (len) {
		unsigned int nr = iov_slice(iov, nr_iov, off, len, b->slice, ARRAY_SIZE(b->slice));
		ssize_t n = write ? pwritev(b->fd, b->slice, (int)nr, (off_t)pos)
				  : preadv(b->fd, b->slice, (int)nr, (off_t)pos);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO; /* the file is shorter than it was */
		off += (size_t)n;
		len -= (size_t)n;
		pos += (uint64_t)n;
	}
	return 0;
}

static uint8_t virtio_blk_read(struct virtio_blk *b, uint64_t sector, size_t len)
{
	const struct virtq_chain *c = &b->chain;

	if (!virtio_blk_range_is_good(b, sector, len))
		return VIRTIO_BLK_S_IOERR;
	return virtio_blk_status(b,
				 virtio_blk_transfer(b, c->iov + c->nr_readable, c->nr_writable, 0,
						     len, sector << VIRTIO_BLK_SECTOR_SHIFT, false),
				 "read");
}

static uint8_t virtio_blk_flush(struct virtio_blk *b)
{
	return virtio_blk_status(b, fdatasync(b->fd) ? -errno : 0, "flush");
}

static uint8_t virtio_blk_write(struct virtio_blk *b, uint64_t sector, size_t len)
{
	const struct virtq_chain *c = &b->chain;
	uint8_t status;

	if (b->read_only || !virtio_blk_range_is_good(b, sector, len))
		return VIRTIO_BLK_S_IOERR;
	status = virtio_blk_status(b,
				   virtio_blk_transfer(b, c->iov, c->nr_readable,
						       sizeof(struct virtio_blk_outhdr), len,
						       sector << VIRTIO_BLK_SECTOR_SHIFT, true),
				   "write");
	if (status == VIRTIO_BLK_S_OK && !virtio_device_has(&b->dev, VIRTIO_BLK_F_FLUSH))
		status = virtio_blk_flush(b);
	return status;
}

static uint8_t virtio_blk_get_id(struct virtio_blk *b, size_t len)
{
	const struct virtq_chain *c = &b->chain;

	if (len < sizeof(b->id))
		return VIRTIO_BLK_S_IOERR;
	iov_write(c->iov + c->nr_readable, c->nr_writable, 0, b->id, sizeof(b->id));
	return VIRTIO_BLK_S_OK;
}

static int virtio_blk_zero_by_hand(struct virtio_blk *b, uint64_t pos, uint64_t len)
{
	static const uint8_t zeroes[VIRTIO_BLK_ZERO_CHUNK];

	while (len) {
		ssize_t n = pwrite(b->fd, zeroes, MIN(len, sizeof(zeroes)), (off_t)pos);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		pos += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int virtio_blk_apply_range(struct virtio_blk *b, uint32_t type, uint64_t pos, uint64_t len,
				  bool unmap)
{
	int mode = FALLOC_FL_KEEP_SIZE;
	int r;

	if (!len)
		return 0;
	mode |= type == VIRTIO_BLK_T_DISCARD || unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
	do
		r = fallocate(b->fd, mode, (off_t)pos, (off_t)len) ? -errno : 0;
	while (r == -EINTR);
	if (r == -EOPNOTSUPP && type == VIRTIO_BLK_T_WRITE_ZEROES)
		return virtio_blk_zero_by_hand(b, pos, len);
	return r;
}

/* Discard and write zeroes: the data is a table of ranges, each judged before the first is applied. */
static uint8_t virtio_blk_ranges(struct virtio_blk *b, uint32_t type, size_t len)
{
	struct virtio_blk_discard_write_zeroes table[VIRTIO_BLK_RANGES_MAX];
	const uint32_t known =
		type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
	const struct virtq_chain *c = &b->chain;
	size_t nr = len / sizeof(table[0]);

	if (b->read_only || !nr || len % sizeof(table[0]) || nr > ARRAY_SIZE(table))
		return VIRTIO_BLK_S_IOERR;
	iov_read(c->iov, c->nr_readable, sizeof(struct virtio_blk_outhdr), table, len);
	for (size_t i = 0; i < nr; i++) {
		uint64_t bytes = (uint64_t)le32toh(table[i].num_sectors) << VIRTIO_BLK_SECTOR_SHIFT;

		if (le32toh(table[i].flags) & ~known)
			return VIRTIO_BLK_S_UNSUPP;
		if (le32toh(table[i].num_sectors) > VIRTIO_BLK_RANGE_SECTORS_MAX ||
		    !virtio_blk_range_is_good(b, le64toh(table[i].sector), bytes))
			return VIRTIO_BLK_S_IOERR;
	}
	for (size_t i = 0; i < nr; i++) {
		uint64_t pos = le64toh(table[i].sector) << VIRTIO_BLK_SECTOR_SHIFT;
		uint64_t bytes = (uint64_t)le32toh(table[i].num_sectors) << VIRTIO_BLK_SECTOR_SHIFT;
		uint8_t status = virtio_blk_status(
			b, virtio_blk_apply_range(b, type, pos, bytes, le32toh(table[i].flags)),
			type == VIRTIO_BLK_T_DISCARD ? "discard" : "write zeroes");

		if (status != VIRTIO_BLK_S_OK)
			return status;
	}
	return VIRTIO_BLK_S_OK;
}

/* in_len, out_len: bytes of data the chain has for the guest and from it. */
static uint8_t virtio_blk_obey(struct virtio_blk *b, const struct virtio_blk_outhdr *h,
			       size_t in_len, size_t out_len)
{
	switch (le32toh(h->type)) {
	case VIRTIO_BLK_T_IN:
		return virtio_blk_read(b, le64toh(h->sector), in_len);
	case VIRTIO_BLK_T_OUT:
		return virtio_blk_write(b, le64toh(h->sector), out_len);
	case VIRTIO_BLK_T_FLUSH:
		return virtio_blk_flush(b);
	case VIRTIO_BLK_T_GET_ID:
		return virtio_blk_get_id(b, in_len);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return virtio_blk_ranges(b, le32toh(h->type), out_len);
	default:
		return VIRTIO_BLK_S_UNSUPP;
	}
}

/* The request in b->chain; false = the guest broke the queue. */
static bool virtio_blk_serve(struct virtio_blk *b, struct virtio_queue *q)
{
	const struct virtq_chain *c = &b->chain;
	const struct iovec *in = c->iov + c->nr_readable;
	size_t out_len = iov_len(c->iov, c->nr_readable), in_len = iov_len(in, c->nr_writable);
	struct virtio_blk_outhdr h;
	uint8_t status;

	if (iov_read(c->iov, c->nr_readable, 0, &h, sizeof(h)) != sizeof(h)) {
		virtio_queue_fail(q, "a request is shorter than its header");
		return false;
	}
	if (!in_len) {
		virtio_queue_fail(q, "a request has no room for its status");
		return false;
	}
	status = virtio_blk_obey(b, &h, in_len - 1, out_len - sizeof(h));
	iov_write(in, c->nr_writable, in_len - 1, &status, sizeof(status));
	virtq_push(&q->vq, c->head, (uint32_t)in_len);
	return true;
}

static bool virtio_blk_queue_kick(struct virtio_device *dev, unsigned int index)
{
	struct virtio_blk *b = virtio_blk_of(dev);
	struct virtio_queue *q = &dev->queues[index];

	virtq_disable_kicks(&q->vq);
	/* One drain is one turn: a reset waits for no more than the request under way and this. */
	for (unsigned int budget = q->vq.size; budget; budget--) {
		int r = virtio_queue_pop(q, &b->chain);

		if (!r && virtq_enable_kicks(&q->vq))
			continue;
		if (r <= 0 || !virtio_blk_serve(b, q))
			return false;
		virtio_queue_notify(q);
	}
	return true;
}

/* --- the device ---------------------------------------------------------------------------------- */

static void virtio_blk_config_read(struct virtio_device *dev, uint32_t off, void *data,
				   uint32_t len)
{
	memcpy(data, (const uint8_t *)&virtio_blk_of(dev)->config + off, len);
}

static void virtio_blk_free(struct virtio_device *dev)
{
	struct virtio_blk *b = virtio_blk_of(dev);

	cleanup_closep(&b->fd);
	virtio_device_done(dev);
	free(b);
}

static const struct virtio_device_ops virtio_blk_ops = {
	.config_read = virtio_blk_config_read,
	.queue_kick = virtio_blk_queue_kick,
	.free = virtio_blk_free,
};

/* Sizes in bytes; logical is what I/O must be aligned to, physical what it had better be. */
struct virtio_blk_geometry_of {
	uint64_t len;
	uint32_t logical, physical;
};

static int virtio_blk_measure(int fd, struct virtio_blk_geometry_of *ret, struct err *err)
{
	struct stat st;
	int logical = 0;
	unsigned int physical = 0;

	if (fstat(fd, &st))
		return err_set(err, -errno, "look at a disk");
	if (S_ISREG(st.st_mode)) {
		*ret = (struct virtio_blk_geometry_of){.len = (uint64_t)st.st_size,
						       .logical = VIRTIO_BLK_SECTOR,
						       .physical = (uint32_t)st.st_blksize};
		return 0;
	}
	if (!S_ISBLK(st.st_mode))
		return err_say(err, -EINVAL, "a disk is a regular file or a block device");
	if (ioctl(fd, BLKGETSIZE64, &ret->len) || ioctl(fd, BLKSSZGET, &logical) ||
	    ioctl(fd, BLKPBSZGET, &physical))
		return err_set(err, -errno, "ask a block device for its size");
	ret->logical = (uint32_t)logical;
	ret->physical = physical;
	return 0;
}

static void virtio_blk_fill_config(struct virtio_blk *b, const struct virtio_blk_geometry_of *g)
{
	uint8_t exponent = 0;

	while (exponent < 7 && g->logical << (exponent + 1) <= g->physical)
		exponent++;
	b->config = (struct virtio_blk_config){
		.capacity = htole64(b->nr_sectors),
		.seg_max = htole32(VIRTIO_BLK_SEG_MAX),
		.blk_size = htole32(g->logical),
		.physical_block_exp = exponent,
		.min_io_size = htole16((uint16_t)(1u << exponent)),
		.num_queues = htole16(1),
		.max_discard_sectors = htole32(VIRTIO_BLK_RANGE_SECTORS_MAX),
		.max_discard_seg = htole32(VIRTIO_BLK_RANGES_MAX),
		.discard_sector_alignment = htole32(g->logical / VIRTIO_BLK_SECTOR),
		.max_write_zeroes_sectors = htole32(VIRTIO_BLK_RANGE_SECTORS_MAX),
		.max_write_zeroes_seg = htole32(VIRTIO_BLK_RANGES_MAX),
		.write_zeroes_may_unmap = 1,
	};
}

static uint64_t virtio_blk_features(bool read_only)
{
	uint64_t f = 1ULL << VIRTIO_BLK_F_SEG_MAX | 1ULL << VIRTIO_BLK_F_BLK_SIZE |
		     1ULL << VIRTIO_BLK_F_TOPOLOGY | 1ULL << VIRTIO_BLK_F_FLUSH;

	if (read_only)
		return f | 1ULL << VIRTIO_BLK_F_RO;
	return f | 1ULL << VIRTIO_BLK_F_DISCARD | 1ULL << VIRTIO_BLK_F_WRITE_ZEROES;
}

int virtio_blk_new(const struct virtio_blk_params *params, struct virtio_device **ret,
		   struct err *err)
{
	const struct virtio_device_info info = {
		.name = "blk",
		.id = VIRTIO_ID_BLOCK,
		.features = virtio_blk_features(params->read_only),
		.config_len = sizeof(struct virtio_blk_config),
		.nr_queues = 1,
		.queues = {{.size_max = VIRTIO_BLK_QUEUE_SIZE, .blocking = true}},
	};
	cleanup_close int fd = params->fd;
	cleanup_free struct virtio_blk *b = xcalloc(1, sizeof(*b));
	struct virtio_blk_geometry_of g = {0};
	int r = virtio_blk_measure(fd, &g, err);

	if (r)
		return r;
	b->nr_sectors = g.len >> VIRTIO_BLK_SECTOR_SHIFT;
	if (!b->nr_sectors)
		return err_say(err, -EINVAL, "a disk of less than one sector cannot be attached");
	b->read_only = params->read_only;
	if (params->serial)
		memcpy(b->id, params->serial, strnlen(params->serial, sizeof(b->id)));
	virtio_blk_fill_config(b, &g);
	r = virtio_device_init(&b->dev, &virtio_blk_ops, &info, err);
	if (r)
		return r;
	b->fd = take_fd(&fd);
	*ret = &take_ptr(&b)->dev;
	return 0;
}
