/* What template.c (opening) and template_store.c (making, removing) share. */
#pragma once

#include "sha256.h"
#include "template.h"

#define TEMPLATE_VERSION 2 /* 1: hashes counted pages of zeros */
#define TEMPLATE_MANIFEST "manifest"
#define TEMPLATE_MANIFEST_MAX 4096
#define TEMPLATE_VERIFIED "verified"
#define TEMPLATE_SHAPE "shape"

enum template_file { TEMPLATE_MEMORY, TEMPLATE_STATE, TEMPLATE_CHANNEL, TEMPLATE_NR_FILES };
extern const char *const template_files[TEMPLATE_NR_FILES];

struct template_manifest {
	char key[TEMPLATE_KEY_LEN + 1];
	struct template_meta meta;
	uint64_t sizes[TEMPLATE_NR_FILES];
	char hashes[TEMPLATE_NR_FILES][SHA256_HEX_LEN + 1];
};

char *template_manifest_format(const struct template_manifest *m);
/* 0, or -EPROTO for anything that template_manifest_format() does not write. */
int template_manifest_parse(const char *text, struct template_manifest *ret);

bool template_key_is_valid(const char *key);
/* The store's folder: -ENOENT when there is none, -EPERM when others may write to it. */
int template_open_dir(const char *dir, struct err *err);
int template_read_meta(int dir_fd, const char *key, struct template_meta *ret);
int template_hash(int fd, char hex[SHA256_HEX_LEN + 1]);
