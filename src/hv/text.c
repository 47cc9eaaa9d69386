/* Escaping and lines; see text.h. */
#include "text.h"

#include <string.h>

static bool text_is_plain(unsigned char c, bool keep_layout)
{
	if (c == '\n' || c == '\t')
		return keep_layout;
	return c >= 0x20 && c < 0x7f;
}

void text_escape(const void *in, size_t len, bool keep_layout, char *out, size_t room, size_t *used)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *p = in;

	for (size_t i = 0; i < len; i++) {
		if (p[i] == '\r')
			continue;
		if (text_is_plain(p[i], keep_layout)) {
			if (*used >= room)
				return;
			out[(*used)++] = (char)p[i];
			continue;
		}
		/* Bytes above 0x7e too: 0x80-0x9f are control characters to some terminals. */
		if (room - *used < 4)
			return;
		out[(*used)++] = '\\';
		out[(*used)++] = 'x';
		out[(*used)++] = digits[p[i] >> 4];
		out[(*used)++] = digits[p[i] & 15];
	}
}

void text_lines_flush(struct text_lines *t, text_line_fn fn, void *ctx)
{
	size_t len = t->len;

	t->len = 0;
	t->line[len] = '\0';
	if (len)
		fn(ctx, t->line);
}

void text_lines_feed(struct text_lines *t, const void *data, size_t len, text_line_fn fn, void *ctx)
{
	const char *p = data, *end = p + len;

	while (p < end) {
		const char *nl = memchr(p, '\n', (size_t)(end - p));
		size_t n = (size_t)((nl ? nl : end) - p);

		text_escape(p, n, false, t->line, sizeof(t->line) - 1, &t->len);
		if (!nl)
			return;
		text_lines_flush(t, fn, ctx);
		p = nl + 1;
	}
}
