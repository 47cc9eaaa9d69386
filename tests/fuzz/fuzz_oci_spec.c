/*
 * The three readers of JSON: config.json, a process (exec) and resources (update), all on the same input. What is
 * accepted is looked through to its end, so that a wrong count or a missing NUL is a sanitizer's report.
 */
#include <stdlib.h>
#include <string.h>

#include "oci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t use_strv(const struct oci_strv *sv)
{
	size_t n = 0;

	for (size_t i = 0; i < sv->nr; i++)
		n += strlen(sv->v[i]);
	if (sv->v && sv->v[sv->nr])
		abort();
	return n;
}

static size_t use_process(const struct oci_process *p)
{
	if (!p->args.nr || !p->cwd || *p->cwd != '/')
		abort();
	for (size_t i = 0; i < p->env.nr; i++)
		if (!strchr(p->env.v[i], '='))
			abort();
	if (p->caps.effective & ~p->caps.permitted)
		abort();
	return use_strv(&p->args) + use_strv(&p->env) + strlen(p->cwd);
}

static size_t use_files(const struct oci_cgroup_file *f, size_t nr)
{
	size_t n = 0;

	for (size_t i = 0; i < nr; i++) {
		if (strchr(f[i].name, '/') || strchr(f[i].value, '\n'))
			abort();
		n += strlen(f[i].name) + strlen(f[i].value);
	}
	return n;
}

static size_t use_resources(const struct oci_resources *r)
{
	return use_files(r->files, r->nr_files) + use_files(r->host_files, r->nr_host_files);
}

static size_t use_spec(const struct oci_spec *s)
{
	size_t n = strlen(s->root_path) + use_resources(&s->resources);

	if (s->has_process)
		n += use_process(&s->process);
	for (size_t i = 0; i < s->nr_mounts; i++) {
		const struct oci_mount *m = &s->mounts[i];

		if (*m->destination != '/' || (m->bind && (!*m->source || *m->data)))
			abort();
		n += strlen(m->type) + strlen(m->source) + strlen(m->data);
	}
	for (size_t i = 0; i < s->nr_sysctls; i++)
		if (strstr(s->sysctls[i].key, "..") || !s->sysctls[i].value)
			abort();
	for (size_t i = 0; i < OCI_HOOK_MAX; i++)
		for (size_t k = 0; k < s->hooks[i].nr; k++)
			n += use_strv(&s->hooks[i].v[k].args) + strlen(s->hooks[i].v[k].path);
	for (size_t i = 0; i < s->nr_seccomp; i++)
		n += s->seccomp[i].code;
	return n + use_strv(&s->masked_paths) + use_strv(&s->readonly_paths);
}

/* The message goes to containerd as a protobuf string and to a log. */
static void use_error(const struct err *err, int code)
{
	if (code >= 0 || err->code != code || !err->msg[0])
		abort();
	for (const char *c = err->msg; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct oci_spec *s = NULL;
	struct oci_process *p = NULL;
	struct oci_resources *res = NULL;
	struct err err = {0};
	volatile size_t n = 0;
	int r = oci_spec_parse((const char *)data, size, &s, &err);

	if (r >= 0)
		n += use_spec(s);
	else
		use_error(&err, r);
	r = oci_process_parse((const char *)data, size, &p, &err);
	if (r >= 0)
		n += use_process(p);
	else
		use_error(&err, r);
	r = oci_resources_parse((const char *)data, size, &res, &err);
	if (r >= 0)
		n += use_resources(res);
	else
		use_error(&err, r);
	oci_spec_free(s);
	oci_process_free(p);
	oci_resources_free(res);
	(void)n;
	return 0;
}
