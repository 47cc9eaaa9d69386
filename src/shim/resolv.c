/* See resolv.h. Format: resolv.conf(5). */
#include "resolv.h"

#include <arpa/inet.h>
#include <string.h>

static bool resolv_parse(const char *word, struct rtnl_ip *ret)
{
	static const uint8_t v6_loopback[16] = {[15] = 1};

	*ret = (struct rtnl_ip){.len = 4};
	if (inet_pton(AF_INET, word, ret->bytes) == 1)
		return ret->bytes[0] == 127;
	*ret = (struct rtnl_ip){.len = 16};
	return inet_pton(AF_INET6, word, ret->bytes) == 1 && !memcmp(ret->bytes, v6_loopback, 16);
}

size_t resolv_find_loopback(char *text, struct rtnl_ip ret[RESOLV_SERVERS_MAX])
{
	size_t nr = 0, seen = 0;
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *words = NULL, *word = strtok_r(line, " \t\r", &words);

		if (!word || strcmp(word, "nameserver") != 0)
			continue;
		word = strtok_r(NULL, " \t\r", &words);
		if (word && seen++ < RESOLV_SERVERS_MAX && resolv_parse(word, &ret[nr]))
			nr++;
	}
	return nr;
}
