/*
 * The virtio-fs device with the real, confined harpoon-fs behind it: a driver in a memory image sends raw
 * FUSE requests. Then the device alone, with a server that lies.
 *
 * harpoon-fs takes root, so these tests do; they say so otherwise.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/fuse.h>

#include "cleanup.h"
#include "fs_channel.h"
#include "fs_control.h"
#include "fs_events.h"
#include "io.h"
#include "virtio_driver.h"
#include "virtiofs.h"
#include "virtiofs_window.h"

#define HIPRIO 0
#define REQUESTS 1
#define BODY_MAX (1u << 20)
#define REPLY_MAX (BODY_MAX + 4096)

struct fixture {
	char top[64];		   /* "<tmp>": tree/ */
	char tree[80];		   /* exported as "tree" */
	pid_t server;		   /* 0 = the test plays the server */
	int control;		   /* of the server */
	int server_end;		   /* the trunk's other end, when the test plays the server */
	struct virtio_device *dev; /* owned by the driver */
	struct vdrv *d;
	uint64_t req_gpa, reply_gpa;
	uint64_t unique;
	size_t body_len;
	size_t reply_room;
	bool was_lost;
	uint64_t root; /* node of "tree" */
};

static void on_lost(void *ctx, const char *why)
{
	struct fixture *f = ctx;

	print_message("# lost: %s\n", why);
	assert_false(f->was_lost);
	f->was_lost = true;
}

/* --- one request ------------------------------------------------------------------------------------ */

static uint8_t *body(struct fixture *f)
{
	return (uint8_t *)vdrv_ptr(f->d, f->req_gpa) + sizeof(struct fuse_in_header);
}

static const void *answer(struct fixture *f)
{
	return (uint8_t *)vdrv_ptr(f->d, f->reply_gpa) + sizeof(struct fuse_out_header);
}

static void begin(struct fixture *f)
{
	f->body_len = 0;
	f->reply_room = REPLY_MAX;
}

static void add(struct fixture *f, const void *data, size_t len)
{
	memcpy(body(f) + f->body_len, data, len);
	f->body_len += len;
}

/* Describes len bytes at gpa as odd pieces, so that structures are split. */
static unsigned int cut(uint64_t gpa, size_t len, bool writable, struct vdrv_buf *bufs,
			unsigned int max)
{
	size_t piece = 7;
	unsigned int nr = 0;

	while (len) {
		size_t n = nr == max - 1 ? len : MIN(piece, len);

		bufs[nr++] = (struct vdrv_buf){gpa, (uint32_t)n, writable};
		gpa += n;
		len -= n;
		piece = piece * 2 + 1;
	}
	return nr;
}

static int offer(struct fixture *f, unsigned int queue, uint32_t opcode, uint64_t node)
{
	struct fuse_in_header h = {.len = (uint32_t)(sizeof(h) + f->body_len),
				   .opcode = opcode,
				   .unique = ++f->unique,
				   .nodeid = node};
	struct vdrv_buf bufs[32];
	unsigned int nr;

	memcpy(vdrv_ptr(f->d, f->req_gpa), &h, sizeof(h));
	memset(vdrv_ptr(f->d, f->reply_gpa), 0xee, 256);
	nr = cut(f->req_gpa, h.len, false, bufs, 14);
	nr += cut(f->reply_gpa, f->reply_room, true, bufs + nr, 14);
	return vdrv_add(f->d, queue, bufs, nr);
}

/* Sends what was built and waits. The error of the answer; its body's length in *len. */
static int ask_len(struct fixture *f, uint32_t opcode, uint64_t node, size_t *len)
{
	struct fuse_out_header out;
	int head = offer(f, REQUESTS, opcode, node);
	uint32_t used = 0;

	assert_true(head >= 0);
	vdrv_kick(f->d, REQUESTS);
	assert_int_equal(vdrv_wait_used(f->d, REQUESTS, &used), head);
	assert_true(used >= sizeof(out));
	memcpy(&out, vdrv_ptr(f->d, f->reply_gpa), sizeof(out));
	assert_int_equal(out.len, used);
	assert_int_equal(out.unique, f->unique);
	*len = used - sizeof(out);
	return out.error;
}

static int ask(struct fixture *f, uint32_t opcode, uint64_t node)
{
	size_t len;

	return ask_len(f, opcode, node, &len);
}

static int init_session_with(struct fixture *f, uint64_t flags, struct fuse_init_out *ret)
{
	struct fuse_init_in in = {.major = FUSE_KERNEL_VERSION,
				  .minor = FUSE_KERNEL_MINOR_VERSION,
				  .flags = (uint32_t)flags,
				  .flags2 = (uint32_t)(flags >> 32)};
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	r = ask(f, FUSE_INIT, 0);
	memcpy(ret, answer(f), sizeof(*ret));
	return r;
}

static int init_session(struct fixture *f)
{
	struct fuse_init_out out;

	return init_session_with(f, FUSE_HANDLE_KILLPRIV_V2, &out);
}

static int lookup(struct fixture *f, uint64_t dir, const char *name, uint64_t *ret_node)
{
	struct fuse_entry_out e;
	int r;

	begin(f);
	add(f, name, strlen(name) + 1);
	r = ask(f, FUSE_LOOKUP, dir);
	memcpy(&e, answer(f), sizeof(e));
	*ret_node = e.nodeid;
	return r;
}

static int open_file(struct fixture *f, uint64_t node, uint32_t flags, uint64_t *ret_fh)
{
	struct fuse_open_in in = {.flags = flags};
	struct fuse_open_out o;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	r = ask(f, FUSE_OPEN, node);
	memcpy(&o, answer(f), sizeof(o));
	*ret_fh = o.fh;
	return r;
}

static int release(struct fixture *f, uint64_t node, uint64_t fh)
{
	struct fuse_release_in in = {.fh = fh};

	begin(f);
	add(f, &in, sizeof(in));
	return ask(f, FUSE_RELEASE, node);
}

/* The bytes read, or the error. */
static int read_file(struct fixture *f, uint64_t node, uint64_t fh, uint64_t off, uint32_t size)
{
	struct fuse_read_in in = {.fh = fh, .offset = off, .size = size};
	size_t len;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	f->reply_room = sizeof(struct fuse_out_header) + size;
	r = ask_len(f, FUSE_READ, node, &len);
	return r ? r : (int)len;
}

