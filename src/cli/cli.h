/* What main.c and the commands of `harpoon` share. */
#pragma once

#include <stdint.h>

/* Exit codes of every command. */
enum cli_exit { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
	const char *name;
	const char *summary; /* for the list of commands */
	const char *usage;   /* the whole help text */
	/* argv[0] is the command's name. Returns an exit code. */
	int (*run)(const struct cli_command *cmd, int argc, char **argv);
};

extern const struct cli_command cli_boot;
extern const struct cli_command cli_check;
extern const struct cli_command cli_config;
extern const struct cli_command cli_template;
extern const struct cli_command cli_trace;
extern const struct cli_command cli_version;

enum cli_option_type { CLI_FLAG, CLI_NUMBER, CLI_MEMORY };

/* One option: a flag, a number from min to max, or a size in MiB. */
struct cli_option {
	const char *name; /* without the dashes */
	char letter;	  /* 0 = none */
	enum cli_option_type type;
	uint32_t *value; /* a flag sets it to 1 */
	uint32_t min, max;
};

/*
 * Takes the options out of argv; anything that is not one is an error, because no command has operands.
 * -1 = go on; otherwise the exit code to end with (help was printed, or a complaint).
 */
int cli_parse(const struct cli_command *cmd, const struct cli_option *options, int argc,
	      char **argv);
