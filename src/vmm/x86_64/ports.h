/* The x86 ports of the machine: a serial port, and two that reset it. */
#pragma once

#include "bus.h"
#include "serial.h"
#include "vcpu.h"

struct ports {
	struct vcpus *vcpus; /* borrowed */
};

/* Puts them on the bus; everything is borrowed. */
int ports_init(struct ports *p, struct bus *bus, struct serial *serial, struct vcpus *vcpus);
