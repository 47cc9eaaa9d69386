/*
 * Fuzz target: requests to harpoon-vmm. Each record of the input is a byte that says how many descriptors
 * come along (their kind is /dev/null), two bytes of length, and that many bytes of a request.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "session.h"
#include "util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int fuzz_one(struct session *s, const uint8_t *data, size_t len, size_t nr_fds)
{
	/* Requests are long and mostly zero: what is not given is. */
	struct vmm_request req = {0};
	int fds[VMM_REQUEST_FDS_MAX];
	struct err err = {0};
	int r;

	memcpy(&req, data, MIN(len, sizeof(req)));
	/* Inputs outlive versions. */
	if (req.version == 1)
		req.version = VMM_CONTROL_VERSION;
	for (size_t i = 0; i < nr_fds; i++) {
		fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (fds[i] < 0)
			abort();
	}
	r = session_handle(s, &req, sizeof(req), fds, nr_fds, &err);
	if (r && !err.msg[0])
		abort();
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct loop *loop = loop_new();
	struct session *s;
	struct err err;
	int pair[2];

	if (!loop || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) ||
	    session_new(loop, pair[1], false, &s, &err))
		abort();
	while (size >= 3) {
		size_t nr_fds = data[0] % (VMM_REQUEST_FDS_MAX + 1);
		size_t len = MIN((size_t)(data[1] | data[2] << 8), size - 3);

		if (fuzz_one(s, data + 3, len, nr_fds))
			break;
		data += 3 + len;
		size -= 3 + len;
	}
	session_free(s);
	loop_free(loop);
	close(pair[0]);
	return 0;
}
