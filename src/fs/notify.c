/* See notify.h. Threads: any worker; n->lock is held for tables only, and while the kernel is asked for a handle. */
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/syscall.h>

#include "fs_events.h"
#include "log.h"

#define NOTIFY_MASK \
	(FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_MODIFY | FAN_ATTRIB | \
	 FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD | FAN_ONDIR)
/* Bytes of the kernel's events for one answer. */
#define NOTIFY_EVENTS 4096
#define NOTIFY_MASK_FILE (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE)

void fs_notify_init(struct fs *fs)
{
	struct fs_notify *n = xcalloc(1, sizeof(*n));

	pthread_mutex_init(&n->lock, NULL);
	n->next_ghost = FS_GHOST_FIRST;
	n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	n->fan_fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID |
					  FAN_REPORT_DFID_NAME,
				  0);
	if (n->fan_fd < 0)
		log_dbg(FS_COMP, "changes by others will not be seen: errno %d", errno);
	fs->notify = n;
}

static void notify_set_reader(struct fs *fs, uint32_t pid)
{
	fs_lock(fs);
	fs->events_reader = pid;
	fs_unlock(fs);
}

void fs_notify_reset(struct fs *fs)
{
	struct fs_notify *n = fs->notify;

	pthread_mutex_lock(&n->lock);
	n->is_open = false;
	n->nr_records = 0;
	pthread_mutex_unlock(&n->lock);
	notify_set_reader(fs, 0);
}

void fs_notify_done(struct fs *fs)
{
	struct fs_notify *n = fs->notify;

	if (!n)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(n->buckets); i++) {
		for (struct fs_notify_watch *w = n->buckets[i], *next; w; w = next) {
			next = w->next;
			free(w);
		}
	}
	if (n->fan_fd >= 0)
		close(n->fan_fd);
	if (n->wake_fd >= 0)
		close(n->wake_fd);
	pthread_mutex_destroy(&n->lock);
	free(n);
	fs->notify = NULL;
}

void fs_events_interrupt(struct fs *fs)
{
	(void)eventfd_write(fs->notify->wake_fd, 1);
}

void fs_events_except(struct fs *fs, pid_t pid)
{
	if (fs->notify)
		fs->notify->writer = pid;
}

/* --- who is watched ------------------------------------------------------------------------------- */

/* The kernel's handle as bytes to compare: type, then content. 0 = it has none, or a long one. */
static uint32_t notify_handle(const struct file_handle *h, uint8_t *ret)
{
	if (!h->handle_bytes || h->handle_bytes > FS_NOTIFY_HANDLE_MAX - sizeof(h->handle_type))
		return 0;
	memcpy(ret, &h->handle_type, sizeof(h->handle_type));
	memcpy(ret + sizeof(h->handle_type), h->f_handle, h->handle_bytes);
	return (uint32_t)sizeof(h->handle_type) + h->handle_bytes;
}

static struct fs_notify_watch **notify_bucket(struct fs_notify *n, const uint8_t *handle,
					      uint32_t len)
{
	uint32_t h = 2166136261u;

	for (uint32_t i = 0; i < len; i++)
		h = (h ^ handle[i]) * 16777619u;
	return &n->buckets[h % ARRAY_SIZE(n->buckets)];
}

static uint32_t notify_node_handle(struct fs *fs, const struct fs_node *node, uint8_t *ret)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;

	if (name_to_handle_at(fs->proc_fd, fs_proc_name(node->fd).s, &u.h, &mount_id,
			      AT_SYMLINK_FOLLOW) < 0)
		return 0;
	return notify_handle(&u.h, ret);
}

static bool notify_is_wanted(const struct fs_node *node)
{
	/* An export that is a file has no directory to be watched. */
	return !(node->export->flags & FS_CONTROL_EXCLUSIVE) &&
	       (node->type == S_IFDIR || (node->type == S_IFREG && node->export->type == S_IFREG));
}

