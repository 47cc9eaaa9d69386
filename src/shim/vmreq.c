/*
 * Spec to agent messages; see vmreq.h.
 *
 * Namespaces: the VM is the container's network, so there is no network namespace inside it. A pid
 * namespace is always made: the death of its first process is what ends everything in the container. A
 * namespace named by path belongs to another container, which lives in another VM: the container gets its
 * own instead.
 */
#include "vmreq.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include "hooks.h"
#include "log.h"
#include "util.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
/* proto/agent.proto, DeviceRule: the kernel's BPF_DEVCG_ACC_*. */
#define VMREQ_DEVICE_MKNOD 1u
#define VMREQ_DEVICE_READ 2u
#define VMREQ_DEVICE_WRITE 4u
#define VMREQ_IOPRIO_CLASS_SHIFT 13

#define VMREQ_MIB (1024ull * 1024)
#define VMREQ_NAMESPACES \
	(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWUSER | \
	 CLONE_NEWTIME)

/* ---- size ---- */

static uint32_t vmreq_vcpus(const struct oci_resources *r, uint32_t otherwise)
{
	uint64_t n;

	if (r->cpu_quota <= 0 || !r->cpu_period)
		return otherwise;
	n = ((uint64_t)r->cpu_quota + r->cpu_period - 1) / r->cpu_period;
	return (uint32_t)MIN(MAX(n, 1u), (uint64_t)CONFIG_VCPUS_MAX);
}

uint64_t vmreq_mem_bytes(const struct oci_resources *r, const struct config *config)
{
	uint64_t limit = r->memory_limit > 0 ? (uint64_t)r->memory_limit : 0;
	uint64_t mib = (limit + VMREQ_MIB - 1) / VMREQ_MIB;

	mib = limit ? mib + config->memory_overhead_mib : config->memory_mib;
	return MIN(MAX(mib, (uint64_t)CONFIG_MEM_MIN_MIB), (uint64_t)CONFIG_MEM_MAX_MIB) *
	       VMREQ_MIB;
}

int vmreq_size(const struct oci_spec *spec, struct config *config, struct vmreq_size *ret,
	       struct err *err)
{
	for (size_t i = 0; i < spec->nr_annotations; i++) {
		int r = config_apply_annotation(config, spec->annotations[i].key,
						spec->annotations[i].value, err);

		if (r)
			return r;
	}
	ret->nr_vcpus = oci_spec_annotation(spec, "io.harpoon.vcpus")
				? config->vcpus
				: vmreq_vcpus(&spec->resources, config->vcpus);
	ret->mem_bytes = oci_spec_annotation(spec, "io.harpoon.memory")
				 ? config->memory_mib * VMREQ_MIB
				 : vmreq_mem_bytes(&spec->resources, config);
	return 0;
}

/* ---- checks ---- */

int vmreq_check(const struct oci_spec *spec, struct err *err)
{
	const struct oci_namespace *user = oci_spec_namespace(spec, CLONE_NEWUSER);

	if (!spec->has_process)
		return err_say(err, -EINVAL, "config.json: process is missing");
	if (!spec->root_path)
		return err_say(err, -EINVAL, "config.json: root.path is missing");
	if (spec->hooks[OCI_HOOK_CREATE_CONTAINER].nr)
		return err_say(
			err, -EOPNOTSUPP,
			"config.json: hooks.createContainer: '%.200s' would have to run in the "
			"container's namespaces but from the runtime's file system, which for a "
			"container in a VM is the guest's and holds no programs; createRuntime "
			"hooks run on the host, startContainer hooks in the container",
			spec->hooks[OCI_HOOK_CREATE_CONTAINER].v[0].path);
	if (user && user->path)
		return err_say(err, -EOPNOTSUPP,
			       "config.json: a user namespace by path ('%.200s') cannot be entered "
			       "from inside a VM",
			       user->path);
	return 0;
}

/* ---- messages ---- */

