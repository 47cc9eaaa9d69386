/*
 * Integer handles with generations, so that a number the guest kept too long finds nothing instead of
 * somebody else's object. The owner's lock guards the table.
 */
#include <errno.h>
#include <stdlib.h>

#include "fs_internal.h"

/* Slot 0 becomes number 2: 0 means "none" in the protocol and 1 is the root directory. */
#define FS_SLOT_BASE 2
#define FS_SLOTS_MAX (1u << 22)
#define FS_SLOTS_FIRST 64

static int fs_slots_grow(struct fs_slots *t)
{
	uint32_t cap = t->cap ? t->cap * 2 : FS_SLOTS_FIRST;
	struct fs_slot *slots;

	if (cap > FS_SLOTS_MAX)
		return -ENFILE;
	slots = reallocarray(t->slots, cap, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	t->slots = slots;
	t->cap = cap;
	return 0;
}

int fs_slots_add(struct fs_slots *t, void *ptr, uint64_t *ret_id)
{
	struct fs_slot *s;
	uint32_t index;

	if (t->nr && t->first_free != FS_SLOT_NONE) {
		index = t->first_free;
		s = &t->slots[index];
		t->first_free = s->next_free;
	} else {
		int r = t->nr == t->cap ? fs_slots_grow(t) : 0;

		if (r < 0)
			return r;
		if (!t->nr)
			t->first_free = FS_SLOT_NONE;
		index = t->nr++;
		s = &t->slots[index];
		s->generation = 0;
	}
	s->ptr = ptr;
	*ret_id = (uint64_t)s->generation << 32 | (index + FS_SLOT_BASE);
	return 0;
}

static struct fs_slot *fs_slots_find(const struct fs_slots *t, uint64_t id)
{
	uint32_t index = (uint32_t)id - FS_SLOT_BASE;

	if (index >= t->nr || t->slots[index].generation != id >> 32 || !t->slots[index].ptr)
		return NULL;
	return &t->slots[index];
}

void *fs_slots_get(const struct fs_slots *t, uint64_t id)
{
	struct fs_slot *s = fs_slots_find(t, id);

	return s ? s->ptr : NULL;
}

void fs_slots_remove(struct fs_slots *t, uint64_t id)
{
	struct fs_slot *s = fs_slots_find(t, id);

	if (!s)
		return;
	s->ptr = NULL;
	s->generation++;
	s->next_free = t->first_free;
	t->first_free = (uint32_t)(s - t->slots);
}

int fs_slots_put(struct fs_slots *t, uint64_t id, void *ptr, uint64_t limit)
{
	uint32_t index = (uint32_t)id - FS_SLOT_BASE;
	int r = 0;

	if ((uint32_t)id < FS_SLOT_BASE || index >= limit)
		return -EPROTO;
	while (!r && index >= t->cap)
		r = fs_slots_grow(t);
	if (r)
		return r;
	if (!t->nr)
		t->first_free = FS_SLOT_NONE;
	for (; t->nr <= index; t->nr++)
		t->slots[t->nr] = (struct fs_slot){0};
	if (t->slots[index].ptr)
		return -EPROTO;
	t->slots[index].ptr = ptr;
	t->slots[index].generation = (uint32_t)(id >> 32);
	return 0;
}

void fs_slots_restored(struct fs_slots *t)
{
	uint32_t newest = 0;

	for (uint32_t i = 0; i < t->nr; i++)
		newest = MAX(newest, t->slots[i].generation);
	t->first_free = FS_SLOT_NONE;
	for (uint32_t i = t->nr; i-- > 0;) {
		if (t->slots[i].ptr)
			continue;
		t->slots[i].generation = newest + 1;
		t->slots[i].next_free = t->first_free;
		t->first_free = i;
	}
}

void fs_slots_done(struct fs_slots *t)
{
	free(t->slots);
	*t = (struct fs_slots){0};
}