static void notify_add(struct fs *fs, const struct fs_node *node)
{
	struct fs_notify *n = fs->notify;
	struct fs_notify_watch *w, **bucket;

	if (n->nr_watches >= FS_NOTIFY_DIRS_MAX)
		return;
	w = calloc(1, sizeof(*w));
	if (!w)
		return;
	w->node_id = node->id;
	w->len = notify_node_handle(fs, node, w->handle);
	if (!w->len || fanotify_mark(n->fan_fd, FAN_MARK_ADD,
				     node->type == S_IFDIR ? NOTIFY_MASK : NOTIFY_MASK_FILE,
				     fs->proc_fd, fs_proc_name(node->fd).s) < 0) {
		log_dbg(FS_COMP, "node %llx is not watched: errno %d", (unsigned long long)node->id,
			errno);
		free(w);
		return;
	}
	bucket = notify_bucket(n, w->handle, w->len);
	w->next = *bucket;
	*bucket = w;
	n->nr_watches++;
}

void fs_notify_watch(struct fs *fs, const struct fs_node *node)
{
	struct fs_notify *n = fs->notify;

	if (n->fan_fd < 0 || !notify_is_wanted(node))
		return;
	pthread_mutex_lock(&n->lock);
	if (n->is_open)
		notify_add(fs, node);
	pthread_mutex_unlock(&n->lock);
}

static bool notify_drop(struct fs_notify *n, struct fs_notify_watch **p, uint64_t node_id)
{
	struct fs_notify_watch *w;

	while (*p && (*p)->node_id != node_id)
		p = &(*p)->next;
	w = *p;
	if (!w)
		return false;
	*p = w->next;
	n->nr_watches--;
	free(w);
	return true;
}

void fs_notify_unwatch(struct fs *fs, const struct fs_node *node)
{
	struct fs_notify *n = fs->notify;
	uint8_t handle[FS_NOTIFY_HANDLE_MAX];
	uint32_t len;

	if (n->fan_fd < 0 || !notify_is_wanted(node))
		return;
	pthread_mutex_lock(&n->lock);
	if (n->nr_watches && node->export->revoked) {
		/* Its descriptor is another file's by now: every bucket may be the one. */
		for (size_t i = 0; i < ARRAY_SIZE(n->buckets); i++)
			(void)notify_drop(n, &n->buckets[i], node->id);
	} else if (n->nr_watches) {
		len = notify_node_handle(fs, node, handle);
		if (len && notify_drop(n, notify_bucket(n, handle, len), node->id))
			(void)fanotify_mark(n->fan_fd, FAN_MARK_REMOVE,
					    node->type == S_IFDIR ? NOTIFY_MASK : NOTIFY_MASK_FILE,
					    fs->proc_fd, fs_proc_name(node->fd).s);
	}
	pthread_mutex_unlock(&n->lock);
}

/* From now on: what the guest knows already is watched, too. */
void fs_notify_begin(struct fs *fs)
{
	struct fs_notify *n = fs->notify;
	bool was_open;
	uint32_t nr;

	pthread_mutex_lock(&n->lock);
	was_open = n->is_open;
	n->is_open = true;
	pthread_mutex_unlock(&n->lock);
	if (was_open)
		return;
	fs_lock(fs);
	nr = fs->node_slots.nr;
	fs_unlock(fs);
	for (uint32_t i = 0; i < nr; i++) {
		struct fs_node *node;

		fs_lock(fs);
		node = fs->node_slots.slots[i].ptr;
		if (node && node->nlookup && !node->export->revoked)
			node->refs++;
		else
			node = NULL;
		fs_unlock(fs);
		if (node)
			fs_notify_watch(fs, node);
		fs_node_put(fs, node);
	}
}

/* --- from the kernel's events to records ------------------------------------------------------------- */

/* The path of a node relative to its export's root, by what the kernel calls both. False = it has none. */
static bool notify_path(const struct fs *fs, const struct fs_node *node, char *ret, size_t room)
{
	char top[PATH_MAX], path[PATH_MAX];
	ssize_t a = readlinkat(fs->proc_fd, fs_proc_name(node->export->fd).s, top, sizeof(top));
	ssize_t b = readlinkat(fs->proc_fd, fs_proc_name(node->fd).s, path, sizeof(path));
	int n;

	if (a <= 0 || b < a || a == sizeof(top) || b == sizeof(path) ||
	    memcmp(top, path, (size_t)a) != 0)
		return false;
	/* "/" is a prefix of everything; any other ends at a slash. */
	if (a == 1)
		a = 0;
	else if (b > a && path[a] != '/')
		return false;
	if (b == 1)
		b = a;
	n = snprintf(ret, room, "%s%.*s", node->export->name, (int)(b - a), path + a);
	return n > 0 && (size_t)n < room;
}

