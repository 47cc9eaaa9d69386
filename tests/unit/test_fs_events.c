/*
 * Unit tests of what harpoon-fs tells a guest of changes by others, and of the answers that the teller gets: raw requests,
 * changes by another process. Left out where the kernel has no fanotify for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "fs.h"
#include "fs_control.h"
#include "fs_events.h"
#include "fuse_compat.h"

#define READER 77
#define SOMEBODY 78

struct fixture {
	char tree[64];
	struct fs *fs;
	struct fs_worker *w;
	uint64_t root, ro_root;
	uint8_t req[8192], reply[FS_EVENTS_READ + 4096];
	size_t reply_len;
	int back; /* where tests work: workers have left it */
};

/* args, then one or two names, as whoever has this number among the guest's processes. */
static int ask(struct fixture *f, uint32_t pid, uint32_t opcode, uint64_t node, const void *args,
	       size_t len, const char *name, const char *second)
{
	struct fuse_in_header h = {.opcode = opcode, .unique = 1, .nodeid = node, .pid = pid};
	struct iovec req = {f->req}, reply = {f->reply, sizeof(f->reply)};
	struct fuse_out_header out;
	size_t at = sizeof(h);

	memcpy(f->req + at, args, len);
	at += len;
	for (const char *s = name; s; s = s == name ? second : NULL) {
		memcpy(f->req + at, s, strlen(s) + 1);
		at += strlen(s) + 1;
	}
	h.len = (uint32_t)at;
	memcpy(f->req, &h, sizeof(h));
	req.iov_len = at;
	f->reply_len = fs_worker_handle(f->w, &req, 1, &reply, 1);
	memcpy(&out, f->reply, sizeof(out));
	return f->reply_len ? out.error : 0;
}

static const char *answer(const struct fixture *f)
{
	return (const char *)f->reply + sizeof(struct fuse_out_header);
}

static int look(struct fixture *f, uint32_t pid, uint64_t dir, const char *name, uint64_t *ret)
{
	struct fuse_entry_out e = {0};
	int r = ask(f, pid, FUSE_LOOKUP, dir, "", 0, name, NULL);

	if (!r)
		memcpy(&e, answer(f), sizeof(e));
	if (ret)
		*ret = e.nodeid;
	return r;
}

/* By a process that is not the server. */
static void others(const struct fixture *f, const char *script)
{
	char command[512];
	int status = 0;
	pid_t pid;

	snprintf(command, sizeof(command), "cd %s && %s", f->tree, script);
	pid = fork();
	if (!pid)
		_exit(execl("/bin/sh", "sh", "-c", command, NULL));
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	assert_int_equal(status, 0);
}

static uint64_t events_node(struct fixture *f)
{
	uint64_t id;

	if (look(f, READER, FUSE_ROOT_ID, FS_EVENTS_NAME, &id))
		skip();
	return id;
}

static int read_events(struct fixture *f, uint32_t pid)
{
	struct fuse_read_in in = {.size = FS_EVENTS_READ};

	return ask(f, pid, FUSE_READ, events_node(f), &in, sizeof(in), NULL, NULL);
}

/* The first read begins it; it ends at once because it is told to. */
static void start_reading(struct fixture *f)
{
	(void)events_node(f);
	fs_events_interrupt(f->fs);
	assert_int_equal(read_events(f, READER), 0);
}

static bool told(const struct fixture *f, char kind, const char *path)
{
	const char *p = answer(f), *end = (const char *)f->reply + f->reply_len;

	for (; p < end; p += strlen(p) + 1) {
		if (*p == kind && !strcmp(p + 1, path))
			return true;
	}
	return false;
}

