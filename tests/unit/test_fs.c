/*
 * Unit tests of the FUSE server: raw requests in memory, as any guest kernel could write them. A tree
 * in a temporary directory is exported; beside it lies a canary that no request may touch. Requests
 * are cut into odd pieces, as a virtqueue hands them over.
 *
 * What takes root is left out without it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/fs.h>

#include "cleanup.h"
#include "fs.h"
#include "fs_control.h"
#include "fuse_compat.h"
#include "io.h"

#define REQ_MAX (80 * 1024)
#define REPLY_MAX (80 * 1024)

struct fixture {
	char top[64];  /* "<tmp>": canary, tree/, outside */
	char tree[80]; /* "<tmp>/tree", exported as "tree" and, read-only, as "ro" */
	struct fs *fs;
	struct fs_worker *w;
	/* The request being built and the answer to the last one. */
	uint8_t req[REQ_MAX];
	size_t req_len;
	uint8_t reply[REPLY_MAX];
	size_t reply_len;
	size_t reply_room;
	uint64_t unique;
	uint32_t uid, gid;
	uint64_t root;	  /* node of export "tree" */
	uint64_t ro_root; /* node of export "ro" */
};

/* Names that no operation may take as a component. */
static const char *const bad_names[] = {"",	 ".",	      "..",    "/",
					"/abs",	 "../canary", "a/b",   "tree/..",
					"..//x", "./file",    "file/", "sub/../file"};

/* Building and sending */

static void begin(struct fixture *f)
{
	f->req_len = sizeof(struct fuse_in_header);
	f->reply_room = REPLY_MAX;
}

static void add(struct fixture *f, const void *data, size_t len)
{
	assert_true(f->req_len + len <= REQ_MAX);
	if (len)
		memcpy(f->req + f->req_len, data, len);
	f->req_len += len;
}

static void add_name(struct fixture *f, const char *name)
{
	add(f, name, strlen(name) + 1);
}

/* Cuts a buffer into pieces of 1, 2, 3... bytes at first, so that every structure is split somewhere. */
static unsigned int cut(uint8_t *data, size_t len, struct iovec *iov, unsigned int max)
{
	unsigned int nr = 0;
	size_t piece = 1;

	while (len && nr < max) {
		size_t n = nr == max - 1 ? len : MIN(piece, len);

		iov[nr++] = (struct iovec){data, n};
		data += n;
		len -= n;
		piece = piece * 2 + 1;
	}
	return nr;
}

/* Sends what was built, with a header that says `claimed` bytes. Returns the error, or 1: no answer. */
static int send_claiming(struct fixture *f, uint32_t opcode, uint64_t node, uint32_t claimed,
			 uint16_t ext_units)
{
	struct fuse_in_header h = {.len = claimed,
				   .opcode = opcode,
				   .unique = ++f->unique,
				   .nodeid = node,
				   .uid = f->uid,
				   .gid = f->gid};
	struct iovec req[12], reply[12];
	struct fuse_out_header out;
	unsigned int nr_req, nr_reply;

	memcpy((uint8_t *)&h + 36, &ext_units, sizeof(ext_units));
	memcpy(f->req, &h, sizeof(h));
	memset(f->reply, 0xee, sizeof(f->reply));
	nr_req = cut(f->req, f->req_len, req, ARRAY_SIZE(req));
	nr_reply = cut(f->reply, f->reply_room, reply, ARRAY_SIZE(reply));
	f->reply_len = fs_worker_handle(f->w, req, nr_req, reply, nr_reply);
	/* Nothing is written beyond what the answer says it is. */
	for (size_t i = f->reply_len; i < sizeof(f->reply) && i < f->reply_len + 64; i++)
		if (opcode != FUSE_READ)
			assert_int_equal(f->reply[i], 0xee);
	if (!f->reply_len)
		return 1;
	assert_true(f->reply_len >= sizeof(out) && f->reply_len <= f->reply_room);
	memcpy(&out, f->reply, sizeof(out));
	assert_int_equal(out.len, f->reply_len);
	assert_int_equal(out.unique, f->unique);
	assert_true(out.error <= 0 && out.error > -1000);
	if (out.error)
		assert_int_equal(f->reply_len, sizeof(out));
	return out.error;
}

static int send_it(struct fixture *f, uint32_t opcode, uint64_t node)
{
	return send_claiming(f, opcode, node, (uint32_t)f->req_len, 0);
}

static const void *body(const struct fixture *f)
{
	return f->reply + sizeof(struct fuse_out_header);
}

static size_t body_len(const struct fixture *f)
{
	return f->reply_len - sizeof(struct fuse_out_header);
}

/* Common requests */

static int init_session(struct fixture *f, uint32_t major, uint32_t minor)
{
	struct fuse_init_in in = {.major = major,
				  .minor = minor,
				  .max_readahead = 131072,
				  .flags = ~0u & ~(uint32_t)FUSE_INIT_RESERVED};

	in.flags2 = (uint32_t)(FS_INIT_CREATE_SUPP_GROUP >> 32);
	begin(f);
	add(f, &in, sizeof(in));
	return send_it(f, FUSE_INIT, 0);
}

static int lookup(struct fixture *f, uint64_t dir, const char *name, uint64_t *ret)
{
	struct fuse_entry_out e;
	int r;

	begin(f);
	add_name(f, name);
	r = send_it(f, FUSE_LOOKUP, dir);
	if (r)
		return r;
	assert_int_equal(body_len(f), sizeof(e));
	memcpy(&e, body(f), sizeof(e));
	*ret = e.nodeid;
	return 0;
}

static uint64_t must_lookup(struct fixture *f, uint64_t dir, const char *name)
{
	uint64_t id = 0;

	assert_int_equal(lookup(f, dir, name, &id), 0);
	assert_true(id > FUSE_ROOT_ID);
	return id;
}

static int open_node(struct fixture *f, uint32_t opcode, uint64_t node, uint32_t flags,
		     uint64_t *ret_fh)
{
	struct fuse_open_in in = {.flags = flags};
	struct fuse_open_out out;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	r = send_it(f, opcode, node);
	if (!r) {
		memcpy(&out, body(f), sizeof(out));
		*ret_fh = out.fh;
	}
	return r;
}

static int release(struct fixture *f, uint32_t opcode, uint64_t node, uint64_t fh)
{
	struct fuse_release_in in = {.fh = fh};

	begin(f);
	add(f, &in, sizeof(in));
	return send_it(f, opcode, node);
}

static int write_fh(struct fixture *f, uint64_t node, uint64_t fh, uint64_t off, const char *text,
		    uint32_t flags, uint32_t write_flags)
{
	struct fuse_write_in in = {.fh = fh,
				   .offset = off,
				   .size = (uint32_t)strlen(text),
				   .flags = flags,
				   .write_flags = write_flags};

	begin(f);
	add(f, &in, sizeof(in));
	add(f, text, strlen(text));
	return send_it(f, FUSE_WRITE, node);
}

static int read_fh(struct fixture *f, uint32_t opcode, uint64_t node, uint64_t fh, uint64_t off,
		   uint32_t size)
{
	struct fuse_read_in in = {.fh = fh, .offset = off, .size = size};

	begin(f);
	add(f, &in, sizeof(in));
	return send_it(f, opcode, node);
}

static void forget(struct fixture *f, uint64_t node, uint64_t count)
{
	struct fuse_forget_in in = {.nlookup = count};

	begin(f);
	add(f, &in, sizeof(in));
	assert_int_equal(send_it(f, FUSE_FORGET, node), 1);
}

static int getattr(struct fixture *f, uint64_t node, struct fuse_attr *ret)
{
	struct fuse_getattr_in in = {0};
	struct fuse_attr_out out;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	r = send_it(f, FUSE_GETATTR, node);
	if (!r && ret) {
		memcpy(&out, body(f), sizeof(out));
		*ret = out.attr;
	}
	return r;
}

static int create(struct fixture *f, uint64_t dir, const char *name, uint32_t flags, uint32_t mode,
		  uint64_t *ret_node, uint64_t *ret_fh)
{
	struct fuse_create_in in = {.flags = flags | O_CREAT, .mode = mode, .umask = 022};
	struct fuse_entry_out e;
	struct fuse_open_out o;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, name);
	r = send_it(f, FUSE_CREATE, dir);
	if (r)
		return r;
	assert_int_equal(body_len(f), sizeof(e) + sizeof(o));
	memcpy(&e, body(f), sizeof(e));
	memcpy(&o, (const uint8_t *)body(f) + sizeof(e), sizeof(o));
	if (ret_node)
		*ret_node = e.nodeid;
	if (ret_fh)
		*ret_fh = o.fh;
	return 0;
}

static int mknod_at(struct fixture *f, uint64_t dir, const char *name, uint32_t mode, uint32_t rdev)
{
	struct fuse_mknod_in in = {.mode = mode, .rdev = rdev};

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, name);
	return send_it(f, FUSE_MKNOD, dir);
}

static int rename_to(struct fixture *f, uint64_t dir, const char *from, uint64_t newdir,
		     const char *to, uint32_t flags)
{
	struct fuse_rename2_in in = {.newdir = newdir, .flags = flags};

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, from);
	add_name(f, to);
	return send_it(f, FUSE_RENAME2, dir);
}

static int link_to(struct fixture *f, uint64_t old, uint64_t dir, const char *name)
{
	struct fuse_link_in in = {.oldnodeid = old};

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, name);
	return send_it(f, FUSE_LINK, dir);
}

