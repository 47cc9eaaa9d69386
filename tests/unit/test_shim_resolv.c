/* Name servers of a resolv.conf that are on the loopback interface. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cleanup.h"
#include "resolv.h"
#include "util.h"

static size_t find(const char *text, char *first, size_t room)
{
	cleanup_free char *copy = xstrdup(text);
	struct rtnl_ip ips[RESOLV_SERVERS_MAX];
	size_t nr = resolv_find_loopback(copy, ips);

	if (nr)
		rtnl_ip_text(&ips[0], first, room);
	return nr;
}

static void test_found(void **state)
{
	static const struct {
		const char *text, *first;
		size_t nr;
	} rows[] = {
		{"nameserver 127.0.0.11\noptions ndots:0\n", "127.0.0.11", 1},
		{"# x\nsearch a b\n\tnameserver\t127.0.0.53  # y", "127.0.0.53", 1},
		{"nameserver 10.0.0.1\nnameserver ::1\n", "::1", 1},
		{"nameserver 127.0.0.1\r\nnameserver 127.0.0.2\r\n", "127.0.0.1", 2},
		{"nameserver 10.0.0.1\n", NULL, 0},
		{"nameserver\nnameserver x\nnameserver 127.0.0.300\nnameservers 127.0.0.1\n", NULL,
		 0},
		{";nameserver 127.0.0.1\n", NULL, 0},
		/* A fourth one is not asked by anybody. */
		{"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver "
		 "127.0.0.1\n",
		 NULL, 0},
		{"nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver "
		 "127.0.0.4\n",
		 "127.0.0.1", 3},
		{"", NULL, 0},
	};
	char first[64];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_int_equal(find(rows[i].text, first, sizeof(first)), rows[i].nr);
		if (rows[i].nr)
			assert_string_equal(first, rows[i].first);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_found)};

	return cmocka_run_group_tests_name("shim_resolv", tests, NULL, NULL);
}
