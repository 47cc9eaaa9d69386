/* The channel to harpoon-vmm, this end; see fs_trunk.h and fs_channel.h. */
#include "fs_trunk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

static_assert(FS_CHANNEL_AREA >= FS_DATA_MAX + FS_HEADROOM, "any request and answer fits");

int fs_trunk_new(struct fs *fs, int sock, struct fs_trunk **ret, struct err *err)
{
	struct fs_trunk *t = xcalloc(1, sizeof(*t));
	pthread_rwlockattr_t writers_first;
	pthread_condattr_t attr;
	int r;

	t->fs = fs;
	t->sock = sock;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_rwlockattr_init(&writers_first);
	pthread_rwlockattr_setkind_np(&writers_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	r = pthread_mutex_init(&t->lock, NULL);
	if (!r)
		r = pthread_cond_init(&t->answered, &attr);
	if (!r)
		r = pthread_rwlock_init(&t->requests, &writers_first);
	pthread_condattr_destroy(&attr);
	pthread_rwlockattr_destroy(&writers_first);
	if (r) {
		close(sock);
		free(t);
		return err_set(err, -r, "create the locks of the channel");
	}
	*ret = t;
	return 0;
}

void fs_trunk_free(struct fs_trunk *t)
{
	if (!t)
		return;
	if (t->mem)
		munmap(t->mem, (size_t)t->nr_links * FS_CHANNEL_SLOT);
	for (unsigned int i = 0; i < t->nr_links; i++)
		close(t->links[i]);
	close(t->sock);
	free(t->state);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->answered);
	pthread_rwlock_destroy(&t->requests);
	free(t);
}

/* A file that cannot become shorter under our mapping: no access to it ends this process. */
static int fs_trunk_check_memory(int fd, unsigned int nr_links, struct err *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return err_say(err, -EINVAL,
			       "the channel's memory is not sealed against shrinking");
	if (fstat(fd, &st) < 0)
		return err_set(err, -errno, "look at the channel's memory");
	if ((uint64_t)st.st_size < (uint64_t)nr_links * FS_CHANNEL_SLOT)
		return err_say(err, -EINVAL, "the channel's memory is too small for %u links",
			       nr_links);
	return 0;
}

static int fs_trunk_map(struct fs_trunk *t, int fd, unsigned int nr_links, struct err *err)
{
	int r = fs_trunk_check_memory(fd, nr_links, err);
	void *mem;

	if (r)
		return r;
	mem = mmap(NULL, (size_t)nr_links * FS_CHANNEL_SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		   0);
	if (mem == MAP_FAILED)
		return err_set(err, -errno, "map the channel's memory");
	t->mem = mem;
	return 0;
}

/*
 * harpoon-vmm has made the links, so it is their peer, by its number in our namespace. A lie would cost its own guest events,
 * of one process.
 */
static void fs_trunk_know_peer(struct fs_trunk *t)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (!getsockopt(t->links[0], SOL_SOCKET, SO_PEERCRED, &peer, &len) && peer.pid > 0)
		fs_events_except(t->fs, peer.pid);
}

/* fds: the memory file, then the links; all are taken over. */
static int fs_trunk_hello(struct fs_trunk *t, int *fds, size_t nr_fds, unsigned int max_links,
			  struct err *err)
{
	int r = 0;

	if (t->nr_links)
		r = err_say(err, -EPROTO, "harpoon-vmm said hello twice");
	else if (t->in.msg.arg != FS_CHANNEL_VERSION)
		r = err_say(err, -EPROTO, "harpoon-vmm speaks version %llu of the channel, not %d",
			    (unsigned long long)t->in.msg.arg, FS_CHANNEL_VERSION);
	else if (nr_fds < 2 || nr_fds - 1 > max_links)
		r = err_say(err, -E2BIG, "harpoon-vmm wants %zu links; there are workers for %u",
			    nr_fds ? nr_fds - 1 : 0, max_links);
	else
		r = fs_trunk_map(t, fds[0], (unsigned int)nr_fds - 1, err);
	if (!r) {
		t->nr_links = (unsigned int)nr_fds - 1;
		for (unsigned int i = 0; i < t->nr_links; i++)
			t->links[i] = take_fd(&fds[i + 1]);
		fs_trunk_know_peer(t);
	}
	return r;
}

