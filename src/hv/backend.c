/*
 * Which backend runs on this host; see hv_choose_backend() in hv.h.
 *
 * kvm is our own monitor, a separate program. Where it is not installed nothing about KVM needs to be
 * found out, and the probe, which creates a VM, is not run.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "hv.h"
#include "probe.h"

static bool backend_has_vmm(const struct config *c)
{
	return !access(c->vmm, X_OK);
}

static void backend_take(struct hv_choice *ret, enum config_backend backend, const char *why)
{
	ret->backend = backend;
	snprintf(ret->why, sizeof(ret->why), "%s", why);
}

static int backend_check_kvm(const struct config *c, struct hv_choice *ret, struct err *err)
{
	if (!backend_has_vmm(c))
		return err_say(err, -ENOENT,
			       "backend 'kvm' was asked for, but harpoon-vmm is not installed "
			       "('%s'): install it, or set backend = auto",
			       c->vmm);
	if (access("/dev/kvm", R_OK | W_OK))
		return err_set(err, -errno,
			       "backend 'kvm' was asked for, but /dev/kvm cannot be used; load the "
			       "kvm module, or set backend = auto");
	backend_take(ret, CONFIG_BACKEND_KVM, "asked for by the configuration");
	return 0;
}

int hv_choose_backend(const struct config *c, struct hv_choice *ret, struct err *err)
{
	struct probe_kvm kvm;

	switch (c->backend) {
	case CONFIG_BACKEND_KVM:
		return backend_check_kvm(c, ret, err);
	case CONFIG_BACKEND_QEMU:
		backend_take(ret, CONFIG_BACKEND_QEMU, "asked for by the configuration");
		return 0;
	case CONFIG_BACKEND_AUTO:
	case CONFIG_BACKEND_MAX:
		break;
	}
	if (!backend_has_vmm(c)) {
		backend_take(ret, CONFIG_BACKEND_QEMU,
			     "harpoon-vmm, which the kvm backend needs, is not installed");
		return 0;
	}
	probe_kvm_cached(&kvm);
	backend_take(ret, kvm.state == PROBE_KVM_NATIVE ? CONFIG_BACKEND_KVM : CONFIG_BACKEND_QEMU,
		     kvm.text);
	return 0;
}
