/* A QEMU that says anything: every line is decoded or refused, and what is decoded is whole. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void fuzz_line(const char *line, size_t len)
{
	struct qmp_message m;

	if (qmp_decode(line, len, &m))
		return;
	if ((m.kind == QMP_EVENT || m.kind == QMP_ERROR) && !m.name)
		abort();
	if (m.kind == QMP_GREETING && (m.major < 0 || m.minor < 0))
		abort();
	qmp_message_done(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	const char *p = (const char *)data, *end = p + len;

	while (p < end) {
		const char *nl = memchr(p, '\n', (size_t)(end - p));

		fuzz_line(p, (size_t)((nl ? nl : end) - p));
		p = nl ? nl + 1 : end;
	}
	return 0;
}
