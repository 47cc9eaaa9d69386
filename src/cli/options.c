/* Options by table; see cli.h. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "config.h"
#include "util.h"

#define CLI_OPTIONS_MAX 16

static int cli_help(const struct cli_command *cmd)
{
	fputs(cmd->usage, stdout);
	return CLI_OK;
}

static int cli_complain(const struct cli_command *cmd)
{
	fprintf(stderr, "harpoon %s: see `harpoon %s --help`\n", cmd->name, cmd->name);
	return CLI_USAGE;
}

/* A size is what harpoon.conf takes for memory: one parser for both. */
static int cli_set_memory(const struct cli_option *o, const char *text, struct err *err)
{
	struct config c;
	int r = config_load_file(&c, "", err);

	if (r)
		return r;
	r = config_apply_annotation(&c, "io.harpoon.memory", text, err);
	if (!r)
		*o->value = c.memory_mib;
	config_done(&c);
	return r;
}

static int cli_set_number(const struct cli_option *o, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n < o->min || n > o->max)
		return -1;
	*o->value = (uint32_t)n;
	return 0;
}

static int cli_set(const struct cli_command *cmd, const struct cli_option *o, const char *text)
{
	struct err err = {0};

	switch (o->type) {
	case CLI_FLAG:
		*o->value = 1;
		return -1;
	case CLI_NUMBER:
		if (!cli_set_number(o, text))
			return -1;
		fprintf(stderr, "harpoon %s: --%s takes a number from %u to %u, not '%s'\n",
			cmd->name, o->name, o->min, o->max, text);
		break;
	case CLI_MEMORY:
		if (!cli_set_memory(o, text, &err))
			return -1;
		fprintf(stderr, "harpoon %s: --%s takes a size like 512M or 2G, not '%s'\n",
			cmd->name, o->name, text);
		break;
	}
	return cli_complain(cmd);
}

static void cli_fill_tables(const struct cli_option *options, struct option *longs, char *shorts)
{
	size_t nr = 0;

	for (; options[nr].name; nr++) {
		const struct cli_option *o = &options[nr];

		if (nr >= CLI_OPTIONS_MAX)
			abort();
		longs[nr] = (struct option){
			.name = o->name, .has_arg = o->type != CLI_FLAG, .val = 256 + (int)nr};
		if (o->letter) {
			*shorts++ = o->letter;
			if (o->type != CLI_FLAG)
				*shorts++ = ':';
		}
	}
	longs[nr] = (struct option){.name = "help", .val = 'h'};
	*shorts++ = 'h';
	*shorts = '\0';
}

int cli_parse(const struct cli_command *cmd, const struct cli_option *options, int argc,
	      char **argv)
{
	struct option longs[CLI_OPTIONS_MAX + 2] = {0};
	char shorts[CLI_OPTIONS_MAX * 2 + 2];
	int c, r = -1;

	cli_fill_tables(options, longs, shorts);
	while (r < 0 && (c = getopt_long(argc, argv, shorts, longs, NULL)) >= 0) {
		size_t i = 0;

		if (c == 'h')
			return cli_help(cmd);
		if (c == '?')
			return cli_complain(cmd);
		while (options[i].name && c != 256 + (int)i && c != options[i].letter)
			i++;
		r = cli_set(cmd, &options[i], optarg);
	}
	if (r < 0 && optind < argc) {
		fprintf(stderr, "harpoon %s: '%s' is one too many\n", cmd->name, argv[optind]);
		return cli_complain(cmd);
	}
	return r;
}