static int write_file(struct fixture *f, uint64_t node, struct fuse_write_in in, const void *data)
{
	struct fuse_write_out out;
	int r;

	begin(f);
	add(f, &in, sizeof(in));
	add(f, data, in.size);
	r = ask(f, FUSE_WRITE, node);
	memcpy(&out, answer(f), sizeof(out));
	return r ? r : (int)out.size;
}

static struct virtiofs_stats stats(struct fixture *f)
{
	struct virtiofs_stats s;

	virtiofs_get_stats(f->dev, &s);
	return s;
}

/* --- set-up --------------------------------------------------------------------------------------- */

static void put_file(struct fixture *f, const char *name, const void *data, size_t len)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", f->tree, name);
	assert_int_equal(io_write_file(AT_FDCWD, path, data, len), 0);
}

static void stat_file(struct fixture *f, const char *name, struct stat *st)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", f->tree, name);
	assert_int_equal(stat(path, st), 0);
}

static void check_file(struct fixture *f, const char *name, const char *text)
{
	cleanup_free char *have = NULL;
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", f->tree, name);
	assert_int_equal(io_read_file(AT_FDCWD, path, 4096, &have, NULL), 0);
	assert_string_equal(have, text);
}

static void start_server(struct fixture *f, int trunk)
{
	char trunk_arg[32], control_arg[32];
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	snprintf(trunk_arg, sizeof(trunk_arg), "--vmm-fd=%d", trunk);
	snprintf(control_arg, sizeof(control_arg), "--control-fd=%d", pair[1]);
	f->server = fork();
	assert_true(f->server >= 0);
	if (!f->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(trunk, F_SETFD, 0);
		fcntl(pair[1], F_SETFD, 0);
		execl(getenv("HARPOON_FS"), "harpoon-fs", trunk_arg, control_arg, NULL);
		_exit(127);
	}
	close(trunk);
	close(pair[1]);
	f->control = pair[0];
}

static int control(struct fixture *f, uint32_t op, const char *name, int fd, uint32_t flags)
{
	struct fs_control_request req = {.op = op, .flags = flags};
	struct fs_control_answer a;

	snprintf(req.name, sizeof(req.name), "%s", name);
	assert_int_equal(io_send_fds(f->control, &req, sizeof(req), &fd, fd >= 0), 0);
	/* The device's part of it is the loop's, which runs in this very thread. */
	while (recv(f->control, &a, sizeof(a), MSG_DONTWAIT) != sizeof(a)) {
		assert_int_equal(errno, EAGAIN);
		assert_int_equal(loop_run_once(f->d->loop, 10), 0);
	}
	return a.error;
}

#define NO_WINDOW 0

static struct fixture *fixture_new_with(bool with_server, uint32_t max_files, uint64_t window)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct virtiofs_params params = {.tag = "harpoon",
					 .max_files = max_files,
					 .window_bytes = window,
					 .on_lost = on_lost,
					 .ctx = f};
	struct err err = {0};
	int pair[2];

	f->control = f->server_end = -1;
	/* tmpfs, whose files can be mapped whatever else this machine has. */
	strcpy(f->top, "/dev/shm/harpoon-test-virtiofs-XXXXXX");
	assert_non_null(mkdtemp(f->top));
	snprintf(f->tree, sizeof(f->tree), "%s/tree", f->top);
	assert_int_equal(mkdir(f->tree, 0755), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	params.sock = pair[0];
	if (with_server)
		start_server(f, pair[1]);
	else
		f->server_end = pair[1];
	if (virtiofs_new(&params, &f->dev, &err))
		fail_msg("%s", err.msg);
	f->d = vdrv_new(f->dev, NULL);
	vdrv_up(f->d, 0, 256);
	f->req_gpa = vdrv_alloc(f->d, BODY_MAX + 4096);
	f->reply_gpa = vdrv_alloc(f->d, REPLY_MAX);
	return f;
}

static struct fixture *fixture_new(bool with_server, uint32_t max_files)
{
	return fixture_new_with(with_server, max_files, NO_WINDOW);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static void fixture_free(struct fixture *f)
{
	vdrv_free(f->d);
	cleanup_closep(&f->control);
	cleanup_closep(&f->server_end);
	if (f->server) {
		kill(f->server, SIGKILL);
		assert_int_equal(waitpid(f->server, NULL, 0), f->server);
	}
	assert_int_equal(nftw(f->top, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	free(f);
}

static void export_tree(struct fixture *f, uint32_t flags)
{
	int fd = open(f->tree, O_PATH | O_CLOEXEC);

	assert_int_equal(control(f, FS_CONTROL_EXPORT, "tree", fd, flags), 0);
	close(fd);
}

/* A session with the tree exported and looked up. */
static struct fixture *session_new(uint32_t max_files)
{
	struct fixture *f;

	if (geteuid()) {
		print_message("# harpoon-fs takes root\n");
		skip();
	}
	f = fixture_new(true, max_files);
	export_tree(f, 0);
	assert_int_equal(init_session(f), 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &f->root), 0);
	return f;
}

/* --- with harpoon-fs ------------------------------------------------------------------------------------- */

static void test_config(void **state)
{
	struct fixture *f = session_new(16);
	uint8_t config[40], want[40] = "harpoon";

	(void)state;
	want[36] = 1;
	virtio_device_config_read(f->dev, 0, config, sizeof(config));
	assert_memory_equal(config, want, sizeof(want));
	fixture_free(f);
}

static void test_read_and_write_go_straight(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = 5, .offset = 6};
	uint64_t node, fh;

	(void)state;
	put_file(f, "file", "hello world", 11);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	assert_int_equal(stats(f).files, 1);
	assert_int_equal(stats(f).direct, 0);
	assert_int_equal(read_file(f, node, fh, 0, 4096), 11);
	assert_memory_equal(answer(f), "hello world", 11);
	assert_int_equal(read_file(f, node, fh, 6, 3), 3);
	assert_memory_equal(answer(f), "wor", 3);
	assert_int_equal(read_file(f, node, fh, 11, 10), 0);
	assert_int_equal(read_file(f, node, fh, 1 << 20, 10), 0);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, "earth"), 5);
	check_file(f, "file", "hello earth");
	assert_int_equal(stats(f).direct, 5);
	assert_int_equal(release(f, node, fh), 0);
	assert_int_equal(stats(f).files, 0);
	/* The number is good for nothing any more, here or there. */
	assert_int_equal(read_file(f, node, fh, 0, 10), -EBADF);
	assert_int_equal(stats(f).direct, 5);
	fixture_free(f);
}

