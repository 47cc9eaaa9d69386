/* Guest memory table: translation with bounds. Read by many threads, changed while they are stopped. */
#include "guest_mem.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

static bool region_meets(const struct guest_mem_region *r, uint64_t begin, uint64_t end)
{
	return begin < r->gpa.v + r->len && r->gpa.v < end;
}

/* Is the range free? */
static int guest_mem_check(const struct guest_mem *mem, gpa_t gpa, uint64_t len)
{
	uint64_t end;

	if (!len || __builtin_add_overflow(gpa.v, len, &end))
		return -EINVAL;
	for (unsigned int i = 0; i < mem->nr; i++) {
		if (region_meets(&mem->regions[i], gpa.v, end))
			return -EEXIST;
	}
	return region_meets(&mem->window, gpa.v, end) ? -EEXIST : 0;
}

int guest_mem_add(struct guest_mem *mem, gpa_t gpa, uint64_t len, void *host)
{
	int r = guest_mem_check(mem, gpa, len);

	if (r)
		return r;
	if (mem->nr == GUEST_MEM_REGIONS_MAX)
		return -ENOSPC;
	mem->regions[mem->nr++] = (struct guest_mem_region){.gpa = gpa, .len = len, .host = host};
	return 0;
}

int guest_mem_set_window(struct guest_mem *mem, gpa_t gpa, uint64_t len, void *host)
{
	int r = mem->window.len ? -EEXIST : guest_mem_check(mem, gpa, len);

	if (!r)
		mem->window = (struct guest_mem_region){.gpa = gpa, .len = len, .host = host};
	return r;
}

static void *region_ptr(const struct guest_mem_region *r, gpa_t gpa, uint64_t len)
{
	uint64_t off = gpa.v - r->gpa.v;

	/* Below the region, off wraps to something huge; no sum is formed that could. */
	return off < r->len && len <= r->len - off ? r->host + off : NULL;
}

void *guest_mem_ptr(const struct guest_mem *mem, gpa_t gpa, uint64_t len)
{
	for (unsigned int i = 0; i < mem->nr; i++) {
		void *p = region_ptr(&mem->regions[i], gpa, len);

		if (p)
			return p;
	}
	return NULL;
}

const void *guest_mem_read_ptr(const struct guest_mem *mem, gpa_t gpa, uint64_t len)
{
	const void *p = guest_mem_ptr(mem, gpa, len);

	return p ? p : region_ptr(&mem->window, gpa, len);
}
