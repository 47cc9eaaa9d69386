/*
 * A compiler for the guest kernel's build: gcc with precompiled headers.
 *
 *   pch-cc GCC ARGUMENT...
 *
 * Three quarters of the kernel's compile time is the same few hundred headers, read again for each of 1500
 * files. Here they are read once, into the precompiled form of guest/pch/SET.h, and each file starts from
 * there. Kbuild runs this program in place of gcc; what is not the compile of a kernel file goes to gcc as
 * it is. Nothing but the time may change, therefore:
 *
 *  - gcc refuses precompiled headers if a macro that they mention is defined by the command line. So each
 *    macro that a file defines before one of its #include lines is put there: is it refused, then the file
 *    meant to change what the headers say. (Not pr_fmt, which headers use in macros only, at their point
 *    of use, and not CREATE_TRACE_POINTS: headers of tracepoints may have been included before.)
 *  - A file whose flags do not fit the precompiled headers, or that does not compile on top of them, is
 *    compiled as always; that compile's messages are the ones shown.
 *  - Each file has its own KBUILD_MODNAME. Those go into a file that is included after the headers.
 *
 * Environment: HARPOON_PCH, the folder with SET.h, SET.h.gch and no-text/read-as-text.h, which ends a compile
 * that would read the set as text after all; without it everything goes to gcc.
 * HARPOON_PCH_MAKE=SOURCE: the compile of that file makes the sets, with its flags.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE_LEN 1024
#define MACROS_MAX 256
#define EXIT_NOT_RUN 127

static const char *const sets[] = {"core", "net"};
#define NR_SETS (sizeof(sets) / sizeof(sets[0]))

/* What Kbuild includes first of all; each set begins with the same three. */
static const char *const first_headers[] = {
	"linux/compiler-version.h",
	"linux/kconfig.h",
	"linux/compiler_types.h",
};
#define NR_FIRST_HEADERS (sizeof(first_headers) / sizeof(first_headers[0]))

/* The compile of one kernel file, as Kbuild asks for it. All borrowed from the command line. */
struct compile {
	char **argv;
	int argc;
	const char *out;
	const char *source;
	const char *depfile;
};

static bool begins(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool ends(const char *s, const char *suffix)
{
	size_t len = strlen(s), want = strlen(suffix);

	return len >= want && strcmp(s + len - want, suffix) == 0;
}

static void die(const char *what)
{
	fprintf(stderr, "pch-cc: %s: %s\n", what, strerror(errno));
	exit(EXIT_NOT_RUN);
}

__attribute__((format(printf, 1, 2))) static char *format(const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		die("format");
	va_end(ap);
	return text;
}

static bool is_first_header(const char *path)
{
	for (size_t i = 0; i < NR_FIRST_HEADERS; i++) {
		if (ends(path, first_headers[i]))
			return true;
	}
	return false;
}

/* False: not the compile of one C file of the kernel. */
static bool compile_parse(struct compile *c, char **argv, int argc)
{
	bool compiles = false, kernel = false;

	*c = (struct compile){.argv = argv, .argc = argc, .source = argv[argc - 1]};
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "-c") == 0)
			compiles = true;
		else if (strcmp(argv[i], "-o") == 0)
			c->out = argv[++i];
		else if (strcmp(argv[i], "-include") == 0)
			kernel |= is_first_header(argv[++i]);
		else if (begins(argv[i], "-Wp,-MMD,"))
			c->depfile = argv[i] + strlen("-Wp,-MMD,");
	}
	return compiles && kernel && c->out && c->depfile && ends(c->source, ".c");
}

/* The word after "#", and in *ret_rest what follows it; NULL for a line that is no directive. */
static const char *directive(const char *line, const char **ret_rest)
{
	static const char blanks[] = " \t";

	line += strspn(line, blanks);
	if (*line != '#')
		return NULL;
	line++;
	line += strspn(line, blanks);
	*ret_rest = line + strcspn(line, " \t\"<\n");
	*ret_rest += strspn(*ret_rest, blanks);
	return line;
}

/* Macros that a file defines or undefines before its last #include line. */
struct macros {
	char *names[MACROS_MAX]; /* owned */
	size_t nr;
};

static void macros_add(struct macros *m, const char *name)
{
	static const char *const harmless[] = {"pr_fmt", "CREATE_TRACE_POINTS"};
	size_t len =
		strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");

	for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++) {
		if (len == strlen(harmless[i]) && strncmp(name, harmless[i], len) == 0)
			return;
	}
	if (len > 0 && m->nr < MACROS_MAX)
		m->names[m->nr++] = format("%.*s", (int)len, name);
}

/* False: unreadable, or more than fit. */
static bool macros_read(struct macros *ret, const char *source)
{
	FILE *f = fopen(source, "re");
	size_t before_include = 0;
	char line[LINE_LEN];
	bool ok;

	*ret = (struct macros){0};
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f)) {
		const char *rest, *word = directive(line, &rest);

		if (!word)
			continue;
		if (begins(word, "include"))
			before_include = ret->nr;
		else if (begins(word, "define") || begins(word, "undef"))
			macros_add(ret, rest);
	}
	ok = !ferror(f) && before_include < MACROS_MAX;
	fclose(f);
	ret->nr = before_include;
	return ok;
}