/* What was made, by its type; 0 = it is gone again, or of no kind that can be replayed. */
static char notify_kind_made(const struct fs_node *dir, const char *name)
{
	struct statx st;

	if (statx(dir->fd, name, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) < 0)
		return 0;
	switch (st.stx_mode & S_IFMT) {
	case S_IFREG:
		return FS_EVENT_FILE;
	case S_IFDIR:
		return FS_EVENT_DIR;
	case S_IFLNK:
		return FS_EVENT_LINK;
	case S_IFIFO:
		return FS_EVENT_FIFO;
	case S_IFSOCK:
		return FS_EVENT_SOCKET;
	default:
		return 0;
	}
}

/* One answer in the making. */
struct notify_out {
	struct fs_req *r;
	struct fs_notify *n;
	size_t room;
};

static void notify_record(struct notify_out *o, const struct fs_node *node, const char *name,
			  char kind)
{
	struct fs_notify_record *rec = &o->n->records[o->n->nr_records];
	char path[PATH_MAX];
	size_t len;

	if (!kind || o->n->nr_records == FS_NOTIFY_RECORDS_MAX ||
	    !notify_path(o->r->fs, node, path, sizeof(path)))
		return;
	len = strlen(path);
	if (*name)
		len += (size_t)snprintf(path + len, sizeof(path) - len, "/%s", name);
	if (len >= sizeof(path) || o->r->out_len + len + 2 > o->room)
		return;
	*rec = (struct fs_notify_record){.dir_id = *name ? node->id : FUSE_ROOT_ID, .kind = kind};
	snprintf(rec->name, sizeof(rec->name), "%s", *name ? name : node->export->name);
	o->n->nr_records++;
	o->r->w->out[o->r->out_len++] = (uint8_t)kind;
	memcpy(o->r->w->out + o->r->out_len, path, len + 1);
	o->r->out_len += len + 1;
}

/* All that one event of the kernel's tells, in the order in which it can have happened. */
static void notify_records(struct notify_out *o, const struct fs_node *node, const char *name,
			   uint64_t mask)
{
	bool is_dir = mask & FAN_ONDIR;
	bool made = mask & (FAN_CREATE | FAN_MOVED_TO), gone = mask & (FAN_DELETE | FAN_MOVED_FROM);
	char kind = made && *name ? notify_kind_made(node, name) : 0;

	if (gone && *name && !kind)
		notify_record(o, node, name, is_dir ? FS_EVENT_RMDIR : FS_EVENT_UNLINK);
	/* A name that is there again is told as if it were new. */
	if (kind)
		notify_record(o, node, name, kind);
	if ((gone && !kind) || (made && !kind))
		return;
	if (!is_dir && (mask & FAN_MODIFY))
		notify_record(o, node, name, FS_EVENT_CONTENT);
	if (!is_dir && (mask & FAN_CLOSE_WRITE))
		notify_record(o, node, name, FS_EVENT_CLOSED);
	/* A file put in the place of another has other content: those who only look for that are told, too. */
	if (kind == FS_EVENT_FILE && (mask & FAN_MOVED_TO)) {
		notify_record(o, node, name, FS_EVENT_CONTENT);
		notify_record(o, node, name, FS_EVENT_CLOSED);
	}
	if (mask & FAN_ATTRIB)
		notify_record(o, node, name, FS_EVENT_ATTR);
}

