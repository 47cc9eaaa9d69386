/* SHA-256 (FIPS 180-4) of a short text: the name of the shim's socket. Not for secrets. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX_LEN 64

/* hex gets SHA256_HEX_LEN lower-case digits and a NUL. */
void sha256_hex(const void *data, size_t len, char hex[SHA256_HEX_LEN + 1]);
