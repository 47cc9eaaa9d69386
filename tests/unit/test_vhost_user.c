/*
 * Unit tests of the vhost-user back-end: the conversation as a front-end has it, over a socket pair,
 * and messages that no honest front-end sends. The number of open descriptors must not change.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "cleanup.h"
#include "io.h"
#include "vhost_user.h"

#define USER_BASE 0x7f0000000000ull
#define RAM_GPA 0x100000ull
#define RAM_LEN 0x40000u
#define QUEUE_SIZE 16

struct fixture {
	int peer;
	int memfd;
	int kick, call;
	uint8_t *ram; /* the front-end's own mapping */
	struct vhost_user *vu;
	struct vhost_user_queue *running[2];
	unsigned int starts, stops;
	char state[16]; /* of the device, saved and loaded */
	int state_result;
};

static unsigned int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void on_start(void *ctx, unsigned int index, struct vhost_user_queue *q)
{
	struct fixture *f = ctx;

	assert_null(f->running[index]);
	f->running[index] = q;
	f->starts++;
}

static void on_stop(void *ctx, unsigned int index)
{
	struct fixture *f = ctx;

	assert_non_null(f->running[index]);
	f->running[index] = NULL;
	f->stops++;
}

static int on_save(void *ctx, int fd)
{
	struct fixture *f = ctx;

	return f->state_result ? f->state_result : io_write_full(fd, f->state, strlen(f->state));
}

static int on_load(void *ctx, int fd)
{
	struct fixture *f = ctx;

	memset(f->state, 0, sizeof(f->state));
	return io_read_full(fd, f->state, sizeof(f->state) - 1) < 0 ? -EIO : f->state_result;
}

static const struct vhost_user_ops ops = {.queue_start = on_start,
					  .queue_stop = on_stop,
					  .state_save = on_save,
					  .state_load = on_load};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct vhost_user_config c = {.nr_queues = 2, .ops = &ops, .ctx = f};
	struct err err = {0};
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	f->peer = sv[0];
	c.fd = sv[1];
	f->memfd = memfd_create("ram", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->memfd, RAM_LEN), 0);
	f->ram = mmap(NULL, RAM_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, f->memfd, 0);
	assert_true(f->ram != MAP_FAILED);
	f->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	f->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_int_equal(vhost_user_new(&c, &f->vu, &err), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	vhost_user_free(f->vu);
	assert_null(f->running[0]);
	assert_null(f->running[1]);
	munmap(f->ram, RAM_LEN);
	close(f->memfd);
	close(f->kick);
	close(f->call);
	close(f->peer);
	free(f);
	return 0;
}

static void send_raw(struct fixture *f, uint32_t request, uint32_t flags, const void *payload,
		     uint32_t size, const int *fds, size_t nr_fds)
{
	struct {
		struct vhost_user_header h;
		uint8_t payload[512];
	} __attribute__((packed)) m = {{request, flags, size}, {0}};

	if (size)
		memcpy(m.payload, payload, size);
	assert_int_equal(io_send_fds(f->peer, &m, sizeof(m.h) + size, fds, nr_fds), 0);
}

/* Sends one message; the result of handling it. */
static int tell(struct fixture *f, uint32_t request, const void *payload, uint32_t size,
		const int *fds, size_t nr_fds)
{
	struct err err = {0};
	int r;

	send_raw(f, request, VHOST_USER_VERSION, payload, size, fds, nr_fds);
	r = vhost_user_handle_message(f->vu, &err);
	if (r < 0)
		assert_true(err.msg[0] != '\0');
	return r;
}

static uint64_t take_reply(struct fixture *f, uint32_t request, uint32_t size, uint32_t *high)
{
	struct vhost_user_header h;
	uint32_t v[2] = {0};

	assert_int_equal(io_read_full(f->peer, &h, sizeof(h)), sizeof(h));
	assert_int_equal(h.request, request);
	assert_int_equal(h.flags, VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY);
	assert_int_equal(h.size, size);
	assert_int_equal(io_read_full(f->peer, v, size), size);
	if (high)
		*high = v[1];
	return v[0] | (uint64_t)v[1] << 32;
}

