/* Guest RAM; see memory.h. */
#include "memory.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "util.h"

#define MEMORY_HUGE_PAGE (2ull << 20)

/*
 * A mapping whose addresses agree with the guest's modulo 2 MiB: only then can the kernel map a huge page
 * of it for the guest in one step, and the guest does not fault on each page it touches first.
 */
static uint8_t *memory_map(const struct memory_range *range)
{
	size_t room = range->len + MEMORY_HUGE_PAGE, before;
	/* Costs nothing until the guest touches it; the container's cgroup is what bounds it. */
	uint8_t *host = mmap(NULL, room, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (host == MAP_FAILED)
		return MAP_FAILED;
	before = (range->gpa - (uintptr_t)host) % MEMORY_HUGE_PAGE;
	if (before)
		munmap(host, before);
	if (MEMORY_HUGE_PAGE - before)
		munmap(host + before + range->len, MEMORY_HUGE_PAGE - before);
	return host + before;
}

/* In the next slot of the VM. */
static int memory_show(struct memory *m, uint64_t gpa, uint64_t len, const void *host,
		       uint32_t flags, struct err *err)
{
	struct kvm_userspace_memory_region slot = {
		.slot = m->nr_slots,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = (uintptr_t)host,
	};

	if (ioctl(m->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot))
		return err_set(err, -errno, "give the VM %llu MiB of memory",
			       (unsigned long long)(len >> 20));
	m->nr_slots++;
	return 0;
}

static int memory_add(struct memory *m, const struct memory_range *range, struct err *err)
{
	uint8_t *host = memory_map(range);
	int r;

	if (host == MAP_FAILED)
		return err_set(err, -errno, "map %llu MiB of guest memory",
			       (unsigned long long)(range->len >> 20));
	/* A dump of this process would hold the guest's secrets. */
	madvise(host, range->len, MADV_DONTDUMP);
	r = guest_mem_add(&m->guest, (gpa_t){range->gpa}, range->len, host);
	if (r) {
		munmap(host, range->len);
		return err_set(err, r, "place guest memory");
	}
	return memory_show(m, range->gpa, range->len, host, 0, err);
}

int memory_init(struct memory *m, int vm_fd, const struct memory_range *ranges, unsigned int nr,
		struct err *err)
{
	int r = 0;

	*m = (struct memory){.vm_fd = vm_fd};
	for (unsigned int i = 0; i < nr && !r; i++)
		r = memory_add(m, &ranges[i], err);
	return r;
}

int memory_add_window(struct memory *m, uint64_t gpa, uint64_t len, void *host, struct err *err)
{
	int r = guest_mem_set_window(&m->guest, (gpa_t){gpa}, len, host);

	return r ? err_set(err, r, "place a device's memory")
		 : memory_show(m, gpa, len, host, KVM_MEM_READONLY, err);
}

void memory_done(struct memory *m)
{
	for (unsigned int i = 0; i < m->guest.nr; i++)
		munmap(m->guest.regions[i].host, m->guest.regions[i].len);
	m->guest.nr = 0;
}
