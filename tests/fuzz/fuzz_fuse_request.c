/*
 * Fuzz entry: FUSE requests as any guest kernel could write them, on a small real tree. The input is a
 * series of requests: opcode, selectors for node, handle and user, a length, and that many bytes. The
 * harness puts numbers of live nodes and handles where the selectors say, since guessing them would
 * keep the input from getting far; everything else is taken as it is.
 *
 * Runs as root only: what it does needs to change its identity, and to clear up after any mode.
 *
 * Checked beyond "no crash": answers are well-formed and stay in their buffer, a canary beside the
 * exported tree stays as it is, and the harness's identity is its own after each request.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs.h"
#include "fs_control.h"
#include "fuse_compat.h"
#include "io.h"

#define REQUESTS_MAX 64
#define KNOWN_MAX 16
#define BODY_MAX 4096
#define REPLY_LEN 8192
/* Files in the tree stay small, whatever offsets a request names. */
#define FILE_SIZE_MAX (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char top[64];
static int top_fd;
static int start_fd; /* the working directory, which a worker changes */
static unsigned int inputs;

struct known {
	uint64_t id[KNOWN_MAX];
	unsigned int nr;
};

struct session {
	struct fs *fs;
	struct fs_worker *w;
	struct known nodes, handles;
};

static void check(int ok)
{
	if (!ok)
		abort();
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	return ftw->level ? remove(path) : 0;
}

/* The tree as it is at the start of each input. */
static void make_tree(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/tree", top);
	if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) < 0 && errno != ENOENT)
		abort();
	check(mkdirat(top_fd, "tree", 0755) == 0 || errno == EEXIST);
	check(chmod(path, 0755) == 0);
	check(io_write_file(top_fd, "tree/file", "hello", 5) == 0);
	check(mkdirat(top_fd, "tree/sub", 0755) == 0);
	check(mkfifoat(top_fd, "tree/fifo", 0666) == 0);
	check(symlinkat("../canary", top_fd, "tree/link") == 0);
}

static void remove_top(void)
{
	(void)nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	(void)rmdir(top);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct rlimit limit = {FILE_SIZE_MAX, FILE_SIZE_MAX};

	(void)argc;
	(void)argv;
	strcpy(top, "/tmp/harpoon-fuzz-fs-XXXXXX");
	check(mkdtemp(top) != NULL);
	atexit(remove_top);
	top_fd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	start_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(top_fd >= 0 && start_fd >= 0);
	check(io_write_file(top_fd, "canary", "alive", 5) == 0);
	(void)setrlimit(RLIMIT_FSIZE, &limit);
	return 0;
}