static void vmreq_strings(const struct oci_strv *v, size_t *ret_nr, char ***ret)
{
	*ret_nr = v->nr;
	if (!v->nr)
		return;
	*ret = xcalloc(v->nr, sizeof(**ret));
	for (size_t i = 0; i < v->nr; i++)
		(*ret)[i] = xstrdup(v->v[i]);
}

static char *vmreq_text(const char *s)
{
	return xstrdup(s ? s : "");
}

/* Allocates a repeated field of message pointers, each made and initialised. */
#define vmreq_messages(field, n_field, nr, type, init) \
	do { \
		(n_field) = (nr); \
		(field) = xcalloc((nr), sizeof(*(field))); \
		for (size_t m_i = 0; m_i < (nr); m_i++) { \
			(field)[m_i] = xcalloc(1, sizeof(VMREQ_PB(type))); \
			init((field)[m_i]); \
		} \
	} while (0)

static VMREQ_PB(User) * vmreq_user(const struct oci_process *p)
{
	VMREQ_PB(User) *u = xcalloc(1, sizeof(*u));

	harpoon__agent__v1__user__init(u);
	u->uid = p->uid;
	u->gid = p->gid;
	u->has_umask = p->has_umask;
	u->umask = p->umask;
	u->n_additional_gids = p->nr_additional_gids;
	if (p->nr_additional_gids) {
		u->additional_gids = xcalloc(p->nr_additional_gids, sizeof(uint32_t));
		memcpy(u->additional_gids, p->additional_gids,
		       p->nr_additional_gids * sizeof(uint32_t));
	}
	return u;
}

/* Always present: an absent set would mean "keep all" to the agent, and means "none" in the spec. */
static VMREQ_PB(Capabilities) * vmreq_caps(const struct oci_process *p)
{
	VMREQ_PB(Capabilities) *c = xcalloc(1, sizeof(*c));

	harpoon__agent__v1__capabilities__init(c);
	if (!p->has_caps)
		return c;
	c->bounding = p->caps.bounding;
	c->effective = p->caps.effective;
	c->inheritable = p->caps.inheritable;
	c->permitted = p->caps.permitted;
	c->ambient = p->caps.ambient;
	return c;
}

static VMREQ_PB(Scheduler) * vmreq_scheduler(const struct oci_scheduler *s)
{
	VMREQ_PB(Scheduler) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__scheduler__init(m);
	m->policy = s->policy;
	m->nice = s->nice;
	m->priority = (uint32_t)s->priority;
	m->flags = s->flags;
	m->runtime_ns = s->runtime_ns;
	m->deadline_ns = s->deadline_ns;
	m->period_ns = s->period_ns;
	return m;
}

static VMREQ_PB(Process) * vmreq_process(const struct oci_process *p, const struct oci_spec *spec,
					 const struct taskio *io)
{
	VMREQ_PB(Process) *m = xcalloc(1, sizeof(*m));

	harpoon__agent__v1__process__init(m);
	vmreq_strings(&p->args, &m->n_args, &m->args);
	vmreq_strings(&p->env, &m->n_env, &m->env);
	m->cwd = vmreq_text(p->cwd);
	m->user = vmreq_user(p);
	m->capabilities = vmreq_caps(p);
	vmreq_messages(m->rlimits, m->n_rlimits, p->nr_rlimits, Rlimit,
		       harpoon__agent__v1__rlimit__init);
	for (size_t i = 0; i < p->nr_rlimits; i++) {
		m->rlimits[i]->resource = p->rlimits[i].resource;
		m->rlimits[i]->soft = p->rlimits[i].soft;
		m->rlimits[i]->hard = p->rlimits[i].hard;
	}
	m->no_new_privileges = p->no_new_privileges;
	m->has_oom_score_adj = p->has_oom_score_adj;
	m->oom_score_adj = p->oom_score_adj;
	m->terminal = io->terminal;
	m->console_width = p->console_width;
	m->console_height = p->console_height;
	if (spec->nr_seccomp) {
		m->seccomp_bpf.len = spec->nr_seccomp * sizeof(*spec->seccomp);
		m->seccomp_bpf.data = xmalloc(m->seccomp_bpf.len);
		memcpy(m->seccomp_bpf.data, spec->seccomp, m->seccomp_bpf.len);
		m->seccomp_flags = spec->seccomp_flags;
	}
	m->scheduler = p->has_scheduler ? vmreq_scheduler(&p->scheduler) : NULL;
	m->has_io_priority = p->has_io_priority;
	m->io_priority = p->io_priority.class << VMREQ_IOPRIO_CLASS_SHIFT | p->io_priority.priority;
	m->stdin_stream = io->s[TASKIO_IN].id;
	m->stdout_stream = io->s[TASKIO_OUT].id;
	m->stderr_stream = io->s[TASKIO_ERR].id;
	return m;
}

