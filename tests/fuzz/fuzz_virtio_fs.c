/*
 * Fuzz entry: virtio-fs with a window over a memory image; the input is described in virtio_image.h. harpoon-fs is this
 * program: operation 4 puts an answer where the device finds it when it asks next (a: bit 0 with a file, bit 1 an error,
 * bit 2 one export and not the other, bits 3 to 5 the file's number; b: how long). Without one harpoon-fs is gone.
 *
 * Checked beyond "no crash": the window stays readable, nothing of the file is written, no descriptor is left.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/fuse.h>

#include "io.h"
#include "virtio_image.h"
#include "virtiofs_internal.h"

#define FILE_LEN (3u << 20)
#define WINDOW (4ull * VIRTIOFS_WINDOW_SLOT)
#define FILES_MAX 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct server {
	int ends[IO_FDS_MAX]; /* the memory, then the links */
	size_t nr;
	uint8_t *mem;
	int file;
};

static void check(bool ok)
{
	if (!ok)
		abort();
}

static unsigned int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int nr = 0;

	check(dir != NULL);
	while (readdir(dir))
		nr++;
	closedir(dir);
	return nr;
}

/* One answer for each link: which of them asks next is the device's matter. */
static void answer(struct virtio_image *image, uint8_t a, uint16_t b)
{
	const struct fs_link_reply reply = {.len = b % 8192u,
					    .opened = a & 1,
					    .fh = a >> 3 & 7,
					    .node_id = 1,
					    .export_id = 1 + (a >> 2 & 1)};
	const struct fuse_out_header out = {.len = reply.len, .error = a & 2 ? -EACCES : 0};
	struct server *s = image->ctx;

	for (size_t i = 1; i < s->nr; i++) {
		memcpy(s->mem + (i - 1) * FS_CHANNEL_SLOT + FS_CHANNEL_AREA, &out, sizeof(out));
		(void)io_send_fds(s->ends[i], &reply, sizeof(reply), &s->file, a & 1);
	}
}

static void server_start(struct server *s, struct virtiofs *f, int trunk)
{
	char hello[64];

	s->nr = IO_FDS_MAX;
	check(io_recv_fds(trunk, hello, sizeof(hello), s->ends, &s->nr) > 0);
	s->mem = mmap(NULL, (s->nr - 1) * FS_CHANNEL_SLOT, PROT_READ | PROT_WRITE, MAP_SHARED,
		      s->ends[0], 0);
	check(s->mem != MAP_FAILED);
	/* A question without an answer does not wait. */
	for (unsigned int i = 0; i < f->channel.nr_links; i++)
		check(!io_set_nonblock(f->channel.links[i].sock, true));
	for (size_t i = 1; i < s->nr; i++)
		check(!io_set_nonblock(s->ends[i], true));
}

static void check_file(int fd)
{
	static const uint8_t zeros[4096];
	uint8_t page[4096];

	check(lseek(fd, 0, SEEK_END) == FILE_LEN);
	check(pread(fd, page, sizeof(page), 0) == sizeof(page));
	check(!memcmp(page, zeros, sizeof(page)));
}

/* Before the device goes: every page can be read, whatever is mapped there. */
static void check_device(struct virtio_image *image)
{
	const struct virtiofs *f = container_of(image->dev, struct virtiofs, dev);

	for (uint64_t at = 0; at < WINDOW; at += VIRTIOFS_WINDOW_SLOT / 2)
		check(!*(volatile const uint8_t *)(f->dev.shm + at));
	check(virtiofs_files_count(&((struct virtiofs *)f)->files) <= FILES_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct server s = {.file = memfd_create("file", MFD_CLOEXEC)};
	struct virtiofs_params params = {
		.tag = "fuzz", .max_files = FILES_MAX, .window_bytes = WINDOW};
	struct virtio_image image = {.ctx = &s, .host = answer, .end = check_device};
	static unsigned int fds_before;
	struct virtio_device *dev;
	struct virtiofs *f;
	struct err err;
	int pair[2], own;
	char name[32];

	check(s.file >= 0 && !ftruncate(s.file, FILE_LEN));
	/* As harpoon-fs opens what is mapped, and what was opened for reading. */
	snprintf(name, sizeof(name), "/proc/self/fd/%d", s.file);
	own = s.file;
	s.file = open(name, O_RDONLY | O_CLOEXEC);
	check(s.file >= 0 && !socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	params.sock = pair[0];
	check(!virtiofs_new(&params, &dev, &err));
	f = container_of(dev, struct virtiofs, dev);
	server_start(&s, f, pair[1]);
	virtio_image_run(&image, dev, data, size);
	check_file(own);
	munmap(s.mem, (s.nr - 1) * FS_CHANNEL_SLOT);
	while (s.nr)
		close(s.ends[--s.nr]);
	close(pair[1]);
	close(s.file);
	close(own);
	if (!fds_before)
		fds_before = count_fds();
	check(count_fds() == fds_before);
	return 0;
}
