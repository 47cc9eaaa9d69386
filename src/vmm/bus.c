/* Dispatch of register accesses; see bus.h. */
#include "bus.h"

#include <errno.h>
#include <string.h>

#include "util.h"

int bus_add(struct bus *bus, uint64_t addr, uint64_t len, const struct bus_ops *ops, void *ctx)
{
	unsigned int at = 0;
	uint64_t end;

	if (!len || __builtin_add_overflow(addr, len, &end))
		return -EINVAL;
	if (bus->nr == BUS_TARGETS_MAX)
		return -ENOSPC;
	while (at < bus->nr && bus->targets[at].addr < addr)
		at++;
	if (at < bus->nr && bus->targets[at].addr < end)
		return -EEXIST;
	if (at && bus->targets[at - 1].addr + bus->targets[at - 1].len > addr)
		return -EEXIST;
	memmove(&bus->targets[at + 1], &bus->targets[at], (bus->nr - at) * sizeof(bus->targets[0]));
	bus->targets[at] = (struct bus_target){.addr = addr, .len = len, .ops = ops, .ctx = ctx};
	bus->nr++;
	return 0;
}

/* The target that holds the whole access, or NULL. */
static const struct bus_target *bus_find(const struct bus *bus, uint64_t addr, uint32_t len)
{
	unsigned int low = 0, high = bus->nr;

	while (low < high) {
		unsigned int mid = (low + high) / 2;
		const struct bus_target *t = &bus->targets[mid];

		if (addr < t->addr)
			high = mid;
		else if (addr - t->addr >= t->len)
			low = mid + 1;
		else
			return len && len <= t->len - (addr - t->addr) ? t : NULL;
	}
	return NULL;
}

void bus_read(const struct bus *bus, uint64_t addr, void *data, uint32_t len)
{
	const struct bus_target *t = bus_find(bus, addr, len);

	memset(data, 0xff, len);
	if (t)
		t->ops->read(t->ctx, addr - t->addr, data, len);
}

void bus_write(const struct bus *bus, uint64_t addr, const void *data, uint32_t len)
{
	const struct bus_target *t = bus_find(bus, addr, len);

	if (t)
		t->ops->write(t->ctx, addr - t->addr, data, len);
}
