/*
 * How a VM of the kvm backend begins: what harpoon-vmm works with is opened here, it is started in its jail, and
 * told of the machine, the devices, and the start.
 *
 * Thread: the loop's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "kernel_args.h"
#include "kernel_image.h"
#include "kvm_internal.h"
#include "template_image.h"
#include "util.h"

#define KVM_PATH "/dev/kvm"
#define KVM_GUEST_CID 3
/* What the agent mounts, as on every backend. */
#define KVM_FS_TAG "harpoon"
/* The virtio 1.x header, and everything the device offers to the guest. */
#define KVM_TAP_HEADER 12
#define KVM_TAP_OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
/* Streams, and files that harpoon-fs lets it read and write directly. */
#define KVM_FILES_MAX 16384
/* The loop, the vCPUs, a worker for each queue that may block: one of each disk, some of the file system. */
#define KVM_THREADS_MAX(nr_vcpus) ((nr_vcpus) + 1 + 16 + HV_DISKS_MAX)
/* Requests that may be on their way: a thousand; it reads them as they come. */
#define KVM_SOCKET_BUFFER (4 << 20)

/* What goes to harpoon-vmm with the first request. */
enum { KVM_FD_KVM, KVM_FD_KERNEL, KVM_FD_INITRD, KVM_FD_CONSOLE, KVM_NR_FDS };

struct kvm_fds {
	int fds[KVM_NR_FDS];
};

static void kvm_fds_done(struct kvm_fds *f)
{
	for (size_t i = 0; i < KVM_NR_FDS; i++)
		cleanup_closep(&f->fds[i]);
}

static int kvm_open_file(const char *key, const char *path, int *ret, struct err *err)
{
	struct stat st;

	*ret = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (*ret < 0 || fstat(*ret, &st))
		return err_set(err, -errno,
			       "%s '%s' (key '%s' of harpoon.conf; `harpoon check` says more)", key,
			       path, key);
	if (!S_ISREG(st.st_mode))
		return err_say(err, -EINVAL, "%s '%s' is not a file", key, path);
	return 0;
}

static int kvm_open_files(const struct config *c, struct kvm_fds *f, struct err *err)
{
	int r = kernel_image_check(c->kernel, err);

	if (!r)
		r = kvm_open_file("kernel", c->kernel, &f->fds[KVM_FD_KERNEL], err);
	if (!r)
		r = kvm_open_file("initrd", c->initrd, &f->fds[KVM_FD_INITRD], err);
	if (r)
		return r;
	f->fds[KVM_FD_KVM] = open(KVM_PATH, O_RDWR | O_CLOEXEC);
	if (f->fds[KVM_FD_KVM] < 0)
		return err_set(err, -errno, "open '%s'", KVM_PATH);
	return 0;
}

/* The program; ours is static, so that its root can be empty. */
static int kvm_spawn(struct hv_vm *vm, int sock, struct err *err)
{
	const char *path = vm->params.config->vmm;
	cleanup_close int exe = open(path, O_PATH | O_CLOEXEC);
	char name[] = "harpoon-vmm";
	char *argv[] = {name, NULL};

	if (exe < 0)
		return err_set(err, -errno, "harpoon-vmm '%s' (key 'vmm' of harpoon.conf)", path);
	return child_start(
		&vm->vmm,
		&(struct spawn_params){
			.path = path,
			.exe_fd = exe,
			.by_fd = true,
			.argv = argv,
			.fds = &sock,
			.nr_fds = 1,
			.jail =
				&(struct spawn_jail){
					.netns_fd = vm->params.netns_fd,
					/* It writes to files and devices it was given, of any size. */
					.file_size_max = UINT64_MAX,
					.nr_files_max = KVM_FILES_MAX,
					.nr_threads_max = KVM_THREADS_MAX(vm->params.nr_vcpus),
				},
		},
		err);
}

