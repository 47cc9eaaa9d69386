/*
 * Shared by the tests of src/oci: JSON written with ' for ", so that it stays readable in C, and one call each to
 * parse what must succeed or must fail with an exact message.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cleanup.h"
#include "err.h"
#include "oci.h"
#include "util.h"

static inline void oci_test_spec_freep(struct oci_spec **s)
{
	oci_spec_free(*s);
}

static inline void oci_test_resources_freep(struct oci_resources **r)
{
	oci_resources_free(*r);
}

static inline void oci_test_process_freep(struct oci_process **p)
{
	oci_process_free(*p);
}

/* New, owned by the caller. */
static inline char *oci_test_quote(const char *json)
{
	char *s = xstrdup(json);

	for (char *p = s; *p; p++)
		if (*p == '\'')
			*p = '"';
	return s;
}

/* head, nr times unit, tail. New, owned by the caller. */
static inline char *oci_test_repeat(const char *head, const char *unit, size_t nr, const char *tail)
{
	char *s = xmalloc(strlen(head) + strlen(unit) * nr + strlen(tail) + 1);
	char *p = stpcpy(s, head);

	for (size_t i = 0; i < nr; i++)
		p = stpcpy(p, unit);
	stpcpy(p, tail);
	return s;
}

/* A whole config.json around `members` ("'hostname':'a'"), which may be "". */
static inline char *oci_test_config(const char *members)
{
	cleanup_free char *text = xasprintf("{'ociVersion':'1.2.0','root':{'path':'rootfs'}%s%s}",
					    *members ? "," : "", members);

	return oci_test_quote(text);
}

static inline struct oci_spec *oci_test_parse(const char *members)
{
	cleanup_free char *json = oci_test_config(members);
	struct oci_spec *s = NULL;
	struct err err = {0};
	int r = oci_spec_parse(json, strlen(json), &s, &err);

	if (r < 0)
		fail_msg("%.200s: %s", members, err.msg);
	assert_non_null(s);
	return s;
}

static inline void oci_test_fails(const char *members, int code, const char *msg)
{
	cleanup_free char *json = oci_test_config(members);
	struct oci_spec *s = NULL;
	struct err err = {0};
	int r = oci_spec_parse(json, strlen(json), &s, &err);

	if (r >= 0)
		fail_msg("accepted: %.200s", members);
	assert_null(s);
	assert_string_equal(err.msg, msg);
	assert_int_equal(r, code);
	assert_int_equal(err.code, code);
}
