/* SPDX-License-Identifier: Apache-2.0 */
/* The file systems and links that a Linux userspace expects, made in an initramfs. */
#ifndef SEVKIT_MOUNTS_H
#define SEVKIT_MOUNTS_H

#include <stdbool.h>

#include "failure.h"

/* False when something is missing without which nothing works (proc, sysfs, devtmpfs). What else
 * cannot be had (a kernel without cgroups, say) is told on the console. */
bool mounts_make(struct failure *failure);

#endif
