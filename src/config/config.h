/*
 * harpoon.conf: an INI file that the administrator owns. Every key is checked; an unknown key, a value
 * out of range or a path that is not absolute is an error that names file and line. Which file: the
 * HARPOON_CONFIG environment variable (must then exist), else the installed default, which may be absent.
 * Annotations of a container (io.harpoon.*) may change sizes and the backend, nothing else.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "err.h"
#include "log.h"

#define CONFIG_VCPUS_MAX 32
#define CONFIG_NICS_MAX 8
#define CONFIG_MEM_MIN_MIB 64
#define CONFIG_WINDOW_MAX_MIB 4096
#define CONFIG_MEM_MAX_MIB (1024 * 1024)

enum config_backend {
	CONFIG_BACKEND_AUTO,
	CONFIG_BACKEND_KVM,
	CONFIG_BACKEND_QEMU,
	CONFIG_BACKEND_MAX
};

enum config_templates {
	CONFIG_TEMPLATES_AUTO, /* clone where there is a template, have one made where there is none */
	CONFIG_TEMPLATES_OFF,
	CONFIG_TEMPLATES_MAX
};

/* How the shim's address is told to containerd, and with it which Task API is spoken. */
enum config_bootstrap {
	CONFIG_BOOTSTRAP_AUTO, /* what every containerd understands; protobuf to one that speaks it */
	CONFIG_BOOTSTRAP_PLAIN, /* the bare address: Task API 2 */
	CONFIG_BOOTSTRAP_JSON2, /* containerd 1.7 and later */
	CONFIG_BOOTSTRAP_JSON3, /* containerd 2.0 and later */
	CONFIG_BOOTSTRAP_MAX
};

struct config {
	char *path; /* file read, NULL = none, defaults only */
	/* [vm] */
	enum config_backend backend;
	char *kernel, *initrd, *kernel_args; /* kernel_args: appended to ours, may be "" */
	uint32_t vcpus;
	uint32_t memory_mib;	      /* when the container sets no limit */
	uint32_t memory_overhead_mib; /* added to the container's limit */
	uint32_t memory_max_mib;      /* as far as a VM can grow; below its size: not at all */
	uint32_t dax_window_mib;      /* kvm: of files that a guest maps; even; 0 = none */
	/* [network] */
	uint32_t nics; /* network devices a VM is born with */
	/* [templates] */
	enum config_templates templates;
	char *template_dir;
	uint32_t templates_max, templates_max_mib, templates_max_days;
	/* [programs] */
	char *qemu, *fs_server, *vmm, *passt, *cli;
	/* [log] */
	enum log_level log_level;
	/* [containerd] */
	enum config_bootstrap bootstrap;
	/* [limits] */
	uint32_t ready_timeout_ms; /* VM start to agent ready */
	uint32_t call_timeout_ms;  /* one call to the agent */
	uint32_t console_log_kib;
};

/* Fills *ret with defaults plus the file. On failure *ret is empty (config_done is harmless). */
int config_load(struct config *ret, struct err *err);
/* As above, for one named file ("" = none); text errors are "<path>:<line>: ...". */
int config_load_file(struct config *ret, const char *path, struct err *err);
/* As above, from memory; path is for messages and for ret->path. */
int config_load_text(struct config *ret, const char *path, const char *text, size_t len,
		     struct err *err);
void config_done(struct config *c);

/*
 * One annotation. 0 = applied or not ours (ignored), -EINVAL with a sentence naming key and value. Ours
 * are io.harpoon.vcpus (a number), io.harpoon.memory ("512", "512M", "2G"; a bare number is MiB; the
 * VM's whole RAM, nothing is added) and io.harpoon.backend (auto, kvm, qemu). Any other io.harpoon.* is
 * refused: a mistyped size must not go unnoticed, and nothing else may be chosen by a container.
 */
int config_apply_annotation(struct config *c, const char *key, const char *value, struct err *err);

const char *config_backend_name(enum config_backend b);

/* Every key with its value in effect, as a file that config_load_file() takes. Caller frees. */
char *config_format(const struct config *c);
