/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the virtio-serial port on which the host speaks to the agent. */
#ifndef SEVKIT_PORT_H
#define SEVKIT_PORT_H

#include <stdbool.h>

#include "failure.h"

#define PORT_NAME "org.sevkit.agent.0"

/* Waits up to `timeout_ms` for the port to appear and opens it, non-blocking; not at all when it is
 * not needed and there is no device that may have it. Returns -1 with the reason. */
int port_open(bool is_needed, int timeout_ms, struct failure *failure);

#endif
