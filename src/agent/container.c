/*
 * Containers: creation, start, the order in which exits are reported, deletion.
 *
 * Order: execs of a container are reported before its init. With an own pid namespace the kernel sees to
 * it (init cannot be reaped before everything in its namespace was); without one the agent kills the
 * cgroup when init is gone and holds init's report back until the execs are reaped.
 *
 * Deletion: kill the cgroup, wait until every process is reaped and the cgroup is empty (its
 * cgroup.events tells), remove it, answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent_sys.h"
#include "cgroup.h"
#include "cleanup.h"
#include "log.h"
#include "state.h"

struct container *container_find(struct agent *a, const char *id, struct err *err)
{
	struct container *c;

	list_for_each (c, &a->containers, link)
		if (!strcmp(c->id, id))
			return c;
	err_say(err, -ENOENT, "container '%s' does not exist", id);
	return NULL;
}

static struct process *container_find_exec(struct container *c, const char *exec_id)
{
	struct process *p;

	list_for_each (p, &c->execs, link)
		if (!strcmp(p->id, exec_id))
			return p;
	return NULL;
}

struct process *container_find_process(struct container *c, const char *exec_id, struct err *err)
{
	struct process *p = exec_id[0] ? container_find_exec(c, exec_id) : &c->init;

	if (!p)
		err_say(err, -ENOENT, "process '%s' of container '%s' does not exist", exec_id,
			c->id);
	return p;
}

struct process *container_find_pid(struct agent *a, pid_t pid)
{
	struct container *c;
	struct process *p;

	list_for_each (c, &a->containers, link) {
		if (c->init.pid == pid && !c->init.is_reaped)
			return &c->init;
		list_for_each (p, &c->execs, link)
			if (p->pid == pid && !p->is_reaped)
				return p;
	}
	return NULL;
}

static struct id_map container_copy_map(AGENT_PB(IdMapping) *const *v, size_t nr)
{
	struct id_map m = {.v = xcalloc(nr, sizeof(*m.v)), .nr = nr};

	for (size_t i = 0; i < nr; i++)
		m.v[i] = (struct id_range){v[i]->container_id, v[i]->host_id, v[i]->size};
	return m;
}

static struct container *container_new(struct agent *a, const AGENT_PB(CreateContainerRequest) * r)
{
	struct container *c = xcalloc(1, sizeof(*c));

	c->agent = a;
	memcpy(c->id, r->id, strnlen(r->id, REQUEST_ID_MAX));
	c->cgroup_fd = -1;
	c->events_fd = -1;
	c->oom_fd = -1;
	/* Its mounts and its place among cgroups are always its own. */
	c->namespaces = r->namespaces | CLONE_NEWNS | CLONE_NEWCGROUP;
	c->takes_spare = spare_fits(&a->spare, c->namespaces, r);
	c->cgroup_name = xstrdup(c->takes_spare ? SPARE_CGROUP : c->id);
	c->uids = container_copy_map(r->uid_mappings, r->n_uid_mappings);
	c->gids = container_copy_map(r->gid_mappings, r->n_gid_mappings);
	process_init(&c->init, c, "");
	list_init(&c->execs);
	list_append(&a->containers, &c->link);
	a->nr_containers++;
	return c;
}

void container_free_exec(struct process *p)
{
	p->container->nr_execs--;
	process_done(p);
	free(p);
}

void container_destroy(struct container *c)
{
	struct process *p;

	if (c->takes_spare)
		spare_drop(&c->agent->spare, c->agent->params);
	list_for_each (p, &c->execs, link)
		container_free_exec(p);
	process_done(&c->init);
	loop_watch_remove(c->events_watch);
	cleanup_closep(&c->events_fd);
	oom_done(c);
	cleanup_closep(&c->cgroup_fd);
	disks_done(&c->disks);
	cgroup_remove(c->agent->params->cgroup_dir, c->cgroup_name);
	list_remove(&c->link);
	c->agent->nr_containers--;
	free(c->cgroup_name);
	free(c->uids.v);
	free(c->gids.v);
	free(c);
}

/* The block device behind a mount's source: the child that mounts it is under the filter, too. */
static bool container_block_device(const char *path, struct devfilter_rule *ret)
{
	struct stat st;

	if (strncmp(path, "/dev/", 5) != 0 || stat(path, &st) || !S_ISBLK(st.st_mode))
		return false;
	*ret = (struct devfilter_rule){S_IFBLK, major(st.st_rdev), minor(st.st_rdev),
				       DEVFILTER_READ | DEVFILTER_WRITE, true};
	return true;
}

static struct devfilter_rule container_device_rule(const AGENT_PB(DeviceRule) * d)
{
	return (struct devfilter_rule){
		.kind = d->type == 'a'	 ? 0
			: d->type == 'b' ? S_IFBLK
					 : S_IFCHR,
		.major = d->major < 0 ? DEVFILTER_ANY : (uint32_t)d->major,
		.minor = d->minor < 0 ? DEVFILTER_ANY : (uint32_t)d->minor,
		.access = d->access,
		.allow = d->allow,
	};
}

