/*
 * A session as bytes: what harpoon-fs hands to QEMU when the virtual machine is saved, and gets back in
 * the process that serves a restored one. docs/fs.md has the format.
 *
 * A header with length and checksum, then records: type, length, content. Everything is little-endian.
 * A reader refuses what it does not know: half a session restored would be worse than none.
 *
 * Threads: any; the tables are under fs.lock.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs_internal.h"
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

/* Numbers are never used anew. Exports, nodes and open files will be records of their own. */
enum fs_state_type { FS_STATE_SESSION = 1 };

struct fs_state_record {
	uint16_t type;
	uint16_t reserved;
	uint32_t len; /* of what follows */
} __attribute__((packed));

enum {
	FS_STATE_READY = 1 << 0,
	FS_STATE_DONT_MASK = 1 << 1,
	FS_STATE_SETXATTR_EXT = 1 << 2,
	FS_STATE_FLAGS = (1 << 3) - 1,
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

int fs_state_save(struct fs *fs, uint8_t **ret, size_t *ret_len)
{
	struct {
		struct fs_state_header h;
		struct fs_state_record r;
		struct fs_state_session s;
	} __attribute__((packed)) out = {
		.h = {.magic = FS_STATE_MAGIC, .version = htole32(FS_STATE_VERSION)},
		.r = {.type = htole16(FS_STATE_SESSION), .len = htole32(sizeof(out.s))},
	};
	const size_t body = sizeof(out) - sizeof(out.h);
	uint32_t flags = 0;
	bool busy;

	fs_lock(fs);
	busy = fs->nr_fds || fs->nr_nodes;
	flags |= fs->ready ? FS_STATE_READY : 0;
	flags |= fs->dont_mask ? FS_STATE_DONT_MASK : 0;
	flags |= fs->setxattr_ext ? FS_STATE_SETXATTR_EXT : 0;
	fs_unlock(fs);
	if (busy)
		return -EBUSY;
	out.s.flags = htole32(flags);
	out.h.len = htole32((uint32_t)body);
	out.h.sum = htole32(fs_state_sum((const uint8_t *)&out.r, body));
	*ret = xmalloc(sizeof(out));
	memcpy(*ret, &out, sizeof(out));
	*ret_len = sizeof(out);
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
	}
	fs_unlock(fs);
	return r;
}

/* One record; the bytes it takes are returned. */
static int fs_state_load_record(struct fs *fs, const uint8_t *p, size_t room, bool *seen)
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
	if (le16toh(rec.type) != FS_STATE_SESSION)
		return -EOPNOTSUPP;
	if (*seen)
		return -EPROTO;
	*seen = true;
	r = fs_state_load_session(fs, p + sizeof(rec), len);
	return r < 0 ? r : (int)(sizeof(rec) + len);
}

int fs_state_load(struct fs *fs, const uint8_t *state, size_t len)
{
	struct fs_state_header h;
	bool seen = false;

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
	while (len) {
		int r = fs_state_load_record(fs, state, len, &seen);

		if (r < 0)
			return r;
		state += r;
		len -= (size_t)r;
	}
	return seen ? 0 : -EPROTO;
}
