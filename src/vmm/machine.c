/* The machine as a whole; see machine.h and docs/vmm.md. */
#include "machine.h"

#include <errno.h>
#include <linux/kvm.h>
#include <linux/virtio_mmio.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch.h"
#include "bus.h"
#include "cleanup.h"
#include "log.h"
#include "memory.h"
#include "mmio.h"
#include "ports.h"
#include "serial.h"
#include "snapshot.h"

#define MACHINE_DEVICES_MAX 24
#define MACHINE_PAGE 4096u
#define MACHINE_THREAD_NAME_MAX 16

struct machine {
	struct loop *loop; /* borrowed */
	struct machine_callbacks cb;
	void *ctx;
	int kvm_fd, vm_fd, kernel_fd, initrd_fd; /* owned */
	uint64_t mem_bytes;
	struct memory mem;
	struct bus mmio, ports;
	struct serial serial;
	struct ports reset_ports;
	struct vcpus vcpus;
	struct loop_watch *watch; /* of vcpus.event_fd */
	bool pausing, ended;
	unsigned int nr_devices;
	struct virtio_mmio *devices[MACHINE_DEVICES_MAX]; /* owned */
	struct arch_msr_list msrs;
	struct machine_env env;
	struct virtio_env virtio_env;
	char cmdline[MACHINE_CMDLINE_MAX + 1];
};

static void machine_on_event(void *ctx, uint32_t events)
{
	struct machine *m = ctx;
	struct vcpus_end end = vcpus_end(&m->vcpus);
	uint64_t count;

	while (read(m->vcpus.event_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	if (!vcpus_all_parked(&m->vcpus) || m->ended)
		return;
	if (end.kind != VCPUS_END_NONE) {
		m->ended = true;
		serial_flush(&m->serial);
		m->cb.on_end(m->ctx, &end);
		/* The machine may be gone now. */
		return;
	}
	if (m->pausing) {
		m->pausing = false;
		m->cb.on_paused(m->ctx);
	}
}

static int machine_create_vm(struct machine *m, struct err *err)
{
	int version = ioctl(m->kvm_fd, KVM_GET_API_VERSION, 0);

	if (version != KVM_API_VERSION)
		return err_say(err, -EPROTO, "this is not KVM: it says version %d, not %d", version,
			       KVM_API_VERSION);
	do
		m->vm_fd = ioctl(m->kvm_fd, KVM_CREATE_VM, 0);
	while (m->vm_fd < 0 && errno == EINTR);
	if (m->vm_fd < 0)
		return err_set(err, -errno, "create a VM");
	return arch_vm_init(m->kvm_fd, m->vm_fd, err);
}

static int machine_create_vcpus(struct machine *m, unsigned int nr, struct err *err)
{
	int r = vcpus_init(&m->vcpus, m->kvm_fd, m->vm_fd, nr, &m->mmio, &m->ports, err);

	for (unsigned int i = 0; i < nr && !r; i++)
		r = arch_vcpu_init(m->kvm_fd, m->vcpus.vcpus[i]->fd, i, nr, err);
	if (r)
		return r;
	m->watch = loop_watch_add(m->loop, m->vcpus.event_fd, EPOLLIN, machine_on_event, m);
	return m->watch ? 0 : err_set(err, -errno, "watch the vCPUs");
}

static int machine_build(struct machine *m, const struct machine_config *c, struct err *err)
{
	struct memory_range ranges[MEMORY_RANGES_MAX];
	unsigned int nr;
	int r;

	if (!c->mem_bytes || c->mem_bytes % MACHINE_PAGE)
		return err_say(err, -EINVAL, "memory must be whole pages, not %llu bytes",
			       (unsigned long long)c->mem_bytes);
	if (snprintf(m->cmdline, sizeof(m->cmdline), "%s", c->cmdline) >= (int)sizeof(m->cmdline))
		return err_say(err, -E2BIG, "the kernel's command line is too long");
	r = machine_create_vm(m, err);
	if (r)
		return r;
	r = arch_msr_list_get(m->kvm_fd, &m->msrs, err);
	if (r)
		return r;
	nr = arch_memory_layout(c->mem_bytes, ranges);
	r = memory_init(&m->mem, m->vm_fd, ranges, nr, err);
	if (!r)
		r = machine_create_vcpus(m, c->nr_vcpus, err);
	if (!r)
		r = ports_init(&m->reset_ports, &m->ports, &m->serial, &m->vcpus);
	return r;
}

static void machine_freep(struct machine **m)
{
	machine_free(*m);
}

int machine_new(struct loop *loop, const struct machine_config *c,
		const struct machine_callbacks *cb, void *ctx, struct machine **ret,
		struct err *err)
{
	cleanup(machine_freep) struct machine *m = xcalloc(1, sizeof(*m));
	int r;

	m->loop = loop;
	m->cb = *cb;
	m->ctx = ctx;
	m->kvm_fd = c->kvm_fd;
	m->kernel_fd = c->kernel_fd;
	m->initrd_fd = c->initrd_fd;
	m->vm_fd = -1;
	m->mem_bytes = c->mem_bytes;
	serial_init(&m->serial, c->console_fd);
	r = machine_build(m, c, err);
	if (r)
		return r;
	*ret = take_ptr(&m);
	return 0;
}

/* KVM itself rings the queue's bell: the vCPU does not leave the kernel for a kick. */
static int machine_bind_kicks(struct machine *m, struct virtio_mmio *dev, uint64_t gpa,
			      struct err *err)
{
	for (unsigned int i = 0; i < virtio_mmio_nr_queues(dev); i++) {
		struct kvm_ioeventfd e = {
			.datamatch = i,
			.addr = gpa + VIRTIO_MMIO_QUEUE_NOTIFY,
			.len = 4,
			.fd = virtio_mmio_kick_fd(dev, i),
			.flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
		};

		if (ioctl(m->vm_fd, KVM_IOEVENTFD, &e))
			return err_set(err, -errno, "bind a queue's kicks");
	}
	return 0;
}

static int machine_bind_irq(struct machine *m, int irq_fd, uint32_t irq, struct err *err)
{
	struct kvm_irqfd i = {.fd = (uint32_t)irq_fd, .gsi = irq};

	return ioctl(m->vm_fd, KVM_IRQFD, &i) ? err_set(err, -errno, "bind a device's interrupt")
					      : 0;
}

static void machine_mmio_read(void *ctx, uint64_t off, void *data, uint32_t len)
{
	virtio_mmio_read(ctx, off, data, len);
}

static void machine_mmio_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	virtio_mmio_write(ctx, off, data, len);
}

static const struct bus_ops machine_mmio_ops = {.read = machine_mmio_read,
						.write = machine_mmio_write};

/* The kernel has no other way to find a device (Documentation/admin-guide/kernel-parameters.txt). */
static int machine_announce(struct machine *m, uint64_t gpa, uint32_t irq, struct err *err)
{
	size_t len = strlen(m->cmdline), room = sizeof(m->cmdline) - len;
	int n = snprintf(m->cmdline + len, room, "%svirtio_mmio.device=4K@0x%llx:%u",
			 len ? " " : "", (unsigned long long)gpa, irq);

	return (size_t)n < room ? 0 : err_say(err, -E2BIG, "the kernel's command line is too long");
}

/* An access that KVM could not make by itself, an instruction that it emulates. */
static void machine_window_read(void *ctx, uint64_t off, void *data, uint32_t len)
{
	const struct virtio_device *dev = ctx;

	if (off < dev->shm_len && len <= dev->shm_len - off)
		memcpy(data, dev->shm + off, len);
}

static void machine_window_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	/* It is read-only. */
}