void vmreq_share_name(size_t mount_index, char ret[VMREQ_SHARE_NAME_LEN])
{
	snprintf(ret, VMREQ_SHARE_NAME_LEN, "m%zu", mount_index);
}

uint32_t vmreq_socket_id(size_t mount_index)
{
	return (uint32_t)mount_index + 1;
}

const char *vmreq_own_type(const char *source)
{
	static const char *const own[][2] = {
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/sys/fs/cgroup", "cgroup"}};

	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		if (!strcmp(source, own[i][0]))
			return own[i][1];
	}
	return NULL;
}

bool vmreq_mount_is_read_only(const struct oci_mount *m)
{
	return (m->flags & MS_RDONLY) || (m->recursive_attr_set & MOUNT_ATTR_RDONLY);
}

static void vmreq_mount(VMREQ_PB(Mount) * m, const struct oci_mount *o, size_t index,
			enum vmreq_mount_kind kind)
{
	char name[VMREQ_SHARE_NAME_LEN];

	vmreq_share_name(index, name);
	m->destination = vmreq_text(o->destination);
	m->flags = o->flags;
	m->clear_flags = o->clear_flags;
	m->propagation = o->propagation;
	m->recursive_attr_set = o->recursive_attr_set;
	m->recursive_attr_clear = o->recursive_attr_clear;
	m->copy_up = o->copy_up;
	switch (kind) {
	case VMREQ_MOUNT_SHARE:
		m->type = vmreq_text("bind");
		m->source = xasprintf("share:%s", name);
		m->data = vmreq_text("");
		break;
	case VMREQ_MOUNT_SOCKET:
		m->type = vmreq_text("bind");
		m->source = xasprintf("socket:%u", vmreq_socket_id(index));
		m->data = vmreq_text("");
		m->flags &= ~(uint64_t)MS_REC;
		break;
	case VMREQ_MOUNT_OWN:
		m->type = vmreq_text(vmreq_own_type(o->source));
		m->source = vmreq_text(m->type);
		m->data = vmreq_text("");
		m->flags &= ~(uint64_t)(MS_BIND | MS_REC);
		break;
	case VMREQ_MOUNT_PLAIN:
	case VMREQ_MOUNT_DISK:
		m->type = vmreq_text(o->type);
		m->source = vmreq_text(o->source);
		m->data = vmreq_text(o->data);
		break;
	}
}

static void vmreq_mounts(VMREQ_PB(CreateContainerRequest) * r, const struct oci_spec *spec,
			 const enum vmreq_mount_kind *kinds)
{
	vmreq_messages(r->mounts, r->n_mounts, spec->nr_mounts, Mount,
		       harpoon__agent__v1__mount__init);
	for (size_t i = 0; i < spec->nr_mounts; i++)
		vmreq_mount(r->mounts[i], &spec->mounts[i], i, kinds[i]);
}

static void vmreq_devices(VMREQ_PB(CreateContainerRequest) * r, const struct oci_spec *spec)
{
	vmreq_messages(r->devices, r->n_devices, spec->nr_devices, Device,
		       harpoon__agent__v1__device__init);
	for (size_t i = 0; i < spec->nr_devices; i++) {
		VMREQ_PB(Device) *d = r->devices[i];

		d->path = vmreq_text(spec->devices[i].path);
		d->mode = spec->devices[i].mode;
		d->major = spec->devices[i].major;
		d->minor = spec->devices[i].minor;
		d->uid = spec->devices[i].uid;
		d->gid = spec->devices[i].gid;
	}
}

