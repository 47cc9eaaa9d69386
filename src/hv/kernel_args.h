/* The guest kernel's command line. Pure. */
#pragma once

/* Ours, then the administrator's `extra` (may be ""). Caller frees. */
char *kernel_args_build(const char *extra);
