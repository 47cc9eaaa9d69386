/*
 * The host's half of relayed connections; see relay.h.
 *
 * One Accept call is always under way at the agent, with the number of the stream that the next connection is to
 * be. Its answer names a place; a connection is made to it, and when that stands (at once for unix sockets) it is
 * attached to the stream. A place that cannot be reached: the stream is attached to nothing, which the guest's
 * process sees as end of file.
 *
 * Who connects to a unix socket is seen by the server on its other end (SO_PEERCRED) and checked against the
 * socket's mode. So the shim, which is root, connects as the user of the container's process. The guest is not
 * asked who its process is: it could say root.
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "cleanup.h"
#include "list.h"
#include "log.h"
#include "netns.h"
#include "vmreq.h"

#define RELAY_DNS_PORT 53
#define RELAY_CONNECT_NS 5000000000ull

struct relay_place {
	struct list link;
	uint32_t id;
	bool announced;
	int path_fd;  /* a unix socket, else -1 */
	int netns_fd; /* where `ip` is, else -1 */
	struct rtnl_ip ip;
};

struct relay {
	struct loop *loop;
	const struct oci_spec *spec;
	struct list places;  /* struct relay_place */
	uint32_t nr_servers; /* name servers among them */
	struct list conns;   /* struct relay_conn, on their way */
	size_t nr_conns;     /* those, and streams */
	struct hv_vm *vm;    /* NULL before the start */
	struct agent_client *agent;
	uint32_t *next_stream;
	uint32_t stream; /* of the Accept under way, 0 = none */
};

struct relay_conn {
	struct list link;
	struct relay *relay;
	uint32_t stream;
	int fd;
	struct loop_watch *watch;
	struct loop_timer timer;
};

struct relay *relay_new(struct loop *loop, const struct oci_spec *spec)
{
	struct relay *r = xcalloc(1, sizeof(*r));

	r->loop = loop;
	r->spec = spec;
	list_init(&r->places);
	list_init(&r->conns);
	return r;
}

static void relay_conn_free(struct relay_conn *c)
{
	list_remove(&c->link);
	loop_timer_cancel(&c->timer);
	loop_watch_remove(c->watch);
	cleanup_closep(&c->fd);
	free(c);
}

void relay_stop(struct relay *r)
{
	struct relay_conn *c;

	if (!r)
		return;
	r->agent = NULL;
	list_for_each (c, &r->conns, link)
		relay_conn_free(c);
}

void relay_free(struct relay *r)
{
	struct relay_place *p;

	if (!r)
		return;
	relay_stop(r);
	list_for_each (p, &r->places, link) {
		cleanup_closep(&p->path_fd);
		cleanup_closep(&p->netns_fd);
		free(p);
	}
	free(r);
}

static struct relay_place *relay_add(struct relay *r, uint32_t id)
{
	struct relay_place *p = xcalloc(1, sizeof(*p));

	p->id = id;
	p->path_fd = p->netns_fd = -1;
	list_append(&r->places, &p->link);
	return p;
}

int relay_add_socket(struct relay *r, uint32_t id, int path_fd, struct err *err)
{
	cleanup_close int fd = path_fd;

	if (!id || id > RELAY_SOCKETS_MAX)
		return err_say(err, -E2BIG, "sockets can be the first %d mounts only",
			       RELAY_SOCKETS_MAX);
	relay_add(r, id)->path_fd = take_fd(&fd);
	return 0;
}

int relay_add_name_server(struct relay *r, int netns_fd, const struct rtnl_ip *ip, struct err *err)
{
	cleanup_close int fd = fcntl(netns_fd, F_DUPFD_CLOEXEC, 3);
	struct relay_place *p;

	if (fd < 0)
		return err_set(err, -errno, "keep the network namespace");
	p = relay_add(r, RELAY_SOCKETS_MAX + ++r->nr_servers);
	p->netns_fd = take_fd(&fd);
	p->ip = *ip;
	return 0;
}

/* ---- connections ---- */