static int set_up(void **state)
{
	struct fuse_init_in init = {.major = FUSE_KERNEL_VERSION, .minor = 36};
	struct fixture *f = calloc(1, sizeof(*f));
	struct fs_config config = {.max_fds = 100};
	struct err err = {0};

	f->back = open(".", O_PATH | O_CLOEXEC);
	strcpy(f->tree, "/tmp/fs-events-XXXXXX");
	assert_non_null(mkdtemp(f->tree));
	others(f, "mkdir sub; echo old > old; echo text > kept");
	config.proc_fd = fs_open_proc(&err);
	assert_int_equal(fs_new(&config, &f->fs, &err), 0);
	assert_int_equal(fs_export_add(f->fs, "m0", open(f->tree, O_PATH | O_CLOEXEC), 0), 0);
	assert_int_equal(
		fs_export_add(f->fs, "m1", open(f->tree, O_PATH | O_CLOEXEC), FS_CONTROL_READ_ONLY),
		0);
	assert_int_equal(fs_worker_new(f->fs, &f->w, &err), 0);
	assert_int_equal(ask(f, 1, FUSE_INIT, 0, &init, sizeof(init), NULL, NULL), 0);
	assert_int_equal(look(f, SOMEBODY, FUSE_ROOT_ID, "m0", &f->root), 0);
	assert_int_equal(look(f, SOMEBODY, FUSE_ROOT_ID, "m1", &f->ro_root), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char command[128];

	fs_worker_free(f->w);
	fs_free(f->fs);
	assert_int_equal(fchdir(f->back), 0);
	close(f->back);
	snprintf(command, sizeof(command), "rm -rf %s", f->tree);
	/* A folder of ours. NOLINTNEXTLINE(cert-env33-c) */
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static void test_what_others_do_is_told(void **state)
{
	struct fixture *f = *state;

	start_reading(f);
	assert_int_equal(look(f, SOMEBODY, f->root, "sub", NULL), 0);
	others(f, "echo new > new; mkdir dir; ln -s x link; mkfifo pipe; echo more >> old; touch "
		  "sub/deep");
	assert_int_equal(read_events(f, READER), 0);
	assert_true(told(f, FS_EVENT_FILE, "m0/new"));
	assert_true(told(f, FS_EVENT_FILE, "m1/new"));
	assert_true(told(f, FS_EVENT_DIR, "m0/dir"));
	assert_true(told(f, FS_EVENT_LINK, "m0/link"));
	assert_true(told(f, FS_EVENT_FIFO, "m0/pipe"));
	assert_true(told(f, FS_EVENT_CONTENT, "m0/old"));
	assert_true(told(f, FS_EVENT_CLOSED, "m0/old"));
	assert_true(told(f, FS_EVENT_FILE, "m0/sub/deep"));
	others(f, "rm old new; rmdir dir; mv sub/deep moved; chmod 600 kept");
	assert_int_equal(read_events(f, READER), 0);
	assert_true(told(f, FS_EVENT_UNLINK, "m0/old"));
	assert_true(told(f, FS_EVENT_RMDIR, "m0/dir"));
	assert_true(told(f, FS_EVENT_UNLINK, "m0/sub/deep"));
	assert_true(told(f, FS_EVENT_FILE, "m0/moved"));
	assert_true(told(f, FS_EVENT_ATTR, "m0/kept"));
}

static void test_what_the_guest_does_is_not(void **state)
{
	struct fixture *f = *state;
	struct fuse_mkdir_in mk = {.mode = 0755};

	start_reading(f);
	assert_int_equal(ask(f, SOMEBODY, FUSE_MKDIR, f->root, &mk, sizeof(mk), "mine", NULL), 0);
	assert_int_equal(ask(f, SOMEBODY, FUSE_UNLINK, f->root, "", 0, "old", NULL), 0);
	others(f, "touch theirs");
	assert_int_equal(read_events(f, READER), 0);
	assert_true(told(f, FS_EVENT_FILE, "m0/theirs"));
	assert_false(told(f, FS_EVENT_DIR, "m0/mine"));
	assert_false(told(f, FS_EVENT_UNLINK, "m0/old"));
}

/* The reader's calls are answered as if they had been made, once, and change nothing. */
static void test_a_replay_changes_nothing(void **state)
{
	struct fixture *f = *state;
	struct fuse_mknod_in mk = {.mode = S_IFREG | 0600};
	struct fuse_setattr_in size = {.valid = FATTR_SIZE};
	struct fuse_open_in open_in = {.flags = O_WRONLY | O_TRUNC};
	uint64_t kept, id;

	start_reading(f);
	others(f, "echo new > new; rm old");
	assert_int_equal(read_events(f, READER), 0);
	/* New: not there until it is made. */
	assert_int_equal(look(f, READER, f->root, "new", NULL), -ENOENT);
	assert_int_equal(look(f, SOMEBODY, f->root, "new", NULL), 0);
	assert_int_equal(ask(f, SOMEBODY, FUSE_MKNOD, f->root, &mk, sizeof(mk), "new", NULL),
			 -EEXIST);
	assert_int_equal(ask(f, READER, FUSE_MKNOD, f->root, &mk, sizeof(mk), "new", NULL), 0);
	assert_int_equal(ask(f, READER, FUSE_MKNOD, f->root, &mk, sizeof(mk), "new", NULL),
			 -EAGAIN);
	/* Gone: there until it is removed; on a read-only export as well. */
	assert_int_equal(look(f, READER, f->ro_root, "old", &id), 0);
	assert_int_equal(look(f, SOMEBODY, f->ro_root, "old", NULL), -ENOENT);
	assert_int_equal(ask(f, READER, FUSE_GETATTR, id, "0123456789abcdef", 16, NULL, NULL),
			 -ESTALE);
	assert_int_equal(ask(f, READER, FUSE_UNLINK, f->ro_root, "", 0, "old", NULL), 0);
	/* What nobody has done is not done by the reader either. */
	assert_int_equal(ask(f, READER, FUSE_UNLINK, f->root, "", 0, "kept", NULL), -EAGAIN);
	assert_int_equal(ask(f, READER, FUSE_MKNOD, f->root, &mk, sizeof(mk), "none", NULL),
			 -EAGAIN);
	assert_int_equal(look(f, READER, f->root, "kept", &kept), 0);
	assert_int_equal(ask(f, READER, FUSE_SETATTR, kept, &size, sizeof(size), NULL, NULL), 0);
	assert_int_equal(ask(f, READER, FUSE_OPEN, kept, &open_in, sizeof(open_in), NULL, NULL), 0);
	assert_int_equal(
		ask(f, READER, FUSE_LINK, f->root, &(struct fuse_link_in){kept}, 8, "l", NULL),
		-EPERM);
	others(f, "test -s kept && test ! -e none && test ! -e l && test -s new");
}

static void test_reads_that_are_refused(void **state)
{
	struct fixture *f = *state;
	struct fuse_read_in in = {.size = 4096};
	uint64_t id = events_node(f);

	assert_int_equal(ask(f, READER, FUSE_READ, id, &in, sizeof(in), NULL, NULL), -EINVAL);
	assert_int_equal(ask(f, READER, FUSE_WRITE, id, "0123456789012345678901234567890123456789",
			     40, NULL, NULL),
			 -EPERM);
	assert_int_equal(ask(f, READER, FUSE_UNLINK, FUSE_ROOT_ID, "", 0, FS_EVENTS_NAME, NULL),
			 -EROFS);
}

static void *interrupt_later(void *arg)
{
	const struct timespec t = {.tv_nsec = 50000000};

	nanosleep(&t, NULL);
	fs_events_interrupt(arg);
	return NULL;
}

static void test_a_read_that_waits_can_be_ended(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;

	start_reading(f);
	assert_int_equal(pthread_create(&thread, NULL, interrupt_later, f->fs), 0);
	assert_int_equal(read_events(f, READER), 0);
	assert_int_equal(f->reply_len, sizeof(struct fuse_out_header));
	pthread_join(thread, NULL);
	/* Neither does a revocation leave a watch behind, nor is one needed for it. */
	assert_int_equal(fs_export_remove(f->fs, "m0", true), 0);
	others(f, "touch late");
	assert_int_equal(read_events(f, READER), 0);
	assert_false(told(f, FS_EVENT_FILE, "m0/late"));
	assert_true(told(f, FS_EVENT_FILE, "m1/late"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_what_others_do_is_told, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_the_guest_does_is_not, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_replay_changes_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_reads_that_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_read_that_waits_can_be_ended, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
