/*
 * The walker of field tables: reads a struct out of a JSON object and frees it again. One small reader
 * and one releaser per kind, dispatched by two const tables.
 *
 * Sizes come from the peer: every one is compared with the table's maximum before calloc().
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include "json.h"
#include "oci.h"

static void *json_at(void *obj, size_t off)
{
	return (char *)obj + off;
}

static char **json_string_at(void *obj, const struct json_field *f)
{
	return json_at(obj, f->off);
}

const char *json_borrow_string(struct json_ctx *ctx, struct json_object *v, size_t longest)
{
	const char *s;
	size_t len;

	if (!json_object_is_type(v, json_type_string)) {
		json_fail(ctx, -EINVAL, "not a string");
		return NULL;
	}
	s = json_object_get_string(v);
	len = (size_t)json_object_get_string_len(v);
	if (len > longest) {
		json_fail(ctx, -EINVAL, "longer than %zu bytes", longest);
		return NULL;
	}
	if (strlen(s) != len) {
		json_fail(ctx, -EINVAL, "contains a NUL character");
		return NULL;
	}
	return s;
}

int json_read_string(struct json_ctx *ctx, struct json_object *v, size_t longest, char **ret)
{
	const char *s = json_borrow_string(ctx, v, longest);
	char *p;

	if (!s)
		return -EINVAL;
	p = strdup(s);
	if (!p)
		return json_fail(ctx, -ENOMEM, "out of memory");
	free(*ret);
	*ret = p;
	return 0;
}

static int json_check_string(struct json_ctx *ctx, const struct json_field *f, const char *s)
{
	if ((f->flags & JSON_NOT_EMPTY) && !*s)
		return json_fail(ctx, -EINVAL, "empty");
	if ((f->flags & JSON_ABSOLUTE) && *s && *s != '/')
		return json_fail(ctx, -EINVAL, "not an absolute path: '%.100s'", s);
	return 0;
}

/* An optional "" is the same as absent: Go writers leave empty strings out, others do not. */
static int json_kind_string(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			    void *obj)
{
	const char *s = json_borrow_string(ctx, v, f->max);

	if (!s || json_check_string(ctx, f, s) < 0)
		return -EINVAL;
	return *s ? json_read_string(ctx, v, f->max, json_string_at(obj, f)) : 0;
}

static int json_kind_bool(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			  void *obj)
{
	if (!json_object_is_type(v, json_type_boolean))
		return json_fail(ctx, -EINVAL, "not true or false");
	*(bool *)json_at(obj, f->off) = json_object_get_boolean(v);
	return 0;
}

static int json_read_u64(struct json_ctx *ctx, struct json_object *v, uint64_t min, uint64_t max,
			 uint64_t *ret)
{
	uint64_t n;

	if (!json_object_is_type(v, json_type_int))
		return json_fail(ctx, -EINVAL, "not an integer");
	n = json_object_get_uint64(v);
	if (json_object_get_int64(v) < 0 || n < min || n > max)
		return json_fail(ctx, -ERANGE, "not between %" PRIu64 " and %" PRIu64, min, max);
	*ret = n;
	return 0;
}

static int json_read_i64(struct json_ctx *ctx, struct json_object *v, int64_t min, int64_t max,
			 int64_t *ret)
{
	int64_t n;

	if (!json_object_is_type(v, json_type_int))
		return json_fail(ctx, -EINVAL, "not an integer");
	n = json_object_get_int64(v);
	if (n < min || n > max || (n >= 0 && json_object_get_uint64(v) > (uint64_t)max))
		return json_fail(ctx, -ERANGE, "not between %" PRId64 " and %" PRId64, min, max);
	*ret = n;
	return 0;
}

static int json_kind_u32(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			 void *obj)
{
	uint64_t n = 0;
	int r = json_read_u64(ctx, v, (uint64_t)f->min, f->max ? f->max : UINT32_MAX, &n);

	if (r < 0)
		return r;
	*(uint32_t *)json_at(obj, f->off) = (uint32_t)n;
	return 0;
}

