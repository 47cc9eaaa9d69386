/* The window of mapped files; see virtiofs_window.h. */
#include "virtiofs_window.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

#define WINDOW_PAGE 4096u

/* In place of whatever is mapped there. */
static int window_zero(struct virtiofs_window *w, uint64_t at, uint64_t len)
{
	void *p = mmap(w->host + at, len, PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

/* Where a signal's handler finds the windows. */
static _Atomic(struct virtiofs_window *) window_all[VIRTIOFS_WINDOWS_MAX];

/* Zeros for the page that was read; elsewhere the fault happens again, and ends the process. */
static void window_on_bus_error(int sig, siginfo_t *info, void *context)
{
	const uint8_t *at = info->si_addr;

	for (size_t i = 0; i < ARRAY_SIZE(window_all); i++) {
		struct virtiofs_window *w = window_all[i];
		uint64_t off = w ? (uint64_t)(at - w->host) : 0;

		if (!w || off >= w->len || info->si_code != BUS_ADRERR)
			continue;
		if (window_zero(w, off / WINDOW_PAGE * WINDOW_PAGE, WINDOW_PAGE))
			break;
		w->was_hit = true;
		return;
	}
	signal(sig, SIG_DFL);
}

static int window_watch(struct virtiofs_window *w)
{
	const struct sigaction sa = {.sa_sigaction = window_on_bus_error,
				     .sa_flags = SA_SIGINFO | SA_RESTART};

	for (size_t i = 0; i < ARRAY_SIZE(window_all); i++) {
		struct virtiofs_window *none = NULL;

		if (atomic_compare_exchange_strong(&window_all[i], &none, w))
			return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
	}
	return -ENOSPC;
}

static void window_unwatch(struct virtiofs_window *w)
{
	for (size_t i = 0; i < ARRAY_SIZE(window_all); i++) {
		struct virtiofs_window *it = w;

		(void)atomic_compare_exchange_strong(&window_all[i], &it, NULL);
	}
}

int virtiofs_window_init(struct virtiofs_window *w, uint64_t len, struct err *err)
{
	size_t room = len + VIRTIOFS_WINDOW_SLOT;
	uint8_t *host;
	int r;

	*w = (struct virtiofs_window){0};
	pthread_mutex_init(&w->lock, NULL);
	if (!len)
		return 0;
	if (len % VIRTIOFS_WINDOW_SLOT || len > VIRTIOFS_WINDOW_MAX)
		return err_say(err, -EINVAL,
			       "a window of mapped files has whole slots of 2 MiB, and 4 GiB at "
			       "most, not %llu bytes",
			       (unsigned long long)len);
	/* Aligned like a huge page, so that the kernel can use such pages for the guest. */
	host = mmap(NULL, room, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (host == MAP_FAILED)
		return err_set(err, -errno, "reserve a window of mapped files");
	w->host = host + (-(uintptr_t)host & (VIRTIOFS_WINDOW_SLOT - 1));
	if (w->host != host)
		munmap(host, (size_t)(w->host - host));
	munmap(w->host + len, (size_t)(host + room - (w->host + len)));
	w->len = len;
	w->nr = (uint32_t)(len / VIRTIOFS_WINDOW_SLOT);
	w->slots = xcalloc(w->nr, sizeof(*w->slots));
	for (uint32_t i = 0; i < w->nr; i++)
		w->slots[i].fd = -1;
	r = window_watch(w);
	return r ? err_set(err, r, "prepare for files that become shorter") : 0;
}

static void window_free_slot_locked(struct virtiofs_window *w, struct virtiofs_window_slot *s)
{
	if (s->is_short)
		w->nr_short--;
	s->is_short = false;
	cleanup_closep(&s->fd);
}

void virtiofs_window_done(struct virtiofs_window *w)
{
	window_unwatch(w);
	for (uint32_t i = 0; i < w->nr; i++)
		window_free_slot_locked(w, &w->slots[i]);
	free(w->slots);
	if (w->host)
		munmap(w->host, w->len);
	pthread_mutex_destroy(&w->lock);
	*w = (struct virtiofs_window){0};
}

static bool window_has(const struct virtiofs_window *w, uint64_t at, uint64_t len)
{
	return !(at % VIRTIOFS_WINDOW_SLOT) && !(len % VIRTIOFS_WINDOW_SLOT) && at < w->len &&
	       len <= w->len - at;
}

static uint64_t window_slot_at(const struct virtiofs_window *w,
			       const struct virtiofs_window_slot *s)
{
	return (uint64_t)(s - w->slots) * VIRTIOFS_WINDOW_SLOT;
}

static int window_map_file_locked(struct virtiofs_window *w, uint64_t at, int fd, uint64_t offset)
{
	if (mmap(w->host + at, VIRTIOFS_WINDOW_SLOT, PROT_READ, MAP_SHARED | MAP_FIXED, fd,
		 (off_t)offset) == MAP_FAILED) {
		int r = -errno;

		/* What was there is gone in some cases, and a hole would stop the guest. */
		(void)window_zero(w, at, VIRTIOFS_WINDOW_SLOT);
		return r;
	}
	return 0;
}

/* How much of the slot can be read as the file's now. */
static uint32_t window_readable(const struct virtiofs_window_slot *s)
{
	struct stat st;
	uint64_t end;

	if (io_fstat(s->fd, &st) || st.st_size < 0)
		return 0;
	end = ((uint64_t)st.st_size + WINDOW_PAGE - 1) / WINDOW_PAGE * WINDOW_PAGE;
	return end <= s->offset ? 0 : (uint32_t)MIN(end - s->offset, VIRTIOFS_WINDOW_SLOT);
}

int virtiofs_window_map(struct virtiofs_window *w, uint64_t at,
			const struct virtiofs_window_slot *what,
			bool (*is_revoked)(void *ctx, uint64_t export_id), void *ctx)
{
	struct virtiofs_window_slot *s;
	int r = -EINVAL;

	if (!window_has(w, at, VIRTIOFS_WINDOW_SLOT) || what->offset % VIRTIOFS_WINDOW_SLOT ||
	    what->offset > INT64_MAX - VIRTIOFS_WINDOW_SLOT) {
		close(what->fd);
		return r;
	}
	s = &w->slots[at / VIRTIOFS_WINDOW_SLOT];
	pthread_mutex_lock(&w->lock);
	/* Whoever revokes says so first and clears the window then. */
	r = is_revoked(ctx, what->export_id)
		    ? -ESTALE
		    : window_map_file_locked(w, at, what->fd, what->offset);
	window_free_slot_locked(w, s);
	*s = *what;
	s->is_short = false;
	s->readable = window_readable(s);
	if (r)
		cleanup_closep(&s->fd);
	pthread_mutex_unlock(&w->lock);
	return r;
}

static int window_unmap_locked(struct virtiofs_window *w, struct virtiofs_window_slot *s)
{
	int r;

	if (s->fd < 0)
		return 0;
	r = window_zero(w, window_slot_at(w, s), VIRTIOFS_WINDOW_SLOT);
	window_free_slot_locked(w, s);
	return r;
}

int virtiofs_window_unmap(struct virtiofs_window *w, uint64_t at, uint64_t len)
{
	int r = 0;

	if (!window_has(w, at, len))
		return -EINVAL;
	pthread_mutex_lock(&w->lock);
	for (uint64_t i = at / VIRTIOFS_WINDOW_SLOT; i < (at + len) / VIRTIOFS_WINDOW_SLOT && !r;
	     i++)
		r = window_unmap_locked(w, &w->slots[i]);
	pthread_mutex_unlock(&w->lock);
	return r;
}

void virtiofs_window_clear(struct virtiofs_window *w, uint64_t export_id)
{
	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < w->nr; i++) {
		if (!export_id || w->slots[i].export_id == export_id)
			(void)window_unmap_locked(w, &w->slots[i]);
	}
	pthread_mutex_unlock(&w->lock);
}

/* all: also where nothing was readable that is not any more. */
static void window_mend_locked(struct virtiofs_window *w, bool all)
{
	for (uint32_t i = 0; i < w->nr; i++) {
		struct virtiofs_window_slot *s = &w->slots[i];
		uint32_t limit = all && !s->is_short ? VIRTIOFS_WINDOW_SLOT : s->readable;
		uint32_t readable = s->fd < 0 ? UINT32_MAX : window_readable(s);

		if (readable >= limit || window_zero(w, window_slot_at(w, s) + readable,
						     VIRTIOFS_WINDOW_SLOT - readable))
			continue;
		if (!s->is_short)
			w->nr_short++;
		s->is_short = true;
		s->readable = readable;
		w->nr_mends++;
	}
}

uint64_t virtiofs_window_mend(struct virtiofs_window *w)
{
	uint64_t before, nr_mends;

	pthread_mutex_lock(&w->lock);
	before = w->nr_mends;
	window_mend_locked(w, false);
	if (w->nr_mends == before)
		window_mend_locked(w, true);
	nr_mends = w->nr_mends;
	pthread_mutex_unlock(&w->lock);
	return nr_mends;
}

static void window_renew_slot_locked(struct virtiofs_window *w, struct virtiofs_window_slot *s)
{
	uint32_t readable = window_readable(s);

	if ((s->is_short && readable <= s->readable) ||
	    window_map_file_locked(w, window_slot_at(w, s), s->fd, s->offset))
		return;
	s->readable = readable;
	if (s->is_short)
		w->nr_short--;
	s->is_short = false;
}

void virtiofs_window_renew(struct virtiofs_window *w)
{
	bool all;

	if (!w->nr_short && !w->was_hit)
		return;
	/* Where in a slot that was is not known. */
	all = atomic_exchange(&w->was_hit, false);
	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < w->nr; i++) {
		struct virtiofs_window_slot *s = &w->slots[i];

		if (s->fd >= 0 && (all || s->is_short))
			window_renew_slot_locked(w, s);
	}
	pthread_mutex_unlock(&w->lock);
}