static uint64_t ask(struct fixture *f, uint32_t request)
{
	assert_int_equal(tell(f, request, NULL, 0, NULL, 0), 1);
	return take_reply(f, request, 8, NULL);
}

static int tell_u64(struct fixture *f, uint32_t request, uint64_t v, int fd)
{
	return tell(f, request, &v, sizeof(v), &fd, fd >= 0 ? 1 : 0);
}

static int tell_state(struct fixture *f, uint32_t request, uint32_t index, uint32_t num)
{
	struct vhost_user_vring_state s = {index, num};

	return tell(f, request, &s, sizeof(s), NULL, 0);
}

static struct vhost_user_mem_table honest_table(void)
{
	return (struct vhost_user_mem_table){.nr = 1,
					     .regions = {{RAM_GPA, RAM_LEN, USER_BASE, 0}}};
}

static int tell_table(struct fixture *f, const struct vhost_user_mem_table *t, const int *fds,
		      size_t nr_fds)
{
	return tell(f, VHOST_USER_SET_MEM_TABLE, t, 8 + t->nr * 32, fds, nr_fds);
}

static struct vhost_user_vring_addr honest_addr(uint32_t index)
{
	uint64_t base = USER_BASE + index * 0x4000;

	return (struct vhost_user_vring_addr){
		.index = index, .desc = base, .avail = base + 0x1000, .used = base + 0x2000};
}

static void set_up_device(struct fixture *f, uint64_t extra_features)
{
	struct vhost_user_mem_table t = honest_table();

	assert_int_equal(
		tell_u64(f, VHOST_USER_SET_PROTOCOL_FEATURES,
			 1u << VHOST_USER_PROTOCOL_F_REPLY_ACK | 1u << VHOST_USER_PROTOCOL_F_MQ,
			 -1),
		1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_FEATURES,
				  1ull << VIRTIO_F_VERSION_1 |
					  1ull << VHOST_USER_F_PROTOCOL_FEATURES | extra_features,
				  -1),
			 1);
	assert_int_equal(tell_table(f, &t, &f->memfd, 1), 1);
}

static void set_up_queue(struct fixture *f, uint32_t index)
{
	struct vhost_user_vring_addr a = honest_addr(index);

	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_NUM, index, QUEUE_SIZE), 1);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_BASE, index, 0), 1);
	assert_int_equal(tell(f, VHOST_USER_SET_VRING_ADDR, &a, sizeof(a), NULL, 0), 1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_KICK, index, f->kick), 1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_CALL, index, f->call), 1);
}

static void test_features_are_offered(void **state)
{
	struct fixture *f = *state;
	uint64_t features = ask(f, VHOST_USER_GET_FEATURES);

	assert_true(features & 1ull << VIRTIO_F_VERSION_1);
	assert_true(features & 1ull << VIRTIO_RING_F_EVENT_IDX);
	assert_true(features & 1ull << VIRTIO_RING_F_INDIRECT_DESC);
	assert_true(features & 1ull << VHOST_USER_F_PROTOCOL_FEATURES);
	assert_true(ask(f, VHOST_USER_GET_PROTOCOL_FEATURES) &
		    1u << VHOST_USER_PROTOCOL_F_REPLY_ACK);
	assert_int_equal(ask(f, VHOST_USER_GET_QUEUE_NUM), 2);
	assert_int_equal(tell(f, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_FEATURES, ~features, -1), -EINVAL);
}

