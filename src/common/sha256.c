/*
 * SHA-256 after FIPS 180-4.
 *
 * Why our own: it hashes one short line per container to find the socket's name that `ctr shim` expects,
 * and a template's files once per boot of the host. The kernel's AF_ALG needs a module that hardened hosts
 * leave out, and a crypto library would be a dependency of a root process for a hundred lines.
 */
#include "sha256.h"

#include <stdio.h>
#include <string.h>

#include "util.h"

static const uint32_t sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

static uint32_t sha256_ror(uint32_t x, unsigned int n)
{
	return x >> n | x << (32 - n);
}

static void sha256_schedule(const uint8_t block[SHA256_BLOCK], uint32_t w[64])
{
	for (size_t i = 0; i < 16; i++)
		w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
		       (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
	for (size_t i = 16; i < 64; i++) {
		uint32_t a = w[i - 15], b = w[i - 2];
		uint32_t s0 = sha256_ror(a, 7) ^ sha256_ror(a, 18) ^ a >> 3;
		uint32_t s1 = sha256_ror(b, 17) ^ sha256_ror(b, 19) ^ b >> 10;

		w[i] = w[i - 16] + s0 + w[i - 7] + s1;
	}
}

static void sha256_block(uint32_t h[8], const uint8_t block[SHA256_BLOCK])
{
	uint32_t w[64], v[8];

	sha256_schedule(block, w);
	memcpy(v, h, sizeof(v));
	for (size_t i = 0; i < 64; i++) {
		uint32_t s1 = sha256_ror(v[4], 6) ^ sha256_ror(v[4], 11) ^ sha256_ror(v[4], 25);
		uint32_t s0 = sha256_ror(v[0], 2) ^ sha256_ror(v[0], 13) ^ sha256_ror(v[0], 22);
		uint32_t choose = (v[4] & v[5]) ^ (~v[4] & v[6]);
		uint32_t major = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
		uint32_t t1 = v[7] + s1 + choose + sha256_k[i] + w[i];

		memmove(v + 1, v, 7 * sizeof(v[0]));
		v[4] += t1;
		v[0] = t1 + s0 + major;
	}
	for (size_t i = 0; i < 8; i++)
		h[i] += v[i];
}

void sha256_init(struct sha256 *s)
{
	*s = (struct sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
				   0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

void sha256_add(struct sha256 *s, const void *data, size_t len)
{
	const uint8_t *p = data;
	size_t used = s->len % SHA256_BLOCK;

	s->len += len;
	if (used) {
		size_t n = MIN(len, SHA256_BLOCK - used);

		memcpy(s->tail + used, p, n);
		p += n;
		len -= n;
		if (used + n < SHA256_BLOCK)
			return;
		sha256_block(s->h, s->tail);
	}
	for (; len >= SHA256_BLOCK; p += SHA256_BLOCK, len -= SHA256_BLOCK)
		sha256_block(s->h, p);
	if (len)
		memcpy(s->tail, p, len);
}

void sha256_end(struct sha256 *s, char hex[SHA256_HEX_LEN + 1])
{
	uint64_t bits = s->len * 8;
	size_t used = s->len % SHA256_BLOCK;
	uint8_t pad[2 * SHA256_BLOCK] = {0x80};
	size_t len = (used < SHA256_BLOCK - 8 ? SHA256_BLOCK : 2 * SHA256_BLOCK) - used;

	for (size_t i = 0; i < 8; i++)
		pad[len - 1 - i] = (uint8_t)(bits >> (8 * i));
	sha256_add(s, pad, len);
	for (size_t i = 0; i < 8; i++)
		snprintf(hex + 8 * i, 9, "%08x", s->h[i]);
}

void sha256_hex(const void *data, size_t len, char hex[SHA256_HEX_LEN + 1])
{
	struct sha256 s;

	sha256_init(&s);
	sha256_add(&s, data, len);
	sha256_end(&s, hex);
}