/* The nodes of a handle; several exports may hold one directory. */
static void notify_find(struct notify_out *o, const struct file_handle *h, const char *name,
			uint64_t mask)
{
	uint64_t ids[8];
	uint8_t handle[FS_NOTIFY_HANDLE_MAX];
	uint32_t len = notify_handle(h, handle), nr = 0;
	struct fs_node *node;

	if (!len)
		return;
	for (struct fs_notify_watch *w = *notify_bucket(o->n, handle, len); w; w = w->next) {
		if (w->len == len && !memcmp(w->handle, handle, len) && nr < ARRAY_SIZE(ids))
			ids[nr++] = w->node_id;
	}
	for (uint32_t i = 0; i < nr; i++) {
		if (fs_node_get(o->r->fs, ids[i], &node))
			continue;
		/* An event of the directory itself is one of its parent's, which is watched, too. */
		if (node->type == S_IFDIR ? *name && strcmp(name, ".") != 0 : true)
			notify_records(o, node, node->type == S_IFDIR ? name : "", mask);
		pthread_mutex_unlock(&o->n->lock);
		fs_node_put(o->r->fs, node);
		pthread_mutex_lock(&o->n->lock);
	}
}

/* e: the event's head, copied; the records behind it are aligned as they need it, the head is not. */
static void notify_event(struct notify_out *o, const struct fanotify_event_metadata *e,
			 const uint8_t *event)
{
	const uint8_t *p = event + sizeof(*e), *end = event + e->event_len;
	struct fanotify_event_info_header h;

	/* What harpoon-fs does is what the guest has asked for, and what harpoon-vmm does. */
	if (e->pid == getpid() || (e->pid && e->pid == o->n->writer) || (e->mask & FAN_Q_OVERFLOW))
		return;
	for (; (size_t)(end - p) >= sizeof(h); p += h.len) {
		const struct fanotify_event_info_fid *fid = (const void *)p;
		const struct file_handle *fh = (const void *)fid->handle;

		memcpy(&h, p, sizeof(h));
		if (h.len < sizeof(*fid) + sizeof(*fh) || h.len > (size_t)(end - p))
			return;
		if (h.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME)
			notify_find(o, fh, (const char *)fh->f_handle + fh->handle_bytes, e->mask);
		else if (h.info_type == FAN_EVENT_INFO_TYPE_FID)
			notify_find(o, fh, "", e->mask);
	}
}

/* Waits for changes; the caller holds no lock and nothing of the tables. */
static void notify_wait(struct fs_req *r)
{
	struct fs_notify *n = r->fs->notify;
	struct pollfd p[] = {{.fd = n->wake_fd, .events = POLLIN},
			     {.fd = n->fan_fd, .events = POLLIN}};
	eventfd_t value;

	fs_worker_park(r->w, true);
	(void)poll(p, ARRAY_SIZE(p), -1);
	fs_worker_park(r->w, false);
	(void)eventfd_read(n->wake_fd, &value);
}

int fs_notify_read(struct fs_req *r)
{
	const struct fuse_read_in *in = fs_args(r);
	struct notify_out o = {.r = r, .n = r->fs->notify};
	struct fanotify_event_metadata e;
	bool is_waiting;
	ssize_t n;

	if (o.n->fan_fd < 0 || r->body_len < sizeof(*in) || in->size < FS_EVENTS_READ ||
	    r->reply_room < FS_EVENTS_READ)
		return -EINVAL;
	o.room = FS_EVENTS_READ;
	/* One at a time: whoever interrupts it need not think of more. */
	pthread_mutex_lock(&o.n->lock);
	is_waiting = o.n->is_waiting;
	o.n->is_waiting = true;
	if (!is_waiting)
		o.n->nr_records = 0;
	pthread_mutex_unlock(&o.n->lock);
	if (is_waiting)
		return -EBUSY;
	notify_set_reader(r->fs, r->h.pid);
	fs_notify_begin(r->fs);
	notify_wait(r);
	/* About as many as make up one answer; the rest waits for the next. */
	n = read(o.n->fan_fd, r->w->scratch, NOTIFY_EVENTS);
	pthread_mutex_lock(&o.n->lock);
	o.n->is_waiting = false;
	for (ssize_t at = 0; n - at >= (ssize_t)sizeof(e); at += e.event_len) {
		memcpy(&e, r->w->scratch + at, sizeof(e));
		if (e.event_len < sizeof(e) || e.event_len > n - at)
			break;
		notify_event(&o, &e, r->w->scratch + at);
	}
	pthread_mutex_unlock(&o.n->lock);
	return 0;
}