/* An id of the container as the host's, for a container with a user namespace. */
static int64_t relay_map_id(const struct oci_id_mapping *maps, size_t nr, uint32_t id)
{
	if (!nr)
		return id;
	for (size_t i = 0; i < nr; i++)
		if (id >= maps[i].container_id && id - maps[i].container_id < maps[i].size)
			return (int64_t)maps[i].host_id + (id - maps[i].container_id);
	return -1;
}

/* Could we not become root again, everything would go wrong later: better at once. */
static void relay_become_root(const gid_t *groups, int nr_groups)
{
	if (!seteuid(0) && !setegid(0) && !setgroups((size_t)nr_groups, groups))
		return;
	log_err("relay", "become root again: %s", strerror(errno));
	abort();
}

static int relay_connect_as(int fd, const struct sockaddr_un *to, uid_t uid, gid_t gid,
			    const gid_t *groups, size_t nr_groups)
{
	int nr_own = getgroups(0, NULL);
	cleanup_free gid_t *own = xcalloc(nr_own > 0 ? (size_t)nr_own : 1, sizeof(*own));
	int r = 0;

	if (nr_own < 0 || getgroups(nr_own, own) < 0)
		return -errno;
	if (setgroups(nr_groups, groups) || setegid(gid) || seteuid(uid) ||
	    connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		r = -errno;
	relay_become_root(own, nr_own);
	return r;
}

static int relay_connect_socket(const struct relay *r, const struct relay_place *p)
{
	const struct oci_process *user = &r->spec->process;
	int64_t uid = relay_map_id(r->spec->uid_mappings, r->spec->nr_uid_mappings, user->uid);
	int64_t gid = relay_map_id(r->spec->gid_mappings, r->spec->nr_gid_mappings, user->gid);
	cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	cleanup_free gid_t *groups = xcalloc(user->nr_additional_gids + 1, sizeof(*groups));
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t nr = 0;
	int e;

	if (fd < 0)
		return -errno;
	if (uid < 0 || gid < 0)
		return -EPERM;
	for (size_t i = 0; i < user->nr_additional_gids; i++) {
		int64_t g = relay_map_id(r->spec->gid_mappings, r->spec->nr_gid_mappings,
					 user->additional_gids[i]);

		if (g >= 0)
			groups[nr++] = (gid_t)g;
	}
	snprintf(to.sun_path, sizeof(to.sun_path), "/proc/self/fd/%d", p->path_fd);
	e = relay_connect_as(fd, &to, (uid_t)uid, (gid_t)gid, groups, nr);
	return e ? e : take_fd(&fd);
}

static int relay_open_inet(void *ctx, struct err *err)
{
	const struct relay_place *p = ctx;
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(RELAY_DNS_PORT)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(RELAY_DNS_PORT)};
	bool is_v4 = p->ip.len == 4;
	cleanup_close int fd =
		socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const void *to = is_v4 ? (const void *)&v4 : (const void *)&v6;

	memcpy(&v4.sin_addr, p->ip.bytes, sizeof(v4.sin_addr));
	memcpy(&v6.sin6_addr, p->ip.bytes, sizeof(v6.sin6_addr));
	if (fd < 0)
		return -errno;
	if (connect(fd, to, is_v4 ? sizeof(v4) : sizeof(v6)) && errno != EINPROGRESS)
		return -errno;
	return take_fd(&fd);
}

static void relay_next(struct relay *r);

static void relay_stream_done(void *ctx, int err)
{
	struct relay *r = ctx;

	r->nr_conns--;
	/* The VM may be on its way out: then its agent is gone first, and nothing is asked. */
	relay_next(r);
}

/* fd -1: nothing to join, the guest's process sees the end. */
static void relay_attach(struct relay *r, uint32_t stream, int fd)
{
	struct err err = {0};

	if (!hv_vm_attach_stream(r->vm, stream, fd, fd, relay_stream_done, r, NULL, &err))
		return;
	r->nr_conns--;
	log_warn("relay", "%s", err.msg);
}

static void relay_conn_over(struct relay_conn *c, int fd)
{
	struct relay *r = c->relay;
	uint32_t stream = c->stream;

	relay_conn_free(c);
	relay_attach(r, stream, fd);
}

