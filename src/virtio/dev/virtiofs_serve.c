/*
 * Serving one request: here, or by harpoon-fs.
 *
 * READ and WRITE of a file whose descriptor is here are a preadv() or pwritev2() on guest memory. What they
 * mean is the same as in harpoon-fs (src/fs/ops_file.c): appending and synchronous writing by the flags that
 * come with each write; no request moves more than FS_CHANNEL_DATA_MAX. Anything unusual about such a request
 * (lengths that do not fit, a file that is not here, a file whose set-user-id or set-group-id bits
 * the write might have to keep: the kernel always clears them for this process, which has no privilege)
 * goes to harpoon-fs, so that there is one place where it is judged.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs_write.h"
#include "io.h"
#include "iov.h"
#include "util.h"
#include "virtiofs_internal.h"

/* Protocol 7.37; not in every header. */
#define SERVE_TMPFILE 51
/* FUSE_REMOVEMAPPING_MAX_ENTRY with pages of 4 KiB. */
#define SERVE_UNMAP_MAX 256

static const struct iovec *serve_request(const struct virtiofs_lane *l)
{
	return l->chain.iov;
}

static const struct iovec *serve_reply(const struct virtiofs_lane *l)
{
	return l->chain.iov + l->chain.nr_readable;
}

/* Puts the answer's header, in front of `body` bytes. */
static size_t serve_answer(const struct virtiofs_lane *l, int error, size_t body)
{
	struct fuse_out_header out = {.unique = l->head.h.unique, .error = error};

	if (l->room < sizeof(out))
		return 0;
	out.len = (uint32_t)(sizeof(out) + (error ? 0 : body));
	iov_write(serve_reply(l), l->chain.nr_writable, 0, &out, sizeof(out));
	return out.len;
}

/* --- reading and writing ------------------------------------------------------------------------- */

/* true = served, *ret_len bytes answered. */
static bool serve_read(struct virtiofs_lane *l, size_t *ret_len)
{
	const struct fuse_read_in *in = &l->head.read;
	uint32_t index;
	unsigned int nr;
	ssize_t n;
	int fd;

	if (l->req_len != sizeof(l->head.h) + sizeof(*in) ||
	    l->room < sizeof(struct fuse_out_header) ||
	    virtiofs_files_get(&l->f->files, in->fh, l->head.h.nodeid, &fd, &index))
		return false;
	nr = iov_slice(serve_reply(l), l->chain.nr_writable, sizeof(struct fuse_out_header),
		       MIN(in->size, FS_CHANNEL_DATA_MAX), l->iov, ARRAY_SIZE(l->iov));
	n = preadv(fd, l->iov, (int)nr, (off_t)in->offset);
	*ret_len = serve_answer(l, n < 0 ? -errno : 0, n < 0 ? 0 : (size_t)n);
	virtiofs_files_put(&l->f->files, index);
	return true;
}

/* Bits that a write may clear, and which harpoon-fs knows when to keep. */
static bool serve_has_set_id_bits(int fd)
{
	struct stat st;

	return io_fstat(fd, &st) || (st.st_mode & (S_ISUID | S_ISGID));
}

static bool serve_write(struct virtiofs_lane *l, size_t *ret_len)
{
	const struct fuse_write_in *in = &l->head.write;
	const size_t off = sizeof(l->head.h) + sizeof(*in);
	struct fuse_write_out out = {0};
	uint32_t index;
	unsigned int nr;
	ssize_t n;
	int fd;

	if (l->req_len < off || in->size != l->req_len - off || in->size > FS_CHANNEL_DATA_MAX ||
	    l->room < sizeof(struct fuse_out_header) + sizeof(out) ||
	    virtiofs_files_get(&l->f->files, in->fh, l->head.h.nodeid, &fd, &index))
		return false;
	if (serve_has_set_id_bits(fd)) {
		virtiofs_files_put(&l->f->files, index);
		return false;
	}
	nr = iov_slice(serve_request(l), l->chain.nr_readable, off, in->size, l->iov,
		       ARRAY_SIZE(l->iov));
	n = pwritev2(fd, l->iov, (int)nr, (off_t)in->offset, fs_write_flags(in));
	*ret_len = serve_answer(l, n < 0 ? -errno : 0, sizeof(out));
	if (n >= 0) {
		out.size = (uint32_t)n;
		iov_write(serve_reply(l), l->chain.nr_writable, sizeof(struct fuse_out_header),
			  &out, sizeof(out));
	}
	virtiofs_files_put(&l->f->files, index);
	return true;
}