static void test_large_requests(void **state)
{
	static uint8_t data[BODY_MAX];
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = BODY_MAX};
	uint64_t node, fh;

	(void)state;
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	put_file(f, "file", "", 0);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, data), BODY_MAX);
	assert_int_equal(read_file(f, node, fh, 0, BODY_MAX), BODY_MAX);
	assert_memory_equal(answer(f), data, BODY_MAX);
	assert_int_equal(stats(f).direct, 2);
	fixture_free(f);
}

/* No room for descriptors: the same by harpoon-fs, to the last byte. */
static void test_files_beyond_the_limit_go_by_the_channel(void **state)
{
	static uint8_t data[BODY_MAX];
	struct fixture *f = session_new(1);
	struct fuse_write_in w = {.size = BODY_MAX};
	uint64_t node, first, second;

	(void)state;
	memset(data, 0x5a, sizeof(data));
	put_file(f, "file", "", 0);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &first), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &second), 0);
	assert_int_equal(stats(f).files, 1);
	w.fh = second;
	assert_int_equal(write_file(f, node, w, data), BODY_MAX);
	assert_int_equal(read_file(f, node, second, 0, BODY_MAX), BODY_MAX);
	assert_memory_equal(answer(f), data, BODY_MAX);
	assert_int_equal(stats(f).direct, 0);
	/* A place that becomes free is used. */
	assert_int_equal(release(f, node, first), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &first), 0);
	assert_int_equal(read_file(f, node, first, 0, 10), 10);
	assert_int_equal(stats(f).direct, 1);
	fixture_free(f);
}

static void test_rights_are_those_of_the_open(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = 1};
	uint64_t node, fh;

	(void)state;
	put_file(f, "file", "x", 1);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDONLY, &fh), 0);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, "y"), -EBADF);
	assert_int_equal(open_file(f, node, O_WRONLY, &fh), 0);
	assert_int_equal(read_file(f, node, fh, 0, 1), -EBADF);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, "z"), 1);
	/* Together with another node the number is wrong. */
	assert_int_equal(open_file(f, node, O_RDONLY, &fh), 0);
	assert_int_equal(read_file(f, f->root, fh, 0, 1), -EBADF);
	check_file(f, "file", "z");
	fixture_free(f);
}

static void test_appending_is_decided_by_each_write(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = 2, .flags = O_APPEND | O_RDWR};
	uint64_t node, fh;

	(void)state;
	put_file(f, "file", "0123", 4);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, "ab"), 2);
	check_file(f, "file", "0123ab");
	w.flags = O_RDWR | O_DSYNC;
	assert_int_equal(write_file(f, node, w, "cd"), 2);
	check_file(f, "file", "cd23ab");
	/* Written back from a mapping: it has its place. */
	w = (struct fuse_write_in){.fh = fh,
				   .size = 2,
				   .offset = 2,
				   .flags = O_APPEND | O_RDWR,
				   .write_flags = FUSE_WRITE_CACHE};
	assert_int_equal(write_file(f, node, w, "ef"), 2);
	check_file(f, "file", "cdefab");
	assert_int_equal(stats(f).direct, 3);
	fixture_free(f);
}

/* The guest's root keeps set-user-id bits when it writes; whoever must lose them does. */
static void test_set_id_bits(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = 1};
	uint64_t node, fh;
	char path[160];
	struct stat st;

	(void)state;
	put_file(f, "file", "x", 1);
	snprintf(path, sizeof(path), "%s/file", f->tree);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	assert_int_equal(chmod(path, 06755), 0);
	w.fh = fh;
	assert_int_equal(write_file(f, node, w, "y"), 1);
	stat_file(f, "file", &st);
	assert_int_equal(st.st_mode & 07777, 06755);
	assert_int_equal(stats(f).direct, 0);
	w.write_flags = FUSE_WRITE_KILL_SUIDGID;
	assert_int_equal(write_file(f, node, w, "z"), 1);
	stat_file(f, "file", &st);
	assert_int_equal(st.st_mode & 07777, 0755);
	assert_int_equal(write_file(f, node, w, "z"), 1);
	assert_int_equal(stats(f).direct, 1);
	fixture_free(f);
}

static void test_create_hands_over_too(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_create_in in = {.flags = O_RDWR | O_CREAT, .mode = S_IFREG | 0600};
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	struct fuse_write_in w = {.size = 3};

	(void)state;
	begin(f);
	add(f, &in, sizeof(in));
	add(f, "new", 4);
	assert_int_equal(ask(f, FUSE_CREATE, f->root), 0);
	memcpy(&out, answer(f), sizeof(out));
	assert_int_equal(stats(f).files, 1);
	w.fh = out.open.fh;
	assert_int_equal(write_file(f, out.entry.nodeid, w, "abc"), 3);
	check_file(f, "new", "abc");
	assert_int_equal(stats(f).direct, 1);
	/* The end of the session closes everything. */
	begin(f);
	assert_int_equal(ask(f, FUSE_DESTROY, 0), 0);
	assert_int_equal(stats(f).files, 0);
	fixture_free(f);
}

static void test_odd_requests_are_judged_by_the_server(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_write_in w = {.size = 100};
	struct fuse_read_in r = {.size = 100};
	uint64_t node, fh;

	(void)state;
	put_file(f, "file", "x", 1);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	/* Claims more than there is. */
	w.fh = r.fh = fh;
	begin(f);
	add(f, &w, sizeof(w));
	add(f, "abc", 3);
	assert_int_equal(ask(f, FUSE_WRITE, node), -EINVAL);
	/* Too short. */
	begin(f);
	add(f, &r, 8);
	assert_int_equal(ask(f, FUSE_READ, node), -EINVAL);
	/* An operation nobody knows, and one without a node. */
	begin(f);
	assert_int_equal(ask(f, 4711, node), -ENOSYS);
	begin(f);
	assert_int_equal(ask(f, FUSE_READLINK, 999), -ESTALE);
	check_file(f, "file", "x");
	assert_false(f->was_lost);
	fixture_free(f);
}

