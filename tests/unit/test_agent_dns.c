/* Answers of name servers as datagrams: how large, and how they are cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cleanup.h"
#include "dns.h"

/* A query for "a.bc", and room behind it. */
static const uint8_t query[] = {0x12, 0x34, 1,	 0, 0,	 1,   0, 0, 0, 0, 0,
				0,    1,    'a', 2, 'b', 'c', 0, 0, 1, 0, 1};
static const uint8_t opt[] = {0, 0, 41, 0x10, 0x00, 0, 0, 0, 0, 0, 0};

static void test_limit(void **state)
{
	uint8_t m[sizeof(query) + sizeof(opt)];

	memcpy(m, query, sizeof(query));
	memcpy(m + sizeof(query), opt, sizeof(opt));
	assert_int_equal(dns_query_limit(query, sizeof(query)), 512);
	m[11] = 1;
	assert_int_equal(dns_query_limit(m, sizeof(m)), 4096);
	/* Less than the least is the least; a record of another type says nothing. */
	m[sizeof(query) + 3] = 0;
	m[sizeof(query) + 4] = 9;
	assert_int_equal(dns_query_limit(m, sizeof(m)), 512);
	m[sizeof(query) + 3] = 0x10;
	m[sizeof(query) + 2] = 1;
	assert_int_equal(dns_query_limit(m, sizeof(m)), 512);
}

static void test_truncate(void **state)
{
	uint8_t m[600] = {0};

	memcpy(m, query, sizeof(query));
	m[7] = 9; /* answers */
	assert_int_equal(dns_truncate(m, 512, 512), 512);
	assert_int_equal(m[2], 1);
	assert_int_equal(dns_truncate(m, 600, 512), sizeof(query));
	assert_int_equal(m[2], 1 | 0x02);
	assert_int_equal(m[7], 0);
	/* No question, or one that does not end: nothing can be sent. */
	m[5] = 0;
	assert_int_equal(dns_truncate(m, 600, 512), 0);
	memset(m, 1, sizeof(m));
	m[4] = 0;
	assert_int_equal(dns_truncate(m, 600, 512), 0);
	m[12] = 0xc0;
	assert_int_equal(dns_truncate(m, 600, 512), 0);
}

/* Every length, in an allocation of its own, so that a sanitizer sees a read behind it. */
static void test_cut(void **state)
{
	for (size_t len = 0; len < sizeof(query); len++) {
		cleanup_free uint8_t *m = malloc(len ? len : 1);

		memcpy(m, query, len);
		assert_int_equal(dns_query_limit(m, len), 512);
		assert_int_equal(dns_truncate(m, len, 0), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_truncate),
		cmocka_unit_test(test_cut),
	};

	return cmocka_run_group_tests_name("agent_dns", tests, NULL, NULL);
}
