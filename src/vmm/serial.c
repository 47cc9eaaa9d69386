/* 16550, sending only; see serial.h. Registers: PC16550D data sheet, table II. */
#include "serial.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "util.h"

enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define LCR_DLAB 0x80u
#define IER_MASK 0x0fu
#define MCR_MASK 0x1fu
#define IIR_NONE 0x01u	   /* no interrupt is pending */
#define LSR_TX_EMPTY 0x60u /* holding register and shifter */
#define MSR_READY 0xb0u	   /* carrier, data set ready, clear to send */

void serial_init(struct serial *s, int fd)
{
	*s = (struct serial){.fd = fd};
	pthread_mutex_init(&s->lock, NULL);
	if (fd >= 0)
		io_set_nonblock(fd, true);
}

/* Bytes taken; the rest is lost. */
static size_t serial_write_out(struct serial *s, const char *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = write(s->fd, data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return done;
}

static void serial_flush_locked(struct serial *s)
{
	char note[64];

	if (s->fd < 0)
		s->len = 0;
	if (!s->len)
		return;
	if (s->nr_lost) {
		size_t len = (size_t)snprintf(note, sizeof(note), "\n[%llu bytes lost]\n",
					      (unsigned long long)s->nr_lost);

		if (serial_write_out(s, note, len))
			s->nr_lost = 0;
	}
	s->nr_lost += s->len - serial_write_out(s, s->line, s->len);
	s->len = 0;
}

void serial_flush(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	serial_flush_locked(s);
	pthread_mutex_unlock(&s->lock);
}

static void serial_put(struct serial *s, uint8_t byte)
{
	s->line[s->len++] = (char)byte;
	if (byte == '\n' || s->len == SERIAL_LINE_MAX)
		serial_flush_locked(s);
}

static uint8_t serial_read_register(const struct serial *s, uint64_t reg)
{
	bool dlab = s->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		return dlab ? s->divisor[0] : 0;
	case REG_IER:
		return dlab ? s->divisor[1] : s->ier;
	case REG_IIR:
		return IIR_NONE;
	case REG_LCR:
		return s->lcr;
	case REG_MCR:
		return s->mcr;
	case REG_LSR:
		return LSR_TX_EMPTY;
	case REG_MSR:
		return MSR_READY;
	default:
		return s->scratch;
	}
}

static void serial_write_register(struct serial *s, uint64_t reg, uint8_t byte)
{
	bool dlab = s->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		if (dlab)
			s->divisor[0] = byte;
		else
			serial_put(s, byte);
		break;
	case REG_IER:
		if (dlab)
			s->divisor[1] = byte;
		else
			s->ier = byte & IER_MASK;
		break;
	case REG_LCR:
		s->lcr = byte;
		break;
	case REG_MCR:
		s->mcr = byte & MCR_MASK;
		break;
	case REG_SCRATCH:
		s->scratch = byte;
		break;
	default:
		break;
	}
}

/* The registers are bytes: a wider access is one to each of them, as on the real bus. */
static void serial_read(void *ctx, uint64_t off, void *data, uint32_t len)
{
	struct serial *s = ctx;
	uint8_t *out = data;

	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < len; i++)
		out[i] = serial_read_register(s, off + i);
	pthread_mutex_unlock(&s->lock);
}

static void serial_write(void *ctx, uint64_t off, const void *data, uint32_t len)
{
	struct serial *s = ctx;
	const uint8_t *in = data;

	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < len; i++)
		serial_write_register(s, off + i, in[i]);
	pthread_mutex_unlock(&s->lock);
}

const struct bus_ops serial_bus_ops = {.read = serial_read, .write = serial_write};

void serial_done(struct serial *s)
{
	serial_flush(s);
	cleanup_closep(&s->fd);
	pthread_mutex_destroy(&s->lock);
}
