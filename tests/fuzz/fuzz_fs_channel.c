/*
 * Fuzz entry: both ends of the channel between harpoon-vmm and harpoon-fs, each with a peer that sends whatever
 * the input says. The input is a series of messages: where it goes, what comes along, a length, that many
 * bytes. The first byte chooses the end.
 *
 * Checked beyond "no crash": descriptors do not leak, answers keep to what was said about room, and what
 * either end accepts is what an honest peer could have sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/fuse.h>

#include "cleanup.h"
#include "dev/virtiofs_files.h"
#include "dev/virtiofs_link.h"
#include "fs.h"
#include "fs_trunk.h"
#include "io.h"

#define MESSAGES_MAX 64
#define MESSAGE_MAX 4096
#define LINKS 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static int start_fd; /* the working directory, which a worker changes */
static unsigned int fds_before;

static void check(int ok)
{
	if (!ok)
		abort();
}

static unsigned int count_fds(void)
{
	unsigned int nr = 0;

	for (int fd = 0; fd < 128; fd++)
		nr += fcntl(fd, F_GETFD) >= 0;
	return nr;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	start_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(start_fd >= 0);
	return 0;
}

struct message {
	uint8_t where, what;
	const uint8_t *bytes;
	size_t len;
};

/* The next message of the input; false at its end. */
static bool take_message(const uint8_t **data, size_t *size, struct message *ret)
{
	if (*size < 4)
		return false;
	ret->where = (*data)[0];
	ret->what = (*data)[1];
	ret->len = MIN(MIN((*data)[2] | (size_t)(*data)[3] << 8, MESSAGE_MAX), *size - 4);
	ret->bytes = *data + 4;
	*data += 4 + ret->len;
	*size -= 4 + ret->len;
	return true;
}

static void make_pair(int *pair)
{
	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
}

/* --- harpoon-fs's end ------------------------------------------------------------------------------ */

struct server {
	struct fs *fs;
	struct fs_worker *w;
	struct fs_trunk *trunk;
	int peer;	  /* of the trunk */
	int links[LINKS]; /* the peer's ends, -1 = none */
	uint8_t *mem;	  /* the peer's mapping */
};

/* What a HELLO comes with, by the bits of `what`. Memory, then links. */
static size_t hello_fds(struct server *s, uint8_t what, int *fds)
{
	unsigned int links = what & 3;
	size_t len = (size_t)LINKS * FS_CHANNEL_SLOT;

	fds[0] = what & 4 ? open("/dev/null", O_RDWR | O_CLOEXEC)
			  : memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	check(fds[0] >= 0);
	if (!(what & 4)) {
		check(ftruncate(fds[0], (off_t)(what & 8 ? len / 4 : len)) == 0);
		if (!(what & 16))
			check(fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK) == 0);
		if (!(what & 8) && !s->mem) {
			s->mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
			check(s->mem != MAP_FAILED);
		}
	}
	for (unsigned int i = 0; i < links; i++) {
		int pair[2];

		make_pair(pair);
		if (i < LINKS && s->links[i] < 0)
			s->links[i] = pair[0];
		else
			close(pair[0]);
		fds[1 + i] = pair[1];
	}
	return 1 + links;
}

static void drain(int sock)
{
	char buf[FS_TRUNK_DATA_MAX + 64];
	int fds[IO_FDS_MAX];
	size_t nr = ARRAY_SIZE(fds);

	while (io_recv_fds(sock, buf, sizeof(buf), fds, &nr) > 0) {
		while (nr)
			close(fds[--nr]);
		nr = ARRAY_SIZE(fds);
	}
}

