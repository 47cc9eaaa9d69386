/*
 * A whole machine on a real /dev/kvm, with every device (and harpoon-fs, as root), and a guest that attacks them all (tests/evil). The
 * host keeps busy meanwhile: it connects, writes, reads, hangs up, sends frames, types. Whatever the guest
 * does, it ends by itself or by a fault of its own; this process, built with sanitizers too, is unharmed, and
 * afterwards holds what it held before.
 *
 * Skipped with the reason where there is no /dev/kvm.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/if_tun.h>

#include "balloon.h"
#include "blk.h"
#include "cleanup.h"
#include "console.h"
#include "fs_control.h"
#include "io.h"
#include "machine.h"
#include "net.h"
#include "rng.h"
#include "util.h"
#include "virtiofs.h"
#include "vsock.h"

#define DISK (1 << 20)
#define STREAMS 16
#define LIMIT_MS 200000
#define TEXT_MAX (64 << 10)

struct stream {
	int fd; /* ours; -1 = none */
	bool open;
};

struct fixture {
	struct loop *loop;
	struct machine *machine;
	struct virtio_device *vsock;
	int serial, disk, wire, console_in, console_out;
	int control; /* of harpoon-fs */
	pid_t server;
	char tree[64]; /* what it exports */
	unsigned int nr_devices;
	bool is_over;
	struct vcpus_end end;
	struct stream streams[STREAMS];
	uint32_t next_port;
	uint64_t nr_ends;
	char text[TEXT_MAX]; /* what the guest said */
	size_t text_len;
};

static void on_end(void *ctx, const struct vcpus_end *end)
{
	struct fixture *f = ctx;

	f->is_over = true;
	f->end = *end;
}

static void on_paused(void *ctx)
{
}

/* --- the host's side of streams ------------------------------------------------------------------- */

static struct fixture *the_fixture;

static void on_done(void *ctx, int err)
{
	struct stream *s = ctx;

	assert_true(s->open);
	s->open = false;
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	the_fixture->nr_ends++;
}

static int new_stream(struct fixture *f, struct stream **ret)
{
	int sv[2];

	for (unsigned int i = 0; i < STREAMS; i++) {
		if (f->streams[i].open)
			continue;
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		f->streams[i] = (struct stream){.fd = sv[0], .open = true};
		*ret = &f->streams[i];
		return sv[1];
	}
	return -1;
}

static int on_connect(void *ctx, uint32_t host_port, uint32_t guest_port, struct vsock_accept *ret)
{
	struct stream *s;
	int fd = host_port % 3 ? new_stream(ctx, &s) : -1;

	if (fd < 0)
		return -ECONNREFUSED;
	*ret = (struct vsock_accept){.rfd = fd, .wfd = fd, .done = on_done, .ctx = s};
	return 0;
}

static void use_streams(struct fixture *f)
{
	static uint8_t block[8192];
	struct stream *s;
	int fd = new_stream(f, &s);

	f->next_port++;
	if (fd >= 0 && vsock_connect(f->vsock, 2000 + f->next_port, 1000 + f->next_port % 16, fd,
				     fd, on_done, s, NULL)) {
		/* No driver right now. */
		s->open = false;
		close(s->fd);
		s->fd = -1;
	}
	for (unsigned int i = 0; i < STREAMS; i++) {
		ssize_t n = 0;

		if (f->streams[i].fd < 0)
			continue;
		if (i % 3)
			n = recv(f->streams[i].fd, block, sizeof(block), MSG_DONTWAIT);
		if (i % 4)
			n += send(f->streams[i].fd, block, 1 + i * 100, MSG_DONTWAIT);
		if (i % 5 == f->next_port % 5)
			shutdown(f->streams[i].fd, SHUT_WR);
		(void)n;
	}
}

static void use_the_rest(struct fixture *f)
{
	static uint8_t block[4096];
	ssize_t n;

	memset(block, 0, VIRTIO_NET_TAP_HDR);
	n = send(f->wire, block, 500 + f->next_port % 3000, MSG_DONTWAIT);
	n += recv(f->wire, block, sizeof(block), MSG_DONTWAIT);
	n += write(f->console_in, "typed\n", 6);
	n += read(f->console_out, block, sizeof(block));
	(void)n;
}

/* --- the file server ----------------------------------------------------------------------------- */

static void on_lost(void *ctx, const char *why)
{
	fail_msg("harpoon-fs is lost: %s", why);
}