static void test_a_queue_runs_when_all_is_there(void **state)
{
	struct fixture *f = *state;
	struct virtq_chain *chain = xcalloc(1, sizeof(*chain));
	struct vring_desc *desc = (void *)(f->ram + 0x4000);
	struct vring_avail *avail = (void *)(f->ram + 0x5000);
	uint32_t base;

	set_up_device(f, 1ull << VIRTIO_RING_F_EVENT_IDX);
	set_up_queue(f, 1);
	assert_null(f->running[1]);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 1, 1), 1);
	assert_non_null(f->running[1]);
	assert_null(f->running[0]);
	assert_true(f->running[1]->vq.event_idx);
	assert_false(f->running[1]->vq.indirect);
	/* A request in the front-end's memory is seen through our mapping of it. */
	memcpy(f->ram + 0x10000, "hello", 5);
	desc[7] = (struct vring_desc){.addr = RAM_GPA + 0x10000, .len = 5};
	avail->ring[0] = 7;
	avail->idx = 1;
	assert_int_equal(virtq_pop(&f->running[1]->vq, chain), 1);
	assert_memory_equal(chain->iov[0].iov_base, "hello", 5);
	virtq_push(&f->running[1]->vq, 7, 0);
	free(chain);
	/* Stopping tells where to go on. */
	assert_int_equal(tell_state(f, VHOST_USER_GET_VRING_BASE, 1, 0), 1);
	assert_int_equal(take_reply(f, VHOST_USER_GET_VRING_BASE, 8, &base) & 0xffffffff, 1);
	assert_int_equal(base, 1);
	assert_null(f->running[1]);
}

static void test_a_running_queue_is_stopped_for_changes(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_mem_table t = honest_table();

	set_up_device(f, 0);
	set_up_queue(f, 0);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), 1);
	assert_int_equal(f->starts, 1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_CALL, 0, f->call), 1);
	assert_int_equal(f->stops, 1);
	assert_int_equal(f->starts, 2);
	assert_int_equal(tell_table(f, &t, &f->memfd, 1), 1);
	assert_int_equal(f->stops, 2);
	assert_int_equal(f->starts, 3);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_CALL, VHOST_USER_VRING_NO_FD, -1), 1);
	assert_int_equal(f->running[0]->call_fd, -1);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 0), 1);
	assert_null(f->running[0]);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), 1);
	assert_int_equal(tell(f, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0), 1);
	assert_null(f->running[0]);
}

static void test_acknowledgements(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_vring_state s = {0, QUEUE_SIZE};
	struct err err;

	set_up_device(f, 0);
	send_raw(f, VHOST_USER_SET_VRING_NUM, VHOST_USER_VERSION | VHOST_USER_FLAG_NEED_REPLY, &s,
		 sizeof(s), NULL, 0);
	assert_int_equal(vhost_user_handle_message(f->vu, &err), 1);
	assert_int_equal(take_reply(f, VHOST_USER_SET_VRING_NUM, 8, NULL), 0);
	s.num = VIRTQ_SIZE_MAX + 1;
	send_raw(f, VHOST_USER_SET_VRING_NUM, VHOST_USER_VERSION | VHOST_USER_FLAG_NEED_REPLY, &s,
		 sizeof(s), NULL, 0);
	assert_int_equal(vhost_user_handle_message(f->vu, &err), -EINVAL);
	assert_int_equal(take_reply(f, VHOST_USER_SET_VRING_NUM, 8, NULL), 1);
}

static void test_bad_headers(void **state)
{
	static const struct {
		uint32_t request, flags, size;
		int error;
	} bad[] = {
		{VHOST_USER_GET_FEATURES, 0, 0, -EPROTO},
		{VHOST_USER_GET_FEATURES, 2, 0, -EPROTO},
		{VHOST_USER_GET_FEATURES, 1 | VHOST_USER_FLAG_REPLY, 0, -EPROTO},
		{VHOST_USER_GET_FEATURES, 0x11, 0, -EPROTO},
		{VHOST_USER_GET_FEATURES, 1, 8, -EPROTO},
		{VHOST_USER_SET_FEATURES, 1, 4, -EPROTO},
		{VHOST_USER_SET_VRING_ADDR, 1, 39, -EPROTO},
		{VHOST_USER_SET_MEM_TABLE, 1, 4, -EPROTO},
		{0, 1, 0, -EOPNOTSUPP},
		{24, 1, 16, -EOPNOTSUPP},
		{VHOST_USER_REQUEST_MAX, 1, 0, -EOPNOTSUPP},
		{UINT32_MAX, 1, 0, -EOPNOTSUPP},
	};
	uint8_t payload[64] = {0};
	unsigned int before;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct fixture *f;
		struct err err;

		before = count_fds();
		set_up((void **)&f);
		send_raw(f, bad[i].request, bad[i].flags, payload, bad[i].size, &f->memfd, 1);
		assert_int_equal(vhost_user_handle_message(f->vu, &err), bad[i].error);
		tear_down((void **)&f);
		assert_int_equal(count_fds(), before);
	}
}

