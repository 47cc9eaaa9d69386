/* virtio-blk over a guest's driver in this process, on a temporary file. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_mmio.h>

#include "blk.h"
#include "io.h"
#include "util.h"
#include "virtio_driver.h"

#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define FLUSH (1ull << VIRTIO_BLK_F_FLUSH)
#define DISK (4u << 20)
#define SECTORS (DISK / 512)
#define HDR ((uint32_t)sizeof(struct virtio_blk_outhdr))

struct fixture {
	struct vdrv *d;
	int fd; /* the test's own */
	uint64_t hdr, data, status;
};

static struct fixture *fixture_new_fd(int own_fd, int fd, bool read_only)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct virtio_device *dev;
	struct err err;

	f->fd = own_fd;
	assert_int_equal(
		virtio_blk_new(&(struct virtio_blk_params){.fd = fd,
							   .read_only = read_only,
							   .serial = "rootfs-0123456789-abcdef"},
			       &dev, &err),
		0);
	f->d = vdrv_new(dev, NULL);
	vdrv_up(f->d, EVENT_IDX | FLUSH, 64);
	f->hdr = vdrv_alloc(f->d, 4096);
	f->data = vdrv_alloc(f->d, 1 << 20);
	f->status = vdrv_alloc(f->d, 4096);
	return f;
}

static struct fixture *fixture_new(bool read_only, int open_flags)
{
	char path[] = "/tmp/harpoon-blk-XXXXXX";
	int own = mkstemp(path), fd;

	assert_true(own >= 0);
	assert_int_equal(ftruncate(own, DISK), 0);
	fd = open(path, open_flags | O_CLOEXEC);
	unlink(path);
	return fixture_new_fd(own, fd, read_only);
}

/* A file system that cannot zero a range: it is done by hand. */
static int set_up_in_memory(void **state)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, DISK), 0);
	*state = fixture_new_fd(fd, dup(fd), false);
	return 0;
}

static int set_up(void **state)
{
	*state = fixture_new(false, O_RDWR);
	return 0;
}

static int set_up_read_only(void **state)
{
	*state = fixture_new(true, O_RDONLY);
	return 0;
}

/* The host's own rights do not suffice: writing fails there. */
static int set_up_failing(void **state)
{
	*state = fixture_new(false, O_RDONLY);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vdrv_free(f->d);
	close(f->fd);
	free(f);
	return 0;
}

static void put_header(struct fixture *f, uint32_t type, uint64_t sector)
{
	struct virtio_blk_outhdr *h = vdrv_ptr(f->d, f->hdr);

	*h = (struct virtio_blk_outhdr){.type = htole32(type), .sector = htole64(sector)};
	memset(vdrv_ptr(f->d, f->status), 0xff, 1);
}

/* Header, data in one buffer, status; what status the device gave. */
static uint8_t request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t len)
{
	bool to_guest = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct vdrv_buf bufs[3] = {{f->hdr, HDR, false}};
	unsigned int nr = 1;
	uint32_t used;

	put_header(f, type, sector);
	if (len)
		bufs[nr++] = (struct vdrv_buf){f->data, len, to_guest};
	bufs[nr++] = (struct vdrv_buf){f->status, 1, true};
	assert_true(vdrv_add(f->d, 0, bufs, nr) >= 0);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, &used);
	assert_int_equal(used, to_guest ? len + 1 : 1);
	return *(uint8_t *)vdrv_ptr(f->d, f->status);
}

static void test_configuration(void **state)
{
	struct fixture *f = *state;
	struct virtio_blk_config c;

	virtio_mmio_read(f->d->m, VIRTIO_MMIO_CONFIG, &c, sizeof(c));
	assert_int_equal(le64toh(c.capacity), SECTORS);
	assert_int_equal(le32toh(c.blk_size), 512);
	assert_int_equal(le32toh(c.seg_max), 254);
	assert_int_equal(512u << c.physical_block_exp, 4096);
	assert_true(vdrv_features(f->d) & 1ull << VIRTIO_BLK_F_DISCARD);
	assert_false(vdrv_features(f->d) & 1ull << VIRTIO_BLK_F_RO);
}

static void test_write_flush_read(void **state)
{
	struct fixture *f = *state;
	uint8_t *data = vdrv_ptr(f->d, f->data);
	uint8_t *want = xmalloc(64 << 10), *got = xmalloc(64 << 10);

	for (uint32_t i = 0; i < 64 << 10; i++)
		want[i] = (uint8_t)(i * 31 + (i >> 8));
	memcpy(data, want, 64 << 10);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 100, 64 << 10), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(f->fd, got, 64 << 10, 100 * 512), 64 << 10);
	assert_memory_equal(got, want, 64 << 10);
	memset(data, 0, 64 << 10);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 100, 64 << 10), VIRTIO_BLK_S_OK);
	assert_memory_equal(data, want, 64 << 10);
	/* The last sector, and nothing of the one after. */
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, SECTORS - 1, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(lseek(f->fd, 0, SEEK_END), DISK);
	free(want);
	free(got);
}

