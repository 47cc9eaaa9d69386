/* Input of `start`; see bootstrap.h. Hostile bytes at worst come from containerd, but are bounded anyway. */
#include "bootstrap.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "containerd_bootstrap.pb-c.h"
#include "io.h"
#include "util.h"

/* containerd.runtime.bootstrap.v1 log levels at or below which we log at debug. */
#define BOOTSTRAP_LEVEL_DEBUG (-4)
#define BOOTSTRAP_PROTOCOL "ttrpc"
#define BOOTSTRAP_JSON_ROOM 64

static void bootstrap_params_freep(Ctrd__BootstrapParams **p)
{
	ctrd__bootstrap_params__free_unpacked(*p, NULL);
}

static void bootstrap_any_freep(Ctrd__Any **p)
{
	ctrd__any__free_unpacked(*p, NULL);
}

static bool bootstrap_is_params(const Ctrd__BootstrapParams *p)
{
	return *p->containerd_version || *p->containerd_ttrpc_address ||
	       *p->containerd_grpc_address || *p->containerd_binary || p->n_extensions;
}

static const char *bootstrap_first_option(const Ctrd__BootstrapParams *p)
{
	for (size_t i = 0; i < p->n_extensions; i++) {
		if (p->extensions[i]->value && *p->extensions[i]->value->type_url)
			return p->extensions[i]->value->type_url;
	}
	return "";
}

int bootstrap_parse(const void *data, size_t len, struct bootstrap *ret, struct err *err)
{
	cleanup(bootstrap_params_freep) Ctrd__BootstrapParams *params = NULL;
	cleanup(bootstrap_any_freep) Ctrd__Any *any = NULL;

	*ret = (struct bootstrap){0};
	params = ctrd__bootstrap_params__unpack(NULL, len, data);
	if (params && bootstrap_is_params(params)) {
		ret->has_params = true;
		ret->debug = params->log_level <= BOOTSTRAP_LEVEL_DEBUG;
		ret->containerd_version = xstrndup(params->containerd_version, len);
		ret->options_type = xstrndup(bootstrap_first_option(params), len);
		return 0;
	}
	any = ctrd__any__unpack(NULL, len, data);
	if (!any)
		return err_say(err, -EBADMSG,
			       "standard input of 'start' holds neither runtime options nor "
			       "bootstrap parameters");
	ret->containerd_version = xstrdup("");
	ret->options_type = xstrndup(any->type_url, len);
	return 0;
}

void bootstrap_done(struct bootstrap *b)
{
	free(b->containerd_version);
	free(b->options_type);
	*b = (struct bootstrap){0};
}

int bootstrap_read(int fd, struct bootstrap *ret, struct err *err)
{
	cleanup_free uint8_t *data = xmalloc(BOOTSTRAP_INPUT_MAX + 1);
	ssize_t n = 0;

	*ret = (struct bootstrap){0};
	if (!isatty(fd)) {
		n = io_read_full(fd, data, BOOTSTRAP_INPUT_MAX + 1);
		if (n == -EBADF)
			n = 0;
	}
	if (n < 0)
		return err_set(err, (int)n, "read standard input");
	if (n > (ssize_t)BOOTSTRAP_INPUT_MAX)
		return err_say(err, -EMSGSIZE, "standard input of 'start' is larger than %u bytes",
			       BOOTSTRAP_INPUT_MAX);
	return bootstrap_parse(data, (size_t)n, ret, err);
}

static uint8_t *bootstrap_format_result(const char *address, size_t *ret_len)
{
	Ctrd__BootstrapResult result = CTRD__BOOTSTRAP_RESULT__INIT;
	static char protocol[] = BOOTSTRAP_PROTOCOL;
	uint8_t *data;

	result.version = 3;
	result.address = (char *)address;
	result.protocol = protocol;
	*ret_len = ctrd__bootstrap_result__get_packed_size(&result);
	data = xmalloc(*ret_len);
	ctrd__bootstrap_result__pack(&result, data);
	return data;
}

static char *bootstrap_json(int version, const char *address)
{
	char *text = xmalloc(strlen(address) * 2 + BOOTSTRAP_JSON_ROOM), *p = text;

	p += sprintf(p, "{\"version\":%d,\"address\":\"", version);
	/* A folder may have any name. */
	for (; *address; address++) {
		if (*address == '"' || *address == '\\')
			*p++ = '\\';
		*p++ = *address;
	}
	sprintf(p, "\",\"protocol\":\"%s\"}", BOOTSTRAP_PROTOCOL);
	return text;
}

uint8_t *bootstrap_format(const struct bootstrap *b, enum config_bootstrap form,
			  const char *socket_path, size_t *ret_len)
{
	cleanup_free char *address = xasprintf("%s%s", BOOTSTRAP_SCHEME, socket_path);
	char *text = NULL;

	switch (form) {
	case CONFIG_BOOTSTRAP_AUTO:
		if (b->has_params)
			return bootstrap_format_result(address, ret_len);
		text = take_ptr(&address);
		break;
	case CONFIG_BOOTSTRAP_JSON2:
	case CONFIG_BOOTSTRAP_JSON3:
		text = bootstrap_json(form == CONFIG_BOOTSTRAP_JSON2 ? 2 : 3, address);
		break;
	case CONFIG_BOOTSTRAP_PLAIN:
	case CONFIG_BOOTSTRAP_MAX:
		text = take_ptr(&address);
		break;
	}
	*ret_len = strlen(text);
	return (uint8_t *)text;
}
