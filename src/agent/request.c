/*
 * Request checks; see request.h. One function per message, each a list of rules in the order of the
 * fields. Sums of lengths need no bound of their own: a request is one frame of at most 4 MiB.
 */
#include "request.h"

#include <errno.h>
#include <linux/filter.h>
#include <net/if.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "mux.h"
#include "rtnl.h"

#define REQUEST_NEWTIME 0x00000080u

#define REQUEST_NAMESPACES \
	(0x00020000u /* NEWNS */ | 0x02000000u /* NEWCGROUP */ | 0x04000000u /* NEWUTS */ | \
	 0x08000000u /* NEWIPC */ | 0x10000000u /* NEWUSER */ | 0x20000000u /* NEWPID */ | \
	 0x40000000u /* NEWNET */ | REQUEST_NEWTIME)

static bool request_is_alnum(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool request_id_is_valid(const char *id)
{
	if (!request_is_alnum(id[0]))
		return false;
	for (size_t i = 1; id[i]; i++) {
		if (i >= REQUEST_ID_MAX)
			return false;
		if (!request_is_alnum(id[i]) && !strchr("_.-", id[i]))
			return false;
	}
	return true;
}

static int request_check_len(const char *what, const char *s, size_t max, struct err *err)
{
	if (strnlen(s, max + 1) > max)
		return err_say(err, -EINVAL, "%s is longer than %zu bytes", what, max);
	return 0;
}

static int request_check_count(const char *what, size_t nr, size_t max, struct err *err)
{
	if (nr > max)
		return err_say(err, -EINVAL, "%zu %s, at most %zu are taken", nr, what, max);
	return 0;
}

/* A share is one component below the shared folder. */
static int request_check_share(const char *name, struct err *err)
{
	size_t len = strnlen(name, REQUEST_NAME_MAX + 1);

	if (!len || len > REQUEST_NAME_MAX || strchr(name, '/') || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		return err_say(err, -EINVAL, "share name '%.64s' is not one path component", name);
	return 0;
}

static int request_check_stream(const char *what, uint32_t id, struct err *err)
{
	if (id && id < MUX_STREAM_FIRST_FREE)
		return err_say(err, -EINVAL, "%s stream %u is reserved", what, id);
	return 0;
}

static int request_check_streams(const AGENT_PB(Process) * p, struct err *err)
{
	uint32_t in = p->stdin_stream, out = p->stdout_stream, e = p->stderr_stream;

	if (request_check_stream("stdin", in, err) || request_check_stream("stdout", out, err) ||
	    request_check_stream("stderr", e, err))
		return err->code;
	if ((in && in == out) || (in && in == e) || (out && out == e))
		return err_say(err, -EINVAL, "the streams of a process must differ");
	if (p->terminal && e)
		return err_say(err, -EINVAL, "a terminal has no stderr stream");
	if (p->console_width > UINT16_MAX || p->console_height > UINT16_MAX)
		return err_say(err, -EINVAL, "console size %ux%u", p->console_width,
			       p->console_height);
	return 0;
}

static int request_check_rlimits(const AGENT_PB(Process) * p, struct err *err)
{
	if (request_check_count("rlimits", p->n_rlimits, REQUEST_RLIMITS_MAX, err))
		return err->code;
	for (size_t i = 0; i < p->n_rlimits; i++) {
		const AGENT_PB(Rlimit) *l = p->rlimits[i];

		if (l->resource >= RLIM_NLIMITS)
			return err_say(err, -EINVAL, "rlimit %u is unknown", l->resource);
		if (l->soft > l->hard)
			return err_say(err, -EINVAL, "rlimit %u: soft is above hard", l->resource);
	}
	return 0;
}

static int request_check_env(const AGENT_PB(Process) * p, struct err *err)
{
	if (request_check_count("environment variables", p->n_env, REQUEST_STRINGS_MAX, err))
		return err->code;
	for (size_t i = 0; i < p->n_env; i++) {
		const char *eq = strchr(p->env[i], '=');

		if (!eq || eq == p->env[i])
			return err_say(err, -EINVAL, "invalid environment variable '%.64s'",
				       p->env[i]);
	}
	return 0;
}

static int request_check_seccomp(const AGENT_PB(Process) * p, struct err *err)
{
	if (p->seccomp_bpf.len % sizeof(struct sock_filter) ||
	    p->seccomp_bpf.len / sizeof(struct sock_filter) > REQUEST_BPF_MAX)
		return err_say(err, -EINVAL, "seccomp program of %zu bytes", p->seccomp_bpf.len);
	/* TSYNC, LOG and SPEC_ALLOW; a listener would need somebody to listen. */
	if (p->seccomp_flags & ~0x7u)
		return err_say(err, -EINVAL, "seccomp flags 0x%x are not supported",
			       p->seccomp_flags);
	return 0;
}

/* The kernel knows its policies; what is here is what we count on. */
static int request_check_priority(const AGENT_PB(Process) * p, struct err *err)
{
	const AGENT_PB(Scheduler) *s = p->scheduler;

	if (s && (s->nice < -20 || s->nice > 19 || s->priority > 99))
		return err_say(err, -EINVAL, "scheduler: nice %d, priority %u", s->nice,
			       s->priority);
	if (p->has_io_priority && p->io_priority > UINT16_MAX)
		return err_say(err, -EINVAL, "I/O priority 0x%x", p->io_priority);
	return 0;
}

static int request_check_process(const AGENT_PB(Process) * p, struct err *err)
{
	if (!p)
		return err_say(err, -EINVAL, "no process given");
	if (!p->n_args || !p->args[0][0])
		return err_say(err, -EINVAL, "process.args is empty");
	if (request_check_count("arguments", p->n_args, REQUEST_STRINGS_MAX, err) ||
	    request_check_len("process.args[0]", p->args[0], REQUEST_PATH_MAX, err) ||
	    request_check_env(p, err) ||
	    request_check_len("process.cwd", p->cwd, REQUEST_PATH_MAX, err))
		return err->code;
	if (p->cwd[0] != '/')
		return err_say(err, -EINVAL, "process.cwd '%.128s' is not absolute", p->cwd);
	if (p->user && request_check_count("additional gids", p->user->n_additional_gids,
					   REQUEST_GIDS_MAX, err))
		return err->code;
	if (p->user && (p->user->uid == UINT32_MAX || p->user->gid == UINT32_MAX))
		return err_say(err, -EINVAL, "user %u:%u is not valid", p->user->uid, p->user->gid);
	if (p->user && p->user->has_umask && p->user->umask > 0777)
		return err_say(err, -EINVAL, "umask 0%o", p->user->umask);
	if (p->has_oom_score_adj && (p->oom_score_adj < -1000 || p->oom_score_adj > 1000))
		return err_say(err, -EINVAL, "oom_score_adj %d", p->oom_score_adj);
	if (request_check_rlimits(p, err) || request_check_seccomp(p, err) ||
	    request_check_priority(p, err))
		return err->code;
	return request_check_streams(p, err);
}

static int request_check_mount(const AGENT_PB(Mount) * m, struct err *err)
{
	if (request_check_len("a mount's destination", m->destination, REQUEST_PATH_MAX, err) ||
	    request_check_len("a mount's type", m->type, REQUEST_NAME_MAX, err) ||
	    request_check_len("a mount's source", m->source, REQUEST_PATH_MAX, err) ||
	    request_check_len("a mount's data", m->data, REQUEST_DATA_MAX, err))
		return err->code;
	if (m->destination[0] != '/')
		return err_say(err, -EINVAL, "mount destination '%.128s' is not absolute",
			       m->destination);
	if (!strncmp(m->source, "share:", 6) && request_check_share(m->source + 6, err))
		return err->code;
	if (!strncmp(m->source, "socket:", 7) && request_check_share(m->source + 7, err))
		return err->code;
	return 0;
}

static int request_check_mounts(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("mounts", r->n_mounts, REQUEST_MOUNTS_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_mounts; i++)
		if (request_check_mount(r->mounts[i], err))
			return err->code;
	return 0;
}

static int request_check_devices(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("devices", r->n_devices, REQUEST_DEVICES_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_devices; i++) {
		const AGENT_PB(Device) *d = r->devices[i];

		if (request_check_len("a device's path", d->path, REQUEST_PATH_MAX, err))
			return err->code;
		if (d->path[0] != '/' || !d->path[strspn(d->path, "/")])
			return err_say(err, -EINVAL, "device '%.128s' is not an absolute path",
				       d->path);
		if (!S_ISCHR(d->mode) && !S_ISBLK(d->mode) && !S_ISFIFO(d->mode))
			return err_say(err, -EINVAL, "device '%.128s': mode 0%o is no device",
				       d->path, d->mode);
		if (d->mode & ~(S_IFMT | 07777u) || d->major > 0xfff || d->minor > 0xfffff)
			return err_say(err, -EINVAL, "device '%.128s': mode 0%o, number %u:%u",
				       d->path, d->mode, d->major, d->minor);
	}
	return 0;
}

static int request_check_disks(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("disks", r->n_disks, REQUEST_DISKS_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_disks; i++) {
		const AGENT_PB(Disk) *d = r->disks[i];

		if (strnlen(d->serial, REQUEST_SERIAL_MAX + 1) > REQUEST_SERIAL_MAX ||
		    !request_id_is_valid(d->serial))
			return err_say(err, -EINVAL, "'%.64s' is no serial number of a disk",
				       d->serial);
		if (d->access > 7)
			return err_say(err, -EINVAL, "disk '%s': access %u", d->serial, d->access);
	}
	return 0;
}

static int request_check_root_mounts(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("mounts of the root file system", r->n_root_mounts,
				REQUEST_ROOT_MOUNTS_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_root_mounts; i++) {
		const AGENT_PB(RootMount) *m = r->root_mounts[i];

		if (request_check_len("a root mount's type", m->type, REQUEST_NAME_MAX, err) ||
		    request_check_len("a root mount's source", m->source, REQUEST_PATH_MAX, err) ||
		    request_check_len("a root mount's target", m->target, REQUEST_PATH_MAX, err) ||
		    request_check_len("a root mount's data", m->data, REQUEST_DATA_MAX, err) ||
		    request_check_count("folders of a root mount", m->n_folders, REQUEST_PATHS_MAX,
					err))
			return err->code;
		for (size_t k = 0; k < m->n_folders; k++)
			if (request_check_len("a root mount's folder", m->folders[k],
					      REQUEST_PATH_MAX, err))
				return err->code;
	}
	return 0;
}

static int request_check_device_rules(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("device rules", r->n_device_rules, REQUEST_DEVICE_RULES_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_device_rules; i++) {
		const AGENT_PB(DeviceRule) *d = r->device_rules[i];

		if ((d->type != 'a' && d->type != 'b' && d->type != 'c') || d->major < -1 ||
		    d->minor < -1 || d->major > UINT32_MAX || d->minor > UINT32_MAX || !d->access ||
		    d->access > 7)
			return err_say(err, -EINVAL,
				       "device rule %zu: type %u, number %lld:%lld, access %u", i,
				       d->type, (long long)d->major, (long long)d->minor,
				       d->access);
	}
	return 0;
}

static int request_check_time_offsets(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("time offsets", r->n_time_offsets, REQUEST_CLOCKS_MAX, err))
		return err->code;
	if (r->n_time_offsets && !(r->namespaces & REQUEST_NEWTIME))
		return err_say(err, -EINVAL, "time offsets without a time namespace");
	for (size_t i = 0; i < r->n_time_offsets; i++)
		if (r->time_offsets[i]->nanosecs > 999999999)
			return err_say(err, -EINVAL, "time offset of %u ns",
				       r->time_offsets[i]->nanosecs);
	return 0;
}

static int request_check_hooks(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("hooks", r->n_start_hooks, REQUEST_HOOKS_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_start_hooks; i++) {
		const AGENT_PB(Hook) *h = r->start_hooks[i];

		if (request_check_len("a hook's path", h->path, REQUEST_PATH_MAX, err) ||
		    request_check_count("arguments of a hook", h->n_args, REQUEST_STRINGS_MAX,
					err) ||
		    request_check_count("variables of a hook", h->n_env, REQUEST_STRINGS_MAX, err))
			return err->code;
		if (h->path[0] != '/')
			return err_say(err, -EINVAL, "hook '%.128s' is not an absolute path",
				       h->path);
	}
	return 0;
}

static int request_check_paths(const char *what, char *const *v, size_t nr, struct err *err)
{
	if (request_check_count(what, nr, REQUEST_PATHS_MAX, err))
		return err->code;
	for (size_t i = 0; i < nr; i++) {
		if (request_check_len(what, v[i], REQUEST_PATH_MAX, err))
			return err->code;
		if (v[i][0] != '/')
			return err_say(err, -EINVAL, "%s: '%.128s' is not absolute", what, v[i]);
	}
	return 0;
}

/* Keys use '.' or '/' between components; none may climb. */
static int request_check_sysctls(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (request_check_count("sysctls", r->n_sysctls, REQUEST_SYSCTLS_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_sysctls; i++) {
		const AGENT_PB(Sysctl) *s = r->sysctls[i];
		size_t len = strnlen(s->key, 256);

		if (!len || len >= 256 || s->key[0] == '/' || s->key[0] == '.' ||
		    strstr(s->key, ".."))
			return err_say(err, -EINVAL, "sysctl '%.128s' is not a valid key", s->key);
		if (request_check_len("a sysctl's value", s->value, REQUEST_VALUE_MAX, err))
			return err->code;
	}
	return 0;
}

static int request_check_cgroup(AGENT_PB(CgroupFile) * *v, size_t nr, struct err *err)
{
	static const char ok[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

	if (request_check_count("cgroup files", nr, REQUEST_CGROUP_FILES_MAX, err))
		return err->code;
	for (size_t i = 0; i < nr; i++) {
		size_t len = strnlen(v[i]->name, REQUEST_NAME_MAX + 1);

		if (!len || len > REQUEST_NAME_MAX || v[i]->name[0] == '.' ||
		    strspn(v[i]->name, ok) != len)
			return err_say(err, -EINVAL, "cgroup file '%.64s' is not a valid name",
				       v[i]->name);
		/* Those decide where processes live, which is the agent's business; two are plain limits. */
		if (!strncmp(v[i]->name, "cgroup.", 7) &&
		    strncmp(v[i]->name, "cgroup.max.", 11) != 0)
			return err_say(err, -EINVAL, "cgroup file '%.64s' may not be set",
				       v[i]->name);
		if (request_check_len("a cgroup value", v[i]->value, REQUEST_VALUE_MAX, err))
			return err->code;
	}
	return 0;
}

static int request_check_mappings(const char *what, AGENT_PB(IdMapping) * *v, size_t nr,
				  struct err *err)
{
	if (request_check_count(what, nr, REQUEST_MAPPINGS_MAX, err))
		return err->code;
	for (size_t i = 0; i < nr; i++)
		if (!v[i]->size || v[i]->container_id > UINT32_MAX - v[i]->size ||
		    v[i]->host_id > UINT32_MAX - v[i]->size)
			return err_say(err, -EINVAL, "%s: %u:%u:%u is out of range", what,
				       v[i]->container_id, v[i]->host_id, v[i]->size);
	return 0;
}

static int request_check_user_ns(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	bool own = r->namespaces & 0x10000000u;

	if (request_check_mappings("uid mappings", r->uid_mappings, r->n_uid_mappings, err) ||
	    request_check_mappings("gid mappings", r->gid_mappings, r->n_gid_mappings, err))
		return err->code;
	if (own != (r->n_uid_mappings > 0) || own != (r->n_gid_mappings > 0))
		return err_say(err, -EINVAL, "a user namespace and id mappings need each other");
	return 0;
}

int request_check_create(const AGENT_PB(CreateContainerRequest) * r, struct err *err)
{
	if (!request_id_is_valid(r->id))
		return err_say(err, -EINVAL, "container id '%.80s' is not valid", r->id);
	if ((!r->n_root_mounts && request_check_share(r->root_share, err)) ||
	    request_check_disks(r, err) || request_check_root_mounts(r, err) ||
	    request_check_process(r->process, err) || request_check_mounts(r, err) ||
	    request_check_devices(r, err) ||
	    request_check_paths("masked paths", r->masked_paths, r->n_masked_paths, err) ||
	    request_check_paths("read-only paths", r->readonly_paths, r->n_readonly_paths, err) ||
	    request_check_sysctls(r, err) || request_check_cgroup(r->cgroup, r->n_cgroup, err) ||
	    request_check_device_rules(r, err) || request_check_time_offsets(r, err) ||
	    request_check_hooks(r, err))
		return err->code;
	if (request_check_len("the hostname", r->hostname, 64, err) ||
	    request_check_len("the domainname", r->domainname, 64, err))
		return err->code;
	if (r->namespaces & ~REQUEST_NAMESPACES)
		return err_say(err, -EINVAL, "namespaces 0x%x", r->namespaces);
	return request_check_user_ns(r, err);
}

int request_check_exec(const AGENT_PB(ExecRequest) * r, struct err *err)
{
	if (!r->exec_id[0])
		return err_say(err, -EINVAL, "no exec id given");
	if (request_check_ref(r->id, r->exec_id, err))
		return err->code;
	return request_check_process(r->process, err);
}

int request_check_ref(const char *id, const char *exec_id, struct err *err)
{
	if (!request_id_is_valid(id))
		return err_say(err, -EINVAL, "container id '%.80s' is not valid", id);
	if (exec_id[0] && !request_id_is_valid(exec_id))
		return err_say(err, -EINVAL, "exec id '%.80s' is not valid", exec_id);
	return 0;
}

int request_check_signal(const AGENT_PB(SignalRequest) * r, struct err *err)
{
	if (request_check_ref(r->id, r->exec_id, err))
		return err->code;
	if (!r->signal || r->signal > 64)
		return err_say(err, -EINVAL, "signal %u does not exist", r->signal);
	if (r->all && r->exec_id[0])
		return err_say(err, -EINVAL, "'all' is for a container, not for one exec");
	return 0;
}

int request_check_resize(const AGENT_PB(ResizeRequest) * r, struct err *err)
{
	if (request_check_ref(r->id, r->exec_id, err))
		return err->code;
	if (r->width > UINT16_MAX || r->height > UINT16_MAX)
		return err_say(err, -EINVAL, "console size %ux%u", r->width, r->height);
	return 0;
}

int request_check_update(const AGENT_PB(UpdateRequest) * r, struct err *err)
{
	if (request_check_ref(r->id, "", err))
		return err->code;
	return request_check_cgroup(r->cgroup, r->n_cgroup, err);
}

int request_check_configure(const AGENT_PB(ConfigureRequest) * r, struct err *err)
{
	if (r->entropy.len > REQUEST_ENTROPY_MAX)
		return err_say(err, -EINVAL, "%zu bytes of entropy, at most %d are taken",
			       r->entropy.len, REQUEST_ENTROPY_MAX);
	if (r->realtime_ns < 0)
		return err_say(err, -EINVAL, "clock %lld ns is before 1970",
			       (long long)r->realtime_ns);
	return request_check_len("the hostname", r->hostname, 64, err);
}

static bool request_is_ip(const ProtobufCBinaryData *b)
{
	return b->len == 4 || b->len == 16;
}

/* None, or of this length. */
static bool request_is_ip_or_none(const ProtobufCBinaryData *b, size_t len)
{
	return !b->len || b->len == len;
}

/* As the kernel takes names of interfaces. */
static bool request_interface_name_is_valid(const char *name)
{
	size_t len = strnlen(name, IFNAMSIZ);

	if (!len || len == IFNAMSIZ || !strcmp(name, ".") || !strcmp(name, ".."))
		return false;
	for (; *name; name++)
		if (*name == '/' || *name == ':' || *name <= ' ' || *name == 0x7f)
			return false;
	return true;
}

static int request_check_address(const AGENT_PB(NetAddress) * a, struct err *err)
{
	size_t len = a->local.len;

	if (!request_is_ip(&a->local) || !request_is_ip_or_none(&a->peer, len) ||
	    !request_is_ip_or_none(&a->broadcast, len) || a->prefix_len > len * 8 || a->scope > 255)
		return err_say(err, -EINVAL, "an address of an interface is not one");
	return 0;
}

static int request_check_interface(const AGENT_PB(NetworkRequest) * r, size_t i, struct err *err)
{
	const AGENT_PB(NetInterface) *p = r->interfaces[i];

	if (!request_interface_name_is_valid(p->name))
		return err_say(err, -EINVAL, "'%.32s' is no name for an interface", p->name);
	if (p->nic >= r->nr_nics || p->mac.len != 6)
		return err_say(err, -EINVAL,
			       "interface '%s': device %u of %u, address of %zu bytes", p->name,
			       p->nic, r->nr_nics, p->mac.len);
	for (size_t k = 0; k < i; k++)
		if (r->interfaces[k]->nic == p->nic || !strcmp(r->interfaces[k]->name, p->name))
			return err_say(err, -EINVAL, "interface '%s' is given twice", p->name);
	if (request_check_count("addresses", p->n_addresses, REQUEST_ADDRESSES_MAX, err) ||
	    request_check_count("neighbours", p->n_neighbours, REQUEST_ADDRESSES_MAX, err))
		return err->code;
	for (size_t k = 0; k < p->n_addresses; k++)
		if (request_check_address(p->addresses[k], err))
			return err->code;
	for (size_t k = 0; k < p->n_neighbours; k++)
		if (!request_is_ip(&p->neighbours[k]->address) || p->neighbours[k]->mac.len != 6)
			return err_say(err, -EINVAL, "a neighbour of '%s' is not one", p->name);
	return 0;
}

static int request_check_route(const AGENT_PB(NetworkRequest) * r, const AGENT_PB(NetRoute) * p,
			       struct err *err)
{
	size_t len = p->ipv6 ? 16 : 4;

	if (!request_is_ip_or_none(&p->dst, len) || !request_is_ip_or_none(&p->source, len) ||
	    p->dst_len > len * 8 || (p->dst_len && !p->dst.len) || p->protocol > 255 ||
	    p->scope > 255 || p->type > 255 || p->tos > 255)
		return err_say(err, -EINVAL, "a route is not one");
	if (request_check_count("next hops", p->n_nexthops, RTNL_NEXTHOPS_MAX, err) ||
	    request_check_count("metrics of a route", p->n_metrics, RTNL_METRICS_MAX, err))
		return err->code;
	for (size_t i = 0; i < p->n_nexthops; i++)
		if (p->nexthops[i]->interface >= r->n_interfaces ||
		    (p->nexthops[i]->gateway.len && !request_is_ip(&p->nexthops[i]->gateway)))
			return err_say(err, -EINVAL, "a route leads nowhere");
	return 0;
}

int request_check_listen(const AGENT_PB(ListenRequest) * r, struct err *err)
{
	if (!r->id || r->id > REQUEST_LISTENERS_MAX)
		return err_say(err, -EINVAL, "listener %u", r->id);
	if (r->address.len && (!request_is_ip(&r->address) || !r->port || r->port > 65535))
		return err_say(err, -EINVAL, "listener %u: no address and port", r->id);
	if (r->mode & ~0777u)
		return err_say(err, -EINVAL, "listener %u: mode 0%o", r->id, r->mode);
	return 0;
}

int request_check_accept(const AGENT_PB(AcceptRequest) * r, struct err *err)
{
	if (!r->stream)
		return err_say(err, -EINVAL, "no stream for a connection");
	return request_check_stream("a connection's", r->stream, err);
}

int request_check_listeners(const AGENT_PB(ListenersRequest) * r, struct err *err)
{
	return request_check_count("sockets", r->n_known, REQUEST_LISTENERS_MAX, err);
}

int request_check_connect(const AGENT_PB(ConnectRequest) * r, struct err *err)
{
	if (!r->stream || !request_is_ip(&r->address) || !r->port || r->port > 65535)
		return err_say(err, -EINVAL, "a connection to nowhere");
	return request_check_stream("a connection's", r->stream, err);
}

int request_check_network(const AGENT_PB(NetworkRequest) * r, struct err *err)
{
	if (request_check_count("network devices", r->nr_nics, REQUEST_NICS_MAX, err) ||
	    request_check_count("interfaces", r->n_interfaces, REQUEST_NICS_MAX, err) ||
	    request_check_count("routes", r->n_routes, REQUEST_ROUTES_MAX, err))
		return err->code;
	for (size_t i = 0; i < r->n_interfaces; i++)
		if (request_check_interface(r, i, err))
			return err->code;
	for (size_t i = 0; i < r->n_routes; i++)
		if (request_check_route(r, r->routes[i], err))
			return err->code;
	return 0;
}