static const struct bus_ops machine_window_ops = {.read = machine_window_read,
						  .write = machine_window_write};

/* The memory that a device shows, and where. */
static int machine_add_window(struct machine *m, struct virtio_device *dev,
			      struct virtio_mmio_shm *ret, struct err *err)
{
	uint64_t base = arch_window_base(m->mem_bytes);
	int r;

	if (!dev->shm_len)
		return 0;
	*ret = (struct virtio_mmio_shm){.gpa = {base}, .len = dev->shm_len};
	r = memory_add_window(&m->mem, base, dev->shm_len, dev->shm, err);
	if (r)
		return r;
	r = bus_add(&m->mmio, base, dev->shm_len, &machine_window_ops, dev);
	return r ? err_set(err, r, "place a device's memory") : 0;
}

int machine_add_device(struct machine *m, struct virtio_device *dev, struct err *err)
{
	struct virtio_mmio_config config = {.dev = dev, .mem = &m->mem.guest};
	int irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct virtio_mmio *mmio;
	uint64_t gpa = 0;
	uint32_t irq = 0;
	int r;

	if (irq_fd < 0 || m->nr_devices == MACHINE_DEVICES_MAX ||
	    !arch_device_slot(m->nr_devices, &gpa, &irq)) {
		r = irq_fd < 0 ? -errno : -ENOSPC;
		cleanup_closep(&irq_fd);
		virtio_device_free(dev);
		return err_set(err, r, "add a device: no slot is left");
	}
	r = machine_bind_irq(m, irq_fd, irq, err);
	if (!r)
		r = machine_add_window(m, dev, &config.shm[0], err);
	if (r) {
		close(irq_fd);
		virtio_device_free(dev);
		return r;
	}
	config.irq_fd = irq_fd;
	mmio = virtio_mmio_new(&config);
	m->devices[m->nr_devices++] = mmio;
	r = machine_bind_kicks(m, mmio, gpa, err);
	if (!r)
		r = machine_announce(m, gpa, irq, err);
	if (r)
		return r; /* machine_free() takes it all back */
	r = bus_add(&m->mmio, gpa, VIRTIO_MMIO_WINDOW, &machine_mmio_ops, mmio);
	return r ? err_set(err, r, "place a device's registers") : 0;
}

