/*
 * A 16550 serial port that only sends: the guest kernel's early messages, its errors and its panic. A
 * driver that would configure it finds a port without interrupts whose sender is always ready. Costs
 * nothing while unused: there is no thread, watch or buffer to serve.
 *
 * Lines are written whole. A reader that is slow loses what does not fit, and the guest never waits:
 * the number of bytes lost is written as soon as there is room again.
 *
 * Any thread (its lock is a leaf).
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "bus.h"

#define SERIAL_PORTS 8
#define SERIAL_LINE_MAX 256

struct serial {
	pthread_mutex_t lock;
	int fd; /* owned, non-blocking; -1 = bytes go nowhere */
	uint8_t lcr, mcr, ier, scratch;
	uint8_t divisor[2];
	uint64_t nr_lost;
	uint32_t len;
	char line[SERIAL_LINE_MAX];
};

extern const struct bus_ops serial_bus_ops; /* ctx: struct serial */

/* fd: taken over. */
void serial_init(struct serial *s, int fd);
/* Writes what is left of a line. */
void serial_flush(struct serial *s);
void serial_done(struct serial *s);
