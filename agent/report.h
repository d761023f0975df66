/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest knows of itself, as the `report` message tells it. What is not known is null. */
#ifndef SEVKIT_REPORT_H
#define SEVKIT_REPORT_H

#include <stdbool.h>

#include "json.h"

/* What is found out once, before there is a workload that could forge it. */
struct report_facts {
    char encryption[160]; /* the kernel's line on memory encryption; "" when it said nothing */
    bool is_sealed;
    bool is_debug; /* the image is the debug variant */
};

void report_gather(struct report_facts *facts, bool is_sealed, bool is_debug);

/* Whether the image says of itself that it is the debug variant. */
bool report_is_debug_image(void);

/* The strongest mode of memory encryption that the kernel names, "sev-snp" say; NULL: none. */
const char *report_active_mode(const struct report_facts *facts);

/* A file system of that type, "debugfs" say, as a folder that has no place in any tree; -1. */
int report_open_filesystem(const char *type, bool is_read_only);

/* Writes the result of `report`. */
void report_write(struct json_writer *writer, const struct report_facts *facts);

#endif