/* The real harpoon-fs, of the same build, which takes root; false = not here. */
static bool add_fs(struct fixture *f)
{
	struct virtiofs_params params = {.tag = "harpoon",
					 .max_files = 64,
					 .window_bytes = 16u << 20,
					 .on_lost = on_lost,
					 .ctx = f};
	char trunk_arg[32], control_arg[32];
	struct virtio_device *dev;
	int trunk[2], pair[2];
	struct err err = {0};

	if (geteuid() || !getenv("HARPOON_FS")) {
		print_message("# without harpoon-fs, which takes root\n");
		return false;
	}
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, trunk), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	snprintf(trunk_arg, sizeof(trunk_arg), "--vmm-fd=%d", trunk[1]);
	snprintf(control_arg, sizeof(control_arg), "--control-fd=%d", pair[1]);
	f->server = fork();
	assert_true(f->server >= 0);
	if (!f->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(trunk[1], F_SETFD, 0);
		fcntl(pair[1], F_SETFD, 0);
		execl(getenv("HARPOON_FS"), "harpoon-fs", trunk_arg, control_arg, NULL);
		_exit(127);
	}
	close(trunk[1]);
	close(pair[1]);
	f->control = pair[0];
	params.sock = trunk[0];
	if (virtiofs_new(&params, &dev, &err) || machine_add_device(f->machine, dev, &err))
		fail_msg("%s", err.msg);
	return true;
}

/* After the start: the device's part of it is the loop's. */
static void export_tree(struct fixture *f)
{
	struct fs_control_request req = {.op = FS_CONTROL_EXPORT, .name = "tree"};
	struct fs_control_answer a;
	int fd;

	snprintf(f->tree, sizeof(f->tree), "/tmp/harpoon-test-evil-XXXXXX");
	assert_non_null(mkdtemp(f->tree));
	fd = open(f->tree, O_PATH | O_CLOEXEC);
	assert_int_equal(io_send_fds(f->control, &req, sizeof(req), &fd, 1), 0);
	while (recv(f->control, &a, sizeof(a), MSG_DONTWAIT) != sizeof(a)) {
		assert_int_equal(errno, EAGAIN);
		assert_int_equal(loop_run_once(f->loop, 10), 0);
	}
	assert_int_equal(a.error, 0);
	close(fd);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	return remove(path);
}

