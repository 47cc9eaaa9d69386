/* Circular doubly linked list with the links embedded in the element. Not thread-safe. */
#pragma once

#include <stdbool.h>

#include "util.h"

struct list {
	struct list *prev, *next;
};

static inline void list_init(struct list *l)
{
	l->prev = l->next = l;
}

static inline bool list_is_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_append(struct list *head, struct list *item)
{
	item->prev = head->prev;
	item->next = head;
	head->prev->next = item;
	head->prev = item;
}

/* Leaves the item pointing at itself, so removing twice is harmless. */
static inline void list_remove(struct list *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	list_init(item);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)

/* Safe against removal of the current element only. */
/* NOLINTBEGIN(bugprone-macro-parentheses): pos is a variable's name */
#define list_for_each(pos, head, member) \
	for (__typeof__(pos) pos##_next, \
	     pos##_first = list_entry((head)->next, __typeof__(*pos), member); \
	     pos##_first; pos##_first = NULL) \
		for (pos = pos##_first; \
		     &pos->member != (head) && \
		     (pos##_next = list_entry(pos->member.next, __typeof__(*pos), member), 1); \
		     pos = pos##_next)
/* NOLINTEND(bugprone-macro-parentheses) */
