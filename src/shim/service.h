/* The Task service, versions 2 and 3: one table of methods under both names. Context: struct shim. */
#pragma once

#include "rpc.h"

extern const struct rpc_service *const service_list[];
extern const size_t service_list_len;
