/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest knows of itself, as the `report` message tells it. What is not known is null. */
#ifndef SEVKIT_REPORT_H
#define SEVKIT_REPORT_H

#include <stdbool.h>

#include "json.h"

/* What is read once, before there is a workload that could forge it. */
struct report_facts {
    char encryption[160]; /* the kernel's line on memory encryption; "" when it said nothing */
    bool is_debug;        /* the image is the debug variant */
};

void report_gather(struct report_facts *facts);

/* Writes the body of a report. */
void report_write(struct json_writer *writer, const struct report_facts *facts);

#endif