static int json_kind_i32(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			 void *obj)
{
	int64_t min = f->min ? f->min : INT32_MIN, n = 0;
	int r = json_read_i64(ctx, v, min, f->max ? (int64_t)f->max : INT32_MAX, &n);

	if (r < 0)
		return r;
	*(int32_t *)json_at(obj, f->off) = (int32_t)n;
	return 0;
}

static int json_kind_u64(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			 void *obj)
{
	return json_read_u64(ctx, v, 0, f->max ? f->max : UINT64_MAX, json_at(obj, f->off));
}

static int json_kind_i64(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			 void *obj)
{
	int64_t min = f->min ? f->min : INT64_MIN;

	return json_read_i64(ctx, v, min, f->max ? (int64_t)f->max : INT64_MAX,
			     json_at(obj, f->off));
}

int json_find_word(struct json_ctx *ctx, struct json_object *v, const struct json_word *words,
		   uint64_t *ret)
{
	const char *s = json_borrow_string(ctx, v, OCI_STRING_MAX);

	if (!s)
		return -EINVAL;
	for (; words->name; words++) {
		if (!strcmp(words->name, s)) {
			*ret = words->value;
			return 0;
		}
	}
	return json_fail(ctx, -EINVAL, "unknown value '%.64s'", s);
}

static int json_kind_word(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			  void *obj)
{
	uint64_t n = 0;
	int r = json_find_word(ctx, v, f->words, &n);

	if (r < 0)
		return r;
	*(uint32_t *)json_at(obj, f->off) = (uint32_t)n;
	return 0;
}

int json_each(struct json_ctx *ctx, struct json_object *v, size_t max,
	      int (*fn)(struct json_ctx *ctx, struct json_object *v, void *arg), void *arg)
{
	size_t nr;

	if (!json_object_is_type(v, json_type_array))
		return json_fail(ctx, -EINVAL, "not an array");
	nr = json_object_array_length(v);
	if (nr > max)
		return json_fail(ctx, -E2BIG, "%zu elements, more than %zu", nr, max);
	for (size_t i = 0; i < nr; i++) {
		size_t old = json_enter_index(ctx, i);
		int r = fn(ctx, json_object_array_get_idx(v, i), arg);

		if (r < 0)
			return r;
		json_leave(ctx, old);
	}
	return 0;
}

/* Room for the array's elements, once: one of another type or too long is found by json_each(). */
static int json_alloc(struct json_ctx *ctx, struct json_object *v, size_t max, size_t elem_len,
		      void *ret_ptr)
{
	size_t nr = json_object_is_type(v, json_type_array) ? json_object_array_length(v) : 0;
	void *p;

	if (nr > max)
		return json_fail(ctx, -E2BIG, "%zu elements, more than %zu", nr, max);
	p = calloc(nr + 1, elem_len);
	if (!p)
		return json_fail(ctx, -ENOMEM, "out of memory");
	memcpy(ret_ptr, &p, sizeof(p));
	return 0;
}

struct json_fill {
	const struct json_field *f;
	void *data;
	size_t *nr;
};

static int json_fill_string(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	struct json_fill *fill = arg;
	char **p = (char **)fill->data + *fill->nr;
	int r = json_read_string(ctx, v, fill->f->longest, p);

	if (r < 0)
		return r;
	(*fill->nr)++;
	if ((fill->f->flags & JSON_ABSOLUTE) && **p != '/')
		return json_fail(ctx, -EINVAL, "not an absolute path: '%.100s'", *p);
	return 0;
}

static int json_kind_strings(struct json_ctx *ctx, const struct json_field *f,
			     struct json_object *v, void *obj)
{
	struct oci_strv *sv = json_at(obj, f->off);
	int r = json_alloc(ctx, v, f->max, sizeof(*sv->v), &sv->v);

	if (r < 0)
		return r;
	r = json_each(ctx, v, f->max, json_fill_string,
		      &(struct json_fill){.f = f, .data = sv->v, .nr = &sv->nr});
	if (r < 0)
		return r;
	if ((f->flags & JSON_NOT_EMPTY) && !sv->nr)
		return json_fail(ctx, -EINVAL, "empty");
	return 0;
}

