/*
 * Manifests of templates and checkpoints: a head of their own, a row for each file ("NAME SIZE SHA-256"), and a last
 * row with the SHA-256 of all before it.
 *
 * Reading is printing again: a reader takes the values loosely, prints them, and compares to the letter.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "sha256.h"

/* The whole text, to be freed. `head` ends with a newline. */
char *manifest_print(const char *head, const char *const *names, size_t nr, const uint64_t *sizes,
		     const char (*hashes)[SHA256_HEX_LEN + 1]);
/* The rows from `text` on; names are for the comparison to find wrong. -EPROTO: there are fewer than nr. */
int manifest_scan(const char *text, size_t nr, uint64_t *sizes, char (*hashes)[SHA256_HEX_LEN + 1]);
