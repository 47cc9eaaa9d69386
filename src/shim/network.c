/*
 * The network of a container; see network.h.
 *
 * What may outlive us is the ingress traffic control of interfaces in a namespace that somebody else holds; taps
 * go with the VM's process, or with the namespace if it is the VM's own. With its tap gone, a redirect drops
 * everything, so it must not stay: it is taken away when the VM has ended, and by the `delete` command after a
 * crash, which finds the namespace by the path noted in <state>/network. A namespace without a path is the VM's
 * own and goes with it.
 */
#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "log.h"
#include "netns.h"
#include "netread.h"
#include "tap.h"
#include "usernet.h"

#define NETWORK_FILE "network"
#define NETWORK_FILE_MAX 8192

struct network {
	enum network_mode mode;
	int netns_fd;	   /* owned */
	const char *path;  /* of the namespace, the spec's; NULL = it has none */
	struct nl_sock nl; /* of the namespace */
	struct hv_nic nics[HV_NICS_MAX];
	int taps[HV_NICS_MAX]; /* their numbers */
	size_t nr_nics;
	struct usernet *usernet; /* NETWORK_HOST; NULL = loopback only */
	int joined[HV_NICS_MAX]; /* interfaces with our traffic control */
	size_t nr_joined;
};

static void network_freep(struct network **n)
{
	network_free(*n);
}

static int network_open_netns(struct network *n, const struct oci_spec *spec, struct err *err)
{
	const struct oci_namespace *ns = oci_spec_namespace(spec, CLONE_NEWNET);

	if (ns && !ns->path) {
		n->mode = NETWORK_OWN;
		n->netns_fd = netns_make(err);
	} else {
		n->path = ns ? ns->path : NULL;
		n->mode = NETWORK_JOINED;
		n->netns_fd = netns_open(ns ? ns->path : "/proc/self/ns/net", err);
		if (n->netns_fd >= 0 && netns_is_own(n->netns_fd))
			n->mode = NETWORK_HOST;
	}
	return n->netns_fd < 0 ? n->netns_fd : 0;
}

static int network_open_taps(void *ctx, struct err *err)
{
	struct network *n = ctx;
	int r = nl_open(&n->nl, NETLINK_ROUTE, err);

	for (size_t i = 0; i < n->nr_nics && !r; i++) {
		/*
		 * A process that closes a tap for good waits twice for all of the kernel's RCU callbacks, 15 to 40 ms, and
		 * nobody has heard of the VM's end before that. With a namespace that is ours they go just as well, and
		 * nobody waits.
		 */
		int fd = tap_open(n->mode == NETWORK_OWN, &n->taps[i], err);

		n->nics[i] = (struct hv_nic){.kind = HV_NIC_TAP, .fd = fd};
		r = fd < 0 ? fd : 0;
	}
	return r;
}

int network_new(const struct oci_spec *spec, const struct config *config, struct network **ret,
		struct err *err)
{
	cleanup(network_freep) struct network *n = xcalloc(1, sizeof(*n));
	int r;

	n->nl.fd = n->netns_fd = -1;
	for (size_t i = 0; i < HV_NICS_MAX; i++)
		n->nics[i].fd = -1;
	r = network_open_netns(n, spec, err);
	if (r)
		return r;
	if (n->mode == NETWORK_HOST) {
		r = usernet_new(config, &n->usernet, err);
		if (n->usernet)
			n->nics[n->nr_nics++] = usernet_nic(n->usernet);
	} else {
		n->nr_nics = config->nics;
		r = netns_run_in(n->netns_fd, network_open_taps, n, err);
	}
	if (r)
		return err_wrap(err, "network devices of the VM");
	*ret = take_ptr(&n);
	return 0;
}

static void network_disconnect(struct network *n)
{
	struct err err = {0};

	for (size_t i = 0; i < n->nr_joined; i++) {
		int r = tap_part(&n->nl, n->joined[i], &err);

		/* Mostly the interface has gone with its other end. */
		if (r && r != -ENODEV && r != -ENOENT && r != -EINVAL)
			log_warn("network", "%s", err.msg);
	}
	n->nr_joined = 0;
}

void network_free(struct network *n)
{
	if (!n)
		return;
	network_disconnect(n);
	network_vm_started(n);
	usernet_free(n->usernet);
	nl_close(&n->nl);
	cleanup_closep(&n->netns_fd);
	free(n);
}

enum network_mode network_mode(const struct network *n)
{
	return n->mode;
}

int network_netns(const struct network *n)
{
	return n->netns_fd;
}

const struct hv_nic *network_nics(const struct network *n, size_t *ret_nr)
{
	*ret_nr = n->nr_nics;
	return n->nics;
}

const struct hv_helper *network_helper(const struct network *n)
{
	return n->usernet ? usernet_helper(n->usernet) : NULL;
}

void network_vm_started(struct network *n)
{
	if (n->usernet) {
		usernet_vm_started(n->usernet);
		n->nics[0].fd = -1;
	}
	for (size_t i = 0; i < n->nr_nics; i++)
		cleanup_closep(&n->nics[i].fd);
}

