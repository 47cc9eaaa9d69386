/* Saving and restoring a machine; see snapshot.h. */
#include "snapshot.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "memory.h"
#include "util.h"

#define SNAPSHOT_MAGIC 0x6e707268766d6d31ull /* "hrpnvmm1" */
#define SNAPSHOT_PAGE 4096u
/* Pages looked at before what is not zero is written. */
#define SNAPSHOT_RUN_MAX 256u

struct snapshot_header {
	uint64_t magic;
	uint64_t mem_bytes;
	uint32_t vcpu_len, vm_len, mmio_len;
	uint32_t nr_vcpus, nr_devices;
	uint32_t window_mib; /* of the devices' memory, which itself is not saved */
};

struct snapshot_device {
	uint32_t id;	  /* VIRTIO_ID_* */
	uint32_t own_len; /* of what the device says of itself, which follows */
	struct virtio_mmio_state mmio;
};

static struct snapshot_header snapshot_header_of(const struct snapshot_parts *p)
{
	return (struct snapshot_header){
		.magic = SNAPSHOT_MAGIC,
		.mem_bytes = p->mem_bytes,
		.vcpu_len = sizeof(struct arch_vcpu_state),
		.vm_len = sizeof(struct arch_vm_state),
		.mmio_len = sizeof(struct virtio_mmio_state),
		.nr_vcpus = p->vcpus->nr,
		.nr_devices = p->nr_devices,
		.window_mib = (uint32_t)(p->mem->guest.window.len >> 20),
	};
}

static int snapshot_put(int fd, const void *data, size_t len, struct err *err)
{
	int r = io_write_full(fd, data, len);

	return r ? err_set(err, r, "write the machine's state") : 0;
}

static int snapshot_get(int fd, void *data, size_t len, struct err *err)
{
	ssize_t n = io_read_full(fd, data, len);

	if (n < 0)
		return err_set(err, (int)n, "read the machine's state");
	return (size_t)n == len ? 0 : err_say(err, -EPROTO, "the machine's state is cut short");
}

/* ---- vCPUs ---- */

static int snapshot_save_vcpus(const struct snapshot_parts *p, int fd, struct err *err)
{
	cleanup_free struct arch_vcpu_state *v = xcalloc(1, sizeof(*v));
	cleanup_free struct arch_vm_state *vm = xcalloc(1, sizeof(*vm));
	int r = 0;

	/* The chips last: a local APIC that is read may still take an interrupt from them. */
	for (unsigned int i = 0; i < p->vcpus->nr && !r; i++) {
		r = arch_vcpu_save(p->vm_fd, p->vcpus->vcpus[i]->fd, p->msrs, v, err);
		if (!r)
			r = snapshot_put(fd, v, sizeof(*v), err);
	}
	if (!r)
		r = arch_vm_save(p->vm_fd, vm, err);
	return r ? r : snapshot_put(fd, vm, sizeof(*vm), err);
}

static int snapshot_restore_vcpus(const struct snapshot_parts *p, int fd, struct err *err)
{
	cleanup_free struct arch_vcpu_state *v = xcalloc(1, sizeof(*v));
	cleanup_free struct arch_vm_state *vm = xcalloc(1, sizeof(*vm));
	int r = 0;

	for (unsigned int i = 0; i < p->vcpus->nr && !r; i++) {
		r = snapshot_get(fd, v, sizeof(*v), err);
		if (!r)
			r = arch_vcpu_restore(p->vm_fd, p->vcpus->vcpus[i]->fd, v, err);
	}
	if (!r)
		r = snapshot_get(fd, vm, sizeof(*vm), err);
	return r ? r : arch_vm_restore(p->vm_fd, vm, err);
}

/* ---- devices ---- */

static int snapshot_save_device(struct virtio_mmio *mmio, int fd, struct err *err)
{
	struct virtio_device *dev = virtio_mmio_device(mmio);
	struct snapshot_device d = {.id = dev->info.id};
	cleanup_free uint8_t *own = NULL;
	size_t own_len = 0;
	int r = dev->ops->save ? dev->ops->save(dev, &own, &own_len, err) : 0;

	if (r)
		return r;
	if (own_len > SNAPSHOT_DEVICE_STATE_MAX)
		return err_say(err, -E2BIG, "the state of device '%s' has %zu bytes",
			       dev->info.name, own_len);
	d.own_len = (uint32_t)own_len;
	virtio_mmio_save(mmio, &d.mmio);
	r = snapshot_put(fd, &d, sizeof(d), err);
	return r || !own_len ? r : snapshot_put(fd, own, own_len, err);
}

static int snapshot_restore_own(struct virtio_device *dev, const struct snapshot_device *d, int fd,
				struct err *err)
{
	cleanup_free uint8_t *own = NULL;
	int r;

	if (d->id != dev->info.id || d->own_len > SNAPSHOT_DEVICE_STATE_MAX ||
	    (d->own_len && !dev->ops->load))
		return err_say(err, -EPROTO, "the saved machine has other devices");
	if (!d->own_len)
		return 0;
	own = xmalloc(d->own_len);
	r = snapshot_get(fd, own, d->own_len, err);
	return r ? r : dev->ops->load(dev, own, d->own_len, err);
}

static int snapshot_restore_device(struct virtio_mmio *mmio, int fd, struct err *err)
{
	struct virtio_device *dev = virtio_mmio_device(mmio);
	struct snapshot_device d;
	int r = snapshot_get(fd, &d, sizeof(d), err);

	if (!r)
		r = snapshot_restore_own(dev, &d, fd, err);
	if (r)
		return r;
	r = virtio_mmio_restore(mmio, &d.mmio);
	return r ? err_set(err, r, "restore device '%s'", dev->info.name) : 0;
}