static int setxattr_on(struct fixture *f, uint64_t node, const char *name, const char *value)
{
	struct fuse_setxattr_in in = {.size = (uint32_t)strlen(value)};

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, name);
	add(f, value, strlen(value));
	return send_it(f, FUSE_SETXATTR, node);
}

static int getxattr_of(struct fixture *f, uint64_t node, const char *name, uint32_t size)
{
	struct fuse_getxattr_in in = {.size = size};

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, name);
	return send_it(f, FUSE_GETXATTR, node);
}

/* Set-up */

static void path_of(const struct fixture *f, const char *rel, char *ret, size_t size)
{
	snprintf(ret, size, "%s/%s", f->top, rel);
}

static void make_file(const struct fixture *f, const char *rel, const char *text)
{
	char p[256];

	path_of(f, rel, p, sizeof(p));
	assert_int_equal(io_write_file(AT_FDCWD, p, text, strlen(text)), 0);
}

static void make_tree(struct fixture *f)
{
	char p[256];

	strcpy(f->top, "/tmp/harpoon-test-fs-XXXXXX");
	assert_non_null(mkdtemp(f->top));
	path_of(f, "tree", f->tree, sizeof(f->tree));
	assert_int_equal(mkdir(f->tree, 0755), 0);
	make_file(f, "canary", "alive");
	make_file(f, "tree/file", "hello world");
	path_of(f, "tree/sub", p, sizeof(p));
	assert_int_equal(mkdir(p, 0755), 0);
	path_of(f, "tree/fifo", p, sizeof(p));
	assert_int_equal(mkfifo(p, 0666), 0);
	path_of(f, "tree/out", p, sizeof(p));
	assert_int_equal(symlink("../canary", p), 0);
	path_of(f, "tree/outdir", p, sizeof(p));
	assert_int_equal(symlink("..", p), 0);
	path_of(f, "tree/abs", p, sizeof(p));
	assert_int_equal(symlink("/etc/passwd", p), 0);
}

static int export_path(struct fixture *f, const char *name, const char *path, uint32_t flags)
{
	int fd = open(path, O_PATH | O_CLOEXEC);

	assert_true(fd >= 0);
	return fs_export_add(f->fs, name, fd, flags);
}

static void new_server(struct fixture *f, uint64_t max_fds)
{
	struct err err = {0};
	struct fs_config c = {.proc_fd = fs_open_proc(&err), .max_fds = max_fds};

	assert_true(c.proc_fd >= 0);
	assert_int_equal(fs_new(&c, &f->fs, &err), 0);
	assert_int_equal(fs_worker_new(f->fs, &f->w, &err), 0);
	assert_int_equal(export_path(f, "tree", f->tree, 0), 0);
	assert_int_equal(export_path(f, "ro", f->tree, FS_CONTROL_READ_ONLY), 0);
}

static void free_server(struct fixture *f)
{
	fs_worker_free(f->w);
	fs_free(f->fs);
}

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));

	make_tree(f);
	new_server(f, 100);
	f->uid = geteuid();
	f->gid = getegid();
	assert_int_equal(init_session(f, 7, 39), 0);
	f->root = must_lookup(f, FUSE_ROOT_ID, "tree");
	f->ro_root = must_lookup(f, FUSE_ROOT_ID, "ro");
	*state = f;
	return 0;
}

/* The canary lives, and beside it is only what set_up() put there. */
static void assert_outside_untouched(const struct fixture *f)
{
	cleanup_free char *text = NULL;
	unsigned int n = 0;
	char p[256];
	DIR *d;

	path_of(f, "canary", p, sizeof(p));
	assert_int_equal(io_read_file(AT_FDCWD, p, 100, &text, NULL), 0);
	assert_string_equal(text, "alive");
	d = opendir(f->top);
	while (readdir(d))
		n++;
	closedir(d);
	assert_int_equal(n, 4);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	assert_outside_untouched(f);
	free_server(f);
	assert_int_equal(nftw(f->top, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	free(f);
	return 0;
}

static bool is_root(void)
{
	if (geteuid())
		print_message("# the rest of this case takes root\n");
	return !geteuid();
}

/* Sessions */

static void test_init_negotiates(void **state)
{
	struct fixture *f = *state;
	struct fuse_init_out out;

	begin(f);
	assert_int_equal(send_it(f, FUSE_DESTROY, 0), 0);
	assert_int_equal(init_session(f, 7, 41), 0);
	assert_int_equal(body_len(f), sizeof(out));
	memcpy(&out, body(f), sizeof(out));
	assert_int_equal(out.major, 7);
	assert_int_equal(out.max_write, 1 << 20);
	assert_int_equal(out.max_pages, 256);
	assert_true(out.flags & FUSE_DO_READDIRPLUS);
	assert_true(out.flags & FUSE_HANDLE_KILLPRIV_V2);
	assert_true(out.flags & FUSE_ATOMIC_O_TRUNC);
	assert_true(out.flags2 & FS_INIT_CREATE_SUPP_GROUP >> 32);
	/* Offered and not taken. */
	assert_false(out.flags & FUSE_WRITEBACK_CACHE);
	assert_false(out.flags & (FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS));
	assert_false(out.flags & (FUSE_EXPORT_SUPPORT | FUSE_SUBMOUNTS));
}

/* --- locks ------------------------------------------------------------------------------------------- */

#define WHOLE 0, INT64_MAX

static int ask_lock(struct fixture *f, uint32_t opcode, uint64_t node, const struct fuse_lk_in *in,
		    struct fuse_file_lock *ret)
{
	int r;

	begin(f);
	add(f, in, sizeof(*in));
	r = send_it(f, opcode, node);
	if (!r && ret)
		memcpy(ret, body(f), sizeof(*ret));
	return r;
}

static int set_lock(struct fixture *f, uint64_t node, uint64_t fh, uint64_t owner, uint32_t type,
		    uint64_t start, uint64_t end)
{
	const struct fuse_lk_in in = {
		.fh = fh, .owner = owner, .lk = {.start = start, .end = end, .type = type}};

	return ask_lock(f, FUSE_SETLK, node, &in, NULL);
}

static int set_flock(struct fixture *f, uint64_t node, uint64_t fh, uint64_t owner, uint32_t type)
{
	const struct fuse_lk_in in = {.fh = fh,
				      .owner = owner,
				      .lk = {.end = INT64_MAX, .type = type},
				      .lk_flags = FUSE_LK_FLOCK};

	return ask_lock(f, FUSE_SETLK, node, &in, NULL);
}

static void test_locks_of_owners_and_of_the_host(void **unused)
{
	struct fixture *f = *unused;
	struct flock host = {.l_type = F_WRLCK, .l_len = 5};
	struct fuse_file_lock found;
	uint64_t node, fh;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/locked", f->tree);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	node = must_lookup(f, f->root, "locked");
	assert_int_equal(open_node(f, FUSE_OPEN, node, O_RDWR, &fh), 0);
	/* Between two owners of the guest, and the host. */
	assert_int_equal(set_lock(f, node, fh, 1, F_WRLCK, 0, 9), 0);
	assert_int_equal(set_lock(f, node, fh, 2, F_RDLCK, 9, 20), -EAGAIN);
	assert_int_equal(set_lock(f, node, fh, 2, F_RDLCK, 10, 20), 0);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &host), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(set_lock(f, node, fh, 1, F_UNLCK, WHOLE), 0);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &host), 0);
	assert_int_equal(set_lock(f, node, fh, 1, F_RDLCK, 4, 4), -EAGAIN);
	assert_int_equal(
		ask_lock(f, FUSE_GETLK, node,
			 &(struct fuse_lk_in){.fh = fh, .owner = 3, .lk = {0, 5, F_WRLCK, 0}},
			 &found),
		0);
	assert_int_equal(found.type, F_WRLCK);
	assert_int_equal(found.start, 0);
	assert_int_equal(found.end, 4);
	assert_int_equal(found.pid, 0);
	/* flock() is another kind. */
	assert_int_equal(set_flock(f, node, fh, 1, F_WRLCK), 0);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), -1);
	assert_int_equal(set_flock(f, node, fh, 2, F_RDLCK), -EAGAIN);
	assert_int_equal(set_flock(f, node, fh, 1, F_RDLCK), 0);
	assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), 0);
	assert_int_equal(set_flock(f, node, fh, 1, F_UNLCK), 0);
	/* What is none. */
	assert_int_equal(set_lock(f, node, fh + 1, 1, F_RDLCK, WHOLE), -EBADF);
	assert_int_equal(set_lock(f, node, fh, 1, 77, WHOLE), -EINVAL);
	assert_int_equal(set_lock(f, node, fh, 1, F_RDLCK, 5, 4), -EINVAL);
	assert_int_equal(set_lock(f, node, fh, 1, F_RDLCK, 0, UINT64_MAX), -EINVAL);
	assert_int_equal(set_lock(f, f->root, fh, 1, F_RDLCK, WHOLE), -EBADF);
	/* They end with the file, whoever forgot them. */
	assert_int_equal(set_lock(f, node, fh, 4, F_WRLCK, 50, 59), 0);
	host = (struct flock){.l_type = F_WRLCK, .l_start = 50, .l_len = 1};
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &host), -1);
	assert_int_equal(release(f, FUSE_RELEASE, node, fh), 0);
	forget(f, node, UINT64_MAX);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &host), 0);
	close(fd);
}

