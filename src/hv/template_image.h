/*
 * Guest memory of a template: the pages that are not zero, and where they go. A file of a header, a table
 * of extents, and at the next page boundary their content in the same order; little-endian.
 */
#pragma once

#include <stdint.h>

#include "err.h"

/* From a guest that stands still, or a file of such a one's memory. out_fd: an empty file. */
int template_image_write(int ram_fd, uint64_t ram_bytes, int out_fd, struct err *err);
/*
 * Fills a file of ram_bytes zeros. The image is checked against its own size and against ram_bytes; -EPROTO:
 * it is not one for memory of this size. It may change or shrink meanwhile: an error or other content, no more.
 */
int template_image_load(int image_fd, uint64_t ram_bytes, int ram_fd, struct err *err);