/* Buffers cut without regard to what is in them. */
static void test_any_layout(void **state)
{
	struct fixture *f = *state;
	struct vdrv_buf out[6], in[4];
	uint8_t *data = vdrv_ptr(f->d, f->data);

	memset(data, 'w', 2048);
	put_header(f, VIRTIO_BLK_T_OUT, 8);
	/* Header in three pieces; data in two of odd sizes. */
	out[0] = (struct vdrv_buf){f->hdr, 3, false};
	out[1] = (struct vdrv_buf){f->hdr + 3, 12, false};
	out[2] = (struct vdrv_buf){f->hdr + 15, 1, false};
	out[3] = (struct vdrv_buf){f->data, 1, false};
	out[4] = (struct vdrv_buf){f->data + 7, 1023, false};
	out[5] = (struct vdrv_buf){f->status, 1, true};
	assert_true(vdrv_add(f->d, 0, out, 6) >= 0);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
	assert_int_equal(*(uint8_t *)vdrv_ptr(f->d, f->status), VIRTIO_BLK_S_OK);
	/* The status is the last byte of a buffer that data is in as well. */
	memset(data, 0, 2048);
	put_header(f, VIRTIO_BLK_T_IN, 8);
	in[0] = (struct vdrv_buf){f->hdr, HDR, false};
	in[1] = (struct vdrv_buf){f->data, 500, true};
	in[2] = (struct vdrv_buf){f->data + 500, 0, true};
	in[3] = (struct vdrv_buf){f->data + 600, 525, true};
	data[600 + 524] = 0xff;
	assert_true(vdrv_add(f->d, 0, in, 4) >= 0);
	vdrv_kick(f->d, 0);
	vdrv_wait_used(f->d, 0, NULL);
	assert_int_equal(data[600 + 524], VIRTIO_BLK_S_OK);
	for (int i = 0; i < 1024; i++)
		assert_int_equal(data[i < 500 ? i : i + 100], 'w');
}

static void test_get_id(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	assert_memory_equal(vdrv_ptr(f->d, f->data), "rootfs-0123456789-ab", 20);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 19), VIRTIO_BLK_S_IOERR);
}

static uint32_t put_range(struct fixture *f, unsigned int index, uint64_t sector, uint32_t nr,
			  uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes *r = vdrv_ptr(f->d, f->data);

	r[index] = (struct virtio_blk_discard_write_zeroes){
		.sector = htole64(sector), .num_sectors = htole32(nr), .flags = htole32(flags)};
	return (uint32_t)((index + 1) * sizeof(*r));
}

static void test_discard_and_write_zeroes(void **state)
{
	struct fixture *f = *state;
	static const struct {
		uint32_t type, flags;
	} ways[] = {{VIRTIO_BLK_T_DISCARD, 0},
		    {VIRTIO_BLK_T_WRITE_ZEROES, 0},
		    {VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP}};
	uint8_t *block = xmalloc(1 << 20);

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct stat before, after;
		uint32_t len;

		memset(block, 0x77, 1 << 20);
		assert_int_equal(pwrite(f->fd, block, 1 << 20, 0), 1 << 20);
		assert_int_equal(fstat(f->fd, &before), 0);
		put_range(f, 0, 8, 1024, ways[i].flags);
		len = put_range(f, 1, 1040, 8, ways[i].flags);
		assert_int_equal(request(f, ways[i].type, 0, len), VIRTIO_BLK_S_OK);
		assert_int_equal(pread(f->fd, block, 1 << 20, 0), 1 << 20);
		for (uint32_t at = 0; at < 1 << 20; at++) {
			uint32_t sector = at / 512;
			bool gone =
				(sector >= 8 && sector < 1032) || (sector >= 1040 && sector < 1048);

			assert_int_equal(block[at], gone ? 0 : 0x77);
		}
		assert_int_equal(fstat(f->fd, &after), 0);
		if (i != 1)
			assert_true(after.st_blocks < before.st_blocks);
		assert_int_equal(after.st_size, DISK);
	}
	free(block);
}

