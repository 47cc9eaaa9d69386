/* Scattered byte ranges. Any thread; no state. */
#include "iov.h"

#include <stdint.h>
#include <string.h>

#include "util.h"

size_t iov_len(const struct iovec *iov, unsigned int nr)
{
	size_t sum = 0;

	for (unsigned int i = 0; i < nr; i++)
		sum += iov[i].iov_len;
	return sum;
}

/* Walks [off, off + len): into `to`, or out of `from`, whichever is given. */
static size_t iov_copy(const struct iovec *iov, unsigned int nr, size_t off, uint8_t *to,
		       const uint8_t *from, size_t len)
{
	size_t done = 0;

	for (unsigned int i = 0; i < nr && done < len; i++) {
		uint8_t *base = iov[i].iov_base;
		size_t n;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		n = MIN(iov[i].iov_len - off, len - done);
		if (from)
			memcpy(base + off, from + done, n);
		else if (to)
			memcpy(to + done, base + off, n);
		done += n;
		off = 0;
	}
	return done;
}

size_t iov_read(const struct iovec *iov, unsigned int nr, size_t off, void *dst, size_t len)
{
	return iov_copy(iov, nr, off, dst, NULL, len);
}

size_t iov_write(const struct iovec *iov, unsigned int nr, size_t off, const void *src, size_t len)
{
	return iov_copy(iov, nr, off, NULL, src, len);
}

unsigned int iov_slice(const struct iovec *src, unsigned int nr, size_t off, size_t len,
		       struct iovec *dst, unsigned int dst_max)
{
	unsigned int used = 0;

	for (unsigned int i = 0; i < nr && len && used < dst_max; i++) {
		size_t n;

		if (off >= src[i].iov_len) {
			off -= src[i].iov_len;
			continue;
		}
		n = MIN(src[i].iov_len - off, len);
		dst[used].iov_base = (uint8_t *)src[i].iov_base + off;
		dst[used].iov_len = n;
		used++;
		len -= n;
		off = 0;
	}
	return used;
}
