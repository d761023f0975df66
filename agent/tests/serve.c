/* SPDX-License-Identifier: Apache-2.0 */
/* The agent without what makes it PID 1: serves the descriptor it is given as if it were the port,
 * adopts the orphans of its commands, and exits with a status that tells how the service ended.
 *
 *   serve PORT [LISTENER [sealed]]     descriptors; -1: none */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "service.h"

static int take_descriptor(const char *text)
{
    const int fd = atoi(text);

    if (fd >= 0 && (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0))
        exit(1);
    return fd;
}

int main(int argc, char *argv[])
{
    if (argc < 2)
        return 1;
    const struct setup setup = {
        .port_fd = take_descriptor(argv[1]),
        .listener_fd = argc > 2 ? take_descriptor(argv[2]) : -1,
        .any_peer = true,
        .is_sealed = argc > 3,
    };
    struct failure failure = {0};
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const enum service_end end = service_run(&setup, &failure);
    if (end == SERVICE_FAILED)
        fprintf(stderr, "%s\n", failure.what);
    return 10 + (int)end;
}
