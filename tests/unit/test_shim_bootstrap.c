/* Input of `start`: options of containerd up to 2.2, bootstrap parameters of 2.3, nothing, garbage. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bootstrap.h"
#include "cleanup.h"
#include "containerd_bootstrap.pb-c.h"

static void test_nothing_is_valid(void **state)
{
	struct bootstrap b;
	struct err e = {0};

	assert_int_equal(bootstrap_parse("", 0, &b, &e), 0);
	assert_string_equal(b.containerd_version, "");
	assert_string_equal(b.options_type, "");
	assert_false(b.debug);
	bootstrap_done(&b);
}

/* An Any whose value happens to look like a second string field. */
static void test_options_any(void **state)
{
	static const uint8_t wire[] = "\x0a\x18"
				      "containerd.runc.v1.Options"
				      "\x12\x04\x08\x01\x10\x01";
	uint8_t fixed[sizeof(wire)];
	struct bootstrap b;
	struct err e = {0};

	memcpy(fixed, wire, sizeof(wire));
	fixed[1] = 26;
	assert_int_equal(bootstrap_parse(fixed, sizeof(fixed) - 1, &b, &e), 0);
	assert_string_equal(b.options_type, "containerd.runc.v1.Options");
	assert_string_equal(b.containerd_version, "");
	bootstrap_done(&b);
}

static size_t pack_params(uint8_t *out, int32_t level)
{
	Ctrd__BootstrapParams p = CTRD__BOOTSTRAP_PARAMS__INIT;
	Ctrd__BootstrapExtension ext = CTRD__BOOTSTRAP_EXTENSION__INIT, *exts[] = {&ext};
	Ctrd__Any any = CTRD__ANY__INIT;

	p.instance_id = "c1";
	p.namespace_ = "default";
	p.log_level = level;
	p.containerd_version = "2.3.4";
	p.containerd_grpc_address = "/run/containerd/containerd.sock";
	any.type_url = "runtimeoptions.v1.Options";
	ext.value = &any;
	p.n_extensions = 1;
	p.extensions = exts;
	return ctrd__bootstrap_params__pack(&p, out);
}

static void test_params_of_2_3(void **state)
{
	uint8_t wire[512];
	struct bootstrap b;
	struct err e = {0};
	size_t len = pack_params(wire, -4);

	assert_int_equal(bootstrap_parse(wire, len, &b, &e), 0);
	assert_string_equal(b.containerd_version, "2.3.4");
	assert_true(b.has_params);
	assert_string_equal(b.options_type, "runtimeoptions.v1.Options");
	assert_true(b.debug);
	bootstrap_done(&b);
	len = pack_params(wire, 0);
	assert_int_equal(bootstrap_parse(wire, len, &b, &e), 0);
	assert_false(b.debug);
	bootstrap_done(&b);
}

static void test_garbage_is_an_error(void **state)
{
	struct bootstrap b;
	struct err e = {0};

	assert_int_equal(bootstrap_parse("\xff\xff\xff\xff", 4, &b, &e), -EBADMSG);
	bootstrap_done(&b);
	assert_int_equal(bootstrap_parse("\x0a\x7f", 2, &b, &e), -EBADMSG);
	bootstrap_done(&b);
}

static void test_read_to_the_end(void **state)
{
	uint8_t wire[512];
	struct bootstrap b;
	struct err e = {0};
	int p[2];
	size_t len = pack_params(wire, 0);

	assert_int_equal(pipe(p), 0);
	assert_int_equal(write(p[1], wire, len), len);
	close(p[1]);
	assert_int_equal(bootstrap_read(p[0], &b, &e), 0);
	assert_string_equal(b.containerd_version, "2.3.4");
	bootstrap_done(&b);
	close(p[0]);
	/* A closed stdin is no input. */
	assert_int_equal(bootstrap_read(-1, &b, &e), 0);
	bootstrap_done(&b);
}

/* ---- what start prints ---- */

#define SOCKET "/run/containerd/s/0123"

static void expect_text(const struct bootstrap *b, enum config_bootstrap form, const char *path,
			const char *text)
{
	size_t len;
	cleanup_free uint8_t *data = bootstrap_format(b, form, path, &len);

	assert_int_equal(len, strlen(text));
	assert_memory_equal(data, text, len);
}

static void test_forms_of_the_address(void **state)
{
	struct bootstrap old = {0}, new = {.has_params = true};

	expect_text(&old, CONFIG_BOOTSTRAP_AUTO, SOCKET, "unix://" SOCKET);
	expect_text(&new, CONFIG_BOOTSTRAP_PLAIN, SOCKET, "unix://" SOCKET);
	expect_text(&old, CONFIG_BOOTSTRAP_JSON2, SOCKET,
		    "{\"version\":2,\"address\":\"unix://" SOCKET "\",\"protocol\":\"ttrpc\"}");
	expect_text(&new, CONFIG_BOOTSTRAP_JSON3, SOCKET,
		    "{\"version\":3,\"address\":\"unix://" SOCKET "\",\"protocol\":\"ttrpc\"}");
	expect_text(&old, CONFIG_BOOTSTRAP_JSON2, "/a\"b\\c",
		    "{\"version\":2,\"address\":\"unix:///a\\\"b\\\\c\",\"protocol\":\"ttrpc\"}");
}

static void test_protobuf_result(void **state)
{
	struct bootstrap b = {.has_params = true};
	size_t len;
	cleanup_free uint8_t *data = bootstrap_format(&b, CONFIG_BOOTSTRAP_AUTO, SOCKET, &len);
	Ctrd__BootstrapResult *r = ctrd__bootstrap_result__unpack(NULL, len, data);

	assert_non_null(r);
	assert_int_equal(r->version, 3);
	assert_string_equal(r->address, "unix://" SOCKET);
	assert_string_equal(r->protocol, "ttrpc");
	ctrd__bootstrap_result__free_unpacked(r, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_is_valid),
		cmocka_unit_test(test_options_any),
		cmocka_unit_test(test_params_of_2_3),
		cmocka_unit_test(test_garbage_is_an_error),
		cmocka_unit_test(test_read_to_the_end),
		cmocka_unit_test(test_forms_of_the_address),
		cmocka_unit_test(test_protobuf_result),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