/*
 * The spec's rules name the host's devices, and the guest has others by the same numbers: for disks of the VM what is
 * allowed was worked out on the host. The root's own disk is nobody's.
 */
static size_t container_disk_rules(const struct disks *d, struct devfilter_rule *v)
{
	size_t nr = 0;

	for (size_t i = 0; i < d->nr; i++) {
		uint32_t all = DEVFILTER_READ | DEVFILTER_WRITE, some = d->v[i].access & all;

		if (some)
			v[nr++] = (struct devfilter_rule){S_IFBLK, d->v[i].major, d->v[i].minor,
							  some, true};
		if (some != all)
			v[nr++] = (struct devfilter_rule){S_IFBLK, d->v[i].major, d->v[i].minor,
							  all & ~some, false};
	}
	return nr;
}

/* Without rules of its own the filter of the folder above serves. */
static int container_filter_devices(const struct container *c,
				    const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	cleanup_free struct devfilter_rule *v =
		xcalloc(r->n_device_rules + r->n_mounts + 2 * c->disks.nr, sizeof(*v));
	size_t nr = 0;

	for (size_t i = 0; i < r->n_device_rules; i++)
		v[nr++] = container_device_rule(r->device_rules[i]);
	for (size_t i = 0; i < r->n_mounts; i++)
		nr += container_block_device(r->mounts[i]->source, &v[nr]);
	nr += container_disk_rules(&c->disks, &v[nr]);
	return nr ? devfilter_attach_below(c->cgroup_fd, v, nr, &c->agent->channel, err) : 0;
}

/* The spare one's, or a new one. What does not fit the first container does not get a better second one. */
static int container_make_cgroup(struct container *c, struct err *err)
{
	struct agent *a = c->agent;

	if (c->takes_spare) {
		c->cgroup_fd = take_fd(&a->spare.cgroup_fd);
		return 0;
	}
	spare_drop(&a->spare, a->params);
	return cgroup_create(a->params->cgroup_dir, c->cgroup_name, &c->cgroup_fd, err);
}

static int container_build(struct container *c, const AGENT_PB(CreateContainerRequest) * r,
			   struct err *err)
{
	if (container_make_cgroup(c, err) ||
	    cgroup_write_files(c->cgroup_fd, r->cgroup, r->n_cgroup, err) ||
	    disks_prepare(&c->disks, c->agent->params, r, err) ||
	    container_filter_devices(c, r, err))
		return err->code;
	return process_spawn(&c->init, r, r->process, err);
}

int container_create(struct agent *a, const AGENT_PB(CreateContainerRequest) * r,
		     struct rpc_call *call, struct err *err)
{
	struct container *c;

	if (container_find(a, r->id, err))
		return err_say(err, -EEXIST, "container '%s' exists already", r->id);
	if (a->nr_containers >= STATE_CONTAINERS_MAX)
		return err_say(err, -ENOSPC, "this guest has %zu containers already",
			       a->nr_containers);
	c = container_new(a, r);
	if (container_build(c, r, err)) {
		container_destroy(c);
		return err->code;
	}
	c->init.call = call;
	return 0;
}

/* The request lives as long as its call; Start comes later. */
static AGENT_PB(ExecRequest) * container_copy_exec(const AGENT_PB(ExecRequest) * r)
{
	size_t len = harpoon__agent__v1__exec_request__get_packed_size(r);
	cleanup_free uint8_t *data = xmalloc(len);

	harpoon__agent__v1__exec_request__pack(r, data);
	return harpoon__agent__v1__exec_request__unpack(NULL, len, data);
}

int container_add_exec(struct container *c, const AGENT_PB(ExecRequest) * r, struct err *err)
{
	struct process *p;

	if (container_find_exec(c, r->exec_id))
		return err_say(err, -EEXIST, "process '%s' of container '%s' exists already",
			       r->exec_id, c->id);
	if (c->init.state != PROCESS_RUNNING && c->init.state != PROCESS_CREATED)
		return err_say(err, -EBUSY, "container '%s' is not running", c->id);
	if (c->nr_execs >= STATE_EXECS_MAX)
		return err_say(err, -ENOSPC, "container '%s' has %zu execs already", c->id,
			       c->nr_execs);
	p = xcalloc(1, sizeof(*p));
	process_init(p, c, r->exec_id);
	p->request = container_copy_exec(r);
	if (!p->request) {
		free(p);
		return err_say(err, -ENOMEM, "no memory for the exec request");
	}
	list_append(&c->execs, &p->link);
	c->nr_execs++;
	return 0;
}

