/*
 * Scattered byte ranges. The memory behind the vectors may belong to a guest that changes it at any
 * moment: copy what is to be judged once, then judge the copy.
 */
#pragma once

#include <stddef.h>
#include <sys/uio.h>

size_t iov_len(const struct iovec *iov, unsigned int nr);

/* Copy len bytes at offset off out of / into the vectors. Return the bytes copied (short at the end). */
size_t iov_read(const struct iovec *iov, unsigned int nr, size_t off, void *dst, size_t len);
size_t iov_write(const struct iovec *iov, unsigned int nr, size_t off, const void *src, size_t len);

/*
 * Describes the bytes [off, off + len) of src in dst, which has room for dst_max entries; stops early
 * when either ends. Returns the entries filled.
 */
unsigned int iov_slice(const struct iovec *src, unsigned int nr, size_t off, size_t len,
		       struct iovec *dst, unsigned int dst_max);