static void vmreq_mappings(VMREQ_PB(IdMapping) * **ret, size_t *ret_nr,
			   const struct oci_id_mapping *v, size_t nr)
{
	vmreq_messages(*ret, *ret_nr, nr, IdMapping, harpoon__agent__v1__id_mapping__init);
	for (size_t i = 0; i < nr; i++) {
		(*ret)[i]->container_id = v[i].container_id;
		(*ret)[i]->host_id = v[i].host_id;
		(*ret)[i]->size = v[i].size;
	}
}

static void vmreq_cgroup(VMREQ_PB(CgroupFile) * **ret, size_t *ret_nr,
			 const struct oci_resources *res)
{
	vmreq_messages(*ret, *ret_nr, res->nr_files, CgroupFile,
		       harpoon__agent__v1__cgroup_file__init);
	for (size_t i = 0; i < res->nr_files; i++) {
		(*ret)[i]->name = vmreq_text(res->files[i].name);
		(*ret)[i]->value = vmreq_text(res->files[i].value);
		(*ret)[i]->optional = res->files[i].optional;
	}
}

static void vmreq_device_rules(VMREQ_PB(CreateContainerRequest) * r,
			       const struct oci_resources *res)
{
	vmreq_messages(r->device_rules, r->n_device_rules, res->nr_device_rules, DeviceRule,
		       harpoon__agent__v1__device_rule__init);
	for (size_t i = 0; i < res->nr_device_rules; i++) {
		const struct oci_device_rule *d = &res->device_rules[i];

		r->device_rules[i]->allow = d->allow;
		r->device_rules[i]->type = d->type;
		r->device_rules[i]->major = d->major;
		r->device_rules[i]->minor = d->minor;
		r->device_rules[i]->access = (d->mknod ? VMREQ_DEVICE_MKNOD : 0) |
					     (d->read ? VMREQ_DEVICE_READ : 0) |
					     (d->write ? VMREQ_DEVICE_WRITE : 0);
	}
}

static void vmreq_time_offsets(VMREQ_PB(CreateContainerRequest) * r, const struct oci_spec *spec)
{
	vmreq_messages(r->time_offsets, r->n_time_offsets, spec->nr_time_offsets, TimeOffset,
		       harpoon__agent__v1__time_offset__init);
	for (size_t i = 0; i < spec->nr_time_offsets; i++) {
		r->time_offsets[i]->clock = spec->time_offsets[i].clock;
		r->time_offsets[i]->secs = spec->time_offsets[i].secs;
		r->time_offsets[i]->nanosecs = spec->time_offsets[i].nanosecs;
	}
}

/* The pid in their state is the one they see: the container's init is 1 there. */
static void vmreq_start_hooks(VMREQ_PB(CreateContainerRequest) * r, const struct oci_spec *spec,
			      const char *bundle)
{
	const struct oci_hooks *hooks = &spec->hooks[OCI_HOOK_START_CONTAINER];

	vmreq_messages(r->start_hooks, r->n_start_hooks, hooks->nr, Hook,
		       harpoon__agent__v1__hook__init);
	for (size_t i = 0; i < hooks->nr; i++) {
		r->start_hooks[i]->path = vmreq_text(hooks->v[i].path);
		vmreq_strings(&hooks->v[i].args, &r->start_hooks[i]->n_args,
			      &r->start_hooks[i]->args);
		vmreq_strings(&hooks->v[i].env, &r->start_hooks[i]->n_env, &r->start_hooks[i]->env);
		r->start_hooks[i]->timeout_s = hooks->v[i].timeout_s;
	}
	r->hook_state =
		hooks->nr ? hooks_state_json(spec, r->id, "created", 1, bundle) : vmreq_text("");
}

static uint32_t vmreq_namespaces(const struct oci_spec *spec)
{
	uint32_t flags = CLONE_NEWPID | CLONE_NEWNS;

	for (size_t i = 0; i < spec->nr_namespaces; i++) {
		const struct oci_namespace *ns = &spec->namespaces[i];

		if (ns->path && ns->flag != CLONE_NEWNET)
			log_info("shim",
				 "namespace '%s' is in another VM; the container gets its own",
				 ns->path);
		flags |= (uint32_t)ns->flag & VMREQ_NAMESPACES;
	}
	return flags;
}

