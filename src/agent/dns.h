/*
 * What of the DNS message format (RFC 1035, RFC 6891) it takes to answer a datagram with what came over a
 * connection. Pure; for any bytes.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define DNS_MESSAGE_MAX 65535
#define DNS_DATAGRAM_MIN 512

/* Largest answer that whoever sent this query takes as a datagram: 512, or what its OPT record says. */
size_t dns_query_limit(const uint8_t *query, size_t len);
/*
 * Cuts an answer to at most `limit` bytes, in place: header and question with the TC bit, which tells the client
 * to ask again over TCP. Returns the new length, 0 when there is no way to do that.
 */
size_t dns_truncate(uint8_t *answer, size_t len, size_t limit);
