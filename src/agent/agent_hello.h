/*
 * The agent's greeting: the first thing it sends, as soon as it can answer calls. On a multiplexed
 * channel it is the payload of mux_send_hello(). Shared with the host's hv layer.
 *
 * Packed, little-endian, fixed size; times are nanoseconds since the guest's kernel started
 * (CLOCK_BOOTTIME). The host treats every field as hostile.
 */
#pragma once

#include <assert.h>
#include <stdint.h>

#define AGENT_HELLO_MAGIC 0x6e707268u /* "hrpn" */
#define AGENT_PROTOCOL_VERSION 1u
/*
 * Over vsock: the agent connects to this port of the host to greet, closes, and listens on the same port of
 * its own for streams; the host's port is the stream's number.
 */
#define AGENT_VSOCK_PORT 1024u
/*
 * A connection from this port of the host is no stream: the agent says its greeting once more, and closes. A machine
 * that was restored is ready when its agent has done so. (Below the numbers of streams, see mux.h.)
 */
#define AGENT_VSOCK_GREET 2u
/*
 * The same, from a machine that was saved with a container in it: its host is another one. Streams of
 * AGENT_VSOCK_FIRST_KEPT and above go on, their connections are the ones there were; all others are over.
 */
#define AGENT_VSOCK_RESTART 3u
#define AGENT_VSOCK_FIRST_KEPT 16u

struct agent_hello {
	uint32_t magic;
	uint32_t version;
	uint64_t guest_init_ns;	 /* harpoon-init's first instruction */
	uint64_t guest_ready_ns; /* just before this greeting was sent */
} __attribute__((packed));

static_assert(sizeof(struct agent_hello) == 24, "the greeting is a wire format");
