/* See manifest.h. */
#include "manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

char *manifest_print(const char *head, const char *const *names, size_t nr, const uint64_t *sizes,
		     const char (*hashes)[SHA256_HEX_LEN + 1])
{
	char hash[SHA256_HEX_LEN + 1], *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	fputs(head, f);
	for (size_t i = 0; i < nr; i++)
		fprintf(f, "%s %" PRIu64 " %s\n", names[i], sizes[i], hashes[i]);
	fflush(f);
	sha256_hex(text, len, hash);
	fprintf(f, "end %s\n", hash);
	fclose(f);
	return text;
}

int manifest_scan(const char *text, size_t nr, uint64_t *sizes, char (*hashes)[SHA256_HEX_LEN + 1])
{
	for (size_t i = 0; i < nr; i++) {
		char name[16];
		int used = 0;

		/* NOLINTNEXTLINE(cert-err34-c): a number read wrongly prints otherwise */
		if (sscanf(text, "%15s %" SCNu64 " %64s %n", name, &sizes[i], hashes[i], &used) !=
			    3 ||
		    !used)
			return -EPROTO;
		text += used;
	}
	return 0;
}