static void test_forget_on_its_own_queue(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_forget_in in = {.nlookup = 1};
	uint32_t used = 99;
	uint64_t node, again;
	int head;

	(void)state;
	put_file(f, "file", "x", 1);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	begin(f);
	add(f, &in, sizeof(in));
	f->reply_room = 0;
	head = offer(f, HIPRIO, FUSE_FORGET, node);
	vdrv_kick(f->d, HIPRIO);
	assert_int_equal(vdrv_wait_used(f->d, HIPRIO, &used), head);
	assert_int_equal(used, 0);
	begin(f);
	assert_int_equal(ask(f, FUSE_READLINK, node), -ESTALE);
	assert_int_equal(lookup(f, f->root, "file", &again), 0);
	assert_int_not_equal(again, node);
	fixture_free(f);
}

/* More requests than workers at a time, all of them the guest's to order. */
static void test_many_at_a_time(void **state)
{
	enum { NR = 60, SIZE = 64 };
	struct fixture *f = session_new(16);
	uint64_t node, fh, base;
	bool seen[NR] = {0};
	int heads[NR];

	(void)state;
	put_file(f, "file", "0123456789abcdef", 16);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDONLY, &fh), 0);
	base = vdrv_alloc(f->d, NR * 256);
	for (unsigned int i = 0; i < NR; i++) {
		struct {
			struct fuse_in_header h;
			struct fuse_read_in in;
		} *req = vdrv_ptr(f->d, base + i * 256);
		struct vdrv_buf bufs[] = {{base + i * 256, sizeof(*req), false},
					  {base + i * 256 + 128, SIZE, true}};

		memset(req, 0, sizeof(*req));
		req->h = (struct fuse_in_header){.len = sizeof(*req),
						 .opcode = i % 3 ? FUSE_READ : FUSE_GETATTR,
						 .unique = 1000 + i,
						 .nodeid = node};
		req->in = (struct fuse_read_in){.fh = fh, .offset = i % 16, .size = 1};
		if (i % 3 == 0)
			req->h.len = sizeof(req->h) + sizeof(struct fuse_getattr_in);
		bufs[0].len = req->h.len;
		memset(&req->in, 0, i % 3 ? 0 : sizeof(struct fuse_getattr_in));
		heads[i] = vdrv_add(f->d, REQUESTS, bufs, 2);
		assert_true(heads[i] >= 0);
	}
	vdrv_kick(f->d, REQUESTS);
	for (unsigned int n = 0; n < NR; n++) {
		int head = vdrv_wait_used(f->d, REQUESTS, NULL);

		for (unsigned int i = 0; i < NR; i++) {
			if (heads[i] == head && !seen[i]) {
				const struct fuse_out_header *out =
					vdrv_ptr(f->d, base + i * 256 + 128);

				seen[i] = true;
				assert_int_equal(out->unique, 1000 + i);
				if (i % 3) {
					assert_int_equal(out->error, 0);
					assert_int_equal(*(const char *)(out + 1),
							 "0123456789abcdef"[i % 16]);
				}
				break;
			}
		}
	}
	for (unsigned int i = 0; i < NR; i++)
		assert_true(seen[i]);
	fixture_free(f);
}

static void test_revoke_closes_what_was_handed_over(void **state)
{
	struct fixture *f = session_new(16);
	uint64_t node, fh;

	(void)state;
	put_file(f, "file", "x", 1);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	assert_int_equal(read_file(f, node, fh, 0, 1), 1);
	assert_int_equal(stats(f).files, 1);
	assert_int_equal(control(f, FS_CONTROL_UNEXPORT, "tree", -1, FS_CONTROL_REVOKE), 0);
	assert_int_equal(stats(f).files, 0);
	assert_int_equal(read_file(f, node, fh, 0, 1), -ESTALE);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), -ESTALE);
	/* Another export of the same folder is another one. */
	export_tree(f, 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &f->root), 0);
	assert_int_equal(lookup(f, f->root, "file", &node), 0);
	assert_int_equal(open_file(f, node, O_RDWR, &fh), 0);
	assert_int_equal(stats(f).files, 1);
	fixture_free(f);
}

static void test_save_and_load(void **state)
{
	struct fixture *f, *g;
	cleanup_free uint8_t *saved = NULL;
	struct err err = {0};
	size_t len = 0;

	(void)state;
	if (geteuid()) {
		print_message("# needs root\n");
		skip();
	}
	f = fixture_new(true, 16);
	g = fixture_new(true, 16);
	assert_int_equal(init_session(f), 0);
	assert_int_equal(f->dev->ops->save(f->dev, &saved, &len, &err), 0);
	assert_int_equal(g->dev->ops->load(g->dev, saved, len, &err), 0);
	/* There is a session, so a second one cannot begin, and requests are served. */
	assert_int_equal(init_session(g), -EIO);
	begin(g);
	assert_int_equal(ask(g, FUSE_STATFS, FUSE_ROOT_ID), 0);
	saved[len - 1] ^= 1;
	assert_int_equal(f->dev->ops->load(f->dev, saved, len, &err), -EPROTO);
	fixture_free(f);
	fixture_free(g);
}

static void test_the_server_dies(void **state)
{
	struct fixture *f = session_new(16);

	(void)state;
	kill(f->server, SIGKILL);
	begin(f);
	assert_int_equal(ask(f, FUSE_STATFS, FUSE_ROOT_ID), -EIO);
	vdrv_wait(f->d, &f->was_lost);
	begin(f);
	assert_int_equal(ask(f, FUSE_STATFS, FUSE_ROOT_ID), -EIO);
	fixture_free(f);
}

/* --- the window of mapped files ------------------------------------------------------------------------ */

#define SLOT VIRTIOFS_WINDOW_SLOT
#define WINDOW (4ull * SLOT)
#define FLAGS_OF_A_WINDOW (FUSE_INIT_EXT | FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX)
#define FILE_LEN (SLOT + 3 * 4096 + 5)

