/*
 * What travels over the standard descriptors of `start`: containerd's parameters in, the address out.
 *
 * In: up to containerd 2.2 the runtime options as a protobuf Any, or nothing; from 2.3 on always a
 * BootstrapParams message, which repeats the flags. Both start with the same two field types, so a message
 * is told apart by the fields an Any never has.
 * Out: the address in one of these forms.
 *
 *   plain     the address alone: every containerd from 1.6 to 2.3 reads that as "Task API 2, ttrpc"
 *   JSON      {"version":N,"address":...,"protocol":"ttrpc"}: 1.7 takes version 2, 2.0 and later 2 and 3
 *   protobuf  BootstrapResult, for those that sent BootstrapParams
 *
 * Nothing tells a 1.7 from a 2.x before 2.3 at this moment, so plain is what is said unless configured.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "err.h"

#define BOOTSTRAP_INPUT_MAX (1u << 20)
#define BOOTSTRAP_SCHEME "unix://"

struct bootstrap {
	bool debug;		  /* containerd logs at debug or below */
	bool has_params;	  /* it speaks the protobuf form */
	char *containerd_version; /* "" = not told (before 2.3) */
	char *options_type;	  /* type URL of the runtime options, "" = none */
};

/* Decodes what containerd wrote; len 0 is valid. *ret is owned by the caller, also empty on failure. */
int bootstrap_parse(const void *data, size_t len, struct bootstrap *ret, struct err *err);
void bootstrap_done(struct bootstrap *b);

/* Reads stdin to its end, unless it is a terminal (a person at the keyboard), and parses it. */
int bootstrap_read(int fd, struct bootstrap *ret, struct err *err);

/* What to print for a socket: to be freed. */
uint8_t *bootstrap_format(const struct bootstrap *b, enum config_bootstrap form,
			  const char *socket_path, size_t *ret_len);
