/* Spans of a start; see timeline.h. */
#include "timeline.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

static const char *const timeline_names[] = {
	[TIMELINE_CREATE] = "create",
	[TIMELINE_SPEC] = "create/spec",
	[TIMELINE_PROCESSES] = "create/processes",
	[TIMELINE_MOUNTS] = "create/mounts",
	[TIMELINE_VMM] = "create/vmm",
	[TIMELINE_GUEST] = "create/guest",
	[TIMELINE_STDIO] = "create/stdio",
	[TIMELINE_HOOKS] = "create/hooks",
	[TIMELINE_CONFIGURE] = "create/configure",
	[TIMELINE_CONTAINER] = "create/container",
	[TIMELINE_CLOCK] = "create/clock",
	[TIMELINE_START] = "start",
	[TIMELINE_NETWORK] = "start/network",
	[TIMELINE_EXEC] = "start/exec",
	[TIMELINE_RUN] = "run",
	[TIMELINE_END] = "end",
};
_Static_assert(ARRAY_SIZE(timeline_names) == TIMELINE_MAX, "a name for every span");

void timeline_begin(struct timeline *t, enum timeline_span s)
{
	t->begin_ns[s] = util_now_ns();
	t->end_ns[s] = 0;
}

void timeline_end(struct timeline *t, enum timeline_span s)
{
	if (t->begin_ns[s] && !t->end_ns[s])
		t->end_ns[s] = util_now_ns();
}

void timeline_set(struct timeline *t, enum timeline_span s, uint64_t begin_ns, uint64_t end_ns)
{
	t->begin_ns[s] = begin_ns;
	t->end_ns[s] = end_ns;
}

static int64_t timeline_us(const struct timeline *t, uint64_t ns)
{
	return ((int64_t)ns - (int64_t)t->begin_ns[TIMELINE_CREATE]) / 1000;
}

static void timeline_write_as(const struct timeline *t, int dir_fd, const char *name)
{
	cleanup_free char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	for (size_t i = 0; i < TIMELINE_MAX; i++) {
		if (t->begin_ns[i])
			fprintf(f, "%s %" PRId64 " %" PRId64 "\n", timeline_names[i],
				timeline_us(t, t->begin_ns[i]),
				t->end_ns[i] ? timeline_us(t, t->end_ns[i]) : -1);
	}
	fclose(f);
	io_replace_file(dir_fd, name, text, len);
}

void timeline_write(const struct timeline *t, int state_fd)
{
	timeline_write_as(t, state_fd, "timeline");
}

void timeline_keep(const struct timeline *t, const char *id)
{
	const char *dir = getenv("HARPOON_TRACE");
	cleanup_close int fd =
		dir && *dir == '/' ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	if (fd >= 0)
		timeline_write_as(t, fd, id);
}