/* It has to be alive still, and ends in order when its control socket does. */
static void end_fs(struct fixture *f)
{
	int status;

	assert_int_equal(waitpid(f->server, NULL, WNOHANG), 0);
	close(f->control);
	assert_int_equal(waitpid(f->server, &status, 0), f->server);
	assert_int_equal(status, 0);
	assert_int_equal(nftw(f->tree, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* --- the machine --------------------------------------------------------------------------------- */

static void add(struct fixture *f, struct virtio_device *dev)
{
	struct err err = {0};

	if (machine_add_device(f->machine, dev, &err))
		fail_msg("%s", err.msg);
}

static void add_devices(struct fixture *f)
{
	const struct vsock_params vsock = {.guest_cid = 3, .on_connect = on_connect, .ctx = f};
	struct virtio_net_params net = {.mac = {2, 0, 0, 0, 0, 1}, .mtu = 1500};
	struct virtio_console_params console;
	struct virtio_blk_params blk = {.serial = "evil"};
	struct virtio_device *dev;
	struct err err = {0};
	int in[2], out[2], sv[2];

	assert_int_equal(vsock_new(&vsock, &f->vsock, &err), 0);
	add(f, f->vsock);
	assert_int_equal(virtio_rng_new(&dev, &err), 0);
	add(f, dev);
	assert_int_equal(virtio_balloon_new(&(struct virtio_balloon_params){0}, &dev, &err), 0);
	add(f, dev);
	blk.fd = dup(f->disk);
	assert_int_equal(virtio_blk_new(&blk, &dev, &err), 0);
	add(f, dev);
	/* Keeps messages apart like a tap, which needs rights; test_virtio_net.c has a real one. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	f->wire = sv[0];
	net.tap_fd = sv[1];
	net.offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
	assert_int_equal(virtio_net_new(&net, &dev, &err), 0);
	add(f, dev);
	assert_int_equal(pipe2(in, O_CLOEXEC | O_NONBLOCK), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC | O_NONBLOCK), 0);
	console = (struct virtio_console_params){.in_fd = in[0], .out_fd = out[1]};
	f->console_in = in[1];
	f->console_out = out[0];
	assert_int_equal(virtio_console_new(&console, &dev, &err), 0);
	add(f, dev);
}

static void listen_to_guest(struct fixture *f)
{
	ssize_t n = recv(f->serial, f->text + f->text_len, sizeof(f->text) - 1 - f->text_len,
			 MSG_DONTWAIT);

	if (n > 0)
		f->text_len += (size_t)n;
	f->text[f->text_len] = '\0';
}

static void run(struct fixture *f, const char *cmdline, int kvm_fd)
{
	static const struct machine_callbacks cb = {.on_end = on_end, .on_paused = on_paused};
	struct machine_config c = {.kvm_fd = kvm_fd,
				   .kernel_fd = open(EVIL_GUEST, O_RDONLY | O_CLOEXEC),
				   .initrd_fd = -1,
				   .cmdline = cmdline,
				   .mem_bytes = 64u << 20,
				   .nr_vcpus = 1};
	uint64_t deadline = util_now_ns() + LIMIT_MS * 1000000ull;
	struct err err = {0};
	int pair[2];

	assert_true(c.kernel_fd >= 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	f->serial = pair[0];
	c.console_fd = pair[1];
	f->loop = loop_new();
	if (machine_new(f->loop, &c, &cb, f, &f->machine, &err))
		fail_msg("%s", err.msg);
	add_devices(f);
	f->nr_devices = 6 + add_fs(f);
	if (machine_start(f->machine, &(struct machine_env){0}, &err))
		fail_msg("%s", err.msg);
	if (f->server)
		export_tree(f);
	machine_run(f->machine);
	while (!f->is_over) {
		assert_true(util_now_ns() < deadline);
		assert_int_equal(loop_run_once(f->loop, 2), 0);
		use_streams(f);
		use_the_rest(f);
		listen_to_guest(f);
	}
	machine_flush_console(f->machine);
	listen_to_guest(f);
	if (f->server)
		end_fs(f);
	machine_free(f->machine);
}

/* --- what must not change ------------------------------------------------------------------------- */

static unsigned int count_entries(const char *path)
{
	cleanup_dir DIR *d = opendir(path);
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	return n;
}

/* Whether it came to its last round: its own devices may have written over it before. */
static bool attack(uint64_t seed, unsigned int rounds, unsigned int last)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	cleanup_free char *cmdline =
		xasprintf("seed=%llu rounds=%u last=%u", (unsigned long long)seed, rounds, last);
	int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	unsigned int nr_fds, nr_threads;
	char found[32];
	bool is_done;

	if (kvm_fd < 0) {
		print_message("# SKIP /dev/kvm: %s\n", strerror(errno));
		free(f);
		skip();
	}
	for (unsigned int i = 0; i < STREAMS; i++)
		f->streams[i].fd = -1;
	the_fixture = f;
	/* One more than before the machine: it takes the descriptor of /dev/kvm over. */
	nr_fds = count_entries("/proc/self/fd") - 1;
	nr_threads = count_entries("/proc/self/task");
	f->disk = memfd_create("disk", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->disk, DISK), 0);
	run(f, cmdline, kvm_fd);
	print_message("# seed %llu: %s; %llu streams ended\n", (unsigned long long)seed,
		      f->end.text, (unsigned long long)f->nr_ends);
	assert_int_equal(f->end.kind, VCPUS_END_RESET);
	snprintf(found, sizeof(found), "evil: %u devices\n", f->nr_devices);
	assert_non_null(strstr(f->text, found));
	is_done = strstr(f->text, "evil: done\n");
	assert_null(strstr(f->text, "is gone"));
	/* Streams of the host were served in between: the device came back each time. */
	assert_true(f->nr_ends > 0);
	for (unsigned int i = 0; i < STREAMS; i++)
		assert_false(f->streams[i].open);
	assert_int_equal(lseek(f->disk, 0, SEEK_END), DISK);
	close(f->disk);
	close(f->serial);
	close(f->wire);
	close(f->console_in);
	close(f->console_out);
	loop_free(f->loop);
	assert_int_equal(count_entries("/proc/self/fd"), nr_fds);
	assert_int_equal(count_entries("/proc/self/task"), nr_threads);
	free(f);
	return is_done;
}

/* How guest and devices run beside each other is another each time: of a few guests, one does all its rounds. */
static void attack_until_done(uint64_t seed, unsigned int rounds, unsigned int last)
{
	unsigned int k = 0;

	while (!attack(seed + 100 * k, rounds, last))
		assert_true(++k < 5);
}

static void test_evil_guest(void **state)
{
	attack_until_done(1, 80, 0);
}

static void test_evil_guest_another_way(void **state)
{
	attack_until_done(2, 50, 0);
}

/* In the end it turns on itself: its own pages go to the balloon and below the devices' buffers. */
static void test_evil_guest_kills_itself(void **state)
{
	attack_until_done(3, 15, 1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_evil_guest),
		cmocka_unit_test(test_evil_guest_another_way),
		cmocka_unit_test(test_evil_guest_kills_itself),
	};

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	/* By hand: test_vmm_evil SEED ROUNDS */
	if (argc == 3) {
		attack(strtoull(argv[1], NULL, 10), (unsigned int)strtoul(argv[2], NULL, 10), 1);
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