static void check_canary(void)
{
	cleanup_free char *text = NULL;
	struct stat st;

	check(io_read_file(top_fd, "canary", 16, &text, NULL) == 0 && !strcmp(text, "alive"));
	check(fstatat(top_fd, "canary", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_nlink == 1);
	check(fstat(top_fd, &st) == 0 && st.st_nlink == 3);
}

static void remember(struct known *k, uint64_t id)
{
	if (id > FUSE_ROOT_ID && k->nr < KNOWN_MAX)
		k->id[k->nr++] = id;
}

static uint64_t choose(const struct known *k, uint8_t selector)
{
	if (selector == 0xff)
		return 0xdeadbeef00000007ull;
	return k->nr && selector ? k->id[selector % k->nr] : FUSE_ROOT_ID;
}

/* Sends one request and keeps the numbers its answer brought. */
static size_t request(struct session *s, uint32_t opcode, uint64_t node, uint8_t who,
		      const uint8_t *bytes, size_t len)
{
	static uint8_t req[sizeof(struct fuse_in_header) + BODY_MAX];
	static uint8_t reply[REPLY_LEN + 16];
	struct fuse_in_header h = {.len = (uint32_t)(sizeof(h) + len),
				   .opcode = opcode,
				   .unique = 1,
				   .nodeid = node,
				   .uid = who & 1 ? 1000 : 0,
				   .gid = who & 2 ? 1000 : 0};
	struct iovec in[2] = {{req, 44}, {req + 44, sizeof(h) + len - 44}};
	struct iovec out[2] = {{reply, 17}, {reply + 17, REPLY_LEN - 17}};
	struct fuse_out_header oh;
	size_t n;

	if (who & 4)
		memcpy((uint8_t *)&h + 36, &(uint16_t){2}, 2);
	memcpy(req, &h, sizeof(h));
	memcpy(req + sizeof(h), bytes, len);
	if (len < 4)
		in[0].iov_len = sizeof(h) + len;
	memset(reply + REPLY_LEN, 0x5a, 16);
	/* A read of changes by others would wait for them. */
	fs_events_interrupt(s->fs);
	n = fs_worker_handle(s->w, in, len < 4 ? 1 : 2, out, 2);
	for (int i = 0; i < 16; i++)
		check(reply[REPLY_LEN + i] == 0x5a);
	check(n <= REPLY_LEN);
	if (!n)
		return 0;
	memcpy(&oh, reply, sizeof(oh));
	check(oh.len == n && oh.error <= 0 && oh.error > -1000);
	if (oh.error)
		return 0;
	if (opcode == FUSE_LOOKUP || opcode == FUSE_MKDIR || opcode == FUSE_MKNOD ||
	    opcode == FUSE_CREATE || opcode == FUSE_TMPFILE || opcode == FUSE_SYMLINK) {
		uint64_t id;

		memcpy(&id, reply + sizeof(oh), sizeof(id));
		remember(&s->nodes, id);
	}
	if (opcode == FUSE_OPEN || opcode == FUSE_OPENDIR) {
		uint64_t fh;

		memcpy(&fh, reply + sizeof(oh), sizeof(fh));
		remember(&s->handles, fh);
	}
	return n;
}

static void begin_session(struct session *s)
{
	struct fuse_init_in init = {.major = 7, .minor = 39, .flags = 0xffffffff};
	struct err err = {0};
	struct fs_config c = {.proc_fd = fs_open_proc(&err), .max_fds = 64};
	static const char *const names[] = {"tree", "ro"};

	check(c.proc_fd >= 0);
	check(fs_new(&c, &s->fs, &err) == 0);
	check(fs_worker_new(s->fs, &s->w, &err) == 0);
	for (unsigned int i = 0; i < 2; i++) {
		int fd = openat(top_fd, "tree", O_PATH | O_CLOEXEC);

		check(fs_export_add(s->fs, names[i], fd, i ? FS_CONTROL_READ_ONLY : 0) == 0);
	}
	request(s, FUSE_INIT, 0, 0, (const uint8_t *)&init, sizeof(init));
	request(s, FUSE_LOOKUP, FUSE_ROOT_ID, 0, (const uint8_t *)"tree", 5);
	request(s, FUSE_LOOKUP, FUSE_ROOT_ID, 0, (const uint8_t *)"ro", 3);
	request(s, FUSE_LOOKUP, s->nodes.id[0], 0, (const uint8_t *)"file", 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct session s = {0};

	/* Directories that their owner cannot enter would stay, and spoil the next input. */
	if (geteuid())
		return 0;
	/* Here, because libFuzzer sets a handler of its own after the set-up hook. */
	(void)signal(SIGXFSZ, SIG_IGN);
	make_tree();
	begin_session(&s);
	for (int i = 0; i < REQUESTS_MAX && size >= 6; i++) {
		uint8_t body[BODY_MAX];
		size_t len = MIN(data[4] | (size_t)(data[5] & 0x0f) << 8, size - 6);

		memcpy(body, data + 6, len);
		/* Most arguments begin with a handle or another node. */
		if (data[2] && len >= 8) {
			uint64_t id = data[2] & 0x80 ? choose(&s.nodes, data[2] & 0x7f)
						     : choose(&s.handles, data[2]);

			memcpy(body, &id, sizeof(id));
		}
		if ((data[3] & 0x10) && len >= 32) {
			/* COPY_FILE_RANGE has a second pair further on. */
			uint64_t pair[2] = {choose(&s.nodes, data[2]), choose(&s.handles, data[2])};

			memcpy(body + 16, pair, sizeof(pair));
		}
		/* SYNCFS would wait for all that this machine has to write. */
		if (data[0] != FUSE_SYNCFS)
			request(&s, data[0], choose(&s.nodes, data[1]), data[3], body, len);
		check(geteuid() == getuid() && getegid() == getgid());
		data += 6 + len;
		size -= 6 + len;
	}
	fs_worker_free(s.w);
	fs_free(s.fs);
	check(fchdir(start_fd) == 0);
	if (++inputs % 64 == 0)
		check_canary();
	return 0;
}