/* ---- memory ---- */

static bool snapshot_is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, SNAPSHOT_PAGE - 1);
}

static int snapshot_write_region(const struct guest_mem_region *r, uint64_t used, int fd,
				 uint64_t offset)
{
	uint64_t at = 0;

	while (at < used) {
		uint64_t len = 0;
		int e;

		if (snapshot_is_zero(r->host + at)) {
			at += SNAPSHOT_PAGE;
			continue;
		}
		while (at + len < used && len < SNAPSHOT_RUN_MAX * SNAPSHOT_PAGE &&
		       !snapshot_is_zero(r->host + at + len))
			len += SNAPSHOT_PAGE;
		e = io_pwrite_full(fd, r->host + at, len, (off_t)(offset + at));
		if (e)
			return e;
		at += len;
	}
	return 0;
}

static int snapshot_save_memory(const struct snapshot_parts *p, int fd, uint64_t used_bytes,
				struct err *err)
{
	const struct guest_mem *g = &p->mem->guest;
	uint64_t offset = 0;
	int r = ftruncate(fd, (off_t)p->mem_bytes) ? -errno : 0;

	for (unsigned int i = 0; i < g->nr && !r; i++) {
		uint64_t used = MIN(used_bytes - MIN(used_bytes, offset), g->regions[i].len);

		r = snapshot_write_region(&g->regions[i], used, fd, offset);
		offset += g->regions[i].len;
	}
	return r ? err_set(err, r, "write guest memory") : 0;
}

/* In place, so that KVM's slots stay: pages are shared with all clones until written. */
static int snapshot_map_region(const struct guest_mem_region *r, int fd, uint64_t offset)
{
	if (mmap(r->host, r->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
		 fd, (off_t)offset) == MAP_FAILED)
		return -errno;
	madvise(r->host, r->len, MADV_DONTDUMP);
	return 0;
}

/* Where it has holes there is nothing to copy: the memory is fresh. */
static int snapshot_copy_region(const struct guest_mem_region *r, int fd, uint64_t offset)
{
	off_t at = (off_t)offset, end = (off_t)(offset + r->len), stop;

	for (; at < end; at = stop) {
		int e;

		at = lseek(fd, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		if (at >= end)
			return 0;
		stop = lseek(fd, at, SEEK_HOLE);
		if (stop < 0)
			return -errno;
		stop = MIN(stop, end);
		e = io_pread_full(fd, r->host + ((uint64_t)at - offset), (size_t)(stop - at), at);
		if (e)
			return e;
	}
	return 0;
}

int snapshot_restore_memory(const struct snapshot_parts *p, int fd, bool is_own, struct err *err)
{
	const struct guest_mem *g = &p->mem->guest;
	uint64_t offset = 0;
	struct stat st;

	if (fstat(fd, &st))
		return err_set(err, -errno, "look at the saved memory");
	if ((uint64_t)st.st_size != p->mem_bytes)
		return err_say(err, -EPROTO, "the saved memory has %lld bytes",
			       (long long)st.st_size);
	for (unsigned int i = 0; i < g->nr; i++) {
		const struct guest_mem_region *r = &g->regions[i];
		int e = is_own ? snapshot_copy_region(r, fd, offset)
			       : snapshot_map_region(r, fd, offset);

		if (e)
			return err_set(err, e, "take in the saved memory");
		offset += r->len;
	}
	return 0;
}

/* ---- all of it ---- */

static int snapshot_save_state(const struct snapshot_parts *p, int fd, struct err *err)
{
	const struct snapshot_header h = snapshot_header_of(p);
	int r = snapshot_put(fd, &h, sizeof(h), err);

	/* Devices first: quiet ones raise no interrupt any more when the chips are read. */
	for (unsigned int i = 0; i < p->nr_devices && !r; i++)
		r = snapshot_save_device(p->devices[i], fd, err);
	return r ? r : snapshot_save_vcpus(p, fd, err);
}

int snapshot_save(const struct snapshot_parts *p, int state_fd, int memory_fd, uint64_t used_bytes,
		  struct err *err)
{
	int r;

	for (unsigned int i = 0; i < p->nr_devices; i++)
		virtio_device_quiesce(virtio_mmio_device(p->devices[i]));
	r = snapshot_save_state(p, state_fd, err);
	if (!r)
		r = snapshot_save_memory(p, memory_fd, used_bytes, err);
	for (unsigned int i = 0; i < p->nr_devices; i++)
		virtio_device_resume(virtio_mmio_device(p->devices[i]));
	return r;
}

int snapshot_restore(const struct snapshot_parts *p, int fd, struct err *err)
{
	const struct snapshot_header wanted = snapshot_header_of(p);
	struct snapshot_header h;
	int r = lseek(fd, 0, SEEK_SET) ? err_set(err, -errno, "read the machine's state")
				       : snapshot_get(fd, &h, sizeof(h), err);

	if (!r && memcmp(&h, &wanted, sizeof(h)) != 0)
		r = err_say(err, -EPROTO, "the saved machine is another one than this");
	for (unsigned int i = 0; i < p->nr_devices && !r; i++)
		r = snapshot_restore_device(p->devices[i], fd, err);
	if (!r)
		r = snapshot_restore_vcpus(p, fd, err);
	/* Between irqfd and interrupt controller an edge may be under way, which no state of KVM's holds. */
	for (unsigned int i = 0; i < p->nr_devices && !r; i++)
		virtio_mmio_interrupt_again(p->devices[i]);
	return r;
}
