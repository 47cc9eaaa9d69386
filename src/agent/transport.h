/*
 * How byte streams reach the host. The agent above knows numbered streams only; below is the mux over
 * a virtio-serial port (transport_mux.c), or sockets of a hypervisor that has them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "loop.h"

struct transport_stream;
typedef void (*transport_done_fn)(void *ctx, int err);

struct transport {
	const struct transport_ops *ops;
};

/* Rules of descriptors and callbacks: as mux_attach(), mux_detach() in mux.h. */
struct transport_ops {
	int (*attach)(struct transport *t, uint32_t id, int rfd, int wfd, transport_done_fn done,
		      void *ctx, struct transport_stream **ret);
	void (*detach)(struct transport_stream *s);
	int (*send_hello)(struct transport *t, const void *data, size_t len);
	void (*free)(struct transport *t);
};

/*
 * A mux over fd (owned from here on). on_broken: the host is gone; then only transport free. on_restart: it is
 * another one, see mux.h.
 */
struct transport *transport_mux_new(struct loop *loop, int fd, loop_fn on_broken,
				    loop_fn on_restart, void *ctx);

/* Connections of the host over vsock. It ends with the machine only. on_restart: as above, see agent_hello.h. */
int transport_vsock_new(struct loop *loop, loop_fn on_restart, void *ctx, struct transport **ret,
			struct err *err);
