/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the host over its channel until there is a reason to stop. Ends nothing but itself: what
 * becomes of the guest then is the caller's business. */
#ifndef SEVKIT_SERVICE_H
#define SEVKIT_SERVICE_H

#include "failure.h"

enum service_end {
    SERVICE_SHUTDOWN, /* the host asked for it */
    SERVICE_HOST_LEFT,
    SERVICE_SIGNALLED, /* SIGTERM, SIGINT or SIGPWR */
    SERVICE_FAILED,    /* the reason is in `failure` */
};

/* Takes over `port_fd`, which must be non-blocking. The signals above and SIGCHLD must be blocked
 * and SIGPIPE ignored. */
enum service_end service_run(int port_fd, struct failure *failure);

#endif