/* The trunk's message, as it is or with a good header in front. false = the session is over. */
static bool send_trunk(struct server *s, const struct message *m)
{
	uint8_t buf[sizeof(struct fs_trunk_msg) + MESSAGE_MAX];
	struct fs_trunk_msg msg = {.type = m->where >> 2 & 7, .len = (uint32_t)m->len};
	bool is_raw = m->where & 0x40;
	size_t head = is_raw ? 0 : sizeof(msg), nr = 0;
	int fds[IO_FDS_MAX], r;
	struct err err;

	/* Of SAVE and LOAD: whole, or a part. */
	msg.arg = msg.type == FS_TRUNK_HELLO ? FS_CHANNEL_VERSION : m->what >> 5;
	memcpy(buf, &msg, head);
	memcpy(buf + head, m->bytes, m->len);
	if (head + m->len == 0)
		return true;
	if (msg.type == FS_TRUNK_HELLO || (m->where & 0x80))
		nr = hello_fds(s, m->what, fds);
	r = io_send_fds(s->peer, buf, head + m->len, fds, nr);
	while (nr)
		close(fds[--nr]);
	if (!r)
		r = fs_trunk_handle(s->trunk, LINKS, &err);
	drain(s->peer);
	check(s->trunk->nr_links <= LINKS);
	return r > 0;
}

static bool send_request(struct server *s, const struct message *m)
{
	unsigned int index = m->where >> 2 & 1;
	struct fs_link_request req = {.len = (uint32_t)m->len, .room = m->what * 64u};
	struct fs_link_reply reply;
	int fd = -1, r;
	size_t nr = 1;

	if (index >= s->trunk->nr_links || s->links[index] < 0 || !s->mem)
		return true;
	memcpy(s->mem + (size_t)index * FS_CHANNEL_SLOT, m->bytes, m->len);
	if (m->where & 0x40 && m->len >= sizeof(req))
		memcpy(&req, m->bytes, sizeof(req));
	if (io_send_fds(s->links[index], &req, sizeof(req) - (m->where >> 7), NULL, 0))
		return false;
	/* A read of changes by others would wait for them. */
	fs_events_interrupt(s->fs);
	r = fs_link_serve(s->trunk, s->w, s->trunk->links[index],
			  s->trunk->mem + (size_t)index * FS_CHANNEL_SLOT);
	if (r > 0) {
		check(io_recv_fds(s->links[index], &reply, sizeof(reply), &fd, &nr) ==
		      sizeof(reply));
		check(reply.len <= MIN(req.room, FS_CHANNEL_AREA) && nr == reply.opened);
		if (nr)
			close(fd);
	}
	return r > 0;
}

static void fuzz_server(const uint8_t *data, size_t size)
{
	struct server s = {.links = {-1, -1}};
	struct err err = {0};
	struct fs_config c = {.proc_fd = fs_open_proc(&err), .max_fds = 64};
	struct message m;
	int pair[2];

	check(c.proc_fd >= 0);
	check(fs_new(&c, &s.fs, &err) == 0);
	check(fs_worker_new(s.fs, &s.w, &err) == 0);
	make_pair(pair);
	s.peer = pair[0];
	check(fs_trunk_new(s.fs, pair[1], &s.trunk, &err) == 0);
	for (int i = 0; i < MESSAGES_MAX && take_message(&data, &size, &m); i++) {
		if (m.where & 1 ? !send_request(&s, &m) : !send_trunk(&s, &m))
			break;
	}
	fs_trunk_free(s.trunk);
	fs_worker_free(s.w);
	fs_free(s.fs);
	check(fchdir(start_fd) == 0);
	close(s.peer);
	for (unsigned int i = 0; i < LINKS; i++)
		cleanup_closep(&s.links[i]);
	if (s.mem)
		munmap(s.mem, (size_t)LINKS * FS_CHANNEL_SLOT);
}

/* --- harpoon-vmm's end ----------------------------------------------------------------------------- */

struct monitor {
	struct virtiofs_channel channel;
	struct virtiofs_files files;
	int peer;
	int links[IO_FDS_MAX];
	size_t nr; /* of links, the memory first */
};