static int json_fill_u32(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	struct json_fill *fill = arg;
	uint64_t n = 0;
	int r = json_read_u64(ctx, v, 0, UINT32_MAX, &n);

	if (r < 0)
		return r;
	((uint32_t *)fill->data)[(*fill->nr)++] = (uint32_t)n;
	return 0;
}

static int json_kind_u32_array(struct json_ctx *ctx, const struct json_field *f,
			       struct json_object *v, void *obj)
{
	uint32_t **p = json_at(obj, f->off);
	int r = json_alloc(ctx, v, f->max, sizeof(**p), p);

	if (r < 0)
		return r;
	return json_each(ctx, v, f->max, json_fill_u32,
			 &(struct json_fill){.f = f, .data = *p, .nr = json_at(obj, f->nr_off)});
}

static int json_read_pair(struct json_ctx *ctx, const struct json_field *f, const char *key,
			  struct json_object *v, struct json_pair *ret)
{
	size_t old = json_enter_key(ctx, key);
	int r;

	if (!*key)
		return json_fail(ctx, -EINVAL, "empty key");
	if (strlen(key) > OCI_STRING_MAX)
		return json_fail(ctx, -EINVAL, "key longer than %u bytes", OCI_STRING_MAX);
	ret->key = strdup(key);
	if (!ret->key)
		return json_fail(ctx, -ENOMEM, "out of memory");
	r = json_read_string(ctx, v, f->longest, &ret->value);
	if (r < 0)
		return r;
	json_leave(ctx, old);
	return 0;
}

static int json_kind_map(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			 void *obj)
{
	struct json_pair **p = json_at(obj, f->off);
	size_t *nr = json_at(obj, f->nr_off), n;

	if (!json_object_is_type(v, json_type_object))
		return json_fail(ctx, -EINVAL, "not an object");
	n = (size_t)json_object_object_length(v);
	if (n > f->max)
		return json_fail(ctx, -E2BIG, "%zu members, more than %" PRIu64, n, f->max);
	*p = calloc(n + 1, sizeof(**p));
	if (!*p)
		return json_fail(ctx, -ENOMEM, "out of memory");
	json_object_object_foreach(v, key, val)
	{
		int r = json_read_pair(ctx, f, key, val, &(*p)[(*nr)++]);

		if (r < 0)
			return r;
	}
	return 0;
}

static int json_read_object(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			    void *obj)
{
	int r = json_read_fields(ctx, f->fields, v, obj);

	if (r < 0 || !f->post)
		return r;
	return f->post(ctx, obj);
}

static int json_kind_object(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			    void *obj)
{
	return json_read_object(ctx, f, v, json_at(obj, f->off));
}

static int json_fill_object(struct json_ctx *ctx, struct json_object *v, void *arg)
{
	struct json_fill *fill = arg;

	/* Counted first: a half-read element is freed with the rest. */
	return json_read_object(ctx, fill->f, v,
				json_at(fill->data, (*fill->nr)++ * fill->f->elem_len));
}

static int json_kind_array(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			   void *obj)
{
	void *p = NULL;
	int r = json_alloc(ctx, v, f->max, f->elem_len, &p);

	if (r < 0)
		return r;
	memcpy(json_at(obj, f->off), &p, sizeof(p));
	return json_each(ctx, v, f->max, json_fill_object,
			 &(struct json_fill){.f = f, .data = p, .nr = json_at(obj, f->nr_off)});
}

static int json_kind_custom(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			    void *obj)
{
	return f->read(ctx, f, v, obj);
}

static int json_kind_unsupported(struct json_ctx *ctx, const struct json_field *f,
				 struct json_object *v, void *obj)
{
	bool empty = false;

	if (json_object_is_type(v, json_type_array))
		empty = !json_object_array_length(v);
	else if (json_object_is_type(v, json_type_object))
		empty = !json_object_object_length(v);
	else if (json_object_is_type(v, json_type_string))
		empty = !json_object_get_string_len(v);
	else
		empty = !json_object_get_int64(v); /* 0 and false */
	return empty ? 0 : json_fail(ctx, -EOPNOTSUPP, "not supported: %s", f->reason);
}

typedef int (*json_kind_fn)(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			    void *obj);

