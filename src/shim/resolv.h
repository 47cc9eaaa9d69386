/* Name servers of a resolv.conf that are on the loopback interface: a guest has another one. Pure. */
#pragma once

#include <stddef.h>

#include "rtnl.h"

#define RESOLV_SERVERS_MAX 3 /* MAXNS: more are not asked */
#define RESOLV_FILE_MAX 65536

/* text: changed. The number found, those of them that are among the first RESOLV_SERVERS_MAX. */
size_t resolv_find_loopback(char *text, struct rtnl_ip ret[RESOLV_SERVERS_MAX]);
