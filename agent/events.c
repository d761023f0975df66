/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

bool events_open(struct events *events)
{
    events->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return events->epoll_fd >= 0;
}

bool events_watch(struct events *events, struct source *source, int fd)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLET,
        .data.ptr = source,
    };
    *source = (struct source){.fd = fd, .epoll_fd = events->epoll_fd};
    return epoll_ctl(events->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

bool events_wait(struct events *events, int timeout_ms)
{
    struct epoll_event happened[16];
    const int count = epoll_wait(events->epoll_fd, happened, 16, timeout_ms);
    if (count < 0)
        return errno == EINTR;
    for (int i = 0; i < count; i++) {
        struct source *source = happened[i].data.ptr;
        /* A port that is no longer hung up says so by leaving the bit out. */
        source->ready = (source->ready & ~(uint32_t)EPOLLHUP) | happened[i].events;
    }
    return true;
}

void source_close(struct source *source)
{
    if (source->fd >= 0) {
        /* A child between fork and exec may still have it open, and so keep the watch alive. */
        epoll_ctl(source->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
        close(source->fd);
    }
    source->fd = -1;
    source->ready = 0;
}
