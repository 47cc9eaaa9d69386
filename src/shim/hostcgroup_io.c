/*
 * Disk statistics of a cgroup; see hostcgroup.h.
 *
 * Version 2, io.stat:                            8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6
 * Version 1, blkio.throttle.io_service_bytes:    8:0 Read 1
 *            blkio.throttle.io_serviced:         8:0 Write 4
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "hostcgroup_find.h"
#include "io.h"
#include "util.h"

#define IO_FILE_MAX (256u << 10)

/* "8:0 " at the beginning of a line; returns what follows, NULL = something else. */
static const char *io_parse_disk(const char *line, uint32_t *ret_major, uint32_t *ret_minor)
{
	unsigned long major, minor;
	char *end;

	if (*line < '0' || *line > '9')
		return NULL;
	major = strtoul(line, &end, 10);
	if (*end != ':' || end[1] < '0' || end[1] > '9')
		return NULL;
	minor = strtoul(end + 1, &end, 10);
	if (*end != ' ' || major > UINT32_MAX || minor > UINT32_MAX)
		return NULL;
	*ret_major = (uint32_t)major;
	*ret_minor = (uint32_t)minor;
	return end + 1;
}

/* The number behind a word on this line; 0 = it is not there. */
static uint64_t io_find(const char *line, const char *word)
{
	const char *p = strstr(line, word);

	if (!p || p > line + strcspn(line, "\n"))
		return 0;
	p += strlen(word);
	return *p >= '0' && *p <= '9' ? strtoull(p, NULL, 10) : 0;
}

static struct hostcgroup_io *io_entry(struct hostcgroup_io *v, size_t *nr, size_t max,
				      uint32_t major, uint32_t minor)
{
	for (size_t i = 0; i < *nr; i++)
		if (v[i].major == major && v[i].minor == minor)
			return &v[i];
	if (*nr == max)
		return NULL;
	v[*nr] = (struct hostcgroup_io){.major = major, .minor = minor};
	return &v[(*nr)++];
}

/* A line's figures, behind the disk's number. */
typedef void (*io_take_fn)(struct hostcgroup_io *io, const char *rest);

/* Each line's disk has an entry, as far as there is room; how many there are then. */
static size_t io_parse(const char *text, io_take_fn take, struct hostcgroup_io *v, size_t nr,
		       size_t max)
{
	for (const char *line = text; line && *line; line = strchr(line, '\n')) {
		struct hostcgroup_io *io;
		uint32_t major, minor;
		const char *rest;

		line += *line == '\n';
		rest = io_parse_disk(line, &major, &minor);
		io = rest ? io_entry(v, &nr, max, major, minor) : NULL;
		if (io)
			take(io, rest);
	}
	return nr;
}

static void io_take_v2(struct hostcgroup_io *io, const char *rest)
{
	io->read_bytes = MAX(io->read_bytes, io_find(rest, "rbytes="));
	io->write_bytes = MAX(io->write_bytes, io_find(rest, "wbytes="));
	io->reads = MAX(io->reads, io_find(rest, "rios="));
	io->writes = MAX(io->writes, io_find(rest, "wios="));
}

static void io_take_v1_line(const char *rest, uint64_t *read, uint64_t *written)
{
	if (!strncmp(rest, "Read ", 5))
		*read = io_find(rest, "Read ");
	if (!strncmp(rest, "Write ", 6))
		*written = io_find(rest, "Write ");
}

static void io_take_v1_counts(struct hostcgroup_io *io, const char *rest)
{
	io_take_v1_line(rest, &io->reads, &io->writes);
}

static void io_take_v1_bytes(struct hostcgroup_io *io, const char *rest)
{
	io_take_v1_line(rest, &io->read_bytes, &io->write_bytes);
}

size_t hostcgroup_add_io(const char *text, struct hostcgroup_io *v, size_t nr, size_t max)
{
	return io_parse(text, io_take_v2, v, nr, max);
}

static size_t io_read_v1(int fd, struct hostcgroup_io *v, size_t max)
{
	static const struct {
		const char *name;
		io_take_fn take;
	} files[] = {{"blkio.throttle.io_serviced", io_take_v1_counts},
		     {"blkio.throttle.io_service_bytes", io_take_v1_bytes}};
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		cleanup_free char *text = NULL;

		if (!io_read_file(fd, files[i].name, IO_FILE_MAX, &text, NULL))
			nr = io_parse(text, files[i].take, v, nr, max);
	}
	return nr;
}

size_t hostcgroup_read_io(const struct hostcgroup *g, struct hostcgroup_io *v, size_t max)
{
	size_t nr = 0;

	for (size_t i = 0; g && i < g->nr && !nr; i++) {
		cleanup_free char *text = NULL;

		if (hostcgroup_has_controller(&g->v[i], "blkio"))
			nr = io_read_v1(g->v[i].fd, v, max);
		else if (g->v[i].is_v2 &&
			 !io_read_file(g->v[i].fd, "io.stat", IO_FILE_MAX, &text, NULL))
			nr = hostcgroup_add_io(text, v, 0, max);
	}
	return nr;
}
