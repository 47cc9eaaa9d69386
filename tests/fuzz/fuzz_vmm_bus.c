/*
 * Fuzz target: accesses of a guest to ports, in any order and width: bus, serial port, reset ports. A record of
 * the input is: write or read and width (1 byte), address (2), data (8).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bus.h"
#include "ports.h"
#include "serial.h"
#include "util.h"

#define RECORD 11

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* No vCPUs: a reset is only noted. */
	struct vcpus vcpus = {.event_fd = -1,
			      .lock = PTHREAD_MUTEX_INITIALIZER,
			      .changed = PTHREAD_COND_INITIALIZER};
	struct bus bus = {0};
	struct ports ports;
	struct serial serial;

	serial_init(&serial, -1);
	if (ports_init(&ports, &bus, &serial, &vcpus))
		abort();
	for (; size >= RECORD; data += RECORD, size -= RECORD) {
		uint32_t width = 1u << (data[0] >> 1 & 3);
		uint64_t addr = data[1] | data[2] << 8;
		uint8_t in[8] = {0};

		if (data[0] & 1)
			bus_write(&bus, addr, data + 3, width);
		else
			bus_read(&bus, addr, in, width);
	}
	serial_done(&serial);
	return 0;
}
