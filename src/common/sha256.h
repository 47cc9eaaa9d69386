/* SHA-256 (FIPS 180-4): names of sockets and templates, and whether a file is still what it was. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX_LEN 64
#define SHA256_BLOCK 64

struct sha256 {
	uint32_t h[8];
	uint64_t len; /* bytes so far */
	uint8_t tail[SHA256_BLOCK];
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t len);
/* hex gets SHA256_HEX_LEN lower-case digits and a NUL. */
void sha256_end(struct sha256 *s, char hex[SHA256_HEX_LEN + 1]);

/* All three for one message in memory. */
void sha256_hex(const void *data, size_t len, char hex[SHA256_HEX_LEN + 1]);