/* Only where others may lock, the guest asks. */
static void test_which_files_are_locked_for_all(void **unused)
{
	struct fixture *f = *unused;
	uint64_t own, node, fh;
	struct fuse_open_out out;

	assert_int_equal(export_path(f, "own", f->tree, FS_CONTROL_EXCLUSIVE), 0);
	own = must_lookup(f, FUSE_ROOT_ID, "own");
	node = must_lookup(f, own, "file");
	assert_int_equal(open_node(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
	memcpy(&out, body(f), sizeof(out));
	assert_false(out.open_flags & FS_OPEN_SHARED_LOCKS);
	node = must_lookup(f, f->root, "file");
	assert_int_equal(open_node(f, FUSE_OPEN, node, O_RDONLY, &fh), 0);
	memcpy(&out, body(f), sizeof(out));
	assert_true(out.open_flags & FS_OPEN_SHARED_LOCKS);
	assert_int_equal(set_lock(f, node, fh, 1, F_WRLCK, WHOLE), 0);
	assert_int_equal(fs_export_remove(f->fs, "tree", true), 0);
	assert_int_equal(set_lock(f, node, fh, 1, F_UNLCK, WHOLE), -ESTALE);
}

static void test_sessions_begin_and_end(void **state)
{
	struct fixture *f = *state;
	uint64_t id;

	assert_int_equal(init_session(f, 7, 39), -EIO); /* twice */
	begin(f);
	assert_int_equal(send_it(f, FUSE_DESTROY, 0), 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &id), -EIO);
	begin(f);
	assert_int_equal(send_it(f, FUSE_DESTROY, 0), -EIO);
	assert_int_equal(init_session(f, 7, 30), -EPROTO);
	assert_int_equal(init_session(f, 6, 99), -EPROTO);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &id), -EIO);
	/* A newer major version gets ours and comes back. */
	assert_int_equal(init_session(f, 8, 0), 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &id), -EIO);
	assert_int_equal(init_session(f, 7, 31), 0);
	assert_int_equal(getattr(f, f->root, NULL), -ESTALE); /* of the session before */
	f->root = must_lookup(f, FUSE_ROOT_ID, "tree");
	assert_int_equal(getattr(f, f->root, NULL), 0);
}

/* Malformed requests */

static void test_short_and_overlong_requests(void **state)
{
	struct fixture *f = *state;
	static const uint8_t zeros[256];

	for (uint32_t op = 0; op < 64; op++) {
		if (op == FUSE_DESTROY || op == FUSE_INIT)
			continue;
		for (size_t len = 0; len < 80; len++) {
			begin(f);
			add(f, zeros, len);
			(void)send_it(f, op, f->root);
			begin(f);
			add(f, zeros, len);
			(void)send_it(f, op, 12345);
		}
	}
	/* The header must agree with what is there. */
	begin(f);
	add_name(f, "file");
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, (uint32_t)f->req_len + 1, 0),
			 -EINVAL);
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, (uint32_t)f->req_len - 1, 0),
			 -EINVAL);
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, 0, 0), -EINVAL);
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, UINT32_MAX, 0), -EINVAL);
	/* Extensions where there are none, or longer than all there is. */
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, (uint32_t)f->req_len, 1), -EINVAL);
	begin(f);
	add(f, &(struct fuse_mkdir_in){.mode = 0755}, sizeof(struct fuse_mkdir_in));
	add_name(f, "d");
	assert_int_equal(send_claiming(f, FUSE_MKDIR, f->root, (uint32_t)f->req_len, 0xffff),
			 -EINVAL);
	/* Less than a header. */
	f->req_len = 39;
	assert_int_equal(send_claiming(f, FUSE_LOOKUP, f->root, 39, 0), 1);
}

static void test_unknown_and_unwanted_operations(void **state)
{
	static const uint32_t ops[] = {0,
				       7,
				       19,
				       FUSE_SETLKW,
				       FUSE_ACCESS,
				       FUSE_INTERRUPT,
				       FUSE_BMAP,
				       FUSE_POLL,
				       FUSE_NOTIFY_REPLY,
				       FUSE_SETUPMAPPING,
				       FUSE_REMOVEMAPPING,
				       53,
				       4096,
				       UINT32_MAX};
	struct fixture *f = *state;
	static const uint8_t zeros[256];

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		begin(f);
		add(f, zeros, 200);
		assert_int_equal(send_it(f, ops[i], f->root), -ENOSYS);
	}
	begin(f);
	add(f, &(struct fuse_ioctl_in){.cmd = FS_IOC_SETFLAGS}, sizeof(struct fuse_ioctl_in));
	assert_int_equal(send_it(f, FUSE_IOCTL, f->root), -ENOTTY);
}

static void test_little_room_for_the_answer(void **state)
{
	struct fixture *f = *state;

	for (size_t room = 0; room < sizeof(struct fuse_out_header); room++) {
		begin(f);
		add_name(f, "file");
		f->reply_room = room;
		assert_int_equal(send_it(f, FUSE_LOOKUP, f->root), 1);
	}
	f->reply_room = sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out) - 1;
	assert_int_equal(send_it(f, FUSE_LOOKUP, f->root), -EIO);
}

/* Names */

static void test_bad_names_are_refused_everywhere(void **state)
{
	static const uint8_t zeros[256];
	static const struct {
		uint32_t op;
		size_t args_len;
		const char *after; /* a second name */
	} ops[] = {
		{FUSE_LOOKUP, 0, NULL},
		{FUSE_MKNOD, sizeof(struct fuse_mknod_in), NULL},
		{FUSE_MKDIR, sizeof(struct fuse_mkdir_in), NULL},
		{FUSE_SYMLINK, 0, "target"},
		{FUSE_UNLINK, 0, NULL},
		{FUSE_RMDIR, 0, NULL},
		{FUSE_CREATE, sizeof(struct fuse_create_in), NULL},
	};
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file");

	for (size_t n = 0; n < ARRAY_SIZE(bad_names); n++) {
		for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
			begin(f);
			add(f, zeros, ops[i].args_len);
			add_name(f, bad_names[n]);
			if (ops[i].after)
				add_name(f, ops[i].after);
			assert_int_equal(send_it(f, ops[i].op, f->root), -EINVAL);
		}
		assert_int_equal(rename_to(f, f->root, bad_names[n], f->root, "x", 0), -EINVAL);
		assert_int_equal(rename_to(f, f->root, "file", f->root, bad_names[n], 0), -EINVAL);
		assert_int_equal(link_to(f, file, f->root, bad_names[n]), -EINVAL);
		assert_int_not_equal(lookup(f, FUSE_ROOT_ID, bad_names[n], &file), 0);
	}
	assert_outside_untouched(f);
}

static void test_long_names_and_stray_nuls(void **state)
{
	struct fixture *f = *state;
	char name[300];
	uint64_t id;

	memset(name, 'n', sizeof(name));
	name[255] = 0;
	assert_int_equal(mknod_at(f, f->root, name, S_IFREG | 0644, 0), 0);
	assert_int_equal(lookup(f, f->root, name, &id), 0);
	name[255] = 'n';
	name[256] = 0;
	assert_int_equal(lookup(f, f->root, name, &id), -ENAMETOOLONG);
	/* No NUL at all; one inside; one too many. */
	begin(f);
	add(f, "file", 4);
	assert_int_equal(send_it(f, FUSE_LOOKUP, f->root), -EINVAL);
	begin(f);
	add(f, "file\0/../x", 11);
	assert_int_equal(send_it(f, FUSE_LOOKUP, f->root), -EINVAL);
	begin(f);
	add(f, "file\0", 6);
	assert_int_equal(send_it(f, FUSE_UNLINK, f->root), -EINVAL);
	begin(f);
	add(f, &(struct fuse_rename2_in){.newdir = f->root}, sizeof(struct fuse_rename2_in));
	add_name(f, "file");
	assert_int_equal(send_it(f, FUSE_RENAME2, f->root), -EINVAL);
}

static void test_links_are_not_followed(void **state)
{
	static const char *const links[] = {"out", "outdir", "abs"};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		uint64_t id = must_lookup(f, f->root, links[i]), below, fh;
		struct fuse_attr a;
		struct fuse_setattr_in in = {.valid = FATTR_MODE, .mode = 0777};

		assert_int_equal(getattr(f, id, &a), 0);
		assert_true(S_ISLNK(a.mode));
		assert_int_equal(lookup(f, id, "canary", &below), -ENOTDIR);
		assert_int_equal(mknod_at(f, id, "x", S_IFREG | 0644, 0), -ENOTDIR);
		assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDONLY, &fh), -ENXIO);
		assert_int_equal(open_node(f, FUSE_OPENDIR, id, O_RDONLY, &fh), -ENOTDIR);
		begin(f);
		add(f, &in, sizeof(in));
		assert_int_equal(send_it(f, FUSE_SETATTR, id), -EOPNOTSUPP);
		in = (struct fuse_setattr_in){.valid = FATTR_SIZE};
		begin(f);
		add(f, &in, sizeof(in));
		assert_int_equal(send_it(f, FUSE_SETATTR, id), -ENXIO);
		/* Opening by creating over it. */
		assert_int_equal(create(f, f->root, links[i], O_WRONLY | O_TRUNC, 0644, NULL, NULL),
				 -ENXIO);
	}
	begin(f);
	assert_int_equal(send_it(f, FUSE_READLINK, must_lookup(f, f->root, "out")), 0);
	assert_memory_equal(body(f), "../canary", 9);
	assert_int_equal(body_len(f), 9);
}