static void test_size_beyond_any_message(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_header h = {VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, UINT32_MAX};
	struct err err;

	assert_int_equal(io_write_full(f->peer, &h, sizeof(h)), 0);
	assert_int_equal(vhost_user_handle_message(f->vu, &err), -EPROTO);
}

static void test_truncated_messages(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_header h = {VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8};
	struct err err;

	assert_int_equal(io_write_full(f->peer, &h, sizeof(h)), 0);
	assert_int_equal(io_write_full(f->peer, "1234", 4), 0);
	shutdown(f->peer, SHUT_WR);
	assert_int_equal(vhost_user_handle_message(f->vu, &err), -EPROTO);
	assert_int_equal(vhost_user_handle_message(f->vu, &err), 0);
}

static void test_surplus_descriptors_are_closed(void **state)
{
	struct fixture *f = *state;
	const int many[] = {f->memfd, f->memfd, f->memfd, f->memfd,
			    f->memfd, f->memfd, f->memfd, f->memfd};
	struct vhost_user_mem_table t = honest_table();
	unsigned int before = count_fds();

	for (int i = 0; i < 50; i++) {
		assert_int_equal(tell(f, VHOST_USER_SET_OWNER, NULL, 0, many, 8), -EPROTO);
		assert_int_equal(tell_table(f, &t, many, 3), -EPROTO);
		assert_int_equal(tell_table(f, &t, NULL, 0), -EPROTO);
		assert_int_equal(
			tell_u64(f, VHOST_USER_SET_VRING_KICK, VHOST_USER_VRING_NO_FD | 1, f->kick),
			-EPROTO);
		assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_CALL, 1, -1), -EPROTO);
		assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_KICK, 77, f->kick), -EPROTO);
		assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_ERR, 1, f->kick), 1);
	}
	assert_int_equal(count_fds(), before);
}

static void test_bad_memory_regions(void **state)
{
	struct fixture *f = *state;
	static const struct vhost_user_region bad[] = {
		{RAM_GPA, RAM_LEN + 4096, USER_BASE, 0},
		{RAM_GPA, RAM_LEN, USER_BASE, 4096},
		{RAM_GPA, RAM_LEN, USER_BASE, UINT64_MAX - 4095},
		{RAM_GPA, 4096, USER_BASE, 100},
		{RAM_GPA, 0, USER_BASE, 0},
		{UINT64_MAX - 4095, RAM_LEN, USER_BASE, 0},
		{RAM_GPA, RAM_LEN, UINT64_MAX - 4095, 0},
	};
	struct vhost_user_mem_table t = honest_table();
	unsigned int before = count_fds();
	int p[2];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		t.regions[0] = bad[i];
		assert_true(tell_table(f, &t, &f->memfd, 1) < 0);
	}
	/* Two that overlap; the one that was mapped goes again. */
	t.nr = 2;
	t.regions[0] = (struct vhost_user_region){RAM_GPA, 8192, USER_BASE, 0};
	t.regions[1] = (struct vhost_user_region){RAM_GPA + 4096, 8192, USER_BASE + 8192, 8192};
	assert_true(tell_table(f, &t, (int[]){f->memfd, f->memfd}, 2) < 0);
	/* More regions than the message holds, than the protocol has. */
	t.nr = 3;
	assert_int_equal(tell(f, VHOST_USER_SET_MEM_TABLE, &t, 8 + 64,
			      (int[]){f->memfd, f->memfd, f->memfd}, 3),
			 -EPROTO);
	t.nr = VHOST_USER_REGIONS_MAX + 1;
	assert_int_equal(tell(f, VHOST_USER_SET_MEM_TABLE, &t, sizeof(t), NULL, 0), -EPROTO);
	/* Not memory at all. */
	assert_int_equal(pipe(p), 0);
	t = honest_table();
	assert_true(tell_table(f, &t, p, 1) < 0);
	close(p[0]);
	close(p[1]);
	assert_int_equal(count_fds(), before);
}

