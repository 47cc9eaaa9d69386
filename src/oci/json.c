/*
 * From bytes to a checked json-c tree, and the path that errors carry.
 *
 * json-c allocates before anybody can look, an empty array or object costs it several hundred bytes, its
 * grammar is wider than JSON's (comments, single quotes, NaN, 00, "1."), its UTF-8 check lets surrogates and overlong
 * forms through, and an integer beyond 64 bits becomes the largest one. So the text is scanned first, once and
 * without allocation: characters, strings, numbers, and how many values there are; what is left to json-c is the
 * structure. The scan counts the members too: if the tree has fewer, a key appeared twice.
 *
 * Bounds: OCI_CONFIG_MAX bytes, OCI_DEPTH_MAX levels, JSON_CONTAINERS_MAX arrays and objects (32 MB of
 * json-c tables at worst), JSON_VALUES_MAX values in all.
 */
#include "json.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "oci.h"

#define JSON_CONTAINERS_MAX 32768
#define JSON_VALUES_MAX (1u << 20)
#define JSON_KEY_SHOWN 64

static size_t json_path_append(struct json_ctx *ctx, const char *fmt, ...) HARPOON_PRINTF(2, 3);

static size_t json_path_append(struct json_ctx *ctx, const char *fmt, ...)
{
	size_t old = ctx->path_len, room = sizeof(ctx->path) - old;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(ctx->path + old, room, fmt, ap);
	va_end(ap);
	ctx->path_len += MIN((size_t)MAX(n, 0), room - 1);
	return old;
}

size_t json_enter(struct json_ctx *ctx, const char *name)
{
	return json_path_append(ctx, ctx->path_len ? ".%s" : "%s", name);
}

size_t json_enter_index(struct json_ctx *ctx, size_t i)
{
	return json_path_append(ctx, "[%zu]", i);
}

size_t json_enter_key(struct json_ctx *ctx, const char *key)
{
	return json_path_append(ctx, "[\"%.*s%s\"]", JSON_KEY_SHOWN, key,
				strnlen(key, JSON_KEY_SHOWN + 1) > JSON_KEY_SHOWN ? "..." : "");
}

void json_leave(struct json_ctx *ctx, size_t old)
{
	ctx->path_len = old;
	ctx->path[old] = '\0';
}

