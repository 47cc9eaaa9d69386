/*
 * Bytes from a guest or from a confined process, made fit for people: lines, bounded, with everything
 * that could steer a terminal or forge a log line spelled out as \xNN.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/*
 * Appends `len` bytes of `in` to out[*used], escaped, never more than `room` in all; what does not
 * fit is dropped whole. Newline and tab pass when keep_layout is set. '\r' is dropped always.
 */
void text_escape(const void *in, size_t len, bool keep_layout, char *out, size_t room,
		 size_t *used);

#define TEXT_LINE_MAX 240

/* Collects lines; long ones are cut, not wrapped. Embedded; all zero = empty. */
struct text_lines {
	char line[TEXT_LINE_MAX];
	size_t len;
};

/* line: escaped, NUL-terminated, not empty. */
typedef void (*text_line_fn)(void *ctx, const char *line);
void text_lines_feed(struct text_lines *t, const void *data, size_t len, text_line_fn fn,
		     void *ctx);
/* An unfinished last line, too. */
void text_lines_flush(struct text_lines *t, text_line_fn fn, void *ctx);
