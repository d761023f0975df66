/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the virtio-serial port on which the host speaks to the agent. */
#ifndef SEVKIT_PORT_H
#define SEVKIT_PORT_H

#include "failure.h"

#define PORT_NAME "org.sevkit.agent.0"

/* Waits up to `timeout_ms` for the port to appear and opens it, non-blocking. Returns -1 with the
 * reason when it does not. */
int port_open(int timeout_ms, struct failure *failure);

#endif