/* "large", of which each page begins with its number; exported read-only unless flags say otherwise. */
static struct fixture *window_new(uint32_t flags)
{
	cleanup_free uint8_t *data = xcalloc(1, FILE_LEN);
	struct fuse_init_out out;
	struct fixture *f;

	if (geteuid()) {
		print_message("# harpoon-fs takes root\n");
		skip();
	}
	f = fixture_new_with(true, 16, WINDOW);
	for (uint32_t i = 0; i * 4096 < FILE_LEN; i++)
		memcpy(data + (size_t)i * 4096, &i, sizeof(i));
	put_file(f, "large", data, FILE_LEN);
	put_file(f, "small", "x", 1);
	export_tree(f, flags);
	assert_int_equal(init_session_with(f, FLAGS_OF_A_WINDOW, &out), 0);
	assert_true(out.flags & FUSE_MAP_ALIGNMENT);
	assert_true((uint64_t)out.flags2 << 32 & FUSE_HAS_INODE_DAX);
	assert_int_equal(1u << out.map_alignment, SLOT);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &f->root), 0);
	return f;
}

/* Does the guest map this file? */
static bool is_dax(struct fixture *f, const char *name, uint64_t *ret_node)
{
	const struct fuse_getattr_in in = {0};
	struct fuse_entry_out e;
	struct fuse_attr_out a;

	assert_int_equal(lookup(f, f->root, name, ret_node), 0);
	memcpy(&e, answer(f), sizeof(e));
	begin(f);
	add(f, &in, sizeof(in));
	assert_int_equal(ask(f, FUSE_GETATTR, *ret_node), 0);
	memcpy(&a, answer(f), sizeof(a));
	assert_int_equal(a.attr.flags & FUSE_ATTR_DAX, e.attr.flags & FUSE_ATTR_DAX);
	return e.attr.flags & FUSE_ATTR_DAX;
}

static int map(struct fixture *f, uint64_t node, const struct fuse_setupmapping_in *in)
{
	begin(f);
	add(f, in, sizeof(*in));
	return ask(f, FUSE_SETUPMAPPING, node);
}

static int map_slot(struct fixture *f, uint64_t node, uint64_t at, uint64_t offset)
{
	return map(f, node,
		   &(struct fuse_setupmapping_in){.foffset = offset,
						  .len = SLOT,
						  .flags = FUSE_SETUPMAPPING_FLAG_READ,
						  .moffset = at});
}

static int unmap(struct fixture *f, uint32_t count, uint32_t nr,
		 const struct fuse_removemapping_one *ones)
{
	const struct fuse_removemapping_in in = {.count = count};

	begin(f);
	add(f, &in, sizeof(in));
	add(f, ones, nr * sizeof(*ones));
	return ask(f, FUSE_REMOVEMAPPING, FUSE_ROOT_ID);
}

/* The number that stands at a page of the window; 0 where nothing is mapped. */
static uint32_t page_at(const struct fixture *f, uint64_t at)
{
	uint32_t number;

	memcpy(&number, f->dev->shm + at, sizeof(number));
	return number;
}

static void test_a_file_is_mapped(void **state)
{
	const struct fuse_removemapping_one ones[] = {{SLOT, SLOT}, {2 * SLOT, 2 * SLOT}};
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY);
	uint64_t node, small;

	(void)state;
	assert_true(is_dax(f, "large", &node));
	assert_false(is_dax(f, "small", &small));
	assert_int_equal(page_at(f, SLOT + 4096), 0);
	assert_int_equal(map_slot(f, node, SLOT, 0), 0);
	assert_int_equal(map_slot(f, node, 3 * SLOT, SLOT), 0);
	assert_int_equal(page_at(f, SLOT + 7 * 4096), 7);
	assert_int_equal(page_at(f, 3 * SLOT + 4096), SLOT / 4096 + 1);
	assert_int_equal(page_at(f, 4096), 0);
	/* Another part in the same place, and a file of which nobody said so. */
	assert_int_equal(map_slot(f, node, SLOT, SLOT), 0);
	assert_int_equal(page_at(f, SLOT + 2 * 4096), SLOT / 4096 + 2);
	assert_int_equal(map_slot(f, small, 2 * SLOT, 0), 0);
	assert_int_equal(*(f->dev->shm + 2 * SLOT), 'x');
	assert_int_equal(unmap(f, 2, 2, ones), 0);
	for (uint64_t at = 0; at < WINDOW; at += 4096)
		assert_int_equal(page_at(f, at), 0);
	/* All of it is given back at the end of a session. */
	assert_int_equal(map_slot(f, node, 0, 0), 0);
	begin(f);
	assert_int_equal(ask(f, FUSE_DESTROY, 0), 0);
	assert_int_equal(page_at(f, 4096), 0);
	fixture_free(f);
}

static void test_what_is_not_mapped(void **state)
{
	const struct fuse_setupmapping_in good = {.len = SLOT,
						  .flags = FUSE_SETUPMAPPING_FLAG_READ};
	const struct fuse_removemapping_one one = {0, SLOT};
	struct fuse_setupmapping_in bad[9];
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY);
	uint64_t node;

	(void)state;
	assert_true(is_dax(f, "large", &node));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = good;
	bad[0].len = 4096;
	bad[1].len = 2 * SLOT;
	bad[2].moffset = 4096;
	bad[3].moffset = WINDOW;
	bad[4].moffset = -(uint64_t)SLOT;
	bad[5].foffset = 4096;
	bad[6].foffset = 1ull << 63;
	bad[7].flags = 0;
	bad[8].flags = FUSE_SETUPMAPPING_FLAG_READ | 4;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (map(f, node, &bad[i]) != -EINVAL)
			fail_msg("case %zu", i);
	}
	bad[7].flags = FUSE_SETUPMAPPING_FLAG_READ | FUSE_SETUPMAPPING_FLAG_WRITE;
	assert_int_equal(map(f, node, &bad[7]), -EROFS);
	assert_int_equal(map(f, f->root, &good), -EPERM);
	assert_int_equal(map(f, FUSE_ROOT_ID, &good), -EPERM);
	assert_int_equal(map(f, node + 1000, &good), -ESTALE);
	assert_int_equal(unmap(f, 2, 1, &one), -EINVAL);
	assert_int_equal(unmap(f, UINT32_MAX, 1, &one), -EINVAL);
	assert_int_equal(unmap(f, 1, 1, &(struct fuse_removemapping_one){4096, SLOT}), -EINVAL);
	assert_int_equal(unmap(f, 1, 1, &(struct fuse_removemapping_one){0, 8 * SLOT}), -EINVAL);
	assert_int_equal(unmap(f, 1, 1, &(struct fuse_removemapping_one){SLOT, WINDOW}), -EINVAL);
	assert_int_equal(unmap(f, 1, 1, &one), 0);
	assert_int_equal(page_at(f, 4096), 0);
	fixture_free(f);
}

