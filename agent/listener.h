/* SPDX-License-Identifier: Apache-2.0 */
/* The vsock side: the guest's CID, a listener for the host, and who may connect to it. */
#ifndef SEVKIT_LISTENER_H
#define SEVKIT_LISTENER_H

#include <stdbool.h>
#include <stdint.h>

#include "events.h"

enum { VSOCK_PORT = 1024 };

/* The CID of the guest's vsock device; false without one. */
bool listener_guest_cid(uint32_t *cid);

/* Listens on VSOCK_PORT, non-blocking. -1 with errno set. */
int listener_open(void);

/* The next connection that may be: from the host, or with `any_peer` from anywhere. Others are
 * closed. -1 when there is none. */
int listener_accept(struct source *listener, bool any_peer);

#endif
