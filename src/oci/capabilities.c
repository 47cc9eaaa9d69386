/*
 * Capability names to bit masks. A name that is unknown here is left out with a debug message and is no
 * error: the specification wants it so, because newer clients ask for capabilities of newer kernels.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "spec.h"

#define OCI_CAP_NAMES_MAX 1024

static const char *const oci_cap_names[] = {
	[CAP_CHOWN] = "CAP_CHOWN",
	[CAP_DAC_OVERRIDE] = "CAP_DAC_OVERRIDE",
	[CAP_DAC_READ_SEARCH] = "CAP_DAC_READ_SEARCH",
	[CAP_FOWNER] = "CAP_FOWNER",
	[CAP_FSETID] = "CAP_FSETID",
	[CAP_KILL] = "CAP_KILL",
	[CAP_SETGID] = "CAP_SETGID",
	[CAP_SETUID] = "CAP_SETUID",
	[CAP_SETPCAP] = "CAP_SETPCAP",
	[CAP_LINUX_IMMUTABLE] = "CAP_LINUX_IMMUTABLE",
	[CAP_NET_BIND_SERVICE] = "CAP_NET_BIND_SERVICE",
	[CAP_NET_BROADCAST] = "CAP_NET_BROADCAST",
	[CAP_NET_ADMIN] = "CAP_NET_ADMIN",
	[CAP_NET_RAW] = "CAP_NET_RAW",
	[CAP_IPC_LOCK] = "CAP_IPC_LOCK",
	[CAP_IPC_OWNER] = "CAP_IPC_OWNER",
	[CAP_SYS_MODULE] = "CAP_SYS_MODULE",
	[CAP_SYS_RAWIO] = "CAP_SYS_RAWIO",
	[CAP_SYS_CHROOT] = "CAP_SYS_CHROOT",
	[CAP_SYS_PTRACE] = "CAP_SYS_PTRACE",
	[CAP_SYS_PACCT] = "CAP_SYS_PACCT",
	[CAP_SYS_ADMIN] = "CAP_SYS_ADMIN",
	[CAP_SYS_BOOT] = "CAP_SYS_BOOT",
	[CAP_SYS_NICE] = "CAP_SYS_NICE",
	[CAP_SYS_RESOURCE] = "CAP_SYS_RESOURCE",
	[CAP_SYS_TIME] = "CAP_SYS_TIME",
	[CAP_SYS_TTY_CONFIG] = "CAP_SYS_TTY_CONFIG",
	[CAP_MKNOD] = "CAP_MKNOD",
	[CAP_LEASE] = "CAP_LEASE",
	[CAP_AUDIT_WRITE] = "CAP_AUDIT_WRITE",
	[CAP_AUDIT_CONTROL] = "CAP_AUDIT_CONTROL",
	[CAP_SETFCAP] = "CAP_SETFCAP",
	[CAP_MAC_OVERRIDE] = "CAP_MAC_OVERRIDE",
	[CAP_MAC_ADMIN] = "CAP_MAC_ADMIN",
	[CAP_SYSLOG] = "CAP_SYSLOG",
	[CAP_WAKE_ALARM] = "CAP_WAKE_ALARM",
	[CAP_BLOCK_SUSPEND] = "CAP_BLOCK_SUSPEND",
	[CAP_AUDIT_READ] = "CAP_AUDIT_READ",
	[CAP_PERFMON] = "CAP_PERFMON",
	[CAP_BPF] = "CAP_BPF",
	[CAP_CHECKPOINT_RESTORE] = "CAP_CHECKPOINT_RESTORE",
};

static int oci_cap_add(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	const char *name = json_borrow_string(ctx, v, OCI_STRING_MAX);
	uint64_t *mask = arg;

	if (!name)
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(oci_cap_names); i++) {
		if (!strcmp(oci_cap_names[i], name)) {
			*mask |= UINT64_C(1) << i;
			return 0;
		}
	}
	log_dbg("oci", "%s: unknown capability '%.64s' ignored", ctx->path, name);
	return 0;
}

int oci_caps_read(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		  void *obj)
{
	return json_each(ctx, v, OCI_CAP_NAMES_MAX, oci_cap_add, (char *)obj + f->off);
}

/*
 * capset(2) would refuse an effective capability that is not permitted: said here, with its name. Ambient ones
 * that the kernel would refuse are left out, as runc does.
 */
int oci_caps_check(struct json_ctx *ctx, void *caps)
{
	struct oci_caps *c = caps;
	uint64_t extra = c->effective & ~c->permitted;

	if (extra)
		return json_fail(ctx, -EINVAL, "effective has %s, permitted does not",
				 oci_cap_names[__builtin_ctzll(extra)]);
	c->ambient &= c->permitted & c->inheritable;
	return 0;
}
