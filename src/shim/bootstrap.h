/*
 * What travels over the standard descriptors of `start`: containerd's parameters in, the address out.
 *
 * In: up to containerd 2.2 the runtime options as a protobuf Any, or nothing; from 2.3 on always a
 * BootstrapParams message, which repeats the flags. Both start with the same two field types, so a message
 * is told apart by the fields an Any never has.
 * Out: the plain address. Every containerd from 1.6 to 2.3 reads that as "task API version 2, ttrpc".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "err.h"

#define BOOTSTRAP_INPUT_MAX (1u << 20)
#define BOOTSTRAP_SCHEME "unix://"

struct bootstrap {
	bool debug;		  /* containerd logs at debug or below */
	char *containerd_version; /* "" = not told (before 2.3) */
	char *options_type;	  /* type URL of the runtime options, "" = none */
};

/* Decodes what containerd wrote; len 0 is valid. *ret is owned by the caller, also empty on failure. */
int bootstrap_parse(const void *data, size_t len, struct bootstrap *ret, struct err *err);
void bootstrap_done(struct bootstrap *b);

/* Reads stdin to its end, unless it is a terminal (a person at the keyboard), and parses it. */
int bootstrap_read(int fd, struct bootstrap *ret, struct err *err);