static void test_requests_that_are_refused(void **state)
{
	struct fixture *f = *state;
	static const struct {
		uint32_t type;
		uint64_t sector;
		uint32_t len;
		uint8_t status;
	} table[] = {
		{VIRTIO_BLK_T_IN, SECTORS, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, SECTORS - 1, 1024, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, UINT64_MAX, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, UINT64_MAX >> 9, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, 1ull << 55, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_IN, 0, 0, VIRTIO_BLK_S_OK},
		{VIRTIO_BLK_T_OUT, SECTORS, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, 0, 513, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_OUT, UINT64_MAX, 512, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_SCSI_CMD, 0, 512, VIRTIO_BLK_S_UNSUPP},
		{VIRTIO_BLK_T_SECURE_ERASE, 0, 16, VIRTIO_BLK_S_UNSUPP},
		{UINT32_MAX, 0, 512, VIRTIO_BLK_S_UNSUPP},
		{VIRTIO_BLK_T_DISCARD, 0, 0, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_DISCARD, 0, 15, VIRTIO_BLK_S_IOERR},
		{VIRTIO_BLK_T_DISCARD, 0, 17 * 16, VIRTIO_BLK_S_IOERR},
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		assert_int_equal(request(f, table[i].type, table[i].sector, table[i].len),
				 table[i].status);
	put_range(f, 0, SECTORS, 1, 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
	put_range(f, 0, UINT64_MAX, UINT32_MAX, 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
	put_range(f, 0, 0, 8, 1);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_UNSUPP);
	put_range(f, 0, 0, 8, 2);
	assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_UNSUPP);
	assert_false(vdrv_needs_reset(f->d));
	assert_int_equal(lseek(f->fd, 0, SEEK_END), DISK);
}

static void test_read_only(void **state)
{
	struct fixture *f = *state;

	assert_true(vdrv_features(f->d) & 1ull << VIRTIO_BLK_F_RO);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	put_range(f, 0, 0, 8, 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
}

static void test_errors_of_the_host_are_passed_on(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	put_range(f, 0, 0, 8, 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	/* The file shrinks under us. */
	assert_int_equal(ftruncate(f->fd, 1024), 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 1024), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 1, 1024), VIRTIO_BLK_S_IOERR);
	assert_false(vdrv_needs_reset(f->d));
}

static void test_no_space(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, low = {.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	low.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 8192), VIRTIO_BLK_S_IOERR);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 8192), VIRTIO_BLK_S_OK);
}

static void test_chains_that_are_no_requests(void **state)
{
	struct fixture *f = *state;
	const struct {
		struct vdrv_buf bufs[2];
		unsigned int nr;
	} table[] = {
		{{{f->hdr, HDR, false}}, 1},			       /* no status */
		{{{f->status, 1, true}}, 1},			       /* no header */
		{{{f->hdr, HDR - 1, false}, {f->status, 1, true}}, 2}, /* half a header */
		{{{f->hdr, HDR, false}, {f->status, 0, true}}, 2},     /* a status of no byte */
		{{{f->hdr, 0, false}}, 1},
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		uint64_t end = util_now_ns() + VDRV_WAIT_MS * 1000000ull;

		put_header(f, VIRTIO_BLK_T_IN, 0);
		assert_true(vdrv_add(f->d, 0, table[i].bufs, table[i].nr) >= 0);
		vdrv_kick(f->d, 0);
		while (!vdrv_needs_reset(f->d))
			assert_true(util_now_ns() < end);
		assert_int_equal(vdrv_used(f->d, 0, NULL), -1);
		vdrv_up(f->d, EVENT_IDX | FLUSH, 64);
		assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	}
}

static void test_many_requests_in_one_kick(void **state)
{
	struct fixture *f = *state;
	struct vdrv_buf bufs[3] = {
		{f->hdr, HDR, false}, {f->data, 512, true}, {f->status, 1, true}};

	put_header(f, VIRTIO_BLK_T_IN, 0);
	for (int round = 0; round < 20; round++) {
		int nr = 0;

		while (vdrv_add(f->d, 0, bufs, 3) >= 0)
			nr++;
		assert_int_equal(nr, 21);
		vdrv_kick(f->d, 0);
		while (nr--)
			vdrv_wait_used(f->d, 0, NULL);
	}
}

static void test_what_is_no_disk(void **state)
{
	struct virtio_device *dev;
	struct err err;
	int p[2];
	int fd;

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(virtio_blk_new(&(struct virtio_blk_params){.fd = p[0]}, &dev, &err),
			 -EINVAL);
	/* Taken over: the pipe has no reader any more. */
	assert_int_equal(write(p[1], "x", 1), -1);
	close(p[1]);
	fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 511), 0);
	assert_int_equal(virtio_blk_new(&(struct virtio_blk_params){.fd = fd}, &dev, &err),
			 -EINVAL);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_configuration),
		CASE(test_write_flush_read),
		CASE(test_any_layout),
		CASE(test_get_id),
		CASE(test_discard_and_write_zeroes),
		cmocka_unit_test_setup_teardown(test_discard_and_write_zeroes, set_up_in_memory,
						tear_down),
		CASE(test_requests_that_are_refused),
		cmocka_unit_test_setup_teardown(test_read_only, set_up_read_only, tear_down),
		cmocka_unit_test_setup_teardown(test_errors_of_the_host_are_passed_on,
						set_up_failing, tear_down),
		CASE(test_no_space),
		CASE(test_chains_that_are_no_requests),
		CASE(test_many_requests_in_one_kick),
		cmocka_unit_test(test_what_is_no_disk),
	};

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