/* Where the guest may write, or never asked for a window. */
static void test_files_that_are_not_mapped(void **state)
{
	struct fixture *f = window_new(0);
	uint64_t node;

	(void)state;
	assert_false(is_dax(f, "large", &node));
	assert_int_equal(map_slot(f, node, 0, 0), -EPERM);
	fixture_free(f);
	f = fixture_new_with(true, 16, WINDOW);
	put_file(f, "large", "", 0);
	export_tree(f, FS_CONTROL_READ_ONLY);
	assert_int_equal(init_session(f), 0);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, "tree", &f->root), 0);
	assert_int_equal(lookup(f, f->root, "large", &node), 0);
	assert_int_equal(map_slot(f, node, 0, 0), -ENOSYS);
	fixture_free(f);
}

static void test_a_mapped_file_becomes_shorter(void **state)
{
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY);
	char path[160];
	uint64_t node, mends;

	(void)state;
	snprintf(path, sizeof(path), "%s/large", f->tree);
	assert_true(is_dax(f, "large", &node));
	assert_int_equal(map_slot(f, node, 0, 0), 0);
	assert_int_equal(map_slot(f, node, SLOT, SLOT), 0);
	mends = f->dev->ops->shm_fault(f->dev);
	assert_int_equal(truncate(path, 2 * 4096 + 1), 0);
	assert_int_equal(f->dev->ops->shm_fault(f->dev), mends + 2);
	/* There was nothing more to do. */
	assert_int_equal(f->dev->ops->shm_fault(f->dev), mends + 2);
	assert_int_equal(page_at(f, 4096), 1);
	assert_int_equal(page_at(f, 2 * 4096), 2 & 0xff);
	assert_int_equal(page_at(f, 3 * 4096), 0);
	assert_int_equal(page_at(f, SLOT), 0);
	assert_int_equal(truncate(path, 4096), 0);
	assert_int_equal(f->dev->ops->shm_fault(f->dev), mends + 3);
	assert_int_equal(page_at(f, 2 * 4096), 0);
	/* It is written again; the next request finds it so. */
	assert_int_equal(io_write_file(AT_FDCWD, path, "0123", 4), 0);
	assert_int_equal(truncate(path, SLOT), 0);
	begin(f);
	assert_int_equal(ask(f, FUSE_STATFS, node), 0);
	assert_memory_equal(f->dev->shm, "0123", 4);
	assert_int_equal(page_at(f, SLOT - 4096), 0);
	fixture_free(f);
}

/* When the export is taken back nothing of it is left, and its file system is free. */
static void test_revoking_unmaps(void **state)
{
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY);
	uint64_t node;

	(void)state;
	assert_true(is_dax(f, "large", &node));
	assert_int_equal(map_slot(f, node, 0, 0), 0);
	assert_int_equal(page_at(f, 4096), 1);
	assert_int_equal(control(f, FS_CONTROL_UNEXPORT, "tree", -1, FS_CONTROL_REVOKE), 0);
	assert_int_equal(page_at(f, 4096), 0);
	assert_int_equal(map_slot(f, node, 0, 0), -ESTALE);
	fixture_free(f);
}