/* --- by harpoon-fs --------------------------------------------------------------------------------- */

/* The server may be anybody by now: no other files are kept. */
static bool serve_is_regular(int fd)
{
	struct stat st;

	return !io_fstat(fd, &st) && S_ISREG(st.st_mode);
}

/* A descriptor came with an answer. */
static void serve_take_file(struct virtiofs_lane *l, const struct virtiofs_call *call)
{
	struct virtiofs_file file = {.fh = call->reply.fh,
				     .node_id = call->reply.node_id,
				     .export_id = call->reply.export_id,
				     .fd = call->fd};
	uint32_t opcode = l->head.h.opcode;

	if ((opcode != FUSE_OPEN && opcode != FUSE_CREATE && opcode != SERVE_TMPFILE) ||
	    !serve_is_regular(call->fd)) {
		close(call->fd);
		return;
	}
	/* Without it the file is read and written through the channel. */
	(void)virtiofs_files_add(&l->f->files, &file);
}

/*
 * The answer to a request that maps a part of a file, which harpoon-fs has allowed if it sent a descriptor. 0, or what the
 * guest is told instead of the answer.
 */
static int serve_take_mapping(struct virtiofs *f, const struct virtiofs_link *link,
			      const struct virtiofs_call *call, uint64_t node_id,
			      const struct fuse_setupmapping_in *in)
{
	const struct virtiofs_window_slot slot = {.fd = call->fd,
						  .node_id = node_id,
						  .export_id = call->reply.export_id,
						  .offset = in->foffset};
	struct fuse_out_header out = {0};

	if (call->reply.len >= sizeof(out))
		memcpy(&out, link->slot + FS_CHANNEL_AREA, sizeof(out));
	/* An error is passed on. Success without a file: this process has no room for descriptors. */
	if (call->fd < 0)
		return out.error ? 0 : -EMFILE;
	if (out.error || in->len != VIRTIOFS_WINDOW_SLOT || !serve_is_regular(call->fd)) {
		close(call->fd);
		return -EINVAL;
	}
	return virtiofs_window_map(&f->window, in->moffset, &slot, virtiofs_files_is_revoked,
				   &f->files);
}

static size_t serve_unmap(const struct virtiofs_lane *l)
{
	size_t off = sizeof(l->head.h) + sizeof(l->head.unmap);
	uint32_t count = l->head.unmap.count;
	struct fuse_removemapping_one one;
	int r = 0;

	if (count > SERVE_UNMAP_MAX || l->req_len != off + count * sizeof(one))
		return serve_answer(l, -EINVAL, 0);
	for (uint32_t i = 0; i < count && !r; i++, off += sizeof(one)) {
		iov_read(serve_request(l), l->chain.nr_readable, off, &one, sizeof(one));
		r = virtiofs_window_unmap(&l->f->window, one.moffset, one.len);
	}
	return serve_answer(l, r, 0);
}

/* The guest lets go: what is here must be closed when harpoon-fs closes its own. */
static void serve_let_go(struct virtiofs_lane *l)
{
	if (l->head.h.opcode == FUSE_RELEASE &&
	    l->req_len >= sizeof(l->head.h) + sizeof(l->head.release)) {
		virtiofs_files_release(&l->f->files, l->head.release.fh, l->head.h.nodeid);
	} else if (l->head.h.opcode == FUSE_DESTROY) {
		virtiofs_files_clear(&l->f->files);
		virtiofs_window_clear(&l->f->window, 0);
	}
}

