/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tells of a container's control group (cgroup v2), /sevkit/ID. */
#ifndef SEVKIT_CGROUP_H
#define SEVKIT_CGROUP_H

#include <stdbool.h>

#include "json.h"

#define CGROUP_PARENT "/sys/fs/cgroup/sevkit"

/* Whether the kernel has killed something in it for want of memory. */
bool cgroup_had_oom(const char *id);

/* Writes the result of `stats`. */
void cgroup_write_stats(struct json_writer *writer, const char *id);

#endif