/* Before anything is done, so that what is done is always noted. */
static int network_note(const struct network *n, const struct netread *p, int state_fd,
			struct err *err)
{
	char text[NETWORK_FILE_MAX];
	struct netns_id id;
	int len, r = netns_identify(n->netns_fd, &id);

	if (r)
		return err_set(err, r, "look at the network namespace");
	if (!n->path)
		return 0;
	len = snprintf(text, sizeof(text), "%ju %ju %s\n", (uintmax_t)id.dev, (uintmax_t)id.ino,
		       n->path);
	for (size_t i = 0; i < p->nr_links && len < (int)sizeof(text); i++)
		len += snprintf(text + len, sizeof(text) - (size_t)len, "%d\n",
				p->links[i].ifindex);
	if (len >= (int)sizeof(text) || strchr(n->path, '\n'))
		return err_say(err, -ENAMETOOLONG, "the network namespace's path cannot be noted");
	r = io_replace_file(state_fd, NETWORK_FILE, text, (size_t)len);
	return r ? err_set(err, r, "note the network namespace") : 0;
}

static int network_join(struct network *n, size_t nic, const struct rtnl_link *l, struct err *err)
{
	int r = tap_raise(&n->nl, n->taps[nic], l->mtu, err);

	if (!r)
		r = tap_join(&n->nl, n->taps[nic], l->ifindex, l->name, err);
	if (r == -EEXIST)
		return err_say(err, -EBUSY,
			       "interface '%s' of the network namespace has ingress traffic "
			       "control already: a container in another VM uses it (two VMs cannot "
			       "share an interface), or somebody shapes it",
			       l->name);
	if (!r)
		n->joined[n->nr_joined++] = l->ifindex;
	return r;
}

static void network_log(const struct netread *p)
{
	for (size_t i = 0; i < p->nr_links; i++)
		log_info("network", "interface '%s' (mtu %u) is the VM's device %zu",
			 p->links[i].name, p->links[i].mtu, i);
	if (p->nr_links)
		log_info("network", "%zu addresses, %zu routes, %zu neighbours", p->nr_addrs,
			 p->nr_routes, p->nr_neighs);
}

int network_connect(struct network *n, int state_fd, VMREQ_PB(NetworkRequest) * *ret,
		    struct err *err)
{
	cleanup(netread_done) struct netread p = {0};
	int r;

	*ret = NULL;
	if (!n->nr_nics)
		return 0;
	if (n->usernet) {
		*ret = usernet_request(n->usernet);
		return 0;
	}
	r = netread_take(&n->nl, n->taps, n->nr_nics, &p, err);
	if (r)
		return r;
	if (p.nr_links > n->nr_nics)
		return err_say(err, -ENOSPC,
			       "the network namespace has %zu interfaces and the VM %zu network "
			       "devices: raise 'nics' of harpoon.conf",
			       p.nr_links, n->nr_nics);
	if (p.nr_links)
		r = network_note(n, &p, state_fd, err);
	for (size_t i = 0; i < p.nr_links && !r; i++)
		r = network_join(n, i, &p.links[i], err);
	if (r) {
		network_disconnect(n);
		return r;
	}
	network_log(&p);
	*ret = netread_request(&p, n->nr_nics);
	return 0;
}

/* ---- after a crash ---- */

static int network_open_nl(void *ctx, struct err *err)
{
	return nl_open(ctx, NETLINK_ROUTE, err);
}

/* The namespace that was noted, if its path still leads there. */
static int network_find_noted(char *line)
{
	struct netns_id id;
	char *end;
	uintmax_t dev = strtoumax(line, &end, 10), ino = strtoumax(end, &end, 10);
	cleanup_close int fd = -1;

	if (end[0] != ' ' || end[1] != '/')
		return -EINVAL;
	fd = netns_open(end + 1, NULL);
	if (fd < 0 || netns_identify(fd, &id) || id.dev != (dev_t)dev || id.ino != (ino_t)ino ||
	    netns_is_own(fd))
		return -ENOENT;
	return take_fd(&fd);
}

void network_clean_up(int state_fd)
{
	cleanup_free char *text = NULL;
	cleanup_close int fd = -1;
	struct nl_sock nl = {.fd = -1};
	char *save = NULL, *line;

	if (io_read_file(state_fd, NETWORK_FILE, NETWORK_FILE_MAX, &text, NULL))
		return;
	line = strtok_r(text, "\n", &save);
	fd = line ? network_find_noted(line) : -1;
	if (fd < 0 || netns_run_in(fd, network_open_nl, &nl, NULL))
		return;
	while ((line = strtok_r(NULL, "\n", &save))) {
		long ifindex = strtol(line, NULL, 10);

		if (ifindex > 0 && ifindex <= INT32_MAX)
			tap_part(&nl, (int)ifindex, NULL);
	}
	nl_close(&nl);
}
