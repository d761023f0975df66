/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "pipes.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void stdio_close(const struct stdio *stdio)
{
    for (int i = 0; i < (stdio->is_terminal ? 1 : 3); i++) {
        if (stdio->fds[i] >= 0)
            close(stdio->fds[i]);
    }
}

bool stdio_open_pipe(struct events *events, struct source *source, int child_end, int *child_fd)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    *child_fd = ends[child_end];
    if (fcntl(ends[1 - child_end], F_SETFL, O_NONBLOCK) == 0 &&
        events_watch(events, source, ends[1 - child_end]))
        return true;
    const int error = errno;
    close(ends[1 - child_end]);
    source->fd = -1;
    errno = error;
    return false;
}
