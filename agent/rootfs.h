/* SPDX-License-Identifier: Apache-2.0 */
/* Roots for commands and containers: a share or the workload image, read-only, below an overlay
 * whose upper layer is memory.
 *
 * The root of the guest is an initramfs, which the kernel lets nobody leave by pivot_root(2): a new
 * root is moved onto / and entered by chroot(2), as switch_root(8) does. All of this is for
 * children of the agent: each has a mount namespace of its own, so what they mount goes when the
 * last process in it does. On failure such a child is good for _exit() only. */
#ifndef SEVKIT_ROOTFS_H
#define SEVKIT_ROOTFS_H

#include <stdbool.h>

#include "failure.h"
#include "request.h"

/* Of the workload image, between rootfs_mount_layers() and rootfs_mount_overlay(). */
#define ROOTFS_IMAGE_CONFIG "layers/lower/config.json"

/* The folder that the current folder gets for the root. */
#define ROOTFS_FOLDER "rootfs"

/* Enters a mount namespace of its own, and mounts in the current folder the layers of the root
 * that the request names. */
bool rootfs_mount_layers(const struct request *request, struct failure *failure);

/* Mounts the overlay on ROOTFS_FOLDER; the layers are out of sight then. */
bool rootfs_mount_overlay(const struct request *request, struct failure *failure);

/* Makes the 9p share that the request names the root of the calling process. */
bool rootfs_enter(const struct request *request, struct failure *failure);

/* Makes a folder, unless it is there. */
bool rootfs_make_folder(const char *path);

#endif