VMREQ_PB(CreateContainerRequest) *
	vmreq_create_new(const char *id, const char *bundle, const struct oci_spec *spec,
			 const enum vmreq_mount_kind *kinds, const struct taskio *io)
{
	VMREQ_PB(CreateContainerRequest) *r = xcalloc(1, sizeof(*r));

	harpoon__agent__v1__create_container_request__init(r);
	r->id = vmreq_text(id);
	r->root_share = vmreq_text(VMREQ_SHARE_ROOT);
	r->root_readonly = spec->root_readonly;
	r->process = vmreq_process(&spec->process, spec, io);
	vmreq_mounts(r, spec, kinds);
	vmreq_devices(r, spec);
	vmreq_strings(&spec->masked_paths, &r->n_masked_paths, &r->masked_paths);
	vmreq_strings(&spec->readonly_paths, &r->n_readonly_paths, &r->readonly_paths);
	vmreq_messages(r->sysctls, r->n_sysctls, spec->nr_sysctls, Sysctl,
		       harpoon__agent__v1__sysctl__init);
	for (size_t i = 0; i < spec->nr_sysctls; i++) {
		r->sysctls[i]->key = vmreq_text(spec->sysctls[i].key);
		r->sysctls[i]->value = vmreq_text(spec->sysctls[i].value);
	}
	vmreq_cgroup(&r->cgroup, &r->n_cgroup, &spec->resources);
	r->hostname = vmreq_text(spec->hostname);
	r->domainname = vmreq_text(spec->domainname);
	r->namespaces = vmreq_namespaces(spec);
	vmreq_mappings(&r->uid_mappings, &r->n_uid_mappings, spec->uid_mappings,
		       spec->nr_uid_mappings);
	vmreq_mappings(&r->gid_mappings, &r->n_gid_mappings, spec->gid_mappings,
		       spec->nr_gid_mappings);
	r->rootfs_propagation = spec->rootfs_propagation;
	vmreq_device_rules(r, &spec->resources);
	vmreq_time_offsets(r, spec);
	vmreq_start_hooks(r, spec, bundle);
	return r;
}

void vmreq_create_free(VMREQ_PB(CreateContainerRequest) * r)
{
	harpoon__agent__v1__create_container_request__free_unpacked(r, NULL);
}

VMREQ_PB(ExecRequest) * vmreq_exec_new(const char *id, const char *exec_id,
				       const struct oci_process *process,
				       const struct oci_spec *spec, const struct taskio *io)
{
	VMREQ_PB(ExecRequest) *r = xcalloc(1, sizeof(*r));

	harpoon__agent__v1__exec_request__init(r);
	r->id = vmreq_text(id);
	r->exec_id = vmreq_text(exec_id);
	r->process = vmreq_process(process, spec, io);
	return r;
}

void vmreq_exec_free(VMREQ_PB(ExecRequest) * r)
{
	harpoon__agent__v1__exec_request__free_unpacked(r, NULL);
}

VMREQ_PB(UpdateRequest) *
	vmreq_update_new(const char *id, const struct oci_resources *resources, uint64_t mem_bytes)
{
	VMREQ_PB(UpdateRequest) *r = xcalloc(1, sizeof(*r));

	harpoon__agent__v1__update_request__init(r);
	r->id = vmreq_text(id);
	vmreq_cgroup(&r->cgroup, &r->n_cgroup, resources);
	r->check_memory = resources->check_before_update;
	r->memory_bytes = mem_bytes;
	return r;
}

void vmreq_update_free(VMREQ_PB(UpdateRequest) * r)
{
	harpoon__agent__v1__update_request__free_unpacked(r, NULL);
}

void vmreq_network_free(VMREQ_PB(NetworkRequest) * r)
{
	if (r)
		protobuf_c_message_free_unpacked(&r->base, NULL);
}
