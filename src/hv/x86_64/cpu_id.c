/* The host's processor as CPUID tells, x86-64; see cpu_id.h. */
#include "cpu_id.h"

#include <cpuid.h>
#include <stdint.h>

#include "util.h"

void cpu_id_describe(FILE *f)
{
	/* Vendor, model and features, extended features, features of AMD. */
	static const uint32_t leaves[] = {0, 1, 7, 0x80000001};

	fputs("cpu", f);
	for (size_t i = 0; i < ARRAY_SIZE(leaves); i++) {
		uint32_t a = 0, b = 0, c = 0, d = 0;

		__get_cpuid_count(leaves[i], 0, &a, &b, &c, &d);
		/* Leaf 1, EBX: on which processor we happen to run. */
		fprintf(f, " %08x.%08x.%08x.%08x", a, leaves[i] == 1 ? 0 : b, c, d);
	}
	fputc('\n', f);
}