static void relay_on_connected(void *ctx, uint32_t events)
{
	struct relay_conn *c = ctx;
	socklen_t len = sizeof(int);
	int e = 0, fd = -1;

	if (!getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len) && !e)
		fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 3);
	relay_conn_over(c, fd);
}

static void relay_on_timeout(void *ctx)
{
	relay_conn_over(ctx, -1);
}

/* Owns fd. */
static void relay_await(struct relay *r, uint32_t stream, int fd)
{
	struct relay_conn *c = xcalloc(1, sizeof(*c));

	c->relay = r;
	c->stream = stream;
	c->fd = fd;
	list_append(&r->conns, &c->link);
	c->watch = loop_watch_add(r->loop, fd, EPOLLOUT, relay_on_connected, c);
	if (!c->watch)
		relay_conn_over(c, -1);
	else
		loop_timer_arm(r->loop, &c->timer, RELAY_CONNECT_NS, relay_on_timeout, c);
}

static void relay_connect(struct relay *r, uint32_t id, uint32_t stream)
{
	struct relay_place *p;
	int fd = -ENOENT;

	r->nr_conns++;
	list_for_each (p, &r->places, link) {
		if (p->id != id || !p->announced)
			continue;
		fd = p->path_fd >= 0 ? relay_connect_socket(r, p)
				     : netns_run_in(p->netns_fd, relay_open_inet, p, NULL);
		if (fd >= 0 && p->path_fd < 0) {
			relay_await(r, stream, fd);
			return;
		}
	}
	if (fd < 0)
		log_info("relay", "place %u: %s", id, strerror(-fd));
	relay_attach(r, stream, fd < 0 ? -1 : fd);
}

static void relay_accepted(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			   const char *message)
{
	const VMREQ_PB(AcceptResponse) *a = (const void *)response;
	struct relay *r = ctx;
	uint32_t stream = r->stream;

	r->stream = 0;
	if (code == RPC_UNAVAILABLE || code == RPC_CANCELED) {
		r->agent = NULL;
		return;
	}
	if (code != RPC_OK) {
		log_warn("relay", "no more connections are taken: %s", message);
		r->agent = NULL;
		return;
	}
	relay_connect(r, a->id, stream);
	relay_next(r);
}

static void relay_next(struct relay *r)
{
	VMREQ_PB(AcceptRequest) req = HARPOON__AGENT__V1__ACCEPT_REQUEST__INIT;

	if (!r->agent || r->stream || r->nr_conns >= RELAY_CONNS_MAX)
		return;
	r->stream = req.stream = (*r->next_stream)++;
	agent_client_call(r->agent, AGENT_ACCEPT, &req.base, 0, relay_accepted, r);
}

/* ---- places ---- */

static void relay_listened(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
			   const char *message)
{
	if (code != RPC_OK && code != RPC_UNAVAILABLE && code != RPC_CANCELED)
		log_warn("relay", "the guest cannot listen: %s", message);
}

static void relay_announce(struct relay *r, struct relay_place *p)
{
	VMREQ_PB(ListenRequest) req = HARPOON__AGENT__V1__LISTEN_REQUEST__INIT;
	struct stat st;

	req.id = p->id;
	if (p->path_fd >= 0 && !fstat(p->path_fd, &st)) {
		req.mode = st.st_mode & 0777;
		req.uid = st.st_uid;
		req.gid = st.st_gid;
	} else {
		req.address.data = p->ip.bytes;
		req.address.len = p->ip.len;
		req.port = RELAY_DNS_PORT;
		req.dns = true;
	}
	p->announced = true;
	agent_client_call(r->agent, AGENT_LISTEN, &req.base, 0, relay_listened, NULL);
}

void relay_start(struct relay *r, struct hv_vm *vm, struct agent_client *agent,
		 uint32_t *next_stream)
{
	struct relay_place *p;

	if (list_is_empty(&r->places))
		return;
	r->vm = vm;
	r->agent = agent;
	r->next_stream = next_stream;
	list_for_each (p, &r->places, link)
		if (!p->announced)
			relay_announce(r, p);
	relay_next(r);
}