static void test_rings_outside_memory(void **state)
{
	struct fixture *f = *state;
	const uint64_t end = USER_BASE + RAM_LEN;
	static const size_t fields[] = {offsetof(struct vhost_user_vring_addr, desc),
					offsetof(struct vhost_user_vring_addr, avail),
					offsetof(struct vhost_user_vring_addr, used)};
	const uint64_t bad[] = {0, USER_BASE - 16, end, end - 16, UINT64_MAX - 15};

	set_up_device(f, 0);
	set_up_queue(f, 0);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		for (size_t j = 0; j < ARRAY_SIZE(bad); j++) {
			struct vhost_user_vring_addr a = honest_addr(0);

			memcpy((char *)&a + fields[i], &bad[j], sizeof(bad[j]));
			assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 0), 1);
			assert_int_equal(tell(f, VHOST_USER_SET_VRING_ADDR, &a, sizeof(a), NULL, 0),
					 1);
			assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), -EFAULT);
			assert_null(f->running[0]);
		}
	}
}

static void test_queues_out_of_range(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_vring_addr a = honest_addr(2);

	set_up_device(f, 0);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_NUM, 2, 8), -EPROTO);
	assert_int_equal(tell_state(f, VHOST_USER_GET_VRING_BASE, UINT32_MAX, 0), -EPROTO);
	assert_int_equal(tell(f, VHOST_USER_SET_VRING_ADDR, &a, sizeof(a), NULL, 0), -EPROTO);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_KICK, 2, f->kick), -EPROTO);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_NUM, 0, 0), -EINVAL);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_BASE, 0, 65536), -EINVAL);
	a = honest_addr(0);
	a.flags = 2;
	assert_int_equal(tell(f, VHOST_USER_SET_VRING_ADDR, &a, sizeof(a), NULL, 0), -EINVAL);
	/* A size that is no power of two shows when the queue would start. */
	set_up_queue(f, 0);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_NUM, 0, 12), 1);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), -EINVAL);
}

static void test_queue_without_memory(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(tell_u64(f, VHOST_USER_SET_FEATURES, 1ull << VIRTIO_F_VERSION_1, -1), 1);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_NUM, 0, QUEUE_SIZE), 1);
	struct vhost_user_vring_addr a = honest_addr(0);
	assert_int_equal(tell(f, VHOST_USER_SET_VRING_ADDR, &a, sizeof(a), NULL, 0), 1);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_VRING_KICK, 0, f->kick), -EFAULT);
}

/* Every page counts as written to, at the beginning and when a queue stops. */
static void test_the_log_says_everything(void **state)
{
	struct fixture *f = *state;
	struct vhost_user_log log = {.size = 64, .mmap_offset = 4096};
	const uint64_t features =
		1ull << VIRTIO_F_VERSION_1 | 1ull << VHOST_USER_F_PROTOCOL_FEATURES;
	cleanup_close int fd = memfd_create("log", MFD_CLOEXEC);
	uint8_t bits[64], all[64];

	memset(all, 0xff, sizeof(all));
	set_up_device(f, 0);
	assert_int_equal(tell_u64(f, VHOST_USER_SET_FEATURES, features, -1), 1);
	set_up_queue(f, 0);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), 1);
	assert_non_null(f->running[0]);
	assert_int_equal(ftruncate(fd, 8192), 0);
	assert_int_equal(tell(f, VHOST_USER_SET_LOG_BASE, &log, sizeof(log), &fd, 1), 1);
	take_reply(f, VHOST_USER_SET_LOG_BASE, 8, NULL);
	/* While the queue runs, and nothing else may change. */
	assert_int_equal(
		tell_u64(f, VHOST_USER_SET_FEATURES, features | 1ull << VHOST_USER_F_LOG_ALL, -1),
		1);
	assert_int_equal(pread(fd, bits, sizeof(bits), 4096), sizeof(bits));
	assert_memory_equal(bits, all, sizeof(bits));
	memset(bits, 0, sizeof(bits));
	assert_int_equal(pwrite(fd, bits, sizeof(bits), 4096), sizeof(bits));
	assert_int_equal(tell_state(f, VHOST_USER_GET_VRING_BASE, 0, 0), 1);
	take_reply(f, VHOST_USER_GET_VRING_BASE, 8, NULL);
	assert_int_equal(pread(fd, bits, sizeof(bits), 4096), sizeof(bits));
	assert_memory_equal(bits, all, sizeof(bits));
	/* Outside of its file, or without end. */
	log.mmap_offset = 8192;
	assert_int_equal(tell(f, VHOST_USER_SET_LOG_BASE, &log, sizeof(log), &fd, 1), -EINVAL);
	take_reply(f, VHOST_USER_SET_LOG_BASE, 8, NULL);
	log = (struct vhost_user_log){.size = UINT64_MAX, .mmap_offset = 4096};
	assert_int_equal(tell(f, VHOST_USER_SET_LOG_BASE, &log, sizeof(log), &fd, 1), -EINVAL);
}