static const json_kind_fn json_kinds[] = {
	[JSON_STRING] = json_kind_string,
	[JSON_BOOL] = json_kind_bool,
	[JSON_U32] = json_kind_u32,
	[JSON_I32] = json_kind_i32,
	[JSON_U64] = json_kind_u64,
	[JSON_I64] = json_kind_i64,
	[JSON_WORD] = json_kind_word,
	[JSON_STRINGS] = json_kind_strings,
	[JSON_U32_ARRAY] = json_kind_u32_array,
	[JSON_MAP] = json_kind_map,
	[JSON_OBJECT] = json_kind_object,
	[JSON_ARRAY] = json_kind_array,
	[JSON_CUSTOM] = json_kind_custom,
	[JSON_UNSUPPORTED] = json_kind_unsupported,
};
static_assert(ARRAY_SIZE(json_kinds) == JSON_KIND_MAX, "a reader per kind");

int json_read_one(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
		  void *obj)
{
	return json_kinds[f->kind](ctx, f, v, obj);
}

static int json_read_field(struct json_ctx *ctx, const struct json_field *f, struct json_object *v,
			   void *obj)
{
	size_t old = json_enter(ctx, f->name);
	int r = 0;

	if (v) {
		if (f->flags & JSON_HAS)
			*(bool *)json_at(obj, f->has_off) = true;
		r = json_read_one(ctx, f, v, obj);
	} else if (f->flags & JSON_REQUIRED) {
		r = json_fail(ctx, -EINVAL, "missing");
	}
	if (r < 0)
		return r;
	if ((f->flags & JSON_NEVER_NULL) && !*json_string_at(obj, f)) {
		*json_string_at(obj, f) = strdup("");
		if (!*json_string_at(obj, f))
			return json_fail(ctx, -ENOMEM, "out of memory");
	}
	json_leave(ctx, old);
	return 0;
}

int json_read_fields(struct json_ctx *ctx, const struct json_field *fields, struct json_object *v,
		     void *obj)
{
	if (!json_object_is_type(v, json_type_object))
		return json_fail(ctx, -EINVAL, "not an object");
	for (; fields->name; fields++) {
		struct json_object *member = NULL;
		int r;

		json_object_object_get_ex(v, fields->name, &member);
		r = json_read_field(ctx, fields, member, obj);
		if (r < 0)
			return r;
	}
	return 0;
}

void json_string_done(const struct json_field *f, void *obj)
{
	free(*json_string_at(obj, f));
}

static void json_done_strings(struct oci_strv *sv)
{
	for (size_t i = 0; sv->v && sv->v[i]; i++)
		free(sv->v[i]);
	free(sv->v);
}

static void json_done_map(struct json_pair *p, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		free(p[i].key);
		free(p[i].value);
	}
	free(p);
}

static void json_done_array(const struct json_field *f, void *data, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		json_fields_done(f->fields, json_at(data, i * f->elem_len));
	free(data);
}

static void json_field_done(const struct json_field *f, void *obj)
{
	void *p;
	size_t nr;

	switch (f->kind) {
	case JSON_STRING:
		json_string_done(f, obj);
		break;
	case JSON_STRINGS:
		json_done_strings(json_at(obj, f->off));
		break;
	case JSON_U32_ARRAY:
	case JSON_MAP:
	case JSON_ARRAY:
		memcpy(&p, json_at(obj, f->off), sizeof(p));
		memcpy(&nr, json_at(obj, f->nr_off), sizeof(nr));
		if (f->kind == JSON_MAP)
			json_done_map(p, nr);
		else if (f->kind == JSON_ARRAY)
			json_done_array(f, p, nr);
		else
			free(p);
		break;
	case JSON_OBJECT:
		json_fields_done(f->fields, json_at(obj, f->off));
		break;
	case JSON_CUSTOM:
		if (f->done)
			f->done(f, obj);
		break;
	case JSON_BOOL:
	case JSON_U32:
	case JSON_I32:
	case JSON_U64:
	case JSON_I64:
	case JSON_WORD:
	case JSON_UNSUPPORTED:
	case JSON_KIND_MAX:
		break;
	}
}

void json_fields_done(const struct json_field *fields, void *obj)
{
	for (; fields->name; fields++)
		json_field_done(fields, obj);
}
