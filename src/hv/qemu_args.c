/*
 * QEMU's command line, see qemu_args.h.
 *
 * The `microvm` machine with nothing on it that the guest does not use. Nothing listens, nothing is
 * opened by name but firmware, kernel and initrd: every connection is an inherited descriptor.
 */
#include "qemu_args.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "util.h"

#define QEMU_ARGS_MAX 128
/* Number of the first disk's set of descriptors; templates' state is set 1. */
#define QEMU_DISK_SET ((size_t)16)

struct qemu_argv {
	char **argv; /* owned; room for QEMU_ARGS_MAX and the NULL */
	size_t nr;
};

/* Takes `value` over; NULL = an option without value. */
static void qemu_arg(struct qemu_argv *v, const char *option, char *value)
{
	if (v->nr + 2 > QEMU_ARGS_MAX)
		abort();
	v->argv[v->nr++] = xstrdup(option);
	if (value)
		v->argv[v->nr++] = value;
}

/* In QEMU's option syntax a comma ends a value; two stand for one. */
static char *qemu_escape(const char *value)
{
	char *out = xmalloc(strlen(value) * 2 + 1), *p = out;

	for (; *value; value++) {
		if (*value == ',')
			*p++ = ',';
		*p++ = *value;
	}
	*p = '\0';
	return out;
}

static void qemu_args_machine(struct qemu_argv *v, const struct qemu_args *a)
{
	uint64_t mib = a->mem_bytes / QEMU_MEM_ALIGN;

	/*
	 * pit and pic: without KVM's paravirtual clock the guest has no other timer early on and hangs.
	 * rtc: its kernel waits a second for the clock chip to answer when there is none.
	 * acpi=off: the kernel has none; processors come in an MP table then. mem-merge: would let one
	 * VM time what another holds.
	 */
	qemu_arg(v, "-machine",
		 xstrdup("microvm,pit=on,pic=on,rtc=on,acpi=off,x-option-roms=off,isa-serial=on,"
			 "dump-guest-core=off,mem-merge=off,memory-backend=ram"));
	/* Otherwise virtio-mmio offers the pre-1.0 interface only, which no device of ours speaks. */
	qemu_arg(v, "-global", xstrdup("virtio-mmio.force-legacy=off"));
	/*
	 * Translated code stays until there is no more room: a gigabyte, unless told otherwise, and memory
	 * that nobody gets back. A boot or a container's start takes 20 to 40 MiB, a mix of apt, dpkg, perl
	 * and tar after it 45. What is full is emptied and translated anew, which cost that mix a quarter
	 * more processor time with 16 MiB and the triple with 8.
	 */
	qemu_arg(v, "-accel", xstrdup("tcg,tb-size=64"));
	/*
	 * The oldest model that programs built for x86-64-v2 run on: each further feature (AVX) makes
	 * emulated context switches dearer. rdrand: entropy from the first instruction on.
	 */
	qemu_arg(v, "-cpu", xstrdup("Nehalem-v1,+rdrand"));
	qemu_arg(v, "-smp", xasprintf("%" PRIu32, a->nr_vcpus));
	qemu_arg(v, "-m", xasprintf("%" PRIu64 "M", mib));
	/*
	 * Shared, because the file server maps guest memory (vhost-user). A file with a name, because
	 * only then is memory left out of what QEMU writes when it saves the machine.
	 */
	qemu_arg(v, "-object",
		 xasprintf("memory-backend-file,id=ram,size=%" PRIu64 "M,share=on,mem-path=%s", mib,
			   a->ram));
}

static void qemu_args_devices(struct qemu_argv *v)
{
	qemu_arg(v, "-chardev", xasprintf("socket,id=qmp,fd=%d", QEMU_FD_QMP));
	qemu_arg(v, "-mon", xstrdup("chardev=qmp,mode=control"));
	qemu_arg(v, "-chardev", xasprintf("socket,id=console,fd=%d", QEMU_FD_CONSOLE));
	qemu_arg(v, "-serial", xstrdup("chardev:console"));
	qemu_arg(v, "-chardev", xasprintf("socket,id=agent,fd=%d", QEMU_FD_AGENT));
	/* Port 0 is the console's by definition, so one port needs two. */
	qemu_arg(v, "-device", xstrdup("virtio-serial-device,max_ports=2"));
	qemu_arg(v, "-device", xstrdup("virtserialport,chardev=agent,nr=1,name=" QEMU_AGENT_PORT));
	qemu_arg(v, "-chardev", xasprintf("socket,id=fs,fd=%d", QEMU_FD_FS));
	/* The queue's size bounds one request: with 1024 entries the guest reads and writes 1 MiB at once. */
	qemu_arg(v, "-device",
		 xstrdup("vhost-user-fs-device,chardev=fs,queue-size=1024,tag=" QEMU_FS_TAG));
	/*
	 * What the guest has freed goes back to the host two seconds later, in pieces of 2 MiB: QEMU punches holes
	 * into the file that is guest memory.
	 */
	qemu_arg(v, "-device",
		 xstrdup("virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"));
}