static int tell_state_fd(struct fixture *f, uint32_t direction, uint32_t phase, int fd)
{
	struct vhost_user_device_state s = {.direction = direction, .phase = phase};
	int r = tell(f, VHOST_USER_SET_DEVICE_STATE_FD, &s, sizeof(s), &fd, fd >= 0);

	close(fd);
	return r;
}

static void check_state(struct fixture *f, uint64_t want)
{
	assert_int_equal(tell(f, VHOST_USER_CHECK_DEVICE_STATE, NULL, 0, NULL, 0), 1);
	assert_int_equal(take_reply(f, VHOST_USER_CHECK_DEVICE_STATE, 8, NULL), want);
}

static void test_device_state_goes_through_a_pipe(void **state)
{
	struct fixture *f = *state;
	char text[16] = {0};
	int p[2];

	strcpy(f->state, "one");
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_SAVE, 0, p[1]), 1);
	assert_int_equal(take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL),
			 VHOST_USER_VRING_NO_FD);
	/* The end of file says that all is there. */
	assert_int_equal(io_read_full(p[0], text, sizeof(text)), 3);
	assert_string_equal(text, "one");
	close(p[0]);
	check_state(f, 0);

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(io_write_full(p[1], "two", 3), 0);
	close(p[1]);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_LOAD, 0, p[0]), 1);
	assert_int_equal(take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL),
			 VHOST_USER_VRING_NO_FD);
	check_state(f, 0);
	assert_string_equal(f->state, "two");
}

static void test_device_state_that_fails(void **state)
{
	struct fixture *f = *state;
	int p[2];

	f->state_result = -EBUSY;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_SAVE, 0, p[1]), 1);
	take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL);
	close(p[0]);
	check_state(f, 1);
	/* Neither a third direction nor a phase in which queues would run, nor without a descriptor. */
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(tell_state_fd(f, 2, 0, p[1]), -EOPNOTSUPP);
	assert_true(take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL) & 1);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_SAVE, 1, dup(p[0])), -EOPNOTSUPP);
	assert_true(take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL) & 1);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_SAVE, 0, -1), -EPROTO);
	/* Nor while a queue runs. */
	set_up_device(f, 0);
	set_up_queue(f, 0);
	assert_int_equal(tell_state(f, VHOST_USER_SET_VRING_ENABLE, 0, 1), 1);
	assert_non_null(f->running[0]);
	assert_int_equal(tell_state_fd(f, VHOST_USER_STATE_SAVE, 0, p[0]), -EBUSY);
	assert_true(take_reply(f, VHOST_USER_SET_DEVICE_STATE_FD, 8, NULL) & 1);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(test_features_are_offered),
		CASE(test_a_queue_runs_when_all_is_there),
		CASE(test_a_running_queue_is_stopped_for_changes),
		CASE(test_acknowledgements),
		cmocka_unit_test(test_bad_headers),
		CASE(test_size_beyond_any_message),
		CASE(test_truncated_messages),
		CASE(test_surplus_descriptors_are_closed),
		CASE(test_bad_memory_regions),
		CASE(test_rings_outside_memory),
		CASE(test_queues_out_of_range),
		CASE(test_queue_without_memory),
		CASE(test_the_log_says_everything),
		CASE(test_device_state_goes_through_a_pipe),
		CASE(test_device_state_that_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