static const char *set_for(const char *source)
{
	return begins(source, "net/") || begins(source, "drivers/net/") ? "net" : "core";
}

/* Starts argv; `quiet`: its messages go nowhere. */
static pid_t start(char **argv, bool quiet)
{
	posix_spawn_file_actions_t actions;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	if (quiet)
		posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	errno = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	if (errno)
		die(argv[0]);
	posix_spawn_file_actions_destroy(&actions);
	return pid;
}

static int finish(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			die("waitpid");
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_NOT_RUN;
}

/* "-DNAME=VALUE" of macros that each file has its own of, as a line of `defs`. False: some other argument. */
static bool move_macro(const char *arg, FILE *defs)
{
	static const char *const names[] = {"-DKBUILD_", "-D__KBUILD_", "-Dpr_fmt("};
	const char *value = strchr(arg, '=');
	bool ours = false;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		ours |= begins(arg, names[i]);
	if (!value || !ours)
		return false;
	if (defs)
		fprintf(defs, "#define %.*s %s\n", (int)(value - arg - 2), arg + 2, value + 1);
	return true;
}

/*
 * The flags of `c` without input, output, dependencies, first headers and Kbuild's macros (which go to
 * `defs`); room for some more, *ret_nr in use.
 */
static char **common_flags(const struct compile *c, FILE *defs, int *ret_nr)
{
	char **argv = calloc((size_t)c->argc + MACROS_MAX + 16, sizeof(*argv));
	int nr = 0;

	if (!argv)
		die("calloc");
	for (int i = 0; i < c->argc - 1; i++) {
		char *arg = c->argv[i];

		if (strcmp(arg, "-o") == 0)
			i++;
		else if (strcmp(arg, "-include") == 0 && is_first_header(c->argv[i + 1]))
			i++;
		else if (strcmp(arg, "-c") != 0 && !begins(arg, "-Wp,-MMD,") &&
			 !move_macro(arg, defs))
			argv[nr++] = arg;
	}
	*ret_nr = nr;
	return argv;
}

static void make_sets(const struct compile *c, const char *folder)
{
	pid_t pids[NR_SETS];

	for (size_t i = 0; i < NR_SETS; i++) {
		int nr;
		char **argv = common_flags(c, NULL, &nr);

		argv[nr++] = "-x";
		argv[nr++] = "c-header";
		argv[nr++] = "-o";
		argv[nr++] = format("%s/%s.h.gch", folder, sets[i]);
		argv[nr++] = format("%s/%s.h", folder, sets[i]);
		pids[i] = start(argv, false);
	}
	for (size_t i = 0; i < NR_SETS; i++) {
		if (finish(pids[i]) != 0)
			fprintf(stderr, "pch-cc: no precompiled headers: %s\n", sets[i]);
	}
}

/* Fixdep wants to know what the object depends on. Nobody will build this tree again: its source will do. */
static void write_depfile(const struct compile *c)
{
	FILE *f = fopen(c->depfile, "we");

	if (!f || fprintf(f, "%s: %s\n", c->out, c->source) < 0 || fclose(f) != 0)
		die(c->depfile);
}

static bool compile_with_set(const struct compile *c, const struct macros *macros,
			     const char *folder)
{
	char *defs_path = format("%s.defs.h", c->out);
	FILE *defs = fopen(defs_path, "we");
	char *tail[] = {"-include",
			format("%s/%s.h", folder, set_for(c->source)),
			"-include",
			defs_path,
			"-I",
			format("%s/no-text", folder),
			"-Wfatal-errors",
			"-c",
			"-o",
			(char *)c->out,
			(char *)c->source};
	char **argv;
	int nr, status;

	if (!defs)
		die(defs_path);
	argv = common_flags(c, defs, &nr);
	for (size_t i = 0; i < macros->nr; i++) {
		argv[nr++] = format("-D%s", macros->names[i]);
		fprintf(defs, "#undef %s\n", macros->names[i]);
	}
	if (fclose(defs) != 0)
		die(defs_path);
	memcpy(argv + nr, tail, sizeof(tail));
	status = finish(start(argv, true));
	unlink(defs_path);
	return status == 0;
}

int main(int argc, char **argv)
{
	const char *folder = getenv("HARPOON_PCH"), *maker = getenv("HARPOON_PCH_MAKE");
	struct compile c;
	struct macros macros;

	if (argc < 2) {
		fprintf(stderr, "usage: pch-cc GCC ARGUMENT...\n");
		return EXIT_NOT_RUN;
	}
	if (folder && compile_parse(&c, argv + 1, argc - 1)) {
		if (maker && strcmp(maker, c.source) == 0) {
			make_sets(&c, folder);
		} else if (macros_read(&macros, c.source) &&
			   compile_with_set(&c, &macros, folder)) {
			write_depfile(&c);
			return 0;
		} else {
			fprintf(stderr, "pch-cc: as always: %s\n", c.source);
		}
	}
	execvp(argv[1], argv + 1);
	die(argv[1]);
}
