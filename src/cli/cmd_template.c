/*
 * `harpoon template`: the saved VMs that containers' VMs are clones of.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "cli.h"
#include "hv.h"
#include "template.h"

static const char *const template_states[] = {
	[TEMPLATE_GOOD] = "good", [TEMPLATE_BAD] = "set aside", [TEMPLATE_FAILED] = "failed"};

static int template_fail(const struct err *err)
{
	fprintf(stderr, "harpoon template: %s\n", err->msg);
	return CLI_FAILED;
}

/* "3 h ago" */
static void template_print_age(int64_t then)
{
	static const struct {
		int64_t s;
		const char *unit;
	} units[] = {{86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}};
	int64_t age = MAX((int64_t)time(NULL) - then, 0);
	size_t i = 0;

	while (i + 1 < ARRAY_SIZE(units) && age < 2 * units[i].s)
		i++;
	printf("%" PRId64 " %s ago\n", age / units[i].s, units[i].unit);
}

static int template_run_list(const struct config *c, int argc, char **argv)
{
	cleanup_free struct template_info *list = NULL;
	struct err err = {0};
	size_t nr;

	if (template_list(c->template_dir, &list, &nr, &err))
		return template_fail(&err);
	printf("%-*s  %-9s  %5s  %7s  %7s  %s\n", TEMPLATE_KEY_LEN, "KEY", "STATE", "VCPUS",
	       "MEMORY", "DISK", "USED");
	for (size_t i = 0; i < nr; i++) {
		const struct template_info *t = &list[i];

		printf("%-*s  %-9s  ", TEMPLATE_KEY_LEN, t->key, template_states[t->state]);
		if (t->state == TEMPLATE_GOOD)
			printf("%5u  %3u MiB", t->meta.nr_vcpus, t->meta.mem_mib);
		else
			printf("%5s  %7s", "-", "-");
		printf("  %3" PRIu64 " MiB  ", (t->bytes + (1 << 20) - 1) >> 20);
		template_print_age(t->used);
	}
	return CLI_OK;
}

/* The builder that a container's start has left behind: nobody waits for it. */
static void template_background(void)
{
	log_init(STDERR_FILENO, LOG_LEVEL_ERR, NULL);
}

static int template_run_build(const struct config *c, int argc, char **argv)
{
	uint32_t vcpus = c->vcpus, memory_mib = c->memory_mib, background = 0;
	uint32_t taps = c->nics, streams = 0, disks = 0;
	struct hv_template_size size;
	const struct cli_option options[] = {
		{"vcpus", 0, CLI_NUMBER, &vcpus, 1, CONFIG_VCPUS_MAX},
		{"memory", 0, CLI_MEMORY, &memory_mib, 0, 0},
		{"taps", 0, CLI_NUMBER, &taps, 0, HV_NICS_MAX},
		{"streams", 0, CLI_NUMBER, &streams, 0, HV_NICS_MAX},
		{"disks", 0, CLI_NUMBER, &disks, 0, HV_DISKS_MAX},
		{"background", 0, CLI_FLAG, &background, 0, 0},
		{0},
	};
	char key[TEMPLATE_KEY_LEN + 1] = "";
	struct err err = {0};
	int r = cli_parse(&cli_template, options, argc, argv);

	if (r >= 0)
		return r;
	if (background)
		template_background();
	size = (struct hv_template_size){vcpus, (uint64_t)memory_mib << 20, taps, streams, disks};
	r = hv_template_build(c, &size, !background, key, sizeof(key), &err);
	if (r && r != -EEXIST)
		return template_fail(&err);
	printf("%s: %s\n", key, r ? "is there already" : "made");
	return CLI_OK;
}

