/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the host until there is a reason to stop. Ends nothing but itself: what becomes of the
 * guest then is the caller's business. */
#ifndef SEVKIT_SERVICE_H
#define SEVKIT_SERVICE_H

#include <stdbool.h>

#include "failure.h"

enum service_end {
    SERVICE_SHUTDOWN, /* the host asked for it */
    SERVICE_HOST_LEFT,
    SERVICE_SIGNALLED, /* SIGTERM, SIGINT or SIGPWR */
    SERVICE_FAILED,    /* the reason is in `failure` */
};

struct setup {
    int port_fd;     /* of the virtio-serial port, non-blocking; -1: none */
    int listener_fd; /* of vsock, non-blocking; -1: none */
    bool any_peer;   /* not the host alone may connect to the listener */
    bool is_sealed;
    bool is_debug;
};

/* Takes over the descriptors. The signals above and SIGCHLD must be blocked and SIGPIPE
 * ignored. */
enum service_end service_run(const struct setup *setup, struct failure *failure);

#endif