static void receive_trunk(struct monitor *v, const struct message *m)
{
	uint8_t data[256];
	struct fs_trunk_msg msg;

	if (!m->len || io_send_fds(v->peer, m->bytes, m->len, NULL, 0))
		return;
	if (!virtiofs_trunk_receive(&v->channel, &msg, data, sizeof(data), 0)) {
		check(msg.len <= sizeof(data) && msg.error <= 0);
		if (msg.type == FS_TRUNK_REVOKE) {
			virtiofs_files_revoke(&v->files, msg.arg);
			check(!virtiofs_files_has(&v->files, msg.arg));
		}
	}
}

/* The peer's reply is there before the question: it does not wait for it. */
static void receive_reply(struct monitor *v, const struct message *m)
{
	struct virtiofs_call call = {.len = 16, .room = m->what * 16u};
	int fds[2], r;
	char request[16];
	size_t nr = m->where >> 2 & 3;

	if (!m->len)
		return;
	nr = MIN(nr, 2u);
	for (size_t i = 0; i < nr; i++)
		fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
	r = io_send_fds(v->links[1], m->bytes, m->len, fds, nr);
	while (nr)
		close(fds[--nr]);
	if (r)
		return;
	r = virtiofs_link_call(&v->channel.links[0], &call);
	check(recv(v->links[1], request, sizeof(request), 0) == sizeof(struct fs_link_request));
	check(r ? call.fd < 0 : call.reply.len <= MIN(call.room, FS_CHANNEL_AREA));
	if (!r && call.fd >= 0) {
		struct virtiofs_file file = {.fh = call.reply.fh,
					     .node_id = call.reply.node_id,
					     .export_id = call.reply.export_id,
					     .fd = call.fd};

		(void)virtiofs_files_add(&v->files, &file);
	}
}

/* What a guest does with numbers of files. */
static void use_files(struct monitor *v, const struct message *m)
{
	uint64_t fh = m->len ? m->bytes[0] : 0, node = m->len > 1 ? m->bytes[1] : 0;
	uint32_t index;
	int fd;

	if (!virtiofs_files_get(&v->files, fh, node, &fd, &index)) {
		check(fcntl(fd, F_GETFD) >= 0);
		if (m->what & 1)
			virtiofs_files_release(&v->files, fh, node);
		if (m->what & 2)
			virtiofs_files_clear(&v->files);
		check(fcntl(fd, F_GETFD) >= 0);
		virtiofs_files_put(&v->files, index);
	}
	virtiofs_files_release(&v->files, fh, node + (m->what >> 7));
}

static void fuzz_monitor(const uint8_t *data, size_t size)
{
	struct monitor v = {.nr = IO_FDS_MAX};
	struct err err = {0};
	struct message m;
	char hello[64];
	int pair[2];

	make_pair(pair);
	v.peer = pair[1];
	check(virtiofs_channel_open(&v.channel, pair[0], LINKS, &err) == 0);
	check(io_recv_fds(v.peer, hello, sizeof(hello), v.links, &v.nr) > 0 && v.nr == 1 + LINKS);
	virtiofs_files_init(&v.files, 8, -1);
	for (int i = 0; i < MESSAGES_MAX && take_message(&data, &size, &m); i++) {
		if ((m.where & 3) == 0)
			receive_trunk(&v, &m);
		else if ((m.where & 3) == 3)
			use_files(&v, &m);
		else
			receive_reply(&v, &m);
		check(virtiofs_files_count(&v.files) <= 8);
	}
	virtiofs_files_done(&v.files);
	virtiofs_channel_close(&v.channel);
	close(v.peer);
	while (v.nr)
		close(v.links[--v.nr]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (!fds_before)
		fds_before = count_fds();
	if (data[0] & 1)
		fuzz_monitor(data + 1, size - 1);
	else
		fuzz_server(data + 1, size - 1);
	check(count_fds() == fds_before);
	return 0;
}
