/*
 * A session as bytes: what harpoon-fs hands to QEMU when the virtual machine is saved, and gets back in
 * the process that serves a restored one. docs/fs.md has the format.
 *
 * A header with length and checksum, then records: type, length, content. Everything is little-endian.
 * A reader refuses what it does not know: half a session restored would be worse than none.
 *
 * Threads: any; the tables are under fs.lock.
 */
#include "state.h"

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

#define FS_STATE_MAGIC "hrpn-fs" /* and its NUL */
#define FS_STATE_VERSION 1u

struct fs_state_header {
	char magic[8];
	uint32_t version;
	uint32_t len; /* of the records */
	uint32_t sum; /* of the records */
	uint32_t reserved;
} __attribute__((packed));

struct fs_state_record {
	uint16_t type;
	uint16_t reserved;
	uint32_t len; /* of what follows */
} __attribute__((packed));

enum {
	FS_STATE_READY = 1 << 0,
	FS_STATE_DONT_MASK = 1 << 1,
	FS_STATE_SETXATTR_EXT = 1 << 2,
	FS_STATE_MAPS = 1 << 3,
	FS_STATE_FLAGS = (1 << 4) - 1,
};

struct fs_state_session {
	uint32_t flags;
	uint32_t reserved;
} __attribute__((packed));

static_assert(sizeof(struct fs_state_header) == 24, "header layout");
static_assert(sizeof(struct fs_state_record) == 8, "record layout");
static_assert(sizeof(struct fs_state_session) == 8, "session layout");

/* FNV-1a: notices bytes that were cut off or changed by accident; nothing else is asked of it. */
static uint32_t fs_state_sum(const uint8_t *p, size_t len)
{
	uint32_t h = 2166136261u;

	while (len--)
		h = (h ^ *p++) * 16777619u;
	return h;
}

int fs_state_say(struct fs *fs, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(fs->state_why, sizeof(fs->state_why), fmt, ap);
	va_end(ap);
	return code;
}

const char *fs_state_why(const struct fs *fs)
{
	return fs->state_why;
}

int fs_state_put(struct buf *out, enum fs_state_type type, const void *a, size_t a_len,
		 const void *b, size_t b_len)
{
	struct fs_state_record rec = {.type = htole16((uint16_t)type),
				      .len = htole32((uint32_t)(a_len + b_len))};

	if (buf_append(out, &rec, sizeof(rec)) || buf_append(out, a, a_len) ||
	    (b_len && buf_append(out, b, b_len)))
		return -EFBIG;
	return 0;
}

static int fs_state_put_session(struct fs *fs, struct buf *out)
{
	struct fs_state_session s = {0};
	uint32_t flags = 0;

	fs_lock(fs);
	flags |= fs->ready ? FS_STATE_READY : 0;
	flags |= fs->dont_mask ? FS_STATE_DONT_MASK : 0;
	flags |= fs->setxattr_ext ? FS_STATE_SETXATTR_EXT : 0;
	flags |= fs->maps ? FS_STATE_MAPS : 0;
	fs_unlock(fs);
	s.flags = htole32(flags);
	return fs_state_put(out, FS_STATE_SESSION, &s, sizeof(s), NULL, 0);
}

int fs_state_save(struct fs *fs, uint8_t **ret, size_t *ret_len)
{
	struct fs_state_header h = {.magic = FS_STATE_MAGIC, .version = htole32(FS_STATE_VERSION)};
	cleanup(buf_done) struct buf records;
	int r;

	fs->state_why[0] = '\0';
	buf_init(&records, FS_STATE_MAX - sizeof(h));
	r = fs_state_put_session(fs, &records);
	if (!r)
		r = fs_state_put_files(fs, &records);
	if (r == -EFBIG)
		fs_state_say(fs, r, "the guest knows too many files");
	if (r)
		return r;
	h.len = htole32((uint32_t)records.len);
	h.sum = htole32(fs_state_sum(buf_head(&records), records.len));
	*ret = xmalloc(sizeof(h) + records.len);
	memcpy(*ret, &h, sizeof(h));
	memcpy(*ret + sizeof(h), buf_head(&records), records.len);
	*ret_len = sizeof(h) + records.len;
	return 0;
}