int json_fail(struct json_ctx *ctx, int code, const char *fmt, ...)
{
	char text[ERR_MSG_MAX];
	va_list ap;

	if (!ctx->err)
		return code;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	err_say(ctx->err, code, "%s: %s", ctx->path_len ? ctx->path : ctx->what, text);
	for (char *c = ctx->err->msg; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
	return code;
}

struct json_scan {
	const char *s;
	size_t len, i;
	size_t containers, values, members;
	bool has_nul; /* the last string has a \u0000 */
};

static int json_scan_fail(struct json_ctx *ctx, size_t at, const char *what)
{
	return json_fail(ctx, -EINVAL, "not JSON at byte %zu: %s", at, what);
}

/* Length of the character at p, 0 = not UTF-8. RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF. */
static size_t json_utf8_len(const unsigned char *p, size_t len)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t n;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	if (p[0] == 0xe0)
		low = 0xa0;
	else if (p[0] == 0xed)
		high = 0x9f;
	else if (p[0] == 0xf0)
		low = 0x90;
	else if (p[0] == 0xf4)
		high = 0x8f;
	if (n > len || p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

/* s->i is behind the opening quote; leaves it behind the closing one. */
static int json_scan_string(struct json_ctx *ctx, struct json_scan *s)
{
	s->has_nul = false;
	while (s->i < s->len) {
		const char *p = s->s + s->i;
		size_t n = json_utf8_len((const unsigned char *)p, s->len - s->i);

		if (!n)
			return json_scan_fail(ctx, s->i, "not UTF-8");
		if (*p >= 0 && *p < 0x20)
			return json_scan_fail(ctx, s->i, "control character in a string");
		s->i += n;
		if (*p == '"')
			return 0;
		if (*p != '\\' || s->i >= s->len)
			continue;
		if (s->len - s->i >= 5 && !memcmp(s->s + s->i, "u0000", 5))
			s->has_nul = true;
		/* What an escape may be is json-c's to check; a quote must not end the string here. */
		s->i += s->s[s->i] == '"' || s->s[s->i] == '\\';
	}
	return json_scan_fail(ctx, s->len, "string without end");
}

static size_t json_scan_digits(struct json_scan *s)
{
	size_t from = s->i;

	while (s->i < s->len && s->s[s->i] >= '0' && s->s[s->i] <= '9')
		s->i++;
	return s->i - from;
}

static bool json_scan_one_of(struct json_scan *s, const char *set)
{
	if (s->i >= s->len || !s->s[s->i] || !strchr(set, s->s[s->i]))
		return false;
	s->i++;
	return true;
}

/* `digits` without leading zeros. */
static bool json_fits_64(const char *digits, size_t nr, bool is_negative)
{
	const char *max = is_negative ? "9223372036854775808" : "18446744073709551615";
	size_t max_nr = strlen(max);

	return nr < max_nr || (nr == max_nr && memcmp(digits, max, nr) <= 0);
}

/* s->i is behind the first character, which is '-' or a digit. */
static int json_scan_number(struct json_ctx *ctx, struct json_scan *s)
{
	size_t at = --s->i, first, nr;
	bool is_negative = json_scan_one_of(s, "-"), is_integer = true;

	first = s->i;
	nr = json_scan_digits(s);
	if (!nr || (nr > 1 && s->s[first] == '0'))
		return json_scan_fail(ctx, at, "not a number");
	if (json_scan_one_of(s, ".")) {
		is_integer = false;
		if (!json_scan_digits(s))
			return json_scan_fail(ctx, at, "not a number");
	}
	if (json_scan_one_of(s, "eE")) {
		is_integer = false;
		json_scan_one_of(s, "+-");
		if (!json_scan_digits(s))
			return json_scan_fail(ctx, at, "not a number");
	}
	if (is_integer && !json_fits_64(s->s + first, nr, is_negative))
		return json_fail(ctx, -ERANGE, "number at byte %zu does not fit 64 bits", at);
	return 0;
}

static int json_scan_char(struct json_ctx *ctx, struct json_scan *s, char c)
{
	switch (c) {
	case '"':
		return json_scan_string(ctx, s);
	case '{':
	case '[':
		if (++s->containers > JSON_CONTAINERS_MAX)
			return json_fail(ctx, -E2BIG, "more than %u arrays and objects",
					 JSON_CONTAINERS_MAX);
		return 0;
	case ',':
		if (++s->values > JSON_VALUES_MAX)
			return json_fail(ctx, -E2BIG, "more than %u values", JSON_VALUES_MAX);
		return 0;
	case ':':
		s->members++;
		if (s->has_nul)
			return json_fail(ctx, -EINVAL, "key with a NUL character before byte %zu",
					 s->i);
		return 0;
	default:
		if (c == '-' || (c >= '0' && c <= '9'))
			return json_scan_number(ctx, s);
		if (c && strchr(" \t\r\n}]truefalsn", c))
			return 0;
		return json_scan_fail(ctx, s->i - 1, "unexpected character");
	}
}

static int json_scan_text(struct json_ctx *ctx, struct json_scan *s)
{
	while (s->i < s->len) {
		int r = json_scan_char(ctx, s, s->s[s->i++]);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Recursion ends at OCI_DEPTH_MAX: the parser let nothing deeper through. */
static size_t json_count_members(struct json_object *v)
{
	size_t n = 0;

	if (json_object_is_type(v, json_type_array)) {
		for (size_t i = 0; i < json_object_array_length(v); i++)
			n += json_count_members(json_object_array_get_idx(v, i));
	} else if (json_object_is_type(v, json_type_object)) {
		n = (size_t)json_object_object_length(v);
		json_object_object_foreach(v, key, val)
		{
			(void)key;
			n += json_count_members(val);
		}
	}
	return n;
}

static void json_tokener_freep(struct json_tokener **t)
{
	if (*t)
		json_tokener_free(*t);
}

void json_putp(struct json_object **v)
{
	json_object_put(*v);
}

static int json_parse_tree(struct json_ctx *ctx, const char *text, size_t len,
			   struct json_object **ret)
{
	cleanup(json_tokener_freep) struct json_tokener *t = json_tokener_new_ex(OCI_DEPTH_MAX);
	cleanup(json_putp) struct json_object *v = NULL;
	enum json_tokener_error e;
	int n = (int)len;

	if (!t)
		return json_fail(ctx, -ENOMEM, "out of memory");
	json_tokener_set_flags(t, JSON_TOKENER_STRICT);
	v = json_tokener_parse_ex(t, text, n);
	e = json_tokener_get_error(t);
	/* A document that is a bare number or word ends only with a byte more. None of ours is. */
	if (e == json_tokener_continue)
		return json_scan_fail(ctx, len, "ends too early");
	if (e == json_tokener_error_depth)
		return json_fail(ctx, -EINVAL, "nested deeper than %u levels", OCI_DEPTH_MAX);
	if (e != json_tokener_success)
		return json_scan_fail(ctx, json_tokener_get_parse_end(t),
				      json_tokener_error_desc(e));
	*ret = take_ptr(&v);
	return 0;
}

int json_parse(struct json_ctx *ctx, const char *text, size_t len, struct json_object **ret)
{
	cleanup(json_putp) struct json_object *v = NULL;
	struct json_scan scan = {.s = text, .len = len};
	int r;

	if (len > OCI_CONFIG_MAX)
		return json_fail(ctx, -EFBIG, "%zu bytes, more than the %u that are read", len,
				 OCI_CONFIG_MAX);
	if (!len)
		return json_fail(ctx, -EINVAL, "empty");
	r = json_scan_text(ctx, &scan);
	if (r < 0)
		return r;
	r = json_parse_tree(ctx, text, len, &v);
	if (r < 0)
		return r;
	if (!json_object_is_type(v, json_type_object))
		return json_fail(ctx, -EINVAL, "not an object");
	if (json_count_members(v) != scan.members)
		return json_fail(ctx, -EINVAL, "an object has the same key twice");
	*ret = take_ptr(&v);
	return 0;
}
