/*
 * Answers of the agent, as bytes: what a hostile guest may send the shim. Unpacked as the client does, and the one that
 * is taken apart further, Stats, turned into containerd's message. The first byte picks the message.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent.pb-c.h"
#include "stats.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool ok)
{
	if (!ok)
		abort();
}

static void check_stats(const Harpoon__Agent__V1__StatsResponse *r)
{
	static struct stats s;
	static uint8_t out[sizeof(s) * 2];
	Ctrd__Metrics *back;
	size_t packed;

	stats_fill(&s, r, NULL);
	require(s.metrics.memory && s.metrics.cpu && s.metrics.pids && s.metrics.io);
	require(s.io.n_usage <= STATS_DISKS_MAX);
	/* It must fit where the shim puts it, and containerd must be able to read it. */
	packed = ctrd__metrics__get_packed_size(&s.metrics);
	require(packed <= sizeof(out));
	require(ctrd__metrics__pack(&s.metrics, out) == packed);
	back = ctrd__metrics__unpack(NULL, packed, out);
	require(back != NULL);
	ctrd__metrics__free_unpacked(back, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const ProtobufCMessageDescriptor *const types[] = {
		&harpoon__agent__v1__stats_response__descriptor,
		&harpoon__agent__v1__wait_response__descriptor,
		&harpoon__agent__v1__start_response__descriptor,
		&harpoon__agent__v1__pids_response__descriptor,
		&harpoon__agent__v1__create_container_response__descriptor,
		&harpoon__agent__v1__empty__descriptor,
	};
	ProtobufCMessage *m;
	size_t type;

	if (!len)
		return 0;
	type = data[0] % (sizeof(types) / sizeof(*types));
	m = protobuf_c_message_unpack(types[type], NULL, len - 1, data + 1);
	if (!m)
		return 0;
	if (!type)
		check_stats((const void *)m);
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}
