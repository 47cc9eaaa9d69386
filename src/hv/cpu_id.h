/* What the host's processors are and can do, for a template's key: two hosts, or one after an upgrade. */
#pragma once

#include <stdio.h>

/* One line. */
void cpu_id_describe(FILE *f);