static int fs_state_load_session(struct fs *fs, const uint8_t *p, size_t len)
{
	struct fs_state_session s;
	uint32_t flags;
	int r = 0;

	if (len != sizeof(s))
		return -EPROTO;
	memcpy(&s, p, sizeof(s));
	flags = le32toh(s.flags);
	if ((flags & ~(uint32_t)FS_STATE_FLAGS) || s.reserved)
		return -EOPNOTSUPP;
	fs_lock(fs);
	if (fs->ready || fs->nr_fds || fs->nr_nodes) {
		r = -EBUSY;
	} else {
		fs->ready = flags & FS_STATE_READY;
		fs->dont_mask = flags & FS_STATE_DONT_MASK;
		fs->setxattr_ext = flags & FS_STATE_SETXATTR_EXT;
		fs->maps = fs->can_map && (flags & FS_STATE_MAPS);
	}
	fs_unlock(fs);
	return r;
}

/* The session comes first, and once. */
static int fs_state_take_record(struct fs_state_load *l, uint16_t type, const uint8_t *p,
				size_t len)
{
	int r;

	if (l->seen == (type == FS_STATE_SESSION))
		return -EPROTO;
	switch (type) {
	case FS_STATE_SESSION:
		l->seen = true;
		r = fs_state_load_session(l->fs, p, len);
		l->began = !r;
		return r;
	case FS_STATE_EXPORT:
		return fs_state_load_export(l, p, len);
	case FS_STATE_NODE:
		return fs_state_load_node(l, p, len);
	case FS_STATE_HANDLE:
		return fs_state_load_handle(l, p, len);
	default:
		return -EOPNOTSUPP;
	}
}

/* One record; the bytes it takes are returned. */
static int fs_state_load_record(struct fs_state_load *l, const uint8_t *p, size_t room)
{
	struct fs_state_record rec;
	size_t len;
	int r;

	if (room < sizeof(rec))
		return -EPROTO;
	memcpy(&rec, p, sizeof(rec));
	len = le32toh(rec.len);
	if (len > room - sizeof(rec) || rec.reserved)
		return -EPROTO;
	r = fs_state_take_record(l, le16toh(rec.type), p + sizeof(rec), len);
	return r < 0 ? r : (int)(sizeof(rec) + len);
}

static int fs_state_load_records(struct fs_state_load *l, const uint8_t *p, size_t len)
{
	while (len) {
		int r = fs_state_load_record(l, p, len);

		if (r < 0)
			return r;
		p += r;
		len -= (size_t)r;
	}
	fs_lock(l->fs);
	fs_slots_restored(&l->fs->node_slots);
	fs_slots_restored(&l->fs->handle_slots);
	fs_unlock(l->fs);
	return l->seen ? 0 : -EPROTO;
}

static void fs_state_undo(struct fs *fs)
{
	fs_forget_all(fs);
	fs_lock(fs);
	fs->ready = fs->dont_mask = fs->setxattr_ext = fs->maps = false;
	fs_unlock(fs);
}

int fs_state_load(struct fs *fs, const uint8_t *state, size_t len)
{
	cleanup(fs_state_load_done) struct fs_state_load l = {.fs = fs};
	struct fs_state_header h;
	int r;

	fs->state_why[0] = '\0';
	if (len < sizeof(h) || len > FS_STATE_MAX)
		return -EPROTO;
	memcpy(&h, state, sizeof(h));
	state += sizeof(h);
	len -= sizeof(h);
	if (memcmp(h.magic, FS_STATE_MAGIC, sizeof(h.magic)) != 0)
		return -EPROTO;
	if (le32toh(h.version) != FS_STATE_VERSION)
		return -EOPNOTSUPP;
	if (le32toh(h.len) != len || h.reserved || le32toh(h.sum) != fs_state_sum(state, len))
		return -EPROTO;
	r = fs_state_load_records(&l, state, len);
	/* Only an open file keeps a node that the guest does not know. */
	if (l.began && fs_node_drop_strays(fs) && !r)
		r = -EPROTO;
	/* Half a session would be worse than none. */
	if (r && l.began)
		fs_state_undo(fs);
	return r;
}
