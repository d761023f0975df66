/* SPDX-License-Identifier: Apache-2.0 */
/* The agent without what makes it PID 1: serves the descriptor it is given as if it were the port,
 * adopts the orphans of its commands, and exits with a status that tells how the service ended. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "service.h"

int main(int argc, char *argv[])
{
    const int port_fd = argc == 2 ? atoi(argv[1]) : -1;
    struct failure failure = {0};
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    fcntl(port_fd, F_SETFL, O_NONBLOCK);
    fcntl(port_fd, F_SETFD, FD_CLOEXEC);
    const enum service_end end = service_run(port_fd, &failure);
    if (end == SERVICE_FAILED)
        fprintf(stderr, "%s\n", failure.what);
    return 10 + (int)end;
}