static int fs_trunk_answer(struct fs_trunk *t, const struct fs_trunk_msg *msg, const void *data)
{
	cleanup_free uint8_t *out = xmalloc(sizeof(*msg) + msg->len);

	memcpy(out, msg, sizeof(*msg));
	if (msg->len)
		memcpy(out + sizeof(*msg), data, msg->len);
	return io_send_fds(t->sock, out, sizeof(*msg) + msg->len, NULL, 0);
}

static int fs_trunk_answer_plain(struct fs_trunk *t, uint32_t type, int error)
{
	return fs_trunk_answer(t, &(struct fs_trunk_msg){.type = type, .error = error}, NULL);
}

static void fs_trunk_drop_state(struct fs_trunk *t)
{
	free(t->state);
	t->state = NULL;
	t->state_len = 0;
}

/* A request that waits for changes by others would keep us waiting. */
static void fs_trunk_lock_out_requests(struct fs_trunk *t)
{
	fs_events_interrupt(t->fs);
	pthread_rwlock_wrlock(&t->requests);
}

static void fs_trunk_complain(struct fs_trunk *t, const char *what, int error)
{
	if (error && t->complain)
		t->complain(t->complain_ctx, what, error);
}

static int fs_trunk_save(struct fs_trunk *t)
{
	struct fs_trunk_msg msg = {.type = FS_TRUNK_SAVE};
	uint64_t from = t->in.msg.arg;
	const uint8_t *data = NULL;
	int r;

	if (!from) {
		fs_trunk_drop_state(t);
		fs_trunk_lock_out_requests(t);
		msg.error = fs_state_save(t->fs, &t->state, &t->state_len);
		pthread_rwlock_unlock(&t->requests);
		fs_trunk_complain(t, "save", msg.error);
	}
	if (!msg.error && from > t->state_len)
		msg.error = -EINVAL;
	if (!msg.error) {
		msg.arg = t->state_len;
		msg.len = (uint32_t)MIN(t->state_len - from, (size_t)FS_TRUNK_DATA_MAX);
		data = t->state + from;
	}
	r = fs_trunk_answer(t, &msg, data);
	/* All of it was told. */
	if (!msg.error && from + msg.len == t->state_len)
		fs_trunk_drop_state(t);
	return r;
}

static int fs_trunk_load_state(struct fs_trunk *t)
{
	int r;

	fs_trunk_lock_out_requests(t);
	r = fs_state_load(t->fs, t->state, t->state_len);
	pthread_rwlock_unlock(&t->requests);
	fs_trunk_complain(t, "restore", r);
	return r;
}

static int fs_trunk_load(struct fs_trunk *t)
{
	uint64_t left = t->in.msg.arg;
	int r = 0;

	if (left > FS_TRUNK_STATE_MAX || t->state_len + t->in.msg.len + left > FS_TRUNK_STATE_MAX) {
		r = -E2BIG;
	} else {
		t->state = xrealloc(t->state, t->state_len + t->in.msg.len + 1);
		memcpy(t->state + t->state_len, t->in.data, t->in.msg.len);
		t->state_len += t->in.msg.len;
		if (!left)
			r = fs_trunk_load_state(t);
	}
	if (r || !left)
		fs_trunk_drop_state(t);
	return fs_trunk_answer_plain(t, FS_TRUNK_LOAD, r);
}

static void fs_trunk_revoked(struct fs_trunk *t)
{
	pthread_mutex_lock(&t->lock);
	/* An answer that comes too late finds another number or none. */
	if (t->revoking == t->in.msg.arg) {
		t->revoking = 0;
		pthread_cond_broadcast(&t->answered);
	}
	pthread_mutex_unlock(&t->lock);
}

static int fs_trunk_obey(struct fs_trunk *t, int *fds, size_t nr_fds, unsigned int max_links,
			 struct err *err)
{
	int r;