static int kvm_send_machine(struct hv_vm *vm, const struct kvm_fds *f, struct err *err)
{
	struct vmm_request req = {
		.op = VMM_OP_MACHINE,
		.machine = {.mem_bytes = hv_machine_bytes(&vm->params),
			    .nr_vcpus = vm->params.nr_vcpus},
	};
	cleanup_free char *cmdline = kernel_args_build(
		&(struct kernel_args){.template = vm->params.birth == HV_BIRTH_TEMPLATE,
				      .nr_vcpus = vm->params.nr_vcpus,
				      .mem_bytes = vm->params.mem_bytes,
				      .machine_bytes = hv_machine_bytes(&vm->params),
				      .extra = vm->params.config->kernel_args});
	int r;

	if (snprintf(req.machine.cmdline, sizeof(req.machine.cmdline), "%s", cmdline) >=
	    (int)sizeof(req.machine.cmdline))
		return err_say(err, -E2BIG,
			       "the kernel's command line has %zu bytes, %zu are possible (key "
			       "'kernel_args' of harpoon.conf)",
			       strlen(cmdline), sizeof(req.machine.cmdline) - 1);
	r = kvm_send(vm->backend, &req, f->fds, KVM_NR_FDS);
	return r ? err_set(err, r, "send the machine to harpoon-vmm") : 0;
}

static int kvm_send_device(struct kvm *k, struct vmm_request *req, int fd, struct err *err)
{
	int r;

	req->op = VMM_OP_DEVICE;
	r = kvm_send(k, req, &fd, fd >= 0);
	return r ? err_set(err, r, "send a device to harpoon-vmm") : 0;
}

/* What harpoon-vmm's device carries; the tap hands frames over in this form. */
static int kvm_prepare_tap(int fd, uint32_t offloads, struct err *err)
{
	int header = KVM_TAP_HEADER;

	if (ioctl(fd, TUNSETVNETHDRSZ, &header) ||
	    ioctl(fd, TUNSETOFFLOAD, (unsigned long)offloads))
		return err_set(err, -errno, "set up a tap for the VM");
	return 0;
}

static int kvm_send_nic(struct kvm *k, const struct hv_nic *nic, size_t index, struct err *err)
{
	struct vmm_request req = {.device = {.kind = VMM_DEVICE_NET, .offloads = KVM_TAP_OFFLOADS}};
	unsigned int mac[6];
	char text[32];
	int r;

	if (nic->kind == HV_NIC_STREAM) {
		req.device.flags = VMM_NET_STREAM;
		req.device.offloads = 0;
	}
	snprintf(text, sizeof(text), HV_NIC_MAC, (unsigned int)index);
	/* NOLINTNEXTLINE(cert-err34-c): the text is our own constant, two digits each */
	if (sscanf(text, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
		   &mac[5]) != 6)
		return err_say(err, -EINVAL, "'%s' is no hardware address", text);
	for (size_t i = 0; i < ARRAY_SIZE(mac); i++)
		req.device.mac[i] = (uint8_t)mac[i];
	r = nic->kind == HV_NIC_TAP ? kvm_prepare_tap(nic->fd, KVM_TAP_OFFLOADS, err) : 0;
	return r ? r : kvm_send_device(k, &req, nic->fd, err);
}

static int kvm_send_disk(struct kvm *k, const struct hv_disk *disk, size_t index, struct err *err)
{
	struct vmm_request req = {.device.kind = VMM_DEVICE_BLK};

	if (disk->read_only)
		req.device.flags = VMM_BLK_READ_ONLY;
	snprintf(req.device.tag, sizeof(req.device.tag), HV_DISK_SERIAL, index);
	return kvm_send_device(k, &req, disk->fd, err);
}

