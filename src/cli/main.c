/* harpoon: what a person uses directly. One table of commands. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "util.h"

static const struct cli_command *const cli_commands[] = {
	&cli_check, &cli_boot, &cli_template, &cli_trace, &cli_config, &cli_version,
};

static void cli_print_commands(FILE *f)
{
	fputs("usage: harpoon COMMAND [OPTION...]\n\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(cli_commands); i++)
		fprintf(f, "  %-8s  %s\n", cli_commands[i]->name, cli_commands[i]->summary);
	fputs("\n`harpoon COMMAND --help` says more. Containers are run by containerd:\n"
	      "  ctr run --rm --runtime io.containerd.harpoon.v1 IMAGE NAME\n",
	      f);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
		cli_print_commands(stdout);
		return CLI_OK;
	}
	if (!strcmp(name, "--version"))
		name = cli_version.name;
	for (size_t i = 0; i < ARRAY_SIZE(cli_commands); i++) {
		if (!strcmp(name, cli_commands[i]->name))
			return cli_commands[i]->run(cli_commands[i], argc - 1, argv + 1);
	}
	if (*name)
		fprintf(stderr, "harpoon: no command '%s'\n", name);
	cli_print_commands(stderr);
	return CLI_USAGE;
}