/* A directory replaced by a link under a node the guest already has. */
static void test_a_directory_that_becomes_a_link(void **state)
{
	struct fixture *f = *state;
	uint64_t sub = must_lookup(f, f->root, "sub"), id;
	char from[256], to[256];

	path_of(f, "tree/sub", from, sizeof(from));
	path_of(f, "tree/moved", to, sizeof(to));
	assert_int_equal(rename(from, to), 0);
	assert_int_equal(symlink("..", from), 0);
	assert_int_equal(mknod_at(f, sub, "inside", S_IFREG | 0644, 0), 0);
	path_of(f, "tree/moved/inside", to, sizeof(to));
	assert_int_equal(access(to, F_OK), 0);
	assert_int_equal(lookup(f, must_lookup(f, f->root, "sub"), "canary", &id), -ENOTDIR);
}

/* Nodes and handles */

static void test_nodes_that_are_not_there(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), again;
	const uint64_t ids[] = {0, 2, 999, file + (1ull << 32), file ^ (1ull << 63), UINT64_MAX};

	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		if (ids[i] != f->root)
			assert_int_equal(getattr(f, ids[i], NULL), -ESTALE);
	forget(f, file, 1);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	again = must_lookup(f, f->root, "file");
	/* The same slot, another generation. */
	assert_int_not_equal(again, file);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	assert_int_equal(getattr(f, again, NULL), 0);
}

static void test_forgetting_more_than_was_looked_up(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), fh;
	struct {
		struct fuse_batch_forget_in in;
		struct fuse_forget_one one[2];
	} batch = {.in = {.count = UINT32_MAX}};

	assert_int_equal(must_lookup(f, f->root, "file"), file);
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDONLY, &fh), 0);
	forget(f, file, 1);
	assert_int_equal(getattr(f, file, NULL), 0);
	forget(f, file, UINT64_MAX);
	forget(f, file, UINT64_MAX);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	/* The open file outlives it, and looking it up again revives the node. */
	assert_int_equal(must_lookup(f, f->root, "file"), file);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 100), 0);
	batch.one[0] = (struct fuse_forget_one){file, 5};
	batch.one[1] = (struct fuse_forget_one){file, UINT64_MAX};
	begin(f);
	add(f, &batch, sizeof(batch));
	assert_int_equal(send_it(f, FUSE_BATCH_FORGET, 0), 1);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	forget(f, FUSE_ROOT_ID, UINT64_MAX);
	assert_int_equal(getattr(f, FUSE_ROOT_ID, NULL), 0);
}

static void test_hard_links_are_one_node(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file");

	assert_int_equal(link_to(f, file, f->root, "second"), 0);
	assert_int_equal(must_lookup(f, f->root, "second"), file);
	/* Seen through the other export it is another one: its rights differ. */
	assert_int_not_equal(must_lookup(f, f->ro_root, "file"), file);
}

static void test_handles_belong_to_their_node(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), sub = must_lookup(f, f->root, "sub");
	uint64_t fh = 0, dh = 0;

	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDWR, &fh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, sub, O_RDONLY, &dh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, sub, fh, 0, 100), -EBADF);
	assert_int_equal(read_fh(f, FUSE_READ, sub, dh, 0, 100), -EBADF);
	assert_int_equal(read_fh(f, FUSE_READDIR, file, fh, 0, 4096), -ENOTDIR);
	assert_int_equal(write_fh(f, sub, dh, 0, "x", 0, 0), -EBADF);
	assert_int_equal(read_fh(f, FUSE_READ, file, 0, 0, 100), -EBADF);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh + (1ull << 32), 0, 100), -EBADF);
	assert_int_equal(release(f, FUSE_RELEASE, sub, fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 100), 0);
	assert_int_equal(release(f, FUSE_RELEASE, file, fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 100), -EBADF);
	assert_int_equal(release(f, FUSE_RELEASE, file, fh), 0);
}

static void test_descriptors_run_out(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), fh, last = 0, id;
	unsigned int n = 0;

	/* 100 in all, of which three nodes have one each. */
	while (open_node(f, FUSE_OPEN, file, O_RDONLY, &fh) == 0) {
		last = fh;
		n++;
	}
	assert_int_equal(n, 97);
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDONLY, &fh), -ENFILE);
	assert_int_equal(lookup(f, f->root, "sub", &id), -ENFILE);
	assert_int_equal(getattr(f, file, NULL), 0);
	assert_int_equal(release(f, FUSE_RELEASE, file, last), 0);
	assert_int_equal(lookup(f, f->root, "sub", &id), 0);
	forget(f, id, 1);
	assert_int_equal(create(f, f->root, "new", O_RDWR, 0644, &id, &fh), -ENFILE);
}

/* Special files */

static void test_special_files_are_never_opened(void **state)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	cleanup_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	static const char *const names[] = {"fifo", "sock"};
	struct fixture *f = *state;

	path_of(f, "tree/sock", sa.sun_path, sizeof(sa.sun_path));
	assert_int_equal(bind(sock, (struct sockaddr *)&sa, sizeof(sa)), 0);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		uint64_t id = must_lookup(f, f->root, names[i]), fh;
		struct fuse_setattr_in in = {.valid = FATTR_SIZE};

		/* A fifo that was opened would block for ever here. */
		assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDONLY, &fh), -ENXIO);
		assert_int_equal(open_node(f, FUSE_OPEN, id, O_WRONLY, &fh), -ENXIO);
		assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDWR | O_TRUNC, &fh), -ENXIO);
		assert_int_equal(open_node(f, FUSE_OPENDIR, id, O_RDONLY, &fh), -ENOTDIR);
		assert_int_equal(create(f, f->root, names[i], O_RDWR, 0644, NULL, NULL), -ENXIO);
		begin(f);
		add(f, &in, sizeof(in));
		assert_int_equal(send_it(f, FUSE_SETATTR, id), -ENXIO);
	}
}

static void test_device_nodes(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;

	assert_int_equal(mknod_at(f, f->root, "f", S_IFIFO | 0644, 0), 0);
	assert_int_equal(mknod_at(f, f->root, "s", S_IFSOCK | 0644, 0), 0);
	assert_int_equal(mknod_at(f, f->root, "c", S_IFCHR | 0644, 0x103), -EPERM);
	assert_int_equal(mknod_at(f, f->root, "b", S_IFBLK | 0644, 0x103), -EPERM);
	assert_int_equal(mknod_at(f, f->root, "b", S_IFBLK | 0644, 0), -EPERM);
	assert_int_equal(mknod_at(f, f->root, "d", S_IFDIR | 0644, 0), -EINVAL);
	assert_int_equal(mknod_at(f, f->root, "l", S_IFLNK | 0644, 0), -EINVAL);
	assert_int_equal(mknod_at(f, f->root, "white", S_IFCHR, 0), 0);
	if (!is_root())
		return;
	assert_int_equal(export_path(f, "dev", f->tree, FS_CONTROL_ALLOW_DEVICES), 0);
	id = must_lookup(f, FUSE_ROOT_ID, "dev");
	if (mknod_at(f, id, "null", S_IFCHR | 0666, 0x103) == 0) {
		struct fuse_attr a;

		id = must_lookup(f, id, "null");
		assert_int_equal(getattr(f, id, &a), 0);
		assert_int_equal(a.rdev, 0x103);
		assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDWR, &fh), -ENXIO);
	}
}

/* Read-only */

static void test_read_only_exports(void **state)
{
	static const uint8_t zeros[256];
	static const struct {
		uint32_t op;
		size_t len;
	} ops[] = {
		{FUSE_SETATTR, sizeof(struct fuse_setattr_in)},
		{FUSE_SYMLINK, 8},
		{FUSE_MKNOD, sizeof(struct fuse_mknod_in) + 2},
		{FUSE_MKDIR, sizeof(struct fuse_mkdir_in) + 2},
		{FUSE_UNLINK, 2},
		{FUSE_RMDIR, 2},
		{FUSE_RENAME, sizeof(struct fuse_rename_in) + 4},
		{FUSE_RENAME2, sizeof(struct fuse_rename2_in) + 4},
		{FUSE_LINK, sizeof(struct fuse_link_in) + 2},
		{FUSE_WRITE, sizeof(struct fuse_write_in)},
		{FUSE_SETXATTR, sizeof(struct fuse_setxattr_in) + 2},
		{FUSE_REMOVEXATTR, 2},
		{FUSE_CREATE, sizeof(struct fuse_create_in) + 2},
		{FUSE_FALLOCATE, sizeof(struct fuse_fallocate_in)},
		{FUSE_TMPFILE, sizeof(struct fuse_create_in) + 2},
	};
	static const uint32_t flags[] = {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_APPEND};
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->ro_root, "file"), fh, rw_fh;
	uint64_t rw_file = must_lookup(f, f->root, "file");
	struct fuse_copy_file_range_in c = {.len = 5};

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		begin(f);
		add(f, zeros, ops[i].len);
		assert_int_equal(send_it(f, ops[i].op, f->ro_root), -EROFS);
		begin(f);
		add(f, zeros, ops[i].len);
		/* Nor is the synthetic root written to. */
		assert_int_equal(send_it(f, ops[i].op, FUSE_ROOT_ID), -EROFS);
	}
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
		assert_int_equal(open_node(f, FUSE_OPEN, file, flags[i], &fh), -EROFS);
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_ACCMODE, &fh), -EROFS);
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDONLY, &fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 100), 0);
	assert_memory_equal(body(f), "hello world", 11);
	assert_int_equal(open_node(f, FUSE_OPEN, rw_file, O_RDWR, &rw_fh), 0);
	c.fh_in = rw_fh;
	c.nodeid_out = file;
	c.fh_out = fh;
	begin(f);
	add(f, &c, sizeof(c));
	assert_int_equal(send_it(f, FUSE_COPY_FILE_RANGE, rw_file), -EROFS);
}

/* Data */

