/*
 * Guest memory to a dense file and back; see template_image.h.
 *
 * A freshly booted guest has touched some 4000 of its pages, in a few hundred runs. Copying just these into
 * a new tmpfs file costs less than anything that maps or faults them one by one.
 *
 * Thread: any.
 */
#include "template_image.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

#define IMAGE_MAGIC "hrpn-mem" /* without its NUL */
#define IMAGE_VERSION 1u
#define IMAGE_PAGE 4096u
#define IMAGE_EXTENTS_MAX (256u * 1024)
#define IMAGE_CHUNK (1u << 20)

struct image_header {
	char magic[8];
	uint32_t version;
	uint32_t page;
	uint64_t ram_bytes;
	uint64_t nr_extents;
} __attribute__((packed));

struct image_extent {
	uint64_t offset; /* in guest memory */
	uint64_t len;
} __attribute__((packed));

static_assert(sizeof(struct image_header) == 32, "header layout");
static_assert(sizeof(struct image_extent) == 16, "extent layout");

struct image_map {
	uint8_t *ram;
	uint64_t len;
	struct image_extent *extents; /* owned; host byte order */
	size_t nr, cap;
	uint64_t bytes;
};

static void image_map_done(struct image_map *m)
{
	if (m->ram)
		munmap(m->ram, m->len);
	free(m->extents);
}

static uint64_t image_data_offset(uint64_t nr_extents)
{
	uint64_t end = sizeof(struct image_header) + nr_extents * sizeof(struct image_extent);

	return (end + IMAGE_PAGE - 1) / IMAGE_PAGE * IMAGE_PAGE;
}

static bool image_page_is_zero(const uint8_t *page)
{
	uint64_t word;

	memcpy(&word, page, sizeof(word));
	return !word && !memcmp(page, page + sizeof(word), IMAGE_PAGE - sizeof(word));
}

static int image_add_page(struct image_map *m, uint64_t offset)
{
	struct image_extent *last = m->nr ? &m->extents[m->nr - 1] : NULL;

	m->bytes += IMAGE_PAGE;
	if (last && last->offset + last->len == offset) {
		last->len += IMAGE_PAGE;
		return 0;
	}
	if (m->nr == m->cap) {
		if (m->cap == IMAGE_EXTENTS_MAX)
			return -E2BIG;
		m->cap = m->cap ? m->cap * 2 : 1024;
		m->extents = xrealloc(m->extents, m->cap * sizeof(*m->extents));
	}
	m->extents[m->nr++] = (struct image_extent){offset, IMAGE_PAGE};
	return 0;
}

