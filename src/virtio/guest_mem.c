/* Guest memory table: translation with bounds. Read by many threads, changed while they are stopped. */
#include "guest_mem.h"

#include <errno.h>
#include <stddef.h>

int guest_mem_add(struct guest_mem *mem, gpa_t gpa, uint64_t len, void *host)
{
	uint64_t end;

	if (!len || __builtin_add_overflow(gpa.v, len, &end))
		return -EINVAL;
	for (unsigned int i = 0; i < mem->nr; i++) {
		const struct guest_mem_region *r = &mem->regions[i];

		if (gpa.v < r->gpa.v + r->len && r->gpa.v < end)
			return -EEXIST;
	}
	if (mem->nr == GUEST_MEM_REGIONS_MAX)
		return -ENOSPC;
	mem->regions[mem->nr++] = (struct guest_mem_region){.gpa = gpa, .len = len, .host = host};
	return 0;
}

void *guest_mem_ptr(const struct guest_mem *mem, gpa_t gpa, uint64_t len)
{
	for (unsigned int i = 0; i < mem->nr; i++) {
		const struct guest_mem_region *r = &mem->regions[i];
		uint64_t off = gpa.v - r->gpa.v;

		/* Below the region, off wraps to something huge; no sum is formed that could. */
		if (off < r->len && len <= r->len - off)
			return r->host + off;
	}
	return NULL;
}