static void test_reading_and_writing(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;
	struct fuse_write_in in = {.size = 100};

	assert_int_equal(create(f, f->root, "new", O_RDWR, 0644, &id, &fh), 0);
	assert_int_equal(write_fh(f, id, fh, 0, "0123456789", O_RDWR, 0), 0);
	assert_int_equal(((const struct fuse_write_out *)body(f))->size, 10);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 3, 4), 0);
	assert_int_equal(body_len(f), 4);
	assert_memory_equal(body(f), "3456", 4);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 10, 4), 0);
	assert_int_equal(body_len(f), 0);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, UINT64_MAX, 4), -EINVAL);
	/* More asked for than the answer has room for: as much as fits. */
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 0, UINT32_MAX), 0);
	assert_int_equal(body_len(f), 10);
	/* Appending is up to each write, and not to pages written back from mappings. */
	assert_int_equal(write_fh(f, id, fh, 0, "AB", O_RDWR | O_APPEND, 0), 0);
	assert_int_equal(write_fh(f, id, fh, 0, "ab", O_RDWR | O_APPEND, FUSE_WRITE_CACHE), 0);
	assert_int_equal(write_fh(f, id, fh, 2, "cd", O_RDWR, 0), 0);
	assert_int_equal(write_fh(f, id, fh, 4, "ef", O_RDWR | O_SYNC, 0), 0);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 0, 100), 0);
	assert_int_equal(body_len(f), 12);
	assert_memory_equal(body(f), "abcdef6789AB", 12);
	/* The size must be what is there. */
	in.fh = fh;
	begin(f);
	add(f, &in, sizeof(in));
	add(f, "short", 5);
	assert_int_equal(send_it(f, FUSE_WRITE, id), -EINVAL);
	in.size = 4;
	begin(f);
	add(f, &in, sizeof(in));
	add(f, "short", 5);
	assert_int_equal(send_it(f, FUSE_WRITE, id), -EINVAL);
}

static void test_creating_over_what_exists(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;

	assert_int_equal(create(f, f->root, "file", O_RDWR | O_EXCL, 0644, &id, &fh), -EEXIST);
	assert_int_equal(create(f, f->root, "file", O_RDWR, 0644, &id, &fh), 0);
	assert_int_equal(id, must_lookup(f, f->root, "file"));
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 0, 100), 0);
	assert_int_equal(body_len(f), 11);
	assert_int_equal(create(f, f->root, "file", O_RDWR | O_TRUNC, 0644, &id, &fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 0, 100), 0);
	assert_int_equal(body_len(f), 0);
	assert_int_equal(create(f, f->root, "sub", O_RDONLY, 0644, &id, &fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, id, fh, 0, 100), -EBADF);
}

static void test_space_and_holes(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;
	struct fuse_fallocate_in fa = {.length = 65536};
	struct fuse_lseek_in ls = {.whence = SEEK_DATA};
	struct fuse_attr a;

	assert_int_equal(create(f, f->root, "sparse", O_RDWR, 0644, &id, &fh), 0);
	fa.fh = fh;
	begin(f);
	add(f, &fa, sizeof(fa));
	assert_int_equal(send_it(f, FUSE_FALLOCATE, id), 0);
	assert_int_equal(getattr(f, id, &a), 0);
	assert_int_equal(a.size, 65536);
	fa.mode = 0x8; /* FALLOC_FL_COLLAPSE_RANGE */
	begin(f);
	add(f, &fa, sizeof(fa));
	assert_int_equal(send_it(f, FUSE_FALLOCATE, id), -EOPNOTSUPP);
	ls.fh = fh;
	ls.offset = 65536;
	begin(f);
	add(f, &ls, sizeof(ls));
	assert_int_equal(send_it(f, FUSE_LSEEK, id), -ENXIO);
	ls.whence = SEEK_HOLE;
	ls.offset = 10;
	begin(f);
	add(f, &ls, sizeof(ls));
	assert_int_equal(send_it(f, FUSE_LSEEK, id), 0);
	ls.whence = SEEK_SET;
	begin(f);
	add(f, &ls, sizeof(ls));
	assert_int_equal(send_it(f, FUSE_LSEEK, id), -EINVAL);
}

static void test_files_without_a_name(void **state)
{
	struct fixture *f = *state;
	struct fuse_create_in in = {.flags = O_RDWR, .mode = 0600};
	struct fuse_entry_out e;
	struct fuse_open_out o;

	begin(f);
	add(f, &in, sizeof(in));
	add_name(f, "/"); /* what the kernel sends */
	assert_int_equal(send_it(f, FUSE_TMPFILE, f->root), 0);
	memcpy(&e, body(f), sizeof(e));
	memcpy(&o, (const uint8_t *)body(f) + sizeof(e), sizeof(o));
	assert_int_equal(e.attr.nlink, 0);
	assert_int_equal(write_fh(f, e.nodeid, o.fh, 0, "secret", O_RDWR, 0), 0);
	assert_int_equal(link_to(f, e.nodeid, f->root, "named"), 0);
	assert_int_equal(must_lookup(f, f->root, "named"), e.nodeid);
}

/* Directories and exports */

static unsigned int count_entries(const struct fixture *f, bool plus, bool *ret_all_known)
{
	const uint8_t *p = body(f);
	size_t left = body_len(f);
	unsigned int n = 0;

	while (left) {
		struct fuse_direntplus d;
		size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET, len;

		assert_true(left >= head);
		if (plus)
			memcpy(&d, p, head);
		else
			memcpy(&d.dirent, p, head);
		len = FUSE_DIRENT_ALIGN(head + d.dirent.namelen);
		assert_true(left >= len && d.dirent.namelen > 0);
		if (plus && !d.entry_out.nodeid && p[head] != '.')
			*ret_all_known = false;
		p += len;
		left -= len;
		n++;
	}
	return n;
}

static void test_reading_directories(void **state)
{
	struct fixture *f = *state;
	bool known = true;
	uint64_t dh = 0;

	assert_int_equal(open_node(f, FUSE_OPENDIR, f->root, O_RDONLY, &dh), 0);
	assert_int_equal(read_fh(f, FUSE_READDIR, f->root, dh, 0, 4096), 0);
	assert_int_equal(count_entries(f, false, NULL), 8);
	assert_int_equal(read_fh(f, FUSE_READDIRPLUS, f->root, dh, 0, 4096), 0);
	assert_int_equal(count_entries(f, true, &known), 8);
	assert_true(known);
	assert_int_equal(read_fh(f, FUSE_READDIR, f->root, dh, 0, 8), -EINVAL);
	assert_int_equal(release(f, FUSE_RELEASEDIR, f->root, dh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, FUSE_ROOT_ID, O_RDONLY, &dh), 0);
	assert_int_equal(read_fh(f, FUSE_READDIR, FUSE_ROOT_ID, dh, 0, 4096), 0);
	assert_int_equal(count_entries(f, false, NULL), 4);
	assert_int_equal(read_fh(f, FUSE_READDIR, FUSE_ROOT_ID, dh, 4, 4096), 0);
	assert_int_equal(body_len(f), 0);
	assert_int_equal(read_fh(f, FUSE_READDIR, FUSE_ROOT_ID, dh, UINT64_MAX, 4096), 0);
	assert_int_equal(body_len(f), 0);
}

/* A scan by small answers shows each entry once, at any size of answer. */
static void test_reading_a_directory_in_small_pieces(void **state)
{
	struct fixture *f = *state;
	uint64_t dh = 0, sub = must_lookup(f, f->root, "sub");

	for (int i = 0; i < 300; i++) {
		char name[64];

		snprintf(name, sizeof(name), "tree/sub/some-file-%d", i);
		make_file(f, name, "");
	}
	for (uint32_t size = 300; size < 5000; size = size * 3 / 2) {
		unsigned int n = 0;
		uint64_t off = 0;

		assert_int_equal(open_node(f, FUSE_OPENDIR, sub, O_RDONLY, &dh), 0);
		for (;;) {
			const uint8_t *p = body(f);
			size_t left;

			assert_int_equal(read_fh(f, FUSE_READDIR, sub, dh, off, size), 0);
			left = body_len(f);
			if (!left)
				break;
			assert_true(left <= size);
			n += count_entries(f, false, NULL);
			while (left) {
				struct fuse_dirent d;

				memcpy(&d, p, FUSE_NAME_OFFSET);
				off = d.off;
				p += FUSE_DIRENT_SIZE(&d);
				left -= FUSE_DIRENT_SIZE(&d);
			}
		}
		assert_int_equal(n, 302);
		assert_int_equal(release(f, FUSE_RELEASEDIR, sub, dh), 0);
	}
}

static void test_exports_come_and_go(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), id, fh;
	char p[256];

	path_of(f, "tree/file", p, sizeof(p));
	assert_int_equal(export_path(f, "single", p, FS_CONTROL_READ_ONLY), 0);
	id = must_lookup(f, FUSE_ROOT_ID, "single");
	assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDONLY, &fh), 0);
	assert_int_equal(lookup(f, id, "x", &id), -ENOTDIR);
	assert_int_equal(export_path(f, "tree", f->tree, 0), -EEXIST);
	assert_int_equal(export_path(f, "a/b", f->tree, 0), -EINVAL);
	assert_int_equal(export_path(f, "..", f->tree, 0), -EINVAL);
	assert_int_equal(export_path(f, "flags", f->tree, 0x80), -EINVAL);
	/* Only O_PATH descriptors: the server decides how a file is opened. */
	assert_int_equal(fs_export_add(f->fs, "x", open(p, O_RDWR | O_CLOEXEC), 0), -EINVAL);
	assert_int_equal(fs_export_remove(f->fs, "tree", false), 0);
	assert_int_equal(fs_export_remove(f->fs, "tree", false), -ENOENT);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &id), -ENOENT);
	/* What the guest has keeps working. */
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDONLY, &fh), 0);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 100), 0);
	assert_int_equal(lookup(f, f->root, "sub", &id), 0);
}