static size_t serve_by_channel(struct virtiofs_lane *l)
{
	const struct virtiofs_link *link = l->link;
	struct virtiofs_call call = {.len = l->req_len, .room = l->room};
	int r;

	if (l->req_len > FS_CHANNEL_AREA)
		return serve_answer(l, -E2BIG, 0);
	serve_let_go(l);
	/* What was judged, and behind it what was not looked at. */
	memcpy(link->slot, &l->head, l->head_len);
	iov_read(serve_request(l), l->chain.nr_readable, l->head_len, link->slot + l->head_len,
		 l->req_len - l->head_len);
	r = virtiofs_link_call(link, &call);
	if (r) {
		virtiofs_lose(l->f, r == -EPROTO ? "harpoon-fs broke the protocol of the channel"
						 : "harpoon-fs is gone");
		return serve_answer(l, -EIO, 0);
	}
	if (l->head.h.opcode == FUSE_SETUPMAPPING)
		r = serve_take_mapping(l->f, link, &call, l->head.h.nodeid, &l->head.map);
	else if (call.fd >= 0)
		serve_take_file(l, &call);
	if (r)
		return serve_answer(l, r, 0);
	iov_write(serve_reply(l), l->chain.nr_writable, 0, link->slot + FS_CHANNEL_AREA,
		  call.reply.len);
	virtiofs_link_trim(link, MAX(l->req_len, (size_t)call.reply.len));
	return call.reply.len;
}

static void serve_count(struct virtiofs *f, bool direct)
{
	pthread_mutex_lock(&f->lock);
	if (direct)
		f->nr_direct++;
	else
		f->nr_channel++;
	pthread_mutex_unlock(&f->lock);
}

int virtiofs_serve_map(struct virtiofs *f, uint64_t at, uint64_t node_id, uint64_t offset)
{
	const struct virtiofs_link *link = f->lanes[0].link;
	const struct {
		struct fuse_in_header h;
		struct fuse_setupmapping_in in;
	} req = {
		.h = {.len = sizeof(req), .opcode = FUSE_SETUPMAPPING, .nodeid = node_id},
		.in = {.foffset = offset,
		       .len = VIRTIOFS_WINDOW_SLOT,
		       .flags = FUSE_SETUPMAPPING_FLAG_READ,
		       .moffset = at},
	};
	struct virtiofs_call call = {.len = sizeof(req), .room = sizeof(struct fuse_out_header)};
	int r;

	memcpy(link->slot, &req, sizeof(req));
	r = virtiofs_link_call(link, &call);
	if (r)
		return r;
	/* Without a descriptor it is refused, for whatever reason. */
	return call.fd < 0 ? -ESTALE : serve_take_mapping(f, link, &call, node_id, &req.in);
}

size_t virtiofs_serve(struct virtiofs_lane *l)
{
	size_t len = 0;
	bool direct = false;

	l->req_len = iov_len(serve_request(l), l->chain.nr_readable);
	l->room = iov_len(serve_reply(l), l->chain.nr_writable);
	l->head = (struct virtiofs_head){0};
	l->head_len =
		iov_read(serve_request(l), l->chain.nr_readable, 0, &l->head, sizeof(l->head));
	if (l->head_len < sizeof(l->head.h))
		return 0;
	virtiofs_window_renew(&l->f->window);
	if (l->head.h.opcode == FUSE_REMOVEMAPPING)
		return serve_unmap(l);
	if (l->head.h.len == l->req_len && l->head.h.opcode == FUSE_READ)
		direct = serve_read(l, &len);
	else if (l->head.h.len == l->req_len && l->head.h.opcode == FUSE_WRITE)
		direct = serve_write(l, &len);
	serve_count(l->f, direct);
	return direct ? len : serve_by_channel(l);
}