/* Offloads: with a tap's vnet headers, segments of 64 KiB without checksums go both ways. */
static void qemu_args_nics(struct qemu_argv *v, const struct qemu_args *a)
{
	for (size_t i = 0; i < a->nr_nics; i++) {
		int fd = QEMU_FD_NIC + (int)i;

		if (a->nics[i].kind == HV_NIC_TAP)
			qemu_arg(v, "-netdev", xasprintf("tap,id=net%zu,fd=%d,vhost=off", i, fd));
		else
			qemu_arg(v, "-netdev",
				 xasprintf("stream,id=net%zu,server=off,addr.type=fd,addr.str=%d",
					   i, fd));
		qemu_arg(v, "-device",
			 xasprintf("virtio-net-device,netdev=net%zu,mac=" HV_NIC_MAC, i,
				   (unsigned int)i));
	}
}

/*
 * A set of descriptors is what QEMU opens in place of a file's name. Locks: the shim has taken them, and QEMU's own
 * would be on a name that is none. Zeroes and discards go through to the file; what the guest flushes is durable.
 */
static void qemu_args_disks(struct qemu_argv *v, const struct qemu_args *a)
{
	for (size_t i = 0; i < a->nr_disks; i++) {
		int fd = QEMU_FD_NIC + (int)(a->nr_nics + i);
		struct stat st;
		bool is_device = !fstat(a->disks[i].fd, &st) && S_ISBLK(st.st_mode);

		qemu_arg(v, "-add-fd", xasprintf("fd=%d,set=%zu", fd, QEMU_DISK_SET + i));
		qemu_arg(v, "-blockdev",
			 xasprintf("driver=%s,node-name=disk%zu,filename=/dev/fdset/%zu,"
				   "read-only=%s,locking=off,discard=unmap",
				   is_device ? "host_device" : "file", i, QEMU_DISK_SET + i,
				   a->disks[i].read_only ? "on" : "off"));
		qemu_arg(v, "-device",
			 xasprintf("virtio-blk-device,drive=disk%zu,serial=" HV_DISK_SERIAL, i, i));
	}
}

char **qemu_args_build(const struct qemu_args *a)
{
	struct qemu_argv v = {.argv = xcalloc(QEMU_ARGS_MAX + 1, sizeof(char *))};
	char *id = qemu_escape(a->id);

	qemu_arg(&v, a->qemu, NULL);
	qemu_arg(&v, "-name", xasprintf("guest=%s", id));
	free(id);
	qemu_arg(&v, "-nodefaults", NULL);
	qemu_arg(&v, "-no-user-config", NULL);
	qemu_arg(&v, "-no-reboot", NULL);
	qemu_arg(&v, "-display", xstrdup("none"));
	qemu_arg(
		&v, "-sandbox",
		xstrdup("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"));
	qemu_args_machine(&v, a);
	qemu_arg(&v, "-kernel", xstrdup(a->kernel));
	qemu_arg(&v, "-initrd", xstrdup(a->initrd));
	qemu_arg(&v, "-append", xstrdup(a->kernel_args));
	qemu_args_devices(&v);
	qemu_args_nics(&v, a);
	qemu_args_disks(&v, a);
	if (a->incoming)
		qemu_arg(&v, "-incoming", xstrdup("defer"));
	return v.argv;
}

void qemu_args_free(char **argv)
{
	if (!argv)
		return;
	for (char **p = argv; *p; p++)
		free(*p);
	free(argv);
}

/* Up to four digits; -1 = none. */
static int qemu_version_number(const char **p)
{
	const char *start = *p;
	int n = 0;

	for (; **p >= '0' && **p <= '9' && *p - start < 4; (*p)++)
		n = n * 10 + (**p - '0');
	return *p == start ? -1 : n;
}

int qemu_version_parse(const char *text, int *ret_major, int *ret_minor)
{
	static const char prefix[] = "QEMU emulator version ";
	const char *p = text + sizeof(prefix) - 1;
	int major, minor;

	if (strncmp(text, prefix, sizeof(prefix) - 1) != 0)
		return -EINVAL;
	major = qemu_version_number(&p);
	if (major < 0 || *p++ != '.')
		return -EINVAL;
	minor = qemu_version_number(&p);
	if (minor < 0)
		return -EINVAL;
	*ret_major = major;
	*ret_minor = minor;
	return 0;
}

static bool qemu_version_at_least(int major, int minor, int want_major, int want_minor)
{
	return major > want_major || (major == want_major && minor >= want_minor);
}

bool qemu_version_runs(int major, int minor)
{
	return qemu_version_at_least(major, minor, QEMU_MIN_MAJOR, QEMU_MIN_MINOR);
}

bool qemu_version_has_templates(int major, int minor)
{
	return qemu_version_at_least(major, minor, QEMU_TEMPLATES_MAJOR, QEMU_TEMPLATES_MINOR);
}

void qemu_version_describe(int major, int minor, char *out, size_t len)
{
	if (!qemu_version_runs(major, minor))
		snprintf(out, len, "QEMU %d.%d is too old: %d.%d is needed", major, minor,
			 QEMU_MIN_MAJOR, QEMU_MIN_MINOR);
	else if (!qemu_version_has_templates(major, minor))
		snprintf(out, len,
			 "QEMU %d.%d runs containers; it cannot save VMs with a shared file "
			 "system, so "
			 "templates are unavailable: that needs %d.%d",
			 major, minor, QEMU_TEMPLATES_MAJOR, QEMU_TEMPLATES_MINOR);
	else
		snprintf(out, len, "QEMU %d.%d", major, minor);
}
