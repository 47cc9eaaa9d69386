/*
 * Requests to the agent, as bytes: unpacked and checked like the service does before it acts. The first
 * byte picks the message. What passes must keep the promises of request.h.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lookup.h"
#include "request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool ok)
{
	if (!ok)
		abort();
}

static void check_create(const AGENT_PB(CreateContainerRequest) * r)
{
	struct err err = {0};

	if (request_check_create(r, &err)) {
		require(err.code < 0 && err.msg[0]);
		return;
	}
	require(r->process && r->process->n_args && r->process->args[0][0]);
	require(!strchr(r->id, '/') && strlen(r->id) <= REQUEST_ID_MAX);
	require(r->root_share[0] && !strchr(r->root_share, '/'));
	for (size_t i = 0; i < r->n_mounts; i++)
		require(r->mounts[i]->destination[0] == '/');
	for (size_t i = 0; i < r->n_devices; i++)
		require(r->devices[i]->path[0] == '/');
	for (size_t i = 0; i < r->n_device_rules; i++)
		require(r->device_rules[i]->access && r->device_rules[i]->access < 8);
	for (size_t i = 0; i < r->n_start_hooks; i++)
		require(r->start_hooks[i]->path[0] == '/');
	for (size_t i = 0; i < r->process->n_env; i++)
		require(strchr(r->process->env[i], '='));
}

static void check_exec(const AGENT_PB(ExecRequest) * r)
{
	struct err err = {0};

	if (!request_check_exec(r, &err))
		require(r->exec_id[0] && r->process && r->process->cwd[0] == '/');
}

static void check_network(const AGENT_PB(NetworkRequest) * r)
{
	struct err err = {0};

	if (request_check_network(r, &err))
		return;
	for (size_t i = 0; i < r->n_interfaces; i++) {
		require(r->interfaces[i]->nic < REQUEST_NICS_MAX && r->interfaces[i]->mac.len == 6);
		require(r->interfaces[i]->name[0] && !strchr(r->interfaces[i]->name, '/'));
	}
	for (size_t i = 0; i < r->n_routes; i++)
		for (size_t k = 0; k < r->routes[i]->n_nexthops; k++)
			require(r->routes[i]->nexthops[k]->interface < r->n_interfaces);
}

static void check_passwd(const uint8_t *data, size_t len)
{
	char *text = strndup((const char *)data, len);

	if (text)
		lookup_home(text, 1000);
	free(text);
}

/* Unpacks with the descriptor and hands the message to a check of its type. */
#define CHECK(type, check, ...) \
	do { \
		void *m = protobuf_c_message_unpack(&harpoon__agent__v1__##type##__descriptor, \
						    NULL, len, data); \
		if (m) { \
			check(m, ##__VA_ARGS__); \
			protobuf_c_message_free_unpacked(m, NULL); \
		} \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct err err = {0};
	uint8_t which;

	if (!len)
		return 0;
	which = *data++ % 11;
	len--;
	switch (which) {
	case 0:
		CHECK(create_container_request, check_create);
		break;
	case 1:
		CHECK(exec_request, check_exec);
		break;
	case 2:
		CHECK(signal_request, request_check_signal, &err);
		break;
	case 3:
		CHECK(update_request, request_check_update, &err);
		break;
	case 4:
		CHECK(configure_request, request_check_configure, &err);
		break;
	case 5:
		CHECK(resize_request, request_check_resize, &err);
		break;
	case 7:
		CHECK(network_request, check_network);
		break;
	case 8:
		CHECK(listen_request, request_check_listen, &err);
		break;
	case 9:
		CHECK(listeners_request, request_check_listeners, &err);
		break;
	case 10:
		CHECK(connect_request, request_check_connect, &err);
		break;
	default:
		check_passwd(data, len);
		break;
	}
	return 0;
}