static int container_start_exec(struct container *c, struct process *p, struct err *err)
{
	if (p->state != PROCESS_DEFINED)
		return err_say(err, -EBUSY, "process '%s' was started already", p->id);
	if (c->init.state != PROCESS_RUNNING || c->init.is_reaped || c->delete_call)
		return err_say(err, -EBUSY, "container %s init process is not running", c->id);
	return process_spawn(p, NULL, p->request->process, err);
}

int container_start(struct container *c, struct process *p, struct rpc_call *call, struct err *err)
{
	int e;

	if (p != &c->init) {
		e = container_start_exec(c, p, err);
	} else {
		if (p->state != PROCESS_CREATED || p->is_reaped || c->delete_call)
			return err_say(err, -EBUSY, "container '%s' is not waiting for its start",
				       c->id);
		e = process_release(p, err);
	}
	if (!e)
		p->call = call;
	return e;
}

static bool container_has_living_exec(const struct container *c)
{
	const struct process *p;

	list_for_each (p, &c->execs, link)
		if (process_is_alive(p))
			return true;
	return false;
}

static void container_on_events(void *ctx, uint32_t events);

/* Watches cgroup.events; reading it is what arms the next notification. */
static int container_watch_events(struct container *c)
{
	char text[256];

	if (c->events_fd < 0)
		c->events_fd = openat(c->cgroup_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (c->events_fd < 0 || pread(c->events_fd, text, sizeof(text), 0) < 0)
		return -errno;
	if (!c->events_watch)
		c->events_watch = loop_watch_add(c->agent->loop, c->events_fd, EPOLLPRI,
						 container_on_events, c);
	return c->events_watch ? 0 : -errno;
}

/* Goes on with a deletion as far as it can. Frees c when it is done. */
static void container_try_delete(struct container *c)
{
	struct rpc_call *call = c->delete_call;
	int e = -EBUSY;

	if (!call || process_is_alive(&c->init) || container_has_living_exec(c))
		return;
	/* Armed first: what empties the cgroup between the two must not be missed. */
	for (int tries = 0; tries < 2 && e == -EBUSY; tries++) {
		e = cgroup_remove(c->agent->params->cgroup_dir, c->cgroup_name);
		if (e == -EBUSY && tries == 0 && container_watch_events(c))
			break;
	}
	if (e == -EBUSY && c->events_watch) {
		cgroup_signal(c->cgroup_fd, SIGKILL);
		return;
	}
	if (e)
		log_warn("container", "cgroup of '%s' cannot be removed: error %d", c->id, -e);
	container_destroy(c);
	rpc_reply_empty(call);
}

static void container_on_events(void *ctx, uint32_t events)
{
	struct container *c = ctx;
	char text[256];

	if (pread(c->events_fd, text, sizeof(text), 0) < 0)
		log_warn("container", "cgroup.events of '%s': error %d", c->id, errno);
	container_try_delete(c);
}

static void container_on_exec_reaped(struct process *p)
{
	struct rpc_call *call = p->delete_call;

	process_report_exit(p);
	if (!call && !p->is_orphan)
		return;
	container_free_exec(p);
	if (call)
		rpc_reply_empty(call);
}

void container_on_reaped(struct container *c, struct process *p)
{
	bool was_building = c->init.state == PROCESS_BUILDING;
	struct rpc_call *call = c->init.call;
	struct err failure;

	if (p != &c->init) {
		container_on_exec_reaped(p);
	} else if (was_building) {
		failure = p->failure;
		p->call = NULL;
		container_destroy(c);
		if (call)
			rpc_fail_err(call, &failure);
		return;
	} else {
		cgroup_signal(c->cgroup_fd, SIGKILL);
	}
	if (c->init.is_reaped && c->init.state != PROCESS_STOPPED &&
	    !container_has_living_exec(c)) {
		/* Whoever hears of the end may switch the machine off. */
		disks_release(&c->disks);
		process_report_exit(&c->init);
	}
	container_try_delete(c);
}

static int container_delete_exec(struct container *c, struct process *p, struct rpc_call *call,
				 struct err *err)
{
	if (p->delete_call)
		return err_say(err, -EBUSY, "process '%s' is being deleted", p->id);
	if (process_is_alive(p)) {
		p->delete_call = call;
		sys_pidfd_send_signal(p->pidfd, SIGKILL);
		return 0;
	}
	container_free_exec(p);
	rpc_reply_empty(call);
	return 0;
}

int container_delete(struct container *c, struct process *p, struct rpc_call *call, struct err *err)
{
	if (c->delete_call)
		return err_say(err, -EBUSY, "container '%s' is being deleted", c->id);
	if (p != &c->init)
		return container_delete_exec(c, p, call, err);
	if (p->state == PROCESS_BUILDING)
		return err_say(err, -EBUSY, "container '%s' is being created", c->id);
	c->delete_call = call;
	cgroup_signal(c->cgroup_fd, SIGKILL);
	container_try_delete(c);
	return 0;
}
