/* `harpoon config` and `harpoon version`. */
#include <stdio.h>
#include <stdlib.h>

#include "cleanup.h"
#include "cli.h"
#include "config.h"

static const struct cli_option cli_no_options[] = {{0}};

static int config_run(const struct cli_command *cmd, int argc, char **argv)
{
	cleanup_free char *text = NULL;
	struct config c;
	struct err err = {0};
	int r = cli_parse(cmd, cli_no_options, argc, argv);

	if (r >= 0)
		return r;
	if (config_load(&c, &err)) {
		fprintf(stderr, "harpoon config: %s\n", err.msg);
		return CLI_FAILED;
	}
	text = config_format(&c);
	config_done(&c);
	fputs(text, stdout);
	return CLI_OK;
}

const struct cli_command cli_config = {
	.name = "config",
	.summary = "print the configuration in effect",
	.usage = "usage: harpoon config\n"
		 "\n"
		 "Prints every key of harpoon.conf(5) with the value in effect, as a file that "
		 "could be\n"
		 "used in its place. The first line names the file that was read: $HARPOON_CONFIG, "
		 "or\n"
		 "the installed one.\n",
	.run = config_run,
};

static int version_run(const struct cli_command *cmd, int argc, char **argv)
{
	int r = cli_parse(cmd, cli_no_options, argc, argv);

	if (r >= 0)
		return r;
	printf("harpoon %s\n", HARPOON_VERSION);
	return CLI_OK;
}

const struct cli_command cli_version = {
	.name = "version",
	.summary = "print the version",
	.usage = "usage: harpoon version\n",
	.run = version_run,
};