static void test_a_revoked_export_is_let_go(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), fh = 0, dh = 0, id, other = 0;
	struct stat st, dead;

	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDWR, &fh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, f->root, O_RDONLY, &dh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, f->ro_root, O_RDONLY, &other), 0);
	assert_int_equal(stat(f->tree, &st), 0);
	assert_int_equal(fs_export_remove(f->fs, "tree", true), 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &id), -ENOENT);
	assert_int_equal(lookup(f, f->root, "file", &id), -ESTALE);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 10), -ESTALE);
	assert_int_equal(write_fh(f, file, fh, 0, "x", 0, 0), -ESTALE);
	assert_int_equal(read_fh(f, FUSE_READDIR, f->root, dh, 0, 4096), -ESTALE);
	/* The other export of the same tree is untouched. */
	assert_int_equal(read_fh(f, FUSE_READDIR, f->ro_root, other, 0, 4096), 0);
	(void)must_lookup(f, f->ro_root, "file");
	/* No descriptor is left of it: three of the read-only one lead to the tree and its file. */
	for (int fd = 3, n = 0; fd < 256; fd++) {
		if (fstat(fd, &dead) == 0 && dead.st_dev == st.st_dev && dead.st_ino == st.st_ino)
			assert_true(++n <= 3);
	}
	assert_int_equal(release(f, FUSE_RELEASE, file, fh), 0);
	assert_int_equal(release(f, FUSE_RELEASEDIR, f->root, dh), 0);
	forget(f, file, 1);
	forget(f, f->root, 1);
	assert_int_equal(export_path(f, "tree", f->tree, 0), 0);
	(void)must_lookup(f, must_lookup(f, FUSE_ROOT_ID, "tree"), "file");
}

static void test_exports_do_not_mix(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file"), other;

	assert_int_equal(export_path(f, "other", f->tree, 0), 0);
	other = must_lookup(f, FUSE_ROOT_ID, "other");
	assert_int_equal(rename_to(f, f->root, "file", other, "x", 0), -EXDEV);
	assert_int_equal(rename_to(f, f->root, "file", f->ro_root, "x", 0), -EXDEV);
	assert_int_equal(rename_to(f, f->root, "file", FUSE_ROOT_ID, "x", 0), -EXDEV);
	assert_int_equal(link_to(f, file, other, "x"), -EXDEV);
	assert_int_equal(link_to(f, FUSE_ROOT_ID, f->root, "x"), -EXDEV);
	assert_int_equal(rename_to(f, f->root, "file", f->root, "x", 0x80), -EINVAL);
	assert_int_equal(rename_to(f, f->root, "file", f->root, "sub", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(rename_to(f, f->root, "file", f->root, "sub", RENAME_EXCHANGE), 0);
	assert_int_equal(rename_to(f, f->root, "sub", f->root, "gone", 0), 0);
}

static void test_lifetimes_follow_the_export(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	uint64_t root, id;

	assert_int_equal(export_path(f, "own", f->tree, FS_CONTROL_EXCLUSIVE), 0);
	root = must_lookup(f, FUSE_ROOT_ID, "own");
	memcpy(&e, body(f), sizeof(e));
	assert_int_equal(e.entry_valid, 0);
	(void)must_lookup(f, root, "file");
	memcpy(&e, body(f), sizeof(e));
	assert_true(e.entry_valid >= 3600 && e.attr_valid >= 3600);
	(void)must_lookup(f, f->root, "file");
	memcpy(&e, body(f), sizeof(e));
	assert_int_equal(e.entry_valid, 1);
	assert_int_equal(e.attr_valid, 1);
	/* "Not there" is remembered only where nobody else can put it there. */
	assert_int_equal(lookup(f, f->root, "missing", &id), -ENOENT);
	assert_int_equal(lookup(f, root, "missing", &id), 0);
	assert_int_equal(id, 0);
}

static uint32_t flags_of_open(struct fixture *f, uint64_t node)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct fuse_open_out out;

	begin(f);
	add(f, &in, sizeof(in));
	assert_int_equal(send_it(f, FUSE_OPEN, node), 0);
	memcpy(&out, body(f), sizeof(out));
	return out.open_flags;
}

/* The guest keeps the pages of a file that nobody changed since it was opened before, and of no other. */
static void test_pages_are_kept_while_nothing_changes(void **state)
{
	struct fixture *f = *state;
	char path[128];
	uint64_t node;
	struct stat st;

	/* One that was just written may be written again within the same tick of the clock. */
	snprintf(path, sizeof(path), "%s/young", f->tree);
	assert_int_equal(io_replace_file(AT_FDCWD, path, "1", 1), 0);
	node = must_lookup(f, f->root, "young");
	assert_false(flags_of_open(f, node) & FOPEN_KEEP_CACHE);
	assert_false(flags_of_open(f, node) & FOPEN_KEEP_CACHE);
	/* Until the tick is over; then any change shows. */
	assert_int_equal(stat(path, &st), 0);
	while (time(NULL) - st.st_ctim.tv_sec <= 2)
		sleep(1);
	assert_false(flags_of_open(f, node) & FOPEN_KEEP_CACHE);
	assert_true(flags_of_open(f, node) & FOPEN_KEEP_CACHE);
	assert_int_equal(chmod(path, 0600), 0);
	assert_false(flags_of_open(f, node) & FOPEN_KEEP_CACHE);
}

/* Attributes */

static void test_attributes(void **state)
{
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file");
	struct fuse_setattr_in in = {.valid = FATTR_MODE | FATTR_SIZE | FATTR_MTIME,
				     .mode = S_IFREG | 0640,
				     .size = 5,
				     .mtime = 1000000000,
				     .mtimensec = 123456789};
	struct fuse_statx_in sx = {.sx_mask = STATX_BASIC_STATS | STATX_BTIME};
	struct fuse_statx_out sxo;
	struct fuse_attr a;

	begin(f);
	add(f, &in, sizeof(in));
	assert_int_equal(send_it(f, FUSE_SETATTR, file), 0);
	assert_int_equal(getattr(f, file, &a), 0);
	assert_int_equal(a.mode, S_IFREG | 0640);
	assert_int_equal(a.size, 5);
	assert_int_equal(a.mtime, 1000000000);
	assert_int_equal(a.mtimensec, 123456789);
	begin(f);
	add(f, &sx, sizeof(sx));
	assert_int_equal(send_it(f, FUSE_STATX, file), 0);
	memcpy(&sxo, body(f), sizeof(sxo));
	assert_int_equal(sxo.stat.size, 5);
	assert_int_equal(sxo.stat.ino, a.ino);
	assert_true(sxo.stat.mask & STATX_BASIC_STATS);
	begin(f);
	assert_int_equal(send_it(f, FUSE_STATFS, file), 0);
	assert_int_equal(((const struct fuse_statfs_out *)body(f))->st.namelen, 255);
	begin(f);
	assert_int_equal(send_it(f, FUSE_STATFS, FUSE_ROOT_ID), 0);
	in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 1ull << 63};
	begin(f);
	add(f, &in, sizeof(in));
	assert_int_equal(send_it(f, FUSE_SETATTR, file), -EFBIG);
	begin(f);
	add(f, &(struct fuse_syncfs_in){0}, sizeof(struct fuse_syncfs_in));
	assert_int_equal(send_it(f, FUSE_SYNCFS, FUSE_ROOT_ID), 0);
}

static void test_extended_attributes(void **state)
{
	static const struct {
		const char *name;
		int set, get;
	} other[] = {
		{"trusted.overlay.opaque", -EPERM, -ENODATA},
		{"trusted.x", -EPERM, -ENODATA},
		{"security.selinux", -EOPNOTSUPP, -ENODATA},
		{"security.ima", -EOPNOTSUPP, -ENODATA},
		{"system.other", -EOPNOTSUPP, -EOPNOTSUPP},
		{"user.", -EINVAL, -EINVAL},
		{"nonsense", -EOPNOTSUPP, -EOPNOTSUPP},
	};
	struct fixture *f = *state;
	uint64_t file = must_lookup(f, f->root, "file");
	struct fuse_setxattr_in big = {.size = 65537};
	struct fuse_getxattr_in list = {.size = 4096};
	char p[256];

	for (size_t i = 0; i < ARRAY_SIZE(other); i++) {
		assert_int_equal(setxattr_on(f, file, other[i].name, "v"), other[i].set);
		assert_int_equal(getxattr_of(f, file, other[i].name, 100), other[i].get);
	}
	assert_int_equal(setxattr_on(f, file, "", "v"), -ERANGE);
	begin(f);
	add(f, &big, sizeof(big));
	add_name(f, "user.big");
	assert_int_equal(send_it(f, FUSE_SETXATTR, file), -E2BIG);
	big.size = 5;
	begin(f);
	add(f, &big, sizeof(big));
	add_name(f, "user.big");
	assert_int_equal(send_it(f, FUSE_SETXATTR, file), -EINVAL);
	assert_int_equal(getxattr_of(f, FUSE_ROOT_ID, "user.x", 10), -ENODATA);
	if (setxattr_on(f, file, "user.colour", "blue") == -EOPNOTSUPP)
		return; /* the temporary directory's file system has none */
	assert_int_equal(getxattr_of(f, file, "user.colour", 0), 0);
	assert_int_equal(((const struct fuse_getxattr_out *)body(f))->size, 4);
	assert_int_equal(getxattr_of(f, file, "user.colour", 3), -ERANGE);
	assert_int_equal(getxattr_of(f, file, "user.colour", 4), 0);
	assert_memory_equal(body(f), "blue", 4);
	path_of(f, "tree/file", p, sizeof(p));
	(void)setxattr(p, "trusted.hidden", "x", 1, 0);
	begin(f);
	add(f, &list, sizeof(list));
	assert_int_equal(send_it(f, FUSE_LISTXATTR, file), 0);
	assert_int_equal(body_len(f), sizeof("user.colour"));
	assert_memory_equal(body(f), "user.colour", sizeof("user.colour"));
	begin(f);
	add_name(f, "user.colour");
	assert_int_equal(send_it(f, FUSE_REMOVEXATTR, file), 0);
	assert_int_equal(getxattr_of(f, file, "user.colour", 4), -ENODATA);
}