/* The guest of a saved machine finds mapped what it had mapped. */
static void test_a_window_is_saved(void **state)
{
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY), *g;
	cleanup_free uint8_t *saved = NULL;
	struct err err = {0};
	uint64_t node, nr;
	size_t len = 0;

	(void)state;
	assert_true(is_dax(f, "large", &node));
	assert_int_equal(map_slot(f, node, 2 * SLOT, SLOT), 0);
	if (f->dev->ops->save(f->dev, &saved, &len, &err))
		fail_msg("%s", err.msg);
	g = fixture_new_with(true, 16, WINDOW);
	snprintf(g->tree, sizeof(g->tree), "%s", f->tree);
	export_tree(g, FS_CONTROL_READ_ONLY);
	if (g->dev->ops->load(g->dev, saved, len, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(page_at(g, 2 * SLOT + 4096), SLOT / 4096 + 1);
	assert_int_equal(page_at(g, 4096), 0);
	assert_true(is_dax(g, "large", &(uint64_t){lookup(g, FUSE_ROOT_ID, "tree", &g->root)}));
	fixture_free(g);
	/* A device without a window, and a state that was cut. */
	g = fixture_new(true, 16);
	snprintf(g->tree, sizeof(g->tree), "%s", f->tree);
	export_tree(g, FS_CONTROL_READ_ONLY);
	assert_int_equal(g->dev->ops->load(g->dev, saved, len, &err), -EPROTO);
	nr = WINDOW / SLOT;
	memcpy(saved, &nr, sizeof(nr));
	assert_int_equal(g->dev->ops->load(g->dev, saved, 40, &err), -EPROTO);
	assert_int_equal(g->dev->ops->load(g->dev, saved, 7, &err), -EPROTO);
	fixture_free(g);
	fixture_free(f);
}

/* This process reads from the window for the guest, before anybody has mended anything. */
static void test_reading_behind_the_end(void **state)
{
	struct fixture *f = window_new(FS_CONTROL_READ_ONLY);
	char path[160];
	uint64_t node;

	(void)state;
	snprintf(path, sizeof(path), "%s/large", f->tree);
	assert_true(is_dax(f, "large", &node));
	assert_int_equal(map_slot(f, node, SLOT, 0), 0);
	assert_int_equal(truncate(path, 4096), 0);
	assert_int_equal(page_at(f, SLOT + 4096), 0);
	assert_int_equal(page_at(f, SLOT + 5 * 4096), 0);
	assert_int_equal(truncate(path, 8192), 0);
	assert_int_equal(io_write_file(AT_FDCWD, path, "0123", 4), 0);
	begin(f);
	assert_int_equal(ask(f, FUSE_STATFS, node), 0);
	assert_memory_equal(f->dev->shm + SLOT, "0123", 4);
	fixture_free(f);
}

static void test_windows_of_odd_sizes(void **state)
{
	const uint64_t sizes[] = {1, 4096, SLOT + 4096, VIRTIOFS_WINDOW_MAX + SLOT,
				  -(uint64_t)SLOT};
	struct err err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct virtiofs_params params = {.tag = "t", .window_bytes = sizes[i]};
		struct virtio_device *dev;
		int pair[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
		params.sock = pair[0];
		assert_int_equal(virtiofs_new(&params, &dev, &err), -EINVAL);
		close(pair[1]);
	}
}

/* --- a server that lies ------------------------------------------------------------------------------ */

struct liar {
	pthread_t thread;
	int links[IO_FDS_MAX]; /* behind the memory file */
	size_t nr;
	uint8_t reply[64]; /* what it answers each request with */
	size_t reply_len;
	int fd; /* handed over with each, -1 = none */
};

/* Answers one request of each link that has one; false when the links have ended. */
static bool liar_round(struct liar *l)
{
	struct pollfd pfd[IO_FDS_MAX];
	char buf[128];

	for (size_t i = 1; i < l->nr; i++)
		pfd[i - 1] = (struct pollfd){.fd = l->links[i], .events = POLLIN};
	if (poll(pfd, l->nr - 1, -1) <= 0)
		return false;
	for (size_t i = 1; i < l->nr; i++) {
		if (!pfd[i - 1].revents)
			continue;
		if (recv(l->links[i], buf, sizeof(buf), 0) <= 0)
			return false;
		(void)io_send_fds(l->links[i], l->reply, l->reply_len, &l->fd, l->fd >= 0);
	}
	return true;
}

static void *liar_run(void *arg)
{
	struct liar *l = arg;

	while (liar_round(l))
		;
	while (l->nr)
		close(l->links[--l->nr]);
	return NULL;
}

static struct fixture *liar_start_with(struct liar *l, const void *reply, size_t len, int fd,
				       uint64_t window)
{
	struct fixture *f = fixture_new_with(false, 16, window);
	char hello[64];

	*l = (struct liar){.nr = IO_FDS_MAX, .reply_len = len, .fd = fd};
	memcpy(l->reply, reply, len);
	assert_true(io_recv_fds(f->server_end, hello, sizeof(hello), l->links, &l->nr) > 0);
	assert_int_equal(l->nr, 7);
	assert_int_equal(pthread_create(&l->thread, NULL, liar_run, l), 0);
	return f;
}

static struct fixture *liar_start(struct liar *l, const void *reply, size_t len, int fd)
{
	return liar_start_with(l, reply, len, fd, NO_WINDOW);
}

static void liar_stop(struct liar *l, struct fixture *f)
{
	vdrv_free(f->d);
	pthread_join(l->thread, NULL);
	cleanup_closep(&l->fd);
	cleanup_closep(&f->server_end);
	assert_int_equal(nftw(f->top, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	free(f);
}

/* Answers that no server of ours gives end the session. */
static void test_broken_replies(void **state)
{
	const struct fs_link_reply good = {.len = 16};
	struct fs_link_reply too_long = {.len = FS_CHANNEL_AREA + 1}, beyond_room = {.len = 4096},
			     strange = {.opened = 2}, unsaid = {.len = 16};
	const struct {
		const void *reply;
		size_t len;
		bool with_fd;
	} cases[] = {
		{&too_long, sizeof(too_long), false}, {&beyond_room, sizeof(beyond_room), false},
		{&strange, sizeof(strange), false},   {&unsaid, sizeof(unsaid), true},
		{&good, sizeof(good) - 1, false},     {&good, 1, false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct liar l;
		int fd = cases[i].with_fd ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
		struct fixture *f = liar_start(&l, cases[i].reply, cases[i].len, fd);

		begin(f);
		f->reply_room = 128;
		assert_int_equal(ask(f, FUSE_STATFS, FUSE_ROOT_ID), -EIO);
		vdrv_wait(f->d, &f->was_lost);
		liar_stop(&l, f);
	}
}

/* A mapping without a file, with one that is none, or with one that goes with an error. */
static void test_mappings_that_are_lies(void **state)
{
	const struct fs_link_reply with = {.len = 16, .opened = 1, .export_id = 1},
				   without = {.len = 16};
	const struct {
		const char *path;
		const struct fs_link_reply *reply;
		int error;
	} cases[] = {
		{NULL, &without, -EMFILE},
		{"/dev/null", &with, -EINVAL},
		{"/", &with, -EINVAL},
		{"/proc/self/exe", &with, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int fd = cases[i].path ? open(cases[i].path, O_RDONLY | O_CLOEXEC) : -1;
		struct liar l;
		struct fixture *f = liar_start_with(&l, cases[i].reply, sizeof(with), fd, WINDOW);
		struct fuse_out_header out;
		uint32_t used;

		begin(f);
		add(f,
		    &(struct fuse_setupmapping_in){.len = SLOT,
						   .flags = FUSE_SETUPMAPPING_FLAG_READ},
		    sizeof(struct fuse_setupmapping_in));
		assert_true(offer(f, REQUESTS, FUSE_SETUPMAPPING, 7) >= 0);
		vdrv_kick(f->d, REQUESTS);
		(void)vdrv_wait_used(f->d, REQUESTS, &used);
		memcpy(&out, vdrv_ptr(f->d, f->reply_gpa), sizeof(out));
		/* The liar's answers are zeros. */
		assert_int_equal(out.error, cases[i].error);
		assert_int_equal(!memcmp(f->dev->shm,
					 "\x7f"
					 "ELF",
					 4),
				 !cases[i].error);
		liar_stop(&l, f);
	}
}

/* What is no regular file is not kept; what was not asked for neither. */
static void test_descriptors_that_are_not_kept(void **state)
{
	const struct fs_link_reply opened = {
		.len = 16, .opened = 1, .fh = 5, .node_id = 7, .export_id = 1};
	const struct {
		const char *path;
		uint32_t opcode;
		uint32_t files;
	} cases[] = {
		{"/dev/null", FUSE_OPEN, 0},
		{"/", FUSE_OPEN, 0},
		{"/proc/self/exe", FUSE_STATFS, 0},
		{"/proc/self/exe", FUSE_OPEN, 1},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct liar l;
		int fd = open(cases[i].path, O_RDONLY | O_CLOEXEC);
		struct fixture *f = liar_start(&l, &opened, sizeof(opened), fd);
		uint32_t used;

		begin(f);
		assert_true(offer(f, REQUESTS, cases[i].opcode, 7) >= 0);
		vdrv_kick(f->d, REQUESTS);
		(void)vdrv_wait_used(f->d, REQUESTS, &used);
		assert_int_equal(used, 16);
		assert_int_equal(stats(f).files, cases[i].files);
		liar_stop(&l, f);
	}
}

static void test_broken_trunk(void **state)
{
	const struct fs_trunk_msg unknown = {.type = 99},
				  refused = {.type = FS_TRUNK_HELLO, .error = -E2BIG},
				  lying = {.type = FS_TRUNK_REVOKE, .len = 5},
				  odd = {.type = FS_TRUNK_HELLO, .error = 7};
	const struct {
		const void *msg;
		size_t len;
	} cases[] = {
		{&unknown, sizeof(unknown)},
		{&refused, sizeof(refused)},
		{&lying, sizeof(lying)},
		{&odd, sizeof(odd)},
		{&unknown, 3},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct fixture *f = fixture_new(false, 16);

		assert_int_equal(io_send_fds(f->server_end, cases[i].msg, cases[i].len, NULL, 0),
				 0);
		vdrv_wait(f->d, &f->was_lost);
		fixture_free(f);
	}
}

/* A number that was taken back and comes again with a file under way is not kept. */
static void test_revoked_before_it_came(void **state)
{
	const struct fs_link_reply opened = {
		.len = 16, .opened = 1, .fh = 5, .node_id = 7, .export_id = 3};
	const struct fs_trunk_msg revoke = {.type = FS_TRUNK_REVOKE, .arg = 3};
	struct fs_trunk_msg a = {0};
	struct liar l;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct fixture *f = liar_start(&l, &opened, sizeof(opened), fd);
	uint32_t used;

	(void)state;
	assert_int_equal(io_send_fds(f->server_end, &revoke, sizeof(revoke), NULL, 0), 0);
	/* The reset at the beginning has interrupted what might be waiting. */
	while (recv(f->server_end, &a, sizeof(a), MSG_DONTWAIT) != sizeof(a) ||
	       a.type == FS_TRUNK_INTERRUPT)
		assert_int_equal(loop_run_once(f->d->loop, 10), 0);
	assert_int_equal(a.type, FS_TRUNK_REVOKE);
	assert_int_equal(a.arg, 3);
	begin(f);
	assert_true(offer(f, REQUESTS, FUSE_OPEN, 7) >= 0);
	vdrv_kick(f->d, REQUESTS);
	(void)vdrv_wait_used(f->d, REQUESTS, &used);
	assert_int_equal(stats(f).files, 0);
	liar_stop(&l, f);
}

/* Saving and resetting do not wait for changes by others, which may never come. */
static void test_a_read_of_events_ends_for_a_save(void **state)
{
	struct fixture *f = session_new(16);
	struct fuse_read_in in = {.size = FS_EVENTS_READ};
	struct fuse_out_header out;
	uint64_t node, before;
	uint32_t used;
	int head;

	(void)state;
	if (lookup(f, FUSE_ROOT_ID, FS_EVENTS_NAME, &node)) {
		fixture_free(f);
		skip();
	}
	before = stats(f).channel;
	begin(f);
	add(f, &in, sizeof(in));
	f->reply_room = sizeof(out) + FS_EVENTS_READ;
	head = offer(f, REQUESTS, FUSE_READ, node);
	vdrv_kick(f->d, REQUESTS);
	while (stats(f).channel == before)
		sched_yield();
	virtio_device_quiesce(f->dev);
	assert_int_equal(vdrv_wait_used(f->d, REQUESTS, &used), head);
	memcpy(&out, vdrv_ptr(f->d, f->reply_gpa), sizeof(out));
	assert_int_equal(out.error, 0);
	assert_int_equal(used, sizeof(out));
	virtio_device_resume(f->dev);
	assert_int_equal(lookup(f, FUSE_ROOT_ID, FS_EVENTS_NAME, &node), 0);
	fixture_free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_read_and_write_go_straight),
		cmocka_unit_test(test_large_requests),
		cmocka_unit_test(test_files_beyond_the_limit_go_by_the_channel),
		cmocka_unit_test(test_rights_are_those_of_the_open),
		cmocka_unit_test(test_appending_is_decided_by_each_write),
		cmocka_unit_test(test_set_id_bits),
		cmocka_unit_test(test_create_hands_over_too),
		cmocka_unit_test(test_odd_requests_are_judged_by_the_server),
		cmocka_unit_test(test_forget_on_its_own_queue),
		cmocka_unit_test(test_many_at_a_time),
		cmocka_unit_test(test_revoke_closes_what_was_handed_over),
		cmocka_unit_test(test_save_and_load),
		cmocka_unit_test(test_a_read_of_events_ends_for_a_save),
		cmocka_unit_test(test_a_file_is_mapped),
		cmocka_unit_test(test_what_is_not_mapped),
		cmocka_unit_test(test_files_that_are_not_mapped),
		cmocka_unit_test(test_a_mapped_file_becomes_shorter),
		cmocka_unit_test(test_reading_behind_the_end),
		cmocka_unit_test(test_revoking_unmaps),
		cmocka_unit_test(test_a_window_is_saved),
		cmocka_unit_test(test_windows_of_odd_sizes),
		cmocka_unit_test(test_the_server_dies),
		cmocka_unit_test(test_broken_replies),
		cmocka_unit_test(test_descriptors_that_are_not_kept),
		cmocka_unit_test(test_mappings_that_are_lies),
		cmocka_unit_test(test_broken_trunk),
		cmocka_unit_test(test_revoked_before_it_came),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