static int kvm_send_devices(struct hv_vm *vm, int fs_fd, struct err *err)
{
	struct vmm_request vsock = {.device = {.kind = VMM_DEVICE_VSOCK, .cid = KVM_GUEST_CID}};
	struct vmm_request fs = {
		.device = {.kind = VMM_DEVICE_FS,
			   .tag = KVM_FS_TAG,
			   .window_bytes = (uint64_t)vm->params.config->dax_window_mib << 20}};
	struct vmm_request balloon = {.device.kind = VMM_DEVICE_BALLOON};
	struct vmm_request rng = {.device.kind = VMM_DEVICE_RNG};
	struct kvm *k = vm->backend;
	int r = kvm_send_device(k, &vsock, -1, err);

	if (!r)
		r = kvm_send_device(k, &fs, fs_fd, err);
	if (!r)
		r = kvm_send_device(k, &balloon, -1, err);
	if (!r)
		r = kvm_send_device(k, &rng, -1, err);
	for (size_t i = 0; i < vm->params.nr_nics && !r; i++)
		r = kvm_send_nic(k, &vm->params.nics[i], i, err);
	for (size_t i = 0; i < vm->params.nr_disks && !r; i++)
		r = kvm_send_disk(k, &vm->params.disks[i], i, err);
	return r;
}

/* The control socket, ours in k->sock. */
static int kvm_connect(struct kvm *k, loop_watch_fn on_socket, int *ret_theirs, struct err *err)
{
	const int size = KVM_SOCKET_BUFFER;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socketpair");
	k->sock = pair[0];
	*ret_theirs = pair[1];
	if (setsockopt(k->sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    io_set_nonblock(k->sock, true))
		return err_set(err, -errno, "set up the control socket");
	k->watch = loop_watch_add(k->vm->loop, k->sock, EPOLLIN, on_socket, k);
	return k->watch ? 0 : err_set(err, -errno, "watch the control socket");
}

static int kvm_open_console(struct hv_vm *vm, int *ret_theirs, struct err *err)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return err_set(err, -errno, "socketpair");
	*ret_theirs = pair[1];
	return console_new(vm->loop, pair[0], vm->params.state_dir_fd,
			   (size_t)vm->params.config->console_log_kib * 1024, &vm->console, err);
}

/* A checkpoint's memory is packed; what it becomes nobody else uses. */
static int kvm_unpack_memory(int packed_fd, uint64_t bytes, int *ret, struct err *err)
{
	cleanup_close int fd = memfd_create("guest", MFD_CLOEXEC);
	int r;

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		return err_set(err, -errno, "make a file for the guest's memory");
	r = template_image_load(packed_fd, bytes, fd, err);
	if (!r)
		*ret = take_fd(&fd);
	return r;
}

static int kvm_send_restore(const struct hv_vm *vm, struct err *err)
{
	struct vmm_request req = {.op = VMM_OP_RESTORE};
	const struct template *t = vm->tmpl;
	cleanup_close int own_fd = -1;
	int r = 0;

	if (vm->is_restored) {
		req.flags = VMM_RESTORE_IN_USE;
		r = kvm_unpack_memory(t->memory_fd, hv_machine_bytes(&vm->params), &own_fd, err);
	}
	if (r)
		return r;
	return kvm_send(vm->backend, &req,
			(const int[]){t->state_fd, own_fd >= 0 ? own_fd : t->memory_fd}, 2);
}

static int kvm_send_start(const struct hv_vm *vm, struct err *err)
{
	struct vmm_request req = {.op = VMM_OP_START};
	int r = vm->tmpl ? kvm_send_restore(vm, err) : kvm_send(vm->backend, &req, NULL, 0);

	return r && !err->code ? err_set(err, r, "start the guest") : r;
}

int kvm_launch(struct hv_vm *vm, int fs_fd, loop_watch_fn on_socket, struct err *err)
{
	cleanup(kvm_fds_done) struct kvm_fds f = {{-1, -1, -1, -1}};
	cleanup_close int theirs = -1;
	struct kvm *k = vm->backend;
	int r = kvm_open_files(vm->params.config, &f, err);

	if (!r)
		r = kvm_open_console(vm, &f.fds[KVM_FD_CONSOLE], err);
	if (!r)
		r = kvm_connect(k, on_socket, &theirs, err);
	if (!r)
		r = kvm_spawn(vm, theirs, err);
	if (!r)
		r = kvm_send_machine(vm, &f, err);
	if (!r)
		r = kvm_send_devices(vm, fs_fd, err);
	if (r)
		return r;
	r = kvm_send_start(vm, err);
	if (r)
		return r;
	hv_channel_opened(vm);
	return 0;
}