/* Credentials; as root only */

static void chown_path(const struct fixture *f, const char *rel, uid_t uid, gid_t gid, mode_t mode)
{
	char p[256];

	path_of(f, rel, p, sizeof(p));
	assert_int_equal(chown(p, uid, gid), 0);
	assert_int_equal(chmod(p, mode), 0);
}

static void test_files_belong_to_their_creator(void **state)
{
	struct fixture *f = *state;
	uint64_t sub, id, fh;
	struct fuse_attr a;

	if (!is_root())
		return;
	sub = must_lookup(f, f->root, "sub");
	f->uid = 1234;
	f->gid = 2345;
	/* Not writable for that user on the host: the guest has decided that it may. */
	assert_int_equal(create(f, sub, "mine", O_RDWR | O_EXCL, 0666, &id, &fh), 0);
	assert_int_equal(getattr(f, id, &a), 0);
	assert_int_equal(a.uid, 1234);
	assert_int_equal(a.gid, 2345);
	assert_int_equal(a.mode, S_IFREG | 0644); /* umask 022 came with the request */
	assert_int_equal(mknod_at(f, sub, "pipe", S_IFIFO | 0600, 0), 0);
	assert_int_equal(getattr(f, must_lookup(f, sub, "pipe"), &a), 0);
	assert_int_equal(a.uid, 1234);
	assert_int_equal(geteuid(), 0);
	assert_int_equal(getegid(), 0);
	f->uid = UINT32_MAX;
	assert_int_equal(create(f, sub, "nobody", O_RDWR | O_EXCL, 0666, &id, &fh), -EINVAL);
}

/* A set-group-id bit in a group the user is not in would be a way into that group. */
static void test_set_group_id_directories(void **state)
{
	struct fixture *f = *state;
	struct {
		struct fuse_create_in in;
		char name[8];
		struct fs_ext_header ext;
		uint32_t nr_groups;
		uint32_t group;
	} __attribute__((packed)) member = {
		.in = {.flags = O_CREAT | O_RDWR, .mode = S_IFREG | 02755},
		.name = "member1",
		.ext = {.size = 16, .type = FS_EXT_GROUPS},
		.nr_groups = 1,
		.group = 50,
	};
	uint64_t sub, id, fh;
	struct fuse_attr a;

	if (!is_root())
		return;
	chown_path(f, "tree/sub", 0, 50, 02777);
	sub = must_lookup(f, f->root, "sub");
	f->uid = 1234;
	f->gid = 2345;
	assert_int_equal(create(f, sub, "stranger", O_RDWR, 02755, &id, &fh), 0);
	assert_int_equal(getattr(f, id, &a), 0);
	assert_int_equal(a.gid, 50);
	assert_int_equal(a.mode & 07777, 0755);
	/* A member of the group, as the guest knows and says. */
	begin(f);
	add(f, &member, sizeof(member));
	assert_int_equal(send_claiming(f, FUSE_CREATE, sub, (uint32_t)f->req_len, 2), 0);
	assert_int_equal(getattr(f, must_lookup(f, sub, "member1"), &a), 0);
	assert_int_equal(a.gid, 50);
	assert_int_equal(a.mode & 07777, 02755);
	/* Malformed ones. */
	member.name[6] = '2';
	member.nr_groups = 77;
	begin(f);
	add(f, &member, sizeof(member));
	assert_int_equal(send_claiming(f, FUSE_CREATE, sub, (uint32_t)f->req_len, 2), -EINVAL);
	member.nr_groups = 1;
	member.ext.size = 4096;
	begin(f);
	add(f, &member, sizeof(member));
	assert_int_equal(send_claiming(f, FUSE_CREATE, sub, (uint32_t)f->req_len, 2), -EINVAL);
	member.ext.size = 0;
	begin(f);
	add(f, &member, sizeof(member));
	assert_int_equal(send_claiming(f, FUSE_CREATE, sub, (uint32_t)f->req_len, 2), -EINVAL);
	assert_int_equal(lookup(f, sub, "member2", &id), -ENOENT);
}

static mode_t mode_of(struct fixture *f, uint64_t id)
{
	struct fuse_attr a;

	assert_int_equal(getattr(f, id, &a), 0);
	return a.mode & 07777;
}

static void test_privilege_bits_are_killed(void **state)
{
	struct fixture *f = *state;
	struct fuse_setattr_in size = {.valid = FATTR_SIZE | FATTR_KILL_SUIDGID, .size = 3};
	struct fuse_setattr_in owner = {.valid = FATTR_UID, .uid = 77};
	uint64_t id, fh;

	if (!is_root())
		return;
	chown_path(f, "tree/file", 0, 0, 06755);
	id = must_lookup(f, f->root, "file");
	assert_int_equal(open_node(f, FUSE_OPEN, id, O_RDWR, &fh), 0);
	assert_int_equal(write_fh(f, id, fh, 0, "x", O_RDWR, 0), 0);
	assert_int_equal(mode_of(f, id), 06755); /* root may keep them */
	assert_int_equal(write_fh(f, id, fh, 0, "x", O_RDWR, FUSE_WRITE_KILL_SUIDGID), 0);
	assert_int_equal(mode_of(f, id), 0755);
	chown_path(f, "tree/file", 0, 0, 06755);
	begin(f);
	add(f, &size, sizeof(size));
	assert_int_equal(send_it(f, FUSE_SETATTR, id), 0);
	assert_int_equal(mode_of(f, id), 0755);
	chown_path(f, "tree/file", 0, 0, 06755);
	begin(f);
	add(f, &owner, sizeof(owner));
	assert_int_equal(send_it(f, FUSE_SETATTR, id), 0);
	assert_int_equal(mode_of(f, id), 0755);
}

/* What was saved; ends what was there, as a restored virtual machine's server has nothing yet. */
static uint8_t *save_and_end(struct fixture *f, size_t *ret_len)
{
	uint8_t *state = NULL;

	assert_int_equal(fs_state_save(f->fs, &state, ret_len), 0);
	begin(f);
	assert_int_equal(send_it(f, FUSE_DESTROY, 0), 0);
	return state;
}

static void test_a_session_is_saved_and_restored(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL, *none = NULL;
	size_t len = 0, none_len = 0;

	forget(f, f->root, UINT32_MAX);
	forget(f, f->ro_root, UINT32_MAX);
	state = save_and_end(f, &len);
	assert_int_equal(fs_state_save(f->fs, &none, &none_len), 0);
	assert_int_equal(getattr(f, FUSE_ROOT_ID, NULL), -EIO);
	assert_int_equal(fs_state_load(f->fs, none, none_len), 0);
	assert_int_equal(getattr(f, FUSE_ROOT_ID, NULL), -EIO);
	assert_int_equal(fs_state_load(f->fs, state, len), 0);
	/* The session goes on, with what was agreed on: the long form of SETXATTR. */
	assert_int_equal(getattr(f, FUSE_ROOT_ID, NULL), 0);
	assert_int_equal(setxattr_on(f, must_lookup(f, f->root = must_lookup(f, 1, "tree"), "file"),
				     "user.a", "b"),
			 0);
	assert_int_equal(init_session(f, FUSE_KERNEL_VERSION, FUSE_KERNEL_MINOR_VERSION), -EIO);
	/* Never over a session that there is. */
	assert_int_equal(fs_state_load(f->fs, state, len), -EBUSY);
}

static void test_damaged_sessions_are_refused(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL, *bad = NULL;
	size_t len = 0;

	forget(f, f->root, UINT32_MAX);
	forget(f, f->ro_root, UINT32_MAX);
	state = save_and_end(f, &len);
	bad = xmalloc(len + 1);
	for (size_t n = 0; n < len; n++) {
		assert_true(fs_state_load(f->fs, state, n) < 0);
		memcpy(bad, state, len);
		bad[n] ^= 0x10;
		assert_true(fs_state_load(f->fs, bad, len) < 0);
	}
	memcpy(bad, state, len);
	bad[len] = 0;
	assert_true(fs_state_load(f->fs, bad, len + 1) < 0);
	assert_int_equal(getattr(f, FUSE_ROOT_ID, NULL), -EIO);
}

/* Another server with the same exports, as that of a restored virtual machine; the old one's files stay open. */
static int restore(struct fixture *f, const uint8_t *state, size_t len)
{
	free_server(f);
	new_server(f, 100);
	return fs_state_load(f->fs, state, len);
}

