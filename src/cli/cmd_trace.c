/*
 * `harpoon trace`: where the time of one container's start went, from <bundle>/harpoon/timeline.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "cli.h"
#include "io.h"
#include "util.h"

#define TRACE_FILE_MAX 8192
#define TRACE_BAR 50
/* Where containerd's shims have their bundles, unless it was configured otherwise. */
#define TRACE_BUNDLES "/run/containerd/io.containerd.runtime.v2.task/*/"

struct trace_row {
	char name[40];
	long begin_us, end_us; /* end -1 = not over */
};

/* A bundle, a file kept by HARPOON_TRACE, or the id of a container. */
static int trace_read(const char *what, char **ret)
{
	cleanup_free char *pattern = strchr(what, '/')
					     ? xasprintf("%s/harpoon/timeline", what)
					     : xasprintf(TRACE_BUNDLES "%s/harpoon/timeline", what);
	glob_t g = {0};
	int r;

	if (strchr(what, '/') && !io_read_file(AT_FDCWD, what, TRACE_FILE_MAX, ret, NULL))
		return 0;
	r = glob(pattern, 0, NULL, &g)
		    ? -ENOENT
		    : io_read_file(AT_FDCWD, g.gl_pathv[0], TRACE_FILE_MAX, ret, NULL);
	globfree(&g);
	return r;
}

static void trace_print_row(const struct trace_row *row, long last_us)
{
	long end_us = row->end_us < 0 ? last_us : row->end_us;
	long from = row->begin_us * TRACE_BAR / last_us, to = end_us * TRACE_BAR / last_us;

	printf("%-18s %9.1f ", row->name, (double)row->begin_us / 1e3);
	if (row->end_us < 0)
		printf("%9s  ", "...");
	else
		printf("%9.1f  ", (double)(row->end_us - row->begin_us) / 1e3);
	for (long i = 0; i <= TRACE_BAR; i++)
		putchar(i < from || i > to ? ' ' : '#');
	putchar('\n');
}

/* "name begin end", in microseconds; an end of -1 is one that did not come. */
static bool trace_read_row(const char *line, struct trace_row *row)
{
	size_t len = strcspn(line, " ");
	char *end;

	if (!len || len >= sizeof(row->name))
		return false;
	memcpy(row->name, line, len);
	row->name[len] = '\0';
	row->begin_us = strtol(line + len, &end, 10);
	if (end == line + len || row->begin_us < 0)
		return false;
	line = end;
	row->end_us = strtol(line, &end, 10);
	return end != line;
}

static int trace_print(char *text)
{
	struct trace_row rows[32];
	size_t nr = 0;
	long last_us = 1;

	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line && nr < ARRAY_SIZE(rows);
	     line = strtok_r(NULL, "\n", &save)) {
		struct trace_row *row = &rows[nr];

		if (!trace_read_row(line, row))
			continue;
		last_us = MAX(last_us, MAX(row->begin_us, row->end_us));
		nr++;
	}
	if (!nr)
		return -EPROTO;
	printf("%-18s %9s %9s  milliseconds since Create\n", "", "at", "took");
	for (size_t i = 0; i < nr; i++)
		trace_print_row(&rows[i], last_us);
	return 0;
}

static int trace_run(const struct cli_command *cmd, int argc, char **argv)
{
	static const struct cli_option none[] = {{0}};
	cleanup_free char *text = NULL;
	int r;

	if (argc != 2 || argv[1][0] == '-') {
		r = cli_parse(cmd, none, argc, argv);
		fputs(r < 0 ? cmd->usage : "", stderr);
		return r < 0 ? CLI_USAGE : r;
	}
	r = trace_read(argv[1], &text);
	if (!r)
		r = trace_print(text);
	if (r)
		fprintf(stderr,
			"harpoon trace: '%s': %s (a container that runs, its bundle's folder, or "
			"a file that HARPOON_TRACE has kept)\n",
			argv[1], strerror(-r));
	return r ? CLI_FAILED : CLI_OK;
}

const struct cli_command cli_trace = {
	.name = "trace",
	.summary = "say where the time of a container's start went",
	.usage = "usage: harpoon trace ID|FOLDER|FILE\n"
		 "\n"
		 "Prints what happened when in the start of a container: one that runs (by its id, "
		 "or by\n"
		 "the folder of its bundle when containerd's state is not in /run/containerd), or "
		 "one that\n"
		 "has ended, from a file. With HARPOON_TRACE=FOLDER in the environment of "
		 "containerd there\n"
		 "is one for each container. bench/timeline draws such a file.\n",
	.run = trace_run,
};