static int template_run_prune(const struct config *c, int argc, char **argv)
{
	const struct template_limits limits = {
		.max = c->templates_max,
		.max_bytes = (uint64_t)c->templates_max_mib << 20,
		.max_age_s = (int64_t)c->templates_max_days * 86400,
	};
	uint32_t all = 0;
	const struct cli_option options[] = {{"all", 'a', CLI_FLAG, &all, 0, 0}, {0}};
	struct err err = {0};
	int r = cli_parse(&cli_template, options, argc, argv);

	if (r >= 0)
		return r;
	r = template_prune(c->template_dir, all ? NULL : &limits, &err);
	if (r < 0)
		return template_fail(&err);
	printf("%d removed\n", r);
	return CLI_OK;
}

static int template_run_verify(const struct config *c, int argc, char **argv)
{
	cleanup_free struct template_info *list = NULL;
	struct err err = {0};
	int code = CLI_OK;
	size_t nr;

	if (template_list(c->template_dir, &list, &nr, &err))
		return template_fail(&err);
	for (size_t i = 0; i < nr; i++) {
		struct err why = {0};

		if (list[i].state == TEMPLATE_FAILED)
			continue;
		if (list[i].state == TEMPLATE_GOOD &&
		    !template_check(c->template_dir, list[i].key, &why)) {
			printf("%s: good\n", list[i].key);
			continue;
		}
		printf("%s: %s\n", list[i].key, why.code ? why.msg : "was set aside");
		template_set_aside(c->template_dir, list[i].key);
		code = CLI_FAILED;
	}
	return code;
}

static int template_run(const struct cli_command *cmd, int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(const struct config *c, int argc, char **argv);
		bool has_options;
	} verbs[] = {
		{"list", template_run_list, false},
		{"build", template_run_build, true},
		{"prune", template_run_prune, true},
		{"verify", template_run_verify, false},
	};
	struct err err = {0};
	struct config c;
	size_t i = 0;
	int r;

	while (i < ARRAY_SIZE(verbs) && (argc < 2 || strcmp(argv[1], verbs[i].name) != 0))
		i++;
	/* --help, and complaints about anything else. */
	if (i == ARRAY_SIZE(verbs) || (argc > 2 && !verbs[i].has_options)) {
		static const struct cli_option none[] = {{0}};

		r = cli_parse(cmd, none, argc > 1 && i < ARRAY_SIZE(verbs) ? argc - 1 : argc,
			      argc > 1 && i < ARRAY_SIZE(verbs) ? argv + 1 : argv);
		fputs(r < 0 ? cmd->usage : "", stderr);
		return r < 0 ? CLI_USAGE : r;
	}
	if (config_load(&c, &err))
		return template_fail(&err);
	if (geteuid()) {
		fputs("harpoon template: needs root, whose templates are\n", stderr);
		config_done(&c);
		return CLI_FAILED;
	}
	log_init(STDERR_FILENO, MIN(c.log_level, LOG_LEVEL_WARN), NULL);
	r = verbs[i].run(&c, argc - 1, argv + 1);
	config_done(&c);
	return r;
}

const struct cli_command cli_template = {
	.name = "template",
	.summary = "list, make, remove and check the saved VMs that containers' VMs are clones of",
	.usage =
		"usage: harpoon template list\n"
		"       harpoon template build [--vcpus N] [--memory SIZE] [--taps N] [--streams "
		"N]\n"
		"                              [--disks N]\n"
		"       harpoon template prune [--all]\n"
		"       harpoon template verify\n"
		"\n"
		"A template is a VM that was saved right after boot. Containers' VMs are clones "
		"of the\n"
		"one of their size; there is nothing to configure, and it is made in the "
		"background\n"
		"when the first VM of a size has started.\n"
		"\n"
		"  build    makes one ahead of time: of the configured size and number of network\n"
		"           devices. Containers in the host's network have --taps 0 --streams 1;\n"
		"           those with block devices or images have --disks N.\n"
		"  prune    removes what is old or over the limits of harpoon.conf; --all: "
		"everything\n"
		"  verify   reads all of every template and sets damaged ones aside\n",
	.run = template_run,
};
