/* Open files by number; see virtiofs_files.h. */
#include "virtiofs_files.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cleanup.h"
#include "util.h"

#define FILES_FIRST 64u
#define FILES_NONE (-1)

void virtiofs_files_init(struct virtiofs_files *t, uint32_t max, int gone_fd)
{
	*t = (struct virtiofs_files){
		.max = MIN(max, (uint32_t)INT32_MAX), .first_free = FILES_NONE, .gone_fd = gone_fd};
	pthread_mutex_init(&t->lock, NULL);
	for (unsigned int i = 0; i < VIRTIOFS_BUCKETS; i++)
		t->buckets[i] = FILES_NONE;
}

void virtiofs_files_done(struct virtiofs_files *t)
{
	for (uint32_t i = 0; i < t->nr; i++)
		cleanup_closep(&t->files[i].fd);
	free(t->files);
	pthread_mutex_destroy(&t->lock);
}

static int32_t *files_bucket(struct virtiofs_files *t, uint64_t fh)
{
	/* Numbers differ in their low bits and, for one slot of the server's, in their high ones. */
	return &t->buckets[(fh ^ fh >> 32) % VIRTIOFS_BUCKETS];
}

/* Where the number of this file is noted: in its bucket or the entry before it. NULL = nowhere. */
static int32_t *files_find_locked(struct virtiofs_files *t, uint64_t fh)
{
	int32_t *link = files_bucket(t, fh);

	while (*link != FILES_NONE && t->files[*link].fh != fh)
		link = &t->files[*link].next;
	return *link == FILES_NONE ? NULL : link;
}

static int files_grow_locked(struct virtiofs_files *t)
{
	uint32_t cap = t->cap ? MIN(t->cap * 2, t->max) : MIN(FILES_FIRST, t->max);
	struct virtiofs_file *files;

	if (cap == t->cap)
		return -ENFILE;
	files = reallocarray(t->files, cap, sizeof(*files));
	if (!files)
		return -ENOMEM;
	t->files = files;
	t->cap = cap;
	return 0;
}

static bool files_is_revoked_locked(const struct virtiofs_files *t, uint64_t export_id)
{
	for (unsigned int i = 0; i < t->nr_revoked; i++) {
		if (t->revoked[i] == export_id)
			return true;
	}
	return false;
}

bool virtiofs_files_is_revoked(void *ctx, uint64_t export_id)
{
	struct virtiofs_files *t = ctx;
	bool revoked;

	pthread_mutex_lock(&t->lock);
	revoked = files_is_revoked_locked(t, export_id);
	pthread_mutex_unlock(&t->lock);
	return revoked;
}

static int files_add_locked(struct virtiofs_files *t, const struct virtiofs_file *file)
{
	int32_t *bucket, index = t->first_free;
	int r = 0;

	if (!file->export_id || files_is_revoked_locked(t, file->export_id))
		return -ESTALE;
	if (files_find_locked(t, file->fh))
		return -EEXIST;
	if (index == FILES_NONE && t->nr == t->cap)
		r = files_grow_locked(t);
	if (r)
		return r;
	if (index == FILES_NONE)
		index = (int32_t)t->nr++;
	else
		t->first_free = t->files[index].next;
	bucket = files_bucket(t, file->fh);
	t->files[index] = *file;
	t->files[index].refs = 0;
	t->files[index].gone = false;
	t->files[index].next = *bucket;
	*bucket = index;
	t->nr_open++;
	return 0;
}

int virtiofs_files_add(struct virtiofs_files *t, const struct virtiofs_file *file)
{
	int r;

	pthread_mutex_lock(&t->lock);
	r = files_add_locked(t, file);
	pthread_mutex_unlock(&t->lock);
	if (r)
		close(file->fd);
	return r;
}

