/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a 9p share of the host the root of the calling process.
 *
 * The root of the guest is an initramfs, which the kernel lets nobody leave by pivot_root(2): the
 * new root is moved onto / and entered by chroot(2), as switch_root(8) does. */
#ifndef SEVKIT_ROOTFS_H
#define SEVKIT_ROOTFS_H

#include <stdbool.h>

#include "failure.h"

/* For a process that will run the workload and nothing else: it gets a mount namespace of its own.
 * The share is mounted read-only under an overlay whose upper layer is memory, so nothing that the
 * workload writes reaches the host. On failure the process is good for _exit() only. */
bool rootfs_enter(const char *tag, struct failure *failure);

#endif
