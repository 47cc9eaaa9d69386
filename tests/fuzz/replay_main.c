/*
 * Runs a fuzz entry over a folder of seeds without a fuzzer, as a TAP test: every file in name order, each
 * one as it is, cut short at every length up to a limit, and with a fixed series of byte changes. The same
 * inputs every time, so that a failure repeats. A folder without seeds is a failure: it means the harness
 * is not tested.
 *
 * One thread. The input is copied to a heap block of exactly its size, so that the address sanitizer sees
 * a read one byte beyond.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

#define SEED_MAX (16u << 20)
#define CUTS_MAX 256
#define MUTATIONS 256
/* Changed copies of larger seeds would take longer than they are worth here; fuzzers do that. */
#define MUTATE_LEN_MAX (64u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* libFuzzer's optional set-up hook. */
int __attribute__((weak)) LLVMFuzzerInitialize(int *argc, char ***argv);

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 32);
}

static void run_once(const uint8_t *data, size_t len)
{
	/* malloc(0) may return NULL; libFuzzer promises harnesses a valid pointer */
	cleanup_free uint8_t *copy = xmalloc(len ? len : 1);

	if (len)
		memcpy(copy, data, len);
	LLVMFuzzerTestOneInput(copy, len);
}

static void mutate(uint8_t *data, size_t len)
{
	static const uint8_t interesting[] = {0x00, 0x01, 0x7f, 0x80, 0xff, '"', '{', '\n'};
	uint32_t nr_changes = 1 + random_next() % 4;

	while (nr_changes--) {
		size_t at = random_next() % len;

		if (random_next() % 2)
			data[at] ^= (uint8_t)(1u << (random_next() % 8));
		else
			data[at] = interesting[random_next() % sizeof(interesting)];
	}
}

static unsigned int run_variants(const uint8_t *seed, size_t len)
{
	cleanup_free uint8_t *work = NULL;
	unsigned int nr_runs = 0;

	for (size_t cut = 0; cut < len && cut < CUTS_MAX; cut++, nr_runs++)
		run_once(seed, cut);
	if (!len || len > MUTATE_LEN_MAX)
		return nr_runs;
	work = xmalloc(len);
	for (int i = 0; i < MUTATIONS; i++, nr_runs++) {
		memcpy(work, seed, len);
		mutate(work, len);
		run_once(work, len);
	}
	return nr_runs;
}

static int is_seed(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
	struct dirent **names;
	int nr_names, nr_failed = 0;

	if (LLVMFuzzerInitialize)
		LLVMFuzzerInitialize(&argc, &argv);
	if (argc != 2) {
		fprintf(stderr, "usage: %s FOLDER-OF-SEEDS\n", argv[0]);
		return 2;
	}
	nr_names = scandir(argv[1], &names, is_seed, alphasort);
	if (nr_names <= 0) {
		printf("Bail out! no seeds in %s\n", argv[1]);
		return 1;
	}
	printf("1..%d\n", nr_names);
	for (int i = 0; i < nr_names; i++) {
		cleanup_free char *path = xasprintf("%s/%s", argv[1], names[i]->d_name);
		cleanup_free char *seed = NULL;
		unsigned int nr_runs = 0;
		size_t len = 0;
		int r = io_read_file(AT_FDCWD, path, SEED_MAX, &seed, &len);

		/* Before the run: a crash then shows in the log which seed it was. */
		fprintf(stderr, "# %s\n", names[i]->d_name);
		if (!r) {
			run_once((uint8_t *)seed, len);
			nr_runs = 1 + run_variants((uint8_t *)seed, len);
		}
		nr_failed += r != 0;
		printf("%sok %d - %s (%zu bytes, %u inputs)\n", r ? "not " : "", i + 1,
		       names[i]->d_name, len, nr_runs);
		fflush(stdout);
		free(names[i]);
	}
	free(names);
	return nr_failed != 0;
}
