/*
 * linux.sysctl: the dotted form, and the rule of what may be set. The rule is runc's: only what a namespace
 * of the container's own holds. The guest kernel is the container's alone, yet several containers of one pod
 * share it, and a configuration that runc refuses should not start to depend on harpoon.
 *
 * Keys become paths below /proc/sys in the guest: every component is checked here.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "spec.h"

/* sysctl.d(5): the first separator decides; with '/' the two characters swap their meaning. */
static void oci_sysctl_to_dots(char *key)
{
	if (key[strcspn(key, "./")] != '/')
		return;
	for (; *key; key++) {
		if (*key == '/')
			*key = '.';
		else if (*key == '.')
			*key = '/';
	}
}

static bool oci_sysctl_is_path(const char *key)
{
	for (const char *p = key;; p++) {
		size_t len = strcspn(p, ".");

		/* "/" and "//" are the file names "." and "..". */
		if (!len || (len <= 2 && strspn(p, "/") >= len))
			return false;
		for (size_t i = 0; i < len; i++)
			if (p[i] <= ' ' || p[i] > '~')
				return false;
		p += len;
		if (!*p)
			return p > key && strchr(key, '.');
	}
}

static bool oci_sysctl_is_ipc(const char *key)
{
	static const char *const names[] = {
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(names[i], key))
			return true;
	return !strncmp(key, "fs.mqueue.", strlen("fs.mqueue."));
}

/* The namespace that holds the setting, 0 = none. */
static int oci_sysctl_namespace(const char *key)
{
	if (oci_sysctl_is_ipc(key))
		return CLONE_NEWIPC;
	if (!strncmp(key, "net.", 4))
		return CLONE_NEWNET;
	if (!strncmp(key, "user.", 5))
		return CLONE_NEWUSER;
	return !strcmp(key, "kernel.domainname") ? CLONE_NEWUTS : 0;
}

static int oci_sysctl_check(struct json_ctx *ctx, const struct oci_spec *s, char *key)
{
	int flag;

	oci_sysctl_to_dots(key);
	if (!oci_sysctl_is_path(key))
		return json_fail(ctx, -EINVAL, "not the name of a kernel parameter");
	if (!strcmp(key, "kernel.hostname"))
		return json_fail(ctx, -EINVAL, "not allowed: use the field hostname");
	flag = oci_sysctl_namespace(key);
	if (!flag)
		return json_fail(ctx, -EINVAL, "not allowed: belongs to no namespace");
	if (!oci_spec_namespace(s, flag))
		return json_fail(ctx, -EINVAL,
				 "not allowed without a namespace of the container's own for it");
	return 0;
}

int oci_sysctls_check(struct json_ctx *ctx, struct oci_spec *s)
{
	for (size_t i = 0; i < s->nr_sysctls; i++) {
		size_t old = json_enter_key(ctx, s->sysctls[i].key);
		int r = oci_sysctl_check(ctx, s, s->sysctls[i].key);

		if (r < 0)
			return r;
		json_leave(ctx, old);
	}
	return 0;
}
