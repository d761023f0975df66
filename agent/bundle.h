/* SPDX-License-Identifier: Apache-2.0 */
/* The OCI runtime configuration of a container: checked, given its cgroup, written for crun.
 *
 * For children of the agent: its buffers are large. */
#ifndef SEVKIT_BUNDLE_H
#define SEVKIT_BUNDLE_H

#include <stdbool.h>

#include "failure.h"

enum { BUNDLE_CONFIG_MAX = 131072 };

/* What the agent itself needs to know of a configuration. */
struct bundle {
    bool has_terminal;
    bool forbids_new_privileges;
};

/* Reads the configuration in the file `from`, or in `text` when that is not NULL, and writes it to
 * config.json in the current folder with `linux.cgroupsPath` set to /sevkit/`id`. Refuses one whose
 * root is not the folder `rootfs`. */
bool bundle_write(const char *from, const char *text, const char *id, struct bundle *bundle,
                  struct failure *failure);

/* Reads what bundle_write() wrote in the current folder. */
bool bundle_read(struct bundle *bundle, struct failure *failure);

#endif
