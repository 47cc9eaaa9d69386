/*
 * Bounded, typed reading of JSON with the field's path in every error. Private to src/oci.
 *
 * A struct is filled from an object by walking a const table of fields (json_read_fields), and what the
 * table put on the heap is freed by walking the same table (json_fields_done). Unknown members are ignored;
 * null counts as absent, as it does for the Go programs that write these files.
 *
 * Only for one thread at a time per context. Functions return 0 or a negative errno and fill ctx->err.
 */
#pragma once

#include <json-c/json_types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define JSON_PATH_MAX 192

struct json_ctx {
	struct err *err;  /* borrowed */
	const char *what; /* "config.json": named when the error is not inside a field */
	size_t path_len;
	char path[JSON_PATH_MAX];
};

enum json_kind {
	JSON_STRING,	/* char *; max = longest, in bytes */
	JSON_BOOL,	/* bool */
	JSON_U32,	/* uint32_t; min, max */
	JSON_I32,	/* int32_t; min, max */
	JSON_U64,	/* uint64_t; max */
	JSON_I64,	/* int64_t; min */
	JSON_WORD,	/* uint32_t: a string of `words` as its number */
	JSON_STRINGS,	/* struct oci_strv; max = elements, longest = bytes of one */
	JSON_U32_ARRAY, /* uint32_t * at off, size_t at nr_off; max = elements */
	JSON_MAP,	/* struct json_pair * at off, size_t at nr_off; max = elements */
	JSON_OBJECT,	/* `fields`, placed at off */
	JSON_ARRAY, /* of objects: void * at off, size_t at nr_off; elem_len, `fields`; max = elements */
	JSON_CUSTOM,	  /* `read` does it, `done` frees */
	JSON_UNSUPPORTED, /* present and not empty: -EOPNOTSUPP with `reason` */
	JSON_KIND_MAX
};

enum {
	JSON_REQUIRED = 1 << 0,
	JSON_NOT_EMPTY = 1 << 1,  /* string: "" is an error */
	JSON_ABSOLUTE = 1 << 2,	  /* string or each of strings: begins with '/' */
	JSON_HAS = 1 << 3,	  /* the bool at has_off says whether it was there */
	JSON_NEVER_NULL = 1 << 4, /* string: "" instead of NULL when absent */
};

struct json_word {
	const char *name; /* NULL ends */
	uint64_t value;
};

/* oci_annotation and oci_sysctl have this shape. */
struct json_pair {
	char *key, *value;
};

struct json_field {
	const char *name; /* NULL ends the table */
	enum json_kind kind;
	unsigned int flags;
	size_t off, nr_off, has_off;
	size_t elem_len;
	size_t longest;
	int64_t min;
	uint64_t max;
	const struct json_field *fields;
	const struct json_word *words;
	const char *reason;
	/* JSON_CUSTOM. `obj` is the struct that the table describes. */
	int (*read)(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		    void *obj);
	void (*done)(const struct json_field *f, void *obj);
	/* JSON_OBJECT, JSON_ARRAY: after the fields of the object or of one element were read. */
	int (*post)(struct json_ctx *ctx, void *obj);
};

/*
 * The whole of `text` as one JSON object. Refused: more than OCI_CONFIG_MAX bytes, deeper than
 * OCI_DEPTH_MAX, too many values, anything outside RFC 8259, bytes after the end, invalid UTF-8, a NUL in
 * a key, and an object that has one key twice (readers differ in which one they take).
 */
int json_parse(struct json_ctx *ctx, const char *text, size_t len, struct json_object **ret);
void json_putp(struct json_object **v);

/* `v` must be an object. On failure the struct holds a part; json_fields_done() frees it. */
int json_read_fields(struct json_ctx *ctx, const struct json_field *fields, struct json_object *v,
		     void *obj);
void json_fields_done(const struct json_field *fields, void *obj);

/* Building blocks for custom readers. */
void json_string_done(const struct json_field *f, void *obj);
/* One value by f's kind, path already entered; obj + f->off takes it. */
int json_read_one(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		  void *obj);
int json_read_string(struct json_ctx *ctx, struct json_object *v, size_t longest, char **ret);
/* The string inside `v` itself, checked like json_read_string(); borrowed. NULL = failed. */
const char *json_borrow_string(struct json_ctx *ctx, struct json_object *v, size_t longest);
int json_find_word(struct json_ctx *ctx, struct json_object *v, const struct json_word *words,
		   uint64_t *ret);
/* Calls fn for each element of the array `v` with the path set to it; stops at the first failure. */
int json_each(struct json_ctx *ctx, struct json_object *v, size_t max,
	      int (*fn)(struct json_ctx *ctx, struct json_object *v, void *arg), void *arg);

/* The path: json_enter*() return what json_leave() takes back. */
size_t json_enter(struct json_ctx *ctx, const char *name);
size_t json_enter_index(struct json_ctx *ctx, size_t i);
size_t json_enter_key(struct json_ctx *ctx, const char *key);
void json_leave(struct json_ctx *ctx, size_t old);

/* "<path>: <text>"; bytes that are not printable ASCII become '?'. Returns code. */
int json_fail(struct json_ctx *ctx, int code, const char *fmt, ...) HARPOON_PRINTF(3, 4);
