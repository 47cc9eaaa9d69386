/* What harpoon can do, as the OCI runtime specification's "features" document: containerd asks with -info. */
#pragma once

#define INFO_FEATURES_TYPE "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

/* The JSON text, to be freed. */
char *info_features_json(void);