/* Holes are skipped unseen: looking at them would fill them. */
static int image_scan(struct image_map *m, int ram_fd)
{
	off_t data = lseek(ram_fd, 0, SEEK_DATA), hole;

	while (data >= 0 && (uint64_t)data < m->len) {
		hole = lseek(ram_fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		for (off_t at = data; at < hole; at += IMAGE_PAGE) {
			int r = image_page_is_zero(m->ram + at) ? 0
								: image_add_page(m, (uint64_t)at);

			if (r)
				return r;
		}
		data = lseek(ram_fd, hole, SEEK_DATA);
	}
	return data < 0 && errno != ENXIO ? -errno : 0;
}

static int image_write_table(const struct image_map *m, int out_fd)
{
	const size_t len = image_data_offset(m->nr);
	cleanup_free uint8_t *head = xcalloc(1, len);
	struct image_header h = {
		.magic = IMAGE_MAGIC,
		.version = htole32(IMAGE_VERSION),
		.page = htole32(IMAGE_PAGE),
		.ram_bytes = htole64(m->len),
		.nr_extents = htole64(m->nr),
	};

	memcpy(head, &h, sizeof(h));
	for (size_t i = 0; i < m->nr; i++) {
		struct image_extent e = {htole64(m->extents[i].offset), htole64(m->extents[i].len)};

		memcpy(head + sizeof(h) + i * sizeof(e), &e, sizeof(e));
	}
	return io_write_full(out_fd, head, len);
}

int template_image_write(int ram_fd, uint64_t ram_bytes, int out_fd, struct err *err)
{
	cleanup(image_map_done) struct image_map m = {.len = ram_bytes};
	struct stat st;
	void *ram;
	int r;

	if (fstat(ram_fd, &st))
		return err_set(err, -errno, "look at guest memory");
	if ((uint64_t)st.st_size != ram_bytes)
		return err_say(err, -EPROTO, "the file of guest memory has %jd bytes, not %" PRIu64,
			       (intmax_t)st.st_size, ram_bytes);
	ram = mmap(NULL, ram_bytes, PROT_READ, MAP_SHARED, ram_fd, 0);
	if (ram == MAP_FAILED)
		return err_set(err, -errno, "map guest memory");
	m.ram = ram;
	r = image_scan(&m, ram_fd);
	if (r)
		return err_set(err, r, "look for pages of guest memory in use");
	r = image_write_table(&m, out_fd);
	for (size_t i = 0; i < m.nr && !r; i++)
		r = io_write_full(out_fd, m.ram + m.extents[i].offset, m.extents[i].len);
	if (r)
		return err_set(err, r, "write %" PRIu64 " MiB of guest memory", m.bytes >> 20);
	return 0;
}

static int image_read_header(int fd, uint64_t ram_bytes, uint64_t *ret_nr)
{
	struct image_header h;
	ssize_t n = pread(fd, &h, sizeof(h), 0);

	if (n < 0)
		return -errno;
	if (n != sizeof(h) || memcmp(h.magic, IMAGE_MAGIC, sizeof(h.magic)) != 0 ||
	    le32toh(h.version) != IMAGE_VERSION || le32toh(h.page) != IMAGE_PAGE ||
	    le64toh(h.ram_bytes) != ram_bytes || le64toh(h.nr_extents) > IMAGE_EXTENTS_MAX)
		return -EPROTO;
	*ret_nr = le64toh(h.nr_extents);
	return 0;
}

/* In ascending order, apart, inside guest memory, and together what the file has. */
static int image_check(const struct image_extent *extents, uint64_t nr, uint64_t ram_bytes,
		       uint64_t file_bytes)
{
	uint64_t end = 0, total = 0;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t offset = le64toh(extents[i].offset), len = le64toh(extents[i].len);

		if (offset % IMAGE_PAGE || len % IMAGE_PAGE || !len || offset < end ||
		    offset > ram_bytes || len > ram_bytes - offset)
			return -EPROTO;
		end = offset + len;
		total += len;
	}
	return image_data_offset(nr) + total == file_bytes ? 0 : -EPROTO;
}

static int image_copy(int image_fd, off_t *from, int ram_fd, uint64_t offset, uint64_t len)
{
	if (lseek(ram_fd, (off_t)offset, SEEK_SET) < 0)
		return -errno;
	while (len) {
		ssize_t n = sendfile(ram_fd, image_fd, from, MIN(len, IMAGE_CHUNK));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EPROTO;
		len -= (uint64_t)n;
	}
	return 0;
}

static int image_load(int image_fd, uint64_t ram_bytes, int ram_fd)
{
	cleanup_free struct image_extent *extents = NULL;
	struct stat st;
	uint64_t nr = 0;
	off_t from;
	size_t len;
	int r = image_read_header(image_fd, ram_bytes, &nr);

	if (r)
		return r;
	len = nr * sizeof(*extents);
	extents = xmalloc(len + 1);
	if (fstat(image_fd, &st) ||
	    pread(image_fd, extents, len, sizeof(struct image_header)) != (ssize_t)len)
		return -EPROTO;
	r = image_check(extents, nr, ram_bytes, (uint64_t)st.st_size);
	from = (off_t)image_data_offset(nr);
	for (uint64_t i = 0; i < nr && !r; i++)
		r = image_copy(image_fd, &from, ram_fd, le64toh(extents[i].offset),
			       le64toh(extents[i].len));
	return r;
}

int template_image_load(int image_fd, uint64_t ram_bytes, int ram_fd, struct err *err)
{
	int r = image_load(image_fd, ram_bytes, ram_fd);

	return r ? err_set(err, r, "guest memory of the template") : 0;
}
