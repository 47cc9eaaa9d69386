/* See dns.h. Names are walked label by label; a pointer ends a name, and a question has none. */
#include "dns.h"

#include <stdbool.h>
#include <string.h>

#define DNS_HEADER 12
#define DNS_LABEL_MAX 63
#define DNS_TYPE_OPT 41
#define DNS_FLAG_TC 0x02 /* in byte 2 */

static uint16_t dns_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* Where the question ends; 0 = there is not exactly one, whole. */
static size_t dns_question_end(const uint8_t *m, size_t len)
{
	size_t at = DNS_HEADER;

	if (len < DNS_HEADER || dns_u16(m + 4) != 1)
		return 0;
	while (at < len && m[at]) {
		if (m[at] > DNS_LABEL_MAX)
			return 0;
		at += 1u + m[at];
	}
	return at < len && len - at >= 5 ? at + 5 : 0;
}

size_t dns_query_limit(const uint8_t *query, size_t len)
{
	size_t at = dns_question_end(query, len);
	size_t said;

	/* A query has no records but perhaps OPT in its additional part, whose name is the root's. */
	if (!at || dns_u16(query + 6) || dns_u16(query + 8) || !dns_u16(query + 10))
		return DNS_DATAGRAM_MIN;
	if (len - at < 5 || query[at] || dns_u16(query + at + 1) != DNS_TYPE_OPT)
		return DNS_DATAGRAM_MIN;
	said = dns_u16(query + at + 3);
	return said > DNS_DATAGRAM_MIN ? said : DNS_DATAGRAM_MIN;
}

size_t dns_truncate(uint8_t *answer, size_t len, size_t limit)
{
	size_t end;

	if (len <= limit)
		return len;
	end = dns_question_end(answer, len);
	if (!end || end > limit)
		return 0;
	answer[2] |= DNS_FLAG_TC;
	memset(answer + 6, 0, 6); /* no records follow */
	return end;
}