	if (nr_fds && t->in.msg.type != FS_TRUNK_HELLO)
		return err_say(err, -EPROTO, "harpoon-vmm sent descriptors without need");
	switch (t->in.msg.type) {
	case FS_TRUNK_HELLO:
		r = fs_trunk_hello(t, fds, nr_fds, max_links, err);
		(void)fs_trunk_answer_plain(t, FS_TRUNK_HELLO, r);
		return r;
	case FS_TRUNK_SAVE:
		r = fs_trunk_save(t);
		break;
	case FS_TRUNK_LOAD:
		r = fs_trunk_load(t);
		break;
	case FS_TRUNK_REVOKE:
		fs_trunk_revoked(t);
		return 0;
	case FS_TRUNK_INTERRUPT:
		fs_events_interrupt(t->fs);
		return 0;
	default:
		return err_say(err, -EPROTO, "harpoon-vmm sent an unknown message (%u)",
			       t->in.msg.type);
	}
	return r && r != -EPIPE ? err_set(err, r, "answer harpoon-vmm") : 0;
}

int fs_trunk_handle(struct fs_trunk *t, unsigned int max_links, struct err *err)
{
	int fds[IO_FDS_MAX], r;
	size_t nr_fds = ARRAY_SIZE(fds);
	ssize_t n = io_recv_fds(t->sock, &t->in, sizeof(t->in), fds, &nr_fds);

	if (!n || n == -ECONNRESET)
		return 0;
	if (n < 0)
		return err_set(err, (int)n, "receive from harpoon-vmm");
	if ((size_t)n < sizeof(t->in.msg) || t->in.msg.len != (size_t)n - sizeof(t->in.msg) ||
	    t->in.msg.len > FS_TRUNK_DATA_MAX)
		r = err_say(err, -EPROTO, "harpoon-vmm sent a message of %zd bytes", n);
	else
		r = fs_trunk_obey(t, fds, nr_fds, max_links, err);
	for (size_t i = 0; i < nr_fds; i++)
		cleanup_closep(&fds[i]);
	return r ? r : 1;
}

int fs_trunk_revoke(void *ctx, uint64_t export_id)
{
	struct fs_trunk_msg msg = {.type = FS_TRUNK_REVOKE, .arg = export_id};
	struct fs_trunk *t = ctx;
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += FS_QUIESCE_MS / 1000;
	pthread_mutex_lock(&t->lock);
	t->revoking = export_id;
	/* Without a peer there is nobody to wait for. */
	if (io_send_fds(t->sock, &msg, sizeof(msg), NULL, 0) < 0)
		t->revoking = 0;
	while (!r && t->revoking)
		r = -pthread_cond_timedwait(&t->answered, &t->lock, &until);
	t->revoking = 0;
	pthread_mutex_unlock(&t->lock);
	return r ? -EBUSY : 0;
}

static int fs_link_answer(int sock, size_t len, const struct fs_opened *opened)
{
	struct fs_link_reply reply = {.len = (uint32_t)len};
	int r = -ETOOMANYREFS;

	if (opened->fd >= 0) {
		reply.opened = 1;
		reply.fh = opened->fh;
		reply.node_id = opened->node_id;
		reply.export_id = opened->export_id;
		r = io_send_fds(sock, &reply, sizeof(reply), &opened->fd, 1);
	}
	if (r != -ETOOMANYREFS)
		return r;
	/* Nothing was opened, or the kernel carries no more descriptors: the file works without. */
	reply = (struct fs_link_reply){.len = (uint32_t)len};
	return io_send_fds(sock, &reply, sizeof(reply), NULL, 0);
}

int fs_link_serve(struct fs_trunk *t, struct fs_worker *w, int sock, uint8_t *slot)
{
	struct {
		struct fs_link_request req;
		uint8_t more;
	} in;
	struct iovec req = {.iov_base = slot}, reply = {.iov_base = slot + FS_CHANNEL_AREA};
	struct fs_opened opened;
	size_t nr_fds = 0, len;
	ssize_t n = io_recv_fds(sock, &in, sizeof(in), NULL, &nr_fds);
	int r;

	if (!n || n == -ECONNRESET)
		return 0;
	if (n < 0)
		return (int)n;
	if (n != sizeof(in.req) || in.req.len > FS_CHANNEL_AREA)
		return -EPROTO;
	req.iov_len = in.req.len;
	reply.iov_len = MIN(in.req.room, FS_CHANNEL_AREA);
	pthread_rwlock_rdlock(&t->requests);
	len = fs_worker_begin(w, &req, 1, &reply, 1, &opened);
	r = fs_link_answer(sock, len, &opened);
	fs_worker_end(w);
	pthread_rwlock_unlock(&t->requests);
	if (r == -EPIPE || r == -ECONNRESET)
		return 0;
	return r ? r : 1;
}