int virtiofs_files_get(struct virtiofs_files *t, uint64_t fh, uint64_t node_id, int *ret_fd,
		       uint32_t *ret_index)
{
	const int32_t *link;
	int r = -EBADF;

	pthread_mutex_lock(&t->lock);
	link = files_find_locked(t, fh);
	if (link && t->files[*link].node_id == node_id) {
		t->files[*link].refs++;
		*ret_fd = t->files[*link].fd;
		*ret_index = (uint32_t)*link;
		r = 0;
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* Takes a file out of reach; the caller puts the use it gets hereby. */
static uint32_t files_remove_locked(struct virtiofs_files *t, int32_t *link)
{
	int32_t index = *link;
	struct virtiofs_file *f = &t->files[index];

	*link = f->next;
	f->gone = true;
	f->refs++;
	return (uint32_t)index;
}

void virtiofs_files_put(struct virtiofs_files *t, uint32_t index)
{
	bool last, revoked;
	int fd;

	pthread_mutex_lock(&t->lock);
	last = !--t->files[index].refs && t->files[index].gone;
	fd = t->files[index].fd;
	pthread_mutex_unlock(&t->lock);
	if (!last)
		return;
	close(fd);
	/* Only now: as long as the entry has its descriptor, a revocation waits for it. */
	pthread_mutex_lock(&t->lock);
	revoked = files_is_revoked_locked(t, t->files[index].export_id);
	t->files[index].fd = -1;
	t->files[index].next = t->first_free;
	t->first_free = (int32_t)index;
	t->nr_open--;
	pthread_mutex_unlock(&t->lock);
	if (revoked)
		(void)eventfd_write(t->gone_fd, 1);
}

void virtiofs_files_release(struct virtiofs_files *t, uint64_t fh, uint64_t node_id)
{
	uint32_t index = 0;
	int32_t *link;

	pthread_mutex_lock(&t->lock);
	link = files_find_locked(t, fh);
	if (link && t->files[*link].node_id == node_id)
		index = files_remove_locked(t, link);
	else
		link = NULL;
	pthread_mutex_unlock(&t->lock);
	if (link)
		virtiofs_files_put(t, index);
}

/* Removes the files of one export, or of all (0). */
static void files_remove_all(struct virtiofs_files *t, uint64_t export_id)
{
	for (unsigned int i = 0; i < VIRTIOFS_BUCKETS; i++) {
		int32_t *link;

		pthread_mutex_lock(&t->lock);
		link = &t->buckets[i];
		while (*link != FILES_NONE) {
			uint32_t index;

			if (export_id && t->files[*link].export_id != export_id) {
				link = &t->files[*link].next;
				continue;
			}
			index = files_remove_locked(t, link);
			/* Closing may take its time: others go on, and this bucket is begun anew. */
			pthread_mutex_unlock(&t->lock);
			virtiofs_files_put(t, index);
			pthread_mutex_lock(&t->lock);
			link = &t->buckets[i];
		}
		pthread_mutex_unlock(&t->lock);
	}
}

void virtiofs_files_clear(struct virtiofs_files *t)
{
	files_remove_all(t, 0);
}

void virtiofs_files_revoke(struct virtiofs_files *t, uint64_t export_id)
{
	if (!export_id)
		return;
	pthread_mutex_lock(&t->lock);
	t->revoked[t->next_revoked] = export_id;
	t->next_revoked = (t->next_revoked + 1) % VIRTIOFS_REVOKED_MAX;
	t->nr_revoked = MIN(t->nr_revoked + 1, VIRTIOFS_REVOKED_MAX);
	pthread_mutex_unlock(&t->lock);
	files_remove_all(t, export_id);
}

bool virtiofs_files_has(struct virtiofs_files *t, uint64_t export_id)
{
	bool found = false;

	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < t->nr && !found; i++)
		found = t->files[i].fd >= 0 && t->files[i].export_id == export_id;
	pthread_mutex_unlock(&t->lock);
	return found;
}

uint32_t virtiofs_files_count(struct virtiofs_files *t)
{
	uint32_t nr;

	pthread_mutex_lock(&t->lock);
	nr = t->nr_open;
	pthread_mutex_unlock(&t->lock);
	return nr;
}