const struct guest_mem *machine_mem(const struct machine *m)
{
	return &m->mem.guest;
}

static void machine_init_worker(void *ctx, const char *name)
{
	struct machine *m = ctx;

	if (m->env.thread_init)
		m->env.thread_init(m->env.ctx, MACHINE_THREAD_WORKER, name);
}

/* A vCPU read what is not there: is that a device's memory, which has changed? */
static uint64_t machine_on_fault(void *ctx)
{
	struct machine *m = ctx;
	uint64_t nr_mends = 0;

	for (unsigned int i = 0; i < m->nr_devices; i++) {
		struct virtio_device *dev = virtio_mmio_device(m->devices[i]);

		if (dev->shm_len && dev->ops->shm_fault)
			nr_mends += dev->ops->shm_fault(dev);
	}
	return nr_mends;
}

static void machine_init_vcpu(void *ctx, unsigned int index)
{
	struct machine *m = ctx;
	char name[MACHINE_THREAD_NAME_MAX];

	snprintf(name, sizeof(name), "vcpu%u", index);
	if (m->env.thread_init)
		m->env.thread_init(m->env.ctx, MACHINE_THREAD_VCPU, name);
}

static const struct vcpus_callbacks machine_vcpus_callbacks = {.thread_init = machine_init_vcpu,
							       .fault = machine_on_fault};

static int machine_start_devices(struct machine *m, struct err *err)
{
	m->virtio_env =
		(struct virtio_env){.loop = m->loop, .thread_init = machine_init_worker, .ctx = m};
	for (unsigned int i = 0; i < m->nr_devices; i++) {
		int r = virtio_mmio_start(m->devices[i], &m->virtio_env, err);

		if (r)
			return r;
	}
	return 0;
}

/* Kernel and initrd are in guest memory; /dev/kvm itself is not needed once the vCPUs are there. */
static void machine_close_sources(struct machine *m)
{
	cleanup_closep(&m->kernel_fd);
	cleanup_closep(&m->initrd_fd);
	cleanup_closep(&m->kvm_fd);
}

int machine_start(struct machine *m, const struct machine_env *env, struct err *err)
{
	int r = arch_boot(&m->mem, m->vcpus.vcpus[0]->fd,
			  &(struct arch_boot){
				  .kernel_fd = m->kernel_fd,
				  .initrd_fd = m->initrd_fd,
				  .cmdline = m->cmdline,
				  .mem_bytes = m->mem_bytes,
				  .nr_vcpus = m->vcpus.nr,
			  },
			  err);

	machine_close_sources(m);
	m->env = *env;
	if (!r)
		r = machine_start_devices(m, err);
	return r ? r : vcpus_start(&m->vcpus, &machine_vcpus_callbacks, m, err);
}

static struct snapshot_parts machine_parts(struct machine *m)
{
	return (struct snapshot_parts){.vm_fd = m->vm_fd,
				       .vcpus = &m->vcpus,
				       .msrs = &m->msrs,
				       .mem = &m->mem,
				       .devices = m->devices,
				       .nr_devices = m->nr_devices,
				       .mem_bytes = m->mem_bytes};
}

int machine_restore(struct machine *m, int state_fd, int memory_fd, bool is_own,
		    const struct machine_env *env, struct err *err)
{
	const struct snapshot_parts parts = machine_parts(m);
	int r = snapshot_restore_memory(&parts, memory_fd, is_own, err);

	machine_close_sources(m);
	m->env = *env;
	if (!r)
		r = machine_start_devices(m, err);
	if (!r)
		r = snapshot_restore(&parts, state_fd, err);
	return r ? r : vcpus_start(&m->vcpus, &machine_vcpus_callbacks, m, err);
}

int machine_save(struct machine *m, int state_fd, int memory_fd, uint64_t used_bytes,
		 struct err *err)
{
	const struct snapshot_parts parts = machine_parts(m);

	return snapshot_save(&parts, state_fd, memory_fd, used_bytes, err);
}

void machine_run(struct machine *m)
{
	m->pausing = false;
	vcpus_run(&m->vcpus);
}

void machine_pause(struct machine *m)
{
	m->pausing = true;
	vcpus_park(&m->vcpus);
}

void machine_flush_console(struct machine *m)
{
	serial_flush(&m->serial);
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	loop_watch_remove(m->watch);
	vcpus_done(&m->vcpus);
	for (unsigned int i = 0; i < m->nr_devices; i++)
		virtio_mmio_free(m->devices[i]);
	memory_done(&m->mem);
	serial_done(&m->serial);
	cleanup_closep(&m->vm_fd);
	cleanup_closep(&m->kvm_fd);
	cleanup_closep(&m->kernel_fd);
	cleanup_closep(&m->initrd_fd);
	free(m);
}