static void test_open_files_are_restored(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL, *again = NULL;
	uint64_t file, made, sub, fh, made_fh, dir_fh, root_fh, other;
	size_t len = 0, again_len = 0;
	struct fuse_attr before, after;

	file = must_lookup(f, f->root, "file");
	sub = must_lookup(f, f->root, "sub");
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDWR, &fh), 0);
	assert_int_equal(create(f, sub, "made", O_WRONLY, 0600, &made, &made_fh), 0);
	assert_int_equal(write_fh(f, made, made_fh, 0, "one", O_WRONLY, 0), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, sub, 0, &dir_fh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, FUSE_ROOT_ID, 0, &root_fh), 0);
	assert_int_equal(getattr(f, made, &before), 0);
	assert_int_equal(fs_state_save(f->fs, &state, &len), 0);
	assert_int_equal(restore(f, state, len), 0);
	/* Saving changes nothing, and restoring leaves nothing out. */
	assert_int_equal(fs_state_save(f->fs, &again, &again_len), 0);
	assert_int_equal(len, again_len);
	assert_memory_equal(state, again, len);
	/* The guest's numbers mean what they meant. */
	assert_int_equal(getattr(f, made, &after), 0);
	assert_int_equal(before.ino, after.ino);
	assert_int_equal(write_fh(f, made, made_fh, 3, "two", O_WRONLY, 0), 0);
	assert_int_equal(read_fh(f, FUSE_READ, file, fh, 0, 4), 0);
	assert_int_equal(read_fh(f, FUSE_READDIR, sub, dir_fh, 0, 1024), 0);
	assert_int_equal(read_fh(f, FUSE_READDIR, FUSE_ROOT_ID, root_fh, 0, 1024), 0);
	assert_int_equal(must_lookup(f, sub, "made"), made);
	/* Write-only is write-only, and new numbers are new. */
	assert_int_equal(read_fh(f, FUSE_READ, made, made_fh, 0, 4), -EBADF);
	other = must_lookup(f, f->root, "out");
	assert_true(other != file && other != made && other != sub && other != f->root);
	assert_int_equal(release(f, FUSE_RELEASE, made, made_fh), 0);
	assert_int_equal(write_fh(f, made, made_fh, 0, "x", O_WRONLY, 0), -EBADF);
	forget(f, made, 2);
	assert_int_equal(getattr(f, made, NULL), -ESTALE);
	assert_true(must_lookup(f, sub, "made") != made);
}

static void test_open_file_without_a_name(void **unused)
{
	struct fixture *f = *unused;
	cleanup_close int tree = open(f->tree, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_free uint8_t *state = NULL;
	uint64_t made, fh;
	size_t len = 0;

	assert_int_equal(create(f, f->root, "made", O_RDWR, 0600, &made, &fh), 0);
	assert_int_equal(unlinkat(tree, "made", 0), 0);
	assert_int_equal(fs_state_save(f->fs, &state, &len), -EBUSY);
	assert_non_null(strstr(fs_state_why(f->fs), "made"));
	assert_non_null(strstr(fs_state_why(f->fs), "has no name any more"));
	/* Closed, it is one that the guest knows and nobody needs. */
	assert_int_equal(release(f, FUSE_RELEASE, made, fh), 0);
	assert_int_equal(fs_state_save(f->fs, &state, &len), 0);
	assert_int_equal(restore(f, state, len), 0);
	assert_int_equal(getattr(f, made, NULL), -ESTALE);
	forget(f, made, 1);
	assert_int_equal(getattr(f, f->root, NULL), 0);
}

/* Between saving and restoring, a file is removed, or another one has its name. */
static void test_files_that_are_others_by_then(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL;
	cleanup_close int tree = open(f->tree, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_close int fd = -1;
	uint64_t made, closed, fh;
	size_t len = 0;

	assert_int_equal(create(f, f->root, "closed", O_RDWR, 0600, &closed, &fh), 0);
	assert_int_equal(release(f, FUSE_RELEASE, closed, fh), 0);
	assert_int_equal(create(f, f->root, "made", O_RDWR, 0600, &made, &fh), 0);
	assert_int_equal(fs_state_save(f->fs, &state, &len), 0);
	assert_int_equal(unlinkat(tree, "closed", 0), 0);
	assert_int_equal(restore(f, state, len), 0);
	assert_int_equal(getattr(f, closed, NULL), -ESTALE);
	/* Another process has written to it: it is the same file. */
	fd = openat(tree, "made", O_WRONLY | O_CLOEXEC);
	assert_int_equal(write(fd, "longer", 6), 6);
	assert_int_equal(restore(f, state, len), 0);
	assert_int_equal(unlinkat(tree, "made", 0), 0);
	assert_int_equal(restore(f, state, len), -ESTALE);
	assert_non_null(
		strstr(fs_state_why(f->fs), "'made' of 'tree' is open, and cannot be found"));
	assert_int_equal(mkdirat(tree, "made", 0700), 0);
	assert_int_equal(restore(f, state, len), -ESTALE);
	assert_non_null(strstr(fs_state_why(f->fs), "has been changed"));
	assert_true(fs_is_idle(f->fs));
	/* A link would lead elsewhere. */
	assert_int_equal(unlinkat(tree, "made", AT_REMOVEDIR), 0);
	assert_int_equal(symlinkat("../canary", tree, "made"), 0);
	assert_int_equal(restore(f, state, len), -ESTALE);
	assert_int_equal(unlinkat(tree, "made", 0), 0);
}

static void test_restored_elsewhere(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL;
	size_t len = 0;

	assert_int_equal(fs_state_save(f->fs, &state, &len), 0);
	assert_int_equal(fs_export_remove(f->fs, "ro", false), 0);
	assert_int_equal(fs_export_remove(f->fs, "tree", false), 0);
	forget(f, f->root, UINT32_MAX);
	forget(f, f->ro_root, UINT32_MAX);
	begin(f);
	assert_int_equal(send_it(f, FUSE_DESTROY, 0), 0);
	assert_int_equal(fs_state_load(f->fs, state, len), -ENOENT);
	assert_non_null(strstr(fs_state_why(f->fs), "there is no tree 'tree'"));
	/* What was read-only is not to be writable, and the other way round. */
	assert_int_equal(export_path(f, "tree", f->tree, FS_CONTROL_READ_ONLY), 0);
	assert_int_equal(fs_state_load(f->fs, state, len), -EINVAL);
	assert_non_null(strstr(fs_state_why(f->fs), "shared in another way"));
	assert_true(fs_is_idle(f->fs));
}

static uint32_t state_sum(const uint8_t *p, size_t len)
{
	uint32_t h = 2166136261u;

	while (len--)
		h = (h ^ *p++) * 16777619u;
	return h;
}

/* Who can compute a sum can write anything: what is taken then must be sound. */
static void test_sessions_made_up(void **unused)
{
	struct fixture *f = *unused;
	cleanup_free uint8_t *state = NULL, *bad = NULL;
	uint64_t file, fh;
	size_t len = 0;

	file = must_lookup(f, f->root, "file");
	assert_int_equal(open_node(f, FUSE_OPEN, file, O_RDONLY, &fh), 0);
	assert_int_equal(open_node(f, FUSE_OPENDIR, f->root, 0, &fh), 0);
	assert_int_equal(fs_state_save(f->fs, &state, &len), 0);
	bad = xmalloc(len);
	for (size_t n = 24; n < len; n++) {
		for (unsigned int bit = 0; bit < 8; bit++) {
			uint32_t sum;

			memcpy(bad, state, len);
			bad[n] ^= (uint8_t)(1u << bit);
			sum = htole32(state_sum(bad + 24, len - 24));
			memcpy(bad + 16, &sum, sizeof(sum));
			if (restore(f, bad, len))
				assert_true(fs_is_idle(f->fs));
		}
	}
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_init_negotiates),
		CASE(test_sessions_begin_and_end),
		CASE(test_locks_of_owners_and_of_the_host),
		CASE(test_which_files_are_locked_for_all),
		CASE(test_short_and_overlong_requests),
		CASE(test_unknown_and_unwanted_operations),
		CASE(test_little_room_for_the_answer),
		CASE(test_bad_names_are_refused_everywhere),
		CASE(test_long_names_and_stray_nuls),
		CASE(test_links_are_not_followed),
		CASE(test_a_directory_that_becomes_a_link),
		CASE(test_nodes_that_are_not_there),
		CASE(test_forgetting_more_than_was_looked_up),
		CASE(test_hard_links_are_one_node),
		CASE(test_handles_belong_to_their_node),
		CASE(test_descriptors_run_out),
		CASE(test_special_files_are_never_opened),
		CASE(test_device_nodes),
		CASE(test_read_only_exports),
		CASE(test_reading_and_writing),
		CASE(test_creating_over_what_exists),
		CASE(test_space_and_holes),
		CASE(test_files_without_a_name),
		CASE(test_reading_directories),
		CASE(test_reading_a_directory_in_small_pieces),
		CASE(test_exports_come_and_go),
		CASE(test_a_revoked_export_is_let_go),
		CASE(test_exports_do_not_mix),
		CASE(test_lifetimes_follow_the_export),
		CASE(test_pages_are_kept_while_nothing_changes),
		CASE(test_attributes),
		CASE(test_extended_attributes),
		CASE(test_files_belong_to_their_creator),
		CASE(test_set_group_id_directories),
		CASE(test_privilege_bits_are_killed),
		CASE(test_a_session_is_saved_and_restored),
		CASE(test_damaged_sessions_are_refused),
		CASE(test_open_files_are_restored),
		CASE(test_open_file_without_a_name),
		CASE(test_files_that_are_others_by_then),
		CASE(test_restored_elsewhere),
		CASE(test_sessions_made_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
