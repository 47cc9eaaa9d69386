/*
 * x86 ports; see ports.h. Our kernel resets itself by a triple fault (reboot=t); others use the
 * keyboard controller's reset line or the chipset's reset register, which are these two.
 */
#include "ports.h"

#include <string.h>

#define PORT_SERIAL 0x3f8
#define PORT_KEYBOARD 0x64
#define KEYBOARD_RESET 0xfe
#define PORT_RESET 0xcf9
#define RESET_CPU 0x04u /* set: the machine resets; which kind makes no difference here */

static void ports_keyboard_read(void *ctx, uint64_t off, void *data, uint32_t len)
{
	/* Nothing to fetch, and ready for a command. */
	memset(data, 0, len);
}

static void ports_keyboard_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	struct ports *p = ctx;

	if (*(const uint8_t *)data == KEYBOARD_RESET)
		vcpus_reset_requested(p->vcpus);
}

static void ports_reset_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	struct ports *p = ctx;

	if (*(const uint8_t *)data & RESET_CPU)
		vcpus_reset_requested(p->vcpus);
}

static const struct bus_ops ports_keyboard_ops = {.read = ports_keyboard_read,
						  .write = ports_keyboard_write};
static const struct bus_ops ports_reset_ops = {.read = ports_keyboard_read,
					       .write = ports_reset_write};

int ports_init(struct ports *p, struct bus *bus, struct serial *serial, struct vcpus *vcpus)
{
	int r;

	p->vcpus = vcpus;
	r = bus_add(bus, PORT_SERIAL, SERIAL_PORTS, &serial_bus_ops, serial);
	if (!r)
		r = bus_add(bus, PORT_KEYBOARD, 1, &ports_keyboard_ops, p);
	return r ? r : bus_add(bus, PORT_RESET, 1, &ports_reset_ops, p);
}
